"""Shared by the augmentations: one draw for each example, boxes, checks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fnn._base import AnyArray, as_array, check_floating, check_key, is_one_key, row_keys


def draw_each(name: str, key: Array, x: AnyArray, draw: Callable[[Array], Any]) -> Any:
    """draw(key) for each example, [batch, ...]."""
    check_key(name, key, x.shape[0])
    keys: Any = row_keys(key, x.shape[0]) if is_one_key(key) else key
    return jax.vmap(draw)(keys)


def middle(key: Array, x: AnyArray) -> Array:
    """(row, column) of a pixel, int32 [2], uniform on the image."""
    return jax.random.randint(key, (2,), 0, jnp.array(x.shape[1:3]), jnp.int32)


def boxes(x: AnyArray, middles: Array, sizes: Array) -> tuple[Array, Array]:
    """Middles and sizes, int -> bool [batch, height, width, 1]: True inside; pixels inside [batch].

    Sizes are (height, width) of each box, [batch, 2], or of all boxes, [2].
    """
    limits = jnp.array(x.shape[1:3], jnp.int32)
    first = middles - sizes // 2
    low, high = jnp.clip(first, 0, limits), jnp.clip(first + sizes, 0, limits)

    def between(axis: int) -> Array:
        i = jnp.arange(x.shape[1 + axis], dtype=jnp.int32)
        return (i >= low[:, axis, None]) & (i < high[:, axis, None])

    inside = between(0)[:, :, None, None] & between(1)[:, None, :, None]
    return inside, jnp.prod(high - low, axis=1)


def per_image(values: Array, x: AnyArray) -> Array:
    """[batch] -> [batch, 1, ...], which broadcasts against x."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def as_images(name: str, x: AnyArray) -> Array:
    """x; ValueError unless it is [batch, height, width, channels], TypeError unless real floats."""
    if as_array(name, "x", x).ndim != 4:
        raise ValueError(
            f"{name}: x has shape {x.shape}, expected [batch, height, width, channels]"
        )
    return as_batch(name, x)


def as_batch(name: str, x: AnyArray) -> Array:
    """x; ValueError unless it is [batch, ...], TypeError unless its elements are real floats."""
    if as_array(name, "x", x).ndim == 0:
        raise ValueError(f"{name}: x has shape (), expected [batch, ...]")
    check_floating(name, x)
    if jnp.iscomplexobj(x):
        raise TypeError(f"{name}: x is {x.dtype}, expected real numbers")
    return jnp.asarray(x)
