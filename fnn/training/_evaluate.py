"""Over all rows, a batch at a time: the exact mean or sum of a metric, and predictions."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from fnn._base import Data, as_count, paths, weighted_sum, wide
from fnn.data import rows_of
from fnn.training._programs import traced
from fnn.training._rows import Index, batches_of


def evaluate(
    metric_fn: Callable[[Data], Any],
    data: Data,
    batch_size: int,
    *,
    reduce: Literal["mean", "sum"] = "mean",
) -> Any:
    """The exact mean over all rows of metric_fn(batch), leaves [batch, ...] -> [...], or the sum.

    Every row counts once, also in the last batch. `batch_size` bounds the memory and changes
    nothing else. A sum of bools or integers is counted in integers of at least 32 bits, because
    float32 stops counting at 2^24.
    """
    if reduce not in ("mean", "sum"):
        raise ValueError(f"evaluate: reduce is {reduce!r}, expected 'mean' or 'sum'")
    rows = rows_of("evaluate", data)
    batch_size = min(as_count("evaluate", "batch_size", batch_size), rows)
    batches = batches_of("evaluate", data, None, batch_size)

    def batch_sum(index: Index) -> Any:
        batch, mask = batches.draw(index)

        def over_rows(values: Any) -> Array:
            if jnp.shape(values)[:1] != (batch_size,):
                raise ValueError(
                    f"evaluate: metric_fn returned shape {jnp.shape(values)},"
                    f" expected one value per row, [{batch_size}, ...]"
                )
            values = jnp.asarray(values)
            return weighted_sum(wide(values) if reduce == "mean" else _countable(values), mask)

        return jax.tree.map(over_rows, traced("evaluate", "metric_fn", metric_fn, batch))

    sums = lax.map(batch_sum, batches.in_order())
    totals = jax.tree.map(lambda s: jnp.sum(s, axis=0), sums)
    return totals if reduce == "sum" else jax.tree.map(lambda s: s / rows, totals)


def predict(apply_fn: Callable[[Data], Any], data: Data, batch_size: int) -> Any:
    """apply_fn(batch), leaves [batch, ...], of all rows in their order: leaves [rows, ...].

    As in ``predict(lambda x: apply(params, x), x, 256)``. The last batch is filled up, and what
    comes of that is cut off. `batch_size` bounds the memory. A row's result does not depend on it
    if a row does not depend on the others: batch norm must not be training. Pure: jit it.
    """
    rows = rows_of("predict", data)
    batch_size = min(as_count("predict", "batch_size", batch_size), rows)
    batches = batches_of("predict", data, None, batch_size)

    def one(index: Index) -> Any:
        outputs = traced("predict", "apply_fn", apply_fn, batches.draw(index)[0])
        for path, leaf in paths(outputs).items():
            if jnp.shape(leaf)[:1] != (batch_size,):
                raise ValueError(
                    f"predict: apply_fn returned shape {jnp.shape(leaf)} {path}".rstrip()
                    + f", expected one entry per row, [{batch_size}, ...]"
                )
        return outputs

    outputs = lax.map(one, batches.in_order())
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:rows], outputs)


def _countable(values: Array) -> Array:
    if jnp.issubdtype(values.dtype, jnp.floating):
        return wide(values)
    return values if values.dtype.itemsize >= 4 else values.astype(jnp.int32)
