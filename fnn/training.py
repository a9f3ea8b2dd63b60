"""Whole runs as pure functions: an epoch, many of them, an exact mean.

``fit`` is two nested scans, so under ``jit`` a run of any length is one XLA program, and under
``vmap`` many. Nothing is threaded but the train state: epoch e is shuffled by ``fold_in(key, e)``,
so a run that goes on from a saved state sees what it would have seen.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from fnn.data import permutation, rows_of, take
from fnn.precision import wide
from fnn.step import Step, TrainState, names_of_bad
from fnn.types import Data, Metrics, Params

Tail = Literal["pad", "drop", "wrap"]


def fit(
    step: Step,
    ts: TrainState,
    data: Data,
    key: Array,
    *,
    epochs: int,
    batch_size: int,
    tail: Tail = "pad",
    weights: Array | None = None,
) -> tuple[TrainState, Metrics]:
    """-> (ts, history), whose leaves are step's metrics, [epochs, steps per epoch, ...].

    Each epoch shuffles `data`, a pytree of arrays with one shared first axis. A last batch that
    is not full is padded with rows that a mask takes out of the mean, or dropped, or wrapped:
    filled with the epoch's first rows, which count again. `weights`, [rows], weigh the losses of
    the rows in each batch's mean; see `data.class_weights`. Pure: jit it, vmap it, call it again
    on the ts that it returned to go on bit for bit where it stopped.
    """
    check_at_least_1("fit", epochs=epochs)
    epoch, _ = epoch_of("fit", step, data, key, batch_size, tail, weights)
    return lax.scan(lambda ts, _: epoch(ts), ts, length=epochs)


def epoch_of(
    name: str,
    step: Step,
    data: Data,
    key: Array,
    batch_size: int,
    tail: Tail,
    weights: Array | None,
) -> tuple[Callable[[TrainState], tuple[TrainState, Metrics]], int]:
    """epoch(ts) -> (ts, metrics [steps, ...]), and how many steps it has."""
    steps = steps_per_epoch(name, data, batch_size, tail)
    rows = rows_of(name, data)
    if weights is not None and weights.shape != (rows,):
        raise ValueError(f"{name}: weights have shape {weights.shape}, expected [rows], ({rows},)")
    shuffle_key, step_key = jax.random.split(key)

    def one_step(ts: TrainState, batch: tuple[Array, Array | None]) -> tuple[TrainState, Metrics]:
        rows, mask = drawn(data, weights, *batch)
        return step(ts, rows, step_key, mask)

    def epoch(ts: TrainState) -> tuple[TrainState, Metrics]:
        order = order_of(shuffle_key, ts.step // steps, rows)
        return lax.scan(one_step, ts, batches_of(order, steps, batch_size, tail))

    return epoch, steps


def drawn(
    data: Data, weights: Array | None, index: Array, mask: Array | None
) -> tuple[Data, Array | None]:
    """The batch of these rows, and its mask, in which the rows' weights are."""
    if weights is not None:
        own = wide(take(weights, index))
        mask = own if mask is None else jnp.where(mask, own, 0)
    return take(data, index), mask


def steps_per_epoch(name: str, data: Data, batch_size: int, tail: Tail) -> int:
    """How many batches there are; ValueError for a batch_size or tail that cannot be."""
    rows = rows_of(name, data)
    check_at_least_1(name, batch_size=batch_size)
    if batch_size > rows:
        raise ValueError(f"{name}: batch_size {batch_size} exceeds the {rows} rows of data")
    if tail not in get_args(Tail):
        raise ValueError(f"{name}: tail is {tail!r}, expected 'pad', 'drop' or 'wrap'")
    return rows // batch_size if tail == "drop" else -(-rows // batch_size)


def order_of(shuffle_key: Array, epoch: Array, rows: int) -> Array:
    """The rows in the order in which this epoch sees them."""
    return permutation(jax.random.fold_in(shuffle_key, epoch), rows)


