"""Convolution with derivatives that stay fast inside a compiled loop on a CPU.

XLA's CPU backend has a fast routine for one layout: [batch, *space, in] with [*size, in, out].
Autodiff's convolution for a weight gradient has another layout. Outside a loop XLA moves the axes;
inside a `scan` it does not, and the convolution is tens of times slower. So on a CPU:
  - The tangents are written such that their transposes, which are the gradients, have the fast
    layout. Every move of an axis is behind an `optimization_barrier`, or XLA would undo the move.
  - If the output is not small, the weight gradient is a sum of matrix products, one for each row
    of the kernel.
  - Grouped, 1 x 1 and 3-D convolutions are sums of shifted products, one for each element of the
    kernel.

These are linear functions of JAX's primitives, so forward mode, second derivatives, vmap and scan
work. On other backends all of it is XLA's own convolution and autodiff's gradient.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from fnn._base import wide
from fnn.nn._dense import product
from fnn.nn._windows import shifts

MANY_SHIFTS = 32  # at most so many shifted products, because each takes time to compile
FEW_PLACES = 64  # with at most so many output positions a convolution is the faster gradient


class Geometry(NamedTuple):
    """The options of a convolution; one entry for each spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    x_dilation: tuple[int, ...]  # x_dilation - 1 zeros between neighbours, for a transpose
    groups: int


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve(x: Array, w: Array, geometry: Geometry) -> Array:
    """[batch, *space, in], [*size, in // groups, out] -> [batch, *space', out].

    y[o] = sum_k x[stride o + dilation k - padding] w[k], with w not flipped.
    """
    if _shifts_pay(w, geometry):
        return _on_cpu(_shifted, _convolve, x, w, geometry)
    return _convolve(x, w, geometry)


@partial(convolve.defjvp, symbolic_zeros=True)
def _(geometry: Geometry, primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> Any:
    (x, w), (dx, dw) = primals, tangents
    y = convolve(x, w, geometry)
    shifts_pay = _shifts_pay(w, geometry)
    dy = jnp.zeros_like(y)
    # The input image of a net has no tangent; then nothing is computed for it.
    if not isinstance(dx, SymbolicZero):
        cpu = _shifted if shifts_pay else _convolve_dx
        dy = _on_cpu(cpu, _convolve, dx, w, geometry)
    if not isinstance(dw, SymbolicZero):
        rows_pay = math.prod(y.shape[1:-1]) > FEW_PLACES and max(w.shape[:-2]) <= MANY_SHIFTS
        cpu = _shifted if shifts_pay else _by_rows if rows_pay else _convolve_dw
        by_w = _on_cpu(cpu, _convolve, x, dw, geometry)
        dy = by_w if isinstance(dx, SymbolicZero) else dy + by_w
    return y, dy


@partial(jax.jit, static_argnums=(0, 1, 4))  # so that eager calls compile once
def _on_cpu(cpu: Any, default: Any, x: Array, w: Array, geometry: Geometry) -> Array:
    """cpu(x, w, geometry) if the program is lowered for a CPU, else default(x, w, geometry)."""
    choices = (partial(f, geometry=geometry) for f in (cpu, default))
    return lax.platform_dependent(x, w, cpu=next(choices), default=next(choices))


def _convolve(x: Array, w: Array, geometry: Geometry, layout: str = "N_C _IO N_C") -> Array:
    """XLA's convolution; `layout` names the axes of x, w and y, _ stands for the spatial axes."""
    space = "DHW"[-len(geometry.stride) :]
    x_axes, w_axes, y_axes = layout.replace("_", space).split()
    return lax.conv_general_dilated(
        x,
        w,
        geometry.stride,
        geometry.padding,
        lhs_dilation=geometry.x_dilation,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(x_axes, w_axes, y_axes),
        feature_group_count=geometry.groups,
    )


def _convolve_dx(dx: Array, w: Array, geometry: Geometry) -> Array:
    """`convolve` as a function of dx; its transpose convolves with [*size, out, in]."""
    w = lax.optimization_barrier(jnp.swapaxes(w, -1, -2))
    return _convolve(dx, w, geometry, "N_C _OI N_C")


def _convolve_dw(x: Array, dw: Array, geometry: Geometry) -> Array:
    """`convolve` as a function of dw; its transpose gives [in, *size, out].

    The transpose convolves [in, *space, batch] with the gradient as a kernel [*space', batch, out].
    """
    x = lax.optimization_barrier(jnp.swapaxes(x, 0, -1))
    dw = jnp.moveaxis(lax.optimization_barrier(dw), -2, 0)
    y = lax.optimization_barrier(_convolve(x, dw, geometry, "C_N I_O _NC"))
    return jnp.moveaxis(y, -2, 0)


def _shifts_pay(w: Array, geometry: Geometry) -> bool:
    size = math.prod(w.shape[:-2])
    return size <= MANY_SHIFTS and (geometry.groups > 1 or len(geometry.stride) == 3 or size == 1)


def _shifted(x: Array, w: Array, geometry: Geometry) -> Array:
    """`convolve` as a sum over the kernel's elements k: x, shifted by k, times w[k]."""
    dtype, groups, (*_, group_dim, out_dim) = x.dtype, geometry.groups, w.shape
    w = wide(w).reshape(*w.shape[:-1], groups, out_dim // groups)
    x = _padded(x, geometry)
    x = x.reshape(*x.shape[:-1], groups, group_dim)
    y = sum(
        _grouped_product(shifted, w[k])
        for k, shifted in shifts(x, w.shape[:-3], geometry.stride, geometry.dilation)
    )
    return jnp.asarray(y, dtype).reshape(*jnp.shape(y)[:-2], out_dim)


def _by_rows(x: Array, w: Array, geometry: Geometry) -> Array:
    """`convolve` as a sum over the kernel's rows; one product has a row's elements as channels."""
    dtype, w, (*above, width) = x.dtype, wide(w), w.shape[:-2]
    (*strides, stride), (*dilations, dilation) = geometry.stride, geometry.dilation
    ones = [1] * len(above)
    x = _padded(x, geometry)
    along = shifts(x, (*ones, width), (*ones, stride), (*ones, dilation))
    x = jnp.concatenate([shifted for _, shifted in along], axis=-1)
    y = sum(
        product(shifted, w[tuple(k[:-1])].reshape(-1, w.shape[-1]))
        for k, shifted in shifts(x, (*above, 1), (*strides, 1), (*dilations, 1))
    )
    return jnp.asarray(y, dtype)


def _padded(x: Array, geometry: Geometry) -> Array:
    gaps = (dilation - 1 for dilation in geometry.x_dilation)
    edges = [(*pair, gap) for pair, gap in zip(geometry.padding, gaps, strict=True)]
    x = wide(x)
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _grouped_product(x: Array, w: Array) -> Array:
    """[..., groups, in // groups], [in // groups, groups, out // groups] -> [..., groups, out]."""
    if w.shape[1] == 1:
        return x @ w[:, 0]
    if w.shape[0] == 1:
        return x * w[0]
    return jnp.einsum("...gi,igo->...go", x, w)
