"""Against Equinox: in, out into its modules, and in again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import interchange, nn
from tests.interchange import cases

eqx = pytest.importorskip("equinox")


class Convnet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    up: eqx.nn.ConvTranspose2d
    logits: eqx.nn.Linear

    def __init__(self, mode):
        self.conv = eqx.nn.Conv2d(2, 4, (3, 2), key=cases.KEY)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode=mode)
        self.up = eqx.nn.ConvTranspose2d(4, 3, (3, 2), 2, key=cases.KEY)
        self.logits = eqx.nn.Linear(3, 2, key=cases.KEY)

    def __call__(self, x, state, inference=True):
        x, state = self.norm(self.conv(jnp.moveaxis(x, -1, 0)), state, inference=inference)
        return self.logits(jnp.tanh(self.up(jax.nn.relu(x))).mean((1, 2))), state


class Norms(eqx.Module):
    layer: eqx.nn.LayerNorm
    group: eqx.nn.GroupNorm
    rms: eqx.nn.RMSNorm

    def __init__(self):
        self.layer, self.group = eqx.nn.LayerNorm(4), eqx.nn.GroupNorm(2, 4)
        self.rms = eqx.nn.RMSNorm(4, use_bias=False)

    def __call__(self, x):
        x = self.group(jax.vmap(self.layer)(x).T).T
        return jax.vmap(self.rms)(x)


class Grouped(eqx.Module):
    conv: eqx.nn.Conv1d

    def __call__(self, x):
        return self.conv(x.T).T


class Over(eqx.Module):
    """A cell over time."""

    cell: eqx.Module

    def __call__(self, x):
        h = jnp.zeros(4)
        start = (h, h) if isinstance(self.cell, eqx.nn.LSTMCell) else h

        def step(carry, x):
            carry = self.cell(x, carry)
            return carry, carry[0] if isinstance(carry, tuple) else carry

        return jax.lax.scan(step, start, x)[1]


class Attention(eqx.Module):
    attention: eqx.nn.MultiheadAttention

    def __init__(self, context):
        options = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        self.attention = eqx.nn.MultiheadAttention(
            2, 4, context, context, qk_size=2, vo_size=2, key=cases.KEY, **options
        )

    def __call__(self, x):
        query, context = x[..., :4], x[..., 4:] if x.shape[-1] > 4 else x
        return self.attention(query, context, context)


class Embed(eqx.Module):
    tokens: eqx.nn.Embedding
    head: eqx.nn.Linear

    def __call__(self, x):
        return jax.vmap(lambda token: self.head(self.tokens(token)))(x)


NETS = {
    "mlp": (
        lambda: eqx.nn.MLP(3, 2, 5, 1, key=cases.KEY),
        {"layer_0": "layers/0", "layer_1": "layers/1"},
    ),
    "grouped": (lambda: Grouped(eqx.nn.Conv1d(4, 6, 3, groups=2, key=cases.KEY)), None),
    "norms": (Norms, None),
    "lstm": (lambda: Over(eqx.nn.LSTMCell(3, 4, key=cases.KEY)), None),
    "gru": (lambda: Over(eqx.nn.GRUCell(3, 4, key=cases.KEY)), None),
    "attention": (lambda: Attention(4), None),
    "cross": (lambda: Attention(3), None),
    "embed": (
        lambda: Embed(
            eqx.nn.Embedding(5, 5, key=cases.KEY),
            eqx.nn.Linear(5, 5, use_bias=False, key=cases.KEY),
        ),
        None,
    ),
}


def filled(module):
    arrays, rest = eqx.partition(module, eqx.is_inexact_array)
    return eqx.combine(cases.drawn(arrays, 3), rest)


@pytest.mark.parametrize("name", NETS)
def test_equinox(name):
    make, names = NETS[name]
    params, _ = cases.new(name)
    x = jnp.asarray(cases.inputs(name))
    asked = {"names": names, "kinds": cases.KINDS.get(name)}
    with jax.numpy_dtype_promotion("standard"):
        module = filled(make())
        y = eqx.filter_jit(lambda module, x: jax.vmap(module)(x))(module, x)
        params = interchange.from_equinox(module, params, **asked)
        cases.assert_equal_outputs(cases.out(name, params, None, x), y)
        back = interchange.to_equinox(params, make(), **asked)
    assert eqx.tree_equal(back, module)


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_running_statistics(mode):
    (params, state), x = cases.new("convnet"), jnp.asarray(cases.inputs("convnet"))
    asked = {"kinds": {"up": "conv_transpose"}}

    @eqx.filter_jit
    def apply(module, memory, inference=True):
        f = jax.vmap(module, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
        return f(x, memory, inference)

    with jax.numpy_dtype_promotion("standard"):
        module, memory = eqx.nn.make_with_state(Convnet)(mode)
        module = filled(module)
        for _ in range(3):
            _, memory = apply(module, memory, False)
        y, _ = apply(module, memory)
        new = interchange.from_equinox((module, memory), params, state=state, **asked)
        cases.assert_equal_outputs(cases.out("convnet", *new, x), y)
        drawn = tuple(map(cases.drawn, new))
        back = interchange.to_equinox(drawn[0], (module, memory), state=drawn[1], **asked)
        cases.assert_equal_outputs(cases.out("convnet", *drawn, x), apply(*back)[0])
        again = interchange.from_equinox(back, params, state=state, **asked)
        cases.assert_same_bits(again, drawn)
        assert apply(module, memory)[0].shape == y.shape  # the old State is still of use
        _, trained = apply(*back, False)
    mean = again[1]["norm"]["mean"]
    moved = interchange.from_equinox((back[0], trained), params, state=state, **asked)
    conv = np.asarray(nn.conv(again[0]["conv"], x, padding="VALID"), float)
    expected = 0.99 * mean + 0.01 * conv.mean((0, 1, 2))
    np.testing.assert_allclose(moved[1]["norm"]["mean"], expected, rtol=1e-5)


def test_statistics_need_their_state():
    module, memory = eqx.nn.make_with_state(Convnet)("ema")
    params, state = cases.new("convnet")
    kinds = {"up": "conv_transpose"}
    with pytest.raises(ValueError, match=r"norm/mean +nothing +\[4\]"):
        interchange.from_equinox((module, memory), params, kinds=kinds)
    with pytest.raises(ValueError, match=r"norm/mean +\[4\] +norm/mean +\[4\] +missing"):
        interchange.from_equinox(module, params, state=state, kinds=kinds)
