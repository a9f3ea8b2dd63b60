"""Whole numbers that name things: labels, ids, classes, rows.

They come in any integer dtype. Compared in their own, 256 classes would meet uint8 labels as 0;
and JAX cuts NumPy's 64 bits to 32, which makes row 5 of 2^32 + 5. So they go through `as_ids`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def as_ids(ids: Any) -> Array:
    """int [...] -> the same numbers in int32, or in int64 where JAX has 64 bits enabled.

    A number that does not fit becomes the nearest that does. No axis is that long, so what was out
    of range stays out of range.
    """
    dtype = jnp.dtype(jnp.result_type(int))
    on = jnp if isinstance(ids, jax.Array) else np
    ids = on.asarray(ids)
    if ids.dtype.itemsize >= dtype.itemsize and ids.dtype != dtype:
        own, end = jnp.iinfo(ids.dtype), jnp.iinfo(dtype)
        ids = on.clip(ids, max(own.min, end.min), min(own.max, end.max))
    return jnp.asarray(ids, dtype)
