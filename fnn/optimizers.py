"""Optimizers by hand, from their formulas, behind Optax's interface.

Each rule is the textbook's, for one array, and `fnn.lifting` makes it an optimizer of trees: two
pure functions, ``init(params) -> state`` and ``update(grads, state, params) -> (updates, state)``,
so Optax's combinators take these and `chain` takes Optax's.

Every number may be a Python float or a traced scalar, so building an optimizer inside ``jit`` or
``vmap`` recompiles nothing; a learning rate may also be a schedule, called with 0 for the first
update. What is a bool or a word is static. Where libraries differ, the default is Optax's, and
`fnn.dialects` has the arguments that make a rule the paper's, PyTorch's or Keras's.
"""

from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from jax.typing import ArrayLike

from fnn.lifting import (
    Optimizer,
    Rate,
    bias_correction,
    check_range,
    lift,
    safe_divide,
    safe_sqrt,
)

# --- the rules: p <- p - step -----------------------------------------------------------------


def _sgd(g, t, rate):
    return rate * g, {}


def _momentum(g, t, rate, v, decay, dampening, *, nesterov, dampen_first, rate_inside):
    push = (1 - dampening) * g
    push = push if dampen_first else jnp.where(t == 1, g, push)
    push = rate * push if rate_inside else push
    v = decay * v + push
    step = push + decay * v if nesterov else v
    return (step if rate_inside else rate * step), {"v": v}


def _adagrad(g, t, rate, s, eps, *, eps_inside):
    s = s + g**2
    return rate * safe_divide(g, _root(s, eps, eps_inside)), {"s": s}


def _rmsprop(
    g, t, rate, v, decay, eps, momentum=0.0, mean=None, u=None, *, eps_inside, rate_inside
):
    v = decay * v + (1 - decay) * g**2
    new = {"v": v}
    if mean is not None:  # centred: the variance, not the second moment
        new["mean"] = mean = decay * mean + (1 - decay) * g
        v = jnp.maximum(v - mean**2, 0)  # never negative but for rounding
    step = safe_divide(g, _root(v, eps, eps_inside))
    if u is None:
        return rate * step, new
    new["u"] = u = momentum * u + (rate * step if rate_inside else step)
    return (u if rate_inside else rate * u), new


def _adam(g, t, rate, m, v, b1, b2, eps, eps_root, v_max=0.0, *, amsgrad, eps_hat, correct):
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    new = {"m": m, "v": v}
    m_factor, v_factor = (bias_correction(b, t) if correct else 1.0 for b in (b1, b2))
    if amsgrad == "corrected":
        new["v_max"] = v_hat = jnp.maximum(v_max, v * v_factor)
    elif amsgrad == "raw":
        new["v_max"] = jnp.maximum(v_max, v)
        v_hat = new["v_max"] * v_factor
    else:
        v_hat = v * v_factor
    eps = eps * jnp.sqrt(v_factor) if eps_hat and correct else eps
    return rate * safe_divide(m * m_factor, safe_sqrt(v_hat + eps_root) + eps), new


def _nadam(g, t, rate, m, v, b1, b2, eps, momentum_decay=None, product=None):
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    root = safe_sqrt(v * bias_correction(b2, t)) + eps
    if momentum_decay is None:
        m_hat = b1 * m * bias_correction(b1, t + 1) + (1 - b1) * g * bias_correction(b1, t)
        return rate * safe_divide(m_hat, root), {"m": m, "v": v}
    now, following = (b1 * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in (t, t + 1))
    product = product * now
    m_hat = following / (1 - product * following) * m + (1 - now) / (1 - product) * g
    return rate * safe_divide(m_hat, root), {"m": m, "v": v, "product": product}


def _lion(g, t, rate, m, b1, b2):
    return rate * jnp.sign(b1 * m + (1 - b1) * g), {"m": b2 * m + (1 - b2) * g}


def _root(x, eps, inside):
    return safe_sqrt(x + eps) if inside else safe_sqrt(x) + eps


# --- the optimizers ---------------------------------------------------------------------------


def sgd(learning_rate: Rate) -> Optimizer:
    """Gradient descent: p <- p - rate g. Remembers nothing. The same everywhere."""
    return lift("sgd", _sgd, {}, learning_rate, {})


