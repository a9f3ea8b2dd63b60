"""What `make_train_step` can do beyond a plain step: parts, weights, half precision, devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from tests.test_training import KEY, LABELS, RNG, X, init, loss_fn

ADAM = fnn.adam(0.01)


def one_step(loss=loss_fn, batch=(X[:96], LABELS[:96]), mask=None, ts=None, **options):
    ts = fnn.train_init(init(), ADAM) if ts is None else ts
    return jax.jit(fnn.make_train_step(loss, ADAM, **options))(ts, batch, KEY, mask)


# --- accumulation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, "weights"])
def test_parts_are_the_large_batch(mask):
    if mask is not None:  # a part without a row that counts, and rows of any weight
        mask = jnp.asarray(RNG.uniform(size=96) * (np.arange(96) % 48 >= 16), jnp.float32)
    whole, metrics = one_step(mask=mask, clip_norm=0.1)
    for parts in (2, 6):
        ts, found = one_step(mask=mask, clip_norm=0.1, accumulate=parts)
        chex.assert_trees_all_close(found, metrics, rtol=1e-5)
        chex.assert_trees_all_close(ts, whole, rtol=2e-5, atol=1e-6)


def test_parts_thread_the_state_and_draw_apart():
    def loss(params, state, batch, key):
        return batch * params + jax.random.normal(key), state + batch.sum()

    step = fnn.make_train_step(loss, fnn.sgd(1.0), has_state=True, accumulate=2)
    ts = fnn.train_init(jnp.ones(()), fnn.sgd(1.0), jnp.zeros(()))
    ts, metrics = step(ts, jnp.arange(4.0), KEY)
    assert float(ts.state) == 6
    keys = [jax.random.fold_in(jax.random.fold_in(KEY, 0), i) for i in range(2)]
    noise = np.mean([jax.random.normal(key) for key in keys])
    np.testing.assert_allclose(metrics["loss"], 1.5 + noise, rtol=1e-6)


def test_half_precision_gradients_are_added_up_in_float32():
    # In bfloat16 the sum would stand still at 256.
    step = fnn.make_train_step(lambda p, b, k: p * b, fnn.sgd(1.0), accumulate=512)
    ts = fnn.train_init(jnp.zeros((), jnp.bfloat16), fnn.sgd(1.0))
    ts, _ = jax.jit(step)(ts, jnp.ones(512, jnp.bfloat16), KEY)
    assert float(ts.params) == -1


# --- weights and the tail -------------------------------------------------------------------------


def test_weights_are_rows_repeated():
    counts = RNG.integers(0, 4, size=24)
    repeated = tuple(np.repeat(a[:24], counts, axis=0) for a in (np.asarray(X), np.asarray(LABELS)))
    rows = (X[:24], LABELS[:24])
    step = fnn.make_train_step(loss_fn, fnn.sgd(0.1))
    ts = fnn.train_init(init(), fnn.sgd(0.1))
    whole = {"epochs": 3, "batch_size": 24, "weights": jnp.asarray(counts, jnp.float32)}
    ours, _ = jax.jit(lambda ts: fnn.fit(step, ts, rows, KEY, **whole))(ts)
    whole = {"epochs": 3, "batch_size": counts.sum()}
    theirs, _ = jax.jit(lambda ts: fnn.fit(step, ts, repeated, KEY, **whole))(ts)
    chex.assert_trees_all_close(ours.params, theirs.params, rtol=1e-5, atol=1e-6)


def test_class_weights_are_balanced():
    labels = jnp.array([0, 0, 0, 2, 2, 3])
    weights = fnn.data.class_weights(labels, 5)
    np.testing.assert_allclose(weights, [2 / 3, 2 / 3, 2 / 3, 1, 1, 2], rtol=1e-6)
    assert np.isclose(weights.mean(), 1)


def test_the_tail_may_wrap():
    counts = jax.jit(
        lambda ts: fnn.fit(
            fnn.make_train_step(lambda p, b, k: p * b, fnn.sgd(1.0)), ts, jnp.eye(10), KEY,
            epochs=1, batch_size=4, tail="wrap",
        )
    )(fnn.train_init(jnp.zeros(10), fnn.sgd(1.0)))[0].params  # fmt: skip
    seen = np.round(np.asarray(-counts) * 40)
    assert sorted(seen) == [1] * 8 + [2] * 2  # the first two of the epoch once more


# --- several devices ------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [2, 8])
def test_on_any_number_of_devices_the_tail_counts_exactly(devices):
    rows = 1003
    x = jnp.asarray(RNG.normal(size=(rows, 4)), jnp.float32)
    labels = x[:, :3].argmax(-1)
    plain = fnn.make_train_step(loss_fn, ADAM)
    ts = fnn.train_init(init(), ADAM)
    traces = []

    def run(step):
        def fit(ts, data):
            traces.append(step)
            return fnn.fit(step, ts, data, KEY, epochs=2, batch_size=64)

        return jax.jit(fit)(ts, (x, labels))

    one, history = run(plain)
    many, dealt = run(fnn.data_parallel(plain, jax.devices()[:devices]))
    assert len(traces) == 2
    chex.assert_trees_all_close(dealt, history, rtol=1e-4)
    chex.assert_trees_all_close(many.params, one.params, rtol=1e-4, atol=1e-5)
    assert len(jax.tree.leaves(many.params)[0].sharding.device_set) == devices


def test_a_batch_that_cannot_be_dealt_out():
    step = fnn.data_parallel(fnn.make_train_step(loss_fn, ADAM))
    with pytest.raises(ValueError, match=r"data_parallel: a batch of 12 rows .* to 8 devices"):
        step(fnn.train_init(init(), ADAM), (X[:12], LABELS[:12]), KEY)


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_compute_in_half_precision_keep_float32(dtype):
    seen = []

    def loss(params, batch, key):
        seen.append({leaf.dtype for leaf in jax.tree.leaves((params, batch[0]))})
        return loss_fn(params, batch, key)

    ts, metrics = one_step(loss, compute_dtype=dtype)
    assert seen[0] == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(ts.params)} == {jnp.dtype(jnp.float32)}
    _, exact = one_step()
    np.testing.assert_allclose(metrics["loss"], exact["loss"], rtol=2e-2)
    np.testing.assert_allclose(metrics["grad_norm"], exact["grad_norm"], rtol=5e-2)


def tiny(params, batch, key):  # gradients of 1e-8, which float16 has not
    return (
        params
        * batch.astype(params.dtype)
        * jnp.asarray(1e-4, params.dtype)
        * jnp.asarray(1e-4, params.dtype)
    )


def test_a_loss_scale_keeps_small_gradients():
    step = fnn.make_train_step(tiny, fnn.sgd(1.0), compute_dtype=jnp.float16)
    batch = jnp.ones(4)
    plain, _ = step(fnn.train_init(jnp.ones(()), fnn.sgd(1.0)), batch, KEY)
    assert float(plain.params) == 1
    scaled = fnn.train_init(jnp.zeros(()), fnn.sgd(1.0), loss_scale=2.0**15)
    scaled, metrics = step(scaled, batch, KEY)
    np.testing.assert_allclose(scaled.params, -1e-8, rtol=0.02)
    assert float(metrics["loss_scale"]) == 2.0**15


def test_a_loss_scale_keeps_small_gradients_of_half_precision_parameters():
    def loss(params, batch, key):
        return params * batch  # a gradient of 3e-8, half of float16's smallest number

    batch = jnp.full(4, 3e-8 * 2.0**10, jnp.float16)
    optimizer = fnn.adam(0.25, eps=1e-12)
    step = fnn.make_train_step(lambda *args: loss(*args) * jnp.float16(2.0**-10), optimizer)
    start = fnn.train_init(jnp.zeros((), jnp.float16), optimizer, loss_scale=2.0**15)
    ts, metrics = step(start, batch, KEY)
    assert ts.params.dtype == jnp.float16
    np.testing.assert_allclose(metrics["grad_norm"], 3e-8, rtol=0.01)
    np.testing.assert_allclose(ts.params, -0.25, rtol=1e-3)


def test_the_loss_scale_halves_and_doubles_between_its_bounds():
    def loss(params, batch, key):
        return params * batch

    step = jax.jit(fnn.make_train_step(loss, fnn.sgd(0.0), nonfinite="stop"))
    ts = fnn.train_init(jnp.ones(()), fnn.sgd(0.0), loss_scale=4.0)
    bad, metrics = step(ts, jnp.full(4, 2e38), KEY)  # finite, but not four times
    assert float(bad.loss_scale.scale) == 2
    assert int(metrics["nonfinite"]) == -1  # a smaller scale mends it
    assert bad.first_bad.tolist() == [-1, -1]
    ts = bad._replace(loss_scale=bad.loss_scale._replace(good=jnp.int32(1999)))
    up, _ = step(ts, jnp.ones(4), KEY)
    assert (float(up.loss_scale.scale), int(up.loss_scale.good)) == (4, 0)
    top = ts.loss_scale._replace(scale=jnp.float32(2.0**24))
    assert float(step(ts._replace(loss_scale=top), jnp.ones(4), KEY)[0].loss_scale.scale) == 2.0**24
    least = ts._replace(loss_scale=ts.loss_scale._replace(scale=jnp.float32(1)))
    worst, metrics = step(least, jnp.full(4, jnp.inf), KEY)
    assert float(worst.loss_scale.scale) == 1
    assert worst.first_bad.tolist()[0] == 1  # now it is the net's own


# --- the average ----------------------------------------------------------------------------------


def test_the_average_is_optaxs_ema_of_the_parameters(standard_promotion):
    optimizer = fnn.averaged(fnn.adam(0.1), 0.9)
    params = init()
    state, average = optimizer.init(params), params
    update = jax.jit(optimizer.update)
    for i in range(5):
        grads = jax.tree.map(lambda p, i=i: jnp.cos(p + i), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 0.1)
    chex.assert_trees_all_close(state["average"], average, rtol=1e-5, atol=1e-7)
    half = fnn.averaged(fnn.sgd(0.1)).init(jnp.ones(2, jnp.bfloat16))
    assert half["average"].dtype == jnp.float32


# --- the ratio, and errors ------------------------------------------------------------------------


def test_the_update_ratio():
    ts = fnn.train_init({"w": jnp.array([3.0, 4.0])}, fnn.sgd(0.1))
    step = fnn.make_train_step(lambda p, b, k: p["w"].sum() * b, fnn.sgd(0.1), update_ratio=True)
    _, metrics = jax.jit(step)(ts, jnp.ones(3), KEY)
    np.testing.assert_allclose(metrics["update_ratio"], 0.1 * np.sqrt(2) / 5, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_step(accumulate=5), "a batch of 96 rows cannot be accumulated in 5 parts"),
        (lambda: one_step(accumulate=0), "make_train_step: accumulate is 0, expected at least 1"),
        (lambda: fnn.averaged(ADAM, 1.0), r"averaged: decay is 1.0, expected a number in \[0, 1\)"),
        (
            lambda: fnn.make_train_step(lambda p, s, b, k: (p * b, {"mean": s["mean"].astype(jnp.bfloat16)}), ADAM, has_state=True)(
                fnn.train_init(jnp.ones(()), ADAM, {"mean": jnp.ones(2)}), jnp.ones(3), KEY
            ),
            r"loss_fn returned a state whose 'mean' is bfloat16\[2\], expected float32\[2\]",
        ),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
