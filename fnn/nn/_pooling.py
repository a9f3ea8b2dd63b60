"""Pooling of [..., *space, channels]: the largest or the mean value of each window.

`size` is one number for images, which have two spatial axes, or one number for each spatial axis,
such as (3,) for sequences. `stride` is the size by default. `padding` is as in `conv`. Padding does
not count: it is never the largest value, and the mean is over the values of x in the window
(PyTorch's count_include_pad=False).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fnn._base import AnyArray, check_floating, wide
from fnn.nn._dense import check_real
from fnn.nn._windows import (
    Padding,
    Pairs,
    Sizes,
    check_fits,
    numbers,
    pairs_of,
    rank_of,
    shifts,
)

MANY_SHIFTS = 32


class Window(NamedTuple):
    """The windows of a pool; one entry for each spatial axis."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pairs


def max_pool(
    x: AnyArray, size: Sizes, *, stride: Sizes | None = None, padding: Padding = "VALID"
) -> Array:
    """[..., *space, channels] -> [..., *space', channels]: the largest value of each window.

    Of equal values the first has the gradient, as in PyTorch. NaN counts as the largest value.
    """
    check_real("max_pool", x)
    rows, window, batch = _rows("max_pool", x, size, stride, padding)
    y = _max_pool(rows, window)
    return y.reshape(*batch, *y.shape[1:])


def avg_pool(
    x: AnyArray, size: Sizes, *, stride: Sizes | None = None, padding: Padding = "VALID"
) -> Array:
    """[..., *space, channels] -> [..., *space', channels]: the mean of each window."""
    rows, window, batch = _rows("avg_pool", x, size, stride, padding)
    sums = _reduce(wide(rows), window, 0.0, lax.add)
    y = (sums * _reciprocal_counts(rows.shape[1:-1], window).astype(sums.dtype)).astype(rows.dtype)
    return y.reshape(*batch, *y.shape[1:])


def global_max_pool(x: AnyArray, *, mask: AnyArray | None = None) -> Array:
    """[batch, *space, channels] -> [batch, channels]: the largest value, ties as in `max_pool`.

    `mask`, bool [batch, *space], is True where a place counts. Where none counts the result is 0.
    """
    check_real("global_max_pool", x)
    rows, counted = _flat("global_max_pool", x, mask)
    seen = rows if counted is None else jnp.where(counted, rows, -math.inf)
    first = jnp.argmax(seen, axis=1, keepdims=True)
    if counted is not None:  # if all is -inf, the first that counts
        of_mask = jnp.argmax(counted, axis=1, keepdims=True)
        first = jnp.maximum(first, of_mask)
    # Selected, not indexed: the gradient of indexing is a scatter, which is slow on a CPU.
    chosen = lax.broadcasted_iota(first.dtype, rows.shape, 1) == first
    chosen = chosen if counted is None else chosen & counted
    return jnp.sum(jnp.where(chosen, rows, 0), axis=1)


