"""Multi-head attention (Vaswani et al. 2017) and a transformer block.

A position is something the caller adds, learned as here or by `rotary`; attention alone does not
know the order of its inputs::

    def init(key):
        k1, k2, k3 = jax.random.split(key, 3)
        normal = jax.nn.initializers.normal(0.02)
        return {
            "tokens": {"w": normal(k1, (vocab, dim))},
            "positions": {"w": normal(k2, (max_time, dim))},
            "block": fnn.transformer_block_init(k3, dim, heads),
        }

    def apply(params, tokens, key=None):
        x = params["tokens"]["w"][tokens] + params["positions"]["w"][: tokens.shape[1]]
        x = fnn.transformer_block(params["block"], x, causal=True, key=key, rate=0.1)
        return x @ params["tokens"]["w"].T
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from fnn.initializers import Initializer, glorot_uniform
from fnn.layers import _check_input, dropout, mlp, mlp_init, product, split
from fnn.norms import layer_norm, layer_norm_init
from fnn.precision import wide
from fnn.types import AnyArray, Params


def attention_init(
    key: Array,
    dim: int,
    heads: int,
    *,
    context_dim: int | None = None,
    w_init: Initializer = glorot_uniform,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `attention`: query, key, value and output, each {"w", "b"}, b zero.

    w is [dim, heads, dim // heads], that of key and value [context_dim, ...], and output's
    [heads, dim // heads, dim]: the number of heads is read from the shapes.
    """
    if heads < 1 or dim % heads:
        raise ValueError(f"attention_init: dim is {dim}, expected a multiple of heads, {heads}")
    head_dim, context_dim = dim // heads, dim if context_dim is None else context_dim
    keys = jax.random.split(key, 4)

    def project(key: Array, in_dim: int) -> Params:
        w = w_init(key, (in_dim, dim), dtype).reshape(in_dim, heads, head_dim)
        return {"w": w, "b": jnp.zeros((heads, head_dim), dtype)}

    output = w_init(keys[3], (dim, dim), dtype).reshape(heads, head_dim, dim)
    return {
        "query": project(keys[0], dim),
        "key": project(keys[1], context_dim),
        "value": project(keys[2], context_dim),
        "output": {"w": output, "b": jnp.zeros(dim, dtype)},
    }


def attention(
    params: Params,
    x: AnyArray,
    *,
    context: AnyArray | None = None,
    mask: AnyArray | None = None,
    causal: bool = False,
    positions: AnyArray | None = None,
) -> Array:
    """[batch, time, dim] -> [batch, time, dim]: softmax(q k / sqrt(head_dim)) v over each head.

    Keys and values are of `context`, [batch, source, context_dim], or of x itself. `mask` is
    bool, True where may be looked: [batch, time, source], or [batch, heads, time, source], either
    with ones to broadcast, so ``mask[:, None]`` for padding [batch, source]. With `causal` time t
    looks at 0 to t. Where nothing may be looked at, the heads give zero. `positions`, int
    [time], turn queries and keys by `rotary`. There is no dropout on the attention weights, which
    `diagnostics.capture` finds as "attention", [batch, heads, time, source].
    """
    source = x if context is None else context
    _check_attention(params, x, source, context is not None and (causal or positions is not None))
    q = _project("attention", params["query"], x)
    k = _project("attention", params["key"], source)
    v = _project("attention", params["value"], source)
    if positions is not None:
        q, k = rotary(q, positions), rotary(k, positions)
    out = _weighted_values(q, k, v, _full_mask(mask, x, source, causal))
    w = params["output"]["w"].reshape(-1, params["output"]["w"].shape[-1])
    return product(out.reshape(*x.shape[:2], len(w)), w) + params["output"]["b"]


