"""Masks that prune exactly the n weights of smallest magnitude."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from fnn._base import Params, number_of, real_dtype, resolve_mask, wide

Scope = Literal["global", "layer"]


def prune_more(
    params: Params, kept: Params, sparsity: ArrayLike, scope: Scope, prunable: Any
) -> Params:
    """The mask `kept` with more of the smallest weights pruned, to `sparsity` in all."""
    leaves, masks = jax.tree.leaves(params), jax.tree.leaves(kept)
    allowed = jax.tree.leaves(resolve_mask(prunable, params, "prunable"))
    chosen = [i for i, allow in enumerate(allowed) if allow]
    for group in [chosen] if scope == "global" else [[i] for i in chosen]:
        smaller = _smallest([leaves[i] for i in group], [masks[i] for i in group], sparsity)
        for i, small in zip(group, smaller, strict=True):
            masks[i] = masks[i] & ~small
    return jax.tree.structure(params).unflatten(masks)


def _smallest(leaves: list[Any], masks: list[Array], sparsity: ArrayLike) -> list[Array]:
    """Bools, True at the round(sparsity n) entries of smallest magnitude, pruned entries first."""
    if not leaves:
        return []
    dtype = max((real_dtype(wide(p).dtype) for p in leaves), key=lambda dtype: dtype.itemsize)
    order = jnp.concatenate([_order(p, kept, dtype) for p, kept in zip(leaves, masks, strict=True)])
    share = number_of(sparsity)
    if share is not None:
        wanted = jnp.asarray(round(share * order.size), jnp.int32)
    else:
        wanted = jnp.round(jnp.asarray(sparsity, float) * order.size).astype(jnp.int32)
    limit = _largest_with_fewer_below(order, wanted)
    tied = order == limit
    missing = wanted - jnp.sum(order < limit, dtype=jnp.int32)
    chosen = (order < limit) | (tied & (jnp.cumsum(tied, dtype=jnp.int32) <= missing))
    ends = np.cumsum([jnp.size(p) for p in leaves])
    parts = jnp.split(chosen & (wanted > 0), ends[:-1])
    return [part.reshape(jnp.shape(p)) for part, p in zip(parts, leaves, strict=True)]


def _order(p: ArrayLike, kept: Array, dtype: Any) -> Array:
    """Integers in the order of magnitude, [size]; 0 for an entry that is already pruned."""
    # The bits of floats >= 0, read as an integer, are in the floats' order, NaN last.
    integer = jnp.uint64 if dtype.itemsize == 8 else jnp.uint32
    bits = lax.bitcast_convert_type(jnp.abs(p).astype(dtype), integer)
    return jnp.where(kept, bits + 1, 0).ravel()


def _largest_with_fewer_below(order: Array, wanted: Array) -> Array:
    """The largest v with fewer than `wanted` entries below it: the entry of that rank, from 1.

    It is found bit by bit, with one pass over the array for each bit.
    """
    highest = order.dtype.itemsize * 8 - 1

    def settle(i: Array, v: Array) -> Array:
        higher = v | (jnp.ones_like(v) << (highest - i).astype(v.dtype))
        below = jnp.sum(order < higher, dtype=jnp.int32)
        return jnp.where(below < wanted, higher, v)

    return lax.fori_loop(0, highest + 1, settle, jnp.zeros((), order.dtype))
