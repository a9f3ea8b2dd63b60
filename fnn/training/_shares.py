"""The gradient of a batch by shares: the same bits on any number of devices and processes.

The bits of a sum depend on its order, and those of a product may depend on its shape. So the batch
is cut into a fixed number of shares. One loop computes them, on each device its own, and they are
added as one binary tree, whose lower levels are within a device and whose upper ones are between
devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from fnn._base import Data, Params, State, wide
from fnn.data import rows_of
from fnn.training._gradient import (
    Gradient,
    LossFn,
    mean_of_parts,
    scaled_gradient,
    unscaled,
)
from fnn.training._state import TrainState

AXIS = "batch"  # of a mesh
ONE_DEVICE = AbstractMesh((1,), (AXIS,), axis_types=(AxisType.Auto,))
# Whether a step is traced as for one device, which tells what a run computes and not where.
as_on_one_device = jax.make_user_context(False)


@dataclass(frozen=True)
class Shares:
    """Finds gradients by `number` shares on the devices of a mesh; see `Way`."""

    number: int
    mesh: Mesh

    def gradient(
        self,
        loss: LossFn,
        accumulate: int,
        ts: TrainState,
        batch: Data,
        key: Array,
        mask: Array | None,
    ) -> Gradient:
        """The gradient of the batch's mean loss, each share's weighed by its weights."""
        rows = _filled_up(batch, mask, self.number * accumulate)

        def of_share(number: Array, rows: Any, ts: TrainState, key: Array) -> Any:
            batch, mask = rows
            key = jax.random.fold_in(key, number)
            found, weight = scaled_gradient(loss, accumulate, ts, batch, key, mask)
            weight = _or_ones(weight, found.loss)
            count = _counted(rows)
            state = jax.tree.map(
                lambda new, old: _moved(new, old, count, number), found.state, ts.state
            )
            told = found.grads, found.loss, found.aux
            return jax.tree.map(lambda x: _weighed(x, weight), told), weight, state, count

        total, weight, state, count = self._sum(of_share, rows, ts, ts, key)
        state = jax.tree.map(lambda old, sum: _next_of(old, sum, count), ts.state, state)
        found = mean_of_parts(total, weight, ts.params, state)
        return unscaled(found, ts.loss_scale)

    def value(
        self,
        loss: LossFn,
        ts: TrainState,
        batch: Data,
        key: Array,
        mask: Array | None,
        params: Params,
    ) -> Array:
        """The batch's mean loss with these parameters; its gradient is by shares too."""

        def gradient(params: Params) -> tuple[Array, Params]:
            there = ts._replace(params=params, loss_scale=())
            found = self.gradient(loss, 1, there, batch, key, mask)
            return found.loss, jax.tree.map(jnp.conj, found.grads)  # as ``jax.grad`` has it

        def pulled_back(grads: Params, cotangent: Array) -> tuple[Params]:
            return (jax.tree.map(lambda g: g * cotangent.astype(g.dtype), grads),)

        # The loop over the shares, whose length is not known, has no derivative in reverse.
        value = jax.custom_vjp(partial(self._value, loss, ts, batch, key, mask))
        value.defvjp(gradient, pulled_back)
        return value(params)

    def _value(
        self,
        loss: LossFn,
        ts: TrainState,
        batch: Data,
        key: Array,
        mask: Array | None,
        params: Params,
    ) -> Array:
        def of_share(number: Array, rows: Any, state: State, key: Array, params: Params) -> Any:
            key = jax.random.fold_in(key, number)
            _, (value, weight, *_) = loss.mean(params, state, rows[0], key, rows[1])
            weight = _or_ones(weight, value)
            return _weighed(value, weight), weight

        rows = _filled_up(batch, mask, self.number)
        total, weight = self._sum(of_share, rows, ts, ts.state, key, params)
        return total / jnp.where(weight > 0, weight, 1)

    def _sum(self, of_share: Callable[..., Any], rows: Any, ts: TrainState, *given: Any) -> Any:
        """The sum over all shares of of_share(number, its rows, *given), whole on each device."""
        mesh = ONE_DEVICE if as_on_one_device.value else self.mesh
        here = self.number // mesh.size  # on each device
        # A loop of known length may be unrolled, and its only round be compiled as another program.
        rounds = jnp.where(ts.step < 0, 0, here)

        def local(rows: Any, rounds: Array, *given: Any) -> Any:
            size = jax.tree.leaves(rows)[0].shape[0] // here
            # One row more: what is cut out of it depends on the round, also if it is the only one.
            rows = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:1]]), rows)
            first = lax.axis_index(AXIS) * here

            def share(i: Array) -> Any:
                mine = jax.tree.map(
                    lambda leaf: lax.dynamic_slice_in_dim(leaf, i * size, size), rows
                )
                return of_share(first + i, mine, *given)

            like = jax.eval_shape(share, rounds)
            packed = _tree_sum(lambda i: _packed(share(i)), here, rounds)
            return _unpacked([_over_devices(vector, mesh.size) for vector in packed], like)

        spread, whole = PartitionSpec(AXIS), PartitionSpec()
        specs = spread, whole, *[whole for _ in given]
        split = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
        return split(rows, rounds, *given)


