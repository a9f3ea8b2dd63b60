import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.params import paths
from tests.test_optimizers import GRADS, PARAMS, follow, runs_optax
from tests.test_training import KEY, LABELS, X, init, loss_fn

CLIPS = {
    "value": fnn.clip_by_value,
    "norm": fnn.clip_by_norm,
    "global": fnn.clip_by_global_norm,
    "adaptive": fnn.adaptive_clip,
}
every_clip = pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)


def clipped(transform, grads, params=None):
    params = grads if params is None else params
    return jax.jit(lambda g, p: transform.update(g, transform.init(p), p)[0])(grads, params)


# --- clipping -----------------------------------------------------------------------------------


@every_clip
@pytest.mark.parametrize(
    "dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
def test_under_the_limit_nothing_changes(clip, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        g = {"w": jnp.array([[0.1, -0.3], [0.25, 1e-7]], dtype), "b": jnp.array([0.0, -0.0], dtype)}
        params = jax.tree.map(jnp.ones_like, g)
        for limit in (10.0, float("inf")):
            chex.assert_trees_all_equal(clipped(clip(limit), g, params), g)


@every_clip
def test_limit_0_gives_zeros_and_zero_stays_zero(clip):
    g = {"w": jnp.array([[3.0, -4.0]]), "b": jnp.array([1.0])}
    zeros = jax.tree.map(jnp.zeros_like, g)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(clipped(clip(0.0), g)))
    for limit in (0.0, 1.0):
        chex.assert_trees_all_equal(clipped(clip(limit), zeros), zeros)


@every_clip
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_never_reaches_the_moments(clip, bad):
    g = {"w": jnp.array([[3.0, bad]]), "b": jnp.array([1.0])}
    params = jax.tree.map(jnp.ones_like, g)
    optimizer = fnn.chain(clip(1.0), fnn.adam(0.1))
    updates, state = optimizer.update(g, optimizer.init(params), params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state[1])))
    through = clip(1.0, nonfinite="pass")
    passed, _ = through.update(g, through.init(params), params)
    finite = bad != bad or clip is not fnn.clip_by_value  # an infinite value has a clipped one
    assert not jnp.isfinite(passed["w"]).all() or not finite


@every_clip
def test_derivatives_are_finite(clip):
    params = {"w": jnp.ones((2, 2))}
    for g in (jnp.zeros((2, 2)), jnp.array([[3.0, 0.0], [0.0, 4.0]])):
        jacobian = jax.jit(jax.jacobian(lambda g: clipped(clip(1.0), {"w": g}, params)["w"]))(g)
        assert jnp.isfinite(jacobian).all()


@every_clip
def test_clip_errors(clip):
    with pytest.raises(ValueError, match=r": (limit|max_norm) is -1\.0, expected a number >= 0"):
        clip(-1.0)
    with pytest.raises(ValueError, match="nonfinite is 'skip', expected 'zero' or 'pass'"):
        clip(1.0, nonfinite="skip")


def test_each_leaf_by_itself():
    g = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.3, 0.4])}
    out = clipped(fnn.clip_by_norm(1.0), g)
    chex.assert_trees_all_close(out, {"a": jnp.array([0.6, 0.8]), "b": g["b"]})
    huge = clipped(fnn.clip_by_norm(1.0), {"a": jnp.full(4, 1e20)})["a"]
    np.testing.assert_allclose(huge, 0.5, rtol=1e-6)


def test_the_norm_before_clipping_is_kept():
    transform = fnn.clip_by_global_norm(1.0)
    g = {"a": jnp.array([3.0, 4.0])}
    state = transform.init(g)
    _, after = transform.update(g, state)
    assert after["norm"] == 5
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, after)


@runs_optax
def test_adaptive_clipping_is_optaxs():
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3), "conv": (3, 3, 2, 5), "b": (7,)}
    g, p = (
        {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
        for _ in range(2)
    )
    for limit in (0.01, 0.5):
        theirs, _ = jax.jit(optax.adaptive_grad_clip(limit).update)(g, optax.EmptyState(), p)
        chex.assert_trees_all_close(clipped(fnn.adaptive_clip(limit), g, p), theirs, rtol=1e-5)
    with pytest.raises(ValueError, match=r"adaptive_clip: .* came without params"):
        fnn.adaptive_clip().update(g, ())


# --- keywords of Optax's ------------------------------------------------------------------------


@runs_optax
def test_keywords_reach_whoever_takes_them():
    """polyak_sgd needs the loss; nothing of fnn's does, and nothing stands in its way."""
    inner = fnn.by_path({"**/b": fnn.adam(0.1), "**": optax.polyak_sgd()})
    around = [
        fnn.chain(fnn.clip_by_value(9.0), fnn.clip_by_global_norm(9.0), optax.polyak_sgd()),
        fnn.chain(inner),
        fnn.keep_precision(inner, "master"),
    ]
    for optimizer in around:
        state = optimizer.init(PARAMS)
        small, _ = optimizer.update(GRADS, state, PARAMS, value=jnp.float32(0.1))
        large, _ = optimizer.update(GRADS, state, PARAMS, value=jnp.float32(0.2))
        chex.assert_trees_all_close(large["layer"]["w"], 2 * small["layer"]["w"], rtol=1e-5)
    for optimizer in (
        fnn.sgd(0.1),
        fnn.adam(0.1),
        fnn.freeze(),
        fnn.muon(0.1, others=fnn.adam(0.1)),
    ):
        optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS, value=jnp.float32(0.1))


