"""One run on several devices: each device takes its share of every batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from fnn._base import Data, Metrics, Params, State
from fnn.training._state import TrainState
from fnn.training._step import Step, with_update


@dataclass(frozen=True, eq=False)
class Parallel(Step):
    """A step on all devices of a mesh."""

    mesh: Mesh | None = None


def data_parallel(step: Step, devices: Sequence[Any] | None = None) -> Step:
    """The step with its batch split over `devices`, by default all; each holds all parameters.

    Arguments and results are those of `step`, to rounding: means and the statistics of batch norm
    are over the whole batch. Arrays that are on one device are copied to all of them, by the loops
    and by ``step.init``; under a ``jit`` of your own, which is told the devices of its arguments,
    make `ts` by ``step.init``. ValueError unless the batch size is a multiple of the number of
    devices.
    """
    mesh = Mesh(np.array(jax.devices() if devices is None else devices), ("batch",))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))

    def shard(leaf: Array) -> Array:
        if leaf.shape[0] % mesh.size:
            raise ValueError(
                f"data_parallel: a batch of {leaf.shape[0]} rows cannot be split evenly over"
                f" {mesh.size} devices"
            )
        return lax.with_sharding_constraint(leaf, sharding)

    def sharded(
        ts: TrainState, batch: Data, key: Array, mask: Array | None = None
    ) -> tuple[TrainState, Metrics]:
        ts, batch, key, mask = on_the_same(mesh, (ts, batch, key, mask))
        return step(ts, jax.tree.map(shard, batch), key, jax.tree.map(shard, mask))

    if not isinstance(step, Step):
        return with_update(step, sharded)

    def init(params: Params, state: State = ()) -> TrainState:
        return on_the_same(mesh, step.init(params, state))

    return Parallel(init, sharded, step.policy, mesh)


def mesh_of(step: Any) -> Mesh | None:
    """The devices that the step is split over, None for a step of one device."""
    return getattr(step, "mesh", None)


def on_the_same(mesh: Mesh | None, tree: Any) -> Any:
    """The tree with all arrays on the same devices: of the mesh, or where most devices are.

    Only arrays that are committed to other devices are copied. Without a mesh the first of the
    arrays on most devices decides. Under a trace nothing is done: ``jit`` places its arguments.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, Array)]
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return tree
    found = [leaf.sharding for leaf in leaves if leaf.committed]
    if mesh is not None:
        target: Sharding | None = NamedSharding(mesh, PartitionSpec())
    else:
        target = _whole(max(found, key=lambda sharding: len(sharding.device_set), default=None))
    if target is None or all(sharding.device_set == target.device_set for sharding in found):
        return tree

    def place(leaf: Any) -> Any:
        elsewhere = isinstance(leaf, Array) and leaf.committed
        if not elsewhere or leaf.sharding.device_set == target.device_set:
            return leaf
        return jax.device_put(leaf, target)

    return jax.tree.map(place, tree)


def _whole(sharding: Sharding | None) -> Sharding | None:
    """A sharding on the same devices, each with the whole array; None if it is of another kind."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding if isinstance(sharding, SingleDeviceSharding) else None
