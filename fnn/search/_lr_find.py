"""The learning-rate range test: short runs at many rates, as one sweep."""

import math
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fnn._base import as_count, check_range
from fnn.search._points import check_distinct_keys
from fnn.training import Run, sweep

End = Literal["lowest", "highest"]


class FoundRate(NamedTuple):
    """What `lr_find` found. ``plots.lr_find(found)`` draws it.

    `rates`: float64 [rates], ascending.
    `losses`: float64 [seeds, rates], the loss at the end of each run; inf if one is not finite.
    `median`: float64 [rates], of the losses of all seeds.
    `diverged`: bool [seeds, rates].
    `suggestion`: the rate to take, or None.
    `edge`: "lowest" or "highest" if the suggestion is that rate, so that a better one may lie
    beyond it; else None.
    `why`: the reason, in one sentence or two.
    """

    rates: np.ndarray
    losses: np.ndarray
    median: np.ndarray
    diverged: np.ndarray
    suggestion: float | None
    edge: End | None
    why: str


def lr_find(
    run: Run,
    keys: Array,
    *,
    low: float = 1e-5,
    high: float = 10.0,
    count: int = 32,
    rates: ArrayLike | None = None,
    width: int | None = None,
) -> FoundRate:
    """run(key, learning_rate) -> loss, for keys [seeds] -> the rate to train with, and why.

    A run trains for a short time at one constant rate: some hundred steps, or an epoch. It returns
    one loss, or the losses of its steps, [...], as ``history["loss"]`` of `fit`. Of losses of steps
    the mean over the last tenth counts. All seeds at all rates are one `sweep`, so each rate starts
    anew. (Smith 2017 raises the rate within one run; the loss at a rate then depends on all rates
    before.)

    The rates are `count` from `low` to `high` on a log scale, or `rates`. `width` is that of
    `sweep`.

    A run has diverged if one of its losses is not finite, or if it ends above the run of the same
    seed at the lowest rate, which hardly trains. The suggestion is the rate with the least median
    loss over the seeds. No seed may have diverged at that rate, nor at the next higher rate: longer
    runs meet steeper places. If there is no such rate, the next higher rate does not count. If some
    seed diverged at every rate, the suggestion is None.
    """
    rates = _rates(low, high, count, rates)
    check_distinct_keys("lr_find", keys)
    losses = _last_losses(sweep(run, keys, {"learning_rate": rates}, width=width))
    diverged = np.isinf(losses) | (losses > losses[:, :1])
    median = np.median(losses, axis=0)
    at, why = _choose(rates, median, diverged)
    edge = None if at is None else _edge(at, len(rates))
    if edge is not None:
        where = "below" if edge == "lowest" else "above"
        why += f" It is the {edge} rate that was tried: try rates {where} it too."
    suggestion = None if at is None else float(rates[at])
    return FoundRate(rates, losses, median, diverged, suggestion, edge, why)


def _rates(low: float, high: float, count: int, rates: ArrayLike | None) -> np.ndarray:
    """The rates, float64 [rates], ascending."""
    if rates is None:
        check_range("lr_find", "low", low, 0, above=True)
        check_range("lr_find", "high", high, low, math.inf, above=True)
        if not math.isfinite(high):
            raise ValueError(f"lr_find: high is {high}, expected a finite number")
        return np.geomspace(low, high, as_count("lr_find", "count", count, least=2))
    values = np.asarray(rates, np.float64)
    positive = values.ndim == 1 and len(values) > 1 and bool((values > 0).all())
    if not positive or not np.isfinite(values).all() or not bool((np.diff(values) > 0).all()):
        raise ValueError(
            f"lr_find: rates are {np.array2string(values, threshold=6)}, expected at least two"
            " finite numbers above 0, ascending"
        )
    return values


def _last_losses(results: Any) -> np.ndarray:
    """What the sweep returned -> float64 [seeds, rates], inf where a loss is not finite."""
    if not isinstance(results, Array) or not jnp.issubdtype(results.dtype, jnp.floating):
        came = str(results.dtype) if isinstance(results, Array) else type(results).__name__
        raise TypeError(f"lr_find: run returned {came}, expected a loss, or the losses of steps")
    steps = np.asarray(results).astype(np.float64).reshape(*results.shape[:2], -1)
    if not steps.shape[-1]:
        raise ValueError("lr_find: run returned no losses, expected at least one")
    finite = np.isfinite(steps)
    last = np.where(finite, steps, 0)[..., -math.ceil(steps.shape[-1] / 10) :].mean(-1)
    return np.where(finite.all(-1), last, np.inf)


def _choose(rates: np.ndarray, median: np.ndarray, diverged: np.ndarray) -> tuple[int | None, str]:
    """(the number of the rate, why); `diverged` is [seeds, rates]."""
    seeds = len(diverged)
    good = np.logical_not(np.any(diverged, axis=0))
    if not good.any():
        return None, (
            f"No rate is suggested: at each of the {len(rates)} rates, from {rates[0]:.3g} to"
            f" {rates[-1]:.3g}, a loss of at least one of {seeds} seeds is not finite."
        )
    safe = good & np.append(good[1:], True)
    allowed = safe if safe.any() else good
    at = int(np.argmin(np.where(allowed, median, np.inf)))
    least = "median loss" if seeds > 1 else "loss"
    none = f"none of {seeds} seeds diverged" if seeds > 1 else "the run did not diverge"
    beyond = ", nor at the next higher rate" if safe.any() else ""
    return at, (
        f"{rates[at]:.3g} has the least {least}, {median[at]:.3g}, of the {allowed.sum()} rates at"
        f" which {none}{beyond}."
    )


def _edge(at: int, count: int) -> End | None:
    if at == 0:
        return "lowest"
    return "highest" if at == count - 1 else None
