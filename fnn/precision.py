"""Where half precision is not enough: losses, norms and moments are computed in `wide` types."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def wide_dtype(x: ArrayLike) -> Any:
    """x's own floating type, or float32 where that is narrower or x is not floating."""
    return at_least_float32(jnp.result_type(x))


def at_least_float32(dtype: Any) -> Any:
    """The same for a dtype. Not by promotion, which strict promotion rules out."""
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    return jnp.dtype(dtype if wide else jnp.float32)


def wide(x: ArrayLike) -> Array:
    """x in its `wide_dtype`."""
    return jnp.asarray(x, wide_dtype(x))
