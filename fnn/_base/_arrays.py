"""What counts as an array: of numbers or bools, without a mask."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from fnn._base._types import AnyArray


def as_array(name: str, argument: str, x: Any) -> AnyArray:
    """x itself; TypeError unless it is an array of JAX's or NumPy's that JAX can hold.

    Lists, tables, masked arrays, and arrays of words, dates, objects or fields are none.
    """
    if isinstance(x, jax.Array):
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: {argument} came as a masked array, whose mask would be lost; use"
            " .filled(value), and give the mask as weights or mask"
        )
    if not isinstance(x, (np.ndarray, np.generic)):
        came = repr(x)[:40] if isinstance(x, (str, int, float)) else f"a {type(x).__name__}"
        way = ".to_numpy()" if hasattr(x, "to_numpy") else "np.asarray"
        raise TypeError(f"{name}: {argument} came as {came}, expected an array; use {way}")
    if not (jnp.issubdtype(x.dtype, np.number) or x.dtype == bool) or x.dtype.kind == "m":
        raise TypeError(
            f"{name}: {argument} came as an array of dtype {x.dtype}, expected numbers or bools;"
            f" {_WAYS.get(x.dtype.kind, 'use .astype(float) if they are numbers')}"
        )
    return cast(AnyArray, x)


_WAYS = {
    "U": "number the words, as np.unique(words, return_inverse=True) does",
    "S": "number the words, as np.unique(words, return_inverse=True) does",
    "M": "subtract a date and divide by a unit, such as np.timedelta64(1, 'D')",
    "m": "divide by a unit, such as np.timedelta64(1, 'D')",
    "V": "take the fields apart, as in {name: x[name] for name in x.dtype.names}",
}


def check_fits(name: str, argument: str, x: AnyArray) -> None:
    """Raise ValueError for a NumPy integer of 64 bits of which JAX would keep the last 32."""
    if isinstance(x, jax.Array) or x.dtype.kind not in "iu" or not x.size:
        return
    held = jnp.iinfo(jax.dtypes.canonicalize_dtype(x.dtype))
    if x.dtype == held.dtype:
        return
    for number in (int(x.min()), int(x.max())):
        if not held.min <= number <= held.max:
            raise ValueError(
                f"{name}: {argument} hold the number {number}, which {held.dtype} cannot hold;"
                " renumber them, or set jax_enable_x64"
            )
