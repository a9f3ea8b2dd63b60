"""Test functions: a noisy quadratic of 100 dimensions, and two valleys of two."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base import AnyArray, Params
from fnn.compare._problem import Parts, Problem, loss_as_scores

# --- sums of squares ----------------------------------------------------------------------------

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


QUADRATIC_DEEP = Problem(
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
)

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


ROSENBROCK = _valley(
    "rosenbrock",
    _rosenbrock,
    start=(-1.2, 1.0),
    least=(1.0, 1.0),
    rates=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    epochs=20,
    about="(1 - x)^2 + 100 (y - x^2)^2 from near (-1.2, 1) to (1, 1), a curved valley"
    " (Rosenbrock 1960); the score is the distance.",
)
BEALE = _valley(
    "beale",
    _beale,
    start=(1.0, 1.0),
    least=(3.0, 0.5),
    epochs=10,
    about="Beale's function from near (1, 1) to (3, 0.5), steep and flat (Beale 1958; as in"
    " More, Garbow, Hillstrom 1981); the score is the distance.",
)
