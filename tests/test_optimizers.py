import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fnn
from fnn.lifting import bias_correction
from tests.table_of_optimizers import OPTIMIZERS, Row

every_row = pytest.mark.parametrize("row", OPTIMIZERS, ids=lambda row: row.name)
runs_optax = pytest.mark.usefixtures("standard_promotion")
DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
GRADS = {"layer": {"w": jnp.array([[0.5, -2.0], [1e-6, 0.0]]), "b": jnp.array([3.0, -1e-3])}}
PARAMS = {"layer": {"w": jnp.array([[1.0, 2.0], [-3.0, 0.5]]), "b": jnp.array([0.1, -0.1])}}
SLOWING = {"constant": 0.0, "changing": 0.1}  # the rate is 0.01 / (1 + slowing * step)


def random_grads(steps, dtype):
    """Trees of gradients from 1 to 1e-8 in size, with exact zeros."""
    rng = np.random.default_rng(0)

    def leaf(*shape):
        g = rng.normal(size=(steps, *shape)) * 10.0 ** rng.integers(-8, 1, (steps, *shape))
        return jnp.asarray(np.where(rng.uniform(size=g.shape) < 0.1, 0, g), dtype)

    return {
        "a": {"w": leaf(3, 4), "b": leaf(4)},
        "scalar": leaf(),
        "deep": [leaf(2), {"c": leaf(1, 2, 3)}],
    }


@functools.partial(jax.jit, static_argnums=0)
def follow(optimizer, params, grads):
    """Every point of the path: leaves [steps, ...]."""

    def step(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        params = fnn.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]


def assert_same_path(ours, theirs):
    """In float32, where Optax's Adam is off by up to 2e-5 of a step, and the steps are 0.1."""
    chex.assert_trees_all_close(ours, theirs, rtol=2e-5, atol=3e-6)


@functools.partial(jax.jit, static_argnums=0)
def follow_both(make, params, grads):
    """The paths of make(rate) at the constant and the changing rate: leaves [2, steps, ...]."""

    def one(slowing):
        return follow(make(lambda step: 0.01 / (1 + slowing * step.astype(float))), params, grads)

    return jax.vmap(one)(jnp.array(list(SLOWING.values())))


# --- the right numbers --------------------------------------------------------------------------


@runs_optax
@every_row
def test_200_steps_are_optaxs(row):
    # Optax forms 1 - b^t in float32, which is off by up to 2e-5 of it.
    for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 2e-5)):
        with jax.enable_x64(dtype == jnp.float64):
            grads = random_grads(200, dtype)
            params = jax.tree.map(lambda g: jnp.ones_like(g[0]), grads)
            ours = follow_both(row.make, params, grads)
            theirs = follow_both(row.make_optax, params, grads)
            chex.assert_trees_all_close(ours, theirs, rtol=rtol, atol=rtol * 1e-2)


