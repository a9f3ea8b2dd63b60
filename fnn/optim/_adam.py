"""Adam and its relatives: AdamW, AMSGrad, NAdam, NAdamW.

Each rule is a formula for one array, p <- p - step, and stands above the optimizer that offers it.
"""

from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from fnn._base import abs_square, real_dtype, safe_divide, safe_sqrt
from fnn.optim._lifting import (
    Number,
    Optimizer,
    Rate,
    Rule,
    Start,
    bias_correction,
    check_decays,
    check_hyper,
    check_stored,
    lift,
    of_squares,
)

Amsgrad = Literal["corrected", "raw"]


def _adam(
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
    nu = b2 * nu + (1 - b2) * abs_square(g)
    mu_hat = mu * bias_correction(b1, t)
    nu_hat = nu * bias_correction(b2, t)
    return rate * safe_divide(mu_hat, safe_sqrt(nu_hat + eps_root) + eps), {"mu": mu, "nu": nu}


def _adam_dialect(
    g: Array,
    t: Array,
    rate: Number,
    mu: Array,
    nu: Array,
    b1: Number,
    b2: Number,
    eps: Number,
    eps_root: Number,
    nu_max: Array | None = None,
    *,
    amsgrad: Amsgrad | None,
    eps_hat: bool,
    correct: bool,
) -> tuple[Array, dict[str, Array]]:
    """AMSGrad if nu_max is remembered, eps before the correction, or no correction."""
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * abs_square(g)
    new = {"mu": mu, "nu": nu}
    mu_factor, nu_factor = (bias_correction(b, t) if correct else 1.0 for b in (b1, b2))
    if nu_max is None:
        nu_hat = nu * nu_factor
    elif amsgrad == "corrected":
        new["nu_max"] = nu_hat = jnp.maximum(nu_max, nu * nu_factor)
    else:
        new["nu_max"] = jnp.maximum(nu_max, nu)
        nu_hat = new["nu_max"] * nu_factor
    eps = eps * jnp.sqrt(nu_factor) if eps_hat and correct else eps
    return rate * safe_divide(mu * mu_factor, safe_sqrt(nu_hat + eps_root) + eps), new


def _nadam(
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
    nu = b2 * nu + (1 - b2) * abs_square(g)
    mu_hat = b1 * mu * bias_correction(b1, t + 1) + (1 - b1) * g * bias_correction(b1, t)
    nu_hat = nu * bias_correction(b2, t)
    return rate * safe_divide(mu_hat, safe_sqrt(nu_hat + eps_root) + eps), {"mu": mu, "nu": nu}


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
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> Optimizer:
    """Kingma & Ba 2015, algorithm 1: p <- p - rate mu_hat / (sqrt(nu_hat) + eps).

    mu <- b1 mu + (1 - b1) g; nu <- b2 nu + (1 - b2) |g|^2; mu_hat = mu / (1 - b1^t);
    nu_hat = nu / (1 - b2^t). This is Optax's and PyTorch's definition. The options:

    - `eps_root` is added under the root.
    - `eps_hat`: eps is the paper's eps hat, added before nu is corrected, as in Keras (1e-7) and
      scikit-learn. At first it counts up to 32 times as much.
    - `amsgrad` (Reddi et al. 2018): divide by the largest nu_hat so far. "corrected" takes the
      maximum of nu_hat (Optax). "raw" takes the maximum of nu and corrects it (PyTorch, Keras).
    - `correct`: without it mu_hat = mu and nu_hat = nu, as in the paper of AMSGrad.
    - `nesterov`: mu_hat is that of `nadam`. It excludes the three options above.
    - `mu_dtype`: the dtype that mu is stored in, such as bfloat16; by default float32 at least.

    1 - b^t is exact to float32's last digits at every t; Optax's is off by up to 2e-5. nu holds
    squares: one gradient above 1.8e19 makes a float32 nu inf, and its weight stands still from
    then on. `make_train_step` does not take such a step. Memory: two arrays a parameter, three
    with amsgrad.
    """
    rule, start, hyper = _adam_parts(
        "adam", b1, b2, eps, eps_root, eps_hat, amsgrad, correct, nesterov
    )
    dtypes = {"mu": check_stored("adam", "mu_dtype", mu_dtype)}
    return lift("adam", rule, start, learning_rate, hyper, dtypes=dtypes)


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
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay: p <- p - rate (adam's step + weight_decay p).

    Loshchilov & Hutter 2019, as every library has it: the decay is multiplied by the learning
    rate, so `weight_decay`, a number or a schedule, is the paper's lambda / alpha. The default is
    Optax's; PyTorch has 1e-2, Keras 4e-3. `mask` says which parameters decay. It is one of:

    - None: `params.decayed`, all except biases and norm scales. It says how these are recognised.
    - a tree of bools, or a prefix of one: True is everything, as in Optax and PyTorch.
    - a function params -> such a tree.

    The other options are `adam`'s; with `nesterov` it is `nadamw`. Memory: two arrays a parameter,
    three with amsgrad.
    """
    rule, start, hyper = _adam_parts(
        "adamw", b1, b2, eps, eps_root, eps_hat, amsgrad, correct, nesterov
    )
    dtypes = {"mu": check_stored("adamw", "mu_dtype", mu_dtype)}
    decay = {"weight_decay": weight_decay, "mask": mask}
    return lift("adamw", rule, start, learning_rate, hyper, **decay, dtypes=dtypes)


def _nadam_scheduled(
    g: Array,
    t: Array,
    rate: Number,
    mu: Array,
    nu: Array,
    product: Array,
    b1: Number,
    b2: Number,
    eps: Number,
    momentum_decay: Number,
) -> tuple[Array, dict[str, Array]]:
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * abs_square(g)
    now, following = (b1 * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in (t, t + 1))
    product = product * now
    mu_hat = following / (1 - product * following) * mu + (1 - now) / (1 - product) * g
    root = safe_sqrt(nu * bias_correction(b2, t)) + eps
    return rate * safe_divide(mu_hat, root), {"mu": mu, "nu": nu, "product": product}


def _nadam_algoperf(
    g: Array, t: Array, rate: Number, mu: Array, nu: Array, b1: Number, b2: Number, eps: Number
) -> tuple[Array, dict[str, Array]]:
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * abs_square(g)
    mu_hat = (b1 * mu + (1 - b1) * g) * bias_correction(b1, t)
    nu_hat = nu * bias_correction(b2, t)
    return rate * safe_divide(mu_hat, safe_sqrt(nu_hat) + eps), {"mu": mu, "nu": nu}


def nadam(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    momentum_decay: ArrayLike | None = None,
    algoperf: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> Optimizer:
    """Adam with Nesterov's momentum (Dozat 2016): p <- p - rate mu_hat / (sqrt(nu_hat) + eps).

    mu and nu are Adam's, nu_hat = nu / (1 - b2^t), and mu_hat is one of four:

    - by default b1 mu / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t), as in Optax.
    - `momentum_decay` psi: Dozat's schedule. b_t = b1 (1 - 0.96^(t psi) / 2) replaces b1 outside
      mu, and the product of all b_t so far replaces b1^t. PyTorch has psi 0.004 (and rate 2e-3).
      Keras has psi 1 (and eps 1e-7). With psi 0, b_t is b1 / 2, and not b1.
    - `algoperf`: (b1 mu + (1 - b1) g) / (1 - b1^t), as in the benchmark AlgoPerf (Nado et al. 2019;
      Dahl et al. 2023) and in timm. Its first step is 1.9 times Adam's; Optax's is 1.47 times.

    These are four different algorithms. `mu_dtype` as in `adam`. Memory: two arrays a parameter.
    """
    rule, start, hyper = _nadam_parts("nadam", b1, b2, eps, momentum_decay, algoperf)
    dtypes = {"mu": check_stored("nadam", "mu_dtype", mu_dtype)}
    return lift("nadam", rule, start, learning_rate, hyper, dtypes=dtypes)


def nadamw(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: Rate = 1e-4,
    mask: Any = None,
    *,
    momentum_decay: ArrayLike | None = None,
    algoperf: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> Optimizer:
    """NAdam with decoupled weight decay: p <- p - rate (nadam's step + weight_decay p).

    By default Optax's nadamw, which is ``adamw(nesterov=True)`` too. With `momentum_decay=0.004` it
    is PyTorch's NAdam with decoupled_weight_decay, with `algoperf` the benchmark's. The default of
    `weight_decay` is Optax's; PyTorch and AlgoPerf's JAX have 0, AlgoPerf's PyTorch has 1e-2.
    `mask` as in `adamw`, the other options as in `nadam`. Memory: two arrays a parameter.
    """
    rule, start, hyper = _nadam_parts("nadamw", b1, b2, eps, momentum_decay, algoperf)
    dtypes = {"mu": check_stored("nadamw", "mu_dtype", mu_dtype)}
    decay = {"weight_decay": weight_decay, "mask": mask}
    return lift("nadamw", rule, start, learning_rate, hyper, **decay, dtypes=dtypes)


def _nadam_parts(
    name: str,
    b1: ArrayLike,
    b2: ArrayLike,
    eps: ArrayLike,
    momentum_decay: ArrayLike | None,
    algoperf: bool,
) -> tuple[Rule, dict[str, Start], dict[str, ArrayLike]]:
    """The rule, the start of its memory and its numbers, checked in the name of `name`."""
    rule, start, hyper = _adam_parts(name, b1, b2, eps, 0.0, False, None, True, True)
    if momentum_decay is None and not algoperf:
        return rule, start, hyper
    hyper = {"b1": b1, "b2": b2, "eps": eps}
    if momentum_decay is None:
        return _nadam_algoperf, start, hyper
    if algoperf:
        raise ValueError(f"{name}: momentum_decay was given with algoperf, expected one of the two")
    check_hyper(name, "momentum_decay", momentum_decay, 0)
    start |= {"product": lambda p: jnp.ones((), real_dtype(p.dtype))}
    return _nadam_scheduled, start, hyper | {"momentum_decay": momentum_decay}


def _adam_parts(
    name: str,
    b1: ArrayLike,
    b2: ArrayLike,
    eps: ArrayLike,
    eps_root: ArrayLike,
    eps_hat: bool,
    amsgrad: Amsgrad | None,
    correct: bool,
    nesterov: bool,
) -> tuple[Rule, dict[str, Start], dict[str, ArrayLike]]:
    """The rule, the start of its memory and its numbers, checked in the name of `name`."""
    check_decays(name, b1=b1, b2=b2)
    check_hyper(name, "eps", eps, 0)
    check_hyper(name, "eps_root", eps_root, 0)
    if amsgrad not in (None, "corrected", "raw"):
        raise ValueError(f"{name}: amsgrad is {amsgrad!r}, expected None, 'corrected' or 'raw'")
    start: dict[str, Start] = {"mu": 0.0, "nu": of_squares(0.0)}
    hyper = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    if amsgrad is None and correct and not eps_hat:
        return _nadam if nesterov else _adam, start, hyper
    if nesterov:
        raise ValueError(
            f"{name}: nesterov was given with amsgrad, eps_hat or correct=False, expected it alone"
        )
    start |= {} if amsgrad is None else {"nu_max": of_squares(0.0)}
    rule = partial(_adam_dialect, amsgrad=amsgrad, eps_hat=eps_hat, correct=correct)
    return rule, start, hyper
