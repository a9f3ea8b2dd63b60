import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training._programs import peak_bytes
from tests.nets import KEY, X, linear_run, run
from tests.table_of_optimizers import OPTIMIZERS

KEYS = jax.random.split(KEY, 3)


def member(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


RATES = jnp.array([0.01, 0.1, 1e30])  # the last so large that it diverges
MAKERS = {row.name: row.make for row in OPTIMIZERS}


@functools.cache
def solo(name):
    """One run as a function of its key and rate, dropout and clipping on."""

    def run(key, learning_rate):
        return linear_run(key, learning_rate, optimizer=MAKERS[name])

    return run


@functools.cache
def swept(name):
    return jax.device_get(fnn.sweep(solo(name), KEYS, {"learning_rate": RATES}))


@pytest.mark.parametrize(
    "name",  # adam is in the ordinary run; what is held is the sweep's, not the optimizer's
    [pytest.param(n, marks=[] if n == "adam" else [pytest.mark.slow]) for n in MAKERS],
)
def test_a_member_is_its_solo_run_bit_for_bit(name):
    """On eight CPU devices."""
    together, alone = swept(name), jax.jit(solo(name))
    for i in range(3):
        for j in range(3):
            chex.assert_trees_all_equal(member(together, i, j), alone(KEYS[i], RATES[j]))
    diverged = together[1]["loss"][:, 2]
    assert not np.isfinite(diverged).all() or diverged.max() > 1e3


def test_paired_values_belong_to_one_key_each():
    """On eight CPU devices, bit for bit, as the members of a grid."""
    together, alone = fnn.sweep(solo("adam"), KEYS, paired={"learning_rate": RATES}), swept("adam")
    for i in range(3):
        chex.assert_trees_all_equal(member(together, i), member(alone, i, i))


@pytest.mark.parametrize("width", [None, 1, 2, 9])
def test_each_paired_name_has_the_value_of_its_key(width):
    def label(key, z, a):
        return {"z": z, "a": a, "bits": jax.random.bits(key)}

    z, a = np.array([3.0, 1.0, 2.0]), np.arange(6).reshape(3, 2)
    result = fnn.sweep(label, KEYS, paired={"z": z, "a": a}, width=width)
    bits = jax.vmap(jax.random.bits)(KEYS)
    chex.assert_trees_all_equal(result, {"z": jnp.asarray(z), "a": jnp.asarray(a), "bits": bits})
    with jax.disable_jit():
        chex.assert_trees_all_equal(fnn.sweep(label, KEYS, paired={"z": z, "a": a}), result)


def test_paired_values_are_traced_once():
    traces = []

    def counted(key, learning_rate):
        traces.append(1)
        return jax.random.normal(key) * learning_rate

    for rates in ([0.1, 0.2, 0.3], [0.3, 0.4, 0.5]):
        fnn.sweep(counted, KEYS, paired={"learning_rate": rates})
    assert len(traces) == 1


def test_more_members_change_nothing():
    small = fnn.sweep(solo("adam"), KEYS[:1], {"learning_rate": RATES[:2]})
    large = jax.tree.map(lambda leaf: leaf[:1, :2], swept("adam"))
    chex.assert_trees_all_equal(small, large)


def test_axes_are_keys_then_the_grid_in_its_order():
    def label(key, z, a):
        return {"z": z, "a": a, "bits": jax.random.bits(key)}

    z, a = jnp.arange(4.0), jnp.array([10, 20])
    for width in (None, 1, 5, 100):
        result = fnn.sweep(label, KEYS, {"z": z, "a": a}, width=width)
        np.testing.assert_array_equal(result["z"], np.broadcast_to(z[:, None], (3, 4, 2)))
        np.testing.assert_array_equal(result["a"], np.broadcast_to(a, (3, 4, 2)))
        bits = jax.vmap(jax.random.bits)(KEYS)
        np.testing.assert_array_equal(
            result["bits"], np.broadcast_to(bits[:, None, None], (3, 4, 2))
        )


def test_side_by_side_is_one_after_another_and_all_learn():
    narrow = fnn.sweep(solo("adam"), KEYS, {"learning_rate": RATES}, width=1)
    narrow, wide = (
        jax.tree.map(lambda leaf: np.asarray(leaf)[:, :2], runs) for runs in (narrow, swept("adam"))
    )
    chex.assert_trees_all_close(narrow, wide, rtol=1e-3, atol=1e-5)
    losses = wide[1]["loss"].mean(-1)
    assert (losses[..., -1] < losses[..., 0]).all()


def test_seeds_alone_and_old_keys():
    result = fnn.sweep(jax.random.uniform, KEYS)
    chex.assert_trees_all_equal(result, jax.vmap(jax.random.uniform)(KEYS))
    old = jax.random.key_data(KEYS)
    chex.assert_trees_all_equal(fnn.sweep(jax.random.uniform, old), result)


def test_one_trace_for_all_members_and_every_call():
    traces = []

    def counted(key, learning_rate):
        traces.append(1)
        return jax.random.normal(key) * learning_rate

    for rates in ([0.1, 0.2], [0.3, 0.4]):
        fnn.sweep(counted, KEYS, {"learning_rate": rates})
    assert len(traces) == 1


def test_runs_may_close_over_arrays_that_live_on_one_device():
    x = jax.device_put(X, jax.devices()[3])
    result = fnn.sweep(lambda key: x.sum(), KEYS)
    np.testing.assert_allclose(result, np.full(3, np.asarray(X).sum()), rtol=1e-5)


def test_masks_of_members_differ():
    masks = fnn.sweep(lambda key: fnn.dropout(key, jnp.ones(64), 0.5), jax.random.split(KEY, 16))
    assert len(np.unique(np.asarray(masks), axis=0)) == 16


SCALES = {"scale": [1.0, 2.0]}  # with 32 keys 64 members, 8 on each of eight devices


def squares(key, scale):
    """[256], by way of [256, 256], which no compiler can do without; quick to compile."""
    seed = (jax.random.key_data(key)[-1] % 1000).astype(jnp.float32)
    big = jnp.cos(jnp.outer(jnp.arange(256.0), jnp.arange(256.0)) + seed) * scale
    return (jnp.sort(big) ** 2).sum(0)


@pytest.fixture
def memory(monkeypatch):
    """memory(limit): as on an accelerator with so many bytes; what programs need is listed."""
    needed = []

    def noted(program):
        needed.append(peak_bytes(program))
        return needed[-1]

    def limited(limit):
        needed.clear()
        monkeypatch.setattr("fnn.training._sweep.side_by_side", lambda device: True)
        monkeypatch.setattr("fnn.training._sweep.peak_bytes", noted)
        for file in ("_sweep", "_programs"):
            monkeypatch.setattr(f"fnn.training.{file}.memory_limit", lambda devices: limit)
        return needed

    return limited


def test_a_sweep_splits_itself_before_memory_runs_out(memory):
    """Into even groups, as few as fit into 0.9 of it; then nothing is compiled again."""
    keys, needs = jax.random.split(KEY, 32), memory(None)
    whole = fnn.sweep(squares, keys, SCALES)
    for width in (4, 3, 2, 1):
        fnn.sweep(squares, keys, SCALES, width=width)
    by_width = dict(zip((8, 4, 3, 2, 1), list(needs), strict=True))
    assert sorted(by_width, key=by_width.__getitem__) == [1, 2, 3, 4, 8]
    for expected in (8, 4, 2):
        limit = int(by_width[expected] / 0.9) + 1
        memory(limit)
        split = fnn.sweep(squares, keys, SCALES)
        np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-2)
        assert needs[-1] == by_width[expected]
        compiled = len(needs)
        assert compiled <= 4
        fnn.sweep(squares, keys, SCALES)
        assert len(needs) == compiled


