"""How an array of fnn becomes arrays of another library, and back: one rule for each array.

A layer of fnn is known by the names and axes of its arrays (`fnn.interchange._layers`). For each
layer a library has a list of rules. A rule has both directions, so one table is enough for in and
out: the shapes that are expected there are those of `out`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Leaves = Mapping[str, Any]  # {path inside the layer: array}


class Rule(NamedTuple):
    """Some arrays of a layer, those arrays there, and the functions between them.

    `out` raises ValueError for values that the other library has no place for. What `into` returns
    is reshaped to the shapes of fnn.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    into: Callable[..., tuple[Any, ...]] = lambda *arrays: arrays
    out: Callable[..., tuple[Any, ...]] = lambda *arrays: arrays
    note: str = ""  # what to think of if the arrays there do not fit


# Rules may depend on the shapes of the layer; ValueError for a layer that the library has not.
Rules = Sequence[Rule] | Callable[[Leaves], Sequence[Rule]]


class Library(NamedTuple):
    """What a library calls things, and its rules by the kind of the layer."""

    separator: str
    kinds: Mapping[str, Rules]
    block: Mapping[str, str] = {}  # {part of a transformer block: its name there}
    suffix: Mapping[str, str] = {}  # {kind: what its arrays' names end with}


def same(ours: str, theirs: str) -> Rule:
    """The array as it is."""
    return Rule((ours,), (theirs,))


def turned(ours: str, theirs: str) -> Rule:
    """A matrix, transposed: [in, out] -> [out, in]."""
    return Rule((ours,), (theirs,), lambda w: (w.T,), lambda w: (w.T,))


def moved(ours: str, theirs: str, axes: Callable[[int], Sequence[int]]) -> Rule:
    """The array there has our axes in the order axes(number of axes)."""

    def out(w: np.ndarray) -> tuple[np.ndarray]:
        return (w.transpose(axes(w.ndim)),)

    def into(w: np.ndarray) -> tuple[np.ndarray]:
        return (w.transpose(np.argsort(axes(w.ndim))),)

    return Rule((ours,), (theirs,), into, out)


def mirrored(rule: Rule) -> Rule:
    """The rule, with the spatial axes of the kernel [*size, in, out] in reverse."""

    def flip(w: np.ndarray) -> np.ndarray:
        return np.flip(w, tuple(range(w.ndim - 2)))

    def into(w: np.ndarray) -> tuple[np.ndarray]:
        return (flip(rule.into(w)[0]),)

    return rule._replace(into=into, out=lambda w: rule.out(flip(w)))


def side_by_side(ours: str, theirs: Sequence[str]) -> Rule:
    """The parts of our last axis are arrays of their own there: the gates of a cell."""

    def into(*parts: np.ndarray) -> tuple[np.ndarray]:
        return (np.concatenate(parts, -1),)

    return Rule((ours,), tuple(theirs), into, lambda w: tuple(np.split(w, len(theirs), -1)))


def projection(ours: str, theirs: str) -> list[Rule]:
    """w [in, heads, head_dim] is [heads head_dim, in] there, and b has one axis.

    `theirs` is what the names there begin with.
    """
    w = Rule((f"{ours}/w",), (f"{theirs}weight",), lambda w: (w.T,), lambda w: (rows(w),))
    b = Rule((f"{ours}/b",), (f"{theirs}bias",), out=lambda b: (b.reshape(-1),))
    return [w, b]


def merging(ours: str, theirs: str) -> list[Rule]:
    """w [heads, head_dim, out] is [out, heads head_dim] there."""

    def out(w: np.ndarray) -> tuple[np.ndarray]:
        return (w.reshape(math.prod(w.shape[:-1]), w.shape[-1]).T,)

    w = Rule((f"{ours}/w",), (f"{theirs}weight",), lambda w: (w.T,), out)
    return [w, same(f"{ours}/b", f"{theirs}bias")]


def rows(w: np.ndarray) -> np.ndarray:
    """[in, heads, head_dim] -> [heads head_dim, in]."""
    return w.reshape(len(w), math.prod(w.shape[1:])).T


def summed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b, in float32 at least."""
    wide = np.promote_types(a.dtype, np.float32)
    return a.astype(wide) + b.astype(wide)


def parted(inputs: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A GRU's two biases of r z n -> ours, [3 hidden] and [hidden]: only that of n is apart."""
    n = 2 * len(hidden) // 3
    of_r_and_z = np.concatenate([hidden[:n], np.zeros_like(hidden[n:])])
    return summed(inputs, of_r_and_z), hidden[n:]


def padded(n: np.ndarray) -> np.ndarray:
    """The hidden bias of r z n, in which only that of n is not zero."""
    return np.concatenate([np.zeros(2 * len(n), n.dtype), n])


def projections(output: str) -> list[Rule]:
    """The parts of attention as they are; `output` is the name there of the last one."""
    names = {"query": "query", "key": "key", "value": "value", "output": output}
    return [
        same(f"{ours}/{leaf}", f"{theirs}/{name}")
        for ours, theirs in names.items()
        for leaf, name in {"w": "kernel", "b": "bias"}.items()
    ]


def exchanged(ndim: int) -> list[int]:
    """The axes [*size, out, in] of [*size, in, out]."""
    return [*range(ndim - 2), ndim - 1, ndim - 2]


def channels_first(ndim: int) -> list[int]:
    """The axes [out, in, *size] of [*size, in, out]."""
    return [ndim - 1, ndim - 2, *range(ndim - 2)]
