"""Layers: ``name_init(key, *sizes) -> params`` and ``name(params, x) -> y``.

Parameters are plain dicts of arrays. A key is the only source of randomness. Where the key may be
None, a layer without a key is deterministic.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from fnn._base import AnyArray, Params, as_count, check_floating, check_key, wide
from fnn.nn._initializers import Initializer, glorot_uniform

OTHERS = {"weight", "bias", "kernel", "gamma", "beta"}  # what other libraries call w, b, scale


def dense_init(
    key: Array,
    in_dim: int,
    out_dim: int,
    *,
    w_init: Initializer = glorot_uniform,
    bias: bool = True,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `dense`: {"w": [in_dim, out_dim], "b": [out_dim]}, b zero; no b if not bias."""
    check_key("dense_init", key)
    in_dim, out_dim = dims("dense_init", in_dim=in_dim, out_dim=out_dim)
    params = {"w": w_init(key, (in_dim, out_dim), dtype)}
    return params | {"b": jnp.zeros(out_dim, dtype)} if bias else params


def dense(params: Params, x: AnyArray) -> Array:
    """[..., in_dim] -> [..., out_dim]: x @ w + b."""
    return affine("dense", params, x)


def affine(layer: str, params: Params, x: AnyArray) -> Array:
    """`dense`; an error names `layer`."""
    check_params(layer, params, "w")
    w = params["w"]
    if w.ndim != 2:
        raise ValueError(f"{layer}: w has shape {w.shape}, expected [in, out]")
    check_input(layer, x, w)
    return plus_bias(layer, product(x, w), params)


def plus_bias(layer: str, y: Array, params: Params, axes: int = 1) -> Array:
    """y + b, if there is a b, which has the last `axes` axes of y."""
    if "b" not in params:
        return y
    b, expected = params["b"], y.shape[y.ndim - axes :]
    if b.shape != expected:
        raise ValueError(
            f"{layer}: b has shape {b.shape}, but w of shape {params['w'].shape} expects {expected}"
        )
    return y + spread(b, y.shape)


def spread(b: AnyArray, shape: Sequence[int]) -> Array:
    """b broadcast to `shape`. Its gradient is a sum, which is computed in float32 at least."""
    # Autodiff adds up in the dtype that is broadcast. In bfloat16 256 + 1 is 256.
    return jnp.broadcast_to(wide(b), shape).astype(b.dtype)


def product(x: AnyArray, w: Array) -> Array:
    """[..., in], [in, out] -> [..., out]: x @ w, with x reshaped to one matrix.

    With more axes the gradient by w is a sum over several axes, which XLA's CPU backend computes
    at half the speed.
    """
    if x.ndim < 3:
        return jnp.asarray(x) @ w
    rows = jnp.asarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return (rows @ w).reshape(*x.shape[:-1], w.shape[-1])


def check_input(layer: str, x: AnyArray, w: Array) -> None:
    """Raise unless x is floating point, [..., in], with as many features as w, [..., in, out]."""
    check_floating(layer, x)
    if x.ndim == 0 or x.shape[-1] != w.shape[-2]:
        features = x.shape[-1] if x.ndim else "no"
        turned = w.ndim == 2 and x.shape[-1:] == w.shape[-1:]
        hint = "; PyTorch's weights are [out, in]: give w.T" if turned else ""
        raise ValueError(
            f"{layer}: x has {features} features (shape {x.shape}),"
            f" but w expects {w.shape[-2]} (shape {w.shape}){hint}"
        )


def check_real(layer: str, x: AnyArray) -> None:
    """Raise TypeError unless x is floating point and not complex."""
    check_floating(layer, x)
    if jnp.iscomplexobj(x):
        raise TypeError(f"{layer}: x is {x.dtype}, expected real numbers")


def check_params(
    layer: str,
    params: Any,
    *names: str,
    optional: Sequence[str] = ("b",),
    what: str = "params",
) -> None:
    """Raise unless params is a dict of arrays, or of more dicts, with these names."""
    expected = f"expected a dict with {list(names)}"
    expected += f", and with {list(optional)} or without" if optional else ""
    if not isinstance(params, Mapping):
        raise TypeError(f"{layer}: {what} is of type {type(params).__name__}, {expected}")
    # A bias under the name that another library gives it would be left out without a word.
    if not params.keys() >= set(names) or params.keys() & OTHERS:
        raise ValueError(f"{layer}: {what} has {sorted(map(str, params))}, {expected}")
    for name in (*names, *optional):
        leaf = params.get(name, {})
        if not isinstance(leaf, Mapping) and not hasattr(leaf, "shape"):
            came = type(leaf).__name__
            raise TypeError(f"{layer}: {name} is of type {came}, expected an array")


def dims(name: str, **numbers: Any) -> list[int]:
    """The numbers of features as Python ints; an error names the one that is no whole number."""
    return [as_count(name, argument, value, least=0) for argument, value in numbers.items()]
