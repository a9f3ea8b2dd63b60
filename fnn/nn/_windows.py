"""Shared by convolutions and pooling: sizes, padding and shifts of windows."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import numpy as np
from jax import Array, lax

from fnn._base import as_count, number_of

Sizes = int | Sequence[int]
Padding = str | int | Sequence[int | tuple[int, int]]
Pairs = tuple[tuple[int, int], ...]


def numbers(layer: str, argument: str, value: Sizes, rank: int) -> tuple[int, ...]:
    """value -> (number >= 1 for each of `rank` spatial axes); a single number is for all axes."""
    found = tuple(value) if _is_sequence(value) else (value,) * rank
    if len(found) != rank:
        raise ValueError(
            f"{layer}: {argument} is {value}, expected a number >= 1, or one for each of the"
            f" {rank} spatial axes"
        )
    return tuple(as_count(layer, argument, number) for number in found)


def rank_of(size: Sizes) -> int:
    """The number of spatial axes; if `size` is one number there are 2, those of an image."""
    return len(size) if _is_sequence(size) else 2


def extents(size: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """The length of a dilated window along each axis: dilation (size - 1) + 1."""
    return tuple(d * (n - 1) + 1 for n, d in zip(size, dilation, strict=True))


def pairs_of(
    layer: str, padding: Padding, space: Sequence[int], size: Sequence[int], stride: Sequence[int]
) -> Pairs:
    """padding -> ((zeros before, zeros after) for each spatial axis)."""
    rank = len(size)
    if isinstance(padding, str) and padding == "VALID":
        return ((0, 0),) * rank
    if isinstance(padding, str) and padding == "SAME":
        ends = (-(-n // s) * s - s + k for n, k, s in zip(space, size, stride, strict=True))
        extra = [max(end - n, 0) for end, n in zip(ends, space, strict=True)]
        return tuple((e // 2, e - e // 2) for e in extra)
    each = padding if _is_sequence(padding) else (padding,) * rank
    pairs = [tuple(p) if _is_sequence(p) else (p, p) for p in each]
    zeros: Any = [tuple(number_of(n) for n in pair) for pair in pairs]
    if len(zeros) == rank and all(len(pair) == 2 and all(map(_is_whole, pair)) for pair in zeros):
        return tuple((lo, hi) for lo, hi in zeros)
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
    """Raise ValueError if a window is longer than an axis with its padding."""
    padded = [n + lo + hi for n, (lo, hi) in zip(space, pairs, strict=True)]
    if any(n < k for n, k in zip(padded, size, strict=True)):
        raise ValueError(
            f"{layer}: a window of {tuple(size)} does not fit into {tuple(padded)},"
            f" which is x's space {tuple(space)} with padding"
        )


def _is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    if isinstance(value, (np.ndarray, Array)):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_whole(number: int | float | None) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
