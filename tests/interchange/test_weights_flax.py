"""Against Flax, Linen and NNX: in, out into its modules, and in again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import interchange
from tests.interchange import cases

flax = pytest.importorskip("flax")
from flax import linen, nnx  # noqa: E402

EPS = 1e-5

# --- Linen ----------------------------------------------------------------------------------------


class LinenConvnet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 2), padding="VALID", name="conv")(x)
        x = linen.BatchNorm(use_running_average=True, epsilon=EPS, name="norm")(x)
        x = linen.ConvTranspose(3, (3, 2), (2, 2), padding="VALID", name="up")(linen.relu(x))
        return linen.Dense(2, name="logits")(jnp.tanh(x).mean((1, 2)))


class LinenNorms(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.LayerNorm(epsilon=EPS, name="layer")(x)
        x = linen.GroupNorm(2, epsilon=EPS, name="group")(x)
        return linen.RMSNorm(epsilon=EPS, name="rms")(x)


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x):
        y = linen.LayerNorm(epsilon=EPS, name="norm1")(x)
        x = x + linen.MultiHeadDotProductAttention(2, name="attention")(y, y)
        y = linen.LayerNorm(epsilon=EPS, name="norm2")(x)
        y = linen.gelu(linen.Dense(6, name="wide")(y), approximate=False)
        return x + linen.Dense(4, name="narrow")(y)


class LinenAttention(linen.Module):
    features: int = 4

    @linen.compact
    def __call__(self, x):
        query, context = x[..., :4], x[..., 4:] if x.shape[-1] > 4 else x
        return linen.MultiHeadDotProductAttention(2, name="attention")(query, context)


LINEN = {  # module, names
    "mlp": (
        linen.Sequential([linen.Dense(5), linen.relu, linen.Dense(2)]),
        {"layer_0": "layers_0", "layer_1": "layers_2"},
    ),
    "convnet": (LinenConvnet(), None),
    "grouped": (
        linen.Conv(6, (3,), padding="VALID", feature_group_count=2),
        {"conv": ""},
    ),
    "depthwise": (
        linen.Conv(3, (2, 2), padding="VALID", feature_group_count=3),
        {"conv": ""},
    ),
    "norms": (LinenNorms(), None),
    "rnn": (linen.RNN(linen.SimpleCell(4)), {"cell": "cell"}),
    "lstm": (linen.RNN(linen.OptimizedLSTMCell(4)), {"cell": "cell"}),
    "gru": (linen.RNN(linen.GRUCell(4)), {"cell": "cell"}),
    "attention": (LinenAttention(), None),
    "cross": (LinenAttention(), None),
    "embed": (
        linen.Sequential([linen.Embed(5, 5), linen.Dense(5, use_bias=False)]),
        {"tokens": "layers_0", "head": "layers_1"},
    ),
    "block": (
        LinenBlock(),
        {
            "block": "",
            "block/attention_norm": "norm1",
            "block/mlp_norm": "norm2",
            "block/mlp/layer_0": "wide",
            "block/mlp/layer_1": "narrow",
        },
    ),
}


@pytest.mark.parametrize("name", cases.NETS)
def test_linen(name):
    (module, names), (params, state) = LINEN[name], cases.new(name)
    x = jnp.asarray(cases.inputs(name))
    asked = {"names": names, "kinds": cases.KINDS.get(name)}
    with jax.numpy_dtype_promotion("standard"):
        variables = cases.drawn(module.init(jax.random.key(0), x), 3)
        y = module.apply(variables, x)
    new = interchange.from_linen(variables, params, state=state, **asked)
    cases.assert_equal_outputs(cases.out(name, *cases.parts(new, state), x), y)
    both = cases.parts(new, state)
    back = interchange.to_linen(both[0], state=both[1], **asked)
    cases.assert_same_bits(back, jax.tree.map(np.asarray, dict(variables)))


def test_linens_plain_lstm_has_the_same_names():
    module, x = linen.RNN(linen.LSTMCell(4)), jnp.asarray(cases.inputs("lstm"))
    with jax.numpy_dtype_promotion("standard"):
        variables = cases.drawn(module.init(jax.random.key(0), x), 3)
        y = module.apply(variables, x)
    params = interchange.from_linen(variables, cases.new("lstm")[0])
    cases.assert_equal_outputs(cases.out("lstm", params, None, x), y)


# --- NNX ------------------------------------------------------------------------------------------


class NnxConvnet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 2), padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, epsilon=EPS, rngs=rngs)
        self.up = nnx.ConvTranspose(4, 3, (3, 2), (2, 2), padding="VALID", rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.logits = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        x = self.drop(self.up(nnx.relu(self.norm(self.conv(x)))))
        return self.logits(jnp.tanh(x).mean((1, 2)))


class NnxNorms(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.LayerNorm(4, epsilon=EPS, rngs=rngs)
        self.group = nnx.GroupNorm(4, 2, epsilon=EPS, rngs=rngs)
        self.rms = nnx.RMSNorm(4, epsilon=EPS, rngs=rngs)

    def __call__(self, x):
        return self.rms(self.group(self.layer(x)))


class NnxAttention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 4, 4, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.attention(x)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(4, epsilon=EPS, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, 4, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(4, epsilon=EPS, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(nnx.gelu(self.wide(self.norm2(x)), approximate=False))


def nnx_nets(rngs):
    """{name: (module, names)}."""
    return {
        "mlp": (
            nnx.Sequential(nnx.Linear(3, 5, rngs=rngs), nnx.relu, nnx.Linear(5, 2, rngs=rngs)),
            {"layer_0": "layers/0", "layer_1": "layers/2"},
        ),
        "convnet": (NnxConvnet(rngs), None),
        "grouped": (
            nnx.Conv(4, 6, (3,), padding="VALID", feature_group_count=2, rngs=rngs),
            {"conv": ""},
        ),
        "norms": (NnxNorms(rngs), None),
        "rnn": (nnx.RNN(nnx.SimpleCell(3, 4, rngs=rngs), rngs=rngs), None),
        "lstm": (nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs), rngs=rngs), None),
        "gru": (nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs), rngs=rngs), None),
        "attention": (NnxAttention(rngs), None),
        "embed": (
            nnx.Sequential(nnx.Embed(5, 5, rngs=rngs), nnx.Linear(5, 5, use_bias=False, rngs=rngs)),
            {"tokens": "layers/0", "head": "layers/1"},
        ),
        "block": (NnxBlock(rngs), LINEN["block"][1]),
    }


NNX = tuple(nnx_nets(nnx.Rngs(0)))


def nnx_drawn(module):
    """The module with other numbers, and without a change of its counters and keys."""
    weights = nnx.state(module, (nnx.Param, nnx.BatchStat))
    nnx.update(module, jax.tree.map(lambda x: x, cases.drawn(weights, 3)))


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
    (module, names), (params, state) = nnx_nets(nnx.Rngs(0))[name], cases.new(name)
    x = jnp.asarray(cases.inputs(name))
    asked = {"names": names, "kinds": cases.KINDS.get(name)}
    with jax.numpy_dtype_promotion("standard"):
        nnx_drawn(module)
        y, before = module(x), nnx.state(module)
        new = interchange.from_nnx(before, params, state=state, **asked)
        cases.assert_equal_outputs(cases.out(name, *cases.parts(new, state), x), y)
        params, state = cases.parts(new, state)
        fresh = nnx_nets(nnx.Rngs(1))[name][0]
        back = interchange.to_nnx(params, nnx.state(fresh), state=state, **asked)
        nnx.update(fresh, back)
        np.testing.assert_array_equal(fresh(x), y)


def test_nnx_optimized_lstm():
    module = nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    x, (params, _) = jnp.asarray(cases.inputs("lstm")), cases.new("lstm")
    kinds = {"cell": "optimized_lstm"}
    with jax.numpy_dtype_promotion("standard"):
        nnx_drawn(module)
        new = interchange.from_nnx(nnx.state(module), params, kinds=kinds)
        cases.assert_equal_outputs(cases.out("lstm", new, None, x), module(x))
        before = nnx.state(module)
        back = interchange.to_nnx(new, before, kinds=kinds)
    assert jax.tree.structure(back) == jax.tree.structure(before)


def test_a_bias_that_nnx_has_no_place_for():
    module = nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))
    params = cases.drawn(cases.new("gru")[0])
    with pytest.raises(
        ValueError, match="to_nnx: cell/hidden/b is not zero, but the GRUCell of NNX"
    ):
        interchange.to_nnx(params, nnx.state(module), {"cell": ""})


def test_a_model_of_other_shapes_is_refused():
    params = {"d": fnn.dense_init(cases.KEY, 3, 2)}
    model = nnx.state(nnx.Linear(3, 5, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"\[3, 2\] +kernel +\[3, 5\]"):
        interchange.to_nnx(params, model, {"d": ""})
    with pytest.raises(ValueError, match=r"missing +bias +\[5\]"):
        interchange.to_nnx({}, model)


def test_a_value_that_the_models_dtype_cannot_hold_is_refused():
    model = nnx.Linear(3, 2, param_dtype=jnp.float16, rngs=nnx.Rngs(0))
    params = fnn.dense_init(jax.random.key(0), 3, 2)
    assert interchange.to_nnx(params, nnx.state(model))["bias"].dtype == jnp.float16
    params["b"] = params["b"].at[0].set(1e6)
    with pytest.raises(ValueError, match=r"to_nnx: bias came as float32 with the value 1000000.0"):
        interchange.to_nnx(params, nnx.state(model))
