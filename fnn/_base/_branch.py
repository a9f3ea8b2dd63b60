"""A branch that is seldom taken."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap


def seldom(taken: Array, usual: Any, other: Callable[..., Any], *operands: Any) -> Any:
    """other(*operands) where the bool `taken` holds; else `usual`, of the same shapes and dtypes.

    `other` runs only if it is wanted; under `vmap`, if any member wants it. No gradient. Not for a
    GPU, where the host would wait for `taken`.
    """

    def always(taken: Array, usual: Any, operands: Any) -> Any:
        return jax.tree.map(lambda o, u: jnp.where(taken, o, u), other(*operands), usual)

    @custom_vmap
    def if_taken(taken: Array, usual: Any, operands: Any) -> Any:
        return lax.cond(taken, lambda: other(*operands), lambda: usual)

    @if_taken.def_vmap
    def _(size: int, batched: Any, *given: Any) -> tuple[Any, Any]:
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched)
        members = jax.vmap(lambda *given: given, axes, axis_size=size)(*given)
        result = seldom(members[0].any(), members[1], jax.vmap(always), *members)
        return result, jax.tree.map(lambda _: True, usual)

    return if_taken(*lax.stop_gradient((taken, usual, operands)))