def evaluate(
    metric_fn: Callable[[Data], Any],
    data: Data,
    batch_size: int,
    *,
    reduce: Literal["mean", "sum"] = "mean",
) -> Any:
    """The exact mean over all rows of metric_fn(batch), leaves [batch, ...] -> [...], or the sum.

    Every row counts once, the tail too. `batch_size` bounds the memory and nothing else. In a sum
    bools and integers are counted in integers of 32 bits at least, where float32 would stand
    still at 2^24.
    """
    if reduce not in ("mean", "sum"):
        raise ValueError(f"evaluate: reduce is {reduce!r}, expected 'mean' or 'sum'")
    rows = rows_of("evaluate", data)
    check_at_least_1("evaluate", batch_size=batch_size)
    batch_size = min(batch_size, rows)
    steps = -(-rows // batch_size)

    def batch_sum(batch: tuple[Array, Array | None]) -> Any:
        index, mask = batch

        def over_rows(values: Array) -> Array:
            if values.shape[:1] != (batch_size,):
                raise ValueError(
                    f"evaluate: metric_fn returned shape {values.shape},"
                    f" expected one value per row, [{batch_size}, ...]"
                )
            values = wide(values) if reduce == "mean" else _countable(values)
            return jnp.sum(values if mask is None else _select(mask, values, 0), axis=0)

        return jax.tree.map(over_rows, metric_fn(take(data, index)))

    sums = lax.map(batch_sum, batches_of(jnp.arange(rows, dtype=jnp.int32), steps, batch_size))
    totals = jax.tree.map(lambda s: jnp.sum(s, axis=0), sums)
    return totals if reduce == "sum" else jax.tree.map(lambda s: s / rows, totals)


def check_finite(history: Metrics, params: Params, data: Data = None) -> None:
    """Raise FloatingPointError naming the first step of `history` that was not finite.

    `history` is what `fit`, or a sweep of it, returned, [..., epochs, steps], or
    `train_on_batches`, [steps]; of several members each is looked at. `params` name the leaves,
    and `data` those of the input. On the host.
    """
    bad = jax.device_get(history["nonfinite"])
    found = (bad >= 0).nonzero()
    if not len(found[0]):
        return
    *member, step = (int(axis[0]) for axis in found)
    when = f"epoch {member.pop()}, step {step}" if member else f"step {step}"
    what = name_of_bad(int(bad[tuple(axis[0] for axis in found)]), params, data)
    who = f", member {member[0] if len(member) == 1 else tuple(member)}" if member else ""
    raise FloatingPointError(f"{when}{who}: {what} is not finite")


def name_of_bad(code: int, params: Params, data: Data = None) -> str:
    """What a value of the metric "nonfinite" stands for."""
    names = names_of_bad(params, data)
    return names[code] if code < len(names) else "the input"


def batches_of(
    order: Array, steps: int, batch_size: int, tail: Tail = "pad"
) -> tuple[Array, Array | None]:
    """Rows and mask of each batch, [steps, batch]; no mask where every batch is full."""
    rows, places = order.shape[0], steps * batch_size
    if places <= rows:
        return order[:places].reshape(steps, batch_size), None
    if tail == "wrap":
        return jnp.concatenate([order, order[: places - rows]]).reshape(steps, batch_size), None
    # The last batch is filled up with its own rows again: should one of them be bad, that batch
    # is bad anyway, and no other row gets into it.
    last = order[places - batch_size :]
    filling = jnp.tile(last, -(-batch_size // last.shape[0]))[: places - rows]
    padded = jnp.concatenate([order, filling])
    mask = jnp.arange(places) < rows
    return padded.reshape(steps, batch_size), mask.reshape(steps, batch_size)


def _select(mask: Array, values: Array, other: float) -> Array:
    # Selected, not multiplied: a padded row may be anything, NaN too.
    counted = mask.astype(bool).reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(counted, values, other)


def _countable(values: Array) -> Array:
    if jnp.issubdtype(values.dtype, jnp.floating):
        return wide(values)
    return values if values.dtype.itemsize >= 4 else values.astype(jnp.int32)


def check_at_least_1(name: str, **numbers: int) -> None:
    """Raise ValueError naming the argument that is less than 1."""
    for argument, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}: {argument} is {value}, expected at least 1")
