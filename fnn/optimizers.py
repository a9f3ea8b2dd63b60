"""Optimizers by hand, from their formulas, behind Optax's interface.

Each rule below is the textbook's, for one array: gradient ``g``, update number ``t`` from 1,
what the rule remembers, then its hyperparameters. It returns the direction to go, which the
learning rate scales, and what to remember. `_lift` makes it an optimizer of whole trees.

An optimizer is two pure functions, ``init(params) -> state`` and ``update(grads, state, params)
-> (updates, state)``, so Optax's combinators take these and `chain` takes Optax's. Learning
rates and the other hyperparameters are Python floats or traced scalars, so building one inside
``jit`` or ``vmap`` recompiles nothing; a learning rate may also be a schedule, called with 0 for
the first update. The state is a plain dict of strongly typed arrays: the count of updates and
one tree for each thing remembered, of half-precision parameters in float32.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn.params import decayed, global_norm, paths
from fnn.precision import wide_dtype
from fnn.types import Params

Optimizer = optax.GradientTransformation  # a NamedTuple of two functions: init, update
Schedule = Callable[[Array], ArrayLike]


# --- the rules, one array at a time -----------------------------------------------------------


def _sgd(g, t):
    return (g,)


def _momentum(g, t, v, decay):
    v = decay * v + g
    return v, v


def _nesterov(g, t, v, decay):
    v = decay * v + g
    return g + decay * v, v


def _adagrad(g, t, s, eps):
    s = s + g**2
    return _divide(g, _sqrt(s + eps)), s


def _rmsprop(g, t, v, decay, eps):
    v = decay * v + (1 - decay) * g**2
    return _divide(g, _sqrt(v + eps)), v


def _adam(g, t, m, v, b1, b2, eps):
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    m_hat = m * _bias_correction(b1, t)
    v_hat = v * _bias_correction(b2, t)
    return _divide(m_hat, _sqrt(v_hat) + eps), m, v


# --- the optimizers ---------------------------------------------------------------------------


def sgd(learning_rate: ArrayLike | Schedule) -> Optimizer:
    """Gradient descent: p <- p - learning_rate g. Remembers nothing."""
    return _lift("sgd", _sgd, {}, learning_rate)


def momentum(
    learning_rate: ArrayLike | Schedule, decay: ArrayLike = 0.9, *, nesterov: bool = False
) -> Optimizer:
    """Heavy ball (Polyak 1964): v <- decay v + g; p <- p - learning_rate v.

    With `nesterov`, p <- p - learning_rate (g + decay v): the parameters are the look-ahead
    point (Bengio et al. 2013 rewrite Sutskever et al. 2013 so). As in Optax and PyTorch the rate
    is outside the velocity; in the papers and Keras it is inside, which differs only while the
    rate changes. One array of memory a parameter.
    """
    rule = _nesterov if nesterov else _momentum
    return _lift("momentum", rule, {"velocity": 0.0}, learning_rate, decay=decay)


def nesterov(learning_rate: ArrayLike | Schedule, decay: ArrayLike = 0.9) -> Optimizer:
    """Nesterov's momentum: ``momentum(learning_rate, decay, nesterov=True)``."""
    return momentum(learning_rate, decay, nesterov=True)


def adagrad(
    learning_rate: ArrayLike | Schedule,
    initial_accumulator: ArrayLike = 0.1,
    eps: ArrayLike = 1e-7,
) -> Optimizer:
    """Duchi et al. 2011, diagonal: s <- s + g^2; p <- p - learning_rate g / sqrt(s + eps).

    s starts at `initial_accumulator`. Optax's and Keras's definition: the paper and PyTorch
    start at 0 and put eps outside the root, so their first steps are far larger for small
    gradients. Where s is 0 the step is 0. One array of memory a parameter.
    """
    _check_range("adagrad", "initial_accumulator", initial_accumulator, 0, math.inf)
    start = {"sum_of_squares": initial_accumulator}
    return _lift("adagrad", _adagrad, start, learning_rate, eps=eps)


def rmsprop(
    learning_rate: ArrayLike | Schedule, decay: ArrayLike = 0.9, eps: ArrayLike = 1e-8
) -> Optimizer:
    """Hinton's lecture 6e: p <- p - learning_rate g / sqrt(v + eps).

    v <- decay v + (1 - decay) g^2 starts at 0, without bias correction. eps is inside the root
    as in Optax and Keras (1e-7 there); PyTorch has it outside, and decay 0.99. One array of
    memory a parameter.
    """
    return _lift("rmsprop", _rmsprop, {"v": 0.0}, learning_rate, decay=decay, eps=eps)


