import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from tests.optimizer_paths import GRADS, runs_optax

CLIPS = {
    "value": fnn.optim.clip_by_value,
    "norm": fnn.optim.clip_by_norm,
    "global": fnn.clip_by_global_norm,
    "adaptive": fnn.optim.adaptive_clip,
}
every_clip = pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]


def clipped(transform, grads, params):
    return transform.update(grads, transform.init(params), params)[0]


@jax.jit
def clip_globally(grads, max_norm):
    return clipped(fnn.clip_by_global_norm(max_norm), grads, grads)


@jax.jit
def clip_in_every_way(limit, grads, params):
    return {name: clipped(clip(limit), grads, params) for name, clip in CLIPS.items()}


# --- each of them -------------------------------------------------------------------------------


def test_under_the_limit_nothing_changes():
    def grads(dtype):
        w = jnp.array([[0.1, -0.3], [0.25, 1e-7]], dtype)
        return {"w": w, "b": jnp.array([0.0, -0.0], dtype)}

    @jax.jit
    def run(limit, trees):
        ones = jax.tree.map(jnp.ones_like, trees)
        return [clip_in_every_way(limit, g, p) for g, p in zip(trees, ones, strict=True)]

    with jax.enable_x64(True):
        trees = [grads(dtype) for dtype in DTYPES]
        for limit in (10.0, float("inf")):
            for g, clips in zip(trees, run(limit, trees), strict=True):
                for out in clips.values():
                    chex.assert_trees_all_equal(out, g)


def test_limit_0_gives_zeros_and_zero_stays_zero():
    g = {"w": jnp.array([[3.0, -4.0]]), "b": jnp.array([1.0])}
    zeros = jax.tree.map(jnp.zeros_like, g)
    for limit, grads in ((0.0, g), (0.0, zeros), (1.0, zeros)):
        for out in clip_in_every_way(limit, grads, grads).values():
            assert all((leaf == 0).all() for leaf in jax.tree.leaves(out))


@every_clip
def test_what_is_not_finite_never_reaches_the_moments(clip):
    optimizer, through = fnn.chain(clip(1.0), fnn.adam(0.1)), clip(1.0, nonfinite="pass")

    @jax.jit
    def run(g):
        params = jax.tree.map(jnp.ones_like, g)
        updates, state = optimizer.update(g, optimizer.init(params), params)
        return (updates, state[1]), clipped(through, g, params)

    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        g = {"w": jnp.array([[3.0, bad]]), "b": jnp.array([1.0])}
        after, passed = run(g)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
        finite = bad != bad or clip is not fnn.optim.clip_by_value  # which clips an infinite value
        assert not jnp.isfinite(passed["w"]).all() or not finite


@every_clip
def test_derivatives_are_finite(clip):
    params = {"w": jnp.ones((2, 2))}
    jacobian = jax.jit(jax.jacobian(lambda g: clipped(clip(1.0), {"w": g}, params)["w"]))
    for g in (jnp.zeros((2, 2)), jnp.array([[3.0, 0.0], [0.0, 4.0]])):
        assert jnp.isfinite(jacobian(g)).all()


@every_clip
def test_errors(clip):
    with pytest.raises(ValueError, match=r": (limit|max_norm) is -1\.0, expected a number >= 0"):
        clip(-1.0)
    with pytest.raises(ValueError, match="nonfinite is 'skip', expected 'zero' or 'pass'"):
        clip(1.0, nonfinite="skip")


# --- the global norm ----------------------------------------------------------------------------


def test_clip_by_global_norm():
    g = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}

    def tree(a, b):
        return {"a": jnp.array([a]), "b": jnp.array([b])}

    chex.assert_trees_all_equal(clip_globally(g, 5.0), g)
    chex.assert_trees_all_equal(clip_globally(g, float("inf")), g)
    chex.assert_trees_all_equal(clip_globally(g, 0.0), tree(0.0, 0.0))
    chex.assert_trees_all_close(clip_globally(g, 1.0), tree(0.6, 0.8))
    for max_norm in (0.0, 1.0):
        chex.assert_trees_all_equal(clip_globally(tree(0.0, 0.0), max_norm), tree(0.0, 0.0))
    huge, tiny = clip_globally(tree(3e20, 4e20), 1.0), clip_globally(tree(3e-25, 4e-25), 1e-30)
    chex.assert_trees_all_close(huge, tree(0.6, 0.8))
    chex.assert_trees_all_close(tiny, tree(6e-31, 8e-31))
    # The ratio 1 / 2.5e38 is no normal number of float32, and limits of 0 divide nothing by 0.
    for g, limit in ((5e37, 1.0), (5e29, 1e-9), (5e-10, 0.0)):
        found = clip_globally(tree(3 * g, 4 * g), limit)
        chex.assert_trees_all_close(found, tree(0.6 * limit, 0.8 * limit), rtol=1e-6)
    half = clip_globally({"a": jnp.full(4, 300, jnp.float16)}, 1.0)["a"]
    chex.assert_trees_all_equal(half, jnp.full(4, 0.5, jnp.float16))


