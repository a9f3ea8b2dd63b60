"""Functions of parameter trees: paths, sizes, norms, penalties, and trees of bools.

A path is the keys that lead to a leaf, joined by slashes: ``hidden/w``.
"""

from fnn._base import (
    count,
    decayed,
    global_norm,
    matching,
    path_matches,
    path_of,
    paths,
)
from fnn.nn._penalties import elastic_net, l1, l2

__all__ = [
    "count",
    "decayed",
    "elastic_net",
    "global_norm",
    "l1",
    "l2",
    "matching",
    "path_matches",
    "path_of",
    "paths",
]
