"""Optimizers that divide the gradient by the root of its squares: Adagrad and RMSProp.

Each rule is a formula for one array, p <- p - step, and stands above the optimizer that offers it.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import abs_square, safe_divide, safe_sqrt
from fnn.optim._lifting import (
    Number,
    Optimizer,
    Rate,
    Start,
    check_decays,
    check_hyper,
    lift,
    of_squares,
)


def _adagrad(
    g: Array, t: Array, rate: Number, sum_of_squares: Array, eps: Number, *, eps_inside: bool
) -> tuple[Array, dict[str, Array]]:
    s = sum_of_squares + abs_square(g)
    return rate * safe_divide(g, _root(s, eps, eps_inside)), {"sum_of_squares": s}


def adagrad(
    learning_rate: Rate,
    initial_accumulator: ArrayLike = 0.1,
    eps: ArrayLike = 1e-7,
    *,
    eps_inside: bool = True,
) -> Optimizer:
    """Duchi et al. 2011, diagonal: s <- s + |g|^2; p <- p - rate g / sqrt(s + eps).

    s, "sum_of_squares" in the state, starts at `initial_accumulator`. Without `eps_inside` the
    divisor is sqrt(s) + eps. Where the divisor is 0 the step is 0. The defaults are Optax's, and
    Keras's except for its rate. The paper and PyTorch start at 0 with eps outside, so for small
    gradients their first steps are far larger. Memory: one array a parameter.
    """
    check_hyper("adagrad", "initial_accumulator", initial_accumulator, 0)
    check_hyper("adagrad", "eps", eps, 0)
    rule = partial(_adagrad, eps_inside=eps_inside)
    start = {"sum_of_squares": of_squares(initial_accumulator)}
    return lift("adagrad", rule, start, learning_rate, {"eps": eps})


def _rmsprop(
    g: Array, t: Array, rate: Number, nu: Array, decay: Number, eps: Number, *, eps_inside: bool
) -> tuple[Array, dict[str, Array]]:
    nu = decay * nu + (1 - decay) * abs_square(g)
    return rate * safe_divide(g, _root(nu, eps, eps_inside)), {"nu": nu}


def _rmsprop_extended(
    g: Array,
    t: Array,
    rate: Number,
    nu: Array,
    decay: Number,
    eps: Number,
    momentum: Number = 0.0,
    mu: Array | None = None,
    trace: Array | None = None,
    *,
    eps_inside: bool,
    rate_inside: bool,
) -> tuple[Array, dict[str, Array]]:
    """Centered if mu is remembered, with momentum if trace is."""
    nu = decay * nu + (1 - decay) * abs_square(g)
    new, square = {"nu": nu}, nu
    if mu is not None:
        new["mu"] = mu = decay * mu + (1 - decay) * g
        # A variance; only rounding could make it negative.
        square = jnp.maximum(nu - abs_square(mu), 0)
    step = safe_divide(g, _root(square, eps, eps_inside))
    if trace is None:
        return rate * step, new
    new["trace"] = trace = momentum * trace + (rate * step if rate_inside else step)
    return (trace if rate_inside else rate * trace), new


def rmsprop(
    learning_rate: Rate,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    *,
    eps_inside: bool = True,
    initial_scale: ArrayLike = 0.0,
    centered: bool = False,
    momentum: ArrayLike | None = None,
    rate_inside: bool = True,
) -> Optimizer:
    """Hinton's lecture 6e: nu <- decay nu + (1 - decay) |g|^2; p <- p - rate g / sqrt(nu + eps).

    nu starts at `initial_scale` (TensorFlow 1: 1) and has no bias correction.

    - `eps_inside`: without it the divisor is sqrt(nu) + eps.
    - `centered` (Graves 2013): the divisor uses nu - |mu|^2, the variance of the gradient, where
      mu is the average of the gradients.
    - `momentum`: the step s goes through trace <- momentum trace + rate s; p <- p - trace. Without
      `rate_inside`: trace <- momentum trace + s; p <- p - rate trace. They differ only while the
      rate changes.

    Optax and Keras (eps 1e-7) have eps and rate inside, PyTorch (decay 0.99) has both outside.
    Memory: one array a parameter; one more if centered, one more with momentum.
    """
    check_decays("rmsprop", decay=decay, momentum=momentum)
    check_hyper("rmsprop", "eps", eps, 0)
    check_hyper("rmsprop", "initial_scale", initial_scale, 0)
    start: dict[str, Start] = {"nu": of_squares(initial_scale)}
    hyper = {"decay": decay, "eps": eps}
    if not centered and momentum is None:
        rule = partial(_rmsprop, eps_inside=eps_inside)
        return lift("rmsprop", rule, start, learning_rate, hyper)
    if centered:
        start["mu"] = 0.0
    if momentum is not None:
        start["trace"], hyper["momentum"] = 0.0, momentum
    rule = partial(_rmsprop_extended, eps_inside=eps_inside, rate_inside=rate_inside)
    return lift("rmsprop", rule, start, learning_rate, hyper)


def _root(x: Array, eps: Number, eps_inside: bool) -> Array:
    return safe_sqrt(x + eps) if eps_inside else safe_sqrt(x) + eps
