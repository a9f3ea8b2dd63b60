"""Layers: ``name_init(key, *sizes) -> params`` and ``name(params, x) -> y``.

Parameters are plain dicts of arrays. A key is the only source of randomness; where one may be
None, no key means deterministic.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import relu
from jax.typing import ArrayLike, DTypeLike

from fnn.initializers import Initializer, glorot_uniform, kaiming_normal
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
    at test time. Without a key, or at rate 0, it is x itself. A rate outside [0, 1) is a
    ValueError; a traced one, as in a sweep over rates, cannot be checked.
    """
    static = isinstance(rate, (int, float))
    if static and not 0 <= rate < 1:
        raise ValueError(f"dropout: rate is {rate}, expected a number in [0, 1)")
    if key is None or (static and rate == 0):
        return x
    _check_key("dropout", key)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"dropout: x is {x.dtype}, expected floating point")
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    scale = jnp.asarray(1 / (1 - rate), x.dtype)
    return jnp.where(keep, x * scale, 0)


def split(key: Array | None, num: int = 2) -> Sequence[Array | None] | Array:
    """key -> keys [num], as ``jax.random.split``; no key splits into [None] * num."""
    return [None] * num if key is None else jax.random.split(key, num)


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
            x = dropout(None if key is None else jax.random.fold_in(key, i), x, rate)
    with jax.named_scope(last):
        return _affine(f"mlp {last}", params[last], x)


def _affine(layer: str, params: Params, x: AnyArray) -> Array:
    w = params["w"]
    _check_input(layer, x, w)
    y = x @ w
    return y + params["b"] if "b" in params else y


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


def _check_key(name: str, key: Array) -> None:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.dtype("uint32")
    ):
        came = type(key).__name__ if dtype is None else f"an array of {dtype}{list(key.shape)}"
        raise TypeError(f"{name}: key is {came}, expected a key like jax.random.key(0), or None")
