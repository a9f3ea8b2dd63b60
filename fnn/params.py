"""Looking at parameters: paths, sizes, norms, penalties.

A path joins the keys that lead to a leaf: ``hidden/w``.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn.precision import wide
from fnn.types import Params


def paths(params: Params) -> dict[str, Array]:
    """{path: leaf} in the order of ``jax.tree.leaves``."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}


def path_of(keys: Sequence[Any]) -> str:
    """The path that these keys, of ``jax.tree_util``, spell.

    A last attribute `value` is left out: Flax's nnx wraps each array in an object that has one
    when the optimizer starts, and no longer when it updates.
    """
    wrapped = keys and getattr(keys[-1], "name", None) == "value"
    return jax.tree_util.keystr(tuple(keys[:-1] if wrapped else keys), simple=True, separator="/")


def count(params: Params) -> int:
    """The number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def global_norm(tree: Params) -> Array:
    """The Euclidean norm of all leaves together, as one scalar; 0 of an empty tree.

    Half precision is summed in float32. The leaves are scaled by the largest magnitude first, so
    that no square overflows or vanishes: float32 gradients of 1e20 or 1e-25 have the norm that
    they have. NaN if anything is NaN, else inf if anything is inf. Derivative 0 at zero.
    """
    leaves = _alike(tree)
    if not leaves:
        return jnp.zeros((), jnp.float32)
    largest = jnp.max(leaf_maxima(tree))
    # Kept where its reciprocal is a normal number too. The norm does not depend on the scale, so
    # neither does its derivative.
    scale = jnp.clip(jnp.where(jnp.isfinite(largest), largest, 1), 1e-37, 1e37)
    scale = jax.lax.stop_gradient(scale)
    squares = sum(jnp.sum(jnp.square(leaf * (1 / scale))) for leaf in leaves)
    positive = squares > 0
    return jnp.where(positive, scale * jnp.sqrt(jnp.where(positive, squares, 1)), squares)


def leaf_maxima(tree: Params) -> Array:
    """The largest magnitude in each leaf, [leaves]: NaN if one is NaN, 0 of an empty leaf."""
    maxima = [jnp.max(jnp.abs(leaf), initial=0) for leaf in _alike(tree)]
    return jnp.stack(maxima) if maxima else jnp.zeros(0)


def l1(params: Params, *patterns: str) -> Array:
    """sum |w| over the weights: biases and norm scales, as `decayed` has them, are not penalised.

    With `patterns`, as `matching` has them, over the leaves that match one of them, whatever
    their names. A pattern that matches no leaf is a ValueError. Derivative 0 at 0.
    """
    return _total(_magnitude, _penalised("l1", params, patterns))


def l2(params: Params, *patterns: str) -> Array:
    """sum w^2 over the weights, without a half; with `patterns`, as `l1`.

    ``torch.optim``'s weight_decay=r is the penalty r / 2 * l2; Keras's ``L2(r)`` is r * l2.
    """
    return _total(jnp.square, _penalised("l2", params, patterns))


def elastic_net(params: Params, *patterns: str, l1: ArrayLike, l2: ArrayLike) -> Array:
    """l1 * sum |w| + l2 * sum w^2, over the leaves that `l1` the function takes, without a half.

    Keras's ``L1L2(l1, l2)``. scikit-learn's alpha and l1_ratio are l1 = alpha * l1_ratio and
    l2 = alpha * (1 - l1_ratio) / 2.
    """
    weights = _penalised("elastic_net", params, patterns)
    size, square = _total(_magnitude, weights), _total(jnp.square, weights)
    return jnp.asarray(l1, size.dtype) * size + jnp.asarray(l2, size.dtype) * square


def matching(params: Params, *patterns: str) -> Params:
    """The same tree of bools: True where the leaf's path matches one of the patterns.

    In a pattern ``*`` is anything within one name and ``**/`` any number of names: ``**/b``.
    """

    def matches(keys: Any, _: Array) -> bool:
        return any(path_matches(pattern, path_of(keys)) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(matches, params)


def path_matches(pattern: str, path: str) -> bool:
    """Whether the path matches the pattern, as in `matching`."""
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    wild = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*"}
    return bool(re.fullmatch("".join(wild.get(part, re.escape(part)) for part in parts), path))


def decayed(params: Params) -> Params:
    """The same tree of bools: True where weight decay applies by default.

    False for leaves named b, bias, scale or offset: shifts and norm scales.
    """

    def is_weight(keys: Any, _: Array) -> bool:
        return _name(keys) not in ("b", "bias", "scale", "offset")

    return jax.tree_util.tree_map_with_path(is_weight, params)


def resolve_mask(mask: Any, params: Params) -> Params:
    """A tree of bools: of a tree or a prefix, of a function of params, by default `decayed`."""
    if mask is None:
        return decayed(params)
    return jax.tree.broadcast(mask(params) if callable(mask) else mask, params)


def _penalised(name: str, params: Params, patterns: Sequence[str]) -> list[Array]:
    check_patterns(name, params, patterns)
    matches = jax.tree.leaves(matching(params, *patterns) if patterns else decayed(params))
    return [
        wide(leaf) for leaf, match in zip(jax.tree.leaves(params), matches, strict=True) if match
    ]


def check_patterns(name: str, params: Params, patterns: Sequence[str]) -> None:
    """Raise ValueError, in the name of the function `name`, for a pattern without a leaf."""
    whole = list(paths(params))
    for pattern in patterns:
        if not any(path_matches(pattern, path) for path in whole):
            raise ValueError(f"{name}: pattern {pattern!r} matches no parameter of {whole}")


def _magnitude(w: Array) -> Array:
    # jnp.abs alone has derivative 1 at 0, which would push away what is 0.
    return jnp.where(w == 0, 0, jnp.abs(w))


def _total(of_each: Callable[[Array], Array], leaves: list[Array]) -> Array:
    if not leaves:
        return jnp.zeros(())
    dtype = max((leaf.dtype for leaf in leaves), key=lambda dtype: dtype.itemsize)
    return sum(
        [jnp.sum(of_each(leaf)).astype(dtype) for leaf in leaves], start=jnp.zeros((), dtype)
    )


def _alike(tree: Params) -> list[Array]:
    """The leaves in the widest of their types, float32 at least."""
    leaves = [wide(leaf) for leaf in jax.tree.leaves(tree)]
    dtype = max((leaf.dtype for leaf in leaves), key=lambda d: d.itemsize, default=None)
    return [leaf.astype(dtype) for leaf in leaves]


def _name(keys: Any) -> str:
    return path_of(keys).split("/")[-1]
