"""Optimizers that look at a whole matrix: to save memory, or for its singular values.

As in `fnn.optimizers`, a rule is for one array, p <- p - step.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fnn.lifting import Optimizer, Rate, check_range, lift, safe_divide
from fnn.params import global_norm
from fnn.transforms import by_group
from fnn.types import Params


def _adafactor(g, t, rate, row, column, full, decay, eps, clip, p=None, *, scaled, smallest):
    b = 1 - t**-decay
    square = g**2 + eps
    axes = factored_axes(g.shape, smallest)
    if axes is None:
        full = b * full + (1 - b) * square
        root = jnp.sqrt(full)
    else:
        i, j = axes
        row = b * row + (1 - b) * square.mean(j)
        column = b * column + (1 - b) * square.mean(i)
        relative = safe_divide(row, row.mean(i - (i > j), keepdims=True))
        root = jnp.sqrt(jnp.expand_dims(relative, j)) * jnp.sqrt(jnp.expand_dims(column, i))
    u = safe_divide(g, root)
    u = u * (1 / jnp.maximum(1, _root_mean_square(u) / clip))
    size = jnp.maximum(_root_mean_square(p), 1e-3) if scaled else 1.0
    return rate * size * u, {"row": row, "column": column, "full": full}


def _muon(g, t, rate, m, decay, *, nesterov, iterations):
    m = decay * m + (1 - decay) * g
    u = decay * m + (1 - decay) * g if nesterov else m
    ins, outs = g.shape
    return rate * max(1, outs / ins) ** 0.5 * orthogonalize(u, iterations), {"m": m}


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

    square = g^2 + eps; row and column are averages of its means over the largest and the next
    largest axis, with decay 1 - t^-decay; u = g / sqrt(row column / mean(row)), then divided by
    max(1, rms(u) / clip); p <- p - rate max(rms(p), 1e-3) u, or rate u without
    `scale_by_parameters`. Arrays whose second largest axis is under `smallest_factored` keep the
    whole second moment. Optax's definition, without its optional momentum; the paper clips and
    scales alike. Memory: rows + columns of a matrix, else one array a parameter.
    """
    check_range("adafactor", "decay", decay, 0)
    check_range("adafactor", "eps", eps, 0)
    check_range("adafactor", "clip", clip, 0)
    _check_static("adafactor", "smallest_factored", smallest_factored)

    def start(which: int) -> Any:
        def zeros(p: Array) -> Array:
            axes = factored_axes(p.shape, smallest_factored)
            if (axes is None) != (which == 2):
                return jnp.zeros(0, p.dtype)  # what this array does without
            return jnp.zeros_like(p if axes is None else p.sum(axes[1 - which]))  # on p's devices

        return zeros

    return lift(
        "adafactor",
        partial(_adafactor, scaled=scale_by_parameters, smallest=smallest_factored),
        {"row": start(0), "column": start(1), "full": start(2)},
        learning_rate,
        {"decay": decay, "eps": eps, "clip": clip},
        uses_params=scale_by_parameters,
    )


def muon(
    learning_rate: Rate,
    decay: ArrayLike = 0.95,
    *,
    others: Optimizer | None = None,
    nesterov: bool = True,
    iterations: int = 5,
    weight_decay: Rate = 0.0,
) -> Optimizer:
    """Jordan et al. 2024: momentum whose singular values are all made about 1.

    m <- decay m + (1 - decay) g; u = decay m + (1 - decay) g, or m without `nesterov`; p <- p -
    rate (sqrt(max(1, out / in)) orthogonalize(u) + weight_decay p). For weights [in, out]; every
    other leaf is left to `others`, and without that is a ValueError. Embeddings and output
    layers, matrices too, are better given to Adam: see `by_path`. Optax corrects the
    bias of m and g apart first; PyTorch orthogonalizes in bfloat16. One array of memory a
    parameter.
    """
    check_range("muon", "decay", decay, 0, 1)
    _check_static("muon", "iterations", iterations)
    rule = partial(_muon, nesterov=nesterov, iterations=iterations)
    matrices = lift(
        "muon", rule, {"m": 0.0}, learning_rate, {"decay": decay}, weight_decay=weight_decay
    )

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


def orthogonalize(x: Array, iterations: int = 5) -> Array:
    """[m, n] -> [m, n]: the singular vectors of x with all singular values near 1 (0.7 to 1.2).

    Newton-Schulz with Jordan's quintic 3.4445 s - 4.7750 s^3 + 2.0315 s^5, which aims at fast
    rather than exact; x of any scale, 0 stays 0.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[0] > x.shape[1]
    x = safe_divide(x, global_norm(x).astype(x.dtype))
    x = x.T if tall else x
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def factored_axes(shape: tuple[int, ...], smallest: int) -> tuple[int, int] | None:
    """The second largest and the largest axis, or None where the former is under `smallest`."""
    if len(shape) < 2:
        return None
    *_, second, largest = np.argsort(shape)
    return (int(second), int(largest)) if shape[second] >= smallest else None


def _check_static(name: str, argument: str, value: Any) -> None:
    if not isinstance(value, int):
        raise TypeError(
            f"{name}: {argument} is {type(value).__name__}, expected an int, which shapes the"
            " program; optax.inject_hyperparams wants its name among static_args"
        )


def _root_mean_square(x: Params) -> Array:
    return global_norm(x) / x.size**0.5
