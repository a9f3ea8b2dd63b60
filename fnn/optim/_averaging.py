"""An average of the parameters over time, which often predicts better than the last parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn._base import Params, as_number, check_range, wide
from fnn.optim._lifting import Optimizer, check_optimizer, check_params
from fnn.optim._transforms import apply_updates


def averaged(optimizer: Optimizer, decay: ArrayLike = 0.999) -> Optimizer:
    """The same updates, and in the state an average: a <- decay a + (1 - decay) p (Polyak 1992).

    The average is ``opt_state["average"]``. It starts from the first parameters, so it needs no
    bias correction, and is in float32 for parameters of half precision. Batch norm's statistics
    belong to the last parameters, not to the average. Memory: one array a parameter.
    """
    check_optimizer("averaged", optimizer)
    check_range("averaged", "decay", decay, 0, 1)
    inside = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> dict[str, Any]:
        # A copy, since params may be donated.
        average = jax.tree.map(lambda p: jnp.array(wide(p)), params)
        return {"average": average, "inner": optimizer.init(params)}

    def update(
        updates: Params, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        check_params("averaged", params)
        updates, inner = inside.update(updates, state["inner"], params, **extra_args)

        def mix(average: Array, p: Array) -> Array:
            keep = as_number(decay, average.dtype)
            return keep * average + (1 - keep) * wide(p)

        average = jax.tree.map(mix, state["average"], apply_updates(params, updates))
        return updates, {"average": average, "inner": inner}

    return optax.GradientTransformationExtraArgs(init, update)
