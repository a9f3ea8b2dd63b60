"""Each property is tested for every row of the table, all rows in one program."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fnn
from fnn.optim import bias_correction
from fnn.optim._adam_relatives import _length_of_average
from tests.optimizer_paths import (
    GRADS,
    PARAMS,
    assert_same_path,
    follow_both,
    follow_each,
    path,
    runs_optax,
    times,
)
from tests.table_of_optimizers import OPTIMIZERS

every_row = pytest.mark.parametrize("row", OPTIMIZERS, ids=lambda row: row.name)
DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
ARGUMENTS = {row.name: row.arguments for row in OPTIMIZERS}


def random_grads(steps, dtype):
    """Gradients from 1 to 1e-8 in size, with exact zeros, [steps, 3, 4]."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(steps, 3, 4)) * 10.0 ** rng.integers(-8, 1, (steps, 3, 4))
    return jnp.asarray(np.where(rng.uniform(size=g.shape) < 0.1, 0, g), dtype)


def each(function):
    """{row's name: function(row)}."""
    return {row.name: function(row) for row in OPTIMIZERS}


def first_update(optimizer, grads, params):
    return optimizer.update(grads, optimizer.init(params), params)[0]


# --- the right numbers --------------------------------------------------------------------------


@pytest.mark.slow
@runs_optax
def test_200_steps_are_optaxs():
    # Optax forms 1 - b^t in float32, which is off by up to 2e-5 of it.
    for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 2e-5)):
        with jax.enable_x64(dtype == jnp.float64):
            grads = random_grads(200, dtype)
            params = jnp.ones((3, 4), dtype)
            ours = follow_both(each(lambda row: row.make), params, grads)
            theirs = follow_both(each(lambda row: row.make_optax), params, grads)
            chex.assert_trees_all_close(ours, theirs, rtol=rtol, atol=rtol * 1e-2)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32], ids=lambda d: d.__name__)