# --- groups -------------------------------------------------------------------------------------


def test_each_group_has_its_optimizer():
    optimizer = fnn.by_path({"layer_0/*": fnn.freeze(), "**/b": fnn.sgd(0.5), "**": fnn.adam(0.1)})
    params = fnn.mlp_init(KEY, (4, 8, 3))
    params["layer_0"]["b"] = params["layer_0"]["b"].at[0].set(-0.0)
    step = fnn.make_train_step(loss_fn, optimizer)
    ts = fnn.train_init(params, optimizer)
    assert set(paths(ts.opt_state["**"]["m"])) == {"layer_1/w"}  # nobody else has moments
    assert ts.opt_state["layer_0/*"] == ()
    fit = jax.jit(lambda ts: fnn.fit(step, ts, (X, LABELS), KEY, epochs=3, batch_size=16))
    after, history = fit(ts)
    for old, new in zip(
        jax.tree.leaves(params["layer_0"]), jax.tree.leaves(after.params["layer_0"]), strict=True
    ):
        assert np.asarray(old).tobytes() == np.asarray(new).tobytes()
    assert (after.params["layer_1"]["w"] != params["layer_1"]["w"]).any()
    assert history["loss"][-1].mean() < history["loss"][0].mean()
    # The first update of the rest is that of each rule alone.
    grads = jax.jit(jax.grad(lambda p: loss_fn(p, (X, LABELS), None).mean()))(params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    chex.assert_trees_all_equal(updates["layer_1"]["b"], -0.5 * grads["layer_1"]["b"])
    adam = fnn.adam(0.1)
    alone, _ = adam.update(grads["layer_1"]["w"], adam.init(params["layer_1"]["w"]))
    chex.assert_trees_all_equal(updates["layer_1"]["w"], alone)


def test_decay_in_groups_knows_the_leaves_names():
    optimizer = fnn.by_path({"**": fnn.adamw(1.0, weight_decay=0.5)})
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(
        updates, {"layer": {"w": -0.5 * PARAMS["layer"]["w"], "b": jnp.zeros(2)}}
    )


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["layer/w"], r"by_path: no pattern of \['layer/w'\] matches parameter 'layer/b'"),
        (["**", "layer/w"], r"by_path: pattern 'layer/w' is left no parameter of \['layer/b', 'layer/w'\]"),
        (["**/c", "**"], r"by_path: pattern '\*\*/c' is left no parameter"),
    ],
)  # fmt: skip
def test_groups_are_complete(patterns, message):
    with pytest.raises(ValueError, match=message):
        fnn.by_path(dict.fromkeys(patterns, fnn.sgd(0.1))).init(PARAMS)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("**/b", "b", True),
        ("**/b", "a/c/b", True),
        ("**/b", "a/cb", False),
        ("*/b", "a/b", True),
        ("*/b", "a/c/b", False),
        ("a/**", "a/c/b", True),
        ("a/**", "ab/c", False),
        ("layer_*/w", "layer_12/w", True),
        ("**", "a/b", True),
        ("a.c", "abc", False),
    ],
)  # fmt: skip
def test_patterns(pattern, path, matches):
    assert fnn.params.path_matches(pattern, path) == matches


def test_masks_by_pattern():
    mask = fnn.params.matching(PARAMS, "**/w", "norm/*")
    assert mask == {"layer": {"w": True, "b": False}}
    optimizer = fnn.adamw(1.0, weight_decay=0.5, mask=lambda p: fnn.params.matching(p, "**/b"))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(updates["layer"]["b"], -0.5 * PARAMS["layer"]["b"])
    assert (updates["layer"]["w"] == 0).all()


def test_muon_takes_matrices_and_leaves_the_rest():
    optimizer = fnn.muon(0.02, others=fnn.adam(0.1))
    updates, state = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    assert set(paths(state["matrices"]["m"])) == {"layer/w"}
    adam, _ = fnn.adam(0.1).update(GRADS["layer"]["b"], fnn.adam(0.1).init(PARAMS["layer"]["b"]))
    chex.assert_trees_all_equal(updates["layer"]["b"], adam)
    with pytest.raises(
        ValueError, match=r"muon: parameter 'layer/b' has shape \(2,\), expected a matrix"
    ):
        fnn.muon(0.02).init(PARAMS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: fnn.muon(0.02, others=fnn.adamw(1e-3)),
        lambda: fnn.adafactor(0.02, smallest_factored=4),
    ],
    ids=["muon", "adafactor"],
)
def test_matrix_optimizers_train_and_keep_their_avals(make):
    optimizer = make()
    step = fnn.make_train_step(loss_fn, optimizer)
    ts = jax.jit(lambda: fnn.train_init(init(), optimizer))()
    after, history = jax.jit(
        lambda ts: fnn.fit(step, ts, (X, LABELS), KEY, epochs=5, batch_size=16)
    )(ts)
    assert jax.tree.map(jax.typeof, ts) == jax.tree.map(jax.typeof, after)
    assert history["loss"][-1].mean() < 0.9 * history["loss"][0].mean()
    zeros = jax.tree.map(jnp.zeros_like, ts.params)
    still, _ = jax.jit(optimizer.update)(zeros, ts.opt_state, zeros)
    assert all((u == 0).all() for u in jax.tree.leaves(still))


