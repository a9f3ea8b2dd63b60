"""Augmentation that hides a part of x: noise, and squares of zeros."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import AnyArray, as_count, check_range, wide, wide_dtype
from fnn.data.augment._draws import as_batch, as_images, boxes, draw_each, middle


def noise(key: Array | None, x: AnyArray, deviation: ArrayLike) -> AnyArray:
    """[batch, ...] -> the same plus normal noise; `deviation` is its standard deviation."""
    x = as_batch("noise", x)
    check_range("noise", "deviation", deviation, 0)
    if key is None:
        return x
    dtype = wide_dtype(x)
    drawn = draw_each("noise", key, x, lambda key: jax.random.normal(key, x.shape[1:], dtype))
    return (wide(x) + jnp.asarray(deviation, dtype) * drawn).astype(x.dtype)


def cutout(key: Array | None, x: AnyArray, size: int | Array) -> AnyArray:
    """[batch, height, width, channels] -> the same with a square of `size` pixels set to 0.

    DeVries & Taylor 2017. The middle of the square is uniform on the image, so a part of the
    square can lie outside.
    """
    x = as_images("cutout", x)
    size = size if isinstance(size, jax.Array) else as_count("cutout", "size", size, 0)
    if key is None:
        return x
    sizes = jnp.broadcast_to(jnp.asarray(size, jnp.int32), 2)
    inside, _ = boxes(x, draw_each("cutout", key, x, lambda key: middle(key, x)), sizes)
    return jnp.where(inside, 0, x)
