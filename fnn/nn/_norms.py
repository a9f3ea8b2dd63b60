"""Norms by batch, layer, group, instance and root mean square; the channels are the last axis.

Statistics are computed in float32 at least, of values less an estimate of their mean, so that a
mean far from zero costs no digits. Where a variance overflows, as that of values beyond 1e19 in
float32, the result is NaN. The parameters are named "scale" and "offset"; weight decay skips these
names.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from fnn._base import (
    AnyArray,
    Params,
    State,
    abs_square,
    as_count,
    check_floating,
    check_range,
    wide,
    wide_dtype,
)
from fnn.nn._dense import check_params, check_real, dims

SAMPLE = 1024  # so many values of a feature estimate its mean


def batch_norm_init(dim: int, *, dtype: DTypeLike = float) -> tuple[Params, State]:
    """(params {"scale": [dim], "offset": [dim]}, state {"mean": [dim], "var": [dim]}).

    scale and var are ones, offset and mean zeros. The state is float32 at least.
    """
    (dim,) = dims("batch_norm_init", dim=dim)
    params = layer_norm_init(dim, dtype=dtype)
    return params, {"mean": wide(params["offset"]), "var": wide(params["scale"])}


def batch_norm(
    params: Params,
    state: State,
    x: AnyArray,
    *,
    train: bool,
    momentum: ArrayLike = 0.9,
    eps: ArrayLike = 1e-5,
    mask: AnyArray | None = None,
) -> tuple[Array, State]:
    """[batch, ..., dim] -> ([batch, ..., dim], state): (x - mean) / sqrt(var + eps) scale + offset.

    Ioffe & Szegedy 2015. Mean and var of each feature:
      - train=True: over this batch, all axes but the last. If the batch is sharded, over the whole
        batch. The new state is momentum old + (1 - momentum) batch.
      - train=False: from the state, which does not change.

    var is the mean squared deviation, in the state too, as in Flax and Keras. The paper and PyTorch
    store n / (n - 1) times this, and PyTorch's momentum is 1 - momentum.

    `mask`, [batch], is True where a row counts, or 1. Other rows are replaced by zeros, so nothing
    in them, not even NaN, reaches statistics or gradients. If n of the batch's rows count, the new
    state keeps momentum^(n / batch) of the old one: in the running statistics every row of an
    epoch weighs the same, those of a padded last batch too. If no row counts, the statistics are
    those of the state, and the state does not change.
    """
    check_real("batch_norm", x)
    _check("batch_norm", params, x, eps)
    _check_batch(state, x, mask)
    check_range("batch_norm", "momentum", momentum, 0, upto=1)
    values, dtype = jnp.asarray(x), wide_dtype(x)
    rows = None if mask is None else jnp.asarray(mask).astype(bool)
    if rows is not None:
        values = jnp.where(rows.reshape(-1, *[1] * (x.ndim - 1)), values, 0)
    mean, var = (jnp.asarray(state[name], dtype) for name in ("mean", "var"))
    shift = jnp.zeros_like(mean)
    if train:
        counted, *batch = _batch_statistics(values, rows)
        kept = _kept(jnp.asarray(momentum, dtype), counted, rows)
        new_mean = kept * mean + (1 - kept) * (batch[0] + batch[1])
        new_var = kept * var + (1 - kept) * batch[2]
        new = {"mean": new_mean, "var": new_var}
        state = {name: value.astype(jnp.result_type(state[name])) for name, value in new.items()}
        old = (mean, shift, var)
        mean, shift, var = (jnp.where(counted, b, o) for b, o in zip(batch, old, strict=True))
    scale = params["scale"].astype(dtype)
    offset = params["offset"].astype(dtype) if "offset" in params else jnp.zeros_like(scale)
    spread = _spread(var, eps)
    y = _normalise(wide(values), mean, shift, spread, scale, offset)
    return y.astype(jnp.result_type(x)), state


def layer_norm_init(dim: int, *, dtype: DTypeLike = float) -> Params:
    """Parameters of `layer_norm`: {"scale": [dim] ones, "offset": [dim] zeros}."""
    (dim,) = dims("layer_norm_init", dim=dim)
    return {"scale": jnp.ones(dim, dtype), "offset": jnp.zeros(dim, dtype)}


def layer_norm(params: Params, x: AnyArray, *, eps: ArrayLike = 1e-5) -> Array:
    """[..., dim] -> [..., dim]: (x - mean) / sqrt(var + eps) scale + offset, over the last axis.

    Ba, Kiros & Hinton 2016.
    """
    _check("layer_norm", params, x, eps)
    return _scale_and_offset(params, _standardise(wide(x), (-1,), eps), x)


def group_norm_init(dim: int, *, dtype: DTypeLike = float) -> Params:
    """Parameters of `group_norm`: {"scale": [dim] ones, "offset": [dim] zeros}."""
    (dim,) = dims("group_norm_init", dim=dim)
    return layer_norm_init(dim, dtype=dtype)


def group_norm(params: Params, x: AnyArray, *, groups: int, eps: ArrayLike = 1e-5) -> Array:
    """[batch, ..., dim] -> [batch, ..., dim]: each row's groups of channels standardised.

    The formula is (x - mean) / sqrt(var + eps) scale + offset. Mean and var are over dim // groups
    neighbouring channels and all axes between batch and channels (Wu & He 2018). groups=dim is
    `instance_norm`.
    """
    _check("group_norm", params, x, eps)
    groups = as_count("group_norm", "groups", groups)
    if x.shape[-1] % groups:
        raise ValueError(f"group_norm: groups is {groups}, which does not divide {x.shape[-1]}")
    grouped = wide(x).reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    axes = (*range(1, x.ndim - 1), x.ndim)
    return _scale_and_offset(params, _standardise(grouped, axes, eps).reshape(x.shape), x)


def instance_norm_init(dim: int, *, dtype: DTypeLike = float) -> Params:
    """Parameters of `instance_norm`: {"scale": [dim] ones, "offset": [dim] zeros}."""
    (dim,) = dims("instance_norm_init", dim=dim)
    return layer_norm_init(dim, dtype=dtype)


def instance_norm(params: Params, x: AnyArray, *, eps: ArrayLike = 1e-5) -> Array:
    """[batch, ..., dim] -> [batch, ..., dim]: each row's channels standardised, one by one.

    The formula is (x - mean) / sqrt(var + eps) scale + offset. Mean and var are over the axes
    between batch and channels, such as height and width (Ulyanov et al. 2016). There must be such
    an axis: the only value of a channel less its mean would be 0.
    """
    _check("instance_norm", params, x, eps)
    if x.ndim < 3:
        raise ValueError(
            f"instance_norm: x has shape {x.shape}, expected [batch, ..., dim] with an axis or more"
            " between"
        )
    return _scale_and_offset(params, _standardise(wide(x), range(1, x.ndim - 1), eps), x)


def rms_norm_init(dim: int, *, dtype: DTypeLike = float) -> Params:
    """Parameters of `rms_norm`: {"scale": [dim] ones}."""
    (dim,) = dims("rms_norm_init", dim=dim)
    return {"scale": jnp.ones(dim, dtype)}


def rms_norm(params: Params, x: AnyArray, *, eps: ArrayLike = 1e-5) -> Array:
    """[..., dim] -> [..., dim]: x / sqrt(mean(x^2) + eps) scale (Zhang & Sennrich 2019)."""
    _check("rms_norm", params, x, eps)
    return _scale_and_offset(params, _of_unit_square(wide(x), (-1,), eps), x)


def _kept(momentum: Array, counted: Array, rows: Array | None) -> Array:
    """The part of the old state that stays: momentum^(rows that count / rows)."""
    kept = momentum
    if rows is not None:
        # If all rows count, momentum is taken as it is, because a power may round.
        number = jnp.sum(rows.astype(momentum.dtype))
        part = (number > 0) & (number < rows.size)
        power = jnp.where(part, momentum, 1) ** (number * (1 / max(rows.size, 1)))
        kept = jnp.where(part, power, momentum)
    return jnp.where(counted, kept, 1)


def _batch_statistics(x: Array, rows: Array | None) -> tuple[Array, ...]:
    """x, zero in rows that do not count -> (whether any row counts, pivot, shift, var).

    The mean is pivot + shift. The pivot is an estimate of it; what is subtracted from the values
    before they are squared may be any number near them. The results do not depend on the pivot, so
    derivatives ignore it.
    """
    values, axes, places = wide(x), tuple(range(x.ndim - 1)), math.prod(x.shape[1:-1])
    if rows is None:
        # Some places of every row: a batch that is dealt out to devices stays there.
        stride = max(places * len(x) // SAMPLE, 1)
        part = values.reshape(len(x), places, x.shape[-1])[:, :: min(stride, max(places, 1))]
        pivot = _mean(part, (0, 1)).reshape(-1)
        each, count = None, jnp.asarray(len(x) * places, values.dtype)
    else:
        each = rows.reshape(-1, *[1] * (x.ndim - 1))
        count = jnp.sum(rows.astype(values.dtype)) * places
        pivot = jnp.sum(jnp.where(each, values, 0), axes) * (1 / jnp.maximum(count, 1))
    pivot = lax.stop_gradient(pivot)
    return count > 0, pivot, *_moments(values, pivot, each, 1 / jnp.maximum(count, 1))


@jax.custom_jvp
@jax.jit  # so that eager calls compile once
def _moments(x: Array, pivot: Array, each: Array | None, factor: Array) -> tuple[Array, Array]:
    """The mean of x - pivot, and the variance; `each` is True where a row counts."""
    centred = x - pivot if each is None else jnp.where(each, x - pivot, 0)
    both = lax.platform_dependent(centred, cpu=_sums, default=_sums_at_once)
    shift, square = (total * factor for total in both)
    return shift, jnp.maximum(square - shift * shift, 0)


@_moments.defjvp
def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x, pivot, each, factor), (dx, *_) = primals, tangents
    shift, var = _moments(*primals)
    axes = tuple(range(x.ndim - 1))
    dx = dx if each is None else jnp.where(each, dx, 0)
    dshift = jnp.sum(dx, axes) * factor
    dvar = jnp.sum((x - pivot - shift) * dx, axes) * (2 * factor)
    return (shift, var), (dshift, dvar)


def _sums(x: Array) -> list[Array]:
    """The sums of x and x^2 over all axes but the last."""
    return [jnp.sum(values, tuple(range(x.ndim - 1))) for values in (x, x * x)]


def _sums_at_once(x: Array) -> list[Array]:
    """`_sums` as one reduction: half the kernels on a GPU. A CPU would add up one by one."""
    zero = jnp.zeros((), x.dtype)

    def add(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
        return [a[0] + b[0], a[1] + b[1]]

    return list(lax.reduce([x, x * x], [zero, zero], add, tuple(range(x.ndim - 1))))


@jax.custom_jvp
def _normalise(
    x: Array, pivot: Array, shift: Array, spread: Array, scale: Array, offset: Array
) -> Array:
    """(x - pivot - shift) / sqrt(spread) scale + offset."""
    return (x - pivot - shift) * lax.rsqrt(spread) * scale + offset


@_normalise.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # What is the same for all rows is put together first. So the gradient has two sums over the
    # rows, of g and of g normal; autodiff's has twice as many.
    x, pivot, shift, spread, scale, _ = primals
    dx, dpivot, dshift, dspread, dscale, doffset = tangents
    root = lax.rsqrt(spread)
    factor, normal = root * scale, (x - pivot - shift) * root
    by_normal = dscale - (0.5 * root * factor) * dspread
    by_one = doffset - factor * (dpivot + dshift)
    return _normalise(*primals), factor * dx + (normal * by_normal + by_one)


def _standardise(x: Array, axes: Sequence[int], eps: ArrayLike) -> Array:
    return _of_unit_square(x - _mean(x, axes), axes, eps)


def _of_unit_square(x: Array, axes: Sequence[int], eps: ArrayLike) -> Array:
    """x / sqrt(mean |x|^2 + eps)."""
    root = lax.rsqrt(_spread(_mean(abs_square(x), axes), eps))
    return x * root.astype(x.dtype)


def _spread(var: Array, eps: ArrayLike) -> Array:
    """var + eps; NaN where var overflowed, since 1 / sqrt(inf) would give zeros as the result."""
    # 0 times inf is NaN. A `where` here would keep XLA's CPU backend from fusing the norm. To scale
    # the values, so that no square overflows, would take another pass over them.
    return var + (lax.stop_gradient(var) * 0 + jnp.asarray(eps, var.dtype))


def _mean(x: Array, axes: Sequence[int]) -> Array:
    count = math.prod(x.shape[axis] for axis in axes)
    return jnp.sum(x, tuple(axes), keepdims=True) * (1 / max(count, 1))


def _scale_and_offset(params: Params, normal: Array, x: AnyArray) -> Array:
    """normal scale + offset, computed in the wide dtype, returned in the dtype of x."""
    y = normal * params["scale"].astype(normal.dtype)
    if "offset" in params:
        y = y + params["offset"].astype(normal.dtype)
    return y.astype(jnp.result_type(x))


def _check(layer: str, params: Params, x: AnyArray, eps: ArrayLike) -> None:
    check_params(layer, params, "scale", optional=("offset",))
    check_floating(layer, x)
    check_range(layer, "eps", eps, 0)
    dim = params["scale"].shape[-1] if params["scale"].ndim else 1
    if x.ndim == 0 or x.shape[-1] != dim:
        features = x.shape[-1] if x.ndim else "no"
        raise ValueError(
            f"{layer}: x has {features} features (shape {x.shape}), but scale expects {dim}"
        )


def _check_batch(state: State, x: AnyArray, mask: AnyArray | None) -> None:
    if x.ndim < 2:
        raise ValueError(f"batch_norm: x has shape {x.shape}, expected [batch, ..., dim]")
    check_params("batch_norm", state, "mean", "var", optional=(), what="state")
    for name in ("mean", "var"):
        if state[name].shape != x.shape[-1:]:
            raise ValueError(
                f"batch_norm: x has {x.shape[-1]} features (shape {x.shape}), but the state's"
                f" {name} has shape {state[name].shape}"
            )
    if mask is not None and mask.shape != x.shape[:1]:
        raise ValueError(
            f"batch_norm: mask has shape {mask.shape}, but x of shape {x.shape} expects"
            f" {x.shape[:1]}"
        )
