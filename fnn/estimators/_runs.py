"""The training run of an estimator as a pure function, and its compiled programs."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base import AnyArray, Metrics, Params, weighted_mean
from fnn.estimators._plan import Function, Numbers, Plan
from fnn.nn import accuracy, cross_entropy, l2, mlp, mlp_init, softmax, squared_error
from fnn.search import ensemble
from fnn.training import (
    EarlyStopping,
    Step,
    TrainState,
    fetch,
    fit_until,
    make_train_step,
    sweep_with,
)

WIDEST = 1024  # rows that one call of a program predicts
NARROWEST = 32


class Rows(NamedTuple):
    """Features [rows, features], labels [rows] or targets [rows, outputs], weights [rows]."""

    x: AnyArray
    y: AnyArray
    weights: AnyArray | None


class Trained(NamedTuple):
    """What a run returns; of several seeds, with a first axis [seeds]."""

    ts: TrainState  # its params are those that predict
    losses: Array  # [epochs, steps]
    counts: Array  # [epochs, steps], the rows that each step counted, or the sum of their weights
    scores: Array | None  # [epochs], of the validation rows
    epochs: Array  # that were run
    stopped: Array


# --- the run --------------------------------------------------------------------------------------


@lru_cache(maxsize=128)
def run_of(plan: Plan) -> Callable[..., Trained]:
    """run(key, starts, rows, validation, numbers, member) -> `Trained`, the same run for a plan.

    The first states, [seeds, ...], are another program: so a fit and one that goes on are the same
    program, and folds of other sizes compile less.
    """

    def run(
        key: Array,
        starts: TrainState,
        rows: Rows,
        validation: Rows | None,
        numbers: Numbers,
        member: Array,
    ) -> Trained:
        monitor, mode = ("val_score", "max") if plan.validates else ("loss", "min")
        progress, history = fit_until(
            _step(plan, numbers),
            jax.tree.map(lambda leaf: jnp.asarray(leaf)[member], starts),
            (rows.x, rows.y),
            key,
            EarlyStopping(monitor, numbers.patience, numbers.tol, mode),
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            weights=rows.weights,  # pyright: ignore[reportArgumentType]
            validate=partial(_validate, plan) if plan.validates else None,
            validation=validation,
        )
        params = progress.best.params if plan.validates else progress.last.params
        return Trained(
            progress.last._replace(params=params),
            history["loss"],
            history["rows"],
            history.get("val_score"),
            progress.epochs,
            progress.stopped,
        )

    return run


@partial(jax.jit, static_argnums=(0, 1))
def _first(sizes: tuple[int, ...], optimizer: Function, numbers: Numbers, keys: Array) -> Any:
    """Keys [seeds] -> the states before the first step, [seeds, ...]."""

    def one(key: Array) -> TrainState:
        step = make_train_step(_no_loss, optimizer(numbers.learning_rate), nonfinite="ignore")
        return step.init(mlp_init(key, sizes))

    return jax.vmap(one)(keys)


def _no_loss(params: Params, batch: Any, key: Array) -> Array:
    raise NotImplementedError


def _step(plan: Plan, numbers: Numbers) -> Step:
    def loss_fn(
        params: Params, batch: tuple[Array, Array], key: Array, mask: Array | None
    ) -> tuple[Array, Metrics]:
        x, y = batch
        outputs = mlp(params, x, activation=plan.activation)
        losses = _losses(plan, outputs, y)
        # scikit-learn divides the penalty by the rows of the batch, or the sum of their weights.
        rows = jnp.full((), x.shape[0], losses.dtype)
        rows = rows if mask is None else mask.sum(dtype=losses.dtype)
        penalty = jnp.asarray(numbers.alpha, losses.dtype) / (2 * rows) * l2(params)
        return losses + jnp.where(rows > 0, penalty, 0), {"rows": rows}

    optimizer = plan.optimizer(numbers.learning_rate)
    # Not "stop": parameters are looked at after the run, and the program compiles in half the time.
    return make_train_step(loss_fn, optimizer, nonfinite="ignore", aux=True)


def _losses(plan: Plan, outputs: Array, y: Array) -> Array:
    if plan.regression:
        return squared_error(outputs, y).sum(-1) / 2
    return cross_entropy(outputs, y)


def _validate(plan: Plan, ts: TrainState, rows: Rows) -> Metrics:
    outputs = mlp(ts.params, rows.x, activation=plan.activation)
    if plan.regression:
        return {"score": _r2(outputs, jnp.asarray(rows.y), rows.weights)}
    return {"score": weighted_mean(accuracy(outputs, rows.y), rows.weights)}


def _r2(predictions: Array, targets: Array, weights: Any) -> Array:
    """[rows, outputs], twice -> R2, the mean over outputs; 0 for a constant target, or 1."""

    def mean(values: Array) -> Array:
        return jax.vmap(lambda each: weighted_mean(each, weights), 1)(values)

    left = mean((targets - predictions) ** 2)
    spread = mean((targets - mean(targets)) ** 2)
    # The mean of equal numbers may be rounded, so the spread of a constant is not always 0.
    varies = (targets.max(0) > targets.min(0)) & (spread > 0)
    constant = (left == 0).astype(left.dtype)
    return jnp.where(varies, 1 - left / jnp.where(varies, spread, 1), constant).mean()


# --- its programs ---------------------------------------------------------------------------------


def train(
    who: str,
    plan: Plan,
    key: Array,
    seeds: int,
    starts: TrainState | None,
    rows: Rows,
    validation: Rows | None,
    numbers: Numbers,
) -> Trained:
    """The runs of all seeds, as one program: NumPy arrays, [seeds, ...]."""
    run, (init_key, fit_key) = run_of(plan), jax.random.split(key)
    if starts is None:
        starts = _first(plan.sizes, plan.optimizer, numbers, jax.random.split(init_key, seeds))
    shared = starts, rows, validation, numbers
    keys, member = jax.random.split(fit_key, seeds), np.arange(seeds, dtype=np.int32)
    if seeds == 1:  # a sweep of one would keep every device busy with it
        trained = fetch(_alone(plan)(keys[0], *shared, member[0]))
        return jax.tree.map(lambda leaf: leaf[None], trained)
    return fetch(sweep_with(who, run, keys, None, None, shared, _call, {"member": member}))


@lru_cache(maxsize=128)
def _alone(plan: Plan) -> Callable[..., Trained]:
    return jax.jit(run_of(plan))


def _call(run: Callable[..., Trained], key: Array, *shared: Any, member: Array) -> Trained:
    return run(key, *shared, member)


def predict(regression: bool, activation: Function, members: Params, x: np.ndarray) -> np.ndarray:
    """[rows, features] -> probabilities [rows, classes], or values [rows, outputs]: means of seeds.

    Rows are filled up to a power of two, and more than `WIDEST` go in parts, so that a net has a
    handful of programs for whatever number of rows.
    """
    parts = [x[start : start + WIDEST] for start in range(0, len(x), WIDEST)]
    program = partial(_predict, regression, activation, members)
    found = [fetch(program(_filled(part)))[: len(part)] for part in parts]
    return np.concatenate(found)


def _filled(x: np.ndarray) -> np.ndarray:
    size = NARROWEST
    while size < len(x):
        size *= 2
    return np.pad(x, [(0, size - len(x)), (0, 0)])


@partial(jax.jit, static_argnums=(0, 1))
def _predict(regression: bool, activation: Function, members: Params, x: Array) -> Array:
    def apply(params: Params, x: Any) -> Array:
        outputs = mlp(params, x, activation=activation)
        return outputs if regression else softmax(outputs)

    if len(jax.tree.leaves(members)[0]) == 1:
        return apply(jax.tree.map(lambda leaf: leaf[0], members), x)
    return ensemble(apply, members, x, outputs="values").mean
