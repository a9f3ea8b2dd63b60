"""Nested cross-validation: hyperparameters are chosen without the rows that score the choice."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fnn._base import Data, as_count, check_key
from fnn.data import rows_of
from fnn.search._points import Point, check_distinct_keys
from fnn.training import Folds, Run, cross_validate, k_folds, pad_folds

Mode = Literal["max", "min"]
WHO = "nested_cross_validate"


class Nested(NamedTuple):
    """What `nested_cross_validate` returns.

    `scores`: float64 [outer folds, keys], on rows that took no part in training or choosing.
    `points`: the chosen point of each outer fold, {name: value}.
    `inner`: float64 [outer folds, *grid], the mean inner scores that it was chosen by.
    `mean`: of all scores.
    `low`, `high`: the mean's 95 % interval.
    """

    scores: np.ndarray
    points: list[Point]
    inner: np.ndarray
    mean: float
    low: float
    high: float


def nested_cross_validate(
    run: Run,
    keys: Array,
    data: Data,
    outer: Folds,
    grid: Mapping[str, ArrayLike],
    *,
    inner: int = 5,
    mode: Mode = "max",
    key: Array | None = None,
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    width: int | None = None,
) -> Nested:
    """run(key, train, valid, **point) -> score; of each outer fold the score of its best point.

    The best score of a grid is too good as an estimate, because it was chosen by the same rows. So,
    for each fold of `outer`:

    1. Its rows to train on are cut into `inner` folds by `k_folds`. The point of `grid` with the
       best mean score over these folds and all keys is chosen; of equal points the first.
    2. At this point, each key trains on all rows to train on. Its score is that of the rows to
       validate on.

    So no row of an outer fold to validate on takes part in its choice. The choice may differ from
    fold to fold: what is scored is the whole procedure, choosing included (Cawley & Talbot 2010).

    `run` is that of `cross_validate` and returns one number. `mode` says whether a score or a loss
    is best at its "max" or its "min". A point where a score is NaN is never chosen. The inner folds
    are shuffled by `key`, stratified by `labels`, [rows], and keep `groups`, [rows], together, as
    in `k_folds`.

    All inner runs are one program and all outer runs another, each a `cross_validate`. `grid` and
    `width` are those of `sweep`.

    The interval is Student's t over the outer folds. Their training rows overlap, so the variance
    of the mean is not s^2 / folds; it is taken as s^2 (1 / folds + rows to validate on / rows to
    train on) (Nadeau & Bengio 2003).
    """
    rows = rows_of(WHO, data)
    values = _grid(grid)
    check_distinct_keys(WHO, keys)
    if mode not in ("max", "min"):
        raise ValueError(f"{WHO}: mode is {mode!r}, expected 'max' or 'min'")
    parts = _inner_folds(outer, rows, inner, key, labels, groups)
    trials = _scores(cross_validate(run, keys, data, parts, values, width=width), values)
    trials = trials.reshape(len(keys), len(outer.train), -1, *trials.shape[2:])
    means = trials.mean((0, 2))  # [outer, *grid]
    chosen = _choose(means, mode)
    by_fold = {name: v[at] for (name, v), at in zip(values.items(), chosen, strict=True)}
    scores = _scores(cross_validate(run, keys, data, outer, by_fold=by_fold, width=width), {}).T
    points = [
        {name: v[i].item() if v.ndim == 1 else v[i] for name, v in by_fold.items()}
        for i in range(len(scores))
    ]
    half = _half_of_interval(scores.mean(1), outer)
    mean = float(scores.mean())
    return Nested(scores, points, means, mean, mean - half, mean + half)


def _grid(grid: Any) -> dict[str, np.ndarray]:
    """The values of each name as the run receives them: float32, unless 64 bits are switched on."""
    if not isinstance(grid, Mapping) or not grid:
        raise TypeError(
            f'{WHO}: grid is {grid!r:.60}, expected a dict such as {{"learning_rate": [0.1, 0.2]}}'
        )
    values = {}
    for name, listed in grid.items():
        array = np.asarray(listed)
        if array.dtype.kind not in "biufcV":
            raise TypeError(f"{WHO}: {name} has values {listed!s:.60}, expected numbers")
        values[name] = np.asarray(jnp.asarray(array))
        if not values[name].ndim or not len(array):
            raise ValueError(f"{WHO}: {name} has shape {array.shape}, expected at least one value")
    return values


def _inner_folds(
    outer: Folds,
    rows: int,
    inner: int,
    key: Array | None,
    labels: ArrayLike | None,
    groups: ArrayLike | None,
) -> Folds:
    """The inner folds of all outer folds, one after another; rows have the data's numbers."""
    inner = as_count(WHO, "inner", inner, least=2)
    if key is not None:
        check_key(WHO, key)
    by_row = {"labels": labels, "groups": groups}
    named = {name: np.asarray(v) for name, v in by_row.items() if v is not None}
    for name, v in named.items():
        if v.shape != (rows,):
            raise ValueError(f"{WHO}: {name} have shape {v.shape}, expected ({rows},)")
    pairs = []
    for i, (train, mask) in enumerate(zip(outer.train, outer.train_mask, strict=True)):
        own = np.asarray(train)[np.asarray(mask, bool)]
        if len(own) < inner:
            raise ValueError(
                f"{WHO}: outer fold {i} trains on {len(own)} rows, expected at least {inner}, one"
                " for each inner fold"
            )
        shuffled = None if key is None else jax.random.fold_in(key, i)
        folds = k_folds(shuffled, len(own), inner, **{name: v[own] for name, v in named.items()})
        for train, train_mask, valid, valid_mask in zip(*folds, strict=True):
            pairs.append((own[train[train_mask]], own[valid[valid_mask]]))
    return pad_folds(pairs)


def _scores(results: Any, grid: Mapping[str, np.ndarray]) -> np.ndarray:
    """What `cross_validate` returned -> float64 [keys, folds, *grid]."""
    if not isinstance(results, Array) or results.ndim != 2 + len(grid):
        came = (
            f"shape {results.shape[2 + len(grid) :]}"
            if isinstance(results, Array)
            else (f"a {type(results).__name__}")
        )
        raise TypeError(f"{WHO}: run returned {came}, expected one number, the score")
    return np.asarray(results).astype(np.float64)


def _choose(means: np.ndarray, mode: Mode) -> tuple[np.ndarray, ...]:
    """[outer, *grid] -> for each axis of the grid, the number of the best value, int [outer]."""
    flat = means.reshape(len(means), -1) * (1 if mode == "max" else -1)
    nowhere = np.isnan(flat).all(1)
    if nowhere.any():
        raise ValueError(
            f"{WHO}: at every point an inner score of outer fold {nowhere.argmax()} is NaN,"
            " expected a point where none is"
        )
    return np.unravel_index(np.nanargmax(flat, axis=1), means.shape[1:])


def _half_of_interval(scores: np.ndarray, outer: Folds) -> float:
    """Half the width of the 95 % interval of the mean of scores [outer]; NaN of one fold."""
    from scipy import special  # slow to import

    folds = len(scores)
    if folds < 2:
        return math.nan
    ratio = np.asarray(outer.valid_mask).sum() / np.asarray(outer.train_mask).sum()
    error = scores.std(ddof=1) * math.sqrt(1 / folds + ratio)
    return float(special.stdtrit(folds - 1, 0.975) * error)
