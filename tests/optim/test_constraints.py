import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.optim import apply_updates, max_norm
from tests.optimizer_paths import GRADS, PARAMS, runs_optax


def norms(w):
    """Of each unit, in float64."""
    w = np.asarray(w, np.float64)
    return np.sqrt((w**2).sum(tuple(range(w.ndim - 1)))) if w.ndim > 1 else np.sqrt((w**2).sum())


def projected(w, limit):
    """Keras's MaxNorm without its 1e-7, in float64."""
    w, norm = np.asarray(w, np.float64), norms(w)
    return w * np.clip(norm, 0, limit) / np.where(norm > 0, norm, 1)


def drawn(dtype=jnp.float32, scale=1.0):
    rng = np.random.default_rng(0)
    shapes = {
        "dense": {"w": (5, 4), "b": (4,)},
        "conv": {"w": (3, 3, 2, 6)},
        "norm": {"scale": (4,)},
    }
    return jax.tree.map(
        lambda s: jnp.asarray(scale * rng.normal(size=s), dtype),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )


@jax.jit
def moved(params, updates, limit):
    optimizer = max_norm(limit)
    updates, _ = optimizer.update(updates, optimizer.init(params), params)
    return apply_updates(params, updates), updates


@pytest.mark.parametrize("limit", [0.5, 2.0, 4.0])
def test_after_the_update_each_unit_is_projected(limit):
    params, updates = drawn(), drawn(scale=0.3)
    found, out = moved(params, updates, limit)
    plain = jax.tree.map(lambda p, u: np.asarray(p, float) + np.asarray(u, float), params, updates)
    for layer in ("dense", "conv"):
        np.testing.assert_allclose(
            found[layer]["w"], projected(plain[layer]["w"], limit), rtol=1e-5, atol=1e-6
        )
        assert (norms(found[layer]["w"]) <= limit * (1 + 1e-6)).all()
    chex.assert_trees_all_equal(out["dense"]["b"], updates["dense"]["b"])
    chex.assert_trees_all_equal(out["norm"], updates["norm"])


def test_within_the_limit_every_bit_stays():
    params, updates = drawn(), drawn(scale=0.3)
    for limit in (100.0, float("inf")):
        chex.assert_trees_all_equal(moved(params, updates, limit)[1], updates)
    w = jnp.array([[3.0, 0.0], [4.0, 0.0]])  # norms of exactly 5 and 0
    still = jax.tree.map(jnp.zeros_like, {"w": w})
    chex.assert_trees_all_equal(moved({"w": w}, still, 5.0)[0], {"w": w})


def test_zero_units_and_limit_0():
    zeros = {"w": jnp.zeros((3, 2))}
    for limit in (0.0, 1.0):
        found, _ = moved(zeros, zeros, limit)
        chex.assert_trees_all_equal(found, zeros)
    params = {"w": jnp.ones((3, 2))}
    chex.assert_trees_all_equal(moved(params, params, 0.0)[0], zeros)
    empty = {"w": jnp.zeros((0, 2))}
    chex.assert_trees_all_equal(moved(empty, empty, 1.0)[0], empty)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16, jnp.float16])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params, updates = drawn(dtype, 2.0), drawn(dtype, 0.3)
        found, out = moved(params, updates, 1.0)
        chex.assert_type(jax.tree.leaves((found, out)), dtype)
        eps = float(jnp.finfo(dtype).eps)
        assert (norms(found["conv"]["w"]) <= 1 + 4 * eps).all()


def test_half_precision_is_summed_in_float32():
    params = {"w": jnp.ones((2000, 1), jnp.bfloat16)}  # the norm is 44.7, and 16 if summed in half
    found, _ = moved(params, jax.tree.map(jnp.zeros_like, params), 20.0)
    np.testing.assert_allclose(norms(found["w"]), 20, rtol=0.01)


