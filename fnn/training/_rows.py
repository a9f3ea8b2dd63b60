"""The rows of a run and how an epoch cuts them into batches, as one value."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from fnn._base import Data, as_array, as_count, wide
from fnn.data import permutation, rows_of, take

Tail = Literal["pad", "drop", "wrap"]
# Rows, int32 [..., batch]. A row that only fills a batch up, and does not count, is ~row, below 0.
Index = Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batches:
    """Rows, their weights, and how they are cut. A pytree: data and weights are its leaves."""

    data: Data
    weights: Array | None = None  # [rows]
    batch_size: int = field(default=1, metadata={"static": True})
    tail: Tail = field(default="pad", metadata={"static": True})
    # What a last batch is filled up with: other rows of the epoch, or its own rows again.
    others: bool = field(default=False, metadata={"static": True})

    @property
    def rows(self) -> int:
        """The number of rows."""
        return jax.tree.leaves(self.data)[0].shape[0]

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(self.rows, self.batch_size)
        return full + (rest > 0 and self.tail != "drop")

    @property
    def fills(self) -> bool:
        """Whether the last batch is filled up with rows that do not count."""
        return self.tail == "pad" and self.rows % self.batch_size > 0

    def of_epoch(self, shuffle_key: Array, epoch: Array) -> Index:
        """The rows of each batch of this epoch, shuffled: [steps, batch]."""
        return self.cut(permutation(jax.random.fold_in(shuffle_key, epoch), self.rows))

    def in_order(self) -> Index:
        """The rows of each batch, not shuffled: [steps, batch]."""
        return self.cut(jnp.arange(self.rows, dtype=jnp.int32))

    def cut(self, order: Array) -> Index:
        """Rows in any order, [rows] -> the rows of each batch, [steps, batch]."""
        shape = self.steps, self.batch_size
        places = self.steps * self.batch_size
        if places <= self.rows:
            return order[:places].reshape(shape)
        missing = places - self.rows
        if self.tail == "wrap":
            return jnp.concatenate([order, order[:missing]]).reshape(shape)
        # With its own rows: should one of them be bad, that batch is bad anyway, and no other row
        # gets into it. But a model that takes statistics of its batch, as batch norm does, would
        # see those rows several times, or one row only; it gets rows that are all different.
        last = order[places - self.batch_size :]
        own = jnp.tile(last, -(-self.batch_size // last.shape[0]))
        filling = (order if self.others else own)[:missing]
        return jnp.concatenate([order, ~filling]).reshape(shape)

    def mask(self, index: Index) -> Array | None:
        """What each row counts, [..., batch]: its weight, 0 if it fills up; None if all alike."""
        mask = index >= 0 if self.fills else None
        if self.weights is None:
            return mask
        own = wide(take(self.weights, self._places(index)))
        return own if mask is None else jnp.where(mask, own, 0)

    def counts(self, index: Index) -> Array | None:
        """What each batch counts, [...]: the sum of its `mask`. None if all batches count alike."""
        mask = self.mask(index)
        return None if mask is None else jnp.sum(mask, axis=-1, dtype=jnp.float32)

    def draw(self, index: Index) -> tuple[Data, Array | None]:
        """One batch of rows -> (batch, mask)."""
        return take(self.data, self._places(index)), self.mask(index)

    def _places(self, index: Index) -> Array:
        return jnp.where(index < 0, ~index, index) if self.fills else index


def batches_of(
    name: str, data: Data, weights: Array | None, batch_size: int, tail: Tail = "pad"
) -> Batches:
    """The batches of a run, checked: an error in the name of the function `name`."""
    rows = rows_of(name, data)
    batch_size = as_count(name, "batch_size", batch_size)
    if batch_size > rows:
        raise ValueError(f"{name}: batch_size {batch_size} exceeds the {rows} rows of data")
    if tail not in get_args(Tail):
        raise ValueError(f"{name}: tail is {tail!r}, expected 'pad', 'drop' or 'wrap'")
    if weights is not None and as_array(name, "weights", weights).shape != (rows,):
        raise ValueError(f"{name}: weights have shape {weights.shape}, expected [rows], ({rows},)")
    return Batches(data, weights, batch_size, tail)
