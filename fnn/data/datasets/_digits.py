"""The handwritten digits that ship with the package."""

from importlib import resources
from typing import NamedTuple

import numpy as np

from fnn.data.datasets._images import Rows


class Splits(NamedTuple):
    """A data set in three parts, each (x, labels)."""

    train: Rows
    valid: Rows
    test: Rows


def digits() -> Splits:
    """Handwritten digits, 8 x 8: x float32 [rows, 64] from 0 to 1, labels int32 [rows] 0 to 9.

    1,077 rows to train, 360 to validate, 360 to test. UCI Optical Recognition of Handwritten
    Digits, E. Alpaydin and C. Kaynak 1998, CC BY 4.0; ships with the package.
    """
    file = resources.files("fnn.data.datasets") / "digits.npz"
    with file.open("rb") as opened, np.load(opened) as arrays:
        parts = [(arrays[f"{part}_x"], arrays[f"{part}_labels"]) for part in Splits._fields]
    return Splits(*((x.astype(np.float32) / 16, y.astype(np.int32)) for x, y in parts))