def momentum(
    learning_rate: Rate,
    decay: ArrayLike = 0.9,
    *,
    nesterov: bool = False,
    dampening: ArrayLike = 0.0,
    dampen_first: bool = True,
    rate_inside: bool = False,
) -> Optimizer:
    """Heavy ball (Polyak 1964): v <- decay v + (1 - dampening) g; p <- p - rate v.

    `nesterov`: p <- p - rate ((1 - dampening) g + decay v); the parameters are the look-ahead
    point (Bengio et al. 2013 rewrite Sutskever et al. 2013 so). `dampening` equal to `decay` is
    the exponential average of the gradients; without `dampen_first` the first gradient goes in
    whole, as in PyTorch. `rate_inside`: v <- decay v + rate g; p <- p - v, as in the papers and
    Keras; it differs while the rate changes. Optax and PyTorch have the rate outside. One array
    of memory a parameter.
    """
    _check_decays("momentum", decay=decay)
    check_range("momentum", "dampening", dampening, 0, 1)
    rule = partial(_momentum, nesterov=nesterov, dampen_first=dampen_first, rate_inside=rate_inside)
    hyper = {"decay": decay, "dampening": dampening}
    return lift("momentum", rule, {"v": 0.0}, learning_rate, hyper)


def nesterov(learning_rate: Rate, decay: ArrayLike = 0.9) -> Optimizer:
    """Nesterov's momentum: ``momentum(learning_rate, decay, nesterov=True)``."""
    return momentum(learning_rate, decay, nesterov=True)


def adagrad(
    learning_rate: Rate,
    initial_accumulator: ArrayLike = 0.1,
    eps: ArrayLike = 1e-7,
    *,
    eps_inside: bool = True,
) -> Optimizer:
    """Duchi et al. 2011, diagonal: s <- s + g^2; p <- p - rate g / sqrt(s + eps).

    s starts at `initial_accumulator`; without `eps_inside` the divisor is sqrt(s) + eps. The
    defaults are Optax's and, but for its rate, Keras's; the paper and PyTorch start at 0 with
    eps outside, so that their first steps are far larger for small gradients. Where the divisor
    is 0 the step is 0. One array of memory a parameter.
    """
    check_range("adagrad", "initial_accumulator", initial_accumulator, 0)
    check_range("adagrad", "eps", eps, 0)
    rule = partial(_adagrad, eps_inside=eps_inside)
    return lift("adagrad", rule, {"s": initial_accumulator}, learning_rate, {"eps": eps})


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
    """Hinton's lecture 6e: v <- decay v + (1 - decay) g^2; p <- p - rate g / sqrt(v + eps).

    v starts at `initial_scale` (TensorFlow 1: 1), without bias correction; without `eps_inside`
    the divisor is sqrt(v) + eps. `centered` (Graves 2013) takes the square of the mean gradient
    from v. With `momentum` the step s goes through u <- momentum u + rate s; p <- p - u, or with
    the rate outside, which differs while it changes. Optax and Keras (eps 1e-7) have eps and rate
    inside, PyTorch (decay 0.99) both outside. One array of memory a parameter, one more each if
    centred and with momentum.
    """
    _check_decays("rmsprop", decay=decay, momentum=momentum)
    check_range("rmsprop", "eps", eps, 0)
    check_range("rmsprop", "initial_scale", initial_scale, 0)
    start = {"v": initial_scale}
    hyper = {"decay": decay, "eps": eps}
    if centered:
        start["mean"] = 0.0
    if momentum is not None:
        start["u"], hyper["momentum"] = 0.0, momentum
    rule = partial(_rmsprop, eps_inside=eps_inside, rate_inside=rate_inside)
    return lift("rmsprop", rule, start, learning_rate, hyper)


Amsgrad = Literal["corrected", "raw"]


def adam(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    eps_root: ArrayLike = 0.0,
    eps_hat: bool = False,
    amsgrad: Amsgrad | None = None,
    correct: bool = True,
) -> Optimizer:
    """Kingma & Ba 2015, algorithm 1: p <- p - rate m_hat / (sqrt(v_hat) + eps).

    m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, m_hat = m / (1 - b1^t), v_hat = v / (1 -
    b2^t), or m and v themselves without `correct`. `eps_root` is added under the root. With
    `eps_hat` eps is the paper's eps hat, added before v is corrected, as in Keras (1e-7) and
    scikit-learn: up to 32 times as much at first. `amsgrad` (Reddi et al. 2018) divides by the
    largest v_hat so far: "corrected" takes the maximum of v_hat (Optax), "raw" of v, and corrects
    that (PyTorch, Keras); the paper corrects nothing.

    Optax's and PyTorch's definition. 1 - b^t is exact to float32's last digits at every t, where
    Optax's is off by up to 2e-5. Two arrays of memory a parameter, three with amsgrad.
    """
    rule, start, hyper = _adam_parts("adam", b1, b2, eps, eps_root, eps_hat, amsgrad, correct)
    return lift("adam", rule, start, learning_rate, hyper)


