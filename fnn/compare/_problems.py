"""The problems that come with ``fnn compare``, by name, and the one of a user's file.

    PROBLEMS                                {name: Problem}
    problem_of("digits"), problem_of("my_problem.py") -> Problem
    fingerprint(problem)                    in _problem.py, as is `Problem` itself

How one member is trained is in _member.py.
"""

import difflib
import os
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base import AnyArray, Data, Params
from fnn.compare._problem import (
    WHO,
    Parts,
    Problem,
    fingerprint,
    loss_as_scores,
    problem_from,
)
from fnn.data import datasets, spirals
from fnn.nn import (
    accuracy,
    conv,
    conv_init,
    cross_entropy,
    dense,
    dense_init,
    embed,
    embed_init,
    kaiming_normal,
    lstm,
    lstm_init,
    max_pool,
    mlp,
    mlp_init,
    relu,
    squared_error,
    tanh,
)

__all__ = ["PROBLEMS", "Parts", "Problem", "digits_problem", "fingerprint", "problem_of"]


def problem_of(name: str) -> Problem:
    """The problem of that name; if the name ends in .py, the problem that this file defines.

    ValueError, one sentence: there is no such name or file, the file does not import, or what it
    defines cannot be trained.
    """
    if name in PROBLEMS:
        return PROBLEMS[name]
    if name.endswith(".py"):
        return problem_from(Path(name))
    close = difflib.get_close_matches(name, PROBLEMS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(
        f"{WHO}: unknown problem {name!r}, expected a Python file or one of:"
        f" {', '.join(PROBLEMS)}{hint}"
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


def mlp_params(sizes: tuple[int, ...], key: Array) -> Params:
    """Parameters of a relu network."""
    return mlp_init(key, sizes, w_init=kaiming_normal)


def digits_problem(hidden: tuple[int, ...] = (128, 128)) -> Problem:
    """Handwritten digits, 8 x 8 pixels: 1,077 rows to train, 360 to validate, 360 to test."""
    return Problem(
        name="digits",
        data=_digits,
        init=partial(mlp_params, (64, *hidden, 10)),
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


# --- sums of squares and a convex problem -------------------------------------------------------

DIM = 100


@cache
def quadratic_hessian() -> np.ndarray:
    """H, float64 [100, 100]: the fixed Hessian of DeepOBS's `quadratic_deep`.

    H = R^T diag(e) R with 90 eigenvalues from 0 to 1 and 10 from 30 to 60. Everything is drawn from
    RandomState(42), the eigenvalues first. R is a random rotation, built up from two dimensions by
    Householder reflections (the subgroup algorithm of Diaconis & Shahshahani 1987).
    """
    draw = np.random.RandomState(42)
    e = np.concatenate([draw.uniform(0, 1, 90), draw.uniform(30, 60, 10)])
    angle = draw.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for dim in range(3, DIM + 1):
        v = draw.normal(size=dim)
        v /= np.linalg.norm(v)
        mirror = np.eye(dim)[0] - v
        mirror /= np.linalg.norm(mirror)
        larger = np.eye(dim)
        larger[1:, 1:] = rotation
        rotation = larger - 2 * np.outer(mirror, mirror @ larger)
    return rotation.T @ np.diag(e) @ rotation  # R and -R give the same H


@cache
def _quadratic_rows() -> Parts:
    """1,000 rows to train, 896 to validate and to test: DeepOBS counts seven whole batches."""

    def rows(seed: int, n: int) -> np.ndarray:
        return np.random.RandomState(seed).normal(0, 0.6, (1000, DIM))[:n].astype(np.float32)

    return Parts(rows(42, 1000), rows(44, 896), rows(43, 896))


def _quadratic_init(key: Array) -> Params:
    return {"p": jnp.ones(DIM)}


def _quadratic_loss(params: Params, x: AnyArray, _: Array) -> Array:
    away = params["p"] - x
    return 0.5 * jnp.sum(away * (away @ jnp.asarray(quadratic_hessian(), away.dtype)), axis=-1)


L2 = 1e-3
# By Newton's method in float64; tests/compare/test_problems.py finds it again.
LOGISTIC_OPTIMUM = 0.2621451076273032


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


# --- two valleys --------------------------------------------------------------------------------


def _rosenbrock(x: Array, y: Array) -> Array:
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _beale(x: Array, y: Array) -> Array:
    return (1.5 - x * (1 - y)) ** 2 + (2.25 - x * (1 - y**2)) ** 2 + (2.625 - x * (1 - y**3)) ** 2


def _valley(
    name: str, f: Any, start: tuple[float, float], least: tuple[float, float], **more: Any
) -> Problem:
    """A function of two numbers: f(p) = 0 at `least`; runs start at `start` plus noise of 0.1."""

    def init(key: Array) -> Params:
        return {"p": jnp.asarray(start) + 0.1 * jax.random.normal(key, (2,))}

    def loss(params: Params, batch: None, key: Array) -> Array:
        return f(params["p"][0], params["p"][1])

    def scores(params: Params, batch: None) -> dict[str, Array]:
        away = params["p"] - jnp.asarray(least, params["p"].dtype)
        value = f(params["p"][0], params["p"][1])
        return {"distance": jnp.sqrt(jnp.sum(away**2))[None], "loss": value[None]}

    return Problem(
        name=name,
        data=lambda: Parts(None, None, None),
        init=init,
        loss=loss,
        scores=scores,
        score="distance",
        target=0.01,
        optimum=0.0,
        batch_size=1,
        **more,
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


# --- larger nets, on files in FNN_DATA -----------------------------------------------------------


def _check_available(problem: str, name: str, call: str, split: Any = None) -> None:
    """ValueError if a data set is not there: a comparison downloads nothing by itself."""
    if not datasets.available(name, split):
        folder = os.environ.get("FNN_DATA") or "~/.cache/fnn"
        raise ValueError(
            f"{WHO}: {problem} needs data that are not in {folder} (FNN_DATA);"
            f" fnn.datasets.{call} downloads them"
        )


@cache
def _mnist_rows() -> Parts:
    """MNIST's 10,000 test images, shuffled: 5,000 to train, 1,000 to validate, 4,000 to test.

    They are shuffled because the second half of the file is by other writers than the first.
    """
    _check_available("mnist_cnn", "mnist", 'mnist("test")', "test")
    x, labels = datasets.mnist("test")
    order = np.random.RandomState(0).permutation(len(x))
    parts = order[:5000], order[5000:6000], order[6000:]
    return Parts(*((x[part], labels[part]) for part in parts))


def _cnn_init(key: Array) -> Params:
    k1, k2, k3, k4 = jax.random.split(key, 4)
    return {
        "conv_1": conv_init(k1, 1, 16, 5),
        "conv_2": conv_init(k2, 16, 32, 3),
        "hidden": dense_init(k3, 7 * 7 * 32, 64),
        "logits": dense_init(k4, 64, 10),
    }


def _cnn(params: Params, x: AnyArray) -> Array:
    h = max_pool(relu(conv(params["conv_1"], x)), 2)  # [batch, 14, 14, 16]
    h = max_pool(relu(conv(params["conv_2"], h)), 2)  # [batch, 7, 7, 32]
    h = relu(dense(params["hidden"], h.reshape(len(h), -1)))
    return dense(params["logits"], h)


CHARACTERS = 65  # different ones in the text
PIECE = 64  # characters of a row, and the one after them


@cache
def _shakespeare_rows() -> Parts:
    """Pieces of the first 80 %, the next 10 % and the last 10 % of the text, int32 [rows, 65]."""
    _check_available("shakespeare_lstm", "shakespeare", "shakespeare()")
    text = datasets.shakespeare()
    ids = datasets.encode(text, datasets.vocabulary(text))
    parts = np.split(ids, [8 * len(ids) // 10, 9 * len(ids) // 10])
    pieces = np.lib.stride_tricks.sliding_window_view
    return Parts(*(pieces(part, PIECE + 1)[::PIECE].copy() for part in parts))


def _lstm_init(key: Array) -> Params:
    k1, k2, k3 = jax.random.split(key, 3)
    return {
        "embed": embed_init(k1, CHARACTERS, 32),
        "layer": lstm_init(k2, 32, 128),
        "logits": dense_init(k3, 128, CHARACTERS),
    }


def _lstm_loss(params: Params, ids: AnyArray, _: Array) -> Array:
    hs: Any = lstm(params["layer"], embed(params["embed"], ids[:, :-1]))[1]
    return jnp.mean(cross_entropy(dense(params["logits"], hs), ids[:, 1:]), axis=-1)


PROBLEMS = {
    problem.name: problem
    for problem in (
        digits_problem(),
        Problem(
            name="logistic",
            data=_logistic_rows,
            init=_logistic_init,
            loss=_logistic_loss,
            scores=loss_as_scores(_logistic_loss),
            rates=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
            target=0.27,
            optimum=LOGISTIC_OPTIMUM,
            about="Logistic regression on the digits with 0.0005 |params|^2: strictly convex."
            " Its three parts are the same rows, so the score is how low the loss itself comes.",
        ),
        Problem(
            name="spirals",
            data=_spirals,
            init=partial(mlp_params, (2, 64, 64, 3)),
            **classifier(mlp),
            epochs=50,
            target=0.95,
            about="A relu network on three noisy spirals; 20,000 test rows tell rules apart that"
            " differ by half a per cent.",
        ),
        Problem(
            name="quadratic_deep",
            data=_quadratic_rows,
            init=_quadratic_init,
            loss=_quadratic_loss,
            scores=loss_as_scores(_quadratic_loss),
            epochs=100,
            batch_size=128,
            tail="drop",
            target=90.0,
            optimum=86.8735269328077,  # at the mean of the test rows
            about="0.5 (p - x)^T H (p - x) with noisy x and 100 dimensions, 10 of them steep"
            " (DeepOBS, Schneider, Balles, Hennig 2019; its eigenvalues are like those that"
            " Chaudhari et al. 2017 saw in networks).",
        ),
        _valley(
            "rosenbrock",
            _rosenbrock,
            start=(-1.2, 1.0),
            least=(1.0, 1.0),
            rates=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
            epochs=20,
            about="(1 - x)^2 + 100 (y - x^2)^2 from near (-1.2, 1) to (1, 1), a curved valley"
            " (Rosenbrock 1960); the score is the distance.",
        ),
        _valley(
            "beale",
            _beale,
            start=(1.0, 1.0),
            least=(3.0, 0.5),
            epochs=10,
            about="Beale's function from near (1, 1) to (3, 0.5), steep and flat (Beale 1958; as in"
            " More, Garbow, Hillstrom 1981); the score is the distance.",
        ),
        Problem(
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
        ),
        Problem(
            name="mnist_cnn",
            data=_mnist_rows,
            init=_cnn_init,
            **classifier(_cnn),
            epochs=5,
            target=0.97,
            about="Two convolutional and two dense layers on MNIST's 10,000 test images, half of"
            " them to train.",
        ),
        Problem(
            name="shakespeare_lstm",
            data=_shakespeare_rows,
            init=_lstm_init,
            loss=_lstm_loss,
            scores=loss_as_scores(_lstm_loss),
            epochs=1,
            batch_size=32,
            target=2.0,
            about="An LSTM of 128 units on the characters of Tiny Shakespeare; the loss of the next"
            " character, in nats.",
        ),
    )
}