def test_large_and_small_norms_and_what_is_not_finite():
    w = jnp.array([[1e30, 1e-30, jnp.nan, jnp.inf], [1e30, 1e-30, 1.0, 1.0]])
    for limit, unit in ((1e29, 0), (1e-31, 1)):  # the squares overflow, vanish
        found, _ = moved({"w": w}, {"w": jnp.zeros((2, 4))}, limit)
        np.testing.assert_allclose(norms(found["w"])[unit], limit, rtol=1e-5)
    np.testing.assert_array_equal(jnp.isfinite(found["w"]).all(0), [True, True, False, False])
    np.testing.assert_array_equal(found["w"][:, 3], w[:, 3])  # not inf - inf


def test_masks_and_by_path():
    params, updates = drawn(), drawn(scale=0.3)
    only_dense = fnn.params.matching(params, "dense/*")
    by_mask = max_norm(0.1, mask=only_dense)
    out, _ = jax.jit(by_mask.update)(updates, by_mask.init(params), params)
    new = apply_updates(params, out)
    np.testing.assert_allclose(norms(new["dense"]["w"]), 0.1, rtol=1e-5)
    np.testing.assert_allclose(norms(new["dense"]["b"]), 0.1, rtol=1e-5)  # a leaf is one unit
    chex.assert_trees_all_equal((out["conv"], out["norm"]), (updates["conv"], updates["norm"]))

    grouped = fnn.by_path({"conv/w": max_norm(0.1), "**": optax.identity()})
    out, _ = jax.jit(grouped.update)(updates, grouped.init(params), params)
    new = apply_updates(params, out)
    np.testing.assert_allclose(norms(new["conv"]["w"]), 0.1, rtol=1e-5)
    chex.assert_trees_all_equal(out["dense"], updates["dense"])


@pytest.mark.parametrize("rule", [fnn.sgd(0.5), fnn.adam(0.1), optax.adam(0.1)])
def test_at_the_end_of_a_chain_a_run_stays_within_the_limit(rule):
    optimizer = fnn.chain(rule, max_norm(0.7))
    target = jnp.full((3, 2), 2.0)

    def loss_fn(params, batch, key):
        return jnp.sum((params["w"] - batch) ** 2, (-2, -1))

    step = fnn.make_train_step(loss_fn, optimizer)

    @jax.jit
    def run(params):
        def body(ts, _):
            ts, _ = step.update(ts, target[None], jax.random.key(0))
            return ts, ts.params["w"]

        return jax.lax.scan(body, step.init(params), None, length=50)[1]

    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
        ws = run({"w": jnp.zeros((3, 2))})
    assert all((norms(w) <= 0.7 * (1 + 1e-6)).all() for w in ws)
    # The constrained optimum: the target's direction at the limit.
    np.testing.assert_allclose(ws[-1], np.full((3, 2), 0.7 / np.sqrt(3)), rtol=1e-5)


def test_limits_side_by_side():
    params, updates = drawn(), drawn(scale=0.3)
    together, _ = jax.vmap(moved, (None, None, 0))(params, updates, jnp.array([0.5, 2.0]))
    for i, limit in enumerate((0.5, 2.0)):
        alone, _ = moved(params, updates, limit)
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, rtol=1e-6
        )


@runs_optax
def test_it_chains_with_optax():
    ours = optax.chain(optax.sgd(0.1), max_norm(0.5))
    updates, _ = jax.jit(ours.update)(GRADS, ours.init(PARAMS), PARAMS)
    new = optax.apply_updates(PARAMS, updates)
    assert (norms(new["layer"]["w"]) <= 0.5 * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: max_norm(-1.0), ValueError, r"max_norm: limit is -1\.0, expected a number >= 0"),
        (lambda: max_norm("1"), TypeError, "max_norm: limit is '1', expected a number"),
        (lambda: max_norm(1.0, mask="w"), TypeError, "max_norm: mask has 'w'"),
        (lambda: max_norm(1.0).update(GRADS, ()), ValueError, "max_norm: .*params"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
