"""Schedule-free SGD and AdamW: three sequences of points instead of a schedule.

Each rule is a formula for one array, p <- p - step, and stands above the optimizer that offers it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import (
    Params,
    abs_square,
    as_count,
    path_of,
    paths,
    real_dtype,
    safe_divide,
    safe_sqrt,
)
from fnn.optim._lifting import (
    Number,
    Optimizer,
    Rate,
    Start,
    bias_correction,
    check_decays,
    check_hyper,
    check_learning_rate,
    lift,
    number_at,
    of_squares,
)


def _schedule_free_sgd(
    g: Array,
    t: Array,
    rate: Number,
    x: Array,
    z: Array,
    weight_sum: Array,
    max_rate: Array,
    p: Array,
    weight_decay: Number,
    b1: Number,
    r: Number,
    weight_lr_power: Number,
) -> tuple[Array, dict[str, Array]]:
    z = z - rate * (g + weight_decay * p)
    max_rate = jnp.maximum(max_rate, rate)
    moved = max_rate > 0  # a power of 0 has no finite derivative
    power = jnp.where(moved, max_rate, 1) ** weight_lr_power
    weight = t**r * jnp.where(moved, power, jnp.where(weight_lr_power == 0, 1, 0))
    weight_sum = weight_sum + weight
    c = safe_divide(weight, weight_sum)
    x = x + c * (z - x)
    step = p - z - b1 * (x - z)  # to y, and 0 if nothing has moved
    return step, {"x": x, "z": z, "weight_sum": weight_sum, "max_rate": max_rate}


def schedule_free_sgd(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    weight_decay: Rate = 0.0,
    mask: Any = None,
    *,
    warmup_steps: int = 0,
    r: ArrayLike = 0.0,
    weight_lr_power: ArrayLike = 2.0,
) -> Optimizer:
    """Defazio et al. 2024: SGD whose average of all points replaces the decay of the rate.

    Training holds y, and g is the gradient at y. Validate, test and save x, as `eval_params` gives
    it::

        loss = loss_fn(fnn.optim.eval_params(opt_state, params), batch)

    z <- z - rate (g + weight_decay y); x <- (1 - c) x + c z; y <- (1 - b1) z + b1 x, with
    c = w_t / (w_1 + ... + w_t) and w_t = t^r (largest rate so far)^weight_lr_power. All three start
    at the first parameters. In the first `warmup_steps` steps the rate is rate t / warmup_steps.

    This is the authors' code (facebookresearch/schedule_free); their rate is 1.0. Without warm-up
    Optax has the same definition. Optax's warm-up starts with a step of 0 and weighs each step with
    the next step's rate. x is stored here, so that it also moves in half precision and b1 may be 0;
    the authors compute it from y and z. Batch norm's statistics belong to y. `mask` as in `adamw`.
    Memory: two arrays a parameter.
    """
    name = "schedule_free_sgd"
    rate, start, hyper = _parts(name, learning_rate, warmup_steps, b1, r, weight_lr_power)
    decay = {"weight_decay": weight_decay, "mask": mask, "decay_inside": True}
    return lift(name, _schedule_free_sgd, start, rate, hyper, uses_params=True, **decay)


def _schedule_free_adamw(
    g: Array, t: Array, rate: Number, nu: Array, b2: Number, eps: Number, **rest: Any
) -> tuple[Array, dict[str, Array]]:
    nu = b2 * nu + (1 - b2) * abs_square(g)
    u = safe_divide(g, safe_sqrt(nu * bias_correction(b2, t)) + eps)
    step, new = _schedule_free_sgd(u, t, rate, **rest)
    return step, new | {"nu": nu}


def schedule_free_adamw(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: Rate = 0.0,
    mask: Any = None,
    *,
    warmup_steps: int = 0,
    r: ArrayLike = 0.0,
    weight_lr_power: ArrayLike = 2.0,
) -> Optimizer:
    """Defazio et al. 2024: `schedule_free_sgd` with g / (sqrt(nu / (1 - b2^t)) + eps) for g.

    nu <- b2 nu + (1 - b2) |g|^2. Evaluate at ``eval_params(opt_state, params)``. This is the
    authors' current code, whose rate is 2.5e-3, and Optax's without warm-up. The code of their
    experiments (AdamWScheduleFreePaper) corrects the rate instead of nu. The other arguments as in
    `schedule_free_sgd`. Memory: three arrays a parameter.
    """
    name = "schedule_free_adamw"
    rate, start, hyper = _parts(name, learning_rate, warmup_steps, b1, r, weight_lr_power)
    check_decays(name, b2=b2)
    check_hyper(name, "eps", eps, 0)
    start |= {"nu": of_squares(0.0)}
    hyper |= {"b2": b2, "eps": eps}
    decay = {"weight_decay": weight_decay, "mask": mask, "decay_inside": True}
    return lift(name, _schedule_free_adamw, start, rate, hyper, uses_params=True, **decay)


def eval_params(opt_state: Any, params: Params) -> Params:
    """The parameters to evaluate and to save: schedule-free's x, in the dtypes of params.

    `opt_state` is the state of any optimizer that contains a schedule-free rule, in groups of
    `by_path` too. Parameters that no such rule updates are returned as they are; so all are for any
    other optimizer.
    """
    found = jax.tree.leaves(opt_state, is_leaf=_is_schedule_free)
    averages: dict[str, Array] = {}
    for state in filter(_is_schedule_free, found):
        averages |= paths(state["x"])

    def evaluated(keys: Any, p: ArrayLike) -> ArrayLike:
        x = averages.get(path_of(keys))
        return p if x is None else x.astype(jnp.result_type(p))

    return jax.tree_util.tree_map_with_path(evaluated, params)


def _is_schedule_free(node: Any) -> bool:
    return isinstance(node, dict) and node.keys() >= {"count", "last_rate", "x", "z", "weight_sum"}


def _parts(
    name: str,
    learning_rate: Rate,
    warmup_steps: int,
    b1: ArrayLike,
    r: ArrayLike,
    weight_lr_power: ArrayLike,
) -> tuple[Rate, dict[str, Start], dict[str, ArrayLike]]:
    """The rate with its warm-up, the start of the memory and the numbers, checked."""
    check_learning_rate(name, learning_rate)
    check_decays(name, b1=b1)
    check_hyper(name, "r", r, 0)
    check_hyper(name, "weight_lr_power", weight_lr_power, 0)
    warmup = as_count(name, "warmup_steps", warmup_steps, 0)

    def warming(count: Array) -> Array:
        rate = number_at(name, "learning_rate", learning_rate, count)
        return jnp.asarray(rate, float) * jnp.minimum((count.astype(float) + 1) / warmup, 1)

    def zero(p: Array) -> Array:
        return jnp.zeros((), real_dtype(p.dtype))

    # Copies, since params may be donated.
    start: dict[str, Start] = {"x": jnp.array, "z": jnp.array, "weight_sum": zero, "max_rate": zero}
    hyper = {"b1": b1, "r": r, "weight_lr_power": weight_lr_power}
    return (warming if warmup else learning_rate), start, hyper
