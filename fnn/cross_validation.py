"""Cross-validation: every seed, on every fold, at every point of a grid, as one program.

Folds are rows' numbers. They are chosen on the host, and filled up to one shape, so that inside
the program the number of the fold is one more axis of a sweep.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fnn.data import permutation, rows_of, take
from fnn.population import Run, sweep_with
from fnn.precision import wide
from fnn.types import AnyArray, Data


class Folds(NamedTuple):
    """Which rows each fold trains on and which it validates on.

    int32 [folds, rows], and bool alike: False where a shorter fold was filled up, with rows of
    its own again, so that no row to validate on is ever among those to train on.
    """

    train: AnyArray
    train_mask: AnyArray
    valid: AnyArray
    valid_mask: AnyArray


class Part(NamedTuple):
    """Rows of the data, leaves [rows, ...], and 1.0 where they count, 0.0 else, float32 [rows]."""

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
    """Number of rows -> folds, each row in exactly one to validate on and in the others to train.

    Sizes differ by at most 1, larger ones first, as scikit-learn's do. With `labels` [rows] the
    folds are stratified: each class's counts differ by at most 1 too. With `groups` [rows] all
    rows of a group are in one fold, the largest group first into the fold that holds least, and
    with both into the one that holds least of the group's classes; then sizes are as equal as
    that makes them. The key shuffles rows and groups; without one the rows are dealt in turn:
    row i, of a class, into fold i modulo folds. On the host: labels and groups are not traced.
    """
    if not 2 <= folds <= rows:
        raise ValueError(f"k_folds: folds is {folds}, expected 2 to the {rows} rows")
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

    For folds of one's own, or those of a scikit-learn splitter: ``pad_folds(splitter.split(x))``.
    """
    trains, valids = zip(*pairs, strict=True)
    return Folds(*_padded("train", trains), *_padded("valid", valids))


def cross_validate(
    run: Run,
    keys: Array,
    data: Data,
    folds: Folds,
    grid: Mapping[str, ArrayLike] | None = None,
    *,
    width: int | None = None,
) -> Any:
    """run(key, train, valid, **point) for each of keys [n], fold and point: [n, folds, *grid, ...].

    `train` and `valid` are the fold's `Part` of the data each: train with
    ``fnn.fit(..., train.data, weights=train.weights)``, and return, say,
    ``weighted_mean(accuracies, valid.weights)``. Whatever is fitted to data, `standardizer` too, is
    fitted in the run, to `train`, and so has not seen `valid`. Every point of the grid meets the
    same folds with the same keys, so the same initial parameters.

    It is one `sweep`, whose `grid` and `width` these are; a second call with the same `run`, on
    other data or folds of the same shapes, compiles nothing.
    """
    _check_folds(folds, rows_of("cross_validate", data))
    grid = {FOLD: jnp.arange(len(folds.train), dtype=jnp.int32)} | dict(grid or {})
    return sweep_with("cross_validate", _OnFold(run), keys, grid, width, (data, folds))


def weighted_mean(values: AnyArray, weights: AnyArray | None = None) -> Array:
    """[rows, ...], [rows] -> [...]: sum of weight * value / sum of weights, over the rows.

    Where the weight is 0, or False, the value may be anything, NaN too. Without weights the plain
    mean. In float32 at least; NaN where no row counts.
    """
    values = wide(values)
    if weights is None:
        return jnp.mean(values, axis=0)
    if weights.shape != values.shape[:1]:
        raise ValueError(
            f"weighted_mean: weights have shape {weights.shape}, but values {values.shape};"
            " expected one for each row"
        )
    weights = jnp.asarray(weights, values.dtype)
    each = weights.reshape(-1, *[1] * (values.ndim - 1))
    total = jnp.sum(jnp.where(each == 0, 0, each * values), axis=0)
    return total * (1 / jnp.sum(weights))


def standardizer(x: AnyArray, weights: AnyArray | None = None) -> Callable[[AnyArray], Array]:
    """[rows, ...], [rows] -> standardize(x): (x - mean) / deviation of each feature in these rows.

    The deviation is of n, not n - 1. A feature that is constant here is only shifted. Statistics
    are computed in float32 at least, in two passes.
    """
    values = wide(x)
    rough = weighted_mean(values, weights)
    mean = rough + weighted_mean(values - rough, weights)
    deviation = jnp.sqrt(weighted_mean((values - mean) ** 2, weights))
    varies = deviation > 8 * jnp.finfo(values.dtype).eps * jnp.abs(mean)
    factor = jnp.where(varies, 1 / jnp.where(varies, deviation, 1), 1)

    def standardize(x: AnyArray) -> Array:
        values = wide(x)
        scaled = (values - mean.astype(values.dtype)) * factor.astype(values.dtype)
        return scaled.astype(x.dtype)

    return standardize


_shuffled = jax.jit(permutation, static_argnums=1)  # compiled once, not at every call

# No argument of a run can have this name, so that the grid's may have any.
FOLD = "number of the fold"


class _OnFold(NamedTuple):
    """The run of a sweep. Equal to another of the same run, which is what compiles nothing."""

    run: Run

    def __call__(self, key: Array, data: Data, folds: Folds, **point: Any) -> Any:
        train, train_mask, valid, valid_mask = take(folds, point.pop(FOLD))

        def part(rows: Array, mask: Array) -> Part:
            return Part(take(data, rows), mask.astype(jnp.float32))

        return self.run(key, part(train, train_mask), part(valid, valid_mask), **point)


def _folds_of_groups(
    groups: np.ndarray, classes: np.ndarray, order: np.ndarray, folds: int
) -> np.ndarray:
    """The fold of each row, all rows of a group in one."""
    _, first, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    if len(sizes) < folds:
        raise ValueError(f"k_folds: {len(sizes)} groups, expected at least one for each of {folds}")
    # Counts of each class, and of all, which weighs as much as the classes together: into the
    # fold where the sum of squares of their shares grows least.
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
                f" 0 to {rows - 1}, for data have {rows} rows"
            )