def _tree_sum(vectors: Callable[[Array], list[Array]], number: int, rounds: Array) -> list[Array]:
    """The sum of vectors(i) for i < number, a power of two: pairs, then pairs of pairs.

    A sum of 2^k neighbours waits in row k for its like, so log2(number) + 1 rows are enough.
    """

    def add(carry: Any) -> Any:
        i, waiting = carry

        def join(carry: Any) -> Any:
            level, sums = carry
            pairs = zip(waiting, sums, strict=True)
            return level + 1, [lax.dynamic_index_in_dim(w, level, 0, False) + s for w, s in pairs]

        def has_its_like(carry: Any) -> Array:
            return (i >> carry[0]) & 1 == 1

        level, sums = lax.while_loop(has_its_like, join, (jnp.int32(0), vectors(i)))
        pairs = zip(waiting, sums, strict=True)
        return i + 1, [lax.dynamic_update_index_in_dim(w, s, level, 0) for w, s in pairs]

    like = jax.eval_shape(vectors, rounds)
    waiting = [jnp.zeros((number.bit_length(), *x.shape), x.dtype) for x in like]
    start = jnp.zeros((), jnp.int32), waiting
    _, waiting = lax.while_loop(lambda carry: carry[0] < rounds, add, start)
    return [sums[-1] for sums in waiting]


def _over_devices(vector: Array, devices: int) -> Array:
    """The sum over the devices, as a tree: each device adds its part of the vector for all."""
    if devices == 1:
        return vector
    parts = jnp.pad(vector, (0, -vector.size % devices)).reshape(devices, -1)
    parts = lax.all_to_all(parts, AXIS, 0, 0)
    while parts.shape[0] > 1:
        parts = parts[0::2] + parts[1::2]
    return lax.all_gather(parts[0], AXIS, tiled=True)[: vector.size]


def _filled_up(batch: Data, mask: Array | None, multiple: int) -> tuple[Data, Array | None]:
    """Batch and mask, filled up to a multiple with the first rows again, which do not count."""
    rows = rows_of("data_parallel", batch)
    missing = -rows % multiple
    if not missing:
        return batch, mask
    mask = jnp.ones(rows, bool) if mask is None else jnp.asarray(mask)
    filled = jax.tree.map(lambda leaf: cycled(leaf, rows + missing), batch)
    return filled, jnp.concatenate([mask, jnp.zeros(missing, mask.dtype)])


def cycled(leaf: Array, rows: int) -> Array:
    """The rows of the leaf, over and over, until there are so many."""
    leaf = jnp.asarray(leaf)
    return jnp.concatenate([leaf] * -(-rows // leaf.shape[0]))[:rows]


def _or_ones(weight: Array | None, like: Array) -> Array:
    return jnp.ones((), like.dtype) if weight is None else weight


def _counted(rows: tuple[Data, Array | None]) -> Array:
    """The number of rows that count."""
    batch, mask = rows
    if mask is None:
        return jnp.float32(jax.tree.leaves(batch)[0].shape[0])
    return jnp.sum(mask.astype(bool), dtype=jnp.float32)


def _weighed(value: Array, weight: Array) -> Array:
    """weight x value; 0 where nothing counts, whatever the value is."""
    value = wide(value)
    return jnp.where(weight > 0, value * weight.astype(value.dtype), 0)


# --- the next state of the model ------------------------------------------------------------------


def _moved(new: Array, old: Array, count: Array, number: Array) -> Array:
    """What a share adds: of real numbers how far they moved, x its rows; else what share 0 has."""
    if not jnp.issubdtype(new.dtype, jnp.inexact):
        new = jax.random.key_data(new) if _is_key(new) else new
        return jnp.where(number == 0, new.astype(jnp.uint32) if new.dtype == bool else new, 0)
    # A difference, so that what no share moves stays, bit for bit.
    return jnp.where(new == old, 0, _weighed(wide(new) - wide(old), count))


def _next_of(old: Array, total: Array, count: Array) -> Array:
    """The next state, from the sum of what the shares add."""
    if _is_key(old):
        return jax.random.wrap_key_data(total, impl=jax.random.key_impl(old))
    if not jnp.issubdtype(old.dtype, jnp.inexact):
        return total.astype(old.dtype)
    mean = total * (1 / jnp.maximum(count, 1)).astype(total.dtype)
    return (wide(old) + mean).astype(old.dtype)


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


# --- a tree as one vector -------------------------------------------------------------------------


def _packed(tree: Any) -> list[Array]:
    """The leaves as one vector for each dtype; a complex number is two real ones."""
    groups: dict[Any, list[Array]] = {}
    for leaf in jax.tree.leaves(tree):
        real = _as_real(leaf)
        groups.setdefault(real.dtype, []).append(real.ravel())
    return [jnp.concatenate(leaves) for leaves in groups.values()]


def _unpacked(vectors: list[Array], like: Any) -> Any:
    """The tree of which `_packed` made the vectors."""
    leaves, treedef = jax.tree.flatten(like)
    real = [jax.eval_shape(_as_real, leaf) for leaf in leaves]
    dtypes = list(dict.fromkeys(leaf.dtype for leaf in real))
    found: dict[int, Array] = {}
    for dtype, vector in zip(dtypes, vectors, strict=True):
        start = 0
        for place, leaf in enumerate(real):
            if leaf.dtype == dtype:
                found[place] = vector[start : start + leaf.size].reshape(leaf.shape)
                start += leaf.size
    return treedef.unflatten(
        _as_it_was(found[place], leaf.dtype) for place, leaf in enumerate(leaves)
    )


def _as_real(leaf: Array) -> Array:
    return jnp.stack([leaf.real, leaf.imag]) if jnp.iscomplexobj(leaf) else leaf


def _as_it_was(real: Array, dtype: Any) -> Array:
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return real
    return lax.complex(real[0], real[1])
