"""What convolutions and pooling share: sizes and padding of windows, and x seen through them."""

import itertools
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from jax import Array, lax

from fnn.types import AnyArray

Sizes = int | Sequence[int]
Padding = str | int | Sequence[int | tuple[int, int]]
Pairs = tuple[tuple[int, int], ...]


def numbers(layer: str, argument: str, value: Sizes, rank: int) -> tuple[int, ...]:
    """One number for each of `rank` spatial axes, at least 1, from one for all or one for each."""
    found = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(found) != rank or min(found, default=1) < 1:
        raise ValueError(
            f"{layer}: {argument} is {value}, expected a number >= 1, or one for each of the"
            f" {rank} spatial axes"
        )
    return found


def extents(size: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """How far each axis of a dilated window reaches: dilation (size - 1) + 1."""
    return tuple(d * (n - 1) + 1 for n, d in zip(size, dilation, strict=True))


def pairs_of(
    layer: str, padding: Padding, space: Sequence[int], size: Sequence[int], stride: Sequence[int]
) -> Pairs:
    """Zeros before and after each spatial axis."""
    rank = len(size)
    if padding == "VALID":
        return ((0, 0),) * rank
    if padding == "SAME":
        ends = (-(-n // s) * s - s + k for n, k, s in zip(space, size, stride, strict=True))
        extra = [max(end - n, 0) for end, n in zip(ends, space, strict=True)]
        return tuple((e // 2, e - e // 2) for e in extra)
    each = (padding,) * rank if isinstance(padding, int) else padding
    if not isinstance(each, str) and len(each) == rank:
        pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in each]
        if all(len(pair) == 2 and all(isinstance(n, int) for n in pair) for pair in pairs):
            return tuple((lo, hi) for lo, hi in pairs)
    raise ValueError(
        f"{layer}: padding is {padding!r}, expected 'SAME', 'VALID', a number, or for each of the"
        f" {rank} spatial axes a number or a pair (before, after)"
    )


def shifts(
    x: Array, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """(k, x[:, stride o + dilation k]) for each element k of a window; x [batch, *space, ...]."""
    for k in itertools.product(*map(range, size)):
        y = x
        for axis, (i, n, s, d) in enumerate(zip(k, size, stride, dilation, strict=True), 1):
            stop = x.shape[axis] - d * (n - 1 - i)
            y = lax.slice_in_dim(y, d * i, stop, s, axis)
        yield k, y


def check_fits(layer: str, space: Sequence[int], pairs: Pairs, size: Sequence[int]) -> None:
    """Raise ValueError where a window is longer than the axis and its padding."""
    padded = [n + lo + hi for n, (lo, hi) in zip(space, pairs, strict=True)]
    if any(n < k for n, k in zip(padded, size, strict=True)):
        raise ValueError(
            f"{layer}: a window of {tuple(size)} does not fit into {tuple(padded)},"
            f" which is x's space {tuple(space)} with its padding"
        )


def check_floating(layer: str, x: AnyArray) -> None:
    """Raise TypeError unless x is floating point."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"{layer}: x is {x.dtype}, expected floating point; scale it first,"
            " as in x.astype('float32') / 255 for images"
        )
