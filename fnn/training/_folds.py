"""Cross-validation: every seed, on every fold, at every point of a grid, as one program.

Folds hold the numbers of rows. They are chosen on the host and padded to one shape, so that inside
the program the number of the fold is one more axis of a sweep.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from fnn._base import (
    AnyArray,
    Data,
    as_array,
    as_count,
    check_key,
    fits,
    safe_sqrt,
    weighted_mean,
    wide,
)
from fnn.data import permutation, rows_of, take
from fnn.training._sweep import Run, sweep_with


class Folds(NamedTuple):
    """The rows that each fold trains on, and the rows that it validates on.

    Numbers of rows, int32 [folds, rows], and masks, bool [folds, rows]. A mask is False where a
    shorter fold was padded. Padding repeats rows of the same part of the fold, so no row to
    validate on is ever among the rows to train on.
    """

    train: AnyArray
    train_mask: AnyArray
    valid: AnyArray
    valid_mask: AnyArray


class Part(NamedTuple):
    """Rows of the data, leaves [rows, ...], and weights, float32 [rows]: 1.0, or 0.0 if padded."""

    data: Data
    weights: Array


def k_folds(
    key: Array | None,
    rows: int,
    folds: int,
    *,
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> Folds:
    """Number of rows -> folds. Each row is validated on in one fold and trained on in the others.

    The sizes of folds differ by at most 1, larger folds first, as in scikit-learn.
    `labels`, [rows]: the folds are stratified. The counts of each class differ by at most 1 too.
    `groups`, [rows]: all rows of a group are in one fold. Groups are placed one after another, the
    largest first, each into the fold with the fewest rows. Sizes may then differ by more.
    Both: each group goes into the fold that holds least of the group's classes.
    `key`: shuffles rows and groups. Without a key row i, of each class, goes into fold i modulo
    folds.

    This runs on the host: labels and groups are not traced.
    """
    rows, folds = as_count("k_folds", "rows", rows), as_count("k_folds", "folds", folds)
    if not 2 <= folds <= rows:
        raise ValueError(f"k_folds: folds is {folds}, expected 2 to the {rows} rows")
    if key is not None:
        check_key("k_folds", key)
    order = np.arange(rows) if key is None else np.asarray(_shuffled(key, rows))
    classes = np.zeros(rows, int) if labels is None else _numbers("labels", labels, rows)
    if groups is None:
        fold = np.empty(rows, int)
        fold[order[np.argsort(classes[order], kind="stable")]] = np.arange(rows) % folds
    else:
        fold = _folds_of_groups(_numbers("groups", groups, rows), classes, order, folds)
    return pad_folds((np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(folds))


def pad_folds(pairs: Iterable[tuple[ArrayLike, ArrayLike]]) -> Folds:
    """Pairs of rows' numbers, (to train on, to validate on) -> folds of one shape.

    For your own folds, or those of a scikit-learn splitter: ``pad_folds(splitter.split(x))``.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("pad_folds: no pair came, expected one of (rows, rows) for each fold")
    trains, valids = zip(*pairs, strict=True)
    return Folds(*_padded("train", trains), *_padded("valid", valids))


def cross_validate(
    run: Run,
    keys: Array,
    data: Data,
    folds: Folds,
    grid: Mapping[str, ArrayLike] | None = None,
    *,
    by_fold: Mapping[str, ArrayLike] | None = None,
    width: int | None = None,
) -> Any:
    """run(key, train, valid, **point) for each of keys [n], fold and point: [n, folds, *grid, ...].

    `train` and `valid` are each a `Part` of the data. In the run, train with
    ``fnn.fit(..., train.data, weights=train.weights)``, and return for example
    ``weighted_mean(accuracies, valid.weights)``. Fit everything that is fitted to data inside the
    run, to `train`; the `standardizer` too. Then nothing has seen `valid`. Every point of the grid
    gets the same folds and the same keys, so the same initial parameters. `by_fold` is
    {"learning_rate": [folds] values, ...}: value i is for fold i, as nested cross-validation needs.

    It is one `sweep`; `grid` and `width` are those of `sweep`. A second call with the same `run`,
    on other data or folds of the same shapes, compiles nothing.
    """
    _check_folds(folds, rows_of("cross_validate", data))
    values = {name: jnp.asarray(values) for name, values in (by_fold or {}).items()}
    for name, v in values.items():
        if v.shape[:1] != (len(folds.train),) or name in (grid or {}):
            also = " and is in the grid too" if name in (grid or {}) else ""
            raise ValueError(
                f"cross_validate: {name} has shape {v.shape}{also}, expected one value for each of"
                f" {len(folds.train)} folds, by_fold or by grid"
            )
    grid = {FOLD: jnp.arange(len(folds.train), dtype=jnp.int32)} | dict(grid or {})
    return sweep_with("cross_validate", run, keys, grid, width, (data, folds, values), _on_fold)


class Standardizer(NamedTuple):
    """[..., features] -> (x - mean) / scale: a function, and a pytree of two arrays.

    So it can be saved with the parameters, and be made anew as ``Standardizer(mean, scale)``.
    """

    mean: AnyArray
    scale: AnyArray

    def __call__(self, x: AnyArray) -> Array:
        """The same features, standardized, in the dtype of x; integers become floating point."""
        values = wide(as_array("standardize", "x", x))
        for part in (self.mean, self.scale):
            if not fits(jnp.shape(part), x.shape):
                raise ValueError(
                    f"standardize: x has shape {x.shape}, but mean and scale have"
                    f" {jnp.shape(part)}, the shape of one row"
                )
        factor = 1 / wide(self.scale)
        shifted = values - jnp.asarray(self.mean, values.dtype)
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else values.dtype
        return (shifted * factor.astype(values.dtype)).astype(jax.dtypes.canonicalize_dtype(dtype))


