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


def over_time(layer):
    """The outputs of a layer of sequences, for one sequence or a batch of them."""

    def apply(params, x):
        ys = layer(params, x.reshape(-1, *x.shape[-2:]))
        ys = ys[1] if isinstance(ys, tuple) else ys
        return ys.reshape(*x.shape[:-1], ys.shape[-1])

    return apply


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
    Layer("lstm", lambda k, **o: fnn.lstm_init(k, 4, 3, **o), over_time(fnn.lstm), (5, 4), (5, 3)),
    Layer("gru", lambda k, **o: fnn.gru_init(k, 4, 3, **o), over_time(fnn.gru), (5, 4), (5, 3)),
    Layer(
        "attention",
        lambda k, **o: fnn.attention_init(k, 4, 2, **o),
        over_time(partial(fnn.attention, causal=True)),
        (5, 4),
        (5, 4),
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
]
