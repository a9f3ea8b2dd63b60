"""Two trees that must agree, and the message if they do not."""

from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from fnn._base import path_of

Pair = tuple[Any, ...]  # two trees, and if need be how far apart rounding may bring their leaves


class _Words(NamedTuple):
    """How a message names the two sides of a pair, and how far apart they may be."""

    first: str
    second: str
    tolerance: float


WORDS = {
    "purity": _Words("in a second call", "in the first", 0.0),
    "jit": _Words("under jax.jit", "without it", 1e-9),
    "vmap over rows": _Words("under jax.vmap", "in the batch", 1e-9),
    "vmap over params": _Words("under jax.vmap", "alone", 1e-9),
    "scan": _Words("under jax.lax.scan", "alone", 1e-9),
    "forward derivative": _Words("by jax.jvp", "by finite differences", 1e-5),
    "reverse derivative": _Words("by jax.vjp", "by finite differences", 1e-5),
    "float32": _Words("in float32", "in float64", 1e-4),
    "float16": _Words("in float16", "in float64", 0.05),
    "bfloat16": _Words("in bfloat16", "in float64", 0.05),
}


def fail(what: str, said: str) -> NoReturn:
    """The error of a property that does not hold."""
    raise AssertionError(f"check_layer: {what}: {said}")


def is_floating(leaf: Any) -> bool:
    """Whether the array has real numbers of floating point."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def compare(what: str, pair: Pair, of: str = "", along: list[str] | None = None) -> None:
    """AssertionError if the leaves differ; `along` names the rows of a derivative."""
    words = WORDS[what]
    one, other, *rounding = pair
    leaves = jax.tree_util.tree_leaves_with_path(one)
    slacks = jax.tree.leaves(rounding) or [0.0] * len(leaves)
    for (keys, first), second, slack in zip(leaves, jax.tree.leaves(other), slacks, strict=True):
        first, second = np.asarray(first), np.asarray(second)
        place = _farthest(first, second, words.tolerance, along is not None, slack)
        if place is None:
            continue
        leaf = path_of(keys) or ("y" if not of else "the leaf")
        leaf = f"{leaf}{list(map(int, place))}" if place else leaf
        if along is not None:
            leaf = f"along {along[int(place[0])]}, the derivative"
        said = f"{first[place]} {words.first}, but {second[place]} {words.second}"
        fail(what, f"{leaf} {of}is {said}")


def _farthest(
    first: np.ndarray, second: np.ndarray, tolerance: float, by_row: bool, slack: float
) -> tuple[Any, ...] | None:
    """Where two arrays differ most; None if they agree."""
    if first.size == 0:
        return None
    if tolerance == 0 or not jnp.issubdtype(first.dtype, jnp.inexact):
        apart, limit = (first != second) & ((first == first) | (second == second)), 0.0
    else:
        widest = np.complex128 if np.iscomplexobj(first) else np.float64
        first, second = first.astype(widest), second.astype(widest)
        # A leaf with small derivatives is judged by its own size, one without by the others'.
        size = np.abs(second).max(axis=tuple(range(by_row, second.ndim)), keepdims=True)
        limit = tolerance * (size + by_row * 0.01 * size.max()) + slack
        apart = np.abs(first - second)
    excess = np.where(np.isfinite(apart), apart - limit, np.inf)
    if (excess <= 0).all():
        return None
    return np.unravel_index(int(excess.argmax()), first.shape)
