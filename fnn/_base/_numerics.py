"""Dtypes and safe arithmetic. Losses, norms and moments are computed in `wide` types.

A complex dtype is as wide as its parts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def wide_dtype(x: ArrayLike) -> Any:
    """The dtype of x, or float32 if that dtype is narrower or not floating."""
    return at_least_float32(jnp.result_type(x))


def at_least_float32(dtype: Any) -> Any:
    """The dtype, or float32 if the dtype is narrower or not floating."""
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return jnp.dtype(dtype if wide else jnp.float32)


def real_dtype(dtype: Any) -> Any:
    """The dtype of the parts of a complex number; any other dtype is returned unchanged."""
    complex_ = jnp.issubdtype(dtype, jnp.complexfloating)
    return jnp.dtype(jnp.finfo(dtype).dtype if complex_ else dtype)


def converted(x: ArrayLike, dtype: Any) -> Array:
    """x in the dtype; of complex numbers the real part if the dtype is real."""
    x = jnp.asarray(x)
    return (x if jnp.issubdtype(dtype, jnp.complexfloating) else x.real).astype(dtype)


def wide(x: ArrayLike) -> Array:
    """x in its `wide_dtype`."""
    return jnp.asarray(x, wide_dtype(x))


@jax.custom_jvp
def safe_sqrt(x: Array) -> Array:
    """The square root, and 0 where x <= 0; the derivative at 0 is 0 instead of inf."""
    return jnp.sqrt(jnp.maximum(x, 0))


@safe_sqrt.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    root = safe_sqrt(*primals)
    return root, _divide(tangents[0], 2 * root)


def abs_square(x: Array) -> Array:
    """|x|^2, which is real: of a complex number the square of its distance from 0."""
    return x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x**2


def scaled(x: Array, factor: Array) -> Array:
    """x times a real factor, part by part, so that no part of inf becomes NaN."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(scaled(x.real, factor), scaled(x.imag, factor))
    return x * factor.astype(x.dtype)


def safe_divide(x: Array, y: Array) -> Array:
    """x / y for real y. Where y is 0, value and derivative are 0.

    Derivatives stay finite for y like 1e-30.
    """
    if jnp.iscomplexobj(x):
        return jax.lax.complex(_divide(x.real, y), _divide(x.imag, y))
    return _divide(x, y)


@jax.custom_jvp
def _divide(x: Array, y: Array) -> Array:
    usable = y != 0
    return jnp.where(usable, x / jnp.where(usable, y, 1), 0)


@_divide.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # JAX's own derivative computes 1 / y^2, which overflows long before (x / y) / y does.
    (x, y), (dx, dy) = primals, tangents
    quotient = _divide(x, y)
    return quotient, _divide(dx - quotient * dy, y)


def next_count(count: Array) -> Array:
    """count + 1, at most the largest int32."""
    return jnp.where(count < jnp.iinfo(jnp.int32).max, count + 1, count)


def as_number(value: ArrayLike, dtype: Any) -> Any:
    """A Python or NumPy number as a float, so that 1 - b is float64's; an array in `dtype`."""
    on_host = isinstance(value, (int, float, np.generic))
    return float(value) if on_host else jnp.asarray(value, dtype)
