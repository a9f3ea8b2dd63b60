import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.optim._half_precision import _round_at_random
from tests.nets import KEY
from tests.optimizer_paths import GRADS, PARAMS, follow_each, path, times

HALVES = (jnp.bfloat16, jnp.float16)


def test_half_precision_moves_under_tiny_updates():
    """1,000 steps of 1e-5 from 1: to 0.99, where rounding alone never leaves 1."""
    optimizers = {
        "plain": fnn.sgd(1e-3),
        "master": fnn.keep_precision(fnn.sgd(1e-3), "master"),
        "stochastic": fnn.keep_precision(fnn.sgd(1e-3), "stochastic", key=KEY),
    }
    params = {dtype.__name__: jnp.ones(64, dtype) for dtype in HALVES}
    grads = {dtype.__name__: jnp.full((1000, 64), 0.01, dtype) for dtype in HALVES}
    paths = follow_each(optimizers, params, grads)
    for dtype in HALVES:
        plain, master, random = (
            np.asarray(paths[how][dtype.__name__], np.float32) for how in optimizers
        )
        bit = float(jnp.finfo(dtype).eps)
        end = 1 - 1000 * 1e-3 * float(grads[dtype.__name__][0, 0])
        assert (plain == 1).all()
        np.testing.assert_allclose(master[-1], end, atol=bit / 2)
        np.testing.assert_allclose(
            random[-1].mean(), end, atol=3 * np.sqrt(1000 * 1e-5 * bit / 64) + 1e-4
        )
        assert len(np.unique(random[-1])) > 1


def test_kept_precision_follows_float32_under_adam():
    optimizers = {
        "master": fnn.keep_precision(fnn.adam(1e-3), "master"),
        "stochastic": fnn.keep_precision(fnn.adam(1e-3), "stochastic", key=KEY),
    }
    params, grads = (
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree) for tree in (PARAMS, times(*[1] * 300))
    )

    @jax.jit
    def paths(params, grads):
        half = {how: path(o, params, grads) for how, o in optimizers.items()}
        single = (jax.tree.map(lambda x: x.astype("float32"), tree) for tree in (params, grads))
        return half, path(fnn.adam(1e-3), *single)

    halves, exact = paths(params, grads)
    chex.assert_type(jax.tree.leaves(halves), jnp.bfloat16)
    for how, tolerance in {"master": 0.004, "stochastic": 0.06}.items():
        for a, b in zip(*map(jax.tree.leaves, (halves[how], exact)), strict=True):
            np.testing.assert_allclose(
                a[-1].astype("float32"), b[-1], rtol=tolerance, atol=tolerance
            )
        state = jax.eval_shape(optimizers[how].init, params)
        _, after = jax.eval_shape(optimizers[how].update, params, state, params)
        assert after == state


def test_random_rounding_is_fair():
    for dtype in HALVES:
        rounded = jax.jit(lambda x, dtype=dtype: _round_at_random(KEY, x, dtype))
        gap = float(jnp.finfo(dtype).eps)
        between = np.asarray(rounded(jnp.full(200_000, 1 + 0.3 * gap)).astype("float32"))
        assert set(np.unique(between)) == {1.0, 1.0 + gap}
        assert abs((between > 1).mean() - 0.3) < 0.005
        np.testing.assert_array_equal(rounded(jnp.ones(200_000)), np.ones(200_000))


def test_float32_is_left_as_it_is():
    optimizers = {
        "plain": fnn.adam(0.1),
        "master": fnn.keep_precision(fnn.adam(0.1), "master"),
        "stochastic": fnn.keep_precision(fnn.adam(0.1), "stochastic", key=KEY),
    }
    paths = follow_each(optimizers, PARAMS, times(1, 1, 1, 1, 1))
    chex.assert_trees_all_equal(paths["master"], paths["plain"])
    chex.assert_trees_all_equal(paths["stochastic"], paths["plain"])


def test_errors():
    with pytest.raises(ValueError, match="keep_precision: how is 'exact', expected 'master' or"):
        fnn.keep_precision(fnn.sgd(0.1), "exact")
    for how, key in (("stochastic", None), ("master", KEY)):
        with pytest.raises(ValueError, match="keep_precision: stochastic rounding needs a key"):
            fnn.keep_precision(fnn.sgd(0.1), how, key=key)
    with pytest.raises(ValueError, match=r"keep_precision: .* came without params"):
        fnn.keep_precision(fnn.sgd(0.1), "master").update(GRADS, ())
