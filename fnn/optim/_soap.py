"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

The rule is a formula for one array, p <- p - step, and stands above the optimizer that offers it.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from fnn._base import as_count, safe_divide, safe_sqrt
from fnn.optim._lifting import (
    Number,
    Optimizer,
    Rate,
    bias_correction,
    check_decays,
    check_hyper,
    lift,
)

Matrices = dict[int, Array]  # {axis: [n, n]}


def _soap(
    g: Array,
    t: Array,
    rate: Number,
    mu: Array,
    nu: Array,
    gram: Array,
    basis: Array,
    p: Array,
    weight_decay: Number,
    b1: Number,
    b2: Number,
    shampoo_beta: Number,
    eps: Number,
    *,
    frequency: int,
    largest: int,
) -> tuple[Array, dict[str, Array]]:
    sizes = _sizes(g.shape, largest)
    # Derivatives do not go through eigenvectors, which have none where eigenvalues are equal.
    grams, bases = (_split(lax.stop_gradient(flat), sizes) for flat in (gram, basis))
    started = t > 1  # the first gradient is only used for the bases
    mu = jnp.where(started, b1 * mu + (1 - b1) * g, mu)
    nu = jnp.where(started, b2 * nu + (1 - b2) * _rotated(g, bases) ** 2, nu)
    k = jnp.maximum(t - 1, 1)
    factor = bias_correction(b1, k) / jnp.sqrt(bias_correction(b2, k))
    u = safe_divide(_rotated(mu, bases), safe_sqrt(nu) + eps)
    step = rate * factor * _rotated(u, bases, back=True)
    step = step + rate * weight_decay * (p - step)
    step = jnp.where(started, step, 0)

    grams = {
        axis: shampoo_beta * gram + (1 - shampoo_beta) * _outer(lax.stop_gradient(g), axis)
        for axis, gram in grams.items()
    }
    refreshed = [
        lambda grams, bases, nu: (bases, nu),
        lambda grams, bases, nu: (_eigenvectors(grams), nu),
        _next_bases,
    ]
    which = jnp.where(t == 1, 1, jnp.where((t - 1) % frequency == 0, 2, 0))
    if sizes:
        bases, nu = lax.switch(which, refreshed, grams, bases, nu)
    return step, {"mu": mu, "nu": nu, "gram": _joined(grams, g), "basis": _joined(bases, g)}


def soap(
    learning_rate: Rate,
    b1: ArrayLike = 0.95,
    b2: ArrayLike = 0.95,
    eps: ArrayLike = 1e-8,
    weight_decay: Rate = 0.01,
    mask: Any = None,
    *,
    shampoo_beta: ArrayLike | None = None,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10_000,
) -> Optimizer:
    """Vyas et al. 2024: Adam in the eigenbasis of Shampoo's preconditioner, for p [m, n].

    L <- beta L + (1 - beta) g g^T and R <- beta R + (1 - beta) g^T g, beta = `shampoo_beta`, which
    is b2 if None. The columns of Q_L and Q_R are their eigenvectors.
    mu <- b1 mu + (1 - b1) g; nu <- b2 nu + (1 - b2) (Q_L^T g Q_R)^2;
    u = Q_L (Q_L^T mu Q_R / (sqrt(nu) + eps)) Q_R^T sqrt(1 - b2^k) / (1 - b1^k);
    p <- (1 - rate weight_decay) (p - rate u).

    This is the authors' code (nikhilvyas/SOAP), also in these points:

    - The first update leaves every weight as it is: its gradient is only for L, R and the first
      eigenvectors. So k = t - 1.
    - L and R are updated after the step. At every `precondition_frequency`-th k the columns of Q_L
      are sorted by diag(Q_L^T L Q_L), nu alike, and Q_L <- qr(L Q_L); Q_R alike.
    - An array of more axes has a matrix for each axis. A vector, a number and an axis longer than
      `max_precond_dim` have none; without any it is Adam, with eps as in ``adam(eps_hat=True)``.

    The eigenvectors of equal eigenvalues are not unique, so for gradients of low rank two machines
    may take different paths. L, R and Q are in float32 at least; derivatives do not go through Q.
    Optax has no SOAP. Complex parameters are a TypeError. `mask` as in `adamw`. Memory: two arrays
    a parameter and 2 (m^2 + n^2) for a matrix.
    """
    shampoo_beta = b2 if shampoo_beta is None else shampoo_beta
    check_decays("soap", b1=b1, b2=b2, shampoo_beta=shampoo_beta)
    check_hyper("soap", "eps", eps, 0)
    frequency = as_count("soap", "precondition_frequency", precondition_frequency)
    largest = as_count("soap", "max_precond_dim", max_precond_dim, 0)

    def flat(p: Array) -> Array:
        if jnp.iscomplexobj(p):
            raise TypeError(f"soap: a parameter is {p.dtype}, expected real numbers")
        size = sum(n * n for n in _sizes(p.shape, largest).values())
        return jnp.zeros(size, p.dtype)

    return lift(
        "soap",
        partial(_soap, frequency=frequency, largest=largest),
        {"mu": 0.0, "nu": 0.0, "gram": flat, "basis": flat},
        learning_rate,
        {"b1": b1, "b2": b2, "shampoo_beta": shampoo_beta, "eps": eps},
        weight_decay=weight_decay,
        mask=mask,
        uses_params=True,
        decay_inside=True,
    )


def _sizes(shape: tuple[int, ...], largest: int) -> dict[int, int]:
    """{axis: its length} of the axes that are rotated."""
    return {i: n for i, n in enumerate(shape) if len(shape) > 1 and 0 < n <= largest}


def _split(flat: Array, sizes: dict[int, int]) -> Matrices:
    """The square matrices that stand one after the other in `flat`."""
    ends = np.cumsum([n * n for n in sizes.values()])
    parts = jnp.split(flat, ends[:-1]) if sizes else []
    return {i: x.reshape(n, n) for (i, n), x in zip(sizes.items(), parts, strict=True)}


def _joined(matrices: Matrices, like: Array) -> Array:
    parts = [x.ravel() for x in matrices.values()]
    return jnp.concatenate(parts) if parts else jnp.zeros(0, like.dtype)


def _rotated(x: Array, bases: Matrices, *, back: bool = False) -> Array:
    """x with each axis in the basis of its columns, or back from there."""
    for axis, q in bases.items():
        x = jnp.tensordot(x, q, ((axis,), (1 if back else 0,)), precision="highest")
        x = jnp.moveaxis(x, -1, axis)
    return x


def _outer(g: Array, axis: int) -> Array:
    """[n, n]: g g^T for the axis, summed over the others."""
    others = tuple(i for i in range(g.ndim) if i != axis)
    return jnp.tensordot(g, g, (others, others), precision="highest")


def _eigenvectors(grams: Matrices) -> Matrices:
    """Columns with the largest eigenvalue first."""
    return {axis: jnp.linalg.eigh(gram)[1][:, ::-1] for axis, gram in grams.items()}


def _next_bases(grams: Matrices, bases: Matrices, nu: Array) -> tuple[Matrices, Array]:
    """One step of orthogonal iteration, columns sorted by their eigenvalues, nu in their order."""
    new = {}
    for axis, q in bases.items():
        product = jnp.matmul(grams[axis], q, precision="highest")
        order = jnp.argsort(-jnp.sum(q * product, axis=0))
        nu = jnp.take(nu, order, axis)
        new[axis] = jnp.linalg.qr(product[:, order])[0]
    return new, nu
