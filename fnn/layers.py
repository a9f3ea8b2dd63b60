"""Layers: ``name_init(key, *sizes) -> params`` and ``name(params, x) -> y``.

Parameters are plain dicts of arrays. A key is the only source of randomness; where one may be
None, no key means deterministic.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import relu
from jax.typing import ArrayLike, DTypeLike

from fnn.initializers import Initializer, glorot_uniform, kaiming_normal
from fnn.precision import wide
from fnn.types import AnyArray, Params


def dense_init(
    key: Array,
    in_dim: int,
    out_dim: int,
    *,
    w_init: Initializer = glorot_uniform,
    bias: bool = True,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `dense`: {"w": [in_dim, out_dim], "b": [out_dim]}, b zero, or no b at all."""
    params = {"w": w_init(key, (in_dim, out_dim), dtype)}
    return params | {"b": jnp.zeros(out_dim, dtype)} if bias else params


def dense(params: Params, x: AnyArray) -> Array:
    """[..., in_dim] -> [..., out_dim]: x @ w + b."""
    return _affine("dense", params, x)


def dropout(key: Array | None, x: AnyArray, rate: ArrayLike) -> AnyArray:
    """[...] -> [...]: each element is 0 with probability `rate`, else x / (1 - rate).

    Inverted dropout (Srivastava et al. 2014): the expectation is x, so nothing is left to do
    at test time. Without a key, or at rate 0, it is x itself. Keys [batch], as `row_keys` gives,
    draw each row by itself. A rate outside [0, 1) is a ValueError; a traced one, as in a sweep
    over rates, cannot be checked. A rate counts in steps of 2^-16.
    """
    return _dropout("dropout", key, x, rate, x.shape)


def spatial_dropout(key: Array | None, x: AnyArray, rate: ArrayLike) -> AnyArray:
    """[batch, *space, channels] -> the same: `dropout` of whole channels of an example.

    Tompson et al. 2015: neighbouring pixels of one channel say much the same, so dropping them
    one by one hides little.
    """
    if x.ndim < 2:
        raise ValueError(
            f"spatial_dropout: x has shape {x.shape}, expected [batch, *space, channels]"
        )
    channels = (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])
    return _dropout("spatial_dropout", key, x, rate, channels)


def split(key: Array | None, num: int = 2) -> Sequence[Array | None] | Array:
    """key -> keys [num], as ``jax.random.split``; no key splits into [None] * num.

    Keys [batch] of `row_keys` split into [num, batch].
    """
    if key is None:
        return [None] * num
    if is_one_key(key):
        return jax.random.split(key, num)
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(key)


def row_keys(key: Array | None, rows: int | Array) -> Array | None:
    """key, number of rows -> keys [rows]: fold_in(key, i) for row i; no key -> None.

    Given to `dropout`, to `mlp` or to `fnn.augment` in place of the key, what a row draws depends
    on its own number alone and not on the batch around it. Where a batch is cut in pieces, give
    the rows' numbers, int [rows], instead of how many there are.
    """
    if key is None:
        return None
    check_key("row_keys", key)
    numbers = jnp.arange(rows) if isinstance(rows, int) else rows
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def embed_init(key: Array, vocab: int, dim: int, *, dtype: DTypeLike = float) -> Params:
    """Parameters of `embed`: {"w": [vocab, dim]}, normal with deviation 1 / sqrt(dim).

    So each row has a norm of about 1, and x @ w.T, where the output layer shares w, the scale of
    x's elements.
    """
    return {"w": kaiming_normal(key, (dim, vocab), dtype, gain=1.0).T}