@every_row
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32], ids=lambda d: d.__name__)
def test_50_steps_are_the_formula_in_numpy(row, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        grads = random_grads(50, dtype)["a"]["w"]
        path = follow(row.make(0.01), jnp.ones((3, 4), dtype), grads)
        step, p = row.formula(0.01, **row.arguments), np.ones((3, 4))
        for ours, g in zip(path, np.asarray(grads, np.float64), strict=True):
            p = step(p, g)
            np.testing.assert_allclose(ours, p, rtol=1e-12 if dtype == jnp.float64 else 1e-5)


def test_the_two_nesterovs_are_one():
    with_flag = follow(fnn.momentum(0.1, 0.5, nesterov=True), 1.0 * jnp.ones(()), jnp.ones(3))
    chex.assert_trees_all_equal(
        follow(fnn.nesterov(0.1, 0.5), 1.0 * jnp.ones(()), jnp.ones(3)), with_flag
    )
    assert (follow(fnn.momentum(0.1, 0.5), 1.0 * jnp.ones(()), jnp.ones(3)) != with_flag).any()


def test_bias_correction_is_exact_in_float32():
    t = np.unique(np.geomspace(1, 1e6, 200).astype(int))
    for b in (0.9, 0.999, 0.9999, 0.5, 0.0):
        exact = 1 / -np.expm1(t * np.log(np.float64(b))) if b else np.ones(len(t))
        ours = bias_correction(b, jnp.asarray(t, jnp.float32))
        np.testing.assert_allclose(ours, exact, rtol=1e-6)
        # A traced b is its float32 neighbour, exactly.
        b32 = np.float64(np.float32(b))
        exact = 1 / -np.expm1(t * np.log(b32)) if b else np.ones(len(t))
        np.testing.assert_allclose(
            bias_correction(jnp.float32(b), jnp.asarray(t, jnp.float32)), exact, rtol=1e-6
        )
    assert (
        abs(float(1 - jnp.float32(0.999)) / 0.001 - 1) > 1e-5
    )  # what the plain formula starts from


# --- Optax's interface --------------------------------------------------------------------------

AROUND = {
    "chain": lambda o: optax.chain(optax.clip_by_global_norm(1.0), o, optax.scale(0.5)),
    "apply_if_finite": lambda o: optax.apply_if_finite(o, max_consecutive_errors=3),
    "MultiSteps": lambda o: optax.MultiSteps(o, every_k_schedule=2),
    "masked": lambda o: optax.masked(o, {"layer": {"w": True, "b": False}}),
    "fnn.chain": lambda o: fnn.chain(fnn.clip_by_global_norm(1.0), o, optax.scale(0.5)),
}


@runs_optax
@every_row
@pytest.mark.parametrize("around", AROUND)
def test_drops_into_optax(row, around):
    grads = jax.tree.map(lambda g: jnp.stack([g, 2 * g, -g, 0.5 * g]), GRADS)
    ours = follow(AROUND[around](row.make(0.1)), PARAMS, grads)
    theirs = follow(AROUND[around](row.make_optax(0.1)), PARAMS, grads)
    assert_same_path(ours, theirs)


@runs_optax
@every_row
@pytest.mark.parametrize(
    "rate",
    [
        optax.schedules.cosine_decay_schedule(0.1, 4),
        optax.schedules.warmup_constant_schedule(0.0, 0.1, 2),
    ],
    ids=["cosine", "warm-up"],
)
def test_takes_optax_schedules(row, rate):
    grads = jax.tree.map(lambda g: jnp.stack([g] * 6), GRADS)
    assert_same_path(
        follow(row.make(rate), PARAMS, grads), follow(row.make_optax(rate), PARAMS, grads)
    )


@every_row
def test_the_first_update_uses_schedule_0(row):
    optimizer = row.make(lambda count: jnp.where(count == 0, 0.0, 1.0))
    updates, state = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    assert all((u == 0).all() for u in jax.tree.leaves(updates))
    updates, _ = optimizer.update(GRADS, state, PARAMS)
    assert any((u != 0).any() for u in jax.tree.leaves(updates))


@every_row
def test_float_traced_and_scheduled_rates_agree(row):
    expected, _ = row.make(0.01).update(GRADS, row.make(0.01).init(PARAMS), PARAMS)

    @jax.jit
    def traced(rate, arguments):
        optimizer = row.make(rate, **arguments)
        return optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)[0]

    chex.assert_trees_all_close(traced(0.01, {}), expected, rtol=1e-6)
    # A float32 b2 of 0.999 is 1.3e-5 of 1 - b2 away from the Python number.
    chex.assert_trees_all_close(traced(0.01, row.arguments), expected, rtol=3e-5)
    chex.assert_trees_all_equal(
        traced(0.01, {}),
        jax.jit(
            lambda: row.make(lambda _: 0.01).update(GRADS, row.make(0.01).init(PARAMS), PARAMS)[0]
        )(),
    )


# --- contracts ----------------------------------------------------------------------------------


@every_row
@every_dtype
def test_state_keeps_its_avals(row, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
        optimizer = row.make(jnp.float32(0.1))
        state = optimizer.init(params)
        updates, after = jax.eval_shape(optimizer.update, params, state, params)
        state = jax.eval_shape(lambda state: state, state)
        assert state == after
        assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, updates)))
        chex.assert_type(jax.tree.leaves(updates), dtype)
        moments = [leaf for path, leaf in fnn.params.paths(state).items() if path != "count"]
        chex.assert_type(moments, jnp.float64 if dtype == jnp.float64 else jnp.float32)
        new = jax.eval_shape(fnn.apply_updates, params, updates)
        chex.assert_type(jax.tree.leaves(new), dtype)