def test_too_little_memory_for_one_member_is_said_before_anything_runs(memory):
    memory(200_000)
    said = r"sweep: the program at width 1 needs 0.000\d+ GB at once, but .* has 0.0002 GB"
    ran = []

    def run(key):
        jax.debug.callback(lambda: ran.append(1))
        return squares(key, 1.0)

    with pytest.raises(MemoryError, match=said):
        fnn.sweep(run, KEYS)
    with pytest.raises(MemoryError, match="sweep: the program at width 3 needs"):
        fnn.sweep(run, jax.random.split(KEY, 24), width=3)
    assert not ran


def test_a_compiler_that_refuses_a_program_has_it_smaller(memory, monkeypatch):
    """As a TPU's does."""
    refused, compile_ = [], jax.stages.Lowered.compile

    def small_only(lowered, *args, **options):
        if "16x256x256" in lowered.as_text():
            refused.append(1)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM")
        return compile_(lowered, *args, **options)

    memory(None)
    monkeypatch.setattr(jax.stages.Lowered, "compile", small_only)
    keys = jax.random.split(KEY, 128)
    result = fnn.sweep(lambda key: squares(key, 1.0), keys)
    assert result.shape == (128, 256)
    assert refused == [1]
    with pytest.raises(MemoryError, match="sweep: the program at width 16: RESOURCE_EXHAUSTED"):
        fnn.sweep(lambda key: squares(key, 1.0), keys, width=16)