def test_50_steps_are_the_formula_in_numpy(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        grads = random_grads(50, dtype)
        paths = follow_each(each(lambda row: row.make(0.01)), jnp.ones((3, 4), dtype), grads)
    rtol = 1e-12 if dtype == jnp.float64 else 1e-5
    for row in OPTIMIZERS:
        step, p = row.formula(0.01, **row.arguments), np.ones((3, 4))
        for ours, g in zip(paths[row.name], np.asarray(grads, np.float64), strict=True):
            p = step(p, g)
            np.testing.assert_allclose(ours, p, rtol=rtol, err_msg=row.name)


def test_the_two_nesterovs_are_one():
    optimizers = {
        "flag": fnn.momentum(0.1, 0.5, nesterov=True),
        "function": fnn.nesterov(0.1, 0.5),
        "plain": fnn.momentum(0.1, 0.5),
    }
    paths = follow_each(optimizers, jnp.ones(()), jnp.ones(3))
    chex.assert_trees_all_equal(paths["flag"], paths["function"])
    assert (paths["plain"] != paths["flag"]).any()


def test_bias_correction_is_exact_in_float32():
    t = np.unique(np.geomspace(1, 1e6, 200).astype(int))
    traced = jax.jit(bias_correction)
    for b in (0.9, 0.999, 0.9999, 0.5, 0.0):
        exact = 1 / -np.expm1(t * np.log(np.float64(b))) if b else np.ones(len(t))
        ours = bias_correction(b, jnp.asarray(t, jnp.float32))
        np.testing.assert_allclose(ours, exact, rtol=1e-6)
        # A traced b is its float32 neighbour, exactly.
        b32 = np.float64(np.float32(b))
        exact = 1 / -np.expm1(t * np.log(b32)) if b else np.ones(len(t))
        ours = traced(jnp.float32(b), jnp.asarray(t, jnp.float32))
        np.testing.assert_allclose(ours, exact, rtol=1e-6)
    # The plain formula starts from a number that is this far off.
    assert abs(float(1 - jnp.float32(0.999)) / 0.001 - 1) > 1e-5


def test_the_number_of_averaged_gradients_is_exact_in_float32():
    """Of radam. The plain formula is a difference of numbers about 2 / (1 - b)."""
    t = np.unique(np.geomspace(1, 1e6, 50).astype(int))

    def exact(b):
        power = np.exp(t * np.log(np.float64(b)))
        return 2 / (1 - np.float64(b)) - 1 + 2 * t * power / np.expm1(t * np.log(np.float64(b)))

    for b in (0.9, 0.99, 0.999, 0.9999, 0.5):
        ours = _length_of_average(b, jnp.asarray(t, jnp.float32))
        np.testing.assert_allclose(ours, exact(b), rtol=1e-6)
        traced = jax.jit(_length_of_average)(jnp.float32(b), jnp.asarray(t, jnp.float32))
        np.testing.assert_allclose(traced, exact(np.float32(b)), rtol=3e-6)
    assert _length_of_average(0.0, jnp.float32(3)) == 1


# --- Optax's interface --------------------------------------------------------------------------


@runs_optax
def test_chains_with_optax():
    def around(chain, clip, optimizer):
        return chain(clip(1.0), optimizer, optax.scale(0.5))

    # Half of schedule-free's step is no step: fnn's goes on from its x, Optax's from y as it finds it.
    rows = [row for row in OPTIMIZERS if not row.name.startswith("schedule_free")]

    def paths(chain, clip, make):
        optimizers = {row.name: around(chain, clip, make(row)(0.1)) for row in rows}
        return follow_each(optimizers, PARAMS, times(1, 2, -1, 0.5))

    optaxs = optax.chain, optax.clip_by_global_norm
    theirs = paths(*optaxs, lambda row: row.make_optax)
    assert_same_path(paths(*optaxs, lambda row: row.make), theirs)
    assert_same_path(paths(fnn.chain, fnn.clip_by_global_norm, lambda row: row.make), theirs)


@runs_optax
def test_takes_optax_schedules():
    # Not from 0, at which Optax's Prodigy becomes NaN.
    rate = optax.schedules.warmup_cosine_decay_schedule(0.01, 0.1, 2, 6)
    grads = times(1, 1, 1, 1, 1, 1)
    ours = follow_each(each(lambda row: row.make(rate)), PARAMS, grads)
    theirs = follow_each(each(lambda row: row.make_optax(rate)), PARAMS, grads)
    assert_same_path(ours, theirs)


def test_the_first_update_uses_schedule_0():
    rows = each(lambda row: row.make(lambda count: jnp.where(count == 0, 0.0, 1.0)))
    paths = follow_each(rows, PARAMS, times(1, 1))
    for name, points in paths.items():
        first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], points) for i in (0, 1))
        chex.assert_trees_all_equal(first, PARAMS)
        assert any((p != q).any() for p, q in zip(*map(jax.tree.leaves, (first, second)), strict=True)), name  # fmt: skip


def test_float_traced_and_scheduled_rates_agree():
    @jax.jit
    def updates(rate, arguments, grads, params):
        def of(make):
            return each(lambda row: first_update(make(row), grads, params))

        return {
            "float": of(lambda row: row.make(0.01)),
            "scheduled": of(lambda row: row.make(lambda _: 0.01)),
            "traced": of(lambda row: row.make(rate)),
            "all traced": of(lambda row: row.make(rate, **arguments[row.name])),
        }

    got = updates(0.01, ARGUMENTS, GRADS, PARAMS)
    chex.assert_trees_all_close(got["traced"], got["float"], rtol=1e-6)
    # A float32 b2 of 0.999 is 1.3e-5 of 1 - b2 away from the Python number.
    # Schedule-free's step is the distance of two points around 3, in float32.
    chex.assert_trees_all_close(got["all traced"], got["float"], rtol=3e-5, atol=3e-7)
    chex.assert_trees_all_equal(got["traced"], got["scheduled"])


# --- contracts ----------------------------------------------------------------------------------


@every_row
@every_dtype
def test_state_keeps_its_avals(row, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), PARAMS)
        optimizer = row.make(jnp.float32(0.1))
        state = jax.eval_shape(optimizer.init, params)
        updates, after = jax.eval_shape(optimizer.update, params, state, params)
        assert state == after
        assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, updates)))
        chex.assert_type(jax.tree.leaves(updates), dtype)
        moments = [leaf for path, leaf in fnn.params.paths(state).items() if path != "count"]
        chex.assert_type(moments, jnp.float64 if dtype == jnp.float64 else jnp.float32)
        new = jax.eval_shape(fnn.apply_updates, params, updates)
        chex.assert_type(jax.tree.leaves(new), dtype)