@every_row
def test_second_call_does_not_recompile(row):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, grads, rate, arguments):
        updates, state = row.make(rate, **arguments).update(grads, state, params)
        return fnn.apply_updates(params, updates), state

    chex.clear_trace_counter()
    params, state = PARAMS, row.make(0.1).init(PARAMS)
    for factor in (1.0, 0.5, 0.25):
        arguments = {name: factor * value for name, value in row.arguments.items()}
        params, state = step(params, state, GRADS, 0.1 * factor, arguments)


@every_row
def test_vmap_over_hyperparameters_is_the_loop(row):
    rates = jnp.array([0.1, 0.01, 1.0])
    columns = {
        name: jnp.array([value, 0.5 * value, 0.9 * value]) for name, value in row.arguments.items()
    }
    grads = jax.tree.map(lambda g: jnp.stack([g, -0.5 * g, g]), GRADS)

    def run(rate, arguments):
        optimizer = row.make(rate, **arguments)
        params, state = PARAMS, optimizer.init(PARAMS)
        for i in range(3):
            updates, state = optimizer.update(
                jax.tree.map(lambda g, i=i: g[i], grads), state, params
            )
            params = fnn.apply_updates(params, updates)
        return params

    together = jax.jit(jax.vmap(run))(rates, columns)
    for i in range(3):
        alone = jax.jit(run)(rates[i], {name: column[i] for name, column in columns.items()})
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, rtol=1e-5
        )


@every_row
@every_dtype
def test_zero_gradient_is_zero_update(row, dtype):
    undecayed = {"weight_decay": 0.0} if row.name == "adamw" else {}
    with jax.enable_x64(dtype == jnp.float64):
        zeros = {"w": jnp.zeros(5, dtype)}
        for arguments in (
            {},
            {name: 0.0 for name in ("eps", "initial_accumulator") if name in row.arguments},
        ):
            optimizer = row.make(0.1, **arguments, **undecayed)
            state = optimizer.init(zeros)
            for _ in range(3):
                updates, state = optimizer.update(zeros, state, zeros)
                assert (updates["w"] == 0).all()


@every_row
def test_derivatives_through_the_update_are_finite_at_zero(row):
    def update(g, rate, arguments):
        optimizer = row.make(rate, **arguments)
        params = {"w": jnp.ones(3)}
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update({"w": g}, state, params)
        return updates["w"].sum()

    grad = jax.jit(jax.grad(update, argnums=(0, 1, 2)))
    for g in (jnp.zeros(3), jnp.array([0.0, 1.0, -1e-4])):
        grads = grad(g, 0.1, row.arguments)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@every_row
def test_half_precision_follows_single(row):
    # One step from float32 numbers that both halves hold exactly.
    g, p = jnp.array([0.5, -2.0, 0.0, 0.25]), jnp.array([1.0, 2.0, 3.0, -4.0])
    single, _ = row.make(0.125).update(g, row.make(0.125).init(p), p)
    for dtype in (jnp.bfloat16, jnp.float16):
        half, _ = row.make(0.125).update(
            g.astype(dtype), row.make(0.125).init(p.astype(dtype)), p.astype(dtype)
        )
        chex.assert_trees_all_equal(half, single.astype(dtype))


@every_row
def test_count_does_not_overflow(row):
    optimizer = row.make(0.1)
    state = optimizer.init(PARAMS) | {"count": jnp.asarray(2**31 - 1, jnp.int32)}
    updates, state = optimizer.update(GRADS, state, PARAMS)
    assert int(state["count"]) == 2**31 - 1
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))


