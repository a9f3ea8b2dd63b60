"""Normalisation by batch, layer, group and root mean square, of arrays with the channels last.

Statistics are computed in float32 at least and in two passes, so that a mean far from zero costs
no digits. Parameters are named "scale" and "offset", which weight decay leaves alone.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from fnn.precision import wide, wide_dtype
from fnn.types import AnyArray, Params, State
from fnn.windows import check_floating


def batch_norm_init(dim: int, *, dtype: DTypeLike = float) -> tuple[Params, State]:
    """(params {"scale": [dim], "offset": [dim]}, state {"mean": [dim], "var": [dim]}).

    Scale and var begin as ones, offset and mean as zeros. The state is float32 at least.
    """
    params = layer_norm_init(dim, dtype=dtype)
    return params, {"mean": wide(params["offset"]), "var": wide(params["scale"])}


def batch_norm(
    params: Params,
    state: State,
    x: AnyArray,
    *,
    train: bool,
    momentum: ArrayLike = 0.9,
    eps: float = 1e-5,
    mask: AnyArray | None = None,
) -> tuple[Array, State]:
    """[batch, ..., dim] -> ([batch, ..., dim], state): (x - mean) / sqrt(var + eps) scale + offset.

    Ioffe & Szegedy 2015. With `train`, mean and var are each feature's over this batch (all axes
    but the last; of a sharded batch the whole), and the state goes to momentum old +
    (1 - momentum) new. Without, they are the state's. var is the mean squared deviation in the
    state as well, as in Flax and Keras; the paper and PyTorch keep n / (n - 1) of it there, and
    PyTorch's momentum is 1 - this one.

    `mask`, [batch], is 0 at the rows that do not count. They are taken as zeros, so that nothing
    in them, NaN too, gets into statistics and gradients. Where no row counts, the state is used,
    and stays as it was.
    """
    _check("batch_norm", params, x)
    _check_batch(state, x, mask)
    values, dtype = jnp.asarray(x), wide_dtype(x)
    mean, var = (jnp.asarray(state[name], dtype) for name in ("mean", "var"))
    shift = jnp.zeros_like(mean)
    if train:
        values, counted, *batch = _batch_statistics(values, mask)
        kept = jnp.where(counted, jnp.asarray(momentum, dtype), 1)
        new_mean = kept * mean + (1 - kept) * (batch[0] + batch[1])
        new_var = kept * var + (1 - kept) * batch[2]
        new = {"mean": new_mean, "var": new_var}
        state = {name: value.astype(state[name].dtype) for name, value in new.items()}
        old = (mean, shift, var)
        mean, shift, var = (jnp.where(counted, b, o) for b, o in zip(batch, old, strict=True))
    normal = (wide(values) - mean - shift) * lax.rsqrt(var + eps)
    return _scale_and_offset(params, normal, x), state


def layer_norm_init(dim: int, *, dtype: DTypeLike = float) -> Params:
    """Parameters of `layer_norm`: {"scale": [dim] ones, "offset": [dim] zeros}."""
    return {"scale": jnp.ones(dim, dtype), "offset": jnp.zeros(dim, dtype)}


def layer_norm(params: Params, x: AnyArray, *, eps: float = 1e-5) -> Array:
    """[..., dim] -> [..., dim]: (x - mean) / sqrt(var + eps) scale + offset, over the last axis.

    Ba, Kiros & Hinton 2016.
    """
    _check("layer_norm", params, x)
    return _scale_and_offset(params, _standardise(wide(x), (-1,), eps), x)


def group_norm_init(dim: int, *, dtype: DTypeLike = float) -> Params:
    """Parameters of `group_norm`: {"scale": [dim] ones, "offset": [dim] zeros}."""
    return layer_norm_init(dim, dtype=dtype)


def group_norm(params: Params, x: AnyArray, *, groups: int, eps: float = 1e-5) -> Array:
    """[batch, ..., dim] -> [batch, ..., dim]: each row's groups of channels standardised.

    (x - mean) / sqrt(var + eps) scale + offset, mean and var over dim // groups neighbouring
    channels and all axes between batch and channels (Wu & He 2018). groups=dim is instance norm.
    """
    _check("group_norm", params, x)
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"group_norm: groups is {groups}, which does not divide {x.shape[-1]}")
    grouped = wide(x).reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    axes = (*range(1, x.ndim - 1), x.ndim)
    return _scale_and_offset(params, _standardise(grouped, axes, eps).reshape(x.shape), x)


def rms_norm_init(dim: int, *, dtype: DTypeLike = float) -> Params:
    """Parameters of `rms_norm`: {"scale": [dim] ones}."""
    return {"scale": jnp.ones(dim, dtype)}


def rms_norm(params: Params, x: AnyArray, *, eps: float = 1e-5) -> Array:
    """[..., dim] -> [..., dim]: x / sqrt(mean(x^2) + eps) scale (Zhang & Sennrich 2019)."""
    _check("rms_norm", params, x)
    y = wide(x)
    return _scale_and_offset(params, y * lax.rsqrt(_mean(y * y, (-1,)) + eps), x)


def _batch_statistics(x: Array, mask: AnyArray | None) -> tuple[Array, ...]:
    """x with zeros in the rows that do not count, whether any does; pivot, shift, var of those.

    The mean is pivot + shift: a long sum of large numbers is not exact, and the second pass
    corrects it. No result depends on the pivot, so derivatives need not know of it.
    """
    rows = jnp.ones(x.shape[0], bool) if mask is None else jnp.asarray(mask).astype(bool)
    each = rows.reshape(-1, *[1] * (x.ndim - 1))
    x = x if mask is None else jnp.where(each, x, 0)
    values, axes = wide(x), tuple(range(x.ndim - 1))
    count = jnp.sum(rows.astype(values.dtype)) * math.prod(x.shape[1:-1])
    factor = 1 / jnp.maximum(count, 1)

    def mean_of(values: Array) -> Array:
        return jnp.sum(values if mask is None else jnp.where(each, values, 0), axes) * factor

    pivot = lax.stop_gradient(mean_of(values))
    centred = values - pivot
    shift = mean_of(centred)
    var = jnp.maximum(mean_of(centred * centred) - shift * shift, 0)
    return x, count > 0, pivot, shift, var


def _standardise(x: Array, axes: Sequence[int], eps: float) -> Array:
    centred = x - _mean(x, axes)
    return centred * lax.rsqrt(_mean(centred * centred, axes) + eps)


def _mean(x: Array, axes: Sequence[int]) -> Array:
    count = math.prod(x.shape[axis] for axis in axes)
    return jnp.sum(x, tuple(axes), keepdims=True) * (1 / max(count, 1))


def _scale_and_offset(params: Params, normal: Array, x: AnyArray) -> Array:
    """normal scale + offset, in the wide type, given back in x's."""
    y = normal * params["scale"].astype(normal.dtype)
    if "offset" in params:
        y = y + params["offset"].astype(normal.dtype)
    return y.astype(x.dtype)


def _check(layer: str, params: Params, x: AnyArray) -> None:
    dim = params["scale"].shape[-1]
    if x.ndim == 0 or x.shape[-1] != dim:
        features = x.shape[-1] if x.ndim else "no"
        raise ValueError(
            f"{layer}: x has {features} features (shape {x.shape}), but scale expects {dim}"
        )
    check_floating(layer, x)


def _check_batch(state: State, x: AnyArray, mask: AnyArray | None) -> None:
    if x.ndim < 2:
        raise ValueError(f"batch_norm: x has shape {x.shape}, expected [batch, ..., dim]")
    if state["mean"].shape != x.shape[-1:]:
        raise ValueError(
            f"batch_norm: x has {x.shape[-1]} features (shape {x.shape}), but the state"
            f" {state['mean'].shape[-1]}"
        )
    if mask is not None and mask.shape != x.shape[:1]:
        raise ValueError(
            f"batch_norm: mask has shape {mask.shape}, but x of shape {x.shape} expects"
            f" {x.shape[:1]}"
        )
