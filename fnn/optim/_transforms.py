"""Transformations of gradients and updates: chaining, adding updates, weight decay.

Each has Optax's interface, so it chains with Optax's transformations and with fnn's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn._base import Params, as_number, check_mask, check_range, resolve_mask, wide, wide_dtype
from fnn.optim._lifting import Optimizer, check_optimizer, check_params, check_same_trees


def chain(*transforms: Optimizer) -> Optimizer:
    """One optimizer of several, the updates of each the gradients of the next.

    Keywords given to its update, such as Optax's ``value=loss``, go to each transformation that
    takes them.
    """
    for transform in transforms:
        check_optimizer("chain", transform)
    each = [optax.with_extra_args_support(transform) for transform in transforms]

    def init(params: Params) -> tuple[Any, ...]:
        return tuple(transform.init(params) for transform in transforms)

    def update(
        updates: Params, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        if len(state) != len(transforms):
            raise ValueError(
                f"chain: state is of {len(state)} transforms, expected {len(transforms)}"
            )
        new = []
        for transform, s in zip(each, state, strict=True):
            updates, s = transform.update(updates, s, params, **extra_args)
            new.append(s)
        return updates, tuple(new)

    return optax.GradientTransformationExtraArgs(init, update)


def apply_updates(params: Params, updates: Params) -> Params:
    """params + updates, leaf by leaf, added in float32 at least, in the dtypes of params."""

    def add(p: ArrayLike, u: ArrayLike) -> Array:
        if jnp.iscomplexobj(u) and not jnp.iscomplexobj(p):
            raise TypeError(
                f"apply_updates: an update is {jnp.result_type(u)}, but its parameter"
                f" {jnp.result_type(p)}; expected a real update"
            )
        if jnp.result_type(u) == jax.dtypes.float0:  # the gradient of a whole number
            return jnp.asarray(p)
        dtype = wide_dtype(p)
        if not any(jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in (p, u)):
            dtype = jnp.result_type(p)  # whole numbers, which float32 would round
        total = jnp.asarray(p, dtype) + jnp.asarray(u, dtype)
        return total.astype(jnp.result_type(p))

    check_same_trees("apply_updates", updates, {"params": params}, "updates")
    return jax.tree.map(add, params, updates)


def add_weight_decay(rate: ArrayLike, mask: Any = None) -> Optimizer:
    """g <- g + rate p where `mask` says so: before a rule it is L2, after it decoupled decay.

    `mask` as in `adamw`: None is all except biases and norm scales.
    """
    check_range("add_weight_decay", "rate", rate, 0)
    check_mask(mask, "add_weight_decay: mask")

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        check_params("add_weight_decay", params)

        def decay(g: ArrayLike, p: ArrayLike, decays: Any) -> Array:
            dtype = wide(g).dtype
            amount = as_number(rate, dtype) * jnp.asarray(decays, dtype)
            return (wide(g) + amount * jnp.asarray(p, dtype)).astype(jnp.result_type(g))

        masks = resolve_mask(mask, params, "add_weight_decay: mask")
        return jax.tree.map(decay, updates, params, masks), state

    return stateless(update)


def stateless(update: Any) -> Optimizer:
    """The transformation with an empty state; it takes any keywords, as Optax's wrappers pass."""
    return optax.with_extra_args_support(Optimizer(lambda params: (), update))
