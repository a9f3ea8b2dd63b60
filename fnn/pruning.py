"""Pruning: masks by magnitude, optimizers that keep zeros zero, layers that shrink.

A mask is the tree of params with bools: False where a weight is pruned. Biases and norm scales
are never pruned unless asked for. The mask that training needs is in the optimizer's state, and
so in the train state and in whatever is saved of it.

The lottery ticket (Frankle & Carbin 2019) is ``apply_mask(initial_params, mask)``, trained with
``pruned(optimizer, mask)``.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.typing import ArrayLike

from fnn.lifting import Optimizer, Schedule, next_count
from fnn.params import paths, resolve_mask
from fnn.precision import wide
from fnn.types import Params

Scope = Literal["global", "layer"]


# --- masks ------------------------------------------------------------------------------------


def magnitude_mask(
    params: Params, sparsity: ArrayLike, *, scope: Scope = "global", mask: Any = None
) -> Params:
    """params -> the same tree of bools, False at the weights of smallest magnitude.

    Exactly round(sparsity * n) of n are pruned, of equal ones the first in the order of
    ``jax.tree.leaves``. `scope` "global" compares all weights with each other, "layer" those of
    one leaf. `mask` says which leaves may be pruned, as in `adamw`: None is all but biases and
    norm scales. NaN counts as the largest. `sparsity` may be traced.
    """
    _check("magnitude_mask", sparsity, scope)
    kept = jax.tree.map(lambda p: jnp.ones(jnp.shape(p), bool), params)
    return _prune_more(params, kept, sparsity, scope, mask)


def apply_mask(params: Params, mask: Params) -> Params:
    """params, bools -> params with 0.0 where the mask is False; a prefix of the tree will do."""

    def keep(p: ArrayLike, kept: ArrayLike) -> Array:
        return jnp.where(kept, p, jnp.zeros_like(p))

    return jax.tree.map(keep, params, jax.tree.broadcast(mask, params))


def sparsity(tree: Params, *, mask: Any = None) -> Array:
    """params, or a mask -> the share of zeros, or of False, as a scalar.

    Counted over the leaves that `mask` allows to be pruned, as in `magnitude_mask`.
    """
    allowed = jax.tree.leaves(resolve_mask(mask, tree))
    counted = [leaf for leaf, use in zip(jax.tree.leaves(tree), allowed, strict=True) if use]
    zeros = sum(jnp.sum(~jnp.asarray(leaf, bool)) for leaf in counted)
    return jnp.asarray(zeros, float) / max(sum(jnp.size(leaf) for leaf in counted), 1)


def cubic_sparsity(
    final: ArrayLike, steps: int, *, begin: int = 0, initial: float = 0.0
) -> Schedule:
    """-> schedule(count): from `initial` at `begin` to `final` in `steps`, fast at first.

    Zhu & Gupta 2017: final + (initial - final) (1 - (count - begin) / steps)^3; before `begin`
    it is 0, and after the end `final`.
    """
    if steps < 1:
        raise ValueError(f"cubic_sparsity: steps is {steps}, expected at least 1")
    _check("cubic_sparsity", final, "global")
    _check("cubic_sparsity", initial, "global")

    def schedule(count: ArrayLike) -> Array:
        done = (jnp.asarray(count, float) - begin) * (1 / steps)
        left = 1 - jnp.clip(done, 0, 1)
        target = jnp.asarray(final, float)
        return jnp.where(done < 0, 0, target + (initial - target) * left**3)

    return schedule


# --- optimizers -------------------------------------------------------------------------------


def pruned(optimizer: Optimizer, mask: Params) -> Optimizer:
    """The optimizer, but weights where the mask is False become 0.0 at its first update and stay.

    Whatever it remembers of them becomes 0.0 too: moments, an average of the parameters. It sees
    them and their gradients as 0, so they are in no norm. The state is {"mask": bools like
    params, "inner": the optimizer's own}.
    """

    def init(params: Params) -> dict[str, Any]:
        def whole(p: ArrayLike, kept: ArrayLike) -> Array:
            return jnp.broadcast_to(jnp.asarray(kept, bool), jnp.shape(p))

        kept = jax.tree.map(whole, params, jax.tree.broadcast(mask, params))
        return {"mask": kept, "inner": optimizer.init(params)}

    def update(
        updates: Params, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        _check_params("pruned", params)
        kept = state["mask"]
        updates, inner = _update(optimizer, updates, state, params, kept, extra_args)
        return updates, {"mask": kept, "inner": inner}

    return optax.GradientTransformationExtraArgs(init, update)


def gradually_pruned(
    optimizer: Optimizer,
    sparsity: Schedule,
    *,
    every: int = 100,
    scope: Scope = "global",
    mask: Any = None,
) -> Optimizer:
    """The optimizer, pruning to ``sparsity(count)`` by magnitude at every `every`-th update.

    `sparsity` is such as `cubic_sparsity`; `scope` and `mask` are `magnitude_mask`'s. What is
    pruned stays so, as in `pruned`, even where the schedule goes down. The state is {"count",
    "mask", "inner"}; the mask changes at updates 0, every, 2 every..., so train that far.
    """
    if every < 1:
        raise ValueError(f"gradually_pruned: every is {every}, expected at least 1")
    _check("gradually_pruned", None, scope)

    def init(params: Params) -> dict[str, Any]:
        kept = jax.tree.map(lambda p: jnp.ones(jnp.shape(p), bool), params)
        count = jnp.zeros((), jnp.int32)
        return {"count": count, "mask": kept, "inner": optimizer.init(params)}

    def update(
        updates: Params, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        _check_params("gradually_pruned", params)

        def prune(kept: Params) -> Params:
            return _prune_more(params, kept, sparsity(state["count"]), scope, mask)

        due = state["count"] % every == 0
        kept = lax.cond(due, prune, lambda kept: kept, state["mask"])
        updates, inner = _update(optimizer, updates, state, params, kept, extra_args)
        return updates, {"count": next_count(state["count"]), "mask": kept, "inner": inner}

    return optax.GradientTransformationExtraArgs(init, update)


def _update(
    optimizer: Optimizer,
    grads: Params,
    state: Any,
    params: Params,
    kept: Params,
    extra_args: dict[str, Any],
) -> tuple[Params, Any]:
    """Updates that take pruned parameters to exactly 0, and a state that has forgotten them."""
    inner = optax.with_extra_args_support(optimizer)
    grads, live = apply_mask(grads, kept), apply_mask(params, kept)
    updates, new = inner.update(grads, state["inner"], live, **extra_args)

    def to_zero(u: ArrayLike, p: ArrayLike, kept: Array) -> Array:
        # In p's own dtype, or wider, p + -p is exactly 0.
        u, p = jnp.asarray(u), jnp.asarray(p)
        dtype = u.dtype if u.dtype == p.dtype else wide(p).dtype
        return jnp.where(kept, u.astype(dtype), -p.astype(dtype))

    return jax.tree.map(to_zero, updates, params, kept), _forget(new, kept)


def _forget(state: Any, kept: Params) -> Any:
    """The state with 0 at what is pruned, in every leaf that is remembered of a parameter.

    That is a floating leaf whose path ends in the parameter's and which has its shape.
    """
    masks = {f"/{path}" if path else "": leaf for path, leaf in paths(kept).items()}

    def forget(path: Any, leaf: Any) -> Any:
        whole = "/" + jax.tree_util.keystr(path, simple=True, separator="/")
        owner = max((p for p in masks if whole.endswith(p)), key=len, default=None)
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        if owner is None or not floating or jnp.shape(leaf) != masks[owner].shape:
            return leaf
        return jnp.where(masks[owner], leaf, jnp.zeros_like(leaf))

    return jax.tree_util.tree_map_with_path(forget, state)


# --- exactly so many --------------------------------------------------------------------------


def _prune_more(
    params: Params, kept: Params, sparsity: ArrayLike, scope: Scope, mask: Any
) -> Params:
    """The mask `kept` with more of the smallest weights pruned, to `sparsity` in all."""
    leaves, masks = jax.tree.leaves(params), jax.tree.leaves(kept)
    allowed = jax.tree.leaves(resolve_mask(mask, params))
    chosen = [i for i, allow in enumerate(allowed) if allow]
    for group in [chosen] if scope == "global" else [[i] for i in chosen]:
        smaller = _smallest([leaves[i] for i in group], [masks[i] for i in group], sparsity)
        for i, small in zip(group, smaller, strict=True):
            masks[i] = masks[i] & ~small
    return jax.tree.structure(params).unflatten(masks)


def _smallest(leaves: list[Any], masks: list[Array], sparsity: ArrayLike) -> list[Array]:
    """Bools, True at the round(sparsity n) entries of smallest magnitude, those masked first."""
    if not leaves:
        return []
    dtype = max((wide(p).dtype for p in leaves), key=lambda dtype: dtype.itemsize)
    order = jnp.concatenate([_order(p, kept, dtype) for p, kept in zip(leaves, masks, strict=True)])
    if isinstance(sparsity, (int, float)):
        wanted = jnp.asarray(round(sparsity * order.size), jnp.int32)
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
    """Integers in the order of magnitude, [size]; 0 for what is pruned already."""
    # The bits of floats >= 0, read as an integer, are in the floats' order, NaN last.
    integer = jnp.uint64 if dtype.itemsize == 8 else jnp.uint32
    bits = lax.bitcast_convert_type(jnp.abs(jnp.asarray(p, dtype)), integer)
    return jnp.where(kept, bits + 1, 0).ravel()


def _largest_with_fewer_below(order: Array, wanted: Array) -> Array:
    """The largest v with fewer than `wanted` entries below it: the one of that rank, from 1.

    Found bit by bit, in a pass over the array for each.
    """
    highest = order.dtype.itemsize * 8 - 1

    def settle(i: Array, v: Array) -> Array:
        higher = v | (jnp.ones_like(v) << (highest - i).astype(v.dtype))
        below = jnp.sum(order < higher, dtype=jnp.int32)
        return jnp.where(below < wanted, higher, v)

    return lax.fori_loop(0, highest + 1, settle, jnp.zeros((), order.dtype))


# --- neurons ----------------------------------------------------------------------------------


def prune_neurons(
    params: Params, *, fraction: float | None = None, keep: Sequence[int] | None = None
) -> Params:
    """Parameters of `mlp` -> smaller ones, without the hidden neurons that count the least.

    Give the `fraction` to take from each hidden layer, rounded, or how many neurons each is to
    `keep`. A neuron counts by the norm of what comes in, bias included, times that of what goes
    out, which scaling one against the other, as relu allows, does not change. The output is that
    of the whole network with the outgoing weights of those neurons at 0. On the host, for shapes
    change: begin again with a fresh optimizer's state.
    """
    names = sorted(params)
    widths = [params[name]["w"].shape[1] for name in names[:-1]]
    if (fraction is None) == (keep is None):
        raise ValueError("prune_neurons: expected either fraction or keep")
    if fraction is not None:
        _check("prune_neurons", fraction, "global", what="fraction")
        keep = [width - round(fraction * width) for width in widths]
    keep = list(keep or [])
    if len(keep) != len(widths) or any(not 1 <= k <= w for k, w in zip(keep, widths, strict=True)):
        raise ValueError(
            f"prune_neurons: keep is {keep}, expected 1 to all of the hidden layers' {widths}"
        )
    layers = [params[name] for name in names]
    kept = [_strongest(*pair, k) for pair, k in zip(pairwise(layers), keep, strict=True)]
    everything = slice(None)
    cuts = pairwise([everything, *kept, everything])
    return {
        name: {leaf: value[..., out] for leaf, value in layer.items()}
        | {"w": layer["w"][i][:, out]}
        for name, layer, (i, out) in zip(names, layers, cuts, strict=True)
    }


def _strongest(layer: Params, following: Params, keep: int) -> np.ndarray:
    """The numbers of the `keep` neurons that count the most, ascending."""
    incoming = np.concatenate(
        [np.asarray(leaf, float).reshape(-1, leaf.shape[-1]) for leaf in layer.values()]
    )
    outgoing = np.asarray(following["w"], float)
    weight = np.linalg.norm(incoming, axis=0) * np.linalg.norm(outgoing, axis=1)
    return np.sort(np.argsort(-weight, kind="stable")[:keep])


def _check_params(name: str, params: Params) -> None:
    if params is None:
        raise ValueError(f"{name}: update(grads, state) came without params, which it needs")


def _check(name: str, sparsity: Any, scope: str, what: str = "sparsity") -> None:
    if isinstance(sparsity, (int, float)) and not 0 <= sparsity <= 1:
        raise ValueError(f"{name}: {what} is {sparsity}, expected a number from 0 to 1")
    if scope not in ("global", "layer"):
        raise ValueError(f"{name}: scope is {scope!r}, expected 'global' or 'layer'")
