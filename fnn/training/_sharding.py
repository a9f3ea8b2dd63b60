"""One run on several devices: each device takes its share of every batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from fnn._base import Data, Metrics, Params, State, as_count
from fnn.training._shares import AXIS, Shares, as_on_one_device, cycled
from fnn.training._state import TrainState
from fnn.training._step import ByGradient, Step, Way, with_update


@dataclass(frozen=True, eq=False)
class Parallel(Step):
    """A step on all devices of a mesh."""

    mesh: Mesh | None = None
    shares: int | None = None


def data_parallel(
    step: Step, devices: Sequence[Any] | None = None, *, shares: int | None = None
) -> Step:
    """The step with its batch split over `devices`, by default all; each holds all parameters.

    Arguments and results are those of `step`, to rounding: means and the statistics of batch norm
    are over the whole batch. A batch may have any number of rows: XLA fills the last device's up.
    Arrays that are on one device are copied to all of them, by the loops and by ``step.init``;
    under a ``jit`` of your own, which is told the devices of its arguments, make `ts` by
    ``step.init``.

    `shares`: a power of two. Each batch is cut into this number of shares, whatever the number of
    devices, and their gradients are added in a fixed order. So the run has the same bits on 1, 2,
    4, ... devices, up to `shares`, of one or of several processes, and a run of `train` goes on bit
    for bit on another number of devices. It is another run than without shares:

    - Share i draws from ``fold_in(key, i)``.
    - Each share begins with ``ts.state`` and has statistics of its own rows: batch norm is over
      batch / shares rows. The next state is the mean of the shares' states, weighed by their rows
      that count. Leaves that are not real or complex numbers are those of share 0.
    - A batch is filled up to a multiple of `shares` with rows that do not count.

    Needed for `shares`:

    - A step as `make_train_step` made it. Wrap it afterwards: observe(data_parallel(...), ...).
    - The same version of JAX, and devices of one kind.
    - On CPUs the same number of threads, because XLA cuts large sums by it: set the environment
      variable NPROC, before JAX starts, to one number on all machines, at least the number of
      devices of a process.
    - No derivative of the run in reverse mode, as of `fit` with respect to a learning rate.

    A device needs the memory of log2(shares / devices) more gradients than without shares, and
    exchanges as many bytes as an all-reduce of the gradient does.
    """
    devices = list(jax.devices() if devices is None else devices)
    mesh = Mesh(np.array(devices), (AXIS,))
    if shares is not None:
        return _by_shares(step, mesh, shares)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def shard(leaf: Array) -> Array:
        if not leaf.ndim:
            raise ValueError("data_parallel: a leaf of batch is a scalar, expected [batch, ...]")
        rows = leaf.shape[0]
        missing = 0 if as_on_one_device.value else -rows % mesh.size
        if not missing:
            return lax.with_sharding_constraint(leaf, sharding)
        # Cut off again, so no row counts that is not of the batch: only XLA pads, and knows it.
        return lax.with_sharding_constraint(cycled(leaf, rows + missing), sharding)[:rows]

    def sharded(
        ts: TrainState, batch: Data, key: Array, mask: Array | None = None
    ) -> tuple[TrainState, Metrics]:
        ts, batch, key, mask = on_the_same(mesh, (ts, batch, key, mask))
        return step(ts, jax.tree.map(shard, batch), key, jax.tree.map(shard, mask))

    if not isinstance(step, Step):
        return with_update(step, sharded)
    return Parallel(_init_on(mesh, step), sharded, step.policy, mesh)


def _by_shares(step: Step, mesh: Mesh, shares: int) -> Step:
    """The step with the gradient by shares."""
    shares = as_count("data_parallel", "shares", shares)
    if shares & (shares - 1) or shares % mesh.size:
        raise ValueError(
            f"data_parallel: shares is {shares} on {mesh.size} devices, expected powers of two, and"
            " at least as many shares as devices"
        )
    by_gradient = getattr(step, "update", None)
    if not isinstance(by_gradient, ByGradient):
        raise ValueError(
            "data_parallel: step was wrapped, or is one of your own, but shares wants it as"
            " make_train_step made it; make the step parallel first, then wrap it:"
            " observe(data_parallel(step, shares=8), ...)"
        )
    found_by = Shares(shares, mesh)
    update = replace(by_gradient, way=Way(found_by.gradient, found_by.value))

    def shared(
        ts: TrainState, batch: Data, key: Array, mask: Array | None = None
    ) -> tuple[TrainState, Metrics]:
        return update(*on_the_same(mesh, (ts, batch, key, mask)))

    return Parallel(_init_on(mesh, step), shared, step.policy, mesh, shares)


def _init_on(mesh: Mesh, step: Step) -> Callable[..., TrainState]:
    def init(params: Params, state: State = ()) -> TrainState:
        return on_the_same(mesh, step.init(params, state))

    return init


def shares_of(step: Any) -> int | None:
    """The number of shares of a step's batch, None for a step without."""
    return getattr(step, "shares", None)


def mesh_of(step: Any) -> Mesh | None:
    """The devices that the step is split over, None for a step of one device."""
    return getattr(step, "mesh", None)


def whole_on(mesh: Mesh | None, leaf: Array) -> Array:
    """The array whole on each device, so that a sum over it has one order on any number of them."""
    if mesh is None:
        return leaf
    return lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec()))


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
