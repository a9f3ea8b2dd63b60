"""Augmentation that covers what is there: noise, and squares of zeros."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn.augment.draws import as_batch, as_images, boxes, draw_each, middle
from fnn.lifting import check_range
from fnn.precision import wide, wide_dtype
from fnn.types import AnyArray


def noise(key: Array | None, x: AnyArray, deviation: ArrayLike) -> AnyArray:
    """[batch, ...] -> the same plus normal noise of this standard deviation, in the units of x."""
    x = as_batch("noise", x)
    check_range("noise", "deviation", deviation, 0)
    if key is None:
        return x
    dtype = wide_dtype(x)
    drawn = draw_each("noise", key, x, lambda key: jax.random.normal(key, x.shape[1:], dtype))
    return (wide(x) + jnp.asarray(deviation, dtype) * drawn).astype(x.dtype)


def cutout(key: Array | None, x: AnyArray, size: int | Array) -> AnyArray:
    """[batch, height, width, channels] -> the same with a square of `size` pixels set to 0.

    DeVries & Taylor 2017: the middle is uniform on the image, the square cut off at its edge.
    """
    x = as_images("cutout", x)
    check_range("cutout", "size", size, 0)
    if key is None:
        return x
    sizes = jnp.broadcast_to(jnp.asarray(size, jnp.int32), 2)
    inside, _ = boxes(x, draw_each("cutout", key, x, lambda key: middle(key, x)), sizes)
    return jnp.where(inside, 0, x)
