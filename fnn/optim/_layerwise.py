"""Optimizers whose step is as long as the array it moves: LARS and LAMB.

Each rule is a formula for one array, p <- p - step, and stands above the optimizer that offers it.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import abs_square, global_norm, real_dtype, safe_divide, safe_sqrt
from fnn.optim._lifting import (
    Number,
    Optimizer,
    Rate,
    bias_correction,
    check_decays,
    check_hyper,
    lift,
    of_squares,
)


def _scaled(p: Array, u: Array, trust: Number = 1.0, eps: Number = 0.0) -> Array:
    """u times trust norm(p) / (norm(u) + eps); u as it is if one of the norms is 0."""
    length, norm = (global_norm(x).astype(real_dtype(x.dtype)) for x in (p, u))
    moves = (length > 0) & (norm > 0)
    ratio = trust * safe_divide(length, jnp.where(moves, norm, 1) + eps)
    return jnp.where(moves, ratio, 1) * u


def _lars(
    g: Array,
    t: Array,
    rate: Number,
    trace: Array,
    p: Array,
    weight_decay: Number,
    decay: Number,
    trust: Number,
    eps: Number,
    *,
    nesterov: bool,
) -> tuple[Array, dict[str, Array]]:
    step = rate * _scaled(p, g + weight_decay * p, trust, eps)
    trace = decay * trace + step
    return (decay * trace + step if nesterov else trace), {"trace": trace}


def lars(
    learning_rate: Rate,
    weight_decay: Rate = 0.0,
    mask: Any = None,
    *,
    decay: ArrayLike = 0.9,
    trust: ArrayLike = 1e-3,
    eps: ArrayLike = 0.0,
    nesterov: bool = False,
) -> Optimizer:
    """You et al. 2017: momentum for large batches; a step's length follows the array's length.

    u = g + weight_decay p; v <- decay v + rate trust norm(p) / (norm(u) + eps) u; p <- p - v. The
    norms are over one array; if one of them is 0, u is not scaled. v is "trace" in the state. With
    `nesterov`: p <- p - (decay v + the new part of v). This is Optax's definition, but for the
    default mask; its names are trust_coefficient and momentum. The paper divides by norm(g) +
    weight_decay norm(p). `mask` as in `adamw`. Authors give biases and norm scales momentum alone,
    as ``by_path({"**/w": lars(1.0), "**": momentum(0.1)})`` does. Memory: one array a parameter.
    """
    check_decays("lars", decay=decay)
    check_hyper("lars", "trust", trust, 0)
    check_hyper("lars", "eps", eps, 0)
    return lift(
        "lars",
        partial(_lars, nesterov=nesterov),
        {"trace": 0.0},
        learning_rate,
        {"decay": decay, "trust": trust, "eps": eps},
        weight_decay=weight_decay,
        mask=mask,
        uses_params=True,
        decay_inside=True,
    )


def _lamb(
    g: Array,
    t: Array,
    rate: Number,
    mu: Array,
    nu: Array,
    p: Array,
    weight_decay: Number,
    b1: Number,
    b2: Number,
    eps: Number,
) -> tuple[Array, dict[str, Array]]:
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * abs_square(g)
    mu_hat, nu_hat = mu * bias_correction(b1, t), nu * bias_correction(b2, t)
    u = safe_divide(mu_hat, safe_sqrt(nu_hat) + eps) + weight_decay * p
    return rate * _scaled(p, u), {"mu": mu, "nu": nu}


def lamb(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-6,
    weight_decay: Rate = 0.0,
    mask: Any = None,
) -> Optimizer:
    """You et al. 2020: Adam for large batches; a step's length is the array's length times rate.

    u = mu_hat / (sqrt(nu_hat) + eps) + weight_decay p, of Adam's mu_hat and nu_hat;
    p <- p - rate norm(p) / norm(u) u. The norms are over one array; if one of them is 0, u is not
    scaled. This is the paper's with phi(z) = z, and Optax's but for the default mask. Keras has eps
    1e-7, and its decay is not in u. `mask` as in `adamw`. Memory: two arrays a parameter.
    """
    check_decays("lamb", b1=b1, b2=b2)
    check_hyper("lamb", "eps", eps, 0)
    return lift(
        "lamb",
        _lamb,
        {"mu": 0.0, "nu": of_squares(0.0)},
        learning_rate,
        {"b1": b1, "b2": b2, "eps": eps},
        weight_decay=weight_decay,
        mask=mask,
        uses_params=True,
        decay_inside=True,
    )
