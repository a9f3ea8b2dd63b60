"""Where half precision is not enough: losses, norms and moments are computed in `wide` types."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def wide_dtype(x: ArrayLike) -> Any:
    """float32 for anything narrower, else x's own floating type."""
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def wide(x: ArrayLike) -> Array:
    """x in its `wide_dtype`."""
    return jnp.asarray(x, wide_dtype(x))
