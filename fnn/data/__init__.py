"""Data are trees of arrays whose first axis is the rows.

Here are functions that cut, shuffle and weigh rows, small sets drawn from a key, ``datasets`` (real
data sets) and ``augment`` (random changes of a batch).
"""

from fnn.data import augment, datasets
from fnn.data._arrays import class_weights, permutation, rows_of, split, take, windows
from fnn.data._drawn import clusters, moons, rings, spirals, xor

__all__ = [
    "augment",
    "class_weights",
    "clusters",
    "datasets",
    "moons",
    "permutation",
    "rings",
    "rows_of",
    "spirals",
    "split",
    "take",
    "windows",
    "xor",
]
