"""A step over time, in both directions, and in layers; what a mask means.

Sequences of unequal length are padded, and a mask says which steps are real, [batch, time] bool:
``jnp.arange(time) < lengths[:, None]``. A masked step leaves the carry as it was, its output is
zero, and what stands in its input, NaN too, reaches neither values nor gradients. So the result
is that of each sequence alone, in either direction.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from fnn.layers import dropout
from fnn.types import AnyArray, Params


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

    The scan for a cell of your own. `xs`, the carry, [batch, ...], and y may be any trees of
    arrays; `reverse` goes from the last step to the first and leaves the outputs in their places.
    """
    for leaf in jax.tree.leaves(xs):
        check_sequence("unroll", leaf, mask, "...")

    def masked_step(carry: Any, inputs: tuple[Any, Array | None]) -> tuple[Any, Any]:
        x, valid = inputs
        new, y = step(params, carry, x)
        if valid is None:
            return new, y
        return where(valid, new, carry), where(valid, y, jax.tree.map(jnp.zeros_like, y))

    inputs = swapped((blank(mask, xs), mask))
    carry, ys = lax.scan(masked_step, carry, inputs, reverse=reverse)
    return carry, swapped(ys)


def bidirectional(
    layer: Callable[..., tuple[Any, Array]],
    params: Params,
    xs: AnyArray,
    carry: Any = None,
    *,
    mask: AnyArray | None = None,
) -> tuple[Any, Array]:
    """[batch, time, in] -> (carry, [batch, time, 2 hidden]): `layer` forth and back, side by side.

    `params` are {"forward": ..., "backward": ...}, each one of layer's own, and so is the carry.
    """
    carry = carry or {"forward": None, "backward": None}
    forward, hs = layer(params["forward"], xs, carry["forward"], mask=mask)
    backward, back = layer(params["backward"], xs, carry["backward"], mask=mask, reverse=True)
    return {"forward": forward, "backward": backward}, jnp.concatenate([hs, back], axis=-1)


def stacked_init(
    init: Callable[..., Params], key: Array, sizes: Sequence[int], *, dtype: DTypeLike = float
) -> Params:
    """Parameters of `stacked`, from sizes (in_dim, *hidden_dims): {"layer_0": init's, ...}.

    The names are padded with zeros as in `mlp_init`, and layer i draws from fold_in(key, i).
    """
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

    The carry is a dict with the names of `params`. Between layers, not after the last, there is
    dropout (Zaremba et al. 2014). `layer` may be ``partial(bidirectional, lstm)``.
    """
    names, carries, hs = sorted(params), {}, xs
    for i, name in enumerate(names):
        with jax.named_scope(name):
            if i > 0:
                hs = dropout(None if key is None else jax.random.fold_in(key, i), hs, rate)
            start = None if carry is None else carry[name]
            carries[name], hs = layer(params[name], hs, start, mask=mask)
    return carries, jnp.asarray(hs)


# --- what the layers use ------------------------------------------------------------------------


def swapped(tree: Any) -> Any:
    """[batch, time, ...] -> [time, batch, ...], or back."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree)


def blank(mask: AnyArray | None, xs: Any) -> Any:
    """[batch, time, ...] -> the same, zero where the mask is False."""
    # Or a NaN in the padding would get into the gradient of the weights, as 0 * NaN.
    return xs if mask is None else where(mask, xs, jax.tree.map(jnp.zeros_like, xs))


def where(mask: AnyArray, yes: Any, no: Any) -> Any:
    """yes where the mask, of the leaves' first axes, is True, else no."""

    def select(yes: Array, no: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (yes.ndim - mask.ndim)), yes, no)

    return jax.tree.map(select, yes, no)


def check_sequence(name: str, xs: AnyArray, mask: AnyArray | None, rest: str) -> None:
    """Raise unless xs are [batch, time, ...], exactly [batch, time, in] if `rest` is "in"."""
    if xs.ndim < 2 or (rest == "in" and xs.ndim != 3):
        raise ValueError(f"{name}: xs have shape {xs.shape}, expected [batch, time, {rest}]")
    if mask is not None and mask.shape != xs.shape[:2]:
        raise ValueError(
            f"{name}: mask has shape {mask.shape}, but xs of shape {xs.shape} expect"
            f" {xs.shape[:2]}, [batch, time]"
        )
    if mask is not None and mask.dtype != bool:
        raise TypeError(f"{name}: mask is {mask.dtype}, expected bool, True where a step is real")
