"""Shuffling, splitting, weighing and cutting data: trees of arrays whose first axis is the rows."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from fnn._base import (
    AnyArray,
    Data,
    as_array,
    as_count,
    as_ids,
    check_fits,
    check_key,
    check_range,
    path_of,
)

MOST_ROWS = 2**31 - 1  # rows are numbered in int32


def rows_of(name: str, data: Data) -> int:
    """The number of rows, the same for every leaf; `name` is the caller's, for the message.

    ValueError if the leaves differ in the first axis, if one has no axis, or if there are no rows,
    or more than 2^31 - 1. TypeError for a leaf that is no array of numbers or bools, as a table is.
    """
    leaves = _leaves(name, data)
    shapes = [leaf.shape for leaf in leaves]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(f"{name}: data have shapes {shapes}, expected one shared first axis")
    if lengths == {(0,)}:
        raise ValueError(f"{name}: data have no rows (shapes {shapes})")
    _check_rows(name, shapes[0][0])
    for leaf in leaves:
        check_fits(name, "data", leaf)
    return shapes[0][0]


def permutation(key: Array, n: int) -> Array:
    """A random permutation of 0 ... n - 1, int32 [n], without a sort.

    The swap-or-not shuffle (Hoang, Morris & Rogaway 2012). Each round draws a number k and pairs i
    with k - i mod n. One random bit for each pair decides whether the pair is swapped. After
    6 log2(n) rounds the tests in `tests/` cannot tell the result from a uniform permutation. The
    order for a key is the same on every platform. On XLA's CPU backend it is 13 times as fast as
    a sort at 1,437 rows and 15 times at 60,000. ValueError if n is more than 2^31 - 1.
    """
    check_key("permutation", key)
    n = as_count("permutation", "n", n, 0)
    _check_rows("permutation", n)
    rounds = 32 * math.ceil(6 * math.log2(max(n, 2)) / 32)
    draws = jax.random.bits(key, (rounds, 2), jnp.uint32)

    def swap_or_not(x: Array, draw: Array) -> tuple[Array, None]:
        x, k = x.astype(jnp.uint32), draw[0] % jnp.uint32(n)
        # The smaller is k - x mod n: below zero k - x wraps to a large number.
        partner = jnp.minimum(k - x, k - x + jnp.uint32(n))
        swap = _coin(jnp.maximum(x, partner) ^ draw[1])
        return jnp.where(swap, partner, x).astype(jnp.int32), None

    def shuffled(draws: Array, unroll: int) -> Array:
        return lax.scan(swap_or_not, jnp.arange(n, dtype=jnp.int32), draws, unroll=unroll)[0]

    # 32 rounds written out are one kernel on a GPU; on a CPU they take longer than a loop.
    return lax.platform_dependent(
        draws, cpu=partial(shuffled, unroll=1), default=partial(shuffled, unroll=32)
    )


def _coin(x: Array) -> Array:
    """A bool for each number, uint32 [...]: the highest bit of the hash `lowbias32` (Wellons 2018).

    Arithmetic alone, unlike a table of random bits, becomes part of the kernel around it.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x >> 31 == 1  # the hash's last step, x ^ (x >> 16), leaves this bit as it is


def take(data: Data, rows: Array) -> Data:
    """The given rows, int [...], of every leaf: [n, ...] -> [..., ...].

    The row numbers are not checked; they must be in 0 ... n - 1.
    ValueError for a NumPy integer of 64 bits that JAX would cut to 32.
    """
    for leaf in _leaves("take", data):
        check_fits("take", "data", leaf)
    rows = jnp.asarray(rows)
    return jax.tree.map(lambda a: jnp.asarray(a).at[rows].get(mode="promise_in_bounds"), data)


