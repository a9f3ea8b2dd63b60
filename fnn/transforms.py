"""What goes around an optimizer: chaining, clipping, decay, groups of parameters, precision.

Each is a gradient transformation of Optax's interface, so they chain with Optax's and these.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn.lifting import (
    Optimizer,
    as_number,
    check_range,
    check_same_trees,
    next_count,
    where_trained,
)
from fnn.params import global_norm, path_matches, paths, resolve_mask
from fnn.precision import wide
from fnn.types import Params

NonFinite = Literal["zero", "pass"]


def chain(*transforms: Optimizer) -> Optimizer:
    """One optimizer of several, the updates of each the gradients of the next.

    Keywords given to its update, such as Optax's ``value=loss``, go to each that takes them.
    """
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
        total = wide(p) + jnp.asarray(u, wide(p).dtype)
        return total.astype(jnp.result_type(p))

    return jax.tree.map(add, params, updates)


def add_weight_decay(rate: ArrayLike, mask: Any = None) -> Optimizer:
    """g <- g + rate p where `mask` says so: before a rule it is L2, after it decoupled decay.

    `mask` as in `adamw`: None is all but biases and norm scales.
    """
    check_range("add_weight_decay", "rate", rate, 0)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        if params is None:
            raise ValueError("add_weight_decay: update(grads, state) came without params")

        def decay(g: ArrayLike, p: ArrayLike, decays: Any) -> Array:
            dtype = wide(g).dtype
            amount = as_number(rate, dtype) * jnp.asarray(decays, dtype)
            return (wide(g) + amount * jnp.asarray(p, dtype)).astype(jnp.result_type(g))

        return jax.tree.map(decay, updates, params, resolve_mask(mask, params)), state

    return _stateless(update)


# --- clipping ---------------------------------------------------------------------------------
#
# Under the limit a gradient passes bit for bit. One that is not finite becomes 0, so that nothing
# of it reaches the moments, or with "pass" stays as it came; scaling it would spread it.


def clip_by_value(limit: ArrayLike, *, nonfinite: NonFinite = "zero") -> Optimizer:
    """g <- g clipped to [-limit, limit], element by element; inf is clipped, NaN is not finite."""
    check_range("clip_by_value", "limit", limit, 0)
    _check_nonfinite("clip_by_value", nonfinite)

    def clip(g: ArrayLike) -> Array:
        g = jnp.asarray(g)
        bound = jnp.asarray(limit, g.dtype)
        clipped = jnp.clip(g, -bound, bound)
        return jnp.where(jnp.isnan(g), 0, clipped) if nonfinite == "zero" else clipped

    return _stateless(lambda updates, state, params=None: (jax.tree.map(clip, updates), state))


def clip_by_norm(max_norm: ArrayLike, *, nonfinite: NonFinite = "zero") -> Optimizer:
    """Each leaf by itself: g <- g max_norm / norm(g) where its norm exceeds max_norm."""
    check_range("clip_by_norm", "max_norm", max_norm, 0)
    _check_nonfinite("clip_by_norm", nonfinite)

    def clip(g: ArrayLike) -> Array:
        return scale_to_norm(g, global_norm(g), max_norm, nonfinite)

    return _stateless(lambda updates, state, params=None: (jax.tree.map(clip, updates), state))


def clip_by_global_norm(max_norm: ArrayLike, *, nonfinite: NonFinite = "zero") -> Optimizer:
    """g <- g max_norm / norm where the norm of the whole tree exceeds max_norm, else g itself.

    Pascanu et al. 2013. The state keeps the norm before clipping, {"norm": []}, for the log.
    Gradients whose norm is not finite become zero, or with `nonfinite` "pass" stay as they came.
    """
    check_range("clip_by_global_norm", "max_norm", max_norm, 0)
    _check_nonfinite("clip_by_global_norm", nonfinite)

    def init(params: Params) -> dict[str, Array]:
        return {"norm": jnp.zeros_like(global_norm(params))}

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        norm = global_norm(updates)
        return scale_to_norm(updates, norm, max_norm, nonfinite), {"norm": norm}

    return optax.with_extra_args_support(Optimizer(init, update))


def adaptive_clip(
    limit: ArrayLike = 0.01, eps: ArrayLike = 1e-3, *, nonfinite: NonFinite = "zero"
) -> Optimizer:
    """Brock et al. 2021 (AGC): each unit's gradient to at most limit max(norm(unit), eps).

    A unit is what one output sees: a column of [in, out], a filter of [*size, in, out], and of
    one axis or none the whole leaf.
    """
    check_range("adaptive_clip", "limit", limit, 0)
    check_range("adaptive_clip", "eps", eps, 0)
    _check_nonfinite("adaptive_clip", nonfinite)

    def clip(g: ArrayLike, p: ArrayLike) -> Array:
        g, p = jnp.asarray(g), jnp.asarray(p)
        if g.ndim < 2:
            max_norm = limit * jnp.maximum(global_norm(p), eps)
            return scale_to_norm(g, global_norm(g), max_norm, nonfinite)
        return jax.vmap(clip_unit, -1, -1)(g, p)

    def clip_unit(g: Array, p: Array) -> Array:
        return clip(g.ravel(), p.ravel()).reshape(g.shape)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        if params is None:
            raise ValueError("adaptive_clip: update(grads, state) came without params")
        return jax.tree.map(clip, updates, params), state

    return _stateless(update)


def scale_to_norm(
    grads: Params, norm: Array, max_norm: ArrayLike, nonfinite: NonFinite = "pass"
) -> Params:
    """The gradients, whose norm is `norm`, scaled to `max_norm` if it exceeds that."""
    finite = jnp.isfinite(norm)
    too_long = (norm > max_norm) & finite
    scale = jnp.where(too_long, max_norm / jnp.where(too_long, norm, 1), 1)

    def clip(g: ArrayLike) -> Array:
        g = jnp.asarray(g)
        clipped = (wide(g) * scale.astype(wide(g).dtype)).astype(g.dtype)
        return jnp.where(finite, clipped, 0) if nonfinite == "zero" else clipped

    return jax.tree.map(clip, grads)


# --- groups of parameters ---------------------------------------------------------------------


def freeze() -> Optimizer:
    """Updates that change nothing, to the last bit; remembers nothing."""

    # -0.0, since x + -0.0 is x for every x, where -0.0 + 0.0 would be 0.0.
    def still(g: ArrayLike) -> Array:
        return jnp.full_like(g, -0.0)

    return _stateless(lambda updates, state, params=None: (jax.tree.map(still, updates), state))


def by_path(optimizers: Mapping[str, Optimizer]) -> Optimizer:
    """An optimizer for each pattern of paths, the first that matches a leaf.

    ``by_path({"embed/**": freeze(), "**/b": sgd(0.1), "**": adam(1e-3)})``. In a pattern ``*`` is
    anything within one name, ``**`` any number of names. Each optimizer sees, and remembers, its
    own leaves alone: the rest of its tree is ``optax.MaskedNode()``, which holds nothing. A leaf
    that no pattern matches is a ValueError, and so is a pattern that is left no leaf.
    """

    patterns = list(optimizers)

    def group(path: str, leaf: Any) -> str:
        return first_match(path, patterns)

    return by_group("by_path", group, optimizers, must_match=True)


def by_group(
    caller: str,
    group: Callable[[str, Any], str],
    optimizers: Mapping[str, Optimizer],
    *,
    must_match: bool = False,
) -> Optimizer:
    """The optimizer that ``group(path, leaf)`` names for each leaf; `caller` is for messages.

    With `must_match` a group that is left no leaf is a ValueError.
    """

    each = {name: optax.with_extra_args_support(o) for name, o in optimizers.items()}

    def names_of(params: Params) -> list[str]:
        names = [group(path, leaf) for path, leaf in paths(params).items()]
        for name in optimizers if must_match and names else ():
            if name not in names:
                raise ValueError(
                    f"{caller}: pattern {name!r} is left no parameter of {list(paths(params))}"
                )
        return names

    def only(name: str, names: list[str], tree: Params) -> Params:
        """The tree with a hole, which is no leaf, wherever another group's leaf was."""
        leaves, treedef = jax.tree.flatten(tree)
        own = [
            leaf if n == name else optax.MaskedNode() for n, leaf in zip(names, leaves, strict=True)
        ]
        return treedef.unflatten(own)

    def init(params: Params) -> dict[str, Any]:
        names = names_of(params)
        return {name: each[name].init(only(name, names, params)) for name in each}

    def update(
        updates: Params, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        params = where_trained(updates, params)
        check_same_trees(caller, updates, {"params": params})
        names = names_of(updates)
        new, done = {}, {}
        for name, optimizer in each.items():
            own = None if params is None else only(name, names, params)
            grads = only(name, names, updates)
            out, new[name] = optimizer.update(grads, state[name], own, **extra_args)
            done[name] = iter(jax.tree.leaves(out))
        leaves = [next(done[name]) for name in names]
        return jax.tree.structure(updates).unflatten(leaves), new

    return optax.GradientTransformationExtraArgs(init, update)


def first_match(path: str, patterns: list[str]) -> str:
    """The first of the patterns that matches the path; ValueError if none does."""
    for pattern in patterns:
        if path_matches(pattern, path):
            return pattern
    raise ValueError(f"by_path: no pattern of {patterns} matches parameter {path!r}")


# --- half precision ---------------------------------------------------------------------------


def keep_precision(
    optimizer: Optimizer, how: Literal["master", "stochastic"], key: Array | None = None
) -> Optimizer:
    """Half-precision parameters that move even under updates smaller than their last bit.

    "master" keeps float32 copies in the state ({"master": params, "inner": ...}, 4 bytes a
    parameter) and the parameters are those, rounded. "stochastic" needs no memory and a `key`:
    each parameter is rounded up or down at random so that its expectation is exact. The updates
    come in float32; apply them with `fnn.apply_updates` or `optax.apply_updates`.
    """
    if how not in ("master", "stochastic"):
        raise ValueError(f"keep_precision: how is {how!r}, expected 'master' or 'stochastic'")
    if (key is None) != (how == "master"):
        raise ValueError(
            "keep_precision: stochastic rounding needs a key, as jax.random.key(0) gives,"
            " and master copies take none"
        )

    def init(params: Params) -> dict[str, Any]:
        master = jax.tree.map(lambda p: jnp.array(wide(p)), params)  # never the same buffer
        if key is None:
            return {"master": master, "inner": optimizer.init(master)}
        return {"count": jnp.zeros((), jnp.int32), "inner": optimizer.init(master)}

    inside = optax.with_extra_args_support(optimizer)

    def update(
        updates: Params, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        if params is None:
            raise ValueError("keep_precision: update(grads, state) came without params")
        exact = state["master"] if key is None else jax.tree.map(wide, params)
        grads = jax.tree.map(wide, updates)
        steps, inner = inside.update(grads, state["inner"], exact, **extra_args)
        target = apply_updates(exact, steps)
        if key is None:
            rounded = jax.tree.map(lambda x, p: x.astype(jnp.result_type(p)), target, params)
            new = {"master": target}
        else:
            rounded = _round_tree(jax.random.fold_in(key, state["count"]), target, params)
            new = {"count": next_count(state["count"])}

        def move(x: Array, p: ArrayLike, step: Array) -> Array:
            return step if x.dtype == step.dtype else wide(x) - wide(p)

        moves = jax.tree.map(move, rounded, params, steps)
        return moves, new | {"inner": inner}

    return optax.GradientTransformationExtraArgs(init, update)


def _round_tree(key: Array, target: Params, params: Params) -> Params:
    leaves, treedef = jax.tree.flatten(target)
    dtypes = [jnp.result_type(p) for p in jax.tree.leaves(params)]
    rounded = [
        _round_at_random(jax.random.fold_in(key, i), x, dtype)
        for i, (x, dtype) in enumerate(zip(leaves, dtypes, strict=True))
    ]
    return treedef.unflatten(rounded)


def _round_at_random(key: Array, x: Array, dtype: Any) -> Array:
    """x to one of its two neighbours in dtype, in proportion to how near they are."""
    near = x.astype(dtype)
    if near.dtype == x.dtype:
        return near
    error = x - near.astype(x.dtype)
    towards = jnp.where(error > 0, jnp.inf, -jnp.inf).astype(dtype)
    other = jnp.nextafter(near, towards)
    gap = jnp.abs(other.astype(x.dtype) - near.astype(x.dtype))
    goes = jax.random.uniform(key, x.shape) * gap < jnp.abs(error)
    return jnp.where(goes, other, near)


# ----------------------------------------------------------------------------------------------


def _stateless(update: Any) -> Optimizer:
    return optax.with_extra_args_support(Optimizer(lambda params: (), update))


def _check_nonfinite(name: str, nonfinite: str) -> None:
    if nonfinite not in ("zero", "pass"):
        raise ValueError(f"{name}: nonfinite is {nonfinite!r}, expected 'zero' or 'pass'")