def adamw(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: Rate = 1e-4,
    mask: Any = None,
    *,
    eps_root: ArrayLike = 0.0,
    eps_hat: bool = False,
    amsgrad: Amsgrad | None = None,
    correct: bool = True,
) -> Optimizer:
    """Adam with decoupled weight decay: p <- p - rate (adam's step + weight_decay p).

    Loshchilov & Hutter 2019 as every library has it: the decay is scaled by the learning rate,
    so weight_decay, a number or a schedule, is the paper's lambda / alpha. The default is
    Optax's; PyTorch has 1e-2, Keras 4e-3. `mask` says what decays: a tree of bools, a prefix of
    one (True is everything, as in Optax and PyTorch), a function params -> such a tree, or None
    for `params.decayed`, all but biases and norm scales; arrays that have lost their names, as
    under ``optax.flatten``, all decay. The rest is `adam`'s. Two arrays of memory a parameter.
    """
    rule, start, hyper = _adam_parts("adamw", b1, b2, eps, eps_root, eps_hat, amsgrad, correct)
    return lift("adamw", rule, start, learning_rate, hyper, weight_decay=weight_decay, mask=mask)


def nadam(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    momentum_decay: ArrayLike | None = None,
) -> Optimizer:
    """Adam with Nesterov's momentum (Dozat 2016): p <- p - rate m_hat / (sqrt(v_hat) + eps).

    m_hat = b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t), as in Optax. With `momentum_decay`
    psi it is Dozat's schedule, mu_t = b1 (1 - 0.96^(t psi) / 2) in place of b1 and the product of
    the mu so far in place of b1^t: PyTorch with psi 0.004 (and rate 2e-3), Keras with 1 (eps
    1e-7). These are three different algorithms. Two arrays of memory a parameter.
    """
    _check_decays("nadam", b1=b1, b2=b2)
    check_range("nadam", "eps", eps, 0)
    start: dict[str, Any] = {"m": 0.0, "v": 0.0}
    hyper = {"b1": b1, "b2": b2, "eps": eps}
    if momentum_decay is not None:
        check_range("nadam", "momentum_decay", momentum_decay, 0)
        hyper["momentum_decay"] = momentum_decay
        start["product"] = lambda p: jnp.ones((), p.dtype)
    return lift("nadam", _nadam, start, learning_rate, hyper)


def lion(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    weight_decay: Rate = 1e-3,
    mask: Any = None,
) -> Optimizer:
    """Chen et al. 2023: p <- p - rate (sign(b1 m + (1 - b1) g) + weight_decay p).

    m <- b2 m + (1 - b2) g, after the step. Optax's and Keras's definition, the decay Optax's;
    every step is as large as the rate, so that wants to be 3 to 10 times smaller than Adam's.
    `mask` as in `adamw`. One array of memory a parameter.
    """
    _check_decays("lion", b1=b1, b2=b2)
    hyper = {"b1": b1, "b2": b2}
    return lift(
        "lion", _lion, {"m": 0.0}, learning_rate, hyper, weight_decay=weight_decay, mask=mask
    )


def _adam_parts(name, b1, b2, eps, eps_root, eps_hat, amsgrad, correct):
    _check_decays(name, b1=b1, b2=b2)
    check_range(name, "eps", eps, 0)
    check_range(name, "eps_root", eps_root, 0)
    if amsgrad not in (None, "corrected", "raw"):
        raise ValueError(f"{name}: amsgrad is {amsgrad!r}, expected None, 'corrected' or 'raw'")
    start = {"m": 0.0, "v": 0.0} | ({} if amsgrad is None else {"v_max": 0.0})
    rule = partial(_adam, amsgrad=amsgrad, eps_hat=eps_hat, correct=correct)
    return rule, start, {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}


def _check_decays(name: str, **decays: ArrayLike | None) -> None:
    for argument, value in decays.items():
        check_range(name, argument, value, 0, 1)
