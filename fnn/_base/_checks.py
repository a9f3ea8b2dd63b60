"""Checks of arguments. A message names the function and the argument, and says what it expected."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fnn._base._types import AnyArray

NEEDS_VALUES = (  # what JAX raises where a traced function needs a value
    jax.errors.ConcretizationTypeError,  # also TracerBoolConversionError
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def number_of(value: Any) -> int | float | None:
    """The Python number that a Python, NumPy or JAX scalar holds; None if it is anything else.

    A traced value, whose number is not known yet, gives None too.
    """
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, Tracer) or not isinstance(value, (np.generic, np.ndarray, jax.Array)):
        return None
    dtype = value.dtype
    real = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
    if value.ndim or not real:
        return None
    return int(value) if jnp.issubdtype(dtype, jnp.integer) else float(value)


def check_range(
    name: str,
    argument: str,
    value: Any,
    low: float,
    below: float = math.inf,
    *,
    upto: float | None = None,
    above: bool = False,
    none: bool = False,
) -> None:
    """Raise ValueError unless low <= value < below, and TypeError unless it is a number.

    `upto` is an upper end that is allowed itself; `above` takes out the lower end. If there is no
    upper end, inf is allowed. Traced numbers are not checked. `none` allows None.
    """
    number = number_of(value)
    if number is None:
        if (none and value is None) or (hasattr(value, "dtype") and value.ndim == 0):
            return
        came = f"has shape {value.shape}" if hasattr(value, "shape") else f"is {value!r}"
        raise TypeError(f"{name}: {argument} {came}, expected a number")
    high = below if upto is None else upto
    under = number < high or (number == high and (upto is not None or high == math.inf))
    if under and (number > low if above else number >= low):
        return
    expected = f"{'>' if above else '>='} {low}"
    if high != math.inf:
        left, right = "(" if above else "[", ")" if upto is None else "]"
        expected = f"in {left}{low}, {high}{right}"
    raise ValueError(f"{name}: {argument} is {number}, expected a number {expected}")


def as_count(name: str, argument: str, value: Any, least: int = 1) -> int:
    """The Python int that `value` is, of whatever kind; an error unless it is whole and >= least.

    TypeError if it is no whole number (a float, a bool, a traced value), ValueError if too small.
    """
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name}: {argument} is traced, expected a number that is known when the program is"
            " compiled; it cannot be an argument of jit or vmap, nor in the grid of a sweep"
        )
    number = number_of(value)
    if not isinstance(number, int) or isinstance(number, bool):
        came = type(value).__name__ if number is None else value
        raise TypeError(f"{name}: {argument} is {came}, expected a whole number >= {least}")
    if number < least:
        raise ValueError(f"{name}: {argument} is {number}, expected at least {least}")
    return number


def fits(shape: Sequence[int], into: Sequence[int]) -> bool:
    """Whether an array of this shape broadcasts against one of shape `into`, and nothing grows."""
    pairs = zip(reversed(shape), reversed(into), strict=False)
    return len(shape) <= len(into) and all(n in (1, m) for n, m in pairs)


def check_at_least_1(name: str, **numbers: Any) -> None:
    """`as_count` for each of the arguments; the message names the one that is wrong."""
    for argument, value in numbers.items():
        as_count(name, argument, value)


def check_floating(layer: str, x: AnyArray) -> None:
    """Raise TypeError unless x is an array of floating point."""
    if not hasattr(x, "dtype") or not hasattr(x, "ndim"):
        raise TypeError(f"{layer}: x is of type {type(x).__name__}, expected an array")
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"{layer}: x is {x.dtype}, expected floating point; scale it first,"
            " as in x.astype('float32') / 255 for images"
        )
