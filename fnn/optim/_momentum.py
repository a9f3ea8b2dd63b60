"""Optimizers that follow the gradient, or an average of gradients: SGD, momentum, Nesterov, Lion.

Each rule is a formula for one array, p <- p - step, and stands above the optimizer that offers it.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from fnn.optim._lifting import (
    Number,
    Optimizer,
    Rate,
    check_decays,
    check_hyper,
    check_stored,
    lift,
)


def _sgd(g: Array, t: Array, rate: Number) -> tuple[Array, dict[str, Array]]:
    return rate * g, {}


def sgd(learning_rate: Rate) -> Optimizer:
    """Gradient descent: p <- p - rate g. No memory. All libraries agree."""
    return lift("sgd", _sgd, {}, learning_rate, {})


def _momentum(
    g: Array,
    t: Array,
    rate: Number,
    trace: Array,
    decay: Number,
    dampening: Number,
    *,
    nesterov: bool,
    dampen_first: bool,
    rate_inside: bool,
) -> tuple[Array, dict[str, Array]]:
    push = (1 - dampening) * g
    push = push if dampen_first else jnp.where(t == 1, g, push)
    push = rate * push if rate_inside else push
    trace = decay * trace + push
    step = push + decay * trace if nesterov else trace
    return (step if rate_inside else rate * step), {"trace": trace}


def momentum(
    learning_rate: Rate,
    decay: ArrayLike = 0.9,
    *,
    nesterov: bool = False,
    dampening: ArrayLike = 0.0,
    dampen_first: bool = True,
    rate_inside: bool = False,
    accumulator_dtype: DTypeLike | None = None,
) -> Optimizer:
    """Heavy ball (Polyak 1964): v <- decay v + (1 - dampening) g; p <- p - rate v.

    v is "trace" in the state.

    - `nesterov`: p <- p - rate ((1 - dampening) g + decay v). The parameters are the look-ahead
      point: Bengio et al. 2013 rewrite Sutskever et al. 2013 in this way.
    - `dampening`: with dampening = decay, v is the exponential average of the gradients. Without
      `dampen_first` the first gradient is not dampened, as in PyTorch.
    - `rate_inside`: v <- decay v + rate g; p <- p - v, as in the papers and Keras. Optax and
      PyTorch have the rate outside. The two differ only while the rate changes.
    - `accumulator_dtype`: the dtype that v is stored in, such as bfloat16; by default float32 at
      least.

    Memory: one array a parameter.
    """
    check_decays("momentum", decay=decay)
    check_hyper("momentum", "dampening", dampening, 0, 1)
    rule = partial(_momentum, nesterov=nesterov, dampen_first=dampen_first, rate_inside=rate_inside)
    hyper = {"decay": decay, "dampening": dampening}
    dtypes = {"trace": check_stored("momentum", "accumulator_dtype", accumulator_dtype)}
    return lift("momentum", rule, {"trace": 0.0}, learning_rate, hyper, dtypes=dtypes)


def nesterov(learning_rate: Rate, decay: ArrayLike = 0.9) -> Optimizer:
    """Nesterov's momentum: ``momentum(learning_rate, decay, nesterov=True)``."""
    return momentum(learning_rate, decay, nesterov=True)


def _lion(
    g: Array, t: Array, rate: Number, mu: Array, b1: Number, b2: Number
) -> tuple[Array, dict[str, Array]]:
    return rate * jnp.sign(b1 * mu + (1 - b1) * g), {"mu": b2 * mu + (1 - b2) * g}


def lion(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    weight_decay: Rate = 1e-3,
    mask: Any = None,
    *,
    mu_dtype: DTypeLike | None = None,
) -> Optimizer:
    """Chen et al. 2023: p <- p - rate (sign(b1 mu + (1 - b1) g) + weight_decay p).

    mu <- b2 mu + (1 - b2) g, after the step. Optax and Keras have the same definition; the default
    of `weight_decay` is Optax's. Every step is as large as the rate, so choose a rate 3 to 10
    times smaller than for Adam. `mask` as in `adamw`, `mu_dtype` as in `adam`. Memory: one array
    a parameter.
    """
    check_decays("lion", b1=b1, b2=b2)
    hyper = {"b1": b1, "b2": b2}
    dtypes = {"mu": check_stored("lion", "mu_dtype", mu_dtype)}
    decay = {"weight_decay": weight_decay, "mask": mask}
    return lift("lion", _lion, {"mu": 0.0}, learning_rate, hyper, **decay, dtypes=dtypes)
