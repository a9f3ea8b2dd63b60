"""AdEMAMix: Adam with a fast and a slow average of the gradients.

The rule is a formula for one array, p <- p - step, and stands above the optimizer that offers it.
"""

import math
from typing import Any

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


def _ademamix(
    g: Array,
    t: Array,
    rate: Number,
    m1: Array,
    m2: Array,
    nu: Array,
    b1: Number,
    b2: Number,
    b3: Number,
    alpha: Number,
    eps: Number,
    b3_warmup: Number | None = None,
    alpha_warmup: Number | None = None,
) -> tuple[Array, dict[str, Array]]:
    m1 = b1 * m1 + (1 - b1) * g
    if b3_warmup is None:
        m2 = b3 * m2 + (1 - b3) * g
    else:
        s = _share(t, b3_warmup)
        log_b3 = jnp.minimum(1 / ((1 - s) / _log(b1) + s / _log(b3)), _log(b3))
        m2 = jnp.exp(log_b3) * m2 - jnp.expm1(log_b3) * g
    nu = b2 * nu + (1 - b2) * abs_square(g)
    if alpha_warmup is not None:
        alpha = alpha * _share(t, alpha_warmup)
    mixed = m1 * bias_correction(b1, t) + alpha * m2
    nu_hat = nu * bias_correction(b2, t)
    return rate * safe_divide(mixed, safe_sqrt(nu_hat) + eps), {"m1": m1, "m2": m2, "nu": nu}


def ademamix(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    b3: ArrayLike = 0.9999,
    alpha: ArrayLike = 5.0,
    eps: ArrayLike = 1e-8,
    weight_decay: Rate = 0.0,
    mask: Any = None,
    *,
    b3_warmup: ArrayLike | None = None,
    alpha_warmup: ArrayLike | None = None,
) -> Optimizer:
    """Pagliardini et al. 2024: AdamW whose direction also has a slow average of the gradients, m2.

    p <- p - rate ((m1 / (1 - b1^t) + alpha m2) / (sqrt(nu / (1 - b2^t)) + eps) + weight_decay p);
    m1 <- b1 m1 + (1 - b1) g; m2 <- b3 m2 + (1 - b3) g; nu <- b2 nu + (1 - b2) |g|^2. m2 is not
    corrected. The warm-ups, in steps, are T in s = min(t / T, 1):

    - `alpha_warmup`: alpha s replaces alpha.
    - `b3_warmup`: b_t replaces b3; 1 / log(b_t) = (1 - s) / log(b1) + s / log(b3), so that the half
      life grows from b1's to b3's in a straight line. b_t is at most b3.

    The authors recommend the length of the run for both. t is 1 at the first update, as in the
    authors' PyTorch code, where alpha is 2; in their JAX code t is 0. Optax has this definition
    without warm-ups, and the default of alpha. `mask` as in `adamw`. Memory: three arrays a
    parameter.
    """
    check_decays("ademamix", b1=b1, b2=b2, b3=b3)
    check_hyper("ademamix", "alpha", alpha, 0)
    check_hyper("ademamix", "eps", eps, 0)
    hyper = {"b1": b1, "b2": b2, "b3": b3, "alpha": alpha, "eps": eps}
    for argument, warmup in (("b3_warmup", b3_warmup), ("alpha_warmup", alpha_warmup)):
        if warmup is not None:
            check_hyper("ademamix", argument, warmup, 0)
            hyper[argument] = warmup
    return lift(
        "ademamix",
        _ademamix,
        {"m1": 0.0, "m2": 0.0, "nu": of_squares(0.0)},
        learning_rate,
        hyper,
        weight_decay=weight_decay,
        mask=mask,
    )


def _log(b: Number) -> Array:
    """log(b), of a Python number in float64; -inf for 0."""
    if isinstance(b, float):
        return jnp.asarray(math.log(b) if b > 0 else -math.inf, float)
    positive = b > 0
    return jnp.where(positive, jnp.log1p(jnp.where(positive, b, 0.5) - 1), -jnp.inf)


def _share(t: Array, steps: Number) -> Array:
    """t / steps, at most 1; t is 1 at least, so that the share of 0 steps is that of 1 step."""
    return jnp.minimum(t / jnp.maximum(steps, 1), 1)
