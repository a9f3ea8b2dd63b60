"""Averages of the parameters over time, which often predict better than the last parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn._base import (
    Params,
    as_count,
    as_number,
    check_range,
    next_count,
    number_of,
    wide,
)
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


def stochastic_average(optimizer: Optimizer, start: ArrayLike, every: ArrayLike = 1) -> Optimizer:
    """The same updates, and in the state the mean of the parameters from step `start` on.

    Stochastic weight averaging, Izmailov et al. 2018: every `every` steps, n <- n + 1 and
    a <- a + (p - a) / n, so all averaged parameters weigh the same. Step 1 is the first update.
    The parameters after the steps start, start + every, start + 2 every, ... are averaged; a full
    epoch is a usual `every`. The average is ``opt_state["average"]``, in float32 for parameters of
    half precision. Before `start` it is a copy of the last parameters.

    The rate should stay high after `start`, constant or cyclic: the paper averages points around an
    optimum, not on the way to it. Batch norm's statistics belong to the last parameters;
    `training.mean_state` computes those of the average. PyTorch's AveragedModel has the same
    formula. `averaged` forgets old parameters instead. Memory: one array a parameter.
    """
    name = "stochastic_average"
    check_optimizer(name, optimizer)
    for argument, value in {"start": start, "every": every}.items():
        if number_of(value) is not None or not hasattr(value, "dtype"):  # traced ones pass
            as_count(name, argument, value)
    inside = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> dict[str, Any]:
        average = jax.tree.map(lambda p: jnp.array(wide(p)), params)
        zero = jnp.zeros((), jnp.int32)
        inner = optimizer.init(params)
        return {"average": average, "averages": zero, "inner": inner, "steps": zero.copy()}

    def update(
        updates: Params, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        check_params(name, params)
        updates, inner = inside.update(updates, state["inner"], params, **extra_args)
        steps = next_count(state["steps"])
        after = steps - jnp.asarray(start, jnp.int32)
        due = (after >= 0) & (after % jnp.asarray(every, jnp.int32) == 0)
        n = jnp.where(due, next_count(state["averages"]), state["averages"])
        follows = n <= due.astype(jnp.int32)  # nothing was averaged before

        def mix(a: Array, p: Array) -> Array:
            p = wide(p)
            mean = a + (p - a) / jnp.maximum(n, 1).astype(a.dtype)
            return jnp.where(follows, p, jnp.where(due, mean, a))

        average = jax.tree.map(mix, state["average"], apply_updates(params, updates))
        return updates, {"average": average, "averages": n, "inner": inner, "steps": steps}

    return optax.GradientTransformationExtraArgs(init, update)
