"""From a rule for one array to an optimizer of trees.

A rule is a textbook formula for one array: ``rule(g, t, rate, **remembered, **hyper) -> (step,
remembered)`` with the gradient, the number of the update from 1, the learning rate, what the rule
remembers and its hyperparameters; the parameters go p <- p - step. `lift` does the rest, once.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn.params import paths, resolve_mask
from fnn.precision import wide_dtype
from fnn.types import Params

Optimizer = optax.GradientTransformation  # a NamedTuple of two functions: init, update
Schedule = Callable[[Array], ArrayLike]
Rate = ArrayLike | Schedule
Rule = Callable[..., tuple[Array, dict[str, Array]]]
Start = ArrayLike | Callable[[Array], Array]


def lift(
    name: str,
    rule: Rule,
    start: Mapping[str, Start],
    learning_rate: Rate,
    hyper: Mapping[str, ArrayLike],
    *,
    weight_decay: Rate | None = None,
    mask: Any = None,
    uses_params: bool = False,
) -> Optimizer:
    """The optimizer that applies `rule` to each array of a tree.

    `start` names what the rule remembers and gives the value it starts from, or a function of
    the parameter. With `weight_decay` every step also goes rate * weight_decay * p where `mask`
    says so; with `uses_params` the rule is given p. The state is a plain dict: "count" of
    updates, "learning_rate" of the last one, and a tree for each thing remembered, in float32
    for parameters of half precision.
    """
    check_learning_rate(name, learning_rate)
    check_range(name, "weight_decay", weight_decay, 0)
    for argument, value in hyper.items():
        _check_number(name, argument, value)
    needs_params = uses_params or weight_decay is not None
    update_array = _array_update(rule, tuple(start), hyper, uses_params)

    def init(params: Params) -> dict[str, Any]:
        _check_floating(name, params)
        count = jnp.zeros((), jnp.int32)
        fixed = {"count": count, "learning_rate": jnp.asarray(_at(count, learning_rate), float)}
        return fixed | {
            slot: jax.tree.map(lambda p, s=s: _remember(p, s), params) for slot, s in start.items()
        }

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        if params is None and needs_params:
            raise ValueError(f"{name}: update(grads, state) came without params, which it needs")
        params = where_trained(updates, params)
        check_same_trees(name, updates, {"params": params} | {s: state[s] for s in start})
        leaves, treedef = jax.tree.flatten(updates)
        count = state["count"]
        rate, decay = _at(count, learning_rate), _at(count, weight_decay)
        t = next_count(count)

        absent = [None] * len(leaves)
        ps = absent if params is None else jax.tree.leaves(params)
        masks = absent if decay is None else jax.tree.leaves(resolve_mask(mask, params))
        slots = [jax.tree.leaves(state[slot]) for slot in start]
        remembered = [list(row) for row in zip(*slots, strict=True)] or [[] for _ in leaves]
        rows = [
            update_array(t, rate, decay, g, *rest)
            for g, *rest in zip(leaves, ps, masks, remembered, strict=True)
        ]
        step, *new = (treedef.unflatten([row[i] for row in rows]) for i in range(1 + len(start)))
        fixed = {"count": t, "learning_rate": jnp.asarray(rate, float)}
        return step, fixed | dict(zip(start, new, strict=True))

    # Optax's wrappers may hand on keywords, such as a loss, that no rule here needs.
    return optax.with_extra_args_support(Optimizer(init, update))


def _array_update(
    rule: Rule, slots: tuple[str, ...], hyper: Mapping[str, ArrayLike], uses_params: bool
) -> Callable[..., tuple[Array, ...]]:
    """The rule with its numbers in the dtype that it computes in, and decoupled weight decay."""

    @jax.jit  # so that arrays of one shape are traced and lowered once, not each
    def update(
        t: Array, rate: ArrayLike, decay: Any, g: ArrayLike, p: Any, decays: Any, remembered: Any
    ) -> tuple[Array, ...]:
        dtype = wide_dtype(g)
        numbers = {key: as_number(value, dtype) for key, value in hyper.items()}
        if uses_params:
            numbers["p"] = jnp.asarray(p, dtype)
        numbers |= dict(zip(slots, remembered, strict=True))
        alpha = as_number(rate, dtype)
        step, new = rule(jnp.asarray(g, dtype), t.astype(dtype), alpha, **numbers)
        if decay is not None:
            amount = as_number(decay, dtype) * jnp.asarray(decays, dtype)
            step = step + alpha * amount * jnp.asarray(p, dtype)
        return (-step).astype(jnp.result_type(g)), *(new[slot] for slot in slots)

    return update


def _remember(p: ArrayLike, start: Start) -> Array:
    if callable(start):
        return start(jnp.asarray(p, wide_dtype(p)))
    return jnp.full_like(p, start, dtype=wide_dtype(p))


def _at(count: Array, rate: Any) -> Any:
    return rate(count) if callable(rate) else rate


def where_trained(grads: Params, params: Params) -> Params:
    """params without what has no gradient: an Equinox model holds functions, grads None there."""
    if params is None:
        return None
    try:
        return jax.tree.map(
            lambda g, p: None if g is None else p, grads, params, is_leaf=lambda g: g is None
        )
    except ValueError:
        return params  # differs otherwise too, which `check_same_trees` tells better


# --- numbers ----------------------------------------------------------------------------------


def bias_correction(b: ArrayLike, t: Array) -> Array:
    """1 / (1 - b^t), without the cancellation near b = 1 that costs float32 half its digits.

    A factor rather than a divisor: XLA may or may not turn the division of an array by a scalar
    into a product, and then a run alone and the same run in a sweep differ in the last bit.
    """
    if isinstance(b, float):
        return -1 / jnp.expm1(t * math.log(b)) if b > 0 else jnp.ones_like(t)
    b = jnp.asarray(b)
    positive = b > 0
    log_b = jnp.log1p(jnp.where(positive, b, 0.5) - 1)
    return jnp.where(positive, -1 / jnp.expm1(t * log_b), 1)


def safe_sqrt(x: Array) -> Array:
    """The square root, with derivative 0 instead of inf at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


