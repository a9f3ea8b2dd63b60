"""Convolutions of [..., *space, in] with 1 to 3 spatial axes, and their transposes.

There may be any number of batch axes before the spatial axes. An option for the spatial axes is
one number for all of them, or a sequence of one number for each. `padding` is one of:
  - "SAME": space' = ceil(space / stride); if the number of zeros is odd, the end gets one more.
  - "VALID": no zeros.
  - a number of zeros, for both ends of every axis.
  - a sequence: for each axis a number, or a pair (before, after).
"""

import math

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from fnn._base import AnyArray, Params, as_count, check_floating, check_key
from fnn.nn._conv_gradient import Geometry, convolve
from fnn.nn._dense import check_params, dims, plus_bias
from fnn.nn._initializers import Initializer, kaiming_normal
from fnn.nn._windows import Padding, Sizes, check_fits, extents, numbers, pairs_of, rank_of


def conv_init(
    key: Array,
    in_dim: int,
    out_dim: int,
    size: Sizes,
    *,
    w_init: Initializer = kaiming_normal,
    bias: bool = True,
    groups: int = 1,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `conv`: {"w": [*size, in_dim // groups, out_dim], "b": [out_dim]}, b zero.

    If `size` is one number, the kernel is a square of that side, for images. For another number of
    spatial axes give a tuple, such as (5,) for sequences. With groups=in_dim the convolution is
    depthwise.
    """
    check_key("conv_init", key)
    in_dim, out_dim = dims("conv_init", in_dim=in_dim, out_dim=out_dim)
    groups = as_count("conv_init", "groups", groups)
    if in_dim % groups or out_dim % groups:
        raise ValueError(
            f"conv_init: in_dim {in_dim} and out_dim {out_dim} do not divide into {groups} groups"
        )
    size = numbers("conv_init", "size", size, rank_of(size))
    params = {"w": w_init(key, (*size, in_dim // groups, out_dim), dtype)}
    return params | {"b": jnp.zeros(out_dim, dtype)} if bias else params


def conv(
    params: Params,
    x: AnyArray,
    *,
    stride: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    """[..., *space, in] -> [..., *space', out]: y[o] = sum_k x[o stride + k dilation - p] w[k].

    This is the cross-correlation that neural networks call convolution. Channels are divided into
    `groups`: an output channel sees the input channels of its own group only. Derivatives of any
    order and mode exist. On a CPU the gradient has a rule of its own, in fnn/nn/_conv_gradient.py.
    """
    groups = as_count("conv", "groups", groups)
    w = _check("conv", params, x, groups)
    rank = w.ndim - 2
    stride = numbers("conv", "stride", stride, rank)
    dilation = numbers("conv", "dilation", dilation, rank)
    space = x.shape[-1 - rank : -1]
    size = extents(w.shape[:rank], dilation)
    pairs = pairs_of("conv", padding, space, size, stride)
    check_fits("conv", space, pairs, size)
    return _apply("conv", params, x, Geometry(stride, pairs, dilation, (1,) * rank, groups))


def conv_transpose_init(
    key: Array,
    in_dim: int,
    out_dim: int,
    size: Sizes,
    *,
    stride: Sizes = 1,
    w_init: Initializer = kaiming_normal,
    bias: bool = True,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `conv_transpose`: {"w": [*size, in_dim, out_dim], "b": [out_dim]}, b zero.

    Give the `stride` of `conv_transpose` here too. Along an axis each output then sees size /
    stride of the kernel's elements, at least 1, and not all of them. So w is `w_init`'s times the
    root of min(stride, size) of each axis, and the outputs have the same variance at every stride.
    """
    check_key("conv_transpose_init", key)
    rank = rank_of(size)
    size = numbers("conv_transpose_init", "size", size, rank)
    stride = numbers("conv_transpose_init", "stride", stride, rank)
    params = conv_init(key, in_dim, out_dim, size, w_init=w_init, bias=bias, dtype=dtype)
    factor = math.sqrt(math.prod(map(min, size, stride)))
    return params if factor == 1 else params | {"w": params["w"] * factor}


def conv_transpose(
    params: Params,
    x: AnyArray,
    *,
    stride: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
) -> Array:
    """[..., *space, in] -> [..., *space', out]: y[stride i + dilation k - pad] += x[i] w[k], and b.

    This is the transpose of the `conv` with the same stride, padding and dilation, which maps
    space' to space. With size' = dilation (size - 1) + 1, the output has this space':
      - "SAME": stride space, as in Flax and Keras.
      - other padding: stride (space - 1) + size' - before - after, as in PyTorch. PyTorch's
        output_padding is a smaller `after`.

    Flax and JAX mirror w by default.
    """
    w = _check("conv_transpose", params, x, 1)
    rank = w.ndim - 2
    stride = numbers("conv_transpose", "stride", stride, rank)
    dilation = numbers("conv_transpose", "dilation", dilation, rank)
    space = x.shape[-1 - rank : -1]
    size = extents(w.shape[:rank], dilation)
    if padding == "SAME":
        extra = [n - s for n, s in zip(size, stride, strict=True)]
        crops = tuple((max(e, 0) // 2, e - max(e, 0) // 2) for e in extra)
    else:
        crops = pairs_of("conv_transpose", padding, space, size, stride)
    pairs = tuple((n - 1 - lo, n - 1 - hi) for n, (lo, hi) in zip(size, crops, strict=True))
    spread = tuple((n - 1) * s + 1 for n, s in zip(space, stride, strict=True))
    check_fits("conv_transpose", spread, pairs, size)
    mirrored = params | {"w": jnp.flip(w, range(rank))}
    return _apply("conv_transpose", mirrored, x, Geometry((1,) * rank, pairs, dilation, stride, 1))


def _apply(layer: str, params: Params, x: AnyArray, geometry: Geometry) -> Array:
    w = params["w"]
    dtype = jnp.result_type(x, w)
    batch = x.shape[: 1 - w.ndim]
    rows = jnp.asarray(x, dtype).reshape(math.prod(batch), *x.shape[1 - w.ndim :])
    y = convolve(rows, jnp.asarray(w, dtype), geometry)
    return plus_bias(layer, y.reshape(*batch, *y.shape[1:]), params)


def _check(layer: str, params: Params, x: AnyArray, groups: int) -> Array:
    check_params(layer, params, "w")
    check_floating(layer, x)
    w = params["w"]
    if not 3 <= w.ndim <= 5:
        raise ValueError(f"{layer}: w has shape {w.shape}, expected [*size, in, out], 3 to 5 axes")
    if x.ndim < w.ndim - 1:
        raise ValueError(
            f"{layer}: x has {x.ndim} axes (shape {x.shape}), but w of shape {w.shape} expects"
            f" {w.ndim - 2} spatial axes and the channels"
        )
    if w.shape[-1] % groups:
        raise ValueError(
            f"{layer}: groups is {groups}, which does not divide w's {w.shape[-1]} outputs"
        )
    if x.shape[-1] != w.shape[-2] * groups:
        wanted = f"{w.shape[-2] * groups} (shape {w.shape}{f', {groups} groups' * (groups > 1)})"
        raise ValueError(
            f"{layer}: x has {x.shape[-1]} channels (shape {x.shape}), but w expects"
            f" {wanted}{_pytorchs(layer, x, w, groups)}"
        )
    return w


def _pytorchs(layer: str, x: AnyArray, w: Array, groups: int) -> str:
    """What to do about w and x if they seem to have PyTorch's axes."""
    # A convolution's w is [out, in / groups, *size] there, a transposed one's [in, out, *size].
    in_axis = 0 if layer == "conv_transpose" else 1
    axes = (*range(2, w.ndim), in_axis, 1 - in_axis)
    channels, first = w.shape[in_axis] * groups, x.shape[1 - w.ndim]
    of_w = f"; PyTorch's w has other axes: give w.transpose{axes}"
    of_x = "; the channels of x must be its last axis"
    if first == w.shape[-2] * groups:
        return of_x
    return of_w if x.shape[-1] == channels else of_w + of_x if first == channels else ""
