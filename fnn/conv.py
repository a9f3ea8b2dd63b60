"""Convolutions of [..., *space, in] with 1 to 3 spatial axes, and their transposes.

Axes before the spatial ones are batch axes, any number of them. An option for the spatial axes
is one number for all or a sequence of one for each. `padding` is "SAME" (space' = ceil(space /
stride), an odd zero goes to the end), "VALID" (none), a number of zeros for both ends, or for
each axis a number or a pair (before, after).
"""

import math

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from fnn.conv_gradient import Geometry, convolve
from fnn.initializers import Initializer, kaiming_normal
from fnn.types import AnyArray, Params
from fnn.windows import Padding, Sizes, check_fits, check_floating, extents, numbers, pairs_of


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

    One number as `size` is the side of a square, for images; give a tuple for other ranks, such
    as (5,) for sequences. groups=in_dim is a depthwise convolution.
    """
    if groups < 1 or in_dim % groups or out_dim % groups:
        raise ValueError(
            f"conv_init: in_dim {in_dim} and out_dim {out_dim} do not divide into {groups} groups"
        )
    size = numbers("conv_init", "size", size, 2 if isinstance(size, int) else len(size))
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

    The cross-correlation that neural networks call convolution. The input's channels go into the
    output's in `groups` that do not mix. Derivatives of any order and mode; the gradient is
    computed by a rule of fnn's own on a CPU (see `fnn.conv_gradient`).
    """
    w = _check("conv", params, x, groups)
    rank = w.ndim - 2
    stride = numbers("conv", "stride", stride, rank)
    dilation = numbers("conv", "dilation", dilation, rank)
    space = x.shape[-1 - rank : -1]
    size = extents(w.shape[:rank], dilation)
    pairs = pairs_of("conv", padding, space, size, stride)
    check_fits("conv", space, pairs, size)
    return _apply(params, x, Geometry(stride, pairs, dilation, (1,) * rank, groups))


def conv_transpose_init(
    key: Array,
    in_dim: int,
    out_dim: int,
    size: Sizes,
    *,
    w_init: Initializer = kaiming_normal,
    bias: bool = True,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `conv_transpose`: {"w": [*size, in_dim, out_dim], "b": [out_dim]}, b zero."""
    return conv_init(key, in_dim, out_dim, size, w_init=w_init, bias=bias, dtype=dtype)


def conv_transpose(
    params: Params,
    x: AnyArray,
    *,
    stride: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
) -> Array:
    """[..., *space, in] -> [..., *space', out]: y[stride i + dilation k - pad] += x[i] w[k], and b.

    The transpose of the `conv` with the same stride, padding and dilation that takes space' to
    space. With size' = dilation (size - 1) + 1, space' is stride space for "SAME", as in Flax
    and Keras, and stride (space - 1) + size' - before - after for the others, as in PyTorch,
    whose output_padding is a smaller `after`. Flax and JAX mirror w unless told otherwise.
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
    return _apply(mirrored, x, Geometry((1,) * rank, pairs, dilation, stride, 1))


def _apply(params: Params, x: AnyArray, geometry: Geometry) -> Array:
    w = params["w"]
    dtype = jnp.result_type(x, w)
    batch = x.shape[: 1 - w.ndim]
    rows = jnp.asarray(x, dtype).reshape(math.prod(batch), *x.shape[1 - w.ndim :])
    y = convolve(rows, jnp.asarray(w, dtype), geometry)
    y = y.reshape(*batch, *y.shape[1:])
    return y + params["b"] if "b" in params else y


def _check(layer: str, params: Params, x: AnyArray, groups: int) -> Array:
    w = params["w"]
    if not 3 <= w.ndim <= 5:
        raise ValueError(f"{layer}: w has shape {w.shape}, expected [*size, in, out], 3 to 5 axes")
    if x.ndim < w.ndim - 1:
        raise ValueError(
            f"{layer}: x has {x.ndim} axes (shape {x.shape}), but w of shape {w.shape} expects"
            f" {w.ndim - 2} spatial axes and the channels"
        )
    if groups < 1 or w.shape[-1] % groups:
        raise ValueError(
            f"{layer}: groups is {groups}, which does not divide w's {w.shape[-1]} outputs"
        )
    if x.shape[-1] != w.shape[-2] * groups:
        wanted = f"{w.shape[-2] * groups} (shape {w.shape}{f', {groups} groups' * (groups > 1)})"
        raise ValueError(
            f"{layer}: x has {x.shape[-1]} channels (shape {x.shape}), but w expects {wanted}"
        )
    check_floating(layer, x)
    return w
