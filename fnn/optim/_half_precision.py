"""Training of half-precision parameters without losing the updates to rounding."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn._base import Params, next_count, wide
from fnn.optim._lifting import Optimizer, check_optimizer, check_params
from fnn.optim._transforms import apply_updates


def keep_precision(
    optimizer: Optimizer, how: Literal["master", "stochastic"], *, key: Array | None = None
) -> Optimizer:
    """Half-precision parameters that move even under updates smaller than their last bit.

    - "master": the state has float32 copies, {"master": params, "inner": ...}, 4 bytes a
      parameter. The parameters are the rounded copies.
    - "stochastic": each parameter is rounded up or down at random, so that its expectation is
      exact. It needs a `key` and no memory.

    The updates are in float32; apply them with `fnn.apply_updates` or `optax.apply_updates`.
    """
    check_optimizer("keep_precision", optimizer)
    if how not in ("master", "stochastic"):
        raise ValueError(f"keep_precision: how is {how!r}, expected 'master' or 'stochastic'")
    if (key is None) != (how == "master"):
        raise ValueError(
            "keep_precision: stochastic rounding needs a key, as jax.random.key(0) gives,"
            " and master copies take none"
        )

    def init(params: Params) -> dict[str, Any]:
        # A copy, since params may be donated.
        master = jax.tree.map(lambda p: jnp.array(wide(p)), params)
        if key is None:
            return {"master": master, "inner": optimizer.init(master)}
        return {"count": jnp.zeros((), jnp.int32), "inner": optimizer.init(master)}

    inside = optax.with_extra_args_support(optimizer)

    def update(
        updates: Params, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        check_params("keep_precision", params)
        exact = state["master"] if key is None else jax.tree.map(wide, params)
        grads = jax.tree.map(wide, updates)
        steps, inner = inside.update(grads, state["inner"], exact, **extra_args)
        target = apply_updates(exact, steps)
        if key is None:
            rounded = jax.tree.map(lambda x, p: x.astype(jnp.result_type(p)), target, params)
            new = {"master": target}
        else:
            rounded = _round_tree(jax.random.fold_in(key, state["count"]), target, params)
            new = {"count": next_count(state["count"])}

        def move(x: Array, p: ArrayLike, step: Array) -> Array:
            return step if x.dtype == step.dtype else wide(x) - wide(p)

        moves = jax.tree.map(move, rounded, params, steps)
        return moves, new | {"inner": inner}

    return optax.GradientTransformationExtraArgs(init, update)


def _round_tree(key: Array, target: Params, params: Params) -> Params:
    leaves, treedef = jax.tree.flatten(target)
    dtypes = [jnp.result_type(p) for p in jax.tree.leaves(params)]
    rounded = [
        _round_at_random(jax.random.fold_in(key, i), x, dtype)
        for i, (x, dtype) in enumerate(zip(leaves, dtypes, strict=True))
    ]
    return treedef.unflatten(rounded)


def _round_at_random(key: Array, x: Array, dtype: Any) -> Array:
    """x rounded to one of its two neighbours in dtype; the nearer one is the more probable."""
    near = x.astype(dtype)
    if near.dtype == x.dtype:
        return near
    error = x - near.astype(x.dtype)
    towards = jnp.where(error > 0, jnp.inf, -jnp.inf).astype(dtype)
    other = jnp.nextafter(near, towards)
    gap = jnp.abs(other.astype(x.dtype) - near.astype(x.dtype))
    goes = jax.random.uniform(key, x.shape) * gap < jnp.abs(error)
    return jnp.where(goes, other, near)
