"""Sums and means over rows, with a weight for each row."""

import jax.numpy as jnp
from jax import Array

from fnn._base._arrays import as_array
from fnn._base._numerics import wide
from fnn._base._types import AnyArray


def weighted_sum(values: Array, weights: AnyArray | None = None) -> Array:
    """[rows, ...], [rows] -> [...]: sum of weight * value; without weights the plain sum.

    A row with weight 0, or False, is ignored, even if its value is NaN or inf.
    """
    if weights is None:
        return jnp.sum(values, axis=0)
    each = jnp.asarray(weights).reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
    # NaN times 0 is NaN, in the sum and in the gradient of the weight. A finite value stays, for
    # the gradient of a weight of 0 is the value.
    ignored = (each == 0) & ~jnp.isfinite(values)
    return jnp.sum(jnp.where(ignored, 0, values) * each, axis=0)


def weighted_mean(values: AnyArray, weights: AnyArray | None = None) -> Array:
    """[rows, ...], [rows] -> [...]: sum of weight * value / sum of weights, over the rows.

    A row with weight 0, or False, is ignored, even if its value is NaN or inf. Without weights it
    is the plain mean. Computed in float32 at least. NaN if all weights are 0.
    """
    values = wide(as_array("weighted_mean", "values", values))
    if weights is None:
        return jnp.mean(values, axis=0)
    weights = as_array("weighted_mean", "weights", weights)
    if weights.shape != values.shape[:1]:
        raise ValueError(
            f"weighted_mean: weights have shape {weights.shape}, but values {values.shape};"
            " expected one weight for each row"
        )
    weights = jnp.asarray(weights, values.dtype)
    return weighted_sum(values, weights) * (1 / jnp.sum(weights))
