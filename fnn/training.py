"""Training as pure functions: one step, a whole run, an exact mean.

``fit`` is two nested scans, so under ``jit`` a run of any length is one XLA program, and under
``vmap`` many. Nothing is threaded but the train state: the randomness of step s is
``fold_in(key, s)``, so a run that goes on from a saved state draws what it would have drawn.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from fnn.data import permutation, rows_of, take
from fnn.lifting import Optimizer
from fnn.params import global_norm, paths
from fnn.precision import wide
from fnn.transforms import apply_updates, scale_to_norm
from fnn.types import Data, Metrics, Params, State


class TrainState(NamedTuple):
    """All that changes while training."""

    params: Params
    state: State  # () without batch norm
    opt_state: Any
    step: Array  # int32, the number of steps done


Step = Callable[..., tuple[TrainState, Metrics]]


def train_init(params: Params, optimizer: Optimizer, state: State = ()) -> TrainState:
    """The train state before the first step."""
    return TrainState(params, state, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_train_step(
    loss_fn: Any,
    optimizer: Optimizer,
    *,
    has_state: bool = False,
    clip_norm: ArrayLike | None = None,
    nonfinite: Literal["skip", "ignore"] = "skip",
) -> Step:
    """step(ts, batch, key, mask=None) -> (ts, metrics): one gradient step.

    loss_fn(params, batch, key) -> losses; with `has_state`, loss_fn(params, state, batch, key)
    -> (losses, state). Losses are [batch, ...], and the step descends their mean, over the rows
    where `mask`, [batch], is not 0, weighted by it; a scalar is taken as it is.

    Gradients whose global norm exceeds `clip_norm` are scaled to it. `optimizer` is fnn's or
    Optax's. Metrics are scalars: "loss", "grad_norm" before clipping, "learning_rate" where the
    optimizer's state tells it (fnn's, ``optax.inject_hyperparams``), and "nonfinite": -1, or the
    number of the first leaf of params, in the order of `params.paths`, whose gradient or
    new value is not finite, or the number of leaves if only the loss is not. With `nonfinite`
    "skip" such a step changes nothing but the step counter; with "ignore" it is taken.
    """
    if nonfinite not in ("skip", "ignore"):
        raise ValueError(
            f"make_train_step: nonfinite is {nonfinite!r}, expected 'skip' or 'ignore'"
        )

    def step(
        ts: TrainState, batch: Data, key: Array, mask: Array | None = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, ts.step)

        def mean_loss(params: Params) -> tuple[Array, State]:
            if not has_state:
                return _masked_mean(loss_fn(params, batch, key), mask), ts.state
            losses, state = loss_fn(params, ts.state, batch, key)
            return _masked_mean(losses, mask), state

        (loss, state), grads = jax.value_and_grad(mean_loss, has_aux=True)(ts.params)
        norm = global_norm(grads)
        clipped = grads if clip_norm is None else scale_to_norm(grads, norm, clip_norm)
        updates, opt_state = optimizer.update(clipped, ts.opt_state, ts.params)
        params = apply_updates(ts.params, updates)
        bad = _first_nonfinite(loss, grads, params)
        new = TrainState(params, state, opt_state, ts.step + 1)
        if nonfinite == "skip":
            old = ts._replace(step=new.step)
            new = jax.tree.map(lambda new, old: jnp.where(bad < 0, new, old), new, old)
        metrics = {"loss": loss, "grad_norm": norm, "nonfinite": bad}
        return new, metrics | _learning_rates(opt_state)

    return step


def fit(
    step: Step,
    ts: TrainState,
    data: Data,
    key: Array,
    *,
    epochs: int,
    batch_size: int,
    tail: Literal["pad", "drop"] = "pad",
) -> tuple[TrainState, Metrics]:
    """-> (ts, history), whose leaves are step's metrics, [epochs, steps per epoch, ...].

    Each epoch shuffles `data`, a pytree of arrays with one shared first axis. A last batch that
    is not full is padded with rows that a mask takes out of the mean, or dropped. Pure: jit it,
    vmap it, call it again on the ts that it returned to go on bit for bit where it stopped.
    """
    rows = rows_of("fit", data)
    _check_at_least_1("fit", epochs=epochs, batch_size=batch_size)
    if batch_size > rows:
        raise ValueError(f"fit: batch_size {batch_size} exceeds the {rows} rows of data")
    if tail not in ("pad", "drop"):
        raise ValueError(f"fit: tail is {tail!r}, expected 'pad' or 'drop'")
    steps = -(-rows // batch_size) if tail == "pad" else rows // batch_size
    shuffle_key, step_key = jax.random.split(key)

    def one_step(ts: TrainState, batch: tuple[Array, Array | None]) -> tuple[TrainState, Metrics]:
        index, mask = batch
        return step(ts, take(data, index), step_key, mask)

    def one_epoch(ts: TrainState, _: None) -> tuple[TrainState, Metrics]:
        epoch = ts.step // steps
        order = permutation(jax.random.fold_in(shuffle_key, epoch), rows)
        return lax.scan(one_step, ts, _batches(order, steps, batch_size))

    return lax.scan(one_epoch, ts, length=epochs)


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
    _check_at_least_1("evaluate", batch_size=batch_size)
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

    sums = lax.map(batch_sum, _batches(jnp.arange(rows, dtype=jnp.int32), steps, batch_size))
    totals = jax.tree.map(lambda s: jnp.sum(s, axis=0), sums)
    return totals if reduce == "sum" else jax.tree.map(lambda s: s / rows, totals)


def check_finite(history: Metrics, params: Params) -> None:
    """Raise FloatingPointError naming the first step of `history` that was not finite.

    `history` is what `fit`, or a sweep of it, returned: [..., epochs, steps]; of several members
    each is looked at. `params` name the leaves. On the host.
    """
    bad = jax.device_get(history["nonfinite"])
    found = (bad >= 0).nonzero()
    if not len(found[0]):
        return
    *member, epoch, step = (int(axis[0]) for axis in found)
    leaf = int(bad[tuple(axis[0] for axis in found)])
    names = list(paths(params))
    what = f"the gradient or the new value of {names[leaf]}" if leaf < len(names) else "the loss"
    who = f", member {member[0] if len(member) == 1 else tuple(member)}" if member else ""
    raise FloatingPointError(f"epoch {epoch}, step {step}{who}: {what} is not finite")


def _batches(order: Array, steps: int, batch_size: int) -> tuple[Array, Array | None]:
    """Rows and mask of each batch, [steps, batch]; no mask where every batch is full."""
    rows, places = order.shape[0], steps * batch_size
    if places <= rows:
        return order[:places].reshape(steps, batch_size), None
    # The last batch is filled up with its own rows again: should one of them be bad, that batch
    # is bad anyway, and no other row gets into it.
    tail = order[places - batch_size :]
    filling = jnp.tile(tail, -(-batch_size // tail.shape[0]))[: places - rows]
    padded = jnp.concatenate([order, filling])
    mask = jnp.arange(places) < rows
    return padded.reshape(steps, batch_size), mask.reshape(steps, batch_size)


def _masked_mean(losses: Array, mask: Array | None) -> Array:
    losses = wide(losses)
    if mask is None:
        return jnp.mean(losses)
    if losses.shape[:1] != mask.shape:
        raise ValueError(
            f"make_train_step: loss_fn returned shape {losses.shape}, but {mask.shape[0]} rows are"
            f" masked; expected one loss per row, [{mask.shape[0]}, ...], or fit(tail='drop')"
        )
    per_row = jnp.mean(losses.reshape(losses.shape[0], -1), axis=1)
    weights = mask.astype(per_row.dtype)
    total = jnp.sum(weights)
    return jnp.sum(_select(mask, per_row * weights, 0)) / jnp.where(total > 0, total, 1)


def _select(mask: Array, values: Array, other: float) -> Array:
    # Selected, not multiplied: a padded row may be anything, NaN too.
    counted = mask.astype(bool).reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(counted, values, other)


def _countable(values: Array) -> Array:
    if jnp.issubdtype(values.dtype, jnp.floating):
        return wide(values)
    return values if values.dtype.itemsize >= 4 else values.astype(jnp.int32)


def _learning_rates(opt_state: Any) -> Metrics:
    """What the state says of the rate; of several groups, each under its own name."""
    found = {
        path: leaf
        for path, leaf in paths(opt_state).items()
        if path.split("/")[-1] == "learning_rate"
    }
    return {"learning_rate": next(iter(found.values()))} if len(found) == 1 else found


def _first_nonfinite(loss: Array, grads: Params, params: Params) -> Array:
    leaves = zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True)
    bad = [~(jnp.isfinite(g).all() & jnp.isfinite(p).all()) for g, p in leaves]
    bad = jnp.stack([*bad, ~jnp.isfinite(loss)])
    return jnp.where(bad.any(), jnp.argmax(bad), -1).astype(jnp.int32)


def _check_at_least_1(name: str, **numbers: int) -> None:
    for argument, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}: {argument} is {value}, expected at least 1")