def adam(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
) -> Optimizer:
    """Kingma & Ba 2015, algorithm 1: p <- p - learning_rate m_hat / (sqrt(v_hat) + eps).

    m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, m_hat = m / (1 - b1^t), v_hat = v / (1 -
    b2^t). Optax's and PyTorch's definition; Keras adds eps before the correction of v, which
    counts at small gradients. 1 - b^t is exact to float32's last digits at every t, where Optax's
    is off by up to 2e-5. Two arrays of memory a parameter.
    """
    start = {"m": 0.0, "v": 0.0}
    return _lift("adam", _adam, start, learning_rate, b1=b1, b2=b2, eps=eps)


def adamw(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 1e-4,
    mask: Any = None,
) -> Optimizer:
    """Adam with decoupled weight decay: p <- p - learning_rate (adam's step + weight_decay p).

    Loshchilov & Hutter 2019 as every library has it: the decay is scaled by the learning rate,
    so weight_decay is the paper's lambda / alpha. `mask` says what decays: a tree of bools, a
    prefix of one (True is everything, as Optax's default), a function params -> such a tree, or
    None for `params.decayed`, all but biases and norm scales. Two arrays of memory a parameter.
    """
    return _lift(
        "adamw",
        _adam,
        {"m": 0.0, "v": 0.0},
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        b1=b1,
        b2=b2,
        eps=eps,
    )


# --- around the rules -------------------------------------------------------------------------


def chain(*transforms: Any) -> Optimizer:
    """One optimizer of several, the updates of each the gradients of the next."""

    def init(params: Params) -> tuple[Any, ...]:
        return tuple(transform.init(params) for transform in transforms)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        if len(state) != len(transforms):
            raise ValueError(
                f"chain: state is of {len(state)} transforms, expected {len(transforms)}"
            )
        new = []
        for transform, s in zip(transforms, state, strict=True):
            updates, s = transform.update(updates, s, params)
            new.append(s)
        return updates, tuple(new)

    return Optimizer(init, update)


def clip_by_global_norm(max_norm: ArrayLike) -> Optimizer:
    """g <- g max_norm / norm where the norm of the whole tree exceeds max_norm, else g itself.

    Pascanu et al. 2013. Under the limit the gradients pass untouched, bit for bit. Gradients
    that are not finite pass untouched too: scaling them would spread the damage, and
    `make_train_step` skips such a step whole.
    """
    _check_range("clip_by_global_norm", "max_norm", max_norm, 0, math.inf)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        return scale_to_norm(updates, global_norm(updates), max_norm), state

    return Optimizer(lambda params: (), update)


def clip_by_value(limit: ArrayLike) -> Optimizer:
    """g <- g clipped to [-limit, limit], element by element."""
    _check_range("clip_by_value", "limit", limit, 0, math.inf)

    def clip(g: Array) -> Array:
        g = jnp.asarray(g)
        bound = jnp.asarray(limit, g.dtype)
        return jnp.clip(g, -bound, bound)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        return jax.tree.map(clip, updates), state

    return Optimizer(lambda params: (), update)


def add_weight_decay(rate: ArrayLike, mask: Any = None) -> Optimizer:
    """g <- g + rate p where `mask` says so: before a rule it is L2, after it decoupled decay.

    `mask` as in `adamw`: None is all but biases and norm scales.
    """
    _check_range("add_weight_decay", "rate", rate, 0, math.inf)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        if params is None:
            raise ValueError("add_weight_decay: update(grads, state) came without params")

        def decay(g: Array, p: Array, decays: Any) -> Array:
            g = jnp.asarray(g)
            decays = jnp.asarray(decays, g.dtype)
            return g + decays * jnp.asarray(rate, g.dtype) * jnp.asarray(p, g.dtype)

        return jax.tree.map(decay, updates, params, _resolve_mask(mask, params)), state

    return Optimizer(lambda params: (), update)


def apply_updates(params: Params, updates: Params) -> Params:
    """params + updates, leaf by leaf, in the dtypes of params."""

    def add(p: Array, u: Array) -> Array:
        p = jnp.asarray(p)
        return p + jnp.asarray(u, p.dtype)

    return jax.tree.map(add, params, updates)


def scale_to_norm(grads: Params, norm: Array, max_norm: ArrayLike) -> Params:
    """The gradients, whose norm is `norm`, scaled to `max_norm` if it exceeds that."""
    too_long = (norm > max_norm) & jnp.isfinite(norm)
    scale = jnp.where(too_long, max_norm / jnp.where(too_long, norm, 1), 1)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)


# --- lifting ----------------------------------------------------------------------------------


