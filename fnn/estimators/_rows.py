"""The rows of a fit on the host: which count, which are the same, which are kept to validate."""

from typing import Any

import numpy as np
from numpy.random import RandomState
from sklearn.model_selection import train_test_split

from fnn._base import check_range
from fnn.estimators._runs import Rows


def weights_of(who: str, sample_weight: Any, rows: int) -> np.ndarray | None:
    """The weights of the rows, float64 [rows]; None if all count alike."""
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, np.float64)
    weights = np.full(rows, weights) if weights.ndim == 0 else weights
    if weights.shape != (rows,):
        raise ValueError(f"{who}: sample_weight has shape {weights.shape}, expected ({rows},)")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"{who}: sample_weight has negative, infinite or NaN entries")
    if not weights.any():
        raise ValueError(f"{who}: sample_weight is zero everywhere, expected one that is not")
    return weights


def counted(rows: Rows) -> Rows:
    """The rows whose weight is not 0: the others are as if they were not there."""
    if rows.weights is None:
        return rows
    keep = np.asarray(rows.weights) > 0
    return rows if keep.all() else Rows(rows.x[keep], rows.y[keep], rows.weights[keep])


def distinct(rows: Rows) -> Rows:
    """Equal rows as one row, with the sum of their weights, in an order of their bytes.

    For a batch of all rows this changes nothing but rounding: with it a row of weight 3 and three
    rows of weight 1 give the same bits.
    """
    n = len(rows.x)
    columns = [np.ascontiguousarray(a).reshape(n, -1) for a in (rows.x, rows.y)]
    table = np.concatenate([column.view(np.uint8).reshape(n, -1) for column in columns], axis=1)
    whole = np.ascontiguousarray(table).view(np.dtype((np.void, table.shape[1]))).ravel()
    _, first, place = np.unique(whole, return_index=True, return_inverse=True)
    weights = np.bincount(place, None if rows.weights is None else rows.weights)
    return Rows(rows.x[first], rows.y[first], weights.astype(np.float64))


def scaled(rows: Rows, dtype: Any) -> tuple[Rows, int]:
    """(the rows with weights in this dtype, e): the weights are divided by 2^e, which is exact.

    So the largest is 1 to 2, and no sum of them overflows. None if all are then 1.
    """
    if rows.weights is None:
        return rows, 0
    exponent = int(np.frexp(rows.weights.max())[1]) - 1
    weights = np.ldexp(rows.weights, -exponent)
    weights = None if (weights == 1).all() else weights.astype(dtype)
    return Rows(rows.x, rows.y, weights), exponent


def split(
    who: str, rows: Rows, fraction: Any, stratified: bool, random_state: RandomState
) -> tuple[Rows, Rows]:
    """(rows to train, rows to validate), by scikit-learn's `train_test_split`."""
    check_range(who, "validation_fraction", fraction, 0, 1, above=True)
    train, validate = train_test_split(
        np.arange(len(rows.x)),
        test_size=fraction,
        random_state=random_state,
        stratify=rows.y if stratified else None,
    )
    if len(validate) < 2:
        raise ValueError(
            f"{who}: validation_fraction {fraction} of {len(rows.x)} rows is {len(validate)} row,"
            " expected at least 2"
        )
    return _taken(rows, train), _taken(rows, validate)


def _taken(rows: Rows, places: Any) -> Rows:
    weights = None if rows.weights is None else rows.weights[places]
    return Rows(rows.x[places], rows.y[places], weights)
