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
        return getattr(fnn.optim, self.name)(learning_rate, **{**self.arguments, **changed})

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


def nadamw(rate, b1, b2, eps, weight_decay=0.0):
    m = v = t = 0

    def step(p, g):
        nonlocal m, v, t
        t += 1
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        return p - rate * (m_hat / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * p)

    return step


def adadelta(rate, decay, eps):
    v = d = 0

    def step(p, g):
        nonlocal v, d
        v = decay * v + (1 - decay) * g * g
        u = np.sqrt(d + eps) / np.sqrt(v + eps) * g
        d = decay * d + (1 - decay) * u * u
        return p - rate * u

    return step


def adamax(rate, b1, b2, eps):
    m = u = t = 0

    def step(p, g):
        nonlocal m, u, t
        t += 1
        m = b1 * m + (1 - b1) * g
        u = np.maximum(b2 * u, abs(g) + eps)
        return p - rate * m / (1 - b1**t) / u

    return step


def radam(rate, b1, b2, eps, threshold):
    m = v = t = 0
    end = 2 / (1 - b2) - 1

    def step(p, g):
        nonlocal m, v, t
        t += 1
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        direction = m / (1 - b1**t)
        rho = end - 2 * t * b2**t / (1 - b2**t)
        if rho >= threshold:
            r = (rho - 4) * (rho - 2) * end / ((end - 4) * (end - 2) * rho)
            direction = direction * np.sqrt(r) / (np.sqrt(v / (1 - b2**t)) + eps)
        return p - rate * direction

    return step


def adabelief(rate, b1, b2, eps, eps_root):
    m = s = t = 0

    def step(p, g):
        nonlocal m, s, t
        t += 1
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps_root
        return p - rate * m / (1 - b1**t) / (np.sqrt(s / (1 - b2**t)) + eps)

    return step


def lars(rate, weight_decay, decay, trust, eps):
    v = 0

    def step(p, g):
        nonlocal v
        u = g + weight_decay * p
        lengths = np.linalg.norm(p), np.linalg.norm(u)
        ratio = trust * lengths[0] / (lengths[1] + eps) if all(lengths) else 1
        v = decay * v + rate * ratio * u
        return p - v

    return step


def lamb(rate, b1, b2, eps, weight_decay):
    m = v = t = 0

    def step(p, g):
        nonlocal m, v, t
        t += 1
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * p
        lengths = np.linalg.norm(p), np.linalg.norm(u)
        return p - rate * (lengths[0] / lengths[1] if all(lengths) else 1) * u

    return step


def lion(rate, b1, b2, weight_decay):
    m = 0

    def step(p, g):
        nonlocal m
        direction = np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g
        return p - rate * (direction + weight_decay * p)

    return step


def ademamix(rate, b1, b2, b3, alpha, eps, weight_decay):
    fast = slow = v = t = 0

    def step(p, g):
        nonlocal fast, slow, v, t
        t += 1
        fast = b1 * fast + (1 - b1) * g
        slow = b3 * slow + (1 - b3) * g
        v = b2 * v + (1 - b2) * g * g
        direction = (fast / (1 - b1**t) + alpha * slow) / (np.sqrt(v / (1 - b2**t)) + eps)
        return p - rate * (direction + weight_decay * p)

    return step


def schedule_free_sgd(rate, b1, weight_decay):
    """At a constant rate every step has the same weight: x is the mean of all z."""
    z, zs = None, []

    def step(y, g):
        nonlocal z
        z = (y if z is None else z) - rate * (g + weight_decay * y)
        zs.append(z)
        return (1 - b1) * z + b1 * np.mean(zs, 0)

    return step


def schedule_free_adamw(rate, b1, b2, eps, weight_decay):
    v = t = 0
    walk = schedule_free_sgd(rate, b1, weight_decay)

    def step(y, g):
        nonlocal v, t
        t += 1
        v = b2 * v + (1 - b2) * g * g
        return walk(y, g / (np.sqrt(v / (1 - b2**t)) + eps))

    return step


def prodigy(rate, b1, b2, eps, weight_decay, d0, d_coef=1.0, correct=True):
    m = v = s = r = t = 0
    d, first = d0, None

    def step(p, g):
        nonlocal m, v, s, r, t, d, first
        t += 1
        first = p if first is None else first
        delta = d * rate * (np.sqrt(1 - b2**t) / (1 - b1**t) if correct else 1)
        m = b1 * m + (1 - b1) * d * g
        v = b2 * v + (1 - b2) * d * d * g * g
        r = b2**0.5 * r + d / d0 * delta * np.sum(g * (first - p))
        s = b2**0.5 * s + d / d0 * delta * g
        d = max(d, d_coef * r / np.sum(abs(s)))
        return p - delta * (m / (np.sqrt(v) + d * eps) + weight_decay * p)

    return step


ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
DECAYED = ADAM | {"weight_decay": 0.01}
OPTIMIZERS = [
    Row("sgd", {}, sgd),
    Row("momentum", {"decay": 0.9}, momentum),
    Row("nesterov", {"decay": 0.9}, nesterov),
    Row("adagrad", {"initial_accumulator": 0.1, "eps": 1e-7}, adagrad),
    Row("rmsprop", {"decay": 0.9, "eps": 1e-8}, rmsprop),
    Row("adam", ADAM, adamw),
    Row("adamw", DECAYED, adamw),
    Row("nadam", ADAM, nadamw),
    Row("nadamw", DECAYED, nadamw),
    Row("lion", {"b1": 0.9, "b2": 0.99, "weight_decay": 0.01}, lion),
    Row("ademamix", DECAYED | {"b3": 0.9999, "alpha": 5.0}, ademamix),
    Row("schedule_free_sgd", {"b1": 0.9, "weight_decay": 0.01}, schedule_free_sgd),
    Row("schedule_free_adamw", DECAYED, schedule_free_adamw),
    Row("prodigy", DECAYED | {"d0": 1e-2, "d_coef": 1.0}, prodigy),
    Row("adadelta", {"decay": 0.9, "eps": 1e-6}, adadelta),
    Row("adamax", ADAM, adamax),
    Row("radam", ADAM | {"threshold": 5.0}, radam),
    Row("adabelief", {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 1e-16}, adabelief),
    Row("lars", {"weight_decay": 0.01, "decay": 0.9, "trust": 1e-3, "eps": 1e-9}, lars),
    Row("lamb", DECAYED, lamb),
]