def global_avg_pool(x: AnyArray, *, mask: AnyArray | None = None) -> Array:
    """[batch, *space, channels] -> [batch, channels]: the mean over space.

    `mask`, bool [batch, *space], is True where a place counts, as a time step of a padded
    sequence. Where none counts the result is 0.
    """
    rows, counted = _flat("global_avg_pool", x, mask)
    values, factor = wide(rows), 1 / rows.shape[1]
    if counted is not None:
        values = jnp.where(counted, values, 0)
        factor = 1 / jnp.maximum(jnp.sum(counted, axis=1, dtype=values.dtype), 1)
    return (jnp.sum(values, axis=1) * factor).astype(rows.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(x: Array, window: Window) -> Array:
    return _reduce(x, window, -math.inf, lax.max)


@_max_pool.defjvp
def _(window: Window, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # Autodiff's gradient is XLA's select-and-scatter, several times slower on a CPU.
    (x,), (dx,) = primals, tangents
    if math.prod(window.size) > MANY_SHIFTS:
        return jax.jvp(lambda x: _reduce(x, window, -math.inf, lax.max), primals, tangents)
    y = _max_pool(x, window)
    # In `wide` where windows overlap, because their gradients are added up.
    overlap = any(n > s for n, s in zip(window.size, window.stride, strict=True))
    dx = wide(dx) if overlap else dx
    dy, free = jnp.zeros_like(y, dx.dtype), jnp.ones(y.shape, bool)
    # Where all values are -inf they equal the padding, which must not take their tangent.
    inside = _seen(jnp.ones((1, *x.shape[1:-1], 1), bool), window, False)
    seen = zip(_seen(x, window, -math.inf), _seen(dx, window, 0.0), inside, strict=True)
    for value, tangent, is_value in seen:
        first = free & is_value & ((value == y) | jnp.isnan(value))
        dy, free = jnp.where(first, tangent, dy), free & ~first
    return y, dy.astype(y.dtype)


def _seen(x: Array, window: Window, padding: float) -> list[Array]:
    """x at each element of the windows, [batch, *space', channels]."""
    edges = [(0, 0, 0), *((lo, hi, 0) for lo, hi in window.padding), (0, 0, 0)]
    padded = lax.pad(x, jnp.asarray(padding, x.dtype), edges)
    ones = (1,) * len(window.size)
    return [y for _, y in shifts(padded, window.size, window.stride, ones)]


def _reduce(x: Array, window: Window, start: float, reduce: Callable[..., Array]) -> Array:
    size, stride = (1, *window.size, 1), (1, *window.stride, 1)
    padding = ((0, 0), *window.padding, (0, 0))
    # With a NumPy scalar JAX recognises max and sum, and knows their derivatives.
    return lax.reduce_window(x, np.array(start, x.dtype)[()], reduce, size, stride, padding)


def _reciprocal_counts(space: Sequence[int], window: Window) -> np.ndarray:
    """[*space', 1]: 1 / (number of values of x in each window)."""
    counts = np.ones(1)
    for n, size, stride, (lo, hi) in zip(space, *window, strict=True):
        start = np.arange(0, n + lo + hi - size + 1, stride) - lo
        here = np.minimum(start + size, n) - np.maximum(start, 0)
        counts = np.multiply.outer(counts, here)
    return 1 / counts[0][..., None]


def _rows(
    layer: str, x: AnyArray, size: Sizes, stride: Sizes | None, padding: Padding
) -> tuple[Array, Window, tuple[int, ...]]:
    """x as [rows, *space, channels], the windows, and the shape of the batch axes."""
    check_floating(layer, x)
    rank = rank_of(size)
    size = numbers(layer, "size", size, rank)
    if x.ndim < rank + 1:
        raise ValueError(
            f"{layer}: x has shape {x.shape}, but a window of {size} expects {rank} spatial axes"
            " and the channels"
        )
    stride = size if stride is None else numbers(layer, "stride", stride, rank)
    space = x.shape[-1 - rank : -1]
    pairs = pairs_of(layer, padding, space, size, stride)
    check_fits(layer, space, pairs, size)
    if any(not 0 <= p < n for n, pair in zip(size, pairs, strict=True) for p in pair):
        raise ValueError(f"{layer}: padding {pairs} leaves windows of {size} without a value")
    batch = x.shape[: -1 - rank]
    rows = jnp.asarray(x).reshape(math.prod(batch), *x.shape[-1 - rank :])
    return rows, Window(size, stride, pairs), batch


def _flat(layer: str, x: AnyArray, mask: AnyArray | None) -> tuple[Array, Array | None]:
    """[batch, *space, channels], [batch, *space] -> [batch, space, channels], [batch, space, 1]."""
    check_floating(layer, x)
    if x.ndim < 3 or 0 in x.shape[1:-1]:
        raise ValueError(f"{layer}: x has shape {x.shape}, expected [batch, *space, channels]")
    rows = (x.shape[0], math.prod(x.shape[1:-1]))
    if mask is None:
        return jnp.asarray(x).reshape(*rows, x.shape[-1]), None
    if mask.shape != x.shape[:-1] or mask.dtype != bool:
        raise ValueError(
            f"{layer}: mask is {mask.dtype}{list(mask.shape)}, but x of shape {x.shape} expects"
            f" bool{list(x.shape[:-1])}"
        )
    return jnp.asarray(x).reshape(*rows, x.shape[-1]), jnp.asarray(mask).reshape(*rows, 1)
