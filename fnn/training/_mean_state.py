"""The state of a model, such as batch norm's statistics, for given parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from fnn._base import Data, State, as_count, check_key, wide
from fnn.data import permutation, rows_of, take
from fnn.training._programs import traced


def mean_state(
    state_fn: Callable[[Data], State], data: Data, batch_size: int, *, key: Array | None = None
) -> State:
    """-> the mean over all rows of state_fn(batch), a tree of floating arrays.

    For batch norm of averaged parameters, whose running statistics belong to others::

        average = ts.opt_state["average"]

        def state_fn(batch):                # momentum 0: the statistics of this batch alone
            return apply(average, ts.state, batch[0], train=True, momentum=0.0)[1]

        state = fnn.training.mean_state(state_fn, data.train, batch_size=64, key=key)

    Each batch weighs as many times as it has rows; a last batch that is not full is a smaller one.
    With full batches this is what PyTorch's swa_utils.update_bn computes if momentum is None.
    `key`: shuffles the rows first, for data in which neighbours are alike; without one the batches
    are in the order of the data. A batch of the training's size gives variances like the
    training's. Pure: jit it.
    """
    rows = rows_of("mean_state", data)
    batch_size = min(as_count("mean_state", "batch_size", batch_size), rows)
    order = jnp.arange(rows, dtype=jnp.int32)
    if key is not None:
        check_key("mean_state", key)
        order = permutation(key, rows)
    full = rows - rows % batch_size

    def one(index: Array) -> State:
        return traced("mean_state", "state_fn", state_fn, take(data, index))

    states = lax.map(one, order[:full].reshape(-1, batch_size))
    means = jax.tree.map(lambda s: jnp.mean(wide(s), axis=0), states)
    if full < rows:
        share = (rows - full) / rows
        rest = one(order[full:])
        means = jax.tree.map(lambda a, b: a + share * (wide(b) - a), means, rest)
    return jax.tree.map(lambda mean, s: mean.astype(s.dtype), means, states)
