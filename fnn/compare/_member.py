"""One member of a comparison: a problem trained by one optimizer from one key.

    train_member(problem, optimizer, key, *, epochs, batch_size, order) -> (ts, history)
    score_rows(problem, params, part) -> {score: [rows]}
    steps_of(problem, epochs, batch_size) -> steps of a whole run

The order of batches matters: on DeepOBS's quadratic problem it alone decides which rule is best.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fnn._base import Data, Metrics, Params, as_count
from fnn.compare._problem import Problem
from fnn.data import permutation, rows_of, take
from fnn.optim import Optimizer
from fnn.training import Step, Tail, TrainState, Validate, fit, make_train_step, predict

Order = Literal["new", "same"]
STEPS = 100  # of an epoch of a problem without rows
SCORED = 512  # rows at a time


def train_member(
    problem: Problem,
    optimizer: Optimizer,
    key: Array,
    *,
    epochs: int,
    batch_size: int,
    order: Order = "new",
    train: Data = None,
    validate: Callable[[TrainState], Metrics] | None = None,
) -> tuple[TrainState, Metrics]:
    """-> (ts, history): initial params and a whole training run, as one pure function of the key.

    `order` is the order of batches: "new" shuffles anew in each epoch and is `fnn.fit`; "same"
    shuffles once, and every epoch has the batches that the first epoch of "new" has.

    `train` are the training rows; give them where they are an argument of the program. Without
    them ``problem.data().train`` are constants in it. ``validate(ts)`` gives scalars after each
    epoch; in the history they are "val_...", [epochs].
    """
    if order not in ("new", "same"):
        raise ValueError(f"train_member: order is {order!r}, expected 'new' or 'same'")
    init_key, fit_key = jax.random.split(key)
    step = make_train_step(problem.loss, optimizer)
    rows = problem.data().train if train is None else train
    if rows is None:
        # Rows that hold nothing: what remains of the machinery of rows is the count of steps.
        rows, batch_size = np.zeros((STEPS, 0), np.float32), 1
        step = make_train_step(lambda params, _, key: problem.loss(params, None, key), optimizer)
    run = fit if order == "new" else _fit_in_one_order
    return run(
        step,
        step.init(problem.init(init_key)),
        rows,
        fit_key,
        epochs=epochs,
        batch_size=batch_size,
        tail=problem.tail,
        validate=validate and (lambda ts, _: validate(ts)),
    )


def steps_of(problem: Problem, epochs: int, batch_size: int) -> int:
    """The number of steps of a whole run."""
    train = problem.data().train
    if train is None:
        return epochs * STEPS
    full, rest = divmod(rows_of("steps_of", train), batch_size)
    return epochs * (full + (rest > 0 and problem.tail != "drop"))


def score_rows(problem: Problem, params: Params, part: Data) -> dict[str, Array]:
    """{score: [rows]} of the rows of `part`, as ``problem.data().test``; [1] if there are none."""
    scores = partial(problem.scores, params)
    return scores(None) if part is None else predict(scores, part, SCORED)


def _fit_in_one_order(
    step: Step,
    ts: TrainState,
    data: Data,
    key: Array,
    *,
    epochs: int,
    batch_size: int,
    tail: Tail,
    validate: Validate | None,
) -> tuple[TrainState, Metrics]:
    """`fit`, but every epoch has the order of the first.

    A last batch is filled up with the first rows of the order, which under "pad" do not count.
    """
    rows = rows_of("train_member", data)
    epochs = as_count("train_member", "epochs", epochs)
    batch_size = as_count("train_member", "batch_size", batch_size)
    if batch_size > rows:
        raise ValueError(f"train_member: batch_size {batch_size} exceeds the {rows} rows of data")
    shuffle_key, step_key = jax.random.split(key)
    first = permutation(jax.random.fold_in(shuffle_key, 0), rows)
    steps = rows // batch_size if tail == "drop" else -(-rows // batch_size)
    places = np.arange(steps * batch_size).reshape(steps, batch_size)
    shuffled = first[places % rows]
    mask = jnp.asarray(places < rows) if tail == "pad" and rows % batch_size else None

    def one_step(ts: TrainState, batch: tuple[Array, Array | None]) -> tuple[TrainState, Metrics]:
        index, mask = batch
        return step(ts, take(data, index), step_key, mask)

    def epoch(ts: TrainState, _: None) -> tuple[TrainState, Any]:
        ts, metrics = lax.scan(one_step, ts, (shuffled, mask))
        after = validate(ts, None) if validate else {}
        return ts, metrics | {f"val_{name}": jnp.asarray(value) for name, value in after.items()}

    return lax.scan(epoch, ts, length=epochs)
