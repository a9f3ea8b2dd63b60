import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.nn import ACTIVATIONS, fans, gain

KEY = jax.random.key(0)
CONV = (3, 3, 40, 60)  # fan_in 360, fan_out 540

# Deviations by the papers, for shape (300, 500) and for CONV.
CASES = {
    "glorot_uniform": (math.sqrt(2 / 800), math.sqrt(2 / 900)),
    "glorot_normal": (math.sqrt(2 / 800), math.sqrt(2 / 900)),
    "kaiming_uniform": (math.sqrt(2 / 300), math.sqrt(2 / 360)),
    "kaiming_normal": (math.sqrt(2 / 300), math.sqrt(2 / 360)),
}
every_init = pytest.mark.parametrize("name", CASES)


@every_init
def test_moments_and_shape_of_distribution(name):
    for shape, deviation in zip(((300, 500), CONV), CASES[name], strict=True):
        w = np.asarray(getattr(fnn.nn, name)(KEY, shape), np.float64)
        n = w.size
        assert w.shape == shape
        assert abs(w.mean()) < 5 * deviation / math.sqrt(n)
        assert abs(w.std() / deviation - 1) < 5 / math.sqrt(n)
        kurtosis = ((w / w.std()) ** 4).mean()
        if "uniform" in name:
            assert abs(w).max() <= math.sqrt(3) * deviation * (1 + 1e-6)
            assert abs(kurtosis - 1.8) < 0.02
        else:
            assert abs(kurtosis - 3) < 0.1  # 2.4 if it were truncated at two deviations


@every_init
def test_gain_scales(name):
    init = getattr(fnn.nn, name)
    default = math.sqrt(2) if "kaiming" in name else 1.0
    w, scaled = init(KEY, (8, 8)), functools.partial(init, gain=3 * default)(KEY, (8, 8))
    np.testing.assert_allclose(scaled, 3 * w, rtol=1e-5)


@every_init
def test_speaks_jax_initializers_protocol(name):
    ours = getattr(fnn.nn, name)
    assert fnn.dense_init(KEY, 4, 3, w_init=jax.nn.initializers.lecun_normal())["w"].shape == (4, 3)
    assert ours(KEY, (4, 3), jnp.bfloat16).dtype == jnp.bfloat16
    half, single = ours(KEY, (64, 64), jnp.float16), ours(KEY, (64, 64), jnp.float32)
    np.testing.assert_array_equal(half, single.astype(jnp.float16))
    with jax.enable_x64(True):
        assert ours(KEY, (4, 3)).dtype == jnp.float64


def test_uniform_matches_jax():
    # The same draw as JAX's: only the scale is ours to get wrong.
    ours = fnn.glorot_uniform(KEY, (30, 50))
    theirs = jax.nn.initializers.glorot_uniform()(KEY, (30, 50))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_vmapped_draw_is_the_loop():
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(lambda key: fnn.glorot_uniform(key, (4, 5)))(keys)
    np.testing.assert_array_equal(
        together, jnp.stack([fnn.glorot_uniform(k, (4, 5)) for k in keys])
    )


def test_gains_are_pytorchs():
    # torch.nn.init.calculate_gain of PyTorch 2.13
    assert gain("linear") == gain("sigmoid") == 1
    assert gain("tanh") == 5 / 3
    assert gain("relu") == math.sqrt(2)
    assert gain("leaky_relu", 0.2) == pytest.approx(1.3867504905630728)
    with pytest.raises(
        ValueError, match=r"gain: unknown activation 'gelu', expected one of \['lin"
    ):
        gain("gelu")


def test_fans():
    assert fans((3, 3, 40, 60)) == (360, 540)
    assert fnn.glorot_uniform(KEY, (0, 3)).shape == (0, 3)
    with pytest.raises(ValueError, match=r"initializer: shape \(3,\) has no in and out axes"):
        fnn.glorot_uniform(KEY, (3,))


@pytest.mark.parametrize("name", ["tanh", "relu", "leaky_relu"])
def test_the_tables_initializer_keeps_a_signal_alive_through_30_layers(name):
    row = ACTIVATIONS[name]
    params = fnn.mlp_init(KEY, [256] * 31, w_init=row.w_init)
    x = jax.random.normal(jax.random.key(1), (64, 256))
    assert 0.05 < float(fnn.mlp(params, x, activation=row.fn).std()) < 20
    small = fnn.mlp_init(KEY, [256] * 31, w_init=functools.partial(row.w_init, gain=0.5))
    assert float(fnn.mlp(small, x, activation=row.fn).std()) < 1e-3


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_stay_in_the_range_that_the_table_gives(name):
    row = ACTIVATIONS[name]
    x = jnp.linspace(-8, 8, 401).reshape(1, -1)
    y = np.asarray(row.fn(x))
    low, high = {
        "(0, 1)": (0, 1),
        "(-1, 1)": (-1, 1),
        "[0, inf)": (0, np.inf),
        "(-inf, inf)": (-np.inf, np.inf),
        "(0, 1), summing to 1": (0, 1),
    }[row.range]
    assert (y >= low).all()
    assert (y <= high).all()
    formula = {
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "tanh": lambda x: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)),
        "relu": lambda x: np.maximum(x, 0),
        "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
        "softmax": lambda x: np.exp(x) / np.exp(x).sum(),
    }[name]
    np.testing.assert_allclose(y, formula(np.asarray(x, np.float64)), rtol=2e-5, atol=1e-6)
    assert getattr(fnn.nn, name) is row.fn


def test_leaky_relu_takes_a_slope():
    assert float(fnn.nn.leaky_relu(jnp.float32(-2), 0.25)) == -0.5