def test_a_python_number_is_the_traced_one():
    chex.assert_trees_all_equal(
        jax.jit(lambda g: clipped(fnn.clip_by_global_norm(1.0), g, g))(GRADS),
        clip_globally(GRADS, 1.0),
    )


def test_clipping_spreads_nothing():
    optimizer = fnn.chain(fnn.clip_by_global_norm(1.0), fnn.adam(0.1))

    @jax.jit
    def run(g):
        whole, leaf = (
            clipped(clip(1.0, nonfinite="pass"), g, g)
            for clip in (fnn.clip_by_global_norm, fnn.optim.clip_by_norm)
        )
        return whole, leaf, optimizer.update(g, optimizer.init(g), g)[1]

    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        g = {"a": jnp.array([1.0, bad]), "b": jnp.array([30.0])}
        whole, leaf, state = run(g)
        chex.assert_trees_all_equal(whole["a"], g["a"])
        chex.assert_trees_all_equal(leaf["a"], g["a"])
        chex.assert_trees_all_equal(clip_globally(g, 1.0), jax.tree.map(jnp.zeros_like, g))
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state[1]))
        assert not np.isfinite(state[0]["norm"])  # for the log


def test_clipping_has_derivatives():
    def clip(g, max_norm=1.0):
        return clip_globally(g, max_norm)

    by_g = jax.jit(jax.jacobian(clip))
    by_norm = jax.jit(jax.grad(lambda max_norm, g: clip(g, max_norm).sum()))
    for g in (jnp.zeros(3), jnp.array([3.0, 4.0, 0.0]), jnp.array([3e37, 4e37, 0.0])):
        assert jnp.isfinite(by_g(g)).all()
        for max_norm in (0.0, 1.0):
            assert jnp.isfinite(by_norm(max_norm, g))


def test_the_derivatives_are_those_of_g_over_its_norm():
    g = np.array([3.0, 4.0, 0.0])

    def exact(g):
        unit, norm = g / np.linalg.norm(g), np.linalg.norm(g)
        return (np.eye(3) - np.outer(unit, unit)) / norm

    shifts = 1e-5 * np.eye(3)
    second = np.stack([(exact(g + s) - exact(g - s)) / 2e-5 for s in shifts], axis=-1)

    def clip(g):
        return clip_globally(g, 1.0)

    @jax.jit
    def derivatives(g):
        return (jax.jacfwd(clip)(g), jax.jacrev(clip)(g)), (
            jax.jacfwd(jax.jacrev(clip))(g),
            jax.jacrev(jax.jacfwd(clip))(g),
        )

    with jax.enable_x64(True):
        once, twice = derivatives(jnp.asarray(g))
    for found in once:
        np.testing.assert_allclose(found, exact(g), rtol=1e-12, atol=1e-14)
    for found in twice:
        np.testing.assert_allclose(found, second, rtol=1e-8, atol=1e-9)


@runs_optax
def test_clip_is_optaxs_where_nothing_is_odd():
    theirs, _ = jax.jit(optax.clip_by_global_norm(1.0).update)(GRADS, optax.EmptyState())
    chex.assert_trees_all_close(clip_globally(GRADS, 1.0), theirs, rtol=1e-6)


def test_the_norm_before_clipping_is_kept():
    transform = fnn.clip_by_global_norm(1.0)
    g = {"a": jnp.array([3.0, 4.0])}
    state = transform.init(g)
    _, after = jax.jit(transform.update)(g, state)
    assert after["norm"] == 5
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, after)


# --- the others ---------------------------------------------------------------------------------


def test_clip_by_value():
    g = {"a": jnp.array([-3.0, 0.2, jnp.inf], jnp.float32), "b": jnp.array([5.0], jnp.bfloat16)}
    out, _ = fnn.optim.clip_by_value(0.5).update(g, ())
    chex.assert_trees_all_equal(
        out, {"a": jnp.array([-0.5, 0.2, 0.5]), "b": jnp.array([0.5], jnp.bfloat16)}
    )


def test_each_leaf_by_itself():
    clip = jax.jit(lambda g: clipped(fnn.optim.clip_by_norm(1.0), g, g))
    g = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.3, 0.4])}
    chex.assert_trees_all_close(clip(g), {"a": jnp.array([0.6, 0.8]), "b": g["b"]})
    huge = clip({"a": jnp.array([3e20, 4e20]), "b": g["b"]})
    np.testing.assert_allclose(huge["a"], [0.6, 0.8], rtol=1e-6)


@runs_optax
def test_adaptive_clipping_is_optaxs():
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3), "conv": (3, 3, 2, 5), "b": (7,)}
    g, p = (
        {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
        for _ in range(2)
    )

    @jax.jit
    def both(limit, g, p):
        theirs, _ = optax.adaptive_grad_clip(limit).update(g, optax.EmptyState(), p)
        return clipped(fnn.optim.adaptive_clip(limit), g, p), theirs

    for limit in (0.01, 0.5):
        chex.assert_trees_all_close(*both(limit, g, p), rtol=1e-5)
    with pytest.raises(ValueError, match=r"adaptive_clip: .* came without params"):
        fnn.optim.adaptive_clip().update(g, ())
