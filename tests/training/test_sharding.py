import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.nets import KEY, linear_init, linear_loss_fn

STEP = fnn.make_train_step(linear_loss_fn, fnn.adam(0.01))


def test_on_any_number_of_devices_the_tail_counts_exactly():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1003, 4)), jnp.float32)
    data, traces = (x, x[:, :3].argmax(-1)), []

    def run(step):
        def fit(ts, data):
            traces.append(step)
            return fnn.fit(step, ts, data, KEY, epochs=2, batch_size=64)

        return jax.jit(fit)(STEP.init(linear_init()), data)

    one, history = run(STEP)
    for devices in (2, 8):
        many, dealt = run(fnn.data_parallel(STEP, jax.devices()[:devices]))
        chex.assert_trees_all_close(dealt, history, rtol=1e-4)
        chex.assert_trees_all_close(many.params, one.params, rtol=1e-4, atol=1e-5)
        assert len(jax.tree.leaves(many.params)[0].sharding.device_set) == devices
    assert len(traces) == 3


def normed_init(key):
    params, state = fnn.batch_norm_init(5)
    return {
        "in": fnn.dense_init(key, 4, 5),
        "norm": params,
        "out": fnn.dense_init(key, 5, 3),
    }, state


def normed_loss_fn(params, state, batch, key):
    h, state = fnn.batch_norm(params["norm"], state, fnn.dense(params["in"], batch[0]), train=True)
    return fnn.cross_entropy(fnn.dense(params["out"], fnn.relu(h)), batch[1]), state


def on_8_devices(rows):
    """(step of one device, the same step of eight, its train state, a batch of so many rows)."""
    step = fnn.make_train_step(normed_loss_fn, fnn.sgd(0.1), clip_norm=0.1)
    # Each device's rows are about a mean of their own: it is not that of the batch.
    x = np.random.default_rng(0).normal(size=(rows, 4)) + np.arange(rows)[:, None]
    batch = jnp.asarray(x, jnp.float32), jnp.arange(rows, dtype=jnp.int32) % 3
    return step, fnn.data_parallel(step), step.init(*normed_init(KEY)), batch


def test_batch_norm_and_clipping_are_of_the_whole_batch():
    step, split, ts, batch = on_8_devices(32)
    one, metrics = jax.jit(step.update)(ts, batch, KEY)
    ts = split.init(*normed_init(KEY))
    many, dealt = jax.jit(split.update)(ts, batch, KEY)
    assert metrics["grad_norm"] > 0.1  # so that clipping clips
    chex.assert_trees_all_close(dealt, metrics, rtol=1e-4)
    moved = (many.params, many.state), (one.params, one.state)
    chex.assert_trees_all_close(*moved, rtol=1e-4, atol=1e-6)
    h = np.asarray(batch[0], np.float64) @ np.asarray(ts.params["in"]["w"], np.float64)
    momentum = np.asarray(many.state["mean"]) / h.mean(0)  # it was 0, and so is the bias
    np.testing.assert_allclose(momentum, momentum[0], rtol=1e-4)


def test_devices_exchange_gradients_once_and_gather_nothing():
    """One all-reduce of all gradients and the loss; batch norm's three, each of which needs the
    one before: the mean, the variance, their gradients, which are those of scale and offset.
    """
    _, split, ts, batch = on_8_devices(32)
    text = jax.jit(split.update).lower(ts, batch, KEY).compile().as_text()
    assert not re.search(r" (all-gather|all-to-all|collective-permute|reduce-scatter)", text)
    reduced = re.findall(r"= (\(.*?\)|\S+) all-reduce(?:-start)?\(", text)
    numbers = sum(
        int(np.prod([int(n) for n in axes.split(",") if n]))
        for shape in reduced
        for dtype, axes in re.findall(r"(f32)\[([\d,]*)\]", shape)
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(ts.params))
    assert parameters < numbers <= parameters + 1 + 3 * 5  # the variance comes with the mean again
    assert len([shape for shape in reduced if "f32" in shape]) <= 4


def dropped_loss_fn(params, state, batch, key):
    h, state = fnn.batch_norm(params["norm"], state, fnn.dense(params["in"], batch[0]), train=True)
    h = fnn.dropout(key, fnn.relu(h), 0.3)
    return fnn.cross_entropy(fnn.dense(params["out"], h), batch[1]), state


@pytest.mark.parametrize("rows", [3, 7, 12, 13])
def test_any_number_of_rows_is_split(rows):
    """Batch norm sees the rows of the batch and no others, on one device as on eight."""
    _, _, _, batch = on_8_devices(rows)
    step = fnn.make_train_step(dropped_loss_fn, fnn.sgd(0.1), clip_norm=0.1)
    split = fnn.data_parallel(step)
    mask = None if rows == 12 else jnp.arange(rows) != 1
    first = normed_init(KEY)
    one, metrics = jax.jit(step.update)(step.init(*first), batch, KEY, mask)
    given = split.init(*first), batch, KEY, mask
    compiled = jax.jit(split.update).lower(*given).compile()
    many, dealt = compiled(*given)
    chex.assert_trees_all_close(dealt, metrics, rtol=1e-4)
    chex.assert_trees_all_close(
        (many.params, many.state), (one.params, one.state), rtol=1e-4, atol=1e-6
    )
    if jax.__version_info__ < (0, 10, 2):
        return  # its program has other words for products
    products = re.findall(r"= f32\[(\d+),5\]\S* dot\(", compiled.as_text())
    assert str(-(-rows // 8)) in products  # each device has its rows alone
    assert str(rows) not in set(products) - {"3", "4"}  # those of the weights


def test_a_run_whose_batches_and_tail_are_not_even():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(103, 4)), jnp.float32)
    data = (x, x[:, :3].argmax(-1))
    step = fnn.make_train_step(dropped_loss_fn, fnn.sgd(0.1))

    def run(step):
        ts = step.init(*normed_init(KEY))
        return jax.jit(lambda ts: fnn.fit(step, ts, data, KEY, epochs=2, batch_size=13))(ts)

    (one, history), (many, dealt) = run(step), run(fnn.data_parallel(step))
    chex.assert_trees_all_close(dealt, history, rtol=1e-3)
    chex.assert_trees_all_close(
        (many.params, many.state), (one.params, one.state), rtol=1e-3, atol=1e-5
    )
