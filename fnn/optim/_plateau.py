"""A rate that falls when the loss stalls. The loss is known when the program runs, not before."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn._base import Params, as_count, as_number, check_range, number_of, wide


def reduce_on_plateau(
    factor: ArrayLike = 0.1,
    patience: ArrayLike = 10,
    *,
    every: ArrayLike = 1,
    rtol: ArrayLike = 1e-4,
    atol: ArrayLike = 0.0,
    cooldown: ArrayLike = 0,
    min_scale: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """updates -> scale updates; the scale, 1 at first, falls when the loss no longer does.

    It stands last in a chain, and `make_train_step` gives it the loss of each step::

        epoch = run.steps(fnn.schedules.Epochs(1))
        optimizer = fnn.chain(fnn.adam(1e-3), fnn.optim.reduce_on_plateau(0.5, 5, every=epoch))

    After each `every` steps, the mean loss v of these steps is judged. If v < best - rtol |best| -
    atol, v is the best. Otherwise it is bad, NaN too. After `patience` bad ones in a row,
    scale <- max(factor scale, min_scale), and the next `cooldown` are not counted as bad. The scale
    is ``opt_state[-1]["scale"]``; the metric "learning_rate" is the rate before it.

    All of it is in the optimizer's state: the run stays one pure program, each member of a sweep
    has its own scale, and a resumed run goes on. A step that is not finite and not taken does not
    count. Without `make_train_step`, give the loss, or any number to be minimised:
    ``update(grads, state, params, value=loss)``.

    PyTorch's ReduceLROnPlateau is the same with a patience that is smaller by 1; it compares with
    best (1 - threshold), which for a negative best allows a worse value. Optax's
    contrib.reduce_on_plateau has this patience; it keeps best, mean and scale in the parameters'
    dtype, here they are float32 at least. The numbers may be traced.
    """
    name = "reduce_on_plateau"
    check_range(name, "factor", factor, 0, 1, above=True)
    for argument, value in {"rtol": rtol, "atol": atol, "min_scale": min_scale}.items():
        check_range(name, argument, value, 0, upto=None if argument == "atol" else 1)
    counts = {"patience": (patience, 1), "every": (every, 1), "cooldown": (cooldown, 0)}
    for argument, (value, least) in counts.items():
        if number_of(value) is not None or not hasattr(value, "dtype"):  # traced ones pass
            as_count(name, argument, value, least)

    def init(params: Params) -> dict[str, Array]:
        zero, one = jnp.zeros((), jnp.int32), jnp.ones((), float)
        # Not inf, which jax_debug_infs would take for an overflow.
        best = jnp.full((), jnp.finfo(one.dtype).max, float)
        counters = {"bad": zero, "cooldown": zero.copy(), "steps": zero.copy()}
        return {"best": best, "mean": 0 * one, "scale": one, **counters}

    def judged(state: dict[str, Array]) -> dict[str, Array]:
        """The state after `every` losses, whose mean it has."""
        best, v = state["best"], state["mean"]
        r, a, f, least = (as_number(x, best.dtype) for x in (rtol, atol, factor, min_scale))
        better = v < best - r * jnp.abs(best) - a
        cools = state["cooldown"] > 0
        bad = jnp.where(better | cools, 0, state["bad"] + 1)
        falls = bad >= jnp.asarray(patience, jnp.int32)
        scale = jnp.where(falls, jnp.maximum(f * state["scale"], least), state["scale"])
        rest = jnp.where(cools, state["cooldown"] - 1, 0)
        return {
            "best": jnp.where(better, v, best),
            "mean": jnp.zeros_like(v),
            "scale": scale,
            "bad": jnp.where(falls, 0, bad),
            "cooldown": jnp.where(falls, jnp.asarray(cooldown, jnp.int32), rest),
            "steps": jnp.zeros_like(state["steps"]),
        }

    def update(
        updates: Params,
        state: Any,
        params: Params = None,
        *,
        value: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[Params, Any]:
        if value is None:
            raise TypeError(
                f"{name}: update came without value, expected the loss; make_train_step gives it,"
                " elsewhere call update(grads, state, params, value=loss)"
            )
        if jnp.ndim(value):
            raise ValueError(f"{name}: value has shape {jnp.shape(value)}, expected one number")
        steps, mean = state["steps"] + 1, state["mean"]
        mean = mean + (jnp.asarray(value, mean.dtype) - mean) / steps.astype(mean.dtype)
        state = state | {"steps": steps, "mean": mean}
        due = steps >= jnp.asarray(every, jnp.int32)
        state = jax.tree.map(lambda new, old: jnp.where(due, new, old), judged(state), state)

        def scaled(u: Array) -> Array:
            return (wide(u) * as_number(state["scale"], wide(u).dtype)).astype(jnp.result_type(u))

        return jax.tree.map(scaled, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
