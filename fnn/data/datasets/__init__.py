"""Real data sets as NumPy arrays, and the small sets of ``fnn.data`` that are drawn from a key.

- `digits` ships with the package.
- The other real sets are downloaded once, checked, and kept in the folder ``FNN_DATA``, or
  ``~/.cache/fnn``. `available` says whether a set is there.
- ``DATA.md`` beside this file has the authors and licences. It also says where to put the files on
  a machine without a network.

Only the sets drawn from a key use a device.
"""

from fnn.data._drawn import clusters, moons, rings, spirals, xor
from fnn.data.datasets._cache import available
from fnn.data.datasets._digits import Splits, digits
from fnn.data.datasets._images import Rows, cifar10, fashion_mnist, mnist
from fnn.data.datasets._text import decode, encode, names, shakespeare, vocabulary

__all__ = [
    "Rows",
    "Splits",
    "available",
    "cifar10",
    "clusters",
    "decode",
    "digits",
    "encode",
    "fashion_mnist",
    "mnist",
    "moons",
    "names",
    "rings",
    "shakespeare",
    "spirals",
    "vocabulary",
    "xor",
]
