"""Dropout of elements, and of whole channels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from fnn._base import (
    AnyArray,
    check_floating,
    check_key,
    check_range,
    is_one_key,
    number_of,
    wide,
    wide_dtype,
)


def dropout(key: Array | None, x: AnyArray, rate: ArrayLike) -> AnyArray:
    """[...] -> [...]: each element is 0 with probability `rate`, else x / (1 - rate).

    Inverted dropout (Srivastava et al. 2014): the expectation is x, so nothing changes at test
    time. Without a key, or at rate 0, the result is x itself. With keys [batch] from `row_keys`
    each row is drawn with its own key. The rate is rounded to a multiple of 2^-16. A rate outside
    [0, 1) is a ValueError; a traced rate, as in a sweep over rates, is not checked, and from 1 on
    it gives zeros.
    """
    return _dropout("dropout", key, x, rate, getattr(x, "shape", ()))


def spatial_dropout(key: Array | None, x: AnyArray, rate: ArrayLike) -> AnyArray:
    """[batch, *space, channels] -> the same: `dropout` of whole channels of an example.

    Tompson et al. 2015: neighbouring pixels of a channel carry nearly the same information, so
    dropping single pixels hides little.
    """
    check_floating("spatial_dropout", x)
    if x.ndim < 2:
        raise ValueError(
            f"spatial_dropout: x has shape {x.shape}, expected [batch, *space, channels]"
        )
    channels = (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])
    return _dropout("spatial_dropout", key, x, rate, channels)


def _dropout(
    name: str, key: Array | None, x: AnyArray, rate: ArrayLike, shape: Sequence[int]
) -> AnyArray:
    """Dropout of x with one draw for each element of `shape`, which broadcasts against x."""
    check_range(name, "rate", rate, 0, 1)
    number = None if isinstance(rate, Array) else number_of(rate)
    rate = wide(rate) if number is None else float(number)
    if key is None or number == 0:
        return x
    check_key(name, key, shape[0] if shape else 0)
    check_floating(name, x)
    if is_one_key(key):
        keep = _keep(key, rate, shape)
    else:
        keep = jax.vmap(lambda key: _keep(key, rate, shape[1:]))(key)
    x = jnp.asarray(x)
    # In half precision the rounded scale would change the expectation, at rate 0.1 by 1 in 640.
    kept = wide(x) * jnp.asarray(_scale(rate, x.dtype), wide_dtype(x))
    return jnp.where(keep, kept.astype(x.dtype), 0)


def _scale(rate: float | Array, dtype: DTypeLike) -> float | Array:
    """1 / (1 - rate), or what is finite in its place, in a type that is wide enough for 1 - rate.

    With an infinite scale the gradient of a dropped element would be 0 times inf, which is NaN.
    """
    largest = float(jnp.finfo(dtype).max)
    if isinstance(rate, float):
        return min(1 / (1 - rate), largest)
    return jnp.minimum(1 / jnp.where(rate >= 1, 1, 1 - rate), largest)


def _keep(key: Array, rate: ArrayLike, shape: Sequence[int]) -> Array:
    """Bools of `shape`, True with probability 1 - rate, to the nearest 2^-16."""
    # Drawing random bits takes most of dropout's time, so a word of 32 bits serves two elements.
    # The words are cut along the last axis, so that no two rows share a word.
    *rows, width = shape or (1,)
    words = jax.random.bits(key, (*rows, -(-width // 2)), jnp.uint32)
    limit = jnp.round(jnp.asarray(rate, jnp.float32) * 2**16).astype(jnp.uint32)
    keep = jnp.concatenate([words >> 16 >= limit, words & 0xFFFF >= limit], axis=-1)
    return keep[..., :width].reshape(shape)
