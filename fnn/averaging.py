"""An average of the parameters over time, which often predicts better than the last of them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn.lifting import Optimizer, as_number, check_range
from fnn.precision import wide
from fnn.transforms import apply_updates
from fnn.types import Params


def averaged(optimizer: Optimizer, decay: ArrayLike = 0.999) -> Optimizer:
    """The same updates, and in the state an average: a <- decay a + (1 - decay) p (Polyak 1992).

    It starts from the first parameters, so there is no bias to correct, is kept in float32 for
    parameters of half precision, and is ``opt_state["average"]``. Batch norm's statistics are not
    of these parameters. One array of memory a parameter.
    """
    check_range("averaged", "decay", decay, 0, 1)
    inside = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> dict[str, Any]:
        average = jax.tree.map(lambda p: jnp.array(wide(p)), params)  # never the same buffer
        return {"average": average, "inner": optimizer.init(params)}

    def update(
        updates: Params, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        if params is None:
            raise ValueError("averaged: update(grads, state) came without params")
        updates, inner = inside.update(updates, state["inner"], params, **extra_args)

        def mix(average: Array, p: Array) -> Array:
            keep = as_number(decay, average.dtype)
            return keep * average + (1 - keep) * wide(p)

        average = jax.tree.map(mix, state["average"], apply_updates(params, updates))
        return updates, {"average": average, "inner": inner}

    return optax.GradientTransformationExtraArgs(init, update)
