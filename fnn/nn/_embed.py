"""Embeddings: a row of numbers for each id."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from fnn._base import AnyArray, Params, as_array, as_count, as_ids, wide
from fnn.nn._initializers import kaiming_normal


def embed_init(key: Array, vocab: int, dim: int, *, dtype: DTypeLike = float) -> Params:
    """Parameters of `embed`: {"w": [vocab, dim]}, normal with deviation 1 / sqrt(dim).

    So each row has a norm of about 1. If the output layer shares w, the logits x @ w.T have the
    scale of x's elements.
    """
    vocab, dim = as_count("embed_init", "vocab", vocab), as_count("embed_init", "dim", dim)
    return {"w": kaiming_normal(key, (dim, vocab), dtype, gain=1.0).T}


def embed(params: Params, ids: AnyArray) -> Array:
    """int [...] -> [..., dim]: row `id` of w for each id.

    An id outside [0, vocab), such as -1, gives a row of NaN and no gradient. A label out of range
    gives NaN in `cross_entropy` too. In half precision the gradient of an id that comes more than
    once is summed in float32.
    """
    ids = as_array("embed", "ids", ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"embed: ids are {ids.dtype}, expected integers")
    w = jnp.asarray(params["w"])
    narrow = jnp.finfo(w.dtype).bits < 32
    return (_narrow_rows if narrow else _rows)(w, as_ids(ids))


def _rows(w: Array, ids: Array) -> Array:
    return w.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


@jax.custom_jvp
def _narrow_rows(w: Array, ids: Array) -> Array:
    return _rows(w, ids)


@_narrow_rows.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    # The tangent is widened before the rows are taken, so the gradient is narrowed after they are
    # summed. A sum in bfloat16 stops growing at 256 ones.
    w, ids = primals
    return _narrow_rows(w, ids), _rows(wide(tangents[0]), ids).astype(w.dtype)
