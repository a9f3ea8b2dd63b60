"""A problem that trains in a moment, a rule, and made-up results of a plan."""

from functools import partial

import jax
import numpy as np

import fnn
from fnn.compare import Problem, compare_optimizers
from fnn.compare._problem import Parts
from fnn.compare._protocol import Result
from fnn.optim import Optimizer


def drawn(seed, rows):
    x = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)
    return x, (x @ np.float32([1, -2, 0.5, 0]) > 0).astype(np.int32)


def loss(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.dense(params, x), labels)


def scores(params, batch):
    x, labels = batch
    logits = fnn.dense(params, x)
    return {"accuracy": fnn.accuracy(logits, labels), "loss": fnn.cross_entropy(logits, labels)}


TINY = Problem(
    name="tiny",
    data=lambda: Parts(drawn(0, 32), drawn(1, 24), drawn(2, 40)),
    init=lambda key: fnn.dense_init(key, 4, 2),
    loss=loss,
    scores=scores,
    score="accuracy",
    better="higher",
    epochs=3,
    batch_size=10,
    rates=(0.01, 0.1),
    target=0.9,
)


def plain_sgd(learning_rate, scale=1.0):
    """p <- p - rate scale g.

    Written by the user.
    """

    def update(grads, state, params=None):
        return jax.tree.map(lambda g: -learning_rate * scale * g, grads), state

    return Optimizer(lambda params: (), update)


small = partial(compare_optimizers, problem=TINY, trial_seeds=2, seeds=3)


def result_of(plan, rule, valid=None):
    """As `fnn.compare._protocol.results` gives it; `valid` are the scores [trials, seeds]."""
    rng = np.random.default_rng(plan.rules.index(rule))
    rows = len(plan.parts.test[0])

    def piece(n, scores=None):
        right = (rng.random((n, rows)) < 0.9).astype(np.float32)
        return {
            "valid": right.mean(1) if scores is None else np.ravel(scores).astype(np.float32),
            "valid_loss": rng.random(n, np.float32),
            "skipped": np.zeros(n, np.int32),
            "digest": rng.integers(256, size=(n, 32), dtype=np.uint8),
            "test_rows": right,
            "test_loss": rng.random(n, np.float32),
            "loss_by_epoch": rng.random((n, plan.epochs), np.float32),
            "valid_by_epoch": np.repeat(right.mean(1)[:, None], plan.epochs, 1),
            "run_seconds": np.ones(n),
            "compile_seconds": np.ones(n),
        }

    search, final = piece(plan.trials * plan.trial_seeds, valid), piece(plan.seeds)
    means = search["valid"].reshape(plan.trials, plan.trial_seeds).mean(1)
    best = int(np.argmax(np.nan_to_num(means, nan=-1)))
    twin = None
    if rule.twin_for([axis.name for axis in plan.axes[rule.name]]) is not None:
        twin = final | {"apart": np.full(plan.seeds, 1e-3)}
    cost = {"update_microseconds": 12.5, "bytes": 1e3, "flops": 1e3, "kernels": 3.0}
    return Result(rule, best, search, final, final, twin, 1e-15, cost)
