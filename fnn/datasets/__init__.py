"""Data sets: real ones as NumPy arrays, first axis the rows, and small ones drawn from a key.

`digits` ships with the package. The others are downloaded once into ``FNN_DATA``, or
``~/.cache/fnn``, and checked; ``DATA.md`` beside this file says whose they are and where the files
belong on a machine without a network. Of these functions only the synthetic ones, which are
fnn.data's, touch a device.
"""

from importlib import resources
from typing import NamedTuple

import numpy as np

from fnn.data import clusters as clusters
from fnn.data import moons as moons
from fnn.data import rings as rings
from fnn.data import spirals as spirals
from fnn.data import xor as xor
from fnn.datasets.images import Rows as Rows
from fnn.datasets.images import cifar10 as cifar10
from fnn.datasets.images import fashion_mnist as fashion_mnist
from fnn.datasets.images import mnist as mnist
from fnn.datasets.text import decode as decode
from fnn.datasets.text import encode as encode
from fnn.datasets.text import names as names
from fnn.datasets.text import shakespeare as shakespeare
from fnn.datasets.text import vocabulary as vocabulary


class Splits(NamedTuple):
    """One data set in three parts, each (x, labels)."""

    train: Rows
    valid: Rows
    test: Rows


def digits() -> Splits:
    """Handwritten digits, 8 x 8: x float32 [rows, 64] from 0 to 1, labels int32 [rows] 0 to 9.

    1,077 rows to train, 360 to validate, 360 to test. UCI Optical Recognition of Handwritten
    Digits, E. Alpaydin and C. Kaynak 1998, CC BY 4.0; ships with the package.
    """
    file = resources.files(__name__) / "digits.npz"
    with file.open("rb") as opened, np.load(opened) as arrays:
        parts = [(arrays[f"{part}_x"], arrays[f"{part}_labels"]) for part in Splits._fields]
    return Splits(*((x.astype(np.float32) / 16, y.astype(np.int32)) for x, y in parts))
