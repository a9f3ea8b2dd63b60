"""A scan over steps whose scalars are one array.

A train state has half a dozen counters, rates and codes, and a step as many metrics. An array for
each is a kernel for each, in every step of a run.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fnn._base import Metrics
from fnn.training._rows import Index
from fnn.training._state import TrainState


def scan_in_rows(one: Any, ts: TrainState, index: Index) -> tuple[TrainState, Metrics]:
    """``lax.scan(one, ts, index)``; scalars of 32 bits travel and are written as one array."""
    like: Metrics = {}  # filled while the step is traced

    def row_of(carry: Any, index: Index) -> tuple[Any, Any]:
        ts, metrics = one(_as_it_was(carry, start), index)
        metrics = {name: jax.tree.map(jnp.asarray, value) for name, value in metrics.items()}
        like.update(jax.eval_shape(lambda: metrics))
        return _in_a_row(ts), _in_a_row(metrics)

    start = jax.eval_shape(lambda: ts)
    carry, rows = lax.scan(row_of, _in_a_row(ts), index)
    return _as_it_was(carry, start), jax.vmap(lambda row: _as_it_was(row, like))(rows)


def _in_a_row(tree: Any) -> tuple[Array, list[Array]]:
    """All scalars of 32 bits as one float32 [n], without loss; and the other leaves.

    An integer is two numbers of 16 bits. Its bits as a float would be NaN, or flushed to zero.
    """
    leaves = jax.tree.leaves(tree)
    scalars, others = (
        [leaf for leaf in leaves if _is_word(leaf) == of_32_bits] for of_32_bits in (True, False)
    )
    floats = [leaf for leaf in scalars if leaf.dtype == jnp.float32]
    words = [leaf.astype(jnp.uint32) for leaf in scalars if leaf.dtype != jnp.float32]
    halves = [word >> 16 for word in words] + [word & 0xFFFF for word in words]
    return _vector(floats + [half.astype(jnp.float32) for half in halves]), others


def _vector(numbers: list[Array]) -> Array:
    """``jnp.stack(numbers)`` by comparing places, which is one kernel on a CPU too."""
    if len(numbers) > 64 or not numbers:
        return jnp.stack(numbers) if numbers else jnp.zeros(0, jnp.float32)
    places = np.arange(len(numbers))
    out = jnp.broadcast_to(numbers[-1], places.shape)
    for i, number in enumerate(numbers[:-1]):
        out = jnp.where(places == i, number, out)
    return out


def _as_it_was(packed: tuple[Array, list[Array]], like: Any) -> Any:
    """What `_in_a_row` was given, of which `like` has the shapes."""
    row, leaves = packed[0], iter(packed[1])
    like_leaves, treedef = jax.tree.flatten(like)
    floats = sum(_is_word(leaf) and leaf.dtype == jnp.float32 for leaf in like_leaves)
    high, low = jnp.split(row[floats:].astype(jnp.uint32), 2)
    numbers, words = (iter(range(n)) for n in (floats, high.size))
    word = (high << 16) | low

    def next_of(leaf: Any) -> Array:
        if not _is_word(leaf):
            return next(leaves)
        if leaf.dtype == jnp.float32:
            return row[next(numbers)]
        return word[next(words)].astype(leaf.dtype)

    return treedef.unflatten(map(next_of, like_leaves))


def _is_word(leaf: Any) -> bool:
    return leaf.shape == () and leaf.dtype in (jnp.float32, jnp.int32, jnp.uint32)
