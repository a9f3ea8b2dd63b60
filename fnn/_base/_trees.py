"""Trees of parameters: paths, sizes, masks.

A path is the keys that lead to a leaf, joined by slashes: ``hidden/w``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from fnn._base._checks import number_of
from fnn._base._types import Params


def paths(params: Params) -> dict[str, Array]:
    """{path: leaf} in the order of ``jax.tree.leaves``; ValueError if two leaves share a path."""
    found: dict[str, Array] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(keys)
        if path in found:
            raise ValueError(f"paths: two leaves have the path {path!r}; keys may have no slash")
        found[path] = leaf
    return found


def nested(leaves: Mapping[str, Any]) -> Any:
    """Nested dicts of leaves by path, the inverse of `paths`; the leaf itself if its path is ""."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *outer, last = path.split("/")
        branch = tree
        for name in outer:
            branch = branch.setdefault(name, {})
        branch[last] = leaf
    return tree.get("", tree)


def path_of(keys: Sequence[Any]) -> str:
    """The path of these keys, which are those of ``jax.tree_util``.

    A last attribute `value` is left out. Flax's nnx wraps each array in an object with a `value`
    when it calls the optimizer's `init`, but not when it calls `update`.
    """
    wrapped = keys and getattr(keys[-1], "name", None) == "value"
    return jax.tree_util.keystr(tuple(keys[:-1] if wrapped else keys), simple=True, separator="/")


def count(params: Params) -> int:
    """The number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def matching(params: Params, *patterns: str) -> Params:
    """The same tree of bools: True where the leaf's path matches one of the patterns.

    In a pattern ``*`` matches any part of one name, and ``**/`` any number of names: ``**/b``.
    """

    def matches(keys: Any, _: Array) -> bool:
        return any(path_matches(pattern, path_of(keys)) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(matches, params)


def path_matches(pattern: str, path: str) -> bool:
    """Whether the path matches the pattern; patterns are as in `matching`."""
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    wild = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*"}
    return bool(re.fullmatch("".join(wild.get(part, re.escape(part)) for part in parts), path))


def decayed(params: Params) -> Params:
    """The same tree of bools: True where weight decay applies by default.

    Biases, shifts and the scales of norms are False. They are recognised in two ways:

    - by name: b, bias, scale, offset, gamma, beta.
    - by shape: fewer than two axes. So the vectors of ``[(w, b), ...]`` and the `weight` of an
      Equinox LayerNorm are False. Two kinds are True whatever their shape: a leaf named w, and
      a tree that is a single array, as under ``optax.flatten``.

    A bias with more axes and another name, as in layers that are stacked, needs a mask.
    """

    def is_weight(keys: Any, leaf: Any) -> bool:
        name = path_of(keys).split("/")[-1]
        if name in ("b", "bias", "scale", "offset", "gamma", "beta"):
            return False
        return name in ("w", "") or np.ndim(leaf) >= 2

    return jax.tree_util.tree_map_with_path(is_weight, params)


def resolve_mask(mask: Any, params: Params, what: str = "mask") -> Params:
    """A tree of bools from `mask`: a tree, a prefix of one, or a function params -> tree.

    None is `decayed`. `what` names the argument in messages, as in "adamw: mask".
    """
    if mask is None:
        return decayed(params)
    check_mask(mask, what)
    if _is_function(mask):
        mask = mask(params)
        check_mask(mask, what)
    try:
        return jax.tree.broadcast(mask, params)
    except ValueError:
        came, expected = (jax.tree.structure(tree) for tree in (mask, params))
        raise ValueError(
            f"{what} has the structure {came}, expected that of the parameters, {expected}"
        ) from None


def check_mask(mask: Any, what: str) -> None:
    """Raise TypeError unless the leaves are bools or arrays; None and functions pass."""
    for leaf in () if _is_function(mask) else jax.tree.leaves(mask):
        if number_of(leaf) is None and not hasattr(leaf, "dtype"):
            raise TypeError(
                f"{what} has {leaf!r}, expected None, a tree of bools or a function params -> bools"
                ", such as lambda p: fnn.params.matching(p, '**/w')"
            )


def _is_function(mask: Any) -> bool:
    # An Equinox model of bools is callable too.
    partial = isinstance(mask, jax.tree_util.Partial)
    return callable(mask) and (partial or jax.tree_util.all_leaves([mask]))


def check_patterns(name: str, params: Params, patterns: Sequence[str]) -> None:
    """Raise ValueError for a pattern that matches no leaf; `name` is the function that asks."""
    whole = list(paths(params))
    for pattern in patterns:
        if not any(path_matches(pattern, path) for path in whole):
            raise ValueError(f"{name}: pattern {pattern!r} matches no parameter of {whole}")
