"""Complex parameters, the dtype of first moments and Nesterov's Adam: as Optax has them."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from tests.optimizer_paths import follow_each

STEPS = 12
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def drawn(*shape):
    return jnp.asarray(normal(*shape) + 1j * normal(*shape))


PARAMS = {"w": drawn(3, 4), "b": drawn(4)}
GRADS = {"w": drawn(STEPS, 3, 4), "b": drawn(STEPS, 4)}
GRADS["b"] = GRADS["b"].at[:, 0].set(0)
RULES = {
    "sgd": (fnn.sgd(0.1), optax.sgd(0.1)),
    "momentum": (fnn.momentum(0.1), optax.sgd(0.1, momentum=0.9)),
    "nesterov": (fnn.nesterov(0.1), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "adagrad": (fnn.adagrad(0.1), optax.adagrad(0.1)),
    "rmsprop": (fnn.rmsprop(0.1), optax.rmsprop(0.1)),
    "centered": (
        fnn.rmsprop(0.1, centered=True, momentum=0.9),
        optax.rmsprop(0.1, centered=True, momentum=0.9),
    ),
    "adam": (fnn.adam(0.1), optax.adam(0.1)),
    "amsgrad": (fnn.adam(0.1, amsgrad="corrected"), optax.amsgrad(0.1)),
    "adamw": (fnn.adamw(0.1, weight_decay=0.1, mask=True), optax.adamw(0.1, weight_decay=0.1)),
    "nadam": (fnn.nadam(0.1), optax.nadam(0.1)),
    "lion": (fnn.lion(0.1, mask=True), optax.lion(0.1)),
    "adafactor": (
        fnn.adafactor(0.1, smallest_factored=2),
        optax.adafactor(0.1, min_dim_size_to_factor=2),
    ),
    "clip": (
        fnn.chain(fnn.clip_by_global_norm(1.0), fnn.sgd(0.1)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    ),
    "L2": (
        fnn.chain(fnn.optim.add_weight_decay(0.1, True), fnn.sgd(0.1)),
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
    ),
}


def test_complex_parameters_follow_optaxs_path():
    ours = follow_each({name: pair[0] for name, pair in RULES.items()}, PARAMS, GRADS)
    with jax.numpy_dtype_promotion("standard"):
        theirs = follow_each({name: pair[1] for name, pair in RULES.items()}, PARAMS, GRADS)
    # Optax's Adam is off by up to 2e-5 of a step.
    chex.assert_trees_all_close(ours, theirs, rtol=3e-5, atol=2e-5)
    assert all(jnp.iscomplexobj(path["w"]) for path in ours.values())


def test_a_linear_rule_is_that_of_the_two_parts():
    def parts(tree):
        return {"re": jax.tree.map(jnp.real, tree), "im": jax.tree.map(jnp.imag, tree)}

    linear = {name: RULES[name][0] for name in ("sgd", "momentum", "nesterov", "L2")}
    linear["average"] = fnn.averaged(fnn.sgd(0.1))
    linear["master"] = fnn.keep_precision(fnn.momentum(0.1), "master")
    whole = follow_each(linear, PARAMS, GRADS)
    split = follow_each(linear, parts(PARAMS), parts(GRADS))
    for name, path in whole.items():
        chex.assert_trees_all_close(parts(path), split[name], rtol=1e-5, atol=1e-6)


def test_second_moments_of_complex_parameters_are_real_and_avals_stay():
    for name, (optimizer, _) in RULES.items():
        state = jax.eval_shape(optimizer.init, PARAMS)
        updates, after = jax.eval_shape(optimizer.update, PARAMS, state, PARAMS)
        assert state == after, name
        chex.assert_trees_all_equal_dtypes(updates, PARAMS)
    assert fnn.adam(0.1).init(PARAMS)["nu"]["w"].dtype == jnp.float32


def test_norms_and_clips_of_complex_gradients():
    g = {"a": jnp.array([3 + 4j])}
    assert fnn.params.global_norm(g) == 5
    assert fnn.params.global_norm({"a": jnp.array([3e30 + 4e30j])}) == pytest.approx(5e30)
    expected = {"a": jnp.array([0.3 + 0.4j])}
    clips = fnn.clip_by_global_norm(0.5), fnn.optim.clip_by_norm(0.5), fnn.optim.adaptive_clip(0.1)
    for clip in clips:
        clipped, _ = clip.update(g, clip.init(g), g)
        chex.assert_trees_all_close(clipped, expected, rtol=1e-6)
    infinite = {"a": jnp.array([complex(jnp.inf, 1.0)])}
    passed, _ = fnn.optim.clip_by_norm(0.5, nonfinite="pass").update(infinite, (), g)
    chex.assert_trees_all_equal(passed, infinite)
    with pytest.raises(TypeError, match="clip_by_value: a gradient is complex64, expected real"):
        fnn.optim.clip_by_value(1.0).update(g, (), g)
    with pytest.raises(TypeError, match="apply_updates: an update is complex64, but its parameter"):
        fnn.apply_updates({"a": jnp.ones(1)}, g)


def test_complex_weights_are_pruned_by_their_distance_from_0():
    params = {"w": jnp.array([[3 + 4j, 0.1 - 6j], [-2 + 0j, 1 + 1j]])}
    mask = fnn.pruning.magnitude_mask(params, 0.5)
    assert mask["w"].tolist() == [[True, True], [False, False]]


def test_orthogonalize_gives_unitary_columns():
    x = drawn(6, 3)
    values = np.linalg.svd(np.asarray(fnn.optim.orthogonalize(x)), compute_uv=False)
    assert ((values > 0.6) & (values < 1.3)).all()


# --- mu_dtype ---------------------------------------------------------------------------------


def test_first_moments_are_stored_as_optax_does():
    half = {"mu_dtype": jnp.bfloat16}
    pairs = {
        "adam": (fnn.adam(0.1, **half), optax.adam(0.1, **half)),
        "adamw": (fnn.adamw(0.1, mask=True, **half), optax.adamw(0.1, **half)),
        "nadam": (fnn.nadam(0.1, **half), optax.nadam(0.1, **half)),
        "lion": (fnn.lion(0.1, mask=True, **half), optax.lion(0.1, **half)),
        "momentum": (
            fnn.momentum(0.1, accumulator_dtype="bfloat16"),
            optax.sgd(0.1, 0.9, accumulator_dtype="bfloat16"),
        ),
    }
    params, grads = ({k: tree[k].real for k in tree} for tree in (PARAMS, GRADS))
    ours = follow_each({name: pair[0] for name, pair in pairs.items()}, params, grads)
    with jax.numpy_dtype_promotion("standard"):
        theirs = follow_each({name: pair[1] for name, pair in pairs.items()}, params, grads)
    # Optax also rounds the product b1 mu to bfloat16: a trace of 4 by 2^-7 in every step, each of
    # which counts in 10 steps of 0.1. The next test has the exact numbers.
    chex.assert_trees_all_close(ours, theirs, rtol=0, atol=STEPS * 2**-8)
    for name, (optimizer, _) in pairs.items():
        state = jax.eval_shape(optimizer.init, params)
        _, after = jax.eval_shape(optimizer.update, params, state, params)
        assert state == after, name
        chex.assert_type(
            jax.tree.leaves(state["trace" if name == "momentum" else "mu"]), "bfloat16"
        )


def test_the_step_uses_the_moment_before_it_is_rounded():
    mu, g = jnp.asarray(normal(100), jnp.bfloat16), jnp.asarray(normal(100))
    exact = 0.9 * np.asarray(mu, np.float64) + 0.1 * np.asarray(g, np.float64)
    adam = fnn.adam(0.1, mu_dtype="bfloat16", eps=0.0)
    state = adam.init(g) | {"mu": mu, "nu": jnp.full(100, 0.25), "count": jnp.int32(10**9)}
    updates, new = adam.update(jnp.asarray(g), state, g)
    nu = 0.999 * 0.25 + 0.001 * np.asarray(g, np.float64) ** 2
    np.testing.assert_allclose(updates, -0.1 * exact / np.sqrt(nu), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.asarray(new["mu"], np.float64), exact, rtol=2**-8)
    momentum = fnn.momentum(0.1, dampening=0.1, accumulator_dtype="bfloat16")
    updates, _ = momentum.update(g, momentum.init(g) | {"trace": mu}, g)
    np.testing.assert_allclose(updates, -0.1 * (exact + 0.8 * np.asarray(g)), rtol=1e-5, atol=1e-6)


def test_mu_dtype_holds_what_it_stores():
    with pytest.raises(TypeError, match=r"adam: mu_dtype is .*int32.*, expected floating point"):
        fnn.adam(0.1, mu_dtype=jnp.int32)
    with pytest.raises(TypeError, match="adam: parameter 'b' is complex64, but mu is stored in bf"):
        fnn.adam(0.1, mu_dtype="bfloat16").init(PARAMS)
    kept = fnn.adam(0.1, mu_dtype="complex64")  # of a real parameter: the imaginary part is 0
    p = jnp.ones(2)
    updates, state = kept.update(p, kept.init(p), p)
    assert (updates.dtype, state["mu"].dtype) == (jnp.float32, jnp.complex64)


# --- nesterov ---------------------------------------------------------------------------------


def test_nesterov_in_adam_is_nadam():
    pairs = {
        "adam": (fnn.adam(0.1, nesterov=True), optax.adam(0.1, nesterov=True)),
        "root": (
            fnn.adam(0.1, nesterov=True, eps_root=0.1),
            optax.adam(0.1, nesterov=True, eps_root=0.1),
        ),
        "nadam": (fnn.nadam(0.1), optax.nadam(0.1)),
        "nadamw": (
            fnn.adamw(0.1, weight_decay=0.3, mask=True, nesterov=True),
            optax.nadamw(0.1, weight_decay=0.3),
        ),
    }
    ours = follow_each({name: pair[0] for name, pair in pairs.items()}, PARAMS, GRADS)
    with jax.numpy_dtype_promotion("standard"):
        theirs = follow_each({name: pair[1] for name, pair in pairs.items()}, PARAMS, GRADS)
    chex.assert_trees_all_close(ours, theirs, rtol=3e-5, atol=2e-5)
    chex.assert_trees_all_equal(ours["adam"], ours["nadam"])
    make = partial(fnn.adam, 0.1, nesterov=True)
    for option in ({"amsgrad": "raw"}, {"eps_hat": True}, {"correct": False}):
        with pytest.raises(ValueError, match="adam: nesterov was given with amsgrad, eps_hat or"):
            make(**option)
