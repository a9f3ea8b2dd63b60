"""One run on several devices: each takes its share of every batch."""

from collections.abc import Sequence
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn.step import Step, TrainState
from fnn.types import Data, Metrics


def data_parallel(step: Step, devices: Sequence[Any] | None = None) -> Step:
    """The step with its batch dealt out to `devices`, by default all; parameters are on each.

    Same arguments, same results to rounding: means and batch norm's statistics are those of the
    whole batch. The batch size has to be a multiple of the number of devices.
    """
    mesh = Mesh(np.array(jax.devices() if devices is None else devices), ("batch",))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))

    def deal(leaf: Array) -> Array:
        if leaf.shape[0] % mesh.size:
            raise ValueError(
                f"data_parallel: a batch of {leaf.shape[0]} rows cannot be dealt out to"
                f" {mesh.size} devices"
            )
        return lax.with_sharding_constraint(leaf, sharding)

    @wraps(step)
    def dealt(
        ts: TrainState, batch: Data, key: Array, mask: Array | None = None
    ) -> tuple[TrainState, Metrics]:
        return step(ts, *jax.tree.map(deal, (batch,)), key, jax.tree.map(deal, mask))

    return dealt
