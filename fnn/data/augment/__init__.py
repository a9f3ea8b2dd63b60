"""Augmentation: ``name(key, x, ...) -> x`` for batches [batch, height, width, channels].

Call these functions in the loss function, inside the compiled program; each step then draws anew.

- Without a key (None) x stays as it is; `crop` then cuts the middle.
- Every example has a draw of its own. Example i draws from ``fold_in(key, i)``, so its draw does
  not depend on the other rows of the batch.
- For a part of a batch, give keys [batch] in place of the key:
  ``fnn.nn.row_keys(key, numbers of the rows)``.
- Two functions after each other need two keys, from ``fnn.split``.
- x is floating point. Half precision is interpolated and mixed in float32.
- Pixels from outside the image are 0.
"""

from fnn.data.augment._covering import cutout, noise
from fnn.data.augment._mixing import cutmix, mixup
from fnn.data.augment._moving import crop, flip, rotate, rotate_by, shift, shift_by

__all__ = [
    "crop",
    "cutmix",
    "cutout",
    "flip",
    "mixup",
    "noise",
    "rotate",
    "rotate_by",
    "shift",
    "shift_by",
]