leaves = st.sampled_from([(), (1,), (3,), (2, 3), (0,)]).flatmap(
    lambda shape: st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]).map(
        lambda dtype: jnp.full(shape, 0.5, dtype)
    )
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(st.sampled_from("abcw"), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.just({})
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(tree=trees, row=st.sampled_from(OPTIMIZERS))
def test_any_tree_is_its_leaves_one_by_one(tree, row: Row):
    optimizer = row.make(0.1, **({"weight_decay": 0.0} if row.name == "adamw" else {}))
    updates, _ = optimizer.update(tree, optimizer.init(tree), tree)
    assert jax.tree.structure(updates) == jax.tree.structure(tree)
    for g, u in zip(jax.tree.leaves(tree), jax.tree.leaves(updates), strict=True):
        alone, _ = optimizer.update(g, optimizer.init(g), g)
        chex.assert_trees_all_equal(u, alone)
    jax.tree.map(
        lambda p, q: chex.assert_equal_shape_prefix((p, q), p.ndim),
        tree,
        fnn.apply_updates(tree, updates),
    )


def test_numbers_as_parameters():
    # As in Optax's own examples.
    optimizer = fnn.adam(0.1)
    updates, _ = optimizer.update({"a": -0.5}, optimizer.init({"a": 1.0}), {"a": 1.0})
    np.testing.assert_allclose(fnn.apply_updates({"a": 1.0}, updates)["a"], 1.1, rtol=1e-6)


# --- around the rules ---------------------------------------------------------------------------


def clip(grads, max_norm):
    return fnn.clip_by_global_norm(max_norm).update(grads, ())[0]


def test_clip_by_global_norm():
    g = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    chex.assert_trees_all_equal(clip(g, 5.0), g)
    chex.assert_trees_all_equal(clip(g, float("inf")), g)
    chex.assert_trees_all_equal(clip(g, 0.0), {"a": jnp.zeros(1), "b": jnp.zeros(1)})
    chex.assert_trees_all_close(clip(g, 1.0), {"a": jnp.array([0.6]), "b": jnp.array([0.8])})
    zero = {"a": jnp.zeros(3)}
    for max_norm in (0.0, 1.0):
        chex.assert_trees_all_equal(clip(zero, max_norm), zero)
    chex.assert_trees_all_close(clip({"a": jnp.full(4, 1e20)}, 1.0)["a"], jnp.full(4, 0.5))
    chex.assert_trees_all_close(clip({"a": jnp.full(4, 1e-25)}, 1e-30)["a"], jnp.full(4, 5e-31))
    half = clip({"a": jnp.full(4, 300, jnp.float16)}, 1.0)["a"]
    chex.assert_trees_all_equal(half, jnp.full(4, 0.5, jnp.float16))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_clipping_spreads_nothing(bad):
    g = {"a": jnp.array([1.0, bad]), "b": jnp.array([30.0])}
    zeros = jax.tree.map(jnp.zeros_like, g)
    for transform in (fnn.clip_by_global_norm, fnn.clip_by_norm):
        passed, _ = transform(1.0, nonfinite="pass").update(g, ())
        chex.assert_trees_all_equal(passed["a"], g["a"])
    chex.assert_trees_all_equal(clip(g, 1.0), zeros)
    optimizer = fnn.chain(fnn.clip_by_global_norm(1.0), fnn.adam(0.1))
    _, state = optimizer.update(g, optimizer.init(g), g)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state[1]))
    assert not np.isfinite(state[0]["norm"])  # for the log


def test_clipping_has_derivatives():
    for g in (jnp.zeros(3), jnp.array([3.0, 4.0, 0.0])):
        assert jnp.isfinite(jax.jit(jax.jacobian(lambda g: clip(g, 1.0)))(g)).all()
        assert jnp.isfinite(jax.jit(jax.grad(lambda c, g=g: clip(g, c).sum()))(1.0))
    with jax.enable_x64(True):
        clipped = jax.jit(lambda g: clip(g, 1.0))
        jax.test_util.check_grads(jax.jit(clipped), (jnp.array([3.0, 4.0, 0.0]),), order=2)


@runs_optax
def test_clip_is_optaxs_where_nothing_is_odd():
    theirs, _ = optax.clip_by_global_norm(1.0).update(GRADS, optax.EmptyState())
    chex.assert_trees_all_close(clip(GRADS, 1.0), theirs, rtol=1e-6)


def test_clip_by_value():
    g = {"a": jnp.array([-3.0, 0.2, jnp.inf], jnp.float32), "b": jnp.array([5.0], jnp.bfloat16)}
    clipped, _ = fnn.clip_by_value(0.5).update(g, ())
    chex.assert_trees_all_equal(
        clipped, {"a": jnp.array([-0.5, 0.2, 0.5]), "b": jnp.array([0.5], jnp.bfloat16)}
    )


