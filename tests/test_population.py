import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.table_of_optimizers import OPTIMIZERS
from tests.test_training import KEY, LABELS, X, run

KEYS = jax.random.split(KEY, 3)


def member(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.mark.parametrize("row", OPTIMIZERS, ids=lambda row: row.name)
def test_a_member_is_its_solo_run_bit_for_bit(row):
    """On eight CPU devices, dropout and clipping on, one rate so large that it diverges."""
    rates = jnp.array([0.01, 0.1, 1e30])

    def solo(key, learning_rate):
        return run(key, learning_rate, optimizer=row.make)

    together = fnn.sweep(solo, KEYS, {"learning_rate": rates})
    alone = jax.jit(solo)
    for i in range(3):
        for j in range(3):
            chex.assert_trees_all_equal(member(together, i, j), alone(KEYS[i], rates[j]))
    diverged = np.asarray(together[1]["loss"][:, 2])
    assert not np.isfinite(diverged).all() or diverged.max() > 1e3


def test_more_members_change_nothing():
    rates = jnp.array([0.01, 0.1, 1.0])
    small = fnn.sweep(run, KEYS[:1], {"learning_rate": rates[:2]})
    large = fnn.sweep(run, KEYS, {"learning_rate": rates})
    chex.assert_trees_all_equal(small, jax.tree.map(lambda leaf: leaf[:1, :2], large))


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


def test_side_by_side_is_one_after_another():
    grid = {"learning_rate": jnp.array([0.01, 0.1])}
    narrow, wide = (fnn.sweep(run, KEYS, grid, width=width) for width in (1, 3))
    chex.assert_trees_all_close(narrow, wide, rtol=1e-3, atol=1e-5)


def test_seeds_alone_and_old_keys():
    result = fnn.sweep(jax.random.uniform, KEYS)
    chex.assert_trees_all_equal(result, jax.vmap(jax.random.uniform)(KEYS))
    old = jax.random.key_data(KEYS)
    chex.assert_trees_all_equal(fnn.sweep(jax.random.uniform, old), result)


def test_one_trace_for_all_members_and_every_call():
    traces = []

    def counted(key, learning_rate):
        traces.append(1)
        return run(key, learning_rate)

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


def test_ensembles_learn():
    _, history = fnn.sweep(run, KEYS)
    assert (history["loss"][:, -1].mean(-1) < history["loss"][:, 0].mean(-1)).all()
    assert LABELS.max() == 2
