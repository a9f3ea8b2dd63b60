"""From a rule for one array to an optimizer of trees.

A rule is a textbook formula for one array, p <- p - step:
``rule(g, t, rate, **memory, **hyper) -> (step, memory)``. Its arguments are the gradient, the
number of the update from 1, the learning rate, the arrays that it remembers and its
hyperparameters. `lift` makes an optimizer of it.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn._base import (
    Params,
    as_number,
    check_mask,
    check_range,
    converted,
    next_count,
    paths,
    real_dtype,
    resolve_mask,
    wide_dtype,
)

Optimizer = optax.GradientTransformation  # a NamedTuple of two functions: init, update
Schedule = Callable[[Array], ArrayLike]
Rate = ArrayLike | Schedule
Number = float | Array  # a hyperparameter within a rule, in the dtype that the rule computes in
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
    decay_inside: bool = False,
    dtypes: Mapping[str, Any] | None = None,
) -> Optimizer:
    """The optimizer that applies `rule` to each array of a tree. For rules of your own::

        def signum(g, t, rate, mu, decay):
            mu = decay * mu + (1 - decay) * g
            return rate * jnp.sign(mu), {"mu": mu}

        optimizer = fnn.optim.lift("signum", signum, {"mu": 0.0}, 1e-3, {"decay": 0.9})

    The rule returns (step, memory) for one array, and the parameter becomes p - step. Its
    arguments are the gradient g, the number t of the update from 1, the learning rate, the arrays
    that it remembers, and its hyperparameters, all in float32 at least. `name` is for messages.

    - `start`: {name of an array that the rule remembers: its first value, or a function of the
      parameter that gives it}.
    - `learning_rate`: a number, a traced scalar or a schedule.
    - `hyper`: {name of a hyperparameter: a number or a traced scalar}.
    - `weight_decay`: every step also contains rate * weight_decay * p where `mask` is True.
    - `uses_params`: the rule also gets the parameter, as p.
    - `decay_inside`: the step contains no weight decay by itself. Instead the rule gets the factor
      of p as weight_decay, which is 0 where `mask` is False.
    - `dtypes`: {name of a remembered array: the dtype that it is stored in}.

    The state is a plain dict: "count" of updates, "last_rate" for the log, and a tree for each
    name in `start`, in float32 for parameters of half precision. g and p may be complex; numbers
    are real.
    """
    check_learning_rate(name, learning_rate)
    if not callable(weight_decay):
        check_range(name, "weight_decay", weight_decay, 0, none=True)
    check_mask(mask, f"{name}: mask")
    for argument, value in hyper.items():
        if value is None:
            raise TypeError(f"{name}: {argument} is None, expected a number")
        check_hyper(name, argument, value)
    stored = {slot: d for slot, d in (dtypes or {}).items() if d is not None}
    needs_params = uses_params or weight_decay is not None
    update_array = _array_update(rule, tuple(start), hyper, uses_params, decay_inside, stored)

    def init(params: Params) -> dict[str, Any]:
        _check_floating(name, params, stored)
        count = jnp.zeros((), jnp.int32)
        rate = _last_rate(number_at(name, "learning_rate", learning_rate, count))
        return {"count": count, "last_rate": rate} | {
            slot: jax.tree.map(partial(_first, start=first, stored=stored.get(slot)), params)
            for slot, first in start.items()
        }

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        if needs_params:
            check_params(name, params)
        _check_state(name, state, ("count", *start))
        params = where_trained(updates, params)
        check_same_trees(name, updates, {"params": params} | {s: state[s] for s in start})
        leaves, treedef = jax.tree.flatten(updates)
        count = state["count"]
        rate = number_at(name, "learning_rate", learning_rate, count)
        decay = number_at(name, "weight_decay", weight_decay, count)
        t = next_count(count)

        absent = [None] * len(leaves)
        ps = absent if params is None else jax.tree.leaves(params)
        masks = absent
        if decay is not None:
            masks = jax.tree.leaves(resolve_mask(mask, params, f"{name}: mask"))
        slots = [jax.tree.leaves(state[slot]) for slot in start]
        memory = [list(row) for row in zip(*slots, strict=True)] or [[] for _ in leaves]
        rows = [
            update_array(t, rate, decay, g, *rest)
            for g, *rest in zip(leaves, ps, masks, memory, strict=True)
        ]
        step, *new = (treedef.unflatten([row[i] for row in rows]) for i in range(1 + len(start)))
        fixed = {"count": t, "last_rate": _last_rate(rate)}
        return step, fixed | dict(zip(start, new, strict=True))

    # Optax's wrappers may pass keywords, such as a loss, that no rule here needs.
    return optax.with_extra_args_support(Optimizer(init, update))


def _array_update(
    rule: Rule,
    slots: tuple[str, ...],
    hyper: Mapping[str, ArrayLike],
    uses_params: bool,
    decay_inside: bool,
    stored: Mapping[str, Any],
) -> Callable[..., tuple[Array, ...]]:
    """The rule and decoupled weight decay for one array, in the dtype that the rule computes in."""

    @jax.jit  # arrays of the same shape are traced and lowered only once
    def update(
        t: Array, rate: ArrayLike, decay: Any, g: ArrayLike, p: Any, decays: Any, memory: Any
    ) -> tuple[Array, ...]:
        dtype = wide_dtype(g)
        real = real_dtype(dtype)
        given: dict[str, Any] = {key: as_number(value, real) for key, value in hyper.items()}
        if uses_params:
            given["p"] = jnp.asarray(p, dtype)
        for slot, array in zip(slots, memory, strict=True):
            given[slot] = converted(array, dtype) if slot in stored else array
        alpha = as_number(rate, real)
        # A complex array times a real one is a promotion, which JAX may be told to refuse.
        mixed = jax.numpy_dtype_promotion("standard")
        with contextlib.nullcontext() if dtype == real else mixed:
            amount = None
            if decay is not None:
                amount = as_number(decay, real) * jnp.asarray(decays, real)
            if decay_inside:
                given["weight_decay"] = 0.0 if amount is None else amount
            step, new = rule(jnp.asarray(g, dtype), t.astype(real), alpha, **given)
            if amount is not None and not decay_inside:
                step = step + alpha * amount * jnp.asarray(p, dtype)
        kept = (
            converted(new[slot], stored[slot]) if slot in stored else new[slot] for slot in slots
        )
        return (-step).astype(jnp.result_type(g)), *kept

    return update


def _first(p: ArrayLike, start: Start, stored: Any) -> Array:
    """The first value of an array that is remembered for the parameter p."""
    dtype = wide_dtype(p)
    if callable(start):
        # As Optax's do, init takes shapes too.
        like = jnp.zeros_like(p) if isinstance(p, jax.ShapeDtypeStruct) else p
        first = start(jnp.asarray(like, dtype))
    else:
        first = jnp.full_like(p, start, dtype=dtype)
    return first if stored is None else converted(first, stored)


def of_squares(first: ArrayLike) -> Callable[[Array], Array]:
    """The first value of an array of |g|^2, which is real for complex parameters too."""
    return lambda p: jnp.full_like(p, first, dtype=real_dtype(p.dtype))


def _last_rate(rate: ArrayLike) -> Array:
    # Not under the name "learning_rate": Optax's inject_hyperparams has that one, where it can be
    # set. This one is a record.
    return jnp.asarray(rate, float)


def number_at(name: str, argument: str, number: Any, count: Array) -> Any:
    """The number, of a schedule the one at `count`."""
    if not callable(number):
        return number
    value: Any = number(count)
    if value is None or np.ndim(value):
        came = "None" if value is None else f"shape {np.shape(value)}"
        raise ValueError(f"{name}: the schedule {argument} returned {came}, expected a scalar")
    return value


def where_trained(grads: Params, params: Params) -> Params:
    """params with None where grads has None; an Equinox model has functions there."""
    if params is None:
        return None
    try:
        return jax.tree.map(
            lambda g, p: None if g is None else p, grads, params, is_leaf=lambda g: g is None
        )
    except ValueError:
        return params  # another structure: `check_same_trees` has the better message


# --- numbers ----------------------------------------------------------------------------------


def bias_correction(b: ArrayLike, t: Array) -> Array:
    """1 / (1 - b^t), without the cancellation near b = 1 that costs float32 half its digits.

    A factor, not a divisor: XLA sometimes turns the division of an array by a scalar into a
    product. Then a run alone and the same run in a sweep would differ in the last bit.
    """
    if isinstance(b, float):
        return -1 / jnp.expm1(t * math.log(b)) if b > 0 else jnp.ones_like(t)
    b = jnp.asarray(b)
    positive = b > 0
    log_b = jnp.log1p(jnp.where(positive, b, 0.5) - 1)
    return jnp.where(positive, -1 / jnp.expm1(t * log_b), 1)


# --- checks -----------------------------------------------------------------------------------


def check_params(name: str, params: Params) -> None:
    """Raise ValueError in the name of the optimizer `name` if its update got no params."""
    if params is None:
        raise ValueError(f"{name}: update(grads, state) came without params, which it needs")


def check_optimizer(name: str, optimizer: Any) -> None:
    """Raise TypeError, in the name of the function that takes it, unless it is an optimizer."""
    if all(callable(getattr(optimizer, half, None)) for half in ("init", "update")):
        return
    came = getattr(optimizer, "__name__", type(optimizer).__name__)
    advice = f"; {_how_to_call(came, optimizer)}" if callable(optimizer) else ""
    kind = "a function" if callable(optimizer) else "no pair of init and update"
    raise TypeError(f"{name}: {came} is {kind}, expected an optimizer{advice}")


def _how_to_call(name: str, function: Callable[..., Any]) -> str:
    try:
        known = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function without a signature
        known = []
    if known and known[0].name == "learning_rate":
        return f"call it, as in {name}(1e-3)"
    needed = [p for p in known if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return f"call it: {name}({', '.join(p.name for p in needed)})"


def check_learning_rate(name: str, learning_rate: Rate) -> None:
    """Raise unless it is a number >= 0; schedules and traced values are not checked."""
    if learning_rate is None:
        raise TypeError(f"{name}: learning_rate is None, expected a number or a schedule")
    if not callable(learning_rate):
        check_range(name, "learning_rate", learning_rate, 0)


def check_stored(name: str, argument: str, dtype: Any) -> Any:
    """The dtype that an average of gradients is stored in; None is the one it is computed in."""
    if dtype is not None and not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"{name}: {argument} is {dtype!r}, expected floating point, or None")
    return None if dtype is None else jax.dtypes.canonicalize_dtype(dtype)


def check_decays(name: str, **decays: ArrayLike | None) -> None:
    """Raise ValueError naming the decay that is not in [0, 1)."""
    for argument, value in decays.items():
        check_hyper(name, argument, value, 0, 1)


def check_hyper(
    name: str, argument: str, value: Any, low: float = -math.inf, below: float = math.inf
) -> None:
    """`check_range` of a hyperparameter, which may be no schedule; None passes."""
    if callable(value):
        raise TypeError(
            f"{name}: {argument} is a function, expected a number; learning_rate and weight_decay"
            " may be schedules, others by optax.inject_hyperparams"
        )
    check_range(name, argument, value, low, below, none=True)


def _check_floating(name: str, params: Params, stored: Mapping[str, Any]) -> None:
    for path, leaf in paths(params).items():
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(f"{name}: parameter {path!r} is {dtype}, expected floating point")
        for slot, kept in stored.items():
            if jnp.iscomplexobj(leaf) and not jnp.issubdtype(kept, jnp.complexfloating):
                raise TypeError(
                    f"{name}: parameter {path!r} is {dtype}, but {slot} is stored in {kept};"
                    " expected a complex dtype"
                )


def _check_state(name: str, state: Any, expected: Sequence[str]) -> None:
    if not isinstance(state, Mapping) or not state.keys() >= set(expected):
        came = f"a {type(state).__name__}"
        if isinstance(state, Mapping):
            came = f"a dict with {sorted(map(str, state))}"
        raise TypeError(
            f"{name}: state came as {came}, expected a dict with {list(expected)}, as init and"
            " update return it; the order is update(grads, state, params)"
        )


def check_same_trees(
    name: str, grads: Params, others: Mapping[str, Params], came: str = "grads"
) -> None:
    """Raise ValueError naming the first leaf that is in grads or in the other tree, not in both.

    Or the first that has another shape than in `params`: it would broadcast without a word, as the
    gradients of each example do whose mean was forgotten. `came` is what messages call grads.
    """
    structure = jax.tree.structure(grads)
    for what, tree in others.items():
        if tree is None:
            continue
        if jax.tree.structure(tree) == structure:
            pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(tree), strict=True)
            shapes = [(jnp.shape(g), jnp.shape(p)) for g, p in pairs] if what == "params" else []
            for i, (g, p) in enumerate(shapes):
                if g != p:
                    raise ValueError(
                        f"{name}: {came} have shape {g} at {list(paths(tree))[i]!r}, but the"
                        f" parameter has {p}"
                    )
            continue
        ours, theirs = (list(paths(t)) for t in (grads, tree))
        odd = [path for path in ours + theirs if (path in ours) != (path in theirs)]
        raise ValueError(
            f"{name}: {came} and {what} differ in structure"
            f" ({f'first at {odd[0]!r}' if odd else 'in the types of their containers'}):"
            f" {came} are {structure}, {what} {jax.tree.structure(tree)}"
        )
