"""A cell over time, in both directions, and in layers; the mask of padded sequences.

Sequences of unequal length are padded. `mask`, bool [batch, time], is True where a time step is
real: ``jnp.arange(time) < lengths[:, None]``. A masked time step does not change the carry, its
output is zero, and its input, even NaN, reaches neither values nor gradients. So the result is
that of each sequence alone, in either direction.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from fnn._base import AnyArray, Params, as_array, check_key, fold_in, wide
from fnn.nn._dense import check_params
from fnn.nn._dropout import dropout
from fnn.nn._mlp import names_of_layers


def unroll(
    step: Callable[[Params, Any, Any], tuple[Any, Any]],
    params: Params,
    xs: Any,
    carry: Any,
    *,
    mask: AnyArray | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """[batch, time, ...] -> (carry, [batch, time, ...]): step(params, carry, x) -> (carry, y).

    Use it for a cell of your own. `xs`, the carry, [batch, ...], and y may be any trees of arrays.
    With `reverse` the time steps are computed from the last to the first; the outputs have the
    order of `xs`. The carry is kept in the dtypes that `step` returns, and comes back in those in
    which it came. The gradient of `params` is added up over time in float32 at least.
    """
    for leaf in jax.tree.leaves(xs):
        check_sequence("unroll", leaf, mask, "...")
    came, carry = carry, _as_returned(partial(step, params), carry, xs)
    summed = jax.tree.map(_summed, params)

    def masked_step(carry: Any, inputs: tuple[Any, Array | None]) -> tuple[Any, Any]:
        x, valid = inputs
        new, y = step(as_came(params, summed), carry, x)
        if valid is None:
            return new, y
        return where(valid, new, carry), where(valid, y, jax.tree.map(jnp.zeros_like, y))

    inputs = swapped((blank(mask, xs), mask))
    carry, ys = lax.scan(masked_step, carry, inputs, reverse=reverse)
    return as_came(came, carry), swapped(ys)


def bidirectional(
    layer: Callable[..., tuple[Any, Array]],
    params: Params,
    xs: AnyArray,
    carry: Any = None,
    *,
    mask: AnyArray | None = None,
) -> tuple[Any, Array]:
    """[batch, time, in] -> (carry, [batch, time, 2 hidden]): `layer` forth and back, side by side.

    `params` are {"forward": params of layer, "backward": params of layer}; the carry likewise.
    """
    check_params("bidirectional", params, "forward", "backward", optional=())
    _check_carries("bidirectional", carry, ["forward", "backward"])
    carry = carry or {"forward": None, "backward": None}
    forward, hs = layer(params["forward"], xs, carry["forward"], mask=mask)
    backward, back = layer(params["backward"], xs, carry["backward"], mask=mask, reverse=True)
    return {"forward": forward, "backward": backward}, jnp.concatenate([hs, back], axis=-1)


def stacked_init(
    init: Callable[..., Params], key: Array, sizes: Sequence[int], *, dtype: DTypeLike = float
) -> Params:
    """Parameters of `stacked`, from sizes (in_dim, *hidden_dims): {"layer_0": init's, ...}.

    The numbers are padded with zeros as in `mlp_init`, and layer i draws from fold_in(key, i).
    """
    check_key("stacked_init", key)
    if len(sizes) < 2:
        raise ValueError(f"stacked_init: sizes are {tuple(sizes)}, expected (in_dim, hidden, ...)")
    width = len(str(len(sizes) - 2))
    return {
        f"layer_{i:0{width}}": init(jax.random.fold_in(key, i), *pair, dtype=dtype)
        for i, pair in enumerate(itertools.pairwise(sizes))
    }


def stacked(
    layer: Callable[..., tuple[Any, Array]],
    params: Params,
    xs: AnyArray,
    carry: Any = None,
    *,
    mask: AnyArray | None = None,
    key: Array | None = None,
    rate: ArrayLike = 0.0,
) -> tuple[Any, Array]:
    """[batch, time, in] -> (carry, [batch, time, hidden]): layers one above the other.

    The carry is a dict with the names of `params`. Dropout acts between the layers, not after the
    last (Zaremba et al. 2014). `layer` may be ``partial(bidirectional, lstm)``.
    """
    names, carries, hs = names_of_layers("stacked", params), {}, xs
    check_sequence("stacked", xs, mask, "...")
    if key is not None:
        check_key("stacked", key, xs.shape[0])
    _check_carries("stacked", carry, names)
    for i, name in enumerate(names):
        with jax.named_scope(name):
            if i > 0:
                hs = dropout(None if key is None else fold_in(key, i), hs, rate)
            start = None if carry is None else carry[name]
            carries[name], hs = layer(params[name], hs, start, mask=mask)
    return carries, jnp.asarray(hs)


# --- used by the layers -------------------------------------------------------------------------


def as_came(came: Any, tree: Any) -> Any:
    """The tree in the dtypes of `came`, a tree of the same structure."""

    def cast(old: Any, new: Any) -> Any:
        dtype = jnp.result_type(old) if hasattr(old, "dtype") else None
        return new if dtype is None or new.dtype == dtype else new.astype(dtype)

    return jax.tree.map(cast, came, tree)


def _summed(leaf: Any) -> Any:
    """The leaf in a type in which its gradient can be added up."""
    dtype = getattr(leaf, "dtype", None)
    return wide(leaf) if dtype is not None and jnp.issubdtype(dtype, jnp.floating) else leaf


def _as_returned(step: Callable[[Any, Any], Any], carry: Any, xs: Any) -> Any:
    """The carry in the floating dtypes that step(carry, x) returns; an error for other changes."""
    shapes = jax.eval_shape(lambda xs: xs, xs)  # in the dtypes that JAX takes them in
    x = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[:1] + x.shape[2:], x.dtype), shapes)
    returned = jax.eval_shape(step, carry, x)
    new = returned[0] if isinstance(returned, tuple) and len(returned) == 2 else None
    if new is None or jax.tree.structure(new) != jax.tree.structure(carry):
        came = jax.tree.structure(returned if new is None else new)
        raise ValueError(
            f"unroll: step returned {came}, expected (carry, y) with a carry like"
            f" {jax.tree.structure(carry)}"
        )

    def cast(leaf: ArrayLike, new: Any) -> Array:
        leaf = jnp.asarray(leaf)
        same = leaf.dtype == new.dtype
        floating = all(jnp.issubdtype(x.dtype, jnp.floating) for x in (leaf, new))
        if leaf.shape != new.shape or not (same or floating):
            raise ValueError(
                f"unroll: the carry begins as {leaf.dtype}{list(leaf.shape)}, but step returned"
                f" {new.dtype}{list(new.shape)}"
            )
        return leaf if same else leaf.astype(new.dtype)

    return jax.tree.map(cast, carry, new)


def _check_carries(name: str, carry: Any, names: Sequence[str]) -> None:
    """Raise unless the carry is None or a dict with one carry for each name."""
    if carry is None:
        return
    if not isinstance(carry, Mapping) or carry.keys() != set(names):
        came = f"is of type {type(carry).__name__}"
        if isinstance(carry, Mapping):
            came = f"has {sorted(carry)}"
        raise TypeError(f"{name}: the carry {came}, expected a dict with {list(names)}")


def swapped(tree: Any) -> Any:
    """[batch, time, ...] -> [time, batch, ...], or back."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree)


def blank(mask: AnyArray | None, xs: Any) -> Any:
    """[batch, time, ...] -> the same, zero where the mask is False."""
    # Otherwise a NaN in the padding would reach the gradient of the weights, as 0 * NaN.
    return xs if mask is None else where(mask, xs, jax.tree.map(jnp.zeros_like, xs))


def where(mask: AnyArray, yes: Any, no: Any) -> Any:
    """yes where the mask is True, else no; the mask has the first axes of each leaf."""

    def select(yes: Array, no: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (yes.ndim - mask.ndim)), yes, no)

    return jax.tree.map(select, yes, no)


def check_sequence(name: str, xs: AnyArray, mask: AnyArray | None, rest: str) -> None:
    """Raise unless xs are [batch, time, ...], exactly [batch, time, in] if `rest` is "in"."""
    as_array(name, "xs", xs)
    if xs.ndim < 2 or (rest == "in" and xs.ndim != 3):
        raise ValueError(f"{name}: xs have shape {xs.shape}, expected [batch, time, {rest}]")
    if mask is not None and as_array(name, "mask", mask).shape != xs.shape[:2]:
        raise ValueError(
            f"{name}: mask has shape {mask.shape}, but xs of shape {xs.shape} expect"
            f" {xs.shape[:2]}, [batch, time]"
        )
    if mask is not None and mask.dtype != bool:
        raise TypeError(
            f"{name}: mask is {mask.dtype}, expected bool, True where a time step is real"
        )
