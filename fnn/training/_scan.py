"""Scalars that travel through a scan as one array.

A train state has half a dozen counters, rates and codes, and a step as many metrics. An array for
each is a kernel for each, in every step of a run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fnn._base import Metrics
from fnn.training._rows import Index
from fnn.training._state import TrainState

Leaf = tuple[tuple[int, ...], Any]  # shape, dtype


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A tree whose scalars of 32 bits are one array. `pack` makes it, `tree` undoes it."""

    row: Array  # float32 [..., n]
    others: list[Array]  # the leaves that are no such scalars
    leaves: tuple[Leaf, ...] = field(metadata={"static": True})
    structure: Any = field(metadata={"static": True})

    def tree(self) -> Any:
        """What was packed, bit for bit. If `Packed` was stacked, its leaves are: [..., shape]."""
        words = [dtype for shape, dtype in self.leaves if _is_word(shape, dtype)]
        floats = words.count(jnp.float32)
        high, low = jnp.split(self.row[..., floats:].astype(jnp.uint32), 2, axis=-1)
        integers = (high << 16) | low
        numbers, words, others = iter(range(floats)), iter(range(high.shape[-1])), iter(self.others)

        def next_of(leaf: Leaf) -> Array:
            if not _is_word(*leaf):
                return next(others)
            if leaf[1] == jnp.float32:
                return self.row[..., next(numbers)]
            return integers[..., next(words)].astype(leaf[1])

        return self.structure.unflatten(map(next_of, self.leaves))


def pack(tree: Any) -> Packed:
    """The tree with one row of its scalars, without loss.

    An integer is two numbers of 16 bits. Its bits as a float would be NaN, or flushed to zero.
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, tree))
    scalars, others = (
        [leaf for leaf in leaves if _is_word(leaf.shape, leaf.dtype) == of_32_bits]
        for of_32_bits in (True, False)
    )
    floats = [leaf for leaf in scalars if leaf.dtype == jnp.float32]
    words = [leaf.astype(jnp.uint32) for leaf in scalars if leaf.dtype != jnp.float32]
    halves = [word >> 16 for word in words] + [word & 0xFFFF for word in words]
    row = _vector(floats + [half.astype(jnp.float32) for half in halves])
    return Packed(row, others, tuple((leaf.shape, leaf.dtype) for leaf in leaves), structure)


def scan_packed(
    one: Callable[[TrainState, Index], tuple[TrainState, Metrics]], ts: Packed, index: Index
) -> tuple[Packed, Packed]:
    """``lax.scan(one, ts, index)`` -> (ts, metrics), packed all the way."""

    def packed(ts: Packed, index: Index) -> tuple[Packed, Packed]:
        after, metrics = one(ts.tree(), index)
        return pack(after), pack(metrics)

    return lax.scan(packed, ts, index)


def _vector(numbers: list[Array]) -> Array:
    """``jnp.stack(numbers)`` by comparing places, which is one kernel on a CPU too."""
    if len(numbers) > 64 or not numbers:
        return jnp.stack(numbers) if numbers else jnp.zeros(0, jnp.float32)
    places = np.arange(len(numbers))
    out = jnp.broadcast_to(numbers[-1], places.shape)
    for i, number in enumerate(numbers[:-1]):
        out = jnp.where(places == i, number, out)
    return out


def _is_word(shape: tuple[int, ...], dtype: Any) -> bool:
    return shape == () and dtype in (jnp.float32, jnp.int32, jnp.uint32)
