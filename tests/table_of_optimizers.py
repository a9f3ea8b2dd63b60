"""One row an optimizer. `test_optimizers.py` holds every property against every row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fnn


class Row(NamedTuple):
    name: str
    arguments: dict[str, float]  # every numeric hyperparameter but the learning rate
    formula: Callable[..., np.ndarray]  # (rate, **arguments) -> step(p, g) -> p, in NumPy

    def make(self, learning_rate: Any, **changed: Any) -> fnn.Optimizer:
        return getattr(fnn, self.name)(learning_rate, **{**self.arguments, **changed})

    def make_optax(self, learning_rate: Any, **changed: Any) -> Any:
        make = getattr(fnn.optax_wrappers, self.name)
        return make(learning_rate, **{**self.arguments, **changed})


# The textbook, in float64, one array, written for this test alone.


def sgd(rate):
    return lambda p, g: p - rate * g


def momentum(rate, decay):
    v = 0

    def step(p, g):
        nonlocal v
        v = decay * v + g
        return p - rate * v

    return step


def nesterov(rate, decay):
    v = 0

    def step(p, g):
        nonlocal v
        v = decay * v + g
        return p - rate * (g + decay * v)

    return step


def adagrad(rate, initial_accumulator, eps):
    s = initial_accumulator

    def step(p, g):
        nonlocal s
        s = s + g * g
        return p - rate * g / np.sqrt(s + eps)

    return step


def rmsprop(rate, decay, eps):
    v = 0

    def step(p, g):
        nonlocal v
        v = decay * v + (1 - decay) * g * g
        return p - rate * g / np.sqrt(v + eps)

    return step


def adamw(rate, b1, b2, eps, weight_decay=0.0):
    m = v = t = 0

    def step(p, g):
        nonlocal m, v, t
        t += 1
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        direction = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        return p - rate * (direction + weight_decay * p)

    return step


def nadam(rate, b1, b2, eps):
    m = v = t = 0

    def step(p, g):
        nonlocal m, v, t
        t += 1
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        return p - rate * m_hat / (np.sqrt(v / (1 - b2**t)) + eps)

    return step


def lion(rate, b1, b2, weight_decay):
    m = 0

    def step(p, g):
        nonlocal m
        direction = np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g
        return p - rate * (direction + weight_decay * p)

    return step


OPTIMIZERS = [
    Row("sgd", {}, sgd),
    Row("momentum", {"decay": 0.9}, momentum),
    Row("nesterov", {"decay": 0.9}, nesterov),
    Row("adagrad", {"initial_accumulator": 0.1, "eps": 1e-7}, adagrad),
    Row("rmsprop", {"decay": 0.9, "eps": 1e-8}, rmsprop),
    Row("adam", {"b1": 0.9, "b2": 0.999, "eps": 1e-8}, adamw),
    Row("adamw", {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01}, adamw),
    Row("nadam", {"b1": 0.9, "b2": 0.999, "eps": 1e-8}, nadam),
    Row("lion", {"b1": 0.9, "b2": 0.99, "weight_decay": 0.01}, lion),
]
