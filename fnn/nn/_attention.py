"""Multi-head attention (Vaswani et al. 2017) and a transformer block.

Attention alone does not depend on the order of its inputs. The caller adds the positions: learned
vectors, as in this example, or `positions=`, which turns queries and keys by `rotary`::

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
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from fnn._base import (
    AnyArray,
    Params,
    as_array,
    as_count,
    check_floating,
    check_key,
    split,
    wide,
)
from fnn.nn._dense import check_input, check_params, check_real, dims, plus_bias, product
from fnn.nn._dropout import dropout
from fnn.nn._initializers import Initializer, glorot_uniform
from fnn.nn._mlp import mlp, mlp_init
from fnn.nn._norms import layer_norm, layer_norm_init
from fnn.nn._rotary import rotary

LONG = 512  # positions from which a GPU takes cuDNN's kernel: the fewest that Dao 2023 measures


def attention_init(
    key: Array,
    dim: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    context_dim: int | None = None,
    w_init: Initializer = glorot_uniform,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `attention`: query, key, value and output, each {"w", "b"}, b zero.

    Shapes of w:
      - query: [dim, heads, dim // heads]
      - key and value: [context_dim, kv_heads, dim // heads]
      - output: [heads, dim // heads, dim]

    `attention` reads the numbers of heads from these shapes. `context_dim` is `dim` by default.

    `kv_heads` is `heads` by default. A smaller number, which divides `heads`, is grouped-query
    attention (Ainslie et al. 2023): heads // kv_heads neighbouring query heads share a head of
    keys and values. kv_heads=1 is multi-query attention (Shazeer 2019).
    """
    check_key("attention_init", key)
    context_dim = dim if context_dim is None else context_dim
    dim, context_dim = dims("attention_init", dim=dim, context_dim=context_dim)
    heads = as_count("attention_init", "heads", heads)
    kv_heads = heads if kv_heads is None else as_count("attention_init", "kv_heads", kv_heads)
    if dim % heads:
        raise ValueError(f"attention_init: dim is {dim}, expected a multiple of heads, {heads}")
    if heads % kv_heads:
        raise ValueError(
            f"attention_init: heads is {heads}, expected a multiple of kv_heads, {kv_heads}"
        )
    head_dim = dim // heads
    keys = jax.random.split(key, 4)

    def project(key: Array, in_dim: int, heads: int) -> Params:
        w = w_init(key, (in_dim, heads * head_dim), dtype).reshape(in_dim, heads, head_dim)
        return {"w": w, "b": jnp.zeros((heads, head_dim), dtype)}

    output = w_init(keys[3], (dim, dim), dtype).reshape(heads, head_dim, dim)
    return {
        "query": project(keys[0], dim, heads),
        "key": project(keys[1], context_dim, kv_heads),
        "value": project(keys[2], context_dim, kv_heads),
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

    If there are fewer heads of keys and values than of queries, query head i takes key and value
    head i // (heads // kv_heads).

    Options:
      - context: [batch, source, context_dim], from which keys and values are computed; x if None.
      - mask: bool, True where a position may attend. Its shape is [batch, time, source] or
        [batch, heads, time, source]; an axis of length 1 broadcasts. From the mask of a padded
        batch, [batch, source], make ``mask[:, None]``.
      - causal: position t attends to the positions 0 to t only.
      - positions: int [time], or [batch, time] if the rows differ, as with padding on the left;
        queries and keys are turned by `rotary`.

    A position that may attend to nothing gets zeros from every head. What stands where nobody may
    attend, even NaN, reaches neither the other positions nor a gradient. There is no dropout on the
    attention weights. `fnn.diagnostics.capture` reports the weights under the name "attention",
    [batch, heads, time, source].

    If JAX is installed for CUDA, long sequences in half precision without a mask (512 positions or
    more, heads of 8 to 128 features, a multiple of 8) are computed by cuDNN's kernel on a GPU:
      - It stores no weights, and `capture` reports none.
      - Of derivatives there are first gradients only, no forward mode.
      - The last bits of a gradient vary from run to run, unless XLA_FLAGS has
        --xla_gpu_deterministic_ops=true.
      - With a mask, even one that is all True, the kernel is not used.
    """
    source = x if context is None else context
    _check_attention(params, x, source, context is not None and (causal or positions is not None))
    full: Any = _full_mask(mask, x, source, causal)
    _check_heads(mask, params["query"]["w"].shape[1])
    if mask is not None and context is None:
        x = source = _without_padding(x, full)
    elif mask is not None:
        x = jnp.where(full.any((1, 3))[..., None], x, 0)
        source = jnp.where(full.any((1, 2))[..., None], source, 0)
    q = _project("attention query", params["query"], x)
    k = _project("attention key", params["key"], source)
    v = _project("attention value", params["value"], source)
    if positions is not None:
        q, k = rotary(q, positions), rotary(k, positions)
    if mask is None and _cudnn_pays(q, k, v, causal):
        cudnn = partial(_by_cudnn, causal=causal)
        written = partial(_weighted_values, mask=full, marked=False)
        out = lax.platform_dependent(q, k, v, cuda=cudnn, default=written)
    else:
        out = _weighted_values(q, k, v, full)
    w = params["output"]["w"].reshape(-1, params["output"]["w"].shape[-1])
    y = product(out.reshape(*x.shape[:2], len(w)), w)
    return plus_bias("attention output", y, params["output"])


def transformer_block_init(
    key: Array,
    dim: int,
    heads: int,
    *,
    mlp_dim: int | None = None,
    kv_heads: int | None = None,
    w_init: Initializer = glorot_uniform,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `transformer_block`; `mlp_dim` is 4 dim by default.

    `kv_heads` is as in `attention_init`.
    """
    check_key("transformer_block_init", key)
    mlp_dim = 4 * dim if mlp_dim is None else mlp_dim
    dim, mlp_dim = dims("transformer_block_init", dim=dim, mlp_dim=mlp_dim)
    attention_key, mlp_key = jax.random.split(key)
    sizes, options = (dim, mlp_dim, dim), {"w_init": w_init, "dtype": dtype}
    return {
        "attention_norm": _norm_init(dim, dtype),
        "attention": attention_init(attention_key, dim, heads, kv_heads=kv_heads, **options),
        "mlp_norm": _norm_init(dim, dtype),
        "mlp": mlp_init(mlp_key, sizes, **options),
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

    Pre-norm (Xiong et al. 2020). Dropout acts on both summands and inside the mlp. The output is
    not normalised, so put one more `layer_norm` after the last block. `mask`, `causal` and
    `positions` are those of `attention`.
    """
    parts = ("attention_norm", "attention", "mlp_norm", "mlp")
    check_params("transformer_block", params, *parts, optional=())
    if mask is not None:
        check_floating("transformer_block", x)
        x = _without_padding(x, _full_mask(mask, x, x, causal))
    if key is not None:
        check_key("transformer_block", key, len(x))
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
    return plus_bias(name, y.reshape(*x.shape[:-1], *w.shape[1:]), params, axes=2)


# `jax.nn.dot_product_attention` computes the softmax of float64 in float32, does not support
# float16 on a CPU, and gives a position that may attend to nothing the mean of all values.
def _weighted_values(
    q: Array, k: Array, v: Array, mask: AnyArray | None, *, marked: bool = True
) -> Array:
    from jax.ad_checkpoint import checkpoint_name  # `import jax` does not load it

    scale = 1 / math.sqrt(max(q.shape[-1], 1))
    # q is scaled before the product. After the product XLA would fuse the factor, unrounded, into
    # softmax's subtraction of the largest score, and scores of 1e30 would overflow.
    scores = _scores(scale * wide(q), wide(k))
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0)
    weights = weights.astype(v.dtype)
    if marked:
        weights = checkpoint_name(weights, "attention")  # for fnn.diagnostics.capture
    return _mixed(weights, v)


# With groups the query heads stand as [kv_heads, group]. Keys and values are not repeated.
def _scores(q: Array, k: Array) -> Array:
    """[batch, time, heads, d], [batch, source, kv_heads, d] -> [batch, heads, time, source]."""
    batch, time, heads, head_dim = q.shape
    if heads == k.shape[2]:
        return jnp.einsum("bthd,bshd->bhts", q, k)
    kv_heads, source = k.shape[2], k.shape[1]
    grouped = q.reshape(batch, time, kv_heads, heads // kv_heads, head_dim)
    return jnp.einsum("btkgd,bskd->bkgts", grouped, k).reshape(batch, heads, time, source)


def _mixed(weights: Array, v: Array) -> Array:
    """[batch, heads, time, source], [batch, source, kv_heads, d] -> [batch, time, heads, d]."""
    batch, heads, time, source = weights.shape
    if heads == v.shape[2]:
        return jnp.einsum("bhts,bshd->bthd", weights, v)
    kv_heads, head_dim = v.shape[2:]
    grouped = weights.reshape(batch, kv_heads, heads // kv_heads, time, source)
    return jnp.einsum("bkgts,bskd->btkgd", grouped, v).reshape(batch, time, heads, head_dim)


def _by_cudnn(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")


# cuDNN's masks are numbers added to the scores, -32768 in float16, so a masked score that is large
# enough would still count. Hence the kernel is for attention without a mask.
def _cudnn_pays(q: Array, k: Array, v: Array, causal: bool) -> bool:
    """Whether cuDNN's kernel takes these shapes, and stores less than `_weighted_values`."""
    batch, time, heads, head_dim = q.shape
    half = q.dtype in (jnp.bfloat16, jnp.float16) and q.dtype == k.dtype == v.dtype
    fits = batch > 0 and heads > 0 and head_dim in range(8, 129, 8)  # Ampere's limit; Hopper's: 256
    if not half or not fits or min(time, k.shape[1]) < LONG:
        return False
    if any(map(_is_old, jax.local_devices())):
        return False
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
    try:
        jax.eval_shape(partial(_by_cudnn, causal=causal), *shapes)
    except RuntimeError:  # cuDNN is not installed, or too old for this GPU
        return False
    return True


def _is_old(device: Any) -> bool:
    """Whether the device is a GPU before sm_80, as a T4 is, for which cuDNN has no kernel."""
    major, *_ = getattr(device, "compute_capability", "").split(".")
    return major.isdecimal() and int(major) < 8


def _without_padding(x: AnyArray, full: Any) -> Array:
    """x [batch, time, dim], with 0 for what is not finite in positions that nobody attends to.

    Such a position still attends to others, so its finite values stay. What has no finite square
    would not be finite in a norm.
    """
    finite = jnp.isfinite(jnp.square(wide(x)))
    return jnp.where(full.any((1, 2))[..., None] | finite, x, 0)


def _full_mask(
    mask: AnyArray | None, x: AnyArray, source: AnyArray, causal: bool
) -> AnyArray | None:
    """The mask as [batch, heads, time, source], axes may be 1; if causal, without the future."""
    full = (x.shape[0], x.shape[1], source.shape[1])
    past = jnp.tri(full[1], full[2], dtype=bool)
    if mask is None:
        return past if causal else None
    if as_array("attention", "mask", mask).dtype != bool:
        raise TypeError(
            f"attention: mask is {mask.dtype}, expected bool, True where a position may attend"
        )
    sizes = (*mask.shape[:1], *mask.shape[-2:])
    if mask.ndim not in (3, 4) or any(m not in (1, n) for m, n in zip(sizes, full, strict=True)):
        raise ValueError(
            f"attention: mask has shape {mask.shape}, expected {full}, [batch, time, source], or"
            " [batch, heads, time, source]; give mask[:, None] if it is [batch, source]"
        )
    mask = mask[:, None] if mask.ndim == 3 else mask
    return mask & past if causal else mask


def _check_heads(mask: AnyArray | None, heads: int) -> None:
    if mask is not None and mask.ndim == 4 and mask.shape[1] not in (1, heads):
        raise ValueError(
            f"attention: mask has shape {mask.shape}, for {mask.shape[1]} heads, but params have"
            f" {heads}"
        )


def _check_attention(params: Params, x: AnyArray, source: AnyArray, ordered: bool) -> None:
    check_params("attention", params, "query", "key", "value", "output", optional=())
    check_real("attention", x)
    check_real("attention context", source)
    if x.ndim != 3 or source.ndim != 3 or x.shape[0] != source.shape[0]:
        which, wanted = "", ""
        if source is not x:
            which, wanted = f" and context {source.shape}", " and [batch, source, context_dim]"
        raise ValueError(
            f"attention: x has shape {x.shape}{which}, expected [batch, time, dim]{wanted}"
        )
    if ordered:
        raise ValueError(
            "attention: causal and positions need x as the context, but context is given"
        )
    for name, array in {"query": x, "key": source, "value": source}.items():
        check_params(f"attention {name}", params[name], "w")
        w = params[name]["w"]
        if w.ndim != 3:
            raise ValueError(
                f"attention {name}: w has shape {w.shape}, expected [in, heads, head_dim]"
            )
        check_input(f"attention {name}", array, w.reshape(w.shape[0], -1))
    check_params("attention output", params["output"], "w")
    heads, key_heads, value_heads = (
        params[name]["w"].shape[1] for name in ("query", "key", "value")
    )
    if key_heads != value_heads or not key_heads or heads % key_heads:
        raise ValueError(
            f"attention: params have {heads} heads of queries, {key_heads} of keys and"
            f" {value_heads} of values, expected as many keys as values, and a number that divides"
            " the queries'"
        )
    of_query, of_key = (params[name]["w"].shape[2] for name in ("query", "key"))
    if of_query != of_key:  # one feature would be taken for all
        raise ValueError(
            f"attention: params have heads of {of_query} features for queries and {of_key} for"
            " keys, expected as many"
        )