def rotary(x: AnyArray, positions: AnyArray, *, base: float = 10_000.0) -> Array:
    """[..., time, heads, head_dim], int [time] -> the same: each pair turned by its position.

    Su et al. 2021, in the variant that pairs feature i with i + head_dim / 2 (GPT-NeoX): a
    product of two depends on the difference of their positions. Angles are
    position / base^(2 i / head_dim).
    """
    half, odd = divmod(x.shape[-1], 2)
    if odd:
        raise ValueError(f"rotary: head_dim is {x.shape[-1]} (shape {x.shape}), expected even")
    wide_x = wide(x)
    steps = jnp.arange(half, dtype=wide_x.dtype) * (-math.log(base) / max(half, 1))
    angles = positions[:, None, None].astype(wide_x.dtype) * jnp.exp(steps)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = wide_x[..., :half], wide_x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def transformer_block_init(
    key: Array,
    dim: int,
    heads: int,
    *,
    mlp_dim: int | None = None,
    w_init: Initializer = glorot_uniform,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `transformer_block`; `mlp_dim` is 4 dim unless given."""
    attention_key, mlp_key = jax.random.split(key)
    sizes = (dim, 4 * dim if mlp_dim is None else mlp_dim, dim)
    return {
        "attention_norm": _norm_init(dim, dtype),
        "attention": attention_init(attention_key, dim, heads, w_init=w_init, dtype=dtype),
        "mlp_norm": _norm_init(dim, dtype),
        "mlp": mlp_init(mlp_key, sizes, w_init=w_init, dtype=dtype),
    }


def gelu(x: Array) -> Array:
    """[...] -> [...]: x times the normal distribution's P(X <= x), by erf, not by tanh."""
    return jax.nn.gelu(x, approximate=False)


def transformer_block(
    params: Params,
    x: AnyArray,
    *,
    mask: AnyArray | None = None,
    causal: bool = False,
    positions: AnyArray | None = None,
    activation: Callable[[Array], Array] = gelu,
    key: Array | None = None,
    rate: ArrayLike = 0.0,
) -> Array:
    """[batch, time, dim] -> [batch, time, dim]: x + attention(norm(x)), then x + mlp(norm(x)).

    Pre-norm (Xiong et al. 2020). Dropout is on both summands and inside the mlp. The sum is left
    as it is: a last `layer_norm` stands after the last block. `mask`, `causal` and `positions`
    are attention's.
    """
    keys = split(key, 3)
    normal = layer_norm(params["attention_norm"], x)
    y = attention(params["attention"], normal, mask=mask, causal=causal, positions=positions)
    x = jnp.asarray(x) + dropout(keys[0], y, rate)
    normal = layer_norm(params["mlp_norm"], x)
    y = mlp(params["mlp"], normal, activation=activation, key=keys[1], rate=rate)
    return x + dropout(keys[2], y, rate)


def _norm_init(dim: int, dtype: DTypeLike) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), layer_norm_init(dim))


def _project(name: str, params: Params, x: AnyArray) -> Array:
    w = params["w"]
    y = product(x, w.reshape(w.shape[0], -1))
    return y.reshape(*x.shape[:-1], *w.shape[1:]) + params["b"]


# By hand, because `jax.nn.dot_product_attention` takes the softmax of float64 in float32, has no
# float16 on a CPU, and gives a row without an allowed source the mean of all.
def _weighted_values(q: Array, k: Array, v: Array, mask: AnyArray | None) -> Array:
    from jax.ad_checkpoint import checkpoint_name  # `import jax` does not load it

    scale = 1 / math.sqrt(max(q.shape[-1], 1))
    # Scaled before the product: after it, XLA would fuse the factor into softmax's subtraction of
    # the largest score, unrounded, and scores of 1e30 would overflow.
    scores = jnp.einsum("bthd,bshd->bhts", scale * wide(q), wide(k))
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0)
    weights = checkpoint_name(weights.astype(v.dtype), "attention")  # for diagnostics.capture
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def _full_mask(
    mask: AnyArray | None, x: AnyArray, source: AnyArray, causal: bool
) -> AnyArray | None:
    """[batch, heads, time, source] or ones for what is broadcast, with what causality forbids."""
    full = (x.shape[0], x.shape[1], source.shape[1])
    past = jnp.tri(full[1], full[2], dtype=bool)
    if mask is None:
        return past if causal else None
    if mask.dtype != bool:
        raise TypeError(f"attention: mask is {mask.dtype}, expected bool, True where may be looked")
    sizes = (*mask.shape[:1], *mask.shape[-2:])
    if mask.ndim not in (3, 4) or any(m not in (1, n) for m, n in zip(sizes, full, strict=True)):
        raise ValueError(
            f"attention: mask has shape {mask.shape}, expected {full}, [batch, time, source], or"
            " with heads second; mask[:, None] makes one of padding [batch, source]"
        )
    mask = mask[:, None] if mask.ndim == 3 else mask
    return mask & past if causal else mask


def _check_attention(params: Params, x: AnyArray, source: AnyArray, ordered: bool) -> None:
    if x.ndim != 3 or source.ndim != 3 or x.shape[0] != source.shape[0]:
        which = f" and context {source.shape}" if source is not x else ""
        raise ValueError(
            f"attention: x has shape {x.shape}{which}, expected [batch, time, dim] of one batch"
        )
    if ordered:
        raise ValueError("attention: causal and positions order x itself, but a context came")
    for name, array in {"query": x, "key": source, "value": source}.items():
        w = params[name]["w"]
        _check_input(f"attention {name}", array, w.reshape(w.shape[0], -1))
