"""Runs that stop when they no longer improve, in one program.

The rule is a pure function of a carry, so a plain loop, a compiled run, a sweep of runs and
`train` stop at the same epoch with the same best parameters, bit for bit.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from fnn.precision import wide
from fnn.step import Step, TrainState, policy
from fnn.training import Tail, check_at_least_1, epoch_of
from fnn.types import Data, Metrics, Params, State

Validate = Callable[[TrainState, Data], Metrics]
Epoch = Callable[[TrainState], tuple[TrainState, Metrics]]


class EarlyStopping(NamedTuple):
    """Stop after `patience` epochs in a row without an improvement of `monitor`.

    An improvement is a value below the best so far by more than `min_delta`, or above with `mode`
    "max"; a tie is none, nor is NaN. Patience 0 is 1: an epoch has to end before it can be judged.
    Epochs before `start_epoch` are not counted against the run, but may be its best. Of training
    metrics, such as "loss", the mean over the epoch's steps is judged. The numbers may be traced.
    """

    monitor: str = "val_loss"
    patience: ArrayLike = 10
    min_delta: ArrayLike = 0.0
    mode: Literal["min", "max"] = "min"
    start_epoch: ArrayLike = 0


NEVER = jnp.iinfo(jnp.int32).max  # a patience that no run exhausts


class Best(NamedTuple):
    """The parameters, and batch norm's state, of the best epoch so far; epoch -1 is none yet."""

    params: Params
    state: State
    value: Array
    epoch: Array


class Progress(NamedTuple):
    """Where a run stands: its last state, its best, and whether it has stopped."""

    ts: TrainState
    best: Best
    epoch: Array  # int32, epochs done
    waited: Array  # int32, epochs since the last improvement
    stopped: Array  # bool


def progress_init(ts: TrainState, stop: EarlyStopping | None) -> Progress:
    """The progress before the first epoch."""
    worst = jnp.asarray(-math.inf if stop is not None and stop.mode == "max" else math.inf, float)
    best = Best(ts.params, ts.state, worst, jnp.full((), -1, jnp.int32))
    zero = jnp.zeros((), jnp.int32)
    return Progress(ts, best, zero, jnp.zeros_like(zero), jnp.zeros((), bool))


def after_epoch(
    progress: Progress, ts: TrainState, metrics: Metrics, stop: EarlyStopping | None
) -> Progress:
    """The progress one epoch on: `ts` is the state after it, `metrics` what it measured."""
    if stop is None:
        return progress._replace(ts=ts, epoch=progress.epoch + 1)
    best = progress.best
    value = jnp.mean(wide(monitored(metrics, stop))).astype(best.value.dtype)
    sign = {"min": 1, "max": -1}[stop.mode]
    improved = sign * value < sign * best.value - jnp.asarray(stop.min_delta, value.dtype)
    new = Best(ts.params, ts.state, value, progress.epoch)
    best = jax.tree.map(lambda new, old: jnp.where(improved, new, old), new, best)
    counts = (progress.epoch >= stop.start_epoch).astype(jnp.int32)
    waited = jnp.where(improved, 0, progress.waited + counts)
    stopped = progress.stopped | (waited >= jnp.maximum(jnp.asarray(stop.patience, jnp.int32), 1))
    return Progress(ts, best, progress.epoch + 1, waited, stopped)


def monitored(metrics: Metrics, stop: EarlyStopping) -> Array:
    """The metric that the rule looks at; ValueError for a name or mode that is not there."""
    if stop.monitor not in metrics:
        names = ", ".join(metrics)
        raise ValueError(f"EarlyStopping: monitor is {stop.monitor!r}, expected one of {names}")
    if stop.mode not in ("min", "max"):
        raise ValueError(f"EarlyStopping: mode is {stop.mode!r}, expected 'min' or 'max'")
    return metrics[stop.monitor]


def fit_until(
    step: Step,
    ts: TrainState,
    data: Data,
    key: Array,
    stop: EarlyStopping,
    *,
    epochs: int,
    batch_size: int,
    validate: Validate | None = None,
    validation: Data = None,
    tail: Tail = "pad",
    weights: Array | None = None,
) -> tuple[Progress, Metrics]:
    """`fit` for at most `epochs`, until `stop` says so -> (progress, history).

    After each epoch ``validate(ts, validation)`` gives scalars, {"loss": ...}, which stand in the
    history as "val_loss", [epochs]. The best parameters are ``progress.best.params``, the last
    ``progress.ts``. Of epochs that were not run the history is NaN, or -1 in integers. Pure: jit
    it, and under vmap or `sweep` every run stops for itself.
    """
    check_at_least_1("fit_until", epochs=epochs)
    epoch, _ = epoch_of("fit_until", step, data, key, batch_size, tail, weights)
    whole = with_validation(epoch, validate, validation)
    return run_epochs(whole, progress_init(ts, stop), stop, jnp.int32(epochs), epochs, policy(step))


def with_validation(epoch: Epoch, validate: Validate | None, validation: Data) -> Epoch:
    """The epoch with what ``validate(ts, validation)`` says after it, as "val_...", among it."""
    if validate is None:
        return epoch

    def validated(ts: TrainState) -> tuple[TrainState, Metrics]:
        ts, metrics = epoch(ts)
        after = {f"val_{name}": jnp.asarray(v) for name, v in validate(ts, validation).items()}
        return ts, metrics | after

    return validated


def run_epochs(
    epoch: Epoch,
    progress: Progress,
    stop: EarlyStopping | None,
    n: Array,
    capacity: int,
    nonfinite: str,
) -> tuple[Progress, Metrics]:
    """Until `n` more epochs are done or the run has stopped; history leaves [capacity, ...].

    A loop of a length that is only known when it runs, so one program does for every `n`.
    """

    def unfinished(carry: Any) -> Array:
        i, progress, _ = carry
        return (i < n) & ~progress.stopped

    def one(carry: Any) -> Any:
        i, progress, history = carry
        ts, metrics = epoch(progress.ts)
        progress = after_epoch(progress, ts, metrics, stop)
        if nonfinite in ("stop", "raise"):
            progress = progress._replace(stopped=progress.stopped | (ts.first_bad[0] >= 0))
        return i + 1, progress, jax.tree.map(lambda h, m: h.at[i].set(m), history, metrics)

    def unrun(metric: Any) -> Array:
        floating = jnp.issubdtype(metric.dtype, jnp.floating)
        return jnp.full((capacity, *metric.shape), jnp.nan if floating else -1, metric.dtype)

    _, shapes = jax.eval_shape(epoch, progress.ts)
    start = (jnp.zeros((), jnp.int32), progress, jax.tree.map(unrun, shapes))
    _, progress, history = lax.while_loop(unfinished, one, start)
    return progress, history
