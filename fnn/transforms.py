"""What goes around an optimizer: chaining, decay, groups of parameters.

Each is a gradient transformation of Optax's interface, so they chain with Optax's and these.
"""

from collections.abc import Callable, Mapping
from typing import Any

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
    where_trained,
)
from fnn.params import path_matches, paths, resolve_mask
from fnn.precision import wide
from fnn.types import Params


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

    return stateless(update)


# --- groups of parameters ---------------------------------------------------------------------


def freeze() -> Optimizer:
    """Updates that change nothing, to the last bit; remembers nothing."""

    # -0.0, since x + -0.0 is x for every x, where -0.0 + 0.0 would be 0.0.
    def still(g: ArrayLike) -> Array:
        return jnp.full_like(g, -0.0)

    return stateless(lambda updates, state, params=None: (jax.tree.map(still, updates), state))


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


def stateless(update: Any) -> Optimizer:
    """The transformation that remembers nothing and takes whatever keywords come."""
    return optax.with_extra_args_support(Optimizer(lambda params: (), update))
