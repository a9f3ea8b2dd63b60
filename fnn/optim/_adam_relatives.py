"""Relatives of Adam with another second moment: AdaMax, RAdam, AdaBelief.

Each rule is a formula for one array, p <- p - step, and stands above the optimizer that offers it.
"""

import math
from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import abs_square, safe_divide, safe_sqrt
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


def _adamax(
    g: Array,
    t: Array,
    rate: Number,
    mu: Array,
    nu: Array,
    b1: Number,
    b2: Number,
    eps: Number,
    *,
    eps_inside: bool,
) -> tuple[Array, dict[str, Array]]:
    mu = b1 * mu + (1 - b1) * g
    nu = jnp.maximum(b2 * nu, jnp.abs(g) + eps if eps_inside else jnp.abs(g))
    divisor = nu if eps_inside else nu + eps
    return rate * safe_divide(mu * bias_correction(b1, t), divisor), {"mu": mu, "nu": nu}


def adamax(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    eps_inside: bool = True,
) -> Optimizer:
    """Kingma & Ba 2015, algorithm 2: p <- p - rate mu / (1 - b1^t) / nu.

    mu <- b1 mu + (1 - b1) g; nu <- max(b2 nu, |g| + eps), the largest gradient of late. Where nu is
    0 the step is 0. Without `eps_inside`, as in Keras (1e-7), nu <- max(b2 nu, |g|), and the
    divisor is nu + eps. The paper has no eps. Optax and PyTorch (rate 2e-3) have it inside. Memory:
    two arrays a parameter.
    """
    check_decays("adamax", b1=b1, b2=b2)
    check_hyper("adamax", "eps", eps, 0)
    rule = partial(_adamax, eps_inside=eps_inside)
    start = {"mu": 0.0, "nu": of_squares(0.0)}
    return lift("adamax", rule, start, learning_rate, {"b1": b1, "b2": b2, "eps": eps})


def _radam(
    g: Array,
    t: Array,
    rate: Number,
    mu: Array,
    nu: Array,
    b1: Number,
    b2: Number,
    eps: Number,
    threshold: Number,
    *,
    eps_hat: bool,
) -> tuple[Array, dict[str, Array]]:
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * abs_square(g)
    mu_hat, factor = mu * bias_correction(b1, t), bias_correction(b2, t)
    root = safe_sqrt(nu * factor) + (eps * jnp.sqrt(factor) if eps_hat else eps)
    rho, end = _length_of_average(b2, t), 2 / (1 - b2) - 1
    rectified = safe_divide((rho - 4) * (rho - 2) * end, (end - 4) * (end - 2) * rho)
    adaptive = safe_sqrt(rectified) * safe_divide(mu_hat, root)
    return rate * jnp.where(rho >= threshold, adaptive, mu_hat), {"mu": mu, "nu": nu}


def radam(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    threshold: ArrayLike = 5.0,
    *,
    eps_hat: bool = False,
) -> Optimizer:
    """Liu et al. 2020, rectified Adam: p <- p - rate r mu_hat / (sqrt(nu_hat) + eps).

    mu_hat and nu_hat are Adam's. r = sqrt((rho - 4) (rho - 2) end / ((end - 4) (end - 2) rho));
    rho = end - 2 t b2^t / (1 - b2^t), the number of gradients in the average at t; end =
    2 / (1 - b2) - 1. While rho < `threshold` the step is rate mu_hat: with few gradients nu_hat is
    noise. The paper's threshold is 4, the authors' code, Optax and PyTorch have 5.

    - `eps_hat`: eps is added before nu is corrected, as in PyTorch and the authors' code.

    rho is exact to float32's last digits; Optax's is off by up to 0.04 at b2 = 0.999. Memory: two
    arrays a parameter.
    """
    check_decays("radam", b1=b1, b2=b2)
    check_hyper("radam", "eps", eps, 0)
    check_hyper("radam", "threshold", threshold, 4)
    rule = partial(_radam, eps_hat=eps_hat)
    hyper = {"b1": b1, "b2": b2, "eps": eps, "threshold": threshold}
    return lift("radam", rule, {"mu": 0.0, "nu": of_squares(0.0)}, learning_rate, hyper)


def _length_of_average(b: Number, t: Array) -> Array:
    """2 / (1 - b) - 1 - 2 t b^t / (1 - b^t), which is about t while t is small.

    As written it is a difference of numbers about 2 / (1 - b), which leaves float32 three digits.
    With c = -log(b) it is (2 / (1 - b) - 1 - 2 / c) + (2 / c) (1 - x / (e^x - 1)) at x = c t, and
    each of the two is a series where it is small.
    """
    positive = b > 0
    if isinstance(b, float):
        # In float64, where the plain difference is good enough.
        c = -math.log(b if positive else 0.5)
        rest = 2 / (1 - b) - 1 - 2 / c
    else:
        gap = 1 - jnp.where(positive, b, 0.5)
        c = -jnp.log1p(-gap)
        series = gap * (1 / 6 + gap * (1 / 12 + gap * (19 / 360 + gap * 3 / 80)))
        rest = jnp.where(gap < 0.1, series, 2 / gap - 1 - 2 / c)
    x = c * t
    small = jnp.minimum(x, 0.5)
    s = small * small
    series = small / 2 - s * (
        1 / 12 - s * (1 / 720 - s * (1 / 30240 - s * (1 / 1209600 - s / 47900160)))
    )
    large = jnp.clip(x, 0.5, 80)
    length = rest + 2 / c * jnp.where(x < 0.5, series, 1 - large / jnp.expm1(large))
    return jnp.where(positive, length, 1)


def _adabelief(
    g: Array,
    t: Array,
    rate: Number,
    mu: Array,
    nu: Array,
    b1: Number,
    b2: Number,
    eps: Number,
    eps_root: Number,
) -> tuple[Array, dict[str, Array]]:
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * abs_square(g - mu) + eps_root
    mu_hat, nu_hat = mu * bias_correction(b1, t), nu * bias_correction(b2, t)
    return rate * safe_divide(mu_hat, safe_sqrt(nu_hat) + eps), {"mu": mu, "nu": nu}


def adabelief(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-16,
    *,
    eps_root: ArrayLike = 1e-16,
) -> Optimizer:
    """Zhuang et al. 2020: p <- p - rate mu_hat / (sqrt(nu_hat) + eps).

    mu <- b1 mu + (1 - b1) g; nu <- b2 nu + (1 - b2) |g - mu|^2 + eps_root, the square of the
    surprise; mu_hat = mu / (1 - b1^t), nu_hat = nu / (1 - b2^t). This is the definition and the
    defaults of Optax and of the authors' PyTorch code, which calls both numbers eps. Memory: two
    arrays a parameter.
    """
    check_decays("adabelief", b1=b1, b2=b2)
    check_hyper("adabelief", "eps", eps, 0)
    check_hyper("adabelief", "eps_root", eps_root, 0)
    hyper = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    start = {"mu": 0.0, "nu": of_squares(0.0)}
    return lift("adabelief", _adabelief, start, learning_rate, hyper)