def standardizer(x: AnyArray, weights: AnyArray | None = None) -> Standardizer:
    """[rows, ...], [rows] -> standardize(x): (x - mean) / deviation of each feature in these rows.

    The deviation is of n, not n - 1. A feature that is constant in these rows is only shifted.
    Statistics are computed in float32 at least, in two passes, and right for features of 1e20 and
    of 1e-23. Rows with weight 0 do not count, NaN or inf in them neither.
    """
    values = wide(as_array("standardizer", "x", x))
    if weights is not None and as_array("standardizer", "weights", weights).shape != x.shape[:1]:
        raise ValueError(
            f"standardizer: weights have shape {weights.shape}, expected one for each row of x,"
            f" {x.shape}"
        )
    unit = _power_of_2_near(values, weights)
    values = values * (1 / unit)
    rough = weighted_mean(values, weights)
    mean = rough + weighted_mean(values - rough, weights)
    deviation = safe_sqrt(weighted_mean((values - mean) ** 2, weights))
    limits = jnp.finfo(values.dtype)
    varies = deviation > 8 * limits.eps * jnp.abs(mean)
    scale = jnp.where(varies, jnp.where(varies, deviation, 1) * unit, 1)
    # A scale below the normal numbers is 0 on many devices: such a feature is only shifted too.
    return Standardizer(mean * unit, jnp.where(scale < limits.tiny, 1, scale))


def _power_of_2_near(values: Array, weights: AnyArray | None) -> Array:
    """[rows, ...] -> [...]: a power of 2 near each feature's largest magnitude.

    Divided by it squares neither overflow nor vanish, and no digit changes.
    """
    counted = jnp.ones(values.shape[:1], bool) if weights is None else jnp.asarray(weights, bool)
    counted = counted.reshape(-1, *[1] * (values.ndim - 1))
    largest = jnp.max(jnp.abs(values), axis=0, initial=0, where=counted)
    exponent = jnp.frexp(jnp.where(jnp.isfinite(largest), largest, 1))[1]
    most = -jnp.finfo(values.dtype).minexp  # beyond it the reciprocal has fewer digits
    return lax.stop_gradient(jnp.ldexp(jnp.ones_like(largest), jnp.clip(exponent, -most, most)))


_shuffled = jax.jit(permutation, static_argnums=1)  # compiled once, not at every call

# No argument of a run can have this name, so an axis of the grid may have any name.
FOLD = "number of the fold"


def _on_fold(
    run: Run, key: Array, data: Data, folds: Folds, by_fold: dict[str, Array], **point: Any
) -> Any:
    """How the sweep calls its run."""
    fold = point.pop(FOLD)
    point |= {name: values[fold] for name, values in by_fold.items()}
    train, train_mask, valid, valid_mask = take(folds, fold)

    def part(rows: Array, mask: Array) -> Part:
        return Part(take(data, rows), mask.astype(jnp.float32))

    return run(key, part(train, train_mask), part(valid, valid_mask), **point)


def _folds_of_groups(
    groups: np.ndarray, classes: np.ndarray, order: np.ndarray, folds: int
) -> np.ndarray:
    """The fold of each row; all rows of a group are in one fold."""
    _, first, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    if len(sizes) < folds:
        raise ValueError(f"k_folds: {len(sizes)} groups, expected at least {folds}, one a fold")
    # Counts of each class, and of all rows; the count of all rows weighs as much as the classes
    # together. A group goes into the fold where the sum of squares of the shares grows least.
    counts = np.zeros((len(sizes), classes.max() + 2))
    np.add.at(counts, (groups, classes), 1)
    counts[:, -1] = sizes
    weight = 1 / counts.sum(0) ** 2
    weight[-1] *= len(weight) - 1
    held = np.zeros((folds, counts.shape[1]))
    fold = np.empty(len(sizes), int)
    for group in np.lexsort((first, -sizes)):
        fold[group] = np.argmin(held * counts[group] @ weight)
        held[fold[group]] += counts[group]
    return fold[groups]


def _numbers(argument: str, values: ArrayLike, rows: int) -> np.ndarray:
    """Values of any kind, [rows], as numbers from 0."""
    values = np.asarray(values)
    if values.shape != (rows,):
        raise ValueError(f"k_folds: {argument} have shape {values.shape}, expected ({rows},)")
    return np.unique(values, return_inverse=True)[1]


def _padded(part: str, folds: Sequence[ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    numbers = [np.asarray(rows) for rows in folds]
    for i, rows in enumerate(numbers):
        if rows.ndim != 1 or not rows.size or not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(
                f"pad_folds: {part} of fold {i} is {rows.dtype}{list(rows.shape)},"
                " expected the numbers of at least one row, int [rows]"
            )
    sizes = np.array([rows.size for rows in numbers])
    index = np.stack([np.resize(rows, sizes.max()) for rows in numbers]).astype(np.int32)
    return index, np.arange(sizes.max()) < sizes[:, None]


def _check_folds(folds: Folds, rows: int) -> None:
    for name, part, mask in zip(Folds._fields[::2], folds[::2], folds[1::2], strict=True):
        if part.ndim != 2 or part.shape != mask.shape or len(part) != len(folds.train):
            raise ValueError(
                f"cross_validate: {name} has shape {part.shape} and its mask {mask.shape},"
                f" expected [folds, rows] of both, folds {len(folds.train)}"
            )
        if isinstance(part, np.ndarray) and not (part.min() >= 0 and part.max() < rows):
            raise ValueError(
                f"cross_validate: {name} has rows {part.min()} to {part.max()}, expected"
                f" 0 to {rows - 1}, because the data have {rows} rows"
            )
