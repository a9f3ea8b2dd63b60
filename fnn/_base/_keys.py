"""Keys, the only source of randomness: one key, no key, or one key a row."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base._checks import as_count


def split(key: Array | None, num: int = 2) -> Sequence[Array | None] | Array:
    """key -> keys [num], as ``jax.random.split``; None -> [None] * num.

    Keys [batch], as `row_keys` gives them, are split into keys [num, batch].
    """
    if key is None:
        return [None] * num
    _check_is_key("split", key, ", or None")
    if is_one_key(key):
        return jax.random.split(key, num)
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(key)


def row_keys(key: Array | None, rows: int | Array) -> Array | None:
    """key, number of rows -> keys [rows]: fold_in(key, i) for row i; None -> None.

    Give these keys to `dropout`, `mlp` or `fnn.augment` in place of the key. Then the random
    numbers of a row depend on the row's number alone, not on the other rows of the batch. For a
    part of a batch, give the numbers of its rows, int [rows], instead of how many rows there are.
    """
    if key is None:
        return None
    check_key("row_keys", key)
    numbers = rows if np.ndim(rows) else jnp.arange(as_count("row_keys", "rows", rows, 0))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(numbers))


def fold_in(key: Array, number: int) -> Array:
    """``jax.random.fold_in`` for one key, or for each of keys [batch]."""
    if is_one_key(key):
        return jax.random.fold_in(key, number)
    return jax.vmap(jax.random.fold_in, (0, None))(key, number)


def is_one_key(key: Array) -> bool:
    """Whether `key` is one key, typed or raw, and not an array of keys."""
    return key.ndim == (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)


def check_key(name: str, key: Array, rows: int | None = None) -> None:
    """Raise TypeError unless `key` holds keys, ValueError unless it is one key or keys [rows]."""
    _check_is_key(name, key, "" if rows is None else ", or None")
    if not is_one_key(key) and key.shape[:1] != (rows,):
        wanted = "one key" if rows is None else f"one key, or one for each of {rows} rows"
        raise ValueError(f"{name}: key has shape {key.shape}, expected {wanted}")


def _check_is_key(name: str, key: Any, none: str) -> None:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.dtype("uint32")
    ):
        came = type(key).__name__ if dtype is None else f"an array of {dtype}{list(key.shape)}"
        raise TypeError(f"{name}: key is {came}, expected a key like jax.random.key(0){none}")


def check_keys(who: str, keys: Any) -> bool:
    """Whether the keys are typed; an error unless they are keys [n]."""
    if not isinstance(keys, Array | np.ndarray):
        raise TypeError(
            f"{who}: keys came as {keys!r:.60}, expected [n], as jax.random.split(key, n) gives"
        )
    typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if keys.ndim != (1 if typed else 2) or keys.shape[0] == 0:
        raise ValueError(
            f"{who}: keys have shape {keys.shape}, expected [n], as jax.random.split(key, n) gives"
        )
    check_key(who, keys[0])
    return typed