def test_inside_another_program_all_members_are_side_by_side(memory):
    memory(1)

    def total(scale, keys):
        return fnn.sweep(lambda key: squares(key, scale), keys).sum()

    expected = sum(squares(key, 2.0).sum() for key in KEYS)
    np.testing.assert_allclose(jax.jit(total)(2.0, KEYS), expected, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(lambda: total(2.0, KEYS))(), expected, rtol=1e-4)
    slope = jax.grad(total)(2.0, KEYS)  # of scale^2
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_cores_are_all_used():
    assert jax.device_count() == 8
    result = fnn.sweep(lambda key: jax.random.uniform(key, (4,)), jax.random.split(KEY, 16))
    assert len(result.sharding.device_set) == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fnn.sweep(run, KEY), r"sweep: keys have shape \(\), expected \[n\]"),
        (lambda: fnn.sweep(run, KEYS[:0]), r"sweep: keys have shape \(0,\), expected \[n\]"),
        (lambda: fnn.sweep(run, KEYS, {"learning_rate": 0.1}), r"sweep: learning_rate has shape \(\), expected at least one value"),
        (lambda: fnn.sweep(run, KEYS, {"learning_rate": []}), r"sweep: learning_rate has shape \(0,\)"),
        (
            lambda: fnn.sweep(run, KEYS, paired={"learning_rate": [0.1, 0.2]}),
            "sweep: learning_rate has 2 values for 3 keys, expected one for each",
        ),
        (
            lambda: fnn.sweep(run, KEYS, paired={"learning_rate": 0.1}),
            r"sweep: learning_rate has shape \(\), expected at least one value",
        ),
        (lambda: fnn.sweep(run, KEYS, width=0), "sweep: width is 0, expected at least 1"),
        (
            lambda: fnn.sweep(run, jax.random.split(jax.random.key(0, impl="rbg"), 4), width=2),
            "sweep: keys of the rbg generator draw other numbers under vmap than alone",
        ),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rbg_keys_are_fine_one_after_another():
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 4)
    result = fnn.sweep(jax.random.uniform, keys, width=1)
    chex.assert_trees_all_equal(result, jnp.stack([jax.random.uniform(key) for key in keys]))


def test_a_misspelt_hyperparameter_is_a_type_error():
    with pytest.raises(TypeError, match="learning_rat"):
        fnn.sweep(run, KEYS, {"learning_rat": [0.1]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {"rate": [1.0]}, "paired": {"rate": [1.0]}}, "sweep: grid and paired came, expected one of them"),
        ({"paired": [0.1, 0.2, 0.3]}, "sweep: paired is a list, expected a dict such as"),
        ({"paired": {"rule": ["adam", "sgd", "lion"]}}, "sweep: rule has the values .* expected numbers"),
    ],
)  # fmt: skip
def test_paired_values_of_another_kind(options, message):
    with pytest.raises(TypeError, match=message):
        fnn.sweep(run, KEYS, **options)


def test_a_member_again_alone_with_its_whole_history():
    """The sweep kept one number of each run; the run of one key and rate has all the others."""

    def last_loss(key, learning_rate):
        return solo("adam")(key, learning_rate)[1]["loss"][-1, -1]

    kept = fnn.sweep(last_loss, KEYS, paired={"learning_rate": RATES})
    for i in range(3):
        _, history = jax.jit(solo("adam"))(KEYS[i], RATES[i])
        np.testing.assert_array_equal(kept[i], history["loss"][-1, -1])