def embed(params: Params, ids: AnyArray) -> Array:
    """int [...] -> [..., dim]: row `id` of w for each id.

    An id outside [0, vocab), a negative one too, gives a row of NaN, as a label does in
    `cross_entropy`; it moves no row of w.
    """
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"embed: ids are {ids.dtype}, expected integers")
    rows = params["w"].at[ids]
    return rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def mlp_init(
    key: Array,
    sizes: Sequence[int],
    *,
    w_init: Initializer = glorot_uniform,
    bias: bool = True,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `mlp`, from sizes (in_dim, *hidden_dims, out_dim).

    {"layer_0": dense's, "layer_1": ...}, the numbers padded with zeros so that the order of
    the names is the order of the layers. Layer i draws from fold_in(key, i), so another layer
    at the end leaves those before it as they were.
    """
    if len(sizes) < 2:
        raise ValueError(f"mlp_init: sizes are {tuple(sizes)}, expected (in_dim, ..., out_dim)")
    width = len(str(len(sizes) - 2))
    return {
        f"layer_{i:0{width}}": dense_init(
            jax.random.fold_in(key, i), *pair, w_init=w_init, bias=bias, dtype=dtype
        )
        for i, pair in enumerate(itertools.pairwise(sizes))
    }


def mlp(
    params: Params,
    x: AnyArray,
    *,
    activation: Callable[[Array], Array] = relu,
    key: Array | None = None,
    rate: ArrayLike = 0.0,
) -> Array:
    """[..., in_dim] -> [..., out_dim]: dense layers with `activation` and dropout between.

    The last layer is left linear: its output are logits, or predictions.
    """
    from jax.ad_checkpoint import checkpoint_name  # `import jax` does not load it

    *hidden, last = sorted(params)
    for i, name in enumerate(hidden):
        with jax.named_scope(name):
            x = activation(_affine(f"mlp {name}", params[name], x))
            x = checkpoint_name(x, name)  # for diagnostics.capture; nothing in the program
            x = dropout(None if key is None else _fold_in(key, i), x, rate)
    with jax.named_scope(last):
        return _affine(f"mlp {last}", params[last], x)


def _affine(layer: str, params: Params, x: AnyArray) -> Array:
    w = params["w"]
    _check_input(layer, x, w)
    y = product(x, w)
    return y + params["b"] if "b" in params else y


def product(x: AnyArray, w: Array) -> Array:
    """[..., in], [in, out] -> [..., out]: x @ w, of x as one matrix.

    The gradients of a product with more axes are sums over several, which XLA's CPU backend
    makes at half the speed.
    """
    if x.ndim < 3:
        return jnp.asarray(x) @ w
    rows = jnp.asarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return (rows @ w).reshape(*x.shape[:-1], w.shape[-1])


def _dropout(
    name: str, key: Array | None, x: AnyArray, rate: ArrayLike, shape: Sequence[int]
) -> AnyArray:
    """x with one draw for each element of `shape`, which broadcasts against x."""
    static = isinstance(rate, (int, float))
    if static and not 0 <= rate < 1:
        raise ValueError(f"{name}: rate is {rate}, expected a number in [0, 1)")
    if key is None or (static and rate == 0):
        return x
    check_key(name, key, x.shape[0] if x.ndim else 0)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"{name}: x is {x.dtype}, expected floating point")
    if is_one_key(key):
        keep = _keep(key, rate, shape)
    else:
        keep = jax.vmap(lambda key: _keep(key, rate, shape[1:]))(key)
    scale = 1 / (1 - (rate if static else wide(rate)))
    return jnp.where(keep, x * jnp.asarray(scale, x.dtype), 0)


def _keep(key: Array, rate: ArrayLike, shape: Sequence[int]) -> Array:
    """Bools of `shape`, True with probability 1 - rate, to the nearest 2^-16."""
    # A word of 32 random bits serves two elements, for it is the bits that dropout's time goes
    # into. They are cut along the last axis, so that each row has words of its own.
    *rows, width = shape or (1,)
    words = jax.random.bits(key, (*rows, -(-width // 2)), jnp.uint32)
    limit = jnp.round(jnp.asarray(rate, jnp.float32) * 2**16).astype(jnp.uint32)
    keep = jnp.concatenate([words >> 16 >= limit, words & 0xFFFF >= limit], axis=-1)
    return keep[..., :width].reshape(shape)


def _fold_in(key: Array, number: int) -> Array:
    if is_one_key(key):
        return jax.random.fold_in(key, number)
    return jax.vmap(jax.random.fold_in, (0, None))(key, number)


def _check_input(layer: str, x: AnyArray, w: Array) -> None:
    if x.ndim == 0 or x.shape[-1] != w.shape[-2]:
        features = x.shape[-1] if x.ndim else "no"
        raise ValueError(
            f"{layer}: x has {features} features (shape {x.shape}),"
            f" but w expects {w.shape[-2]} (shape {w.shape})"
        )
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"{layer}: x is {x.dtype}, expected floating point; scale it first,"
            " as in x.astype('float32') / 255 for images"
        )


def is_one_key(key: Array) -> bool:
    """Whether this is one key, typed or raw, and not an array of them."""
    return key.ndim == (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)


def check_key(name: str, key: Array, rows: int | None = None) -> None:
    """Raise TypeError unless `key` is one, or ValueError if it is several but not [rows]."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.dtype("uint32")
    ):
        came = type(key).__name__ if dtype is None else f"an array of {dtype}{list(key.shape)}"
        raise TypeError(f"{name}: key is {came}, expected a key like jax.random.key(0), or None")
    if not is_one_key(key) and key.shape[:1] != (rows,):
        wanted = "one key" if rows is None else f"one key, or one for each of {rows} rows"
        raise ValueError(f"{name}: key has shape {key.shape}, expected {wanted}")
