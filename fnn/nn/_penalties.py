"""Penalties on the size of weights: L1, L2 and both."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import (
    Params,
    abs_square,
    check_patterns,
    check_range,
    decayed,
    matching,
    real_dtype,
    wide,
)


def l1(params: Params, *patterns: str) -> Array:
    """params -> scalar: sum |w| over the weights, without biases and norm scales (see `decayed`).

    With `patterns`, as in `matching`, the sum is over the leaves whose path matches one of the
    patterns, whatever their names. A pattern that matches no leaf is a ValueError. The derivative
    at 0 is 0.
    """
    return _total(_magnitude, _penalised("l1", params, patterns))


def l2(params: Params, *patterns: str) -> Array:
    """params -> scalar: sum w^2, without a half, over the same leaves as `l1`.

    ``torch.optim``'s weight_decay=r is the penalty r / 2 * l2; Keras's ``L2(r)`` is r * l2.
    """
    return _total(abs_square, _penalised("l2", params, patterns))


def elastic_net(params: Params, *patterns: str, l1: ArrayLike, l2: ArrayLike) -> Array:
    """params -> scalar: l1 * sum |w| + l2 * sum w^2, without a half, leaves as in `fnn.nn.l1`.

    Keras's ``L1L2(l1, l2)``. scikit-learn's alpha and l1_ratio are l1 = alpha * l1_ratio and
    l2 = alpha * (1 - l1_ratio) / 2.
    """
    check_range("elastic_net", "l1", l1, 0)
    check_range("elastic_net", "l2", l2, 0)
    weights = _penalised("elastic_net", params, patterns)
    size, square = _total(_magnitude, weights), _total(abs_square, weights)
    return jnp.asarray(l1, size.dtype) * size + jnp.asarray(l2, size.dtype) * square


def _penalised(name: str, params: Params, patterns: Sequence[str]) -> list[Array]:
    check_patterns(name, params, patterns)
    matches = jax.tree.leaves(matching(params, *patterns) if patterns else decayed(params))
    return [
        wide(leaf) for leaf, match in zip(jax.tree.leaves(params), matches, strict=True) if match
    ]


def _magnitude(w: Array) -> Array:
    # jnp.abs alone has derivative 1 at 0, which would push weights away from 0.
    return jnp.where(w == 0, 0, jnp.abs(w))


def _total(of_each: Callable[[Array], Array], leaves: list[Array]) -> Array:
    if not leaves:
        return jnp.zeros(())
    dtype = max((real_dtype(leaf.dtype) for leaf in leaves), key=lambda dtype: dtype.itemsize)
    return sum(
        [jnp.sum(of_each(leaf)).astype(dtype) for leaf in leaves], start=jnp.zeros((), dtype)
    )
