"""One row a layer. `test_layers.py` holds every property against every row: add a row here."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

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


def spatial_dropout(params, x):
    return fnn.spatial_dropout(jax.random.key(DROPOUT_KEY), x, rate=0.5)


def dropout_of_rows(params, x):
    return fnn.dropout(fnn.row_keys(jax.random.key(DROPOUT_KEY), len(x)), x, rate=0.5)


def mlp_with_dropout_of_rows(params, x):
    keys = fnn.row_keys(jax.random.key(DROPOUT_KEY), len(x))
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
    Layer("dropout without a key", no_params, lambda p, x: fnn.dropout(None, x, 0.5), (4,), (4,)),
]  # fmt: skip
# Layers that draw: what one example gets depends on where it stands in the batch.
RANDOM_LAYERS = [
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