@jax.custom_jvp
def safe_divide(x: Array, y: Array) -> Array:
    """x / y, and 0 where y is 0, value and derivative, finite at divisors like 1e-30 too."""
    usable = y != 0
    return jnp.where(usable, x / jnp.where(usable, y, 1), 0)


@safe_divide.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # JAX's own has 1 / y^2 in it, which overflows long before (x / y) / y does.
    (x, y), (dx, dy) = primals, tangents
    quotient = safe_divide(x, y)
    return quotient, safe_divide(dx - quotient * dy, y)


def next_count(count: Array) -> Array:
    """count + 1, but never beyond the largest int32."""
    return jnp.where(count < jnp.iinfo(jnp.int32).max, count + 1, count)


def as_number(value: ArrayLike, dtype: Any) -> Any:
    """A Python number as it is, so that 1 - b is formed in double; an array in `dtype`."""
    return float(value) if isinstance(value, (int, float)) else jnp.asarray(value, dtype)


# --- checks -----------------------------------------------------------------------------------


def check_learning_rate(name: str, learning_rate: Rate) -> None:
    """Raise ValueError for a negative number; a schedule or traced value cannot be looked at."""
    check_range(name, "learning_rate", learning_rate, 0)


def _check_number(name: str, argument: str, value: Any) -> None:
    if callable(value):
        raise TypeError(
            f"{name}: {argument} is a function, expected a number; learning_rate and weight_decay"
            " may be schedules, others by optax.inject_hyperparams"
        )


def check_range(name: str, argument: str, value: Any, low: float, below: float = math.inf) -> None:
    """Raise ValueError unless low <= value < below, inf itself allowed; not of traced values."""
    if not isinstance(value, (int, float)) or low <= value < below or value == below == math.inf:
        return
    expected = f">= {low}" if below == math.inf else f"in [{low}, {below})"
    raise ValueError(f"{name}: {argument} is {value}, expected a number {expected}")


def _check_floating(name: str, params: Params) -> None:
    for path, leaf in paths(params).items():
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name}: parameter {path!r} is {dtype}, expected floating point")


def check_same_trees(name: str, grads: Params, others: Mapping[str, Params]) -> None:
    """Raise ValueError naming the first leaf that grads and one of the others do not share."""
    structure = jax.tree.structure(grads)
    for what, tree in others.items():
        if tree is None or jax.tree.structure(tree) == structure:
            continue
        ours, theirs = (list(paths(t)) for t in (grads, tree))
        odd = [path for path in ours + theirs if (path in ours) != (path in theirs)]
        raise ValueError(
            f"{name}: grads and {what} differ in structure"
            f" ({f'first at {odd[0]!r}' if odd else 'in the types of their containers'}):"
            f" grads are {structure}, {what} {jax.tree.structure(tree)}"
        )
