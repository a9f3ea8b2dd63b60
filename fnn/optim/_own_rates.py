"""Optimizers that find the length of a step for each number by themselves: Adadelta and Rprop.

Each rule is a formula for one array, p <- p - step, and stands above the optimizer that offers it.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import abs_square, check_range, safe_divide, safe_sqrt
from fnn.optim._lifting import (
    Number,
    Optimizer,
    Rate,
    check_decays,
    check_hyper,
    lift,
    of_squares,
)


def _adadelta(
    g: Array, t: Array, rate: Number, nu: Array, delta: Array, decay: Number, eps: Number
) -> tuple[Array, dict[str, Array]]:
    nu = decay * nu + (1 - decay) * abs_square(g)
    u = safe_divide(safe_sqrt(delta + eps) * g, safe_sqrt(nu + eps))
    delta = decay * delta + (1 - decay) * abs_square(u)
    return rate * u, {"nu": nu, "delta": delta}


def adadelta(learning_rate: Rate = 1.0, decay: ArrayLike = 0.9, eps: ArrayLike = 1e-6) -> Optimizer:
    """Zeiler 2012: p <- p - rate u; u = sqrt(delta + eps) / sqrt(nu + eps) g.

    nu <- decay nu + (1 - decay) |g|^2, before u; delta <- decay delta + (1 - decay) |u|^2, after.
    u has the unit of p, so the paper has no rate, which is 1, and decay 0.95. It starts slowly: the
    first u are about sqrt(eps). Optax, PyTorch and Keras (rate 1e-3, decay 0.95, eps 1e-7) have
    this definition; the defaults are Optax's and PyTorch's, who call the decay rho. Memory: two
    arrays a parameter.
    """
    check_decays("adadelta", decay=decay)
    check_hyper("adadelta", "eps", eps, 0)
    start = {"nu": of_squares(0.0), "delta": of_squares(0.0)}
    return lift("adadelta", _adadelta, start, learning_rate, {"decay": decay, "eps": eps})


def _rprop(
    g: Array,
    t: Array,
    rate: Number,
    size: Array,
    last: Array,
    shrink: Number,
    grow: Number,
    smallest: Number,
    largest: Number,
) -> tuple[Array, dict[str, Array]]:
    if jnp.iscomplexobj(g):
        raise TypeError("rprop: a parameter is complex, expected real ones: only a sign counts")
    sign = jnp.sign(g)
    same, turned = sign * last > 0, sign * last < 0
    factor = jnp.where(same, grow, jnp.where(turned, shrink, 1))
    size = jnp.clip(size * factor, smallest, largest)
    last = jnp.where(turned, 0, sign)
    return last * size, {"size": size, "last": last}


def rprop(
    learning_rate: ArrayLike,
    shrink: ArrayLike = 0.5,
    grow: ArrayLike = 1.2,
    smallest: ArrayLike = 1e-6,
    largest: ArrayLike = 50.0,
) -> Optimizer:
    """Riedmiller & Braun 1993, for whole batches: only the sign of a gradient counts.

    Each number has a step of its own, "size", which starts at `learning_rate` and stays between
    `smallest` and `largest`. While the sign of its gradient stays, size <- grow size; where it
    turns, size <- shrink size, and this step is 0; p <- p - sign(g) size. After a turn, and
    where a gradient is 0, the next step keeps its size. This is PyTorch's definition, with its
    defaults (rate 0.01). Optax 0.2.8 takes each step one update late, and its first is 0. Real
    parameters only. Memory: two arrays a parameter.
    """
    if callable(learning_rate):
        raise TypeError("rprop: learning_rate is a function, expected a number: it is a start")
    check_hyper("rprop", "shrink", shrink, 0, 1)
    check_range("rprop", "grow", grow, 1)
    check_hyper("rprop", "smallest", smallest, 0)
    check_hyper("rprop", "largest", largest, 0)
    hyper = {"shrink": shrink, "grow": grow, "smallest": smallest, "largest": largest}
    start = {"size": learning_rate, "last": 0.0}
    return lift("rprop", _rprop, start, learning_rate, hyper)
