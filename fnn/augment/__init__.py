"""Augmentation: ``name(key, x, ...) -> x`` for batches [batch, height, width, channels].

Each example is drawn by itself, and no key leaves x as it is. Example i draws from
``fold_in(key, i)``, so what it gets does not depend on the batch around it; where a batch is cut
in pieces, give keys [batch], ``fnn.row_keys(key, numbers)``, in place of the key. Several in a
row need a key each, from ``fnn.split``. All are meant for the inside of the compiled program, in
the loss function, where each step draws anew.

Images are floating point; half precision is interpolated and mixed in float32. What comes from
outside an image is 0.
"""

from fnn.augment.covering import cutout as cutout
from fnn.augment.covering import noise as noise
from fnn.augment.mixing import cutmix as cutmix
from fnn.augment.mixing import mixup as mixup
from fnn.augment.moving import crop as crop
from fnn.augment.moving import flip as flip
from fnn.augment.moving import rotate as rotate
from fnn.augment.moving import rotate_by as rotate_by
from fnn.augment.moving import shift as shift
from fnn.augment.moving import shift_by as shift_by
