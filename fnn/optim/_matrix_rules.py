"""Optimizers that use the whole matrix: Adafactor to save memory, Muon for its singular values.

Each rule is a formula for one array, p <- p - step, and stands above the optimizer that offers it.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from fnn._base import Params, abs_square, as_count, global_norm, real_dtype, safe_divide, safe_sqrt
from fnn.optim._groups import by_group
from fnn.optim._lifting import (
    Number,
    Optimizer,
    Rate,
    bias_correction,
    check_decays,
    check_hyper,
    check_optimizer,
    check_stored,
    lift,
)


def _adafactor(
    g: Array,
    t: Array,
    rate: Number,
    v_row: Array,
    v_col: Array,
    v: Array,
    decay: Number,
    eps: Number,
    clip: Number,
    p: Array | None = None,
    *,
    smallest: int,
) -> tuple[Array, dict[str, Array]]:
    new = t**-decay  # in the place of 1 - decay: 1 - (1 - 1e-6) has few digits
    square = abs_square(g) + eps
    axes = factored_axes(g.shape, smallest)
    if axes is None:
        v = (1 - new) * v + new * square
        root = safe_sqrt(v)
    else:
        i, j = axes
        v_row = (1 - new) * v_row + new * square.mean(j)
        v_col = (1 - new) * v_col + new * square.mean(i)
        relative = safe_divide(v_row, v_row.mean(i - (i > j), keepdims=True))
        root = safe_sqrt(jnp.expand_dims(relative, j)) * safe_sqrt(jnp.expand_dims(v_col, i))
    u = safe_divide(g, root)
    rms = _root_mean_square(u)
    above = rms > clip  # not rms / clip, which is 0 / 0 for a clip of 0
    u = u * jnp.where(above, clip / jnp.where(above, rms, 1), 1)
    size = 1.0 if p is None else jnp.maximum(_root_mean_square(p), 1e-3)
    return rate * size * u, {"v_row": v_row, "v_col": v_col, "v": v}


def adafactor(
    learning_rate: Rate,
    decay: ArrayLike = 0.8,
    eps: ArrayLike = 1e-30,
    clip: ArrayLike = 1.0,
    *,
    scale_by_parameters: bool = True,
    smallest_factored: int = 128,
) -> Optimizer:
    """Shazeer & Stern 2018: RMSProp with the second moment of a matrix kept as row x column.

    square = |g|^2 + eps. row and column are averages over time, with decay 1 - t^-decay, of the
    means of square over the largest and over the second largest axis. u = g / sqrt(row column /
    mean(row)), then u <- u / max(1, rms(u) / clip); p <- p - rate max(rms(p), 1e-3) u, or rate u
    without `scale_by_parameters`. An array whose second largest axis is under
    `smallest_factored` keeps its whole second moment.

    Optax's definition, without its optional momentum; the paper clips and scales in the same way.
    Memory: rows + columns of a matrix, else one array a parameter.
    """
    check_hyper("adafactor", "decay", decay, 0)
    check_hyper("adafactor", "eps", eps, 0)
    check_hyper("adafactor", "clip", clip, 0)
    smallest = _as_static("adafactor", "smallest_factored", smallest_factored)

    def start(which: int) -> Any:
        def zeros(p: Array) -> Array:
            p = p.real  # so are squares
            axes = factored_axes(p.shape, smallest)
            if (axes is None) != (which == 2):
                return jnp.zeros(0, p.dtype)  # not used for this array
            return jnp.zeros_like(p if axes is None else p.sum(axes[1 - which]))  # on p's devices

        return zeros

    return lift(
        "adafactor",
        partial(_adafactor, smallest=smallest),
        {"v_row": start(0), "v_col": start(1), "v": start(2)},
        learning_rate,
        {"decay": decay, "eps": eps, "clip": clip},
        uses_params=scale_by_parameters,
    )


def _muon(
    g: Array,
    t: Array,
    rate: Number,
    mu: Array,
    decay: Number,
    eps: Number,
    rms: Number | None = None,
    *,
    nesterov: bool,
    iterations: int,
    accumulate: bool,
    correct: bool,
    scaled: bool,
) -> tuple[Array, dict[str, Array]]:
    push = g if accumulate else (1 - decay) * g
    mu = decay * mu + push
    u = mu
    if correct:
        u = u * bias_correction(decay, t + 1 if nesterov else t)
        push = push * bias_correction(decay, t)
    u = decay * u + push if nesterov else u
    ins, outs = g.shape
    size = max(1, outs / max(1, ins)) ** 0.5 if scaled else 1.0
    size = size if rms is None else rms * max(ins, outs) ** 0.5
    return rate * size * orthogonalize(u, iterations, eps), {"mu": mu}


def muon(
    learning_rate: Rate,
    decay: ArrayLike = 0.95,
    *,
    others: Optimizer | None = None,
    nesterov: bool = True,
    iterations: int = 5,
    weight_decay: Rate = 0.0,
    eps: ArrayLike = 0.0,
    accumulate: bool = False,
    correct: bool = False,
    scale: Literal["width"] | ArrayLike | None = "width",
    mu_dtype: DTypeLike | None = None,
) -> Optimizer:
    """Jordan et al. 2024: momentum whose singular values are all made about 1.

    mu <- decay mu + (1 - decay) g; u = decay mu + (1 - decay) g, or u = mu without `nesterov`;
    p <- p - rate (sqrt(max(1, out / in)) orthogonalize(u) + weight_decay p), for p [in, out].

    `others` updates every leaf that is no matrix; without `others` such a leaf is a ValueError.
    Embeddings and output layers are matrices too, but Adam trains them better: see `by_path`.

    This is Jordan's own code, and PyTorch's, which orthogonalize in bfloat16. The dialects:

    - `correct`: mu and g are first divided by 1 - decay^(t+1) and 1 - decay^t, as Optax does. From
      step 2 on this is another direction, up to 10 % away.
    - `accumulate`: mu <- decay mu + g; u = g + decay mu, as in Keras and in Moonlight (Liu et al.
      2025). It differs from the default only through `eps`.
    - `eps` is added to the norm that u is divided by: 1e-7 in Jordan's code, Moonlight and Keras,
      1e-8 in Optax. With 0, gradients of any size are made orthogonal.
    - `scale`: "width" is the factor above. A number c stands for c sqrt(max(in, out)): Moonlight
      and Keras have 0.2, which is the size of AdamW's steps. None is the factor 1.

    `mu_dtype` as in `adam`. Memory: one array a parameter.
    """
    check_decays("muon", decay=decay)
    check_hyper("muon", "eps", eps, 0)
    count = _as_static("muon", "iterations", iterations)
    if accumulate and correct:
        raise ValueError("muon: correct was given with accumulate, expected one of the two")
    hyper: dict[str, ArrayLike] = {"decay": decay, "eps": eps}
    if isinstance(scale, str):
        if scale != "width":
            raise ValueError(f"muon: scale is {scale!r}, expected 'width', a number or None")
    elif scale is not None:
        check_hyper("muon", "scale", scale, 0)
        hyper["rms"] = scale
    options = {"nesterov": nesterov, "accumulate": accumulate, "correct": correct}
    matrices = lift(
        "muon",
        partial(_muon, **options, iterations=count, scaled=scale is not None),
        {"mu": 0.0},
        learning_rate,
        hyper,
        weight_decay=weight_decay,
        dtypes={"mu": check_stored("muon", "mu_dtype", mu_dtype)},
    )

    if others is not None:
        check_optimizer("muon", others)

    def group(path: str, leaf: Any) -> str:
        if jnp.ndim(leaf) == 2:
            return "matrices"
        if others is None:
            raise ValueError(
                f"muon: parameter {path!r} has shape {jnp.shape(leaf)}, expected a matrix;"
                " give the rest an optimizer, as in muon(0.02, others=adamw(1e-3))"
            )
        return "others"

    return by_group(
        "muon", group, {"matrices": matrices} | ({} if others is None else {"others": others})
    )


def orthogonalize(x: Array, iterations: int = 5, eps: ArrayLike = 0.0) -> Array:
    """[m, n] -> [m, n]: the singular vectors of x with all singular values near 1 (0.7 to 1.2).

    Newton-Schulz iterations with Jordan's quintic 3.4445 s - 4.7750 s^3 + 2.0315 s^5, which is
    fast rather than exact. x may have any scale; 0 stays 0. `eps` is added to the norm that x is
    divided by, so that a smaller x stays small.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[0] > x.shape[1]
    x = safe_divide(x, global_norm(x).astype(real_dtype(x.dtype)) + eps)
    x = x.T if tall else x
    for _ in range(iterations):
        gram = x @ x.T.conj()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def factored_axes(shape: tuple[int, ...], smallest: int) -> tuple[int, int] | None:
    """The second largest and the largest axis; None if the second largest is under `smallest`."""
    if len(shape) < 2:
        return None
    *_, second, largest = np.argsort(shape)
    return (int(second), int(largest)) if shape[second] >= smallest else None


def _as_static(name: str, argument: str, value: Any) -> int:
    """The whole number >= 1 that `value` is. A JAX array is refused: it may be traced later."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{name}: {argument} is {type(value).__name__}, expected an int, which shapes the"
            " program; optax.inject_hyperparams wants its name among static_args"
        )
    return as_count(name, argument, value)


def _root_mean_square(x: Params) -> Array:
    return global_norm(x) / max(1, x.size) ** 0.5
