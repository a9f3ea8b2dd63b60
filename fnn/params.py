"""Looking at parameters: paths, sizes, norms, penalties.

A path joins the keys that lead to a leaf: ``hidden/w``.
"""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from fnn.precision import wide
from fnn.types import Params

if TYPE_CHECKING:
    from rich.table import Table


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


def l1(params: Params) -> Array:
    """sum |w| over the leaves named ``w``; biases and norm scales are not penalised."""
    return sum([jnp.sum(jnp.abs(w)) for w in _weights(params)], start=jnp.zeros(()))


def l2(params: Params) -> Array:
    """sum w^2 over the leaves named ``w``, without a half.

    ``torch.optim``'s weight_decay=r is the penalty r / 2 * l2; Keras's ``L2(r)`` is r * l2.
    """
    return sum([jnp.sum(jnp.square(w)) for w in _weights(params)], start=jnp.zeros(()))


def summary(params: Params, groups: Sequence[str] = (), mask: Any = None) -> "Table":
    """A table for ``rich.print``: path, shape, dtype, number of parameters, whether it decays.

    `mask` is as in `adamw`, by default `decayed`; of `groups`, patterns as `by_path` has them,
    each row names its own.
    """
    from rich.table import Table

    table = Table(caption=f"{count(params):,} parameters", caption_justify="left")
    columns = ("path", "shape", "dtype", "parameters", "decays", *(["group"] if groups else []))
    for column in columns:
        table.add_column(column, justify="right" if column == "parameters" else "left")
    decays = jax.tree.leaves(resolve_mask(mask, params))
    for (path, leaf), decay in zip(paths(params).items(), decays, strict=True):
        group = [next((g for g in groups if path_matches(g, path)), "none")] if groups else []
        shape = str(list(leaf.shape))
        size = f"{math.prod(leaf.shape):,}"
        table.add_row(path, shape, str(leaf.dtype), size, "yes" if decay else "no", *group)
    return table


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


def _weights(params: Params) -> list[Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [wide(leaf) for keys, leaf in leaves if _name(keys) == "w"]


def _alike(tree: Params) -> list[Array]:
    """The leaves in the widest of their types, float32 at least."""
    leaves = [wide(leaf) for leaf in jax.tree.leaves(tree)]
    dtype = max((leaf.dtype for leaf in leaves), key=lambda d: d.itemsize, default=None)
    return [leaf.astype(dtype) for leaf in leaves]


def _name(keys: Any) -> str:
    return path_of(keys).split("/")[-1]
