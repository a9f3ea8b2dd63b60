"""Pruning: masks by magnitude, optimizers that keep zeros zero, layers that shrink.

A mask is a tree of bools like params: False where a weight is pruned. `prunable` says which
leaves may be pruned. It is one of:

- None: all except biases and norm scales.
- a tree of bools, or a prefix of one: True is everything.
- a function params -> such a tree.

During training the mask is in the optimizer's state, so it is in every checkpoint.

The lottery ticket (Frankle & Carbin 2019) is ``apply_mask(initial_params, mask)``, trained with
``pruned(optimizer, mask)``.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.typing import ArrayLike

from fnn._base import Params, as_count, as_ids, check_range, next_count, paths, resolve_mask, wide
from fnn.optim._lifting import Optimizer, Schedule, check_optimizer, check_params
from fnn.optim._magnitude import Scope, prune_more

# --- masks ------------------------------------------------------------------------------------


def magnitude_mask(
    params: Params, sparsity: ArrayLike, *, scope: Scope = "global", prunable: Any = None
) -> Params:
    """params -> the same tree of bools, False at the weights of smallest magnitude.

    Exactly round(sparsity * n) of n weights are pruned; of equal weights the first, in the order
    of ``jax.tree.leaves``. `scope` "global" compares the weights of all leaves, "layer" only
    weights of the same leaf. NaN counts as the largest. `sparsity` may be traced.
    """
    check_range("magnitude_mask", "sparsity", sparsity, 0, upto=1)
    _check_scope("magnitude_mask", scope)
    kept = jax.tree.map(lambda p: jnp.ones(jnp.shape(p), bool), params)
    return prune_more(params, kept, sparsity, scope, prunable)


def apply_mask(params: Params, mask: Params) -> Params:
    """params, bools -> params with 0.0 where the mask is False; the mask may be a prefix."""

    def keep(p: ArrayLike, kept: ArrayLike) -> Array:
        return jnp.where(kept, p, jnp.zeros_like(p))

    return jax.tree.map(keep, params, jax.tree.broadcast(mask, params))


def sparsity(tree: Params, *, prunable: Any = None) -> Array:
    """params, or a mask -> the share of zeros, or of False, in the prunable leaves, as a scalar."""
    allowed = jax.tree.leaves(resolve_mask(prunable, tree, "sparsity: prunable"))
    counted = [leaf for leaf, use in zip(jax.tree.leaves(tree), allowed, strict=True) if use]
    zeros = sum(jnp.sum(~jnp.asarray(leaf, bool)) for leaf in counted)
    return jnp.asarray(zeros, float) / max(sum(jnp.size(leaf) for leaf in counted), 1)


def cubic_sparsity(
    final: ArrayLike, steps: int, *, begin: int = 0, initial: float = 0.0
) -> Schedule:
    """-> schedule(count): from `initial` at `begin` to `final` in `steps`, fast at first.

    Zhu & Gupta 2017: final + (initial - final) (1 - (count - begin) / steps)^3. It is 0 before
    `begin` and `final` after the end.
    """
    steps = as_count("cubic_sparsity", "steps", steps)
    begin = as_count("cubic_sparsity", "begin", begin, 0)
    check_range("cubic_sparsity", "final", final, 0, upto=1)
    check_range("cubic_sparsity", "initial", initial, 0, upto=1)

    def schedule(count: ArrayLike) -> Array:
        count = jnp.asarray(count)
        if jnp.issubdtype(count.dtype, jnp.integer):  # exact, also beyond float32's 2^24
            count = as_ids(count)
        done = jnp.asarray(count - begin, float) * (1 / steps)
        left = 1 - jnp.clip(done, 0, 1)
        target = jnp.asarray(final, float)
        return jnp.where(done < 0, 0, target + (initial - target) * left**3)

    return schedule


# --- optimizers -------------------------------------------------------------------------------


def pruned(optimizer: Optimizer, mask: Params) -> Optimizer:
    """The optimizer, but weights where the mask is False become 0.0 at its first update and stay.

    Their moments, and their average, become 0.0 too. The optimizer gets 0 for the pruned weights
    and for their gradients, so they count in no norm. The state is {"mask": bools like params,
    "inner": the optimizer's state}.
    """

    check_optimizer("pruned", optimizer)

    def init(params: Params) -> dict[str, Any]:
        def whole(p: ArrayLike, kept: ArrayLike) -> Array:
            return jnp.broadcast_to(jnp.asarray(kept, bool), jnp.shape(p))

        kept = jax.tree.map(whole, params, jax.tree.broadcast(mask, params))
        return {"mask": kept, "inner": optimizer.init(params)}

    def update(
        updates: Params, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        check_params("pruned", params)
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
    prunable: Any = None,
) -> Optimizer:
    """The optimizer, pruning to ``sparsity(count)`` by magnitude at every `every`-th update.

    `sparsity` is a schedule such as `cubic_sparsity`; `scope` as in `magnitude_mask`. Pruned
    weights stay 0, as in `pruned`, even if the schedule goes down. The state is {"count", "mask",
    "inner"}. The mask changes only at updates 0, every, 2 every and so on, so train up to the one
    that reaches the final sparsity.
    """
    check_optimizer("gradually_pruned", optimizer)
    every = as_count("gradually_pruned", "every", every)
    _check_scope("gradually_pruned", scope)

    def init(params: Params) -> dict[str, Any]:
        kept = jax.tree.map(lambda p: jnp.ones(jnp.shape(p), bool), params)
        count = jnp.zeros((), jnp.int32)
        return {"count": count, "mask": kept, "inner": optimizer.init(params)}

    def update(
        updates: Params, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        check_params("gradually_pruned", params)

        def prune(kept: Params) -> Params:
            return prune_more(params, kept, sparsity(state["count"]), scope, prunable)

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
    """Updates that take pruned parameters to exactly 0, and a state with 0 for them."""
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
    """The state with 0 for the pruned weights, in every leaf that belongs to a parameter.

    Such a leaf is floating, has the parameter's shape, and its path ends in the parameter's path.
    """
    masks = {f"/{path}" if path else "": leaf for path, leaf in paths(kept).items()}

    def forget(path: Any, leaf: Any) -> Any:
        whole = "/" + jax.tree_util.keystr(path, simple=True, separator="/")
        owner = max((p for p in masks if whole.endswith(p)), key=len, default=None)
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        if owner is None or not floating or jnp.shape(leaf) != masks[owner].shape:
            return leaf
        return jnp.where(masks[owner], leaf, jnp.zeros_like(leaf))

    return jax.tree_util.tree_map_with_path(forget, state)


# --- neurons ----------------------------------------------------------------------------------


def prune_neurons(
    params: Params, *, fraction: float | None = None, keep: Sequence[int] | None = None
) -> Params:
    """Parameters of `mlp` -> smaller ones, without the least important hidden neurons.

    Give either the `fraction` of neurons to remove from each hidden layer, rounded, or the number
    of neurons to `keep` in each. A neuron's importance is norm(incoming weights and bias) x
    norm(outgoing weights); it stays the same if one is scaled up and the other down, as relu
    allows. The output is that of the whole network with 0 for the outgoing weights of the removed
    neurons. It runs on the host, since shapes change: make a new optimizer state afterwards.
    """
    names = sorted(params)
    widths = [params[name]["w"].shape[1] for name in names[:-1]]
    if (fraction is None) == (keep is None):
        raise ValueError("prune_neurons: expected either fraction or keep")
    if fraction is not None:
        check_range("prune_neurons", "fraction", fraction, 0, upto=1)
        keep = [width - round(fraction * width) for width in widths]
    keep = [as_count("prune_neurons", "keep", k, 0) for k in np.ravel(np.asarray(keep, object))]
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
    """The indices of the `keep` most important neurons, ascending."""
    incoming = np.concatenate(
        [np.asarray(leaf, float).reshape(-1, leaf.shape[-1]) for leaf in layer.values()]
    )
    outgoing = np.asarray(following["w"], float)
    weight = np.linalg.norm(incoming, axis=0) * np.linalg.norm(outgoing, axis=1)
    return np.sort(np.argsort(-weight, kind="stable")[:keep])


def _check_scope(name: str, scope: str) -> None:
    if scope not in ("global", "layer"):
        raise ValueError(f"{name}: scope is {scope!r}, expected 'global' or 'layer'")
