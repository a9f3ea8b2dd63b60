"""Small nets of fnn, and the names that their layers have in the nets of other libraries.

A net is two functions: ``init(key) -> (params, state)`` and ``apply(params, state, x, eps) -> y``,
channels last. State is None where there is no batch norm.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from fnn import nn


class Net(NamedTuple):
    init: Callable[[Any], Any]
    apply: Callable[..., Any]
    shape: tuple[int, ...]  # of x
    vocab: int = 0  # x are ids below it


def stateless(init):
    return lambda key: (init(key), None)


def mlp(params, state, x, eps):
    return fnn.mlp(params, x)


def convnet_init(key):
    k1, k2, k3 = jax.random.split(key, 3)
    norm, state = fnn.batch_norm_init(4)
    params = {
        "conv": fnn.conv_init(k1, 2, 4, (3, 2)),
        "norm": norm,
        "up": nn.conv_transpose_init(k2, 4, 3, (3, 2), stride=2),
        "logits": fnn.dense_init(k3, 3, 2),
    }
    return params, {"norm": state}


def convnet(params, state, x, eps):
    x = fnn.conv(params["conv"], x, padding="VALID")
    x, _ = fnn.batch_norm(params["norm"], state["norm"], x, train=False, eps=eps)
    x = nn.conv_transpose(params["up"], fnn.relu(x), stride=2, padding=0)
    return fnn.dense(params["logits"], fnn.tanh(x).mean((1, 2)))


def grouped_init(key):
    return {"conv": fnn.conv_init(key, 4, 6, (3,), groups=2)}


def grouped(params, state, x, eps):
    return fnn.conv(params["conv"], x, padding="VALID", groups=2)


def depthwise_init(key):
    return {"conv": fnn.conv_init(key, 3, 3, 2, groups=3)}


def depthwise(params, state, x, eps):
    return fnn.conv(params["conv"], x, padding="VALID", groups=3)


def norms_init(key):
    return {
        "layer": fnn.layer_norm_init(4),
        "group": nn.group_norm_init(4),
        "rms": nn.rms_norm_init(4),
    }


def norms(params, state, x, eps):
    x = fnn.layer_norm(params["layer"], x, eps=eps)
    x = nn.group_norm(params["group"], x, groups=2, eps=eps)
    return nn.rms_norm(params["rms"], x, eps=eps)


def recurrent(name):
    init, layer = getattr(fnn, f"{name}_init"), getattr(fnn, name)
    return Net(
        stateless(lambda key: {"cell": init(key, 3, 4)}),
        lambda params, state, x, eps: layer(params["cell"], x)[1],
        (2, 5, 3),
    )


def attention(params, state, x, eps):
    return fnn.attention(params["attention"], x)


def cross(params, state, x, eps):
    return fnn.attention(params["attention"], x[..., :4], context=x[..., 4:])


def embed_init(key):
    k1, k2 = jax.random.split(key)
    return {"tokens": fnn.embed_init(k1, 5, 5), "head": fnn.dense_init(k2, 5, 5, bias=False)}


def embed(params, state, x, eps):
    return fnn.dense(params["head"], fnn.embed(params["tokens"], x))


def block(params, state, x, eps):
    return fnn.transformer_block(params["block"], x)


KEY = jax.random.key(0)
NETS = {
    "mlp": Net(stateless(lambda key: fnn.mlp_init(key, (3, 5, 2))), mlp, (4, 3)),
    "convnet": Net(convnet_init, convnet, (3, 6, 5, 2)),
    "grouped": Net(stateless(grouped_init), grouped, (2, 6, 4)),
    "depthwise": Net(stateless(depthwise_init), depthwise, (2, 5, 4, 3)),
    "norms": Net(stateless(norms_init), norms, (2, 3, 4)),
    "rnn": recurrent("rnn"),
    "lstm": recurrent("lstm"),
    "gru": recurrent("gru"),
    "attention": Net(
        stateless(lambda key: {"attention": fnn.attention_init(key, 4, 2)}), attention, (2, 3, 4)
    ),
    "cross": Net(
        stateless(lambda key: {"attention": fnn.attention_init(key, 4, 2, context_dim=3)}),
        cross,
        (2, 3, 7),
    ),
    "embed": Net(stateless(embed_init), embed, (2, 3), 5),
    "block": Net(
        stateless(lambda key: {"block": fnn.transformer_block_init(key, 4, 2, mlp_dim=6)}),
        block,
        (2, 3, 4),
    ),
}
KINDS = {  # what has to be said
    "convnet": {"up": "conv_transpose"},
    "embed": {"tokens": "embed", "**": "dense"},
}

# --- the names of layers in PyTorch's and Keras's nets of tests/golden/make_interchange.py --------

TORCH = {
    "mlp": {"layer_0": "0", "layer_1": "2"},
    "convnet": {},
    "grouped": {},
    "depthwise": {},
    "norms": {},
    "rnn": {"cell": ""},
    "lstm": {"cell": ""},
    "gru": {"cell": ""},
    "attention": {"attention": ""},
    "cross": {"attention": ""},
    "embed": {"tokens": "0", "head": "1"},
    "block": {"block": ""},
}
KERAS = {
    "mlp": {"": "mlp", "layer_0": "mlp/a", "layer_1": "mlp/b"},
    "convnet": {"": "convnet"},
    "grouped": {"": "grouped"},
    "depthwise": {"": "depthwise"},
    "norms": {"": "norms"},
    "rnn": {"cell": "rnn/cell/simple_rnn_cell"},
    "lstm": {"cell": "lstm/cell/lstm_cell"},
    "gru": {"cell": "gru/cell/gru_cell"},
    "attention": {},
    "cross": {},
    "embed": {"": "embed"},
    "block": {
        "block": "",
        "block/mlp/layer_0": "wide",
        "block/mlp/layer_1": "narrow",
    },
}
KERAS_KINDS = KINDS | {"depthwise": {"conv": "depthwise"}, "norms": {"rms": "rms_norm"}}


def new(name):
    """(params, state) of a net, as `init` makes them."""
    return NETS[name].init(KEY)


def drawn(tree, seed=0):
    """The tree with other numbers, so that no bias is zero and no scale is one."""
    rng = np.random.default_rng(seed)

    def leaf(keys, x):
        values = rng.normal(size=x.shape)
        is_var = fnn.params.path_of(keys).endswith("var")
        return jnp.asarray(np.abs(values) + 0.5 if is_var else values, x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def inputs(name):
    net, rng = NETS[name], np.random.default_rng(1)
    if net.vocab:
        return rng.integers(0, net.vocab, net.shape)
    return rng.normal(size=net.shape).astype(np.float32)


def out(name, params, state, x, eps=1e-5):
    return jax.jit(NETS[name].apply)(params, state, x, eps)


def assert_equal_outputs(y, expected):
    """Equal to 1e-6 of the largest output."""
    expected = np.asarray(expected, float)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max()))


def assert_same_bits(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def parts(converted, state):
    """(params, state) of what a from_ function returned, which has no state if there is none."""
    return (converted, None) if state is None else converted