def test_weight_decay_leaves_biases_and_scales_alone():
    params = {
        "norm": {"scale": jnp.ones(2), "offset": jnp.ones(2)},
        "w": jnp.ones(2),
        "b": jnp.ones(2),
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    decayed, _ = fnn.add_weight_decay(0.5).update(zeros, (), params)
    expected = {"norm": {"scale": 0.0, "offset": 0.0}, "w": 0.5, "b": 0.0}
    assert jax.tree.map(lambda leaf: float(leaf[0]), decayed) == expected
    everything, _ = fnn.add_weight_decay(0.5, mask=True).update(zeros, (), params)
    assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(everything))
    step = fnn.adamw(1.0, weight_decay=0.5)
    updates, _ = step.update(zeros, step.init(params), params)
    assert jax.tree.map(lambda leaf: -float(leaf[0]), updates) == expected


@runs_optax
def test_adamw_with_everything_decayed_is_optaxs_default():
    ours, theirs = fnn.adamw(0.1, weight_decay=0.3, mask=True), optax.adamw(0.1, weight_decay=0.3)
    grads = jax.tree.map(lambda g: jnp.stack([g] * 5), GRADS)
    assert_same_path(follow(ours, PARAMS, grads), follow(theirs, PARAMS, grads))
    for mask in (
        {"layer": {"w": True, "b": False}},
        {"layer": True},
        lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
    ):
        ours, theirs = (
            fnn.adamw(0.1, weight_decay=0.3, mask=mask),
            optax.adamw(0.1, weight_decay=0.3, mask=mask),
        )
        assert_same_path(follow(ours, PARAMS, grads), follow(theirs, PARAMS, grads))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fnn.sgd(-0.1), ValueError, r"sgd: learning_rate is -0.1, expected a number >= 0"),
        (lambda: fnn.adam(float("nan")), ValueError, r"adam: learning_rate is nan"),
        (lambda: fnn.adam(0.1, b2=1.0), ValueError, r"adam: b2 is 1.0, expected a number in \[0, 1\)"),
        (lambda: fnn.adam(0.1, b1=-0.1), ValueError, r"adam: b1 is -0.1, expected a number in \[0, 1\)"),
        (lambda: fnn.rmsprop(0.1, eps=-1e-8), ValueError, r"rmsprop: eps is -1e-08, expected a number >= 0"),
        (lambda: fnn.momentum(0.1, 1.5), ValueError, r"momentum: decay is 1.5"),
        (lambda: fnn.adagrad(0.1, -1.0), ValueError, r"adagrad: initial_accumulator is -1.0"),
        (lambda: fnn.adamw(0.1, weight_decay=-1.0), ValueError, r"adamw: weight_decay is -1.0"),
        (lambda: fnn.clip_by_global_norm(-1.0), ValueError, r"clip_by_global_norm: max_norm is -1.0"),
        (lambda: fnn.clip_by_value(-1.0), ValueError, r"clip_by_value: limit is -1.0"),
        (lambda: fnn.adam(0.1, beta1=0.9), TypeError, "beta1"),
        (
            lambda: fnn.adam(0.1).init({"a": {"n": jnp.zeros(3, int)}}),
            TypeError,
            "adam: parameter 'a/n' is int32, expected floating point",
        ),
        (
            lambda: fnn.adamw(0.1).update(GRADS, fnn.adamw(0.1).init(PARAMS)),
            ValueError,
            r"adamw: update\(grads, state\) came without params",
        ),
        (
            lambda: fnn.add_weight_decay(0.1).update(GRADS, ()),
            ValueError,
            r"add_weight_decay: update\(grads, state\) came without params",
        ),
        (
            lambda: fnn.adam(0.1).update({"layer": {"w": jnp.ones(2)}}, fnn.adam(0.1).init(PARAMS)),
            ValueError,
            r"adam: grads and m differ in structure \(first at 'layer/b'\): grads are PyTreeDef.*m PyTree",
        ),
        (
            lambda: fnn.sgd(0.1).update([jnp.ones(2)], fnn.sgd(0.1).init(()), (jnp.ones(2),)),
            ValueError,
            r"sgd: grads and params differ in structure \(in the types of their containers\)",
        ),
        (
            lambda: fnn.chain(fnn.sgd(0.1), fnn.sgd(0.1)).update(GRADS, ((),), PARAMS),
            ValueError,
            "chain: state is of 1 transforms, expected 2",
        ),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
