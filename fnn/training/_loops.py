"""Whole runs as pure functions: `fit`, `fit_until`, and the loop that `train` compiles.

Under ``jit`` a run of any length is one XLA program, and under ``vmap`` many. Nothing is threaded
but the train state: epoch e is shuffled by ``fold_in(key, e)``, so a run that goes on from a saved
state sees what it would have seen.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fnn._base import Data, Metrics, as_count, check_key, paths, weighted_sum, wide
from fnn.training._gradient import has_no_state
from fnn.training._layout import after_steps
from fnn.training._programs import traced
from fnn.training._rows import Batches, Index, Tail, batches_of
from fnn.training._scan import Packed, pack, scan_packed
from fnn.training._sharding import mesh_of, on_the_same, whole_on
from fnn.training._state import TrainState, check_train_state
from fnn.training._step import Step
from fnn.training._stopping import (
    EarlyStopping,
    Progress,
    after_epoch,
    check_stop,
    progress_init,
)

Validate = Callable[[TrainState, Data], Metrics]
Epoch = Callable[[TrainState], "tuple[TrainState, Measured]"]


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
    validate: Validate | None = None,
    validation: Data = None,
) -> tuple[TrainState, Metrics]:
    """-> (ts, history), whose leaves are the step's metrics, [epochs, steps per epoch, ...].

    Each epoch shuffles `data`, a pytree of arrays with one shared first axis. `tail` says what
    happens to a last batch that is not full:

    - "pad": it is filled up with rows that a mask takes out of the mean. A model with state, as
      with batch norm, gets rows that are all different, and statistics that are as good as those of
      other batches. A loss function with an argument `mask` can leave them out altogether.
    - "drop": it is dropped.
    - "wrap": it is filled up with the first rows of the epoch, which then count twice.

    Under "pad" the last step counts fewer rows. The mean loss of the rows of each epoch is
    ``np.average(history["loss"], axis=1, weights=[64, ..., 64, 43])``, the rows of each step.

    `weights`, [rows], weigh the losses of the rows in the mean of each batch; see
    `data.class_weights`. After each epoch ``validate(ts, validation)`` gives scalars,
    {"loss": ...}, which are in the history as "val_loss", [epochs]. `validate` is part of the
    program: it uses jax.numpy.

    Pure: jit it or vmap it. Called again on the ts that it returned it goes on bit for bit.
    """
    check_validation("fit", validate, validation)
    epochs = as_count("fit", "epochs", epochs)
    batches = batches_of_run("fit", ts, data, key, weights, batch_size, tail)
    given = batches, validation, ts, key
    batches, validation, ts, key = on_the_same(mesh_of(step), given)
    epoch = _packed_epoch("fit", step, batches, key, validate, validation)
    packed, (steps, after, _) = lax.scan(lambda ts, _: epoch(ts), pack(ts), length=epochs)
    return packed.tree(), steps.tree() | after


def fit_until(
    step: Step,
    ts: TrainState,
    data: Data,
    key: Array,
    stop: EarlyStopping,
    *,
    epochs: int,
    batch_size: int,
    tail: Tail = "pad",
    weights: Array | None = None,
    validate: Validate | None = None,
    validation: Data = None,
) -> tuple[Progress, Metrics]:
    """`fit` for at most `epochs`, until `stop` says so -> (progress, history).

    The best parameters are ``progress.best.params``, the last state ``progress.last``. For epochs
    that were not run the history holds NaN (0 under jax_debug_nans), or -1 if it is an integer.
    Pure: jit it. Under vmap or `sweep` every run stops for itself.
    """
    check_stop("fit_until", stop)
    check_validation("fit_until", validate, validation)
    epochs = as_count("fit_until", "epochs", epochs)
    batches = batches_of_run("fit_until", ts, data, key, weights, batch_size, tail)
    given = batches, validation, ts, key
    batches, validation, ts, key = on_the_same(mesh_of(step), given)
    epoch = epoch_of("fit_until", step, batches, key, validate, validation)
    # NaN where nothing was measured; 0 for those who look for NaN.
    unrun = 0.0 if jax.config.jax_debug_nans else jnp.nan  # pyright: ignore[reportAttributeAccessIssue]
    start = progress_init(ts, stop)
    return run_epochs(epoch, start, stop, jnp.int32(epochs), epochs, unrun)[:2]


def batches_of_run(
    name: str,
    ts: TrainState,
    data: Data,
    key: Array,
    weights: Array | None,
    batch_size: int,
    tail: Tail,
) -> Batches:
    """The batches of a run of training steps; what it is given is checked."""
    check_key(name, key)
    check_train_state(name, ts)
    batches = batches_of(name, data, weights, batch_size, tail)
    return replace(batches, others=not has_no_state(ts.state))


class Measured(NamedTuple):
    """What one epoch measured."""

    steps: Metrics  # the step's, [steps, ...]
    after: Metrics  # those of `validate`, as "val_..."
    counts: Array | None  # [steps], what each step counts; None if all steps count alike

    def history(self) -> Metrics:
        """What is kept of an epoch."""
        return self.steps | self.after

    def means(self) -> Metrics:
        """Scalars by path: of the step's metrics the mean over the epoch's rows."""
        steps, after = paths(self.steps).items(), paths(self.after).items()
        means = {path: _mean_over_rows(values, self.counts) for path, values in steps}
        return means | {path: jnp.mean(wide(value)) for path, value in after}


def _mean_over_rows(values: Array, counts: Array | None) -> Array:
    if counts is None:
        return jnp.mean(wide(values))
    each = jnp.mean(wide(values).reshape(values.shape[0], -1), axis=1)
    total = jnp.sum(counts)
    return weighted_sum(each, counts) / jnp.where(total > 0, total, 1).astype(each.dtype)


def epoch_of(
    name: str,
    step: Step,
    batches: Batches,
    key: Array,
    validate: Validate | None,
    validation: Data,
) -> Epoch:
    """epoch(ts) -> (ts, what it measured); `name` is the function that messages name."""
    of_packed = _packed_epoch(name, step, batches, key, validate, validation)

    def epoch(ts: TrainState) -> tuple[TrainState, Measured]:
        packed, (steps, after, counts) = of_packed(pack(ts))
        return packed.tree(), Measured(steps.tree(), after, counts)

    return epoch


def _packed_epoch(
    name: str,
    step: Step,
    batches: Batches,
    key: Array,
    validate: Validate | None,
    validation: Data,
) -> Callable[[Packed], tuple[Packed, tuple[Packed, Metrics, Array | None]]]:
    """`epoch_of`, which leaves ts and the metrics of the steps packed."""
    # What `split` would give. But `fold_in` has this program anyway, once more for each epoch; and
    # for jax_debug_key_reuse it does not use the key up, which goes on with a run.
    shuffle_key, step_key = (jax.random.fold_in(key, i) for i in (0, 1))

    def one_step(ts: TrainState, index: Index) -> tuple[TrainState, Metrics]:
        batch, mask = batches.draw(index)
        ts, metrics = step(ts, batch, step_key, mask)
        return ts, _checked(name, "the step's metrics are", metrics)

    def epoch(packed: Packed) -> tuple[Packed, tuple[Packed, Metrics, Array | None]]:
        number = lax.div(packed.tree().step, jnp.int32(batches.steps))
        index = whole_on(mesh_of(step), batches.of_epoch(shuffle_key, number))
        packed, metrics = scan_packed(one_step, packed, index)
        ts, whole = after_steps(step, packed.tree())
        if ts is not whole:
            packed = pack(ts)
        after = validated(name, validate, whole, validation)
        return packed, (metrics, after, batches.counts(index))

    return epoch


def validated(name: str, validate: Validate | None, ts: TrainState, validation: Data) -> Metrics:
    """What `validate` gives, each name with "val_" before it."""
    if validate is None:
        return {}
    advice = "; what runs on the host is a hook, train(hook=...)"
    try:
        returned = traced(name, "validate", validate, ts, validation, advice=advice)
    except Exception as error:
        if validation is None:
            error.add_note(f"{name}: validation is None; give validation=, the rows for validate")
        raise
    metrics = _checked(name, "validate returned", returned)
    for metric, value in metrics.items():
        if shape := jnp.shape(value):
            raise ValueError(
                f'{name}: validate returned "{metric}" of shape {shape}, expected a scalar: take'
                " .mean()"
            )
    return {f"val_{metric}": jnp.asarray(value) for metric, value in metrics.items()}


def check_validation(name: str, validate: Validate | None, validation: Data) -> None:
    """Raise ValueError if there are rows to validate on, but nothing that measures them."""
    if validate is None and validation is not None:
        raise ValueError(
            f"{name}: validation came without validate, the function that measures it:"
            ' validate(ts, validation) -> {"loss": ...}'
        )


def _checked(name: str, what: str, metrics: Any) -> Metrics:
    if isinstance(metrics, dict):
        return metrics
    came = f"a {type(metrics).__name__}"
    if isinstance(metrics, Array):
        came = f"an array of shape {metrics.shape}"
    raise TypeError(f'{name}: {what} {came}, expected a dict such as {{"loss": ...}}')


def run_epochs(
    epoch: Epoch,
    progress: Progress,
    stop: EarlyStopping | None,
    n: Array,
    capacity: int,
    unrun: float = 0.0,
) -> tuple[Progress, Metrics, Metrics]:
    """Until `n` more epochs are done or the run has stopped -> progress, history, means.

    Leaves of history are [capacity, ...], those of the means of epochs [capacity]; where no epoch
    was run they hold `unrun`, or -1 if they are integers. The loop's length is only known when it
    runs, so one program serves every `n`.
    """

    def unfinished(carry: Any) -> Array:
        i, progress, _ = carry
        return (i < n) & ~progress.stopped

    def one(carry: Any) -> Any:
        i, progress, told = carry
        ts, measured = epoch(progress.last)
        means = measured.means()
        progress = after_epoch(progress, ts, means, stop)
        new = measured.history(), means
        return i + 1, progress, jax.tree.map(lambda h, m: h.at[i].set(m), told, new)

    def nothing(metric: Any) -> Array:
        floating = jnp.issubdtype(metric.dtype, jnp.floating)
        return jnp.full((capacity, *metric.shape), unrun if floating else -1, metric.dtype)

    def shapes(ts: TrainState) -> tuple[Metrics, Metrics]:
        measured = epoch(ts)[1]
        return measured.history(), measured.means()

    told = jax.tree.map(nothing, jax.eval_shape(shapes, progress.last))
    start = (jnp.zeros((), jnp.int32), progress, told)
    _, progress, (history, means) = lax.while_loop(unfinished, one, start)
    return progress, history, means