def split(
    key: Array | None, data: Data, fraction: float, *, labels: AnyArray | None = None
) -> tuple[Data, Data]:
    """Shuffled rows in two parts: the first has round(fraction * rows) of them.

    `labels`, [rows], of any kind: the split is stratified. Of each class the first part has its
    fraction, up to less than one row. Without a key the rows keep their order.
    ValueError if one of the parts has no row.
    """
    if key is not None:
        check_key("split", key)
    rows = rows_of("split", data)
    check_range("split", "fraction", fraction, 0, 1, above=True)
    first = round(fraction * rows)
    if not 0 < first < rows:
        raise ValueError(
            f"split: fraction is {fraction}, which makes parts of {first} and {rows - first} rows,"
            " expected at least 1 row in each"
        )
    order = jnp.arange(rows, dtype=jnp.int32) if key is None else permutation(key, rows)
    if labels is not None:
        order = _stratified(labels, order, first)
    return take(data, order[:first]), take(data, order[first:])


def class_weights(labels: AnyArray, classes: int) -> Array:
    """int [rows] -> float32 [rows], for ``fit(weights=...)``: every class has the same sum.

    A row's weight is rows / (classes present * rows of its class). The mean weight is 1.
    A label outside [0, classes) is not counted; the weight of its row is NaN.
    """
    labels = as_array("class_weights", "labels", labels)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"class_weights: labels are {labels.dtype}{list(labels.shape)}, expected int [rows]"
        )
    classes, labels = as_count("class_weights", "classes", classes), as_ids(labels)
    known = (labels >= 0) & (labels < classes)
    labels = jnp.where(known, labels, classes)
    counts = jnp.bincount(labels, length=classes).astype(jnp.float32)
    # In float32, where classes times rows does not wrap.
    present = jnp.sum(counts > 0).astype(jnp.float32)
    each = jnp.sum(known).astype(jnp.float32) / (present * jnp.maximum(counts, 1))
    return each.at[labels].get(mode="fill", fill_value=jnp.nan)


def windows(sequence: AnyArray, length: int, stride: int | None = None) -> Array:
    """[time, ...] -> [windows, length, ...]: pieces of a sequence, each `stride` after the last.

    Without `stride` the windows lie side by side. Steps at the end that fill no window are dropped.
    To predict the next character: ``w = windows(ids, length + 1, length)``; the inputs are
    w[:, :-1], the labels w[:, 1:]. Only characters at the end of the sequence are lost.
    """
    time = rows_of("windows", sequence)
    length = as_count("windows", "length", length)
    stride = length if stride is None else as_count("windows", "stride", stride)
    if length > time:
        raise ValueError(f"windows: length is {length}, but the sequence has {time} steps")
    starts = jnp.arange(0, time - length + 1, stride)
    return take(sequence, starts[:, None] + jnp.arange(length))


def _leaves(name: str, data: Data) -> list[AnyArray]:
    """The arrays in `data`; TypeError for anything else, which the message names by its path."""
    return [
        as_array(name, f"data at {path!r}" if (path := path_of(keys)) else "data", leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(data)
    ]


def _check_rows(name: str, rows: int) -> None:
    if rows > MOST_ROWS:
        raise ValueError(f"{name}: data have {rows} rows, expected at most {MOST_ROWS}")


def _stratified(labels: Any, order: Array, first: int) -> Array:
    """The order of rows so that the first part has its share of each class."""
    rows = order.shape[0]
    if not isinstance(labels, Tracer):
        labels = np.unique(np.asarray(labels), return_inverse=True)[1]
    if labels.shape != (rows,):
        raise ValueError(f"split: labels have shape {labels.shape}, expected [rows], ({rows},)")
    # Sorted by class, one row in every rows / first goes into the first part.
    place = jnp.argsort(jnp.asarray(labels)[order], stable=True)
    steps = np.arange(rows + 1, dtype=np.int64) * first // rows
    chosen = jnp.zeros(rows, bool).at[place].set(np.diff(steps) > 0)
    return order[jnp.argsort(~chosen, stable=True)]
