"""A step that went wrong, taken again where one can look."""

import jax
from jax import Array

from fnn.data import rows_of
from fnn.step import Step, TrainState, policy
from fnn.training import Tail, batches_of, drawn, order_of, steps_per_epoch
from fnn.types import Data, Metrics


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
    """Take step number `at` of the run `fit(step, ..., data, key)` again, operation by operation.

    `ts` is a state of that run from before the step, the first or a checkpoint's: the steps up to
    `at` are compiled, that one is not. The first operation that makes a NaN raises
    FloatingPointError, the traceback ending in your line; if none does the step's result is
    returned. Under "stop" and "raise" the last state serves as well, for it is the one before.
    """
    steps = steps_per_epoch("replay", data, batch_size, tail)
    stopped = int(ts.first_bad[0])
    if 0 <= stopped == at and policy(step) in ("stop", "raise"):
        ts = ts._replace(step=ts.first_bad[0], first_bad=-1 + 0 * ts.first_bad)
    if at < int(ts.step):
        raise ValueError(f"replay: ts has {int(ts.step)} steps behind it, expected at most {at}")
    shuffle_key, step_key = jax.random.split(key)

    def batch_of(number: Array) -> tuple[Data, Array | None]:
        order = order_of(shuffle_key, number // steps, rows_of("replay", data))
        batches = batches_of(order, steps, batch_size, tail)
        return drawn(data, weights, *jax.tree.map(lambda a: a[number % steps], batches))

    def one(_: Array, ts: TrainState) -> TrainState:
        batch, mask = batch_of(ts.step)
        return step(ts, batch, step_key, mask)[0]

    ts = jax.jit(lambda ts: jax.lax.fori_loop(0, at - ts.step, one, ts))(ts)
    batch, mask = batch_of(ts.step)
    with jax.debug_nans(True), jax.disable_jit():
        return step(ts, batch, step_key, mask)
