"""Rotary positions: queries and keys turned by where they stand (Su et al. 2021)."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fnn._base import AnyArray, as_array, check_floating, check_range, wide


def rotary(x: AnyArray, positions: AnyArray, *, base: float = 10_000.0) -> Array:
    """[..., time, heads, head_dim], [time] or [..., time] -> x, each pair turned by its position.

    Su et al. 2021, in the variant of GPT-NeoX: feature i forms a pair with feature
    i + head_dim / 2, and the angle is position / base^(2 i / head_dim). The product of a query and
    a key then depends on the difference of their positions.
    """
    check_floating("rotary", x)
    check_range("rotary", "base", base, 0, above=True)
    half, odd = divmod(x.shape[-1], 2) if x.ndim else (0, 1)
    places = as_array("rotary", "positions", positions).shape
    if x.ndim < 3 or places not in (x.shape[-3:-2], x.shape[:-2]):
        raise ValueError(
            f"rotary: x has shape {x.shape} and positions {places}, expected x"
            " [..., time, heads, head_dim] and positions [time] or [..., time]"
        )
    if odd:
        raise ValueError(f"rotary: head_dim is {x.shape[-1]} (shape {x.shape}), expected even")
    wide_x = wide(x)
    frequencies = np.exp(np.arange(half) * (-math.log(base) / max(half, 1)))
    frequencies = np.expand_dims(frequencies, tuple(range(x.ndim - 1)))
    ids = jnp.asarray(positions)[..., None, None]
    angles = _angles(
        jnp.expand_dims(ids, tuple(range(x.ndim - ids.ndim))), frequencies, wide_x.dtype
    )
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = wide_x[..., :half], wide_x[..., half:]
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.astype(jnp.result_type(x))


def _angles(positions: Array, frequencies: np.ndarray, dtype: Any) -> Array:
    """positions times frequencies, less whole turns.

    float32 has no digits left for the product of a frequency about 1 and a position of 100,000. A
    whole number of 2^-32 turns is exact, and wraps at 2^32 as the angle does at a turn.
    """
    plain = positions.astype(dtype) * jnp.asarray(frequencies, dtype)
    if dtype != jnp.float32 or not jnp.issubdtype(positions.dtype, jnp.integer):
        return plain
    turns = np.round(frequencies * (2**32 / (2 * math.pi))).astype(np.uint64).astype(np.uint32)
    wrapped = lax.bitcast_convert_type(positions.astype(jnp.uint32) * turns, jnp.int32)
    return jnp.where(frequencies > 0.01, wrapped.astype(dtype) * (math.pi / 2**31), plain)
