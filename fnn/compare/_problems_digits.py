"""Problems on the digits, and the spirals: a network, a convex problem, an autoencoder."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base import AnyArray, Data, Params
from fnn.compare._problem import Parts, Problem, loss_as_scores
from fnn.data import datasets, spirals
from fnn.nn import (
    accuracy,
    cross_entropy,
    dense,
    kaiming_normal,
    mlp,
    mlp_init,
    squared_error,
    tanh,
)

# --- classifiers --------------------------------------------------------------------------------


def logits_scores(apply: Any, params: Params, batch: Data) -> dict[str, Array]:
    """Accuracy and cross entropy, [rows]."""
    x, labels = batch
    logits = apply(params, x)
    return {"accuracy": accuracy(logits, labels), "loss": cross_entropy(logits, labels)}


def logits_loss(apply: Any, params: Params, batch: Data, _: Array) -> Array:
    """Cross entropy, [rows]."""
    x, labels = batch
    return cross_entropy(apply(params, x), labels)


def classifier(apply: Any) -> dict[str, Any]:
    """The loss and the scores of a network, apply(params, x) -> logits [rows, classes]."""
    judged = {"score": "accuracy", "better": "higher"}
    return judged | {"loss": partial(logits_loss, apply), "scores": partial(logits_scores, apply)}


def digits_problem(hidden: tuple[int, ...] = (128, 128)) -> Problem:
    """Handwritten digits, 8 x 8 pixels: 1,077 rows to train, 360 to validate, 360 to test."""
    return Problem(
        name="digits",
        data=_digits,
        init=partial(mlp_init, sizes=(64, *hidden, 10), w_init=kaiming_normal),
        **classifier(mlp),
        target=0.97,
        about="A relu network on handwritten digits of 8 x 8 pixels (UCI, 1998).",
    )


@cache
def _digits() -> Parts:
    return Parts(*datasets.digits())


@cache
def _spirals() -> Parts:
    """2,000 rows to train, 2,000 to validate, 20,000 to test."""
    draw = jax.jit(partial(spirals, rows=24_000, classes=3, noise=0.2))
    with jax.ensure_compile_time_eval():  # it may be asked for while a run is traced
        x, labels = map(np.asarray, draw(jax.random.key(0)))
    parts = slice(2000), slice(2000, 4000), slice(4000, None)
    return Parts(*((x[part], labels[part]) for part in parts))


SPIRALS = Problem(
    name="spirals",
    data=_spirals,
    init=partial(mlp_init, sizes=(2, 64, 64, 3), w_init=kaiming_normal),
    **classifier(mlp),
    epochs=50,
    target=0.95,
    about="A relu network on three noisy spirals; 20,000 test rows tell rules apart that"
    " differ by half a per cent.",
)

# --- a convex problem ---------------------------------------------------------------------------

L2 = 1e-3


@cache
def _logistic_rows() -> Parts:
    train = datasets.digits().train
    return Parts(train, train, train)


def _logistic_init(key: Array) -> Params:
    return {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}


def _logistic_loss(params: Params, batch: Data, _: Array) -> Array:
    x, labels = batch
    square = jnp.sum(params["w"] ** 2) + jnp.sum(params["b"] ** 2)
    return cross_entropy(dense(params, x), labels) + 0.5 * L2 * square


LOGISTIC = Problem(
    name="logistic",
    data=_logistic_rows,
    init=_logistic_init,
    loss=_logistic_loss,
    scores=loss_as_scores(_logistic_loss),
    rates=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    target=0.27,
    # By Newton's method in float64; tests/compare/test_problems.py finds it again.
    optimum=0.2621451076273032,
    about="Logistic regression on the digits with 0.0005 |params|^2: strictly convex."
    " Its three parts are the same rows, so the score is how low the loss itself comes.",
)

# --- an autoencoder -----------------------------------------------------------------------------

CODE = (64, 32, 16, 8, 16, 32, 64)


@cache
def _pixels() -> Parts:
    return Parts(*(x for x, _ in datasets.digits()))


def _autoencoder_init(key: Array) -> Params:
    return mlp_init(key, CODE)


def _autoencoder_loss(params: Params, x: AnyArray, _: Array) -> Array:
    return jnp.sum(squared_error(mlp(params, x, activation=tanh), x), axis=-1)


AUTOENCODER = Problem(
    name="autoencoder",
    data=_pixels,
    init=_autoencoder_init,
    loss=_autoencoder_loss,
    scores=loss_as_scores(_autoencoder_loss),
    epochs=50,
    rates=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    target=1.8,
    about="A tanh autoencoder of the digits, 64-32-16-8-16-32-64; the squared error of an"
    " image (after Hinton & Salakhutdinov 2006).",
)