# --- half precision -----------------------------------------------------------------------------

HALVES = (jnp.bfloat16, jnp.float16)
TINY = {"w": jnp.full((64,), 0.01)}


def walk(optimizer, dtype, steps=1000):
    params = {"w": jnp.ones(64, dtype)}
    grads = jax.tree.map(lambda g: jnp.broadcast_to(g.astype(dtype), (steps, *g.shape)), TINY)
    return np.asarray(follow(optimizer, params, grads)["w"].astype(jnp.float32))


@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: d.__name__)
def test_half_precision_moves_under_tiny_updates(dtype):
    """1,000 steps of 1e-5 from 1: to 0.99, where rounding alone never leaves 1."""
    gradient = float(TINY["w"][0].astype(dtype))
    end = 1 - 1000 * 1e-3 * gradient
    assert (walk(fnn.sgd(1e-3), dtype) == 1).all()
    bit = float(jnp.finfo(dtype).eps)
    master = walk(fnn.keep_precision(fnn.sgd(1e-3), "master"), dtype)
    np.testing.assert_allclose(master[-1], end, atol=bit / 2)
    random = walk(fnn.keep_precision(fnn.sgd(1e-3), "stochastic", KEY), dtype)
    np.testing.assert_allclose(
        random[-1].mean(), end, atol=3 * np.sqrt(1000 * 1e-5 * bit / 64) + 1e-4
    )
    assert len(np.unique(random[-1])) > 1


@pytest.mark.parametrize("how", ["master", "stochastic"])
def test_kept_precision_follows_float32_under_adam(how):
    optimizer = fnn.keep_precision(fnn.adam(1e-3), how, KEY if how == "stochastic" else None)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    grads = jax.tree.map(lambda g: jnp.stack([g.astype(jnp.bfloat16)] * 300), GRADS)
    half = follow(optimizer, params, grads)
    chex.assert_type(jax.tree.leaves(half), jnp.bfloat16)
    exact = follow(
        fnn.adam(1e-3),
        jax.tree.map(lambda p: p.astype("float32"), params),
        jax.tree.map(lambda g: g.astype("float32"), grads),
    )
    tolerance = {"master": 0.004, "stochastic": 0.06}[how]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a[-1].astype("float32"), b[-1], rtol=tolerance, atol=tolerance
        ),
        half,
        exact,
    )
    state = optimizer.init(params)
    _, after = jax.eval_shape(optimizer.update, params, state, params)
    assert after == jax.eval_shape(lambda state: state, state)


def test_random_rounding_is_fair():
    from fnn.half_precision import _round_at_random

    for dtype in HALVES:
        gap = float(jnp.finfo(dtype).eps)
        x = jnp.full(200_000, 1 + 0.3 * gap)
        rounded = np.asarray(_round_at_random(KEY, x, dtype).astype("float32"))
        assert set(np.unique(rounded)) == {1.0, 1.0 + gap}
        assert abs((rounded > 1).mean() - 0.3) < 0.005
        np.testing.assert_array_equal(_round_at_random(KEY, jnp.ones(9), dtype), np.ones(9))


def test_float32_is_left_as_it_is():
    for how, key in (("master", None), ("stochastic", KEY)):
        ours = follow(
            fnn.keep_precision(fnn.adam(0.1), how, key),
            PARAMS,
            jax.tree.map(lambda g: jnp.stack([g] * 5), GRADS),
        )
        plain = follow(fnn.adam(0.1), PARAMS, jax.tree.map(lambda g: jnp.stack([g] * 5), GRADS))
        chex.assert_trees_all_equal(ours, plain)


def test_keep_precision_errors():
    with pytest.raises(ValueError, match="keep_precision: how is 'exact', expected 'master' or"):
        fnn.keep_precision(fnn.sgd(0.1), "exact")
    for how, key in (("stochastic", None), ("master", KEY)):
        with pytest.raises(ValueError, match="keep_precision: stochastic rounding needs a key"):
            fnn.keep_precision(fnn.sgd(0.1), how, key)
    with pytest.raises(ValueError, match=r"keep_precision: .* came without params"):
        fnn.keep_precision(fnn.sgd(0.1), "master").update(GRADS, ())
