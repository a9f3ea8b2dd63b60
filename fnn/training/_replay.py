"""A step that went wrong, taken again where you can look."""

import jax
from jax import Array

from fnn._base import Data, Metrics, as_count
from fnn.training._loops import batches_of_run
from fnn.training._nonfinite import no_bad
from fnn.training._rows import Tail
from fnn.training._state import TrainState
from fnn.training._step import Step


def replay(
    step: Step,
    ts: TrainState,
    data: Data,
    key: Array,
    *,
    at: int,
    batch_size: int,
    tail: Tail = "pad",
    weights: Array | None = None,
) -> tuple[TrainState, Metrics]:
    """-> (ts, metrics) of step `at` of the run `fit(step, ..., data, key)`, run again eagerly.

    `ts` is a state of that run from before the step: the first one, or one from a checkpoint. The
    steps before `at` are compiled; step `at` runs operation by operation. The first operation that
    makes a NaN raises FloatingPointError, and the traceback ends in your line. If none does, the
    step's result is returned. Under "stop" and "raise" the last state of the run serves as well:
    no step after the bad one changed it.
    """
    at = as_count("replay", "at", at, least=0)
    batches = batches_of_run("replay", ts, data, key, weights, batch_size, tail)
    if ts.first_bad.ends() and int(ts.first_bad.step) == at:
        ts = ts._replace(step=ts.first_bad.step, first_bad=no_bad("ignore"))
    if at < int(ts.step):
        raise ValueError(f"replay: ts has {int(ts.step)} steps behind it, expected at most {at}")
    shuffle_key, step_key = jax.random.split(jax.random.clone(key))

    def batch_of(number: Array) -> tuple[Data, Array | None]:
        order = batches.of_epoch(shuffle_key, number // batches.steps)
        return batches.draw(order[number % batches.steps])

    def one(_: Array, ts: TrainState) -> TrainState:
        batch, mask = batch_of(ts.step)
        return step(ts, batch, step_key, mask)[0]

    ts = jax.jit(lambda ts: jax.lax.fori_loop(0, at - ts.step, one, ts))(ts)
    batch, mask = batch_of(ts.step)
    with jax.debug_nans(True), jax.disable_jit():
        return step(ts, batch, step_key, mask)