def test_second_call_does_not_recompile():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, states, grads, rate, arguments):
        return each(
            lambda row: row.make(rate, **arguments[row.name]).update(
                grads, states[row.name], params
            )
        )

    chex.clear_trace_counter()
    states = each(lambda row: row.make(0.1).init(PARAMS))
    for factor in (1.0, 0.5, 0.25):
        arguments = jax.tree.map(lambda value, f=factor: f * value, ARGUMENTS)
        out = step(PARAMS, states, GRADS, 0.1 * factor, arguments)
        states = {name: state for name, (_, state) in out.items()}


def test_vmap_over_hyperparameters_is_the_loop():
    rates = jnp.array([0.1, 0.01, 1.0])
    columns = jax.tree.map(lambda value: jnp.array([value, 0.5 * value, 0.9 * value]), ARGUMENTS)
    grads = times(1, -0.5, 1)

    def run(rate, arguments):
        return each(
            lambda row: jax.tree.map(
                lambda leaf: leaf[-1], path(row.make(rate, **arguments[row.name]), PARAMS, grads)
            )
        )

    together = jax.jit(jax.vmap(run))(rates, columns)
    alone = jax.jit(run)
    for i in range(3):
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], together),
            alone(rates[i], jax.tree.map(lambda column, i=i: column[i], columns)),
            rtol=1e-5,
        )


def test_zero_gradient_is_zero_update():
    """In every dtype, with the row's arguments and with divisors that start at 0."""

    def optimizers(row):
        undecayed = {"weight_decay": 0.0} if row.name == "adamw" else {}
        zero = {name: 0.0 for name in ("eps", "initial_accumulator") if name in row.arguments}
        return [row.make(0.1, **undecayed, **more) for more in ([{}, zero] if zero else [{}])]

    def updates(optimizer, zeros):
        def step(state, _):
            updates, state = optimizer.update(zeros, state, zeros)
            return state, updates

        return jax.lax.scan(step, optimizer.init(zeros), length=3)[1]

    with jax.enable_x64(True):
        zeros = {dtype.__name__: jnp.zeros(5, dtype) for dtype in DTYPES}

        @jax.jit
        def run(zeros):
            return each(lambda row: [updates(o, zeros) for o in optimizers(row)])

        for name, leaf in fnn.params.paths(run(zeros)).items():
            assert (leaf == 0).all(), name


def test_derivatives_through_the_update_are_finite_at_zero():
    def update(g, rate, row, arguments):
        optimizer = row.make(rate, **arguments)
        params = {"w": jnp.ones(3)}
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update({"w": g}, state, params)
        return updates["w"].sum()

    @jax.jit
    def grads(g, rate, arguments):
        grad = jax.grad(update, argnums=(0, 1, 3))
        return each(lambda row: grad(g, rate, row, arguments[row.name]))

    for g in (jnp.zeros(3), jnp.array([0.0, 1.0, -1e-4])):
        for name, leaf in fnn.params.paths(grads(g, 0.1, ARGUMENTS)).items():
            assert jnp.isfinite(leaf).all(), name


def test_half_precision_follows_single():
    # One step from float32 numbers that both halves hold exactly.
    g, p = jnp.array([0.5, -2.0, 0.0, 0.25]), jnp.array([1.0, 2.0, 3.0, -4.0])

    @jax.jit
    def updates(g, p):
        return each(lambda row: first_update(row.make(0.125), g, p))

    single = updates(g, p)
    for dtype in (jnp.bfloat16, jnp.float16):
        half = updates(g.astype(dtype), p.astype(dtype))
        chex.assert_trees_all_equal(half, jax.tree.map(lambda u, d=dtype: u.astype(d), single))


def test_count_does_not_overflow():
    @jax.jit
    def update(count):
        def last(row):
            optimizer = row.make(0.1)
            return optimizer.update(GRADS, optimizer.init(PARAMS) | {"count": count}, PARAMS)

        return each(last)

    for name, (updates, state) in update(jnp.asarray(2**31 - 1, jnp.int32)).items():
        assert int(state["count"]) == 2**31 - 1, name
        assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates)), name


