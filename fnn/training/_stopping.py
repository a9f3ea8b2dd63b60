"""Early stopping: the rule, as a pure function of what a run carries from epoch to epoch.

A plain loop, a compiled run, a sweep of runs and `train` therefore stop at the same epoch with
the same best parameters, bit for bit.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import Metrics, Params, State, as_count, check_range, number_of
from fnn.training._state import TrainState


class EarlyStopping(NamedTuple):
    """Stop after `patience` epochs in a row without an improvement of `monitor`.

    An improvement is a value below the best so far by more than `min_delta`, or above it with
    `mode` "max". A tie is no improvement, and neither is NaN. Patience 0 is 1: an epoch has to end
    before it can be judged. Epochs before `start_epoch` do not count against the run, but may be
    its best. For a training metric, such as "loss", the mean over the epoch's rows is judged: each
    step counts by its rows, or by the sum of their weights. The numbers may be traced.
    """

    monitor: str = "val_loss"
    patience: ArrayLike = 10
    min_delta: ArrayLike = 0.0
    mode: Literal["min", "max"] = "min"
    start_epoch: ArrayLike = 0


NEVER = jnp.iinfo(jnp.int32).max  # a patience that no run exhausts


class Best(NamedTuple):
    """The best epoch so far: its parameters and the model's state.

    `epoch` counts from 0. Before there is a best epoch, it is -1, and the value is the worst finite
    number.
    """

    params: Params
    state: State
    value: Array
    epoch: Array


class Progress(NamedTuple):
    """A run between two epochs: its last state, its best, and whether it has stopped."""

    last: TrainState
    best: Best
    epochs: Array  # int32, epochs done
    waited: Array  # int32, epochs since the last improvement
    stopped: Array  # bool


def progress_init(ts: TrainState, stop: EarlyStopping | None) -> Progress:
    """The progress before the first epoch."""
    _check_numbers(stop)
    # Not inf, which jax_debug_infs would take for an overflow.
    worst = jnp.full((), jnp.finfo(jnp.result_type(float)).max, float)
    worst = -worst if stop is not None and stop.mode == "max" else worst
    best = Best(ts.params, ts.state, worst, jnp.full((), -1, jnp.int32))
    zero = jnp.zeros((), jnp.int32)
    return Progress(ts, best, zero, jnp.zeros_like(zero), jnp.zeros((), bool))


def after_epoch(
    progress: Progress, ts: TrainState, means: Metrics, stop: EarlyStopping | None
) -> Progress:
    """The progress one epoch later; `ts` is the state after it, `means` its metrics, scalars."""
    ended = progress.stopped | ts.first_bad.ends()
    if stop is None:
        return progress._replace(last=ts, epochs=progress.epochs + 1, stopped=ended)
    best = progress.best
    value = _monitored(means, stop).astype(best.value.dtype)
    sign = {"min": 1, "max": -1}[stop.mode]
    improved = sign * value < sign * best.value - jnp.asarray(stop.min_delta, value.dtype)
    new = Best(ts.params, ts.state, value, progress.epochs)
    best = jax.tree.map(lambda new, old: jnp.where(improved, new, old), new, best)
    counts = (progress.epochs >= stop.start_epoch).astype(jnp.int32)
    waited = jnp.where(improved, 0, progress.waited + counts)
    stopped = ended | (waited >= jnp.maximum(jnp.asarray(stop.patience, jnp.int32), 1))
    return Progress(ts, best, progress.epochs + 1, waited, stopped)


def _monitored(means: Metrics, stop: EarlyStopping) -> Array:
    if stop.monitor not in means:
        names = ", ".join(sorted(means))
        said = f"EarlyStopping: monitor is {stop.monitor!r}, expected one of {names}"
        if stop.monitor.startswith("val_") and not any(n.startswith("val_") for n in means):
            said += "; names with val_ come from validate="
        raise ValueError(said)
    if stop.mode not in ("min", "max"):
        raise ValueError(f"EarlyStopping: mode is {stop.mode!r}, expected 'min' or 'max'")
    return means[stop.monitor]


def check_stop(name: str, stop: Any) -> None:
    """Raise TypeError, in the name of the function that takes it, unless it is a rule or None."""
    if stop is not None and not isinstance(stop, EarlyStopping):
        raise TypeError(f"{name}: stop is {stop!r}, expected fnn.EarlyStopping(...)")


def _check_numbers(stop: EarlyStopping | None) -> None:
    if stop is None:
        return
    for name in ("patience", "start_epoch"):
        value = getattr(stop, name)
        if number_of(value) is not None or not hasattr(value, "dtype"):  # traced ones pass
            as_count("EarlyStopping", name, value, least=0)
    check_range("EarlyStopping", "min_delta", stop.min_delta, 0)
