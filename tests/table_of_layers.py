"""One row a layer. `test_layers.py` holds every property against every row: add a row here."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fnn


class Layer(NamedTuple):
    name: str
    init: Callable[..., Any]  # (key, dtype=...) -> params
    apply: Callable[..., jax.Array]  # (params, x) -> y
    in_shape: tuple[int, ...]  # of one example
    out_shape: tuple[int, ...]


def no_params(key, dtype=float):
    return {}


DROPOUT_KEY = 7


def dropout(params, x):
    return fnn.dropout(jax.random.key(DROPOUT_KEY), x, rate=0.5)


def conv(size, *, out_dim=4, in_dim=2, groups=1, **options):
    def init(key, **o):
        return fnn.conv_init(key, in_dim, out_dim, size, groups=groups, **o)

    return init, partial(fnn.conv, groups=groups, **options)


def rowwise(layer, *in_shape):
    """`layer` needs a batch axis, which vmap over rows takes away."""

    def apply(params, x):
        y = layer(params, x.reshape(-1, *in_shape))
        return y if x.ndim > len(in_shape) else y[0]

    return apply


def over_time(layer):
    """The outputs of a layer of sequences, for one sequence or a batch of them."""

    def apply(params, x):
        ys = layer(params, x.reshape(-1, *x.shape[-2:]))
        ys = ys[1] if isinstance(ys, tuple) else ys
        return ys.reshape(*x.shape[:-1], ys.shape[-1])

    return apply


def batch_norm(params, x):
    state = {"mean": jnp.zeros(4, x.dtype), "var": jnp.ones(4, x.dtype)}  # not used in training
    return fnn.batch_norm(params, state, x, train=True)[0]


def spatial_dropout(params, x):
    return fnn.nn.spatial_dropout(jax.random.key(DROPOUT_KEY), x, rate=0.5)


def dropout_of_rows(params, x):
    return fnn.dropout(fnn.nn.row_keys(jax.random.key(DROPOUT_KEY), len(x)), x, rate=0.5)


def mlp_with_dropout_of_rows(params, x):
    keys = fnn.nn.row_keys(jax.random.key(DROPOUT_KEY), len(x))
    return fnn.mlp(params, x, key=keys, rate=0.5)


LAYERS = [
    Layer("dense", lambda k, **o: fnn.dense_init(k, 4, 4, **o), fnn.dense, (4,), (4,)),
    Layer(
        "dense without bias",
        lambda k, **o: fnn.dense_init(k, 4, 4, bias=False, **o),
        fnn.dense,
        (4,),
        (4,),
    ),
    Layer("dense on a sequence", lambda k, **o: fnn.dense_init(k, 4, 3, **o), fnn.dense, (5, 4), (5, 3)),
    Layer("mlp", lambda k, **o: fnn.mlp_init(k, (4, 8, 4), **o), fnn.mlp, (4,), (4,)),
    Layer(
        "mlp with tanh",
        lambda k, **o: fnn.mlp_init(k, (4, 8, 8, 4), w_init=fnn.kaiming_normal, **o),
        partial(fnn.mlp, activation=fnn.tanh),
        (4,),
        (4,),
    ),
    Layer("conv", *conv(3, stride=2), (5, 4, 2), (3, 2, 4)),
    Layer("conv in groups", *conv(2, groups=2, padding=1), (3, 2, 2), (4, 3, 4)),
    Layer(
        "conv_transpose",
        lambda k, **o: fnn.nn.conv_transpose_init(k, 2, 4, 3, **o),
        partial(fnn.nn.conv_transpose, stride=2),
        (2, 3, 2),
        (4, 6, 4),
    ),
    Layer("max_pool", no_params, lambda p, x: fnn.max_pool(x, (2, 2)), (4, 5, 2), (2, 2, 2)),
    Layer(
        "avg_pool",
        no_params,
        lambda p, x: fnn.avg_pool(x, (3,), stride=2, padding="SAME"),
        (6, 2),
        (3, 2),
    ),
    Layer("global_max_pool", no_params, rowwise(lambda p, x: fnn.nn.global_max_pool(x), 3, 2, 2), (3, 2, 2), (2,)),
    Layer("layer_norm", lambda k, **o: fnn.layer_norm_init(4, **o), fnn.layer_norm, (3, 4), (3, 4)),
    Layer(
        "group_norm",
        lambda k, **o: fnn.nn.group_norm_init(4, **o),
        rowwise(partial(fnn.nn.group_norm, groups=2), 3, 4),
        (3, 4),
        (3, 4),
    ),
    Layer(
        "instance_norm",
        lambda k, **o: fnn.nn.instance_norm_init(4, **o),
        rowwise(fnn.nn.instance_norm, 3, 4),
        (3, 4),
        (3, 4),
    ),
    Layer(
        "dense with weight norm",
        lambda k, **o: fnn.nn.weight_norm_init(fnn.dense_init(k, 4, 3, **o)),
        lambda p, x: fnn.dense(fnn.nn.weight_norm(p), x),
        (4,),
        (3,),
    ),
    Layer("rms_norm", lambda k, **o: fnn.nn.rms_norm_init(4, **o), fnn.nn.rms_norm, (4,), (4,)),
    Layer("lstm", lambda k, **o: fnn.lstm_init(k, 4, 3, **o), over_time(fnn.lstm), (5, 4), (5, 3)),
    Layer("gru", lambda k, **o: fnn.gru_init(k, 4, 3, **o), over_time(fnn.gru), (5, 4), (5, 3)),
    Layer(
        "attention",
        lambda k, **o: fnn.attention_init(k, 4, 2, **o),
        over_time(partial(fnn.attention, causal=True)),
        (5, 4),
        (5, 4),
    ),
    Layer(
        "grouped-query attention",
        lambda k, **o: fnn.attention_init(k, 8, 4, kv_heads=2, **o),
        over_time(partial(fnn.attention, causal=True)),
        (5, 8),
        (5, 8),
    ),
    Layer("dropout without a key", no_params, lambda p, x: fnn.dropout(None, x, 0.5), (4,), (4,)),
]  # fmt: skip
# What one example gets depends on the batch: on its place in it, where the layer draws.
RANDOM_LAYERS = [
    Layer(
        "batch_norm in training",
        lambda k, **o: fnn.batch_norm_init(4, **o)[0],
        batch_norm,
        (2, 4),
        (2, 4),
    ),
    Layer("dropout", no_params, dropout, (4,), (4,)),
    Layer(
        "mlp with dropout",
        lambda k, **o: fnn.mlp_init(k, (4, 8, 8, 4), **o),
        lambda p, x: fnn.mlp(p, x, key=jax.random.key(DROPOUT_KEY), rate=0.5),
        (4,),
        (4,),
    ),
    Layer("spatial dropout", no_params, spatial_dropout, (5, 4), (5, 4)),
    Layer("dropout of rows", no_params, dropout_of_rows, (3,), (3,)),
    Layer(
        "mlp with dropout of rows",
        lambda k, **o: fnn.mlp_init(k, (4, 8, 8, 4), **o),
        mlp_with_dropout_of_rows,
        (4,),
        (4,),
    ),
]