leaves = st.sampled_from([(), (3,), (2, 3), (0,)]).flatmap(
    lambda shape: st.sampled_from([jnp.float32, jnp.bfloat16]).map(
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
# All rules are lifted to trees by one function: without memory, with it, with the parameters too.
LIFTED = [fnn.sgd(0.1), fnn.adagrad(0.1), fnn.adamw(0.1, weight_decay=0.1, mask=True)]


@settings(deadline=None, max_examples=30, derandomize=True)
@given(tree=trees, optimizer=st.sampled_from(LIFTED))
def test_any_tree_is_its_leaves_one_by_one(tree, optimizer):
    updates = first_update(optimizer, tree, tree)
    assert jax.tree.structure(updates) == jax.tree.structure(tree)
    for g, u in zip(jax.tree.leaves(tree), jax.tree.leaves(updates), strict=True):
        chex.assert_trees_all_equal(u, first_update(optimizer, g, g))
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


# --- what decays --------------------------------------------------------------------------------


def test_weight_decay_leaves_biases_and_scales_alone():
    params = {
        "norm": {"scale": jnp.ones(2), "offset": jnp.ones(2)},
        "w": jnp.ones(2),
        "b": jnp.ones(2),
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    decayed, _ = fnn.optim.add_weight_decay(0.5).update(zeros, (), params)
    expected = {"norm": {"scale": 0.0, "offset": 0.0}, "w": 0.5, "b": 0.0}
    assert jax.tree.map(lambda leaf: float(leaf[0]), decayed) == expected
    everything, _ = fnn.optim.add_weight_decay(0.5, mask=True).update(zeros, (), params)
    assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(everything))
    updates = first_update(fnn.adamw(1.0, weight_decay=0.5), zeros, params)
    assert jax.tree.map(lambda leaf: -float(leaf[0]), updates) == expected


@runs_optax
def test_adamw_with_everything_decayed_is_optaxs_default():
    ours, theirs = {}, {}
    masks = {
        "tree": {"layer": {"w": True, "b": False}},
        "prefix": {"layer": True},
        "function": lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
    }
    for name, mask in masks.items():
        ours[name] = fnn.adamw(0.1, weight_decay=0.3, mask=mask)
        theirs[name] = optax.adamw(0.1, weight_decay=0.3, mask=mask)
    ours["everything"] = fnn.adamw(0.1, weight_decay=0.3, mask=True)
    theirs["everything"] = optax.adamw(0.1, weight_decay=0.3)
    grads = times(1, 1, 1, 1, 1)
    assert_same_path(follow_each(ours, PARAMS, grads), follow_each(theirs, PARAMS, grads))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fnn.sgd(-0.1), ValueError, r"sgd: learning_rate is -0.1, expected a number >= 0"),
        (lambda: fnn.adam(float("nan")), ValueError, r"adam: learning_rate is nan"),
        (lambda: fnn.adam(0.1, b2=1.0), ValueError, r"adam: b2 is 1.0, expected a number in \[0, 1\)"),
        (lambda: fnn.adam(0.1, b1=-0.1), ValueError, r"adam: b1 is -0.1, expected a number in \[0, 1\)"),
        (lambda: fnn.adam(0.1, amsgrad="max"), ValueError, r"adam: amsgrad is 'max', expected None, 'corrected'"),
        (lambda: fnn.rmsprop(0.1, eps=-1e-8), ValueError, r"rmsprop: eps is -1e-08, expected a number >= 0"),
        (lambda: fnn.rmsprop(0.1, momentum=1.0), ValueError, r"rmsprop: momentum is 1.0"),
        (lambda: fnn.momentum(0.1, 1.5), ValueError, r"momentum: decay is 1.5"),
        (lambda: fnn.adagrad(0.1, -1.0), ValueError, r"adagrad: initial_accumulator is -1.0"),
        (lambda: fnn.adamw(0.1, weight_decay=-1.0), ValueError, r"adamw: weight_decay is -1.0"),
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
            lambda: fnn.optim.add_weight_decay(0.1).update(GRADS, ()),
            ValueError,
            r"add_weight_decay: update\(grads, state\) came without params",
        ),
        (
            lambda: fnn.averaged(fnn.sgd(0.1)).update(GRADS, ()),
            ValueError,
            r"averaged: update\(grads, state\) came without params",
        ),
        (
            lambda: fnn.adam(0.1).update({"layer": {"w": jnp.ones(2)}}, fnn.adam(0.1).init(PARAMS)),
            ValueError,
            r"adam: grads and mu differ in structure \(first at 'layer/b'\): grads are PyTreeDef.*mu PyTree",
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
