from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fnn
from fnn.nn import weight_norm, weight_norm_init
from tests.nn.drawn import normal, params_of

LAYERS = {
    "dense": (fnn.dense, params_of(fnn.dense_init, 5, 3), normal(4, 5)),
    "conv": (fnn.conv, params_of(fnn.conv_init, 2, 3, 3), normal(2, 6, 6, 2)),
}
direction = jax.jit(lambda v, g: weight_norm({"v": v, "g": g})["w"])


def formula(v, g):
    """g v / norm(v) of each unit, in float64."""
    v, g = np.asarray(v, np.float64), np.asarray(g, np.float64)
    return g * v / np.sqrt((v**2).sum(tuple(range(v.ndim - 1)), keepdims=True))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_given_weights_is_that_layer(name):
    layer, params, x = LAYERS[name]
    normed = weight_norm_init(params)
    w = np.asarray(params["w"], np.float64)
    expected = np.sqrt((w**2).sum(tuple(range(w.ndim - 1))))
    np.testing.assert_allclose(normed["g"], expected, rtol=1e-6)
    assert normed.keys() == {"v", "g", "b"}
    chex.assert_trees_all_close(weight_norm(normed), params, rtol=1e-6)
    chex.assert_trees_all_close(layer(weight_norm(normed), x), layer(params, x), atol=1e-5)


def test_a_complex_weight_has_a_real_length():
    w = lax.complex(normal(5, 3), normal(5, 3, seed=1))
    normed = weight_norm_init({"w": w})
    np.testing.assert_allclose(normed["g"], np.linalg.norm(w, axis=0), rtol=1e-6)
    assert normed["g"].dtype == jnp.float32
    np.testing.assert_allclose(weight_norm(normed)["w"], w, rtol=1e-5)


def test_w_is_the_formula_and_does_not_depend_on_the_length_of_v():
    v, g = normal(3, 3, 2, 4), normal(4, seed=1)
    for length in (1, 1e-30, 1e30):  # the squares of the last two are 0 and inf
        found = direction(v * np.float32(length), g)
        np.testing.assert_allclose(found, formula(v, g), rtol=1e-5)


def test_gradients_are_the_papers_and_orthogonal_to_v():
    """Equation 3: dg = grad v / |v|, dv = g / |v| (grad - dg v / |v|)."""
    shapes = (5, 3), (3,), (5, 3)
    v, g, grad = (np.asarray(normal(*s, seed=i), np.float64) for i, s in enumerate(shapes))
    norm = np.sqrt((v**2).sum(0))
    dg = (grad * v / norm).sum(0)
    dv = g / norm * (grad - dg * v / norm)
    with jax.enable_x64(True):
        _, pullback = jax.vjp(direction, *map(jnp.asarray, (v, g)))
        found = pullback(jnp.asarray(grad))
    np.testing.assert_allclose(found[0], dv, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[1], dg, rtol=1e-10)
    np.testing.assert_allclose((np.asarray(found[0]) * v).sum(0), 0, atol=1e-12)


def test_at_zero_all_is_finite():
    v, g = jnp.zeros((4, 2)).at[:, 1].set(1.0), jnp.ones(2)

    @jax.jit
    def derivatives(v, g):
        def loss(v, g):
            return jnp.sin(weight_norm({"v": v, "g": g})["w"]).sum()

        return (
            jax.grad(loss, (0, 1))(v, g),
            jax.jvp(loss, (v, g), (v + 1, g)),
            jax.hessian(loss)(v, g),
        )

    found = derivatives(v, g)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert not found[0][0][:, 0].any()
    np.testing.assert_array_equal(direction(v, g)[:, 0], 0)
    zero = weight_norm_init({"w": jnp.zeros((3, 2))})
    np.testing.assert_array_equal(zero["g"], 0)
    assert weight_norm(weight_norm_init({"w": jnp.zeros((0, 2))}))["w"].shape == (0, 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_computed_in_float32(dtype):
    v = jnp.ones((2000, 2), dtype)  # in bfloat16 a sum of ones stops at 256
    params = weight_norm_init({"w": v})
    assert params["g"].dtype == params["v"].dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(np.asarray(params["g"], float), np.sqrt(2000), rtol=4e-3)
    w = weight_norm(params)["w"]
    assert w.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(np.asarray(w, float), 1, rtol=8e-3)


def test_a_net_with_weight_norm_trains():
    x, y = normal(64, 3), normal(64, 3).sum(1, keepdims=True)
    params = {
        name: weight_norm_init(params_of(fnn.dense_init, *sizes))
        for name, sizes in {"hidden": (3, 16), "out": (16, 1)}.items()
    }

    def loss_fn(params, batch, key):
        x, y = batch
        h = fnn.tanh(fnn.dense(weight_norm(params["hidden"]), x))
        return fnn.squared_error(fnn.dense(weight_norm(params["out"]), h), y)[:, 0]

    step = fnn.make_train_step(loss_fn, fnn.adam(1e-2))
    run = partial(fnn.fit, step, epochs=40, batch_size=32)
    _, history = jax.jit(run)(step.init(params), (x, y), jax.random.key(0))
    assert history["loss"][-1].mean() < 0.1 * history["loss"][0].mean()
    assert fnn.params.decayed(params)["hidden"] == {"v": True, "g": False, "b": False}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: weight_norm_init({"v": jnp.ones((2, 2))}), ValueError, r"weight_norm_init: params has \['v'\], expected a dict with \['w'\]"),
        (lambda: weight_norm_init({"w": jnp.ones(2)}), ValueError, r"weight_norm_init: w has shape \(2,\), expected \[..., in, out\]"),
        (lambda: weight_norm_init({"w": jnp.ones((2, 2), int)}), TypeError, "weight_norm_init: x is int32"),
        (lambda: weight_norm_init({"w": jnp.ones((2, 2)), "g": jnp.ones(9)}), ValueError, "weight_norm_init: params has 'g', expected none"),
        (lambda: weight_norm({"v": jnp.ones((2, 2)), "g": jnp.ones(2), "w": jnp.ones(3)}), ValueError, "weight_norm: params has 'w', expected none"),
        (lambda: weight_norm({"w": jnp.ones((2, 2))}), ValueError, "weight_norm: params has"),
        (lambda: weight_norm({"v": jnp.ones((2, 3)), "g": jnp.ones(2)}), ValueError, r"weight_norm: g has shape \(2,\), but v of shape \(2, 3\) expects \(3,\)"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
