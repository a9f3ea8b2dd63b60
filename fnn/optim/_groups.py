"""Groups of parameters, each with its own optimizer."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn._base import Params, path_matches, path_of, paths
from fnn.optim._lifting import Optimizer, check_optimizer, check_same_trees, where_trained


class Still(NamedTuple):
    """In the place of a leaf that does not move; no leaf itself, as ``optax.MaskedNode``."""


class Frozen(NamedTuple):
    """The state of `freeze`: a tree like params with `Still` for each leaf, so without arrays."""

    leaves: Params


def freeze() -> Optimizer:
    """Updates that leave every bit of the parameters unchanged; no memory.

    The state names the leaves, so that `moving` finds them whatever is around this optimizer.
    """

    def init(params: Params) -> Any:
        return Frozen(jax.tree.map(lambda p: Still(), params))

    # x + -0.0 is x for every x, but -0.0 + 0.0 would be 0.0.
    def still(g: ArrayLike) -> Array:
        return jnp.full_like(g, -0.0)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        return jax.tree.map(still, updates), state

    return optax.with_extra_args_support(Optimizer(init, update))


def moving(tree: Params, opt_state: Any) -> Params:
    """A tree like params, with None for the leaves that `freeze` leaves as they are.

    `opt_state` is the state of any optimizer that contains `freeze`. So the norm of the gradients
    that count is ``global_norm(moving(grads, opt_state))``.
    """
    still = {
        path_of(keys)
        for state in _nodes(Frozen, opt_state).values()
        for keys in _nodes(Still, state.leaves)
    }
    if not still:
        return tree

    def keep(keys: Any, leaf: Any) -> Any:
        return None if path_of(keys) in still else leaf

    return jax.tree_util.tree_map_with_path(keep, tree)


def _nodes(kind: type, tree: Any) -> dict[Any, Any]:
    """{keys: node} of the nodes of this kind."""
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, kind))
    return {keys: node for keys, node in nodes if isinstance(node, kind)}


def by_path(optimizers: Mapping[str, Optimizer]) -> Optimizer:
    """An optimizer for each pattern of paths, the first that matches a leaf.

    ``by_path({"embed/**": freeze(), "**/b": sgd(0.1), "**": adam(1e-3)})``. In a pattern ``*``
    matches any part of one name, ``**`` any number of names. Each optimizer gets only its own
    leaves; in its state the other leaves are ``optax.MaskedNode()``, which takes no memory. A
    leaf that no pattern matches is a ValueError, and so is a pattern that gets no leaf.
    """

    for pattern, optimizer in optimizers.items():
        check_optimizer(f"by_path {pattern!r}", optimizer)
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

    With `must_match` a group that gets no leaf is a ValueError.
    """

    each = {name: optax.with_extra_args_support(o) for name, o in optimizers.items()}

    def names_of(params: Params) -> list[str]:
        names = [group(path, leaf) for path, leaf in paths(params).items()]
        for name in optimizers if must_match and names else ():
            if name not in names:
                raise ValueError(f"{caller}: {_without(name, list(paths(params)))}")
        return names

    def only(name: str, names: list[str], tree: Params) -> Params:
        """The tree with the leaves of the other groups replaced by MaskedNode, which is no leaf."""
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


def _without(pattern: str, names: list[str]) -> str:
    """Why no parameter of these names is left for the pattern."""
    taken = [path for path in names if path_matches(pattern, path)]
    if taken:
        which = ", ".join(taken[:3]) + (", ..." if len(taken) > 3 else "")
        said = f"earlier patterns take {which}; put it before them"
        return f"pattern {pattern!r} gets no parameter: {said}"
    below = f"{pattern}/**"
    is_layer = any(path_matches(below, path) for path in names)
    advice = f"; for all of a layer write {below!r}" if is_layer else ""
    return f"pattern {pattern!r} matches no parameter of {names}{advice}"


def first_match(path: str, patterns: list[str]) -> str:
    """The first pattern that matches the path; ValueError if none does."""
    for pattern in patterns:
        if path_matches(pattern, path):
            return pattern
    raise ValueError(f"by_path: no pattern of {patterns} matches parameter {path!r}")