def _lift(
    name: str,
    rule: Callable[..., tuple[Array, ...]],
    start: Mapping[str, ArrayLike],
    learning_rate: ArrayLike | Schedule,
    *,
    weight_decay: ArrayLike | None = None,
    mask: Any = None,
    **hyper: ArrayLike,
) -> Optimizer:
    """The optimizer of trees that applies `rule` to each array.

    `start` names what the rule remembers and the value it starts from, `hyper` the rule's
    hyperparameters; with `weight_decay` the direction is decayed as `mask` says.
    """
    if not callable(learning_rate):
        _check_range(name, "learning_rate", learning_rate, 0, math.inf)
    for argument, value in hyper.items():
        _check_range(name, argument, value, 0, math.inf if argument == "eps" else 1)
    if weight_decay is not None:
        _check_range(name, "weight_decay", weight_decay, 0, math.inf)

    def init(params: Params) -> dict[str, Any]:
        _check_floating(name, params)
        count = {"count": jnp.zeros((), jnp.int32)}

        def full(p: Array, value: ArrayLike) -> Array:
            return jnp.full_like(p, value, dtype=wide_dtype(p))

        return count | {
            slot: jax.tree.map(lambda p, v=value: full(p, v), params)
            for slot, value in start.items()
        }

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        if weight_decay is not None and params is None:
            raise ValueError(f"{name}: update(grads, state) came without params, which it decays")
        _check_same_trees(name, updates, {"params": params} | {slot: state[slot] for slot in start})
        count = state["count"]
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        t = jnp.where(count < jnp.iinfo(jnp.int32).max, count + 1, count)

        def update_array(g, p, decays, *remembered):
            dtype = wide_dtype(g)
            number = {key: _as(value, dtype) for key, value in hyper.items()}
            direction, *new = rule(jnp.asarray(g, dtype), t.astype(dtype), *remembered, **number)
            if weight_decay is not None:
                amount = _as(weight_decay, dtype) * jnp.asarray(decays, dtype)
                direction = direction + amount * jnp.asarray(p, dtype)
            return (-_as(rate, dtype) * direction).astype(jnp.asarray(g).dtype), *new

        leaves, treedef = jax.tree.flatten(updates)
        nothing = [None] * len(leaves)
        columns = [
            nothing if params is None else treedef.flatten_up_to(params),
            nothing if weight_decay is None else jax.tree.leaves(_resolve_mask(mask, params)),
            *(treedef.flatten_up_to(state[slot]) for slot in start),
        ]
        rows = [update_array(*row) for row in zip(leaves, *columns, strict=True)]
        updates, *new = (treedef.unflatten([row[i] for row in rows]) for i in range(1 + len(start)))
        return updates, {"count": t} | dict(zip(start, new, strict=True))

    return Optimizer(init, update)


def _bias_correction(b: ArrayLike, t: Array) -> Array:
    """1 / (1 - b^t), without the cancellation near b = 1 that costs float32 half its digits.

    A factor rather than a divisor: XLA may or may not turn the division of an array by a scalar
    into a product, and then a run alone and the same run in a sweep differ in the last bit.
    """
    if isinstance(b, float):
        log_b = math.log(b) if b > 0 else -math.inf
    else:
        log_b = jnp.log1p(b - 1)
    return -1 / jnp.expm1(t * log_b)


def _sqrt(x: Array) -> Array:
    """The square root, with derivative 0 instead of inf at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _divide(x: Array, y: Array) -> Array:
    """x / y, and 0 where y is 0, value and derivative."""
    usable = y != 0
    return jnp.where(usable, x / jnp.where(usable, y, 1), 0)


def _as(value: ArrayLike, dtype: Any) -> Any:
    """A Python number as it is, so that 1 - b is formed in double; an array in `dtype`."""
    return float(value) if isinstance(value, (int, float)) else jnp.asarray(value, dtype)


def _resolve_mask(mask: Any, params: Params) -> Params:
    if mask is None:
        return decayed(params)
    return jax.tree.broadcast(mask(params) if callable(mask) else mask, params)


def _check_range(name: str, argument: str, value: Any, low: float, high: float) -> None:
    if not isinstance(value, (int, float)):
        return  # a traced value cannot be looked at
    if not low <= value <= high or (value == high == 1):
        expected = f"a number in [{low}, {high})" if high == 1 else f"a number >= {low}"
        raise ValueError(f"{name}: {argument} is {value}, expected {expected}")


def _check_floating(name: str, params: Params) -> None:
    for path, leaf in paths(params).items():
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name}: parameter {path!r} is {dtype}, expected floating point")


def _check_same_trees(name: str, grads: Params, others: dict[str, Params]) -> None:
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
