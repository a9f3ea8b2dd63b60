"""One gradient step: by hand, in parts, weighed, in half precision; whose train state it takes."""

import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import fnn
from tests.nets import (
    KEY,
    LABELS,
    X,
    dropout_loss_fn,
    init,
    linear_init,
    linear_loss_fn,
    loss_fn,
)
from tests.table_of_optimizers import OPTIMIZERS

BATCH = (X[:96], LABELS[:96])


def scaled(params, batch, key):
    """The least loss: the gradient is the mean of the batch."""
    return params * batch


def learn(step, ts, batch, steps=20):
    """-> (ts, losses) of steps on one batch."""
    return lax.scan(lambda ts, _: step(ts, batch, KEY), ts, length=steps)


# --- the step -----------------------------------------------------------------------------------


def test_a_step_by_hand():
    def squares(params, batch, key):
        x, y = batch
        return fnn.squared_error(fnn.dense(params, x)[:, 0], y)

    rng = np.random.default_rng(0)
    w, b = np.array([[0.5], [-1.0]]), np.array([0.25])
    x, y = rng.normal(size=(6, 2)), rng.normal(size=6)
    params = {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
    step = fnn.make_train_step(squares, fnn.sgd(0.1), clip_norm=0.5)
    batch = (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    ts, metrics = jax.jit(step)(step.init(params), batch, KEY)

    error = x @ w[:, 0] + b - y
    dw, db = 2 * x.T @ error / 6, 2 * error.mean()
    norm = np.sqrt((dw**2).sum() + db**2)
    assert norm > 0.5
    np.testing.assert_allclose(metrics["loss"], (error**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(ts.params["w"][:, 0], w[:, 0] - 0.1 * dw * 0.5 / norm, rtol=1e-5)
    np.testing.assert_allclose(ts.params["b"], b - 0.1 * db * 0.5 / norm, rtol=1e-5)
    assert int(ts.step) == 1
    assert int(metrics["nonfinite"]) == -1


def test_golden_step(request):
    """Adamw, clipping and dropout on the digits: the numbers of the first release."""
    path = request.config.rootpath / "tests" / "golden" / "train_step.json"
    x, labels = fnn.datasets.digits().train
    step = fnn.make_train_step(dropout_loss_fn, fnn.adamw(0.01, weight_decay=0.1), clip_norm=0.5)
    ts, update = step.init(fnn.mlp_init(KEY, (64, 16, 10))), jax.jit(step)
    got = []
    for i in range(3):
        ts, metrics = update(ts, (jnp.asarray(x[:32]), jnp.asarray(labels[:32])), jax.random.key(1))
        sums = {
            path: float(np.abs(leaf).sum()) for path, leaf in fnn.params.paths(ts.params).items()
        }
        got.append(
            {"step": i, "loss": float(metrics["loss"]), "grad_norm": float(metrics["grad_norm"])}
            | sums
        )
    advice = (
        "the golden train step has changed. If that was meant, say so in CHANGELOG.md, since every"
        f" user's results change with it, and write the new numbers:\n{json.dumps(got, indent=1)}\nto {path}"
    )
    golden = json.loads(path.read_text())
    assert [list(row) for row in golden] == [list(row) for row in got], advice
    for row, golden_row in zip(got, golden, strict=True):
        np.testing.assert_allclose(
            list(row.values()), list(golden_row.values()), rtol=1e-4, err_msg=advice
        )


def test_a_step_is_a_pair():
    step = fnn.make_train_step(scaled, fnn.adam(0.1), nonfinite="stop")
    ts = step.init(jnp.ones(()))
    assert (ts.state, step.policy) == ((), "stop")
    called, updated = jax.jit(lambda *args: (step(*args), step.update(*args)))(ts, jnp.ones(4), KEY)
    chex.assert_trees_all_equal(called, updated)


def test_takes_any_optax_transformation(standard_promotion):
    makers = [optax.adam, optax.lion, lambda r: optax.chain(optax.clip(1.0), optax.sgd(r, 0.9))]

    def losses_of(make, params, batch):
        step = fnn.make_train_step(linear_loss_fn, make(0.01))
        return learn(step, step.init(params), batch)[1]["loss"]

    for losses in jax.jit(lambda *args: [losses_of(make, *args) for make in makers])(
        linear_init(), BATCH
    ):
        assert losses[-1] < losses[0]


def test_ours_in_optax_style_training_is_the_same_step(standard_promotion):
    step = fnn.make_train_step(loss_fn, fnn.adam(0.1))
    ts, _ = jax.jit(step)(step.init(init()), (X, LABELS), KEY)

    @jax.jit
    def by_hand(params):
        optimizer = fnn.adam(0.1)
        grads = jax.grad(lambda p: loss_fn(p, (X, LABELS), None).mean())(params)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    # A step of 0.1 leaves a parameter near 0 with the rounding of 0.1.
    chex.assert_trees_all_close(ts.params, by_hand(init()), rtol=1e-6, atol=1e-7)


def test_state_is_threaded():
    def counting(params, state, batch, key):
        return params * batch, {"seen": state["seen"] + batch.shape[0]}

    step = fnn.make_train_step(counting, fnn.sgd(0.1))
    ts = step.init(jnp.ones(()), {"seen": jnp.zeros((), jnp.int32)})
    ts, _ = fnn.fit(step, ts, jnp.ones(103), KEY, epochs=2, batch_size=10, tail="drop")
    assert int(ts.state["seen"]) == 200


def test_train_state_keeps_its_avals():
    for row in OPTIMIZERS:
        step = fnn.make_train_step(loss_fn, row.make(jnp.float32(0.1)), clip_norm=1.0)
        ts = step.init(init())
        after, metrics = jax.eval_shape(step, ts, (X, LABELS), KEY)
        assert after == jax.eval_shape(lambda ts: ts, ts)
        assert all(m.shape == () and not m.weak_type for m in metrics.values())


def test_train_state_may_be_donated():
    step = fnn.make_train_step(scaled, fnn.adam(0.1))
    ts = step.init(jnp.ones(3))
    leaves = jax.tree.leaves(ts)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    update = jax.jit(step, donate_argnums=0)
    ts, _ = update(ts, jnp.ones((4, 1)), KEY)
    ts, _ = update(ts, jnp.ones((4, 1)), KEY)
    assert leaves[0].is_deleted()


DTYPES = (jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16)


def wide(dtype):
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_dtype_passes_through_a_whole_run(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        step = fnn.make_train_step(dropout_loss_fn, fnn.adam(0.01), clip_norm=1.0)

        def whole(x):
            data = (x, LABELS)
            return fnn.fit(step, step.init(init(dtype=dtype)), data, KEY, epochs=3, batch_size=16)

        ts, history = jax.eval_shape(whole, X.astype(dtype))
        chex.assert_type(jax.tree.leaves(ts.params), dtype)
        kept = [history["loss"], history["grad_norm"], *jax.tree.leaves(ts.opt_state["mu"])]
        chex.assert_type(kept, wide(dtype))


def test_every_dtype_learns():
    with jax.enable_x64(True):

        def learned(x, labels, dtype):
            step = fnn.make_train_step(linear_loss_fn, fnn.adam(0.01), clip_norm=1.0)
            return learn(step, step.init(linear_init(dtype=dtype)), (x.astype(dtype), labels))

        results = jax.jit(lambda *batch: [learned(*batch, dtype) for dtype in DTYPES])(*BATCH)
        for (ts, metrics), dtype in zip(results, DTYPES, strict=True):
            chex.assert_type(jax.tree.leaves(ts.params), dtype)
            chex.assert_type([metrics["loss"], *jax.tree.leaves(ts.opt_state["mu"])], wide(dtype))
            assert metrics["loss"][-1] < metrics["loss"][0]


# --- masks ----------------------------------------------------------------------------------------


def test_masked_rows_change_nothing():
    step = fnn.make_train_step(loss_fn, fnn.adam(0.1))
    ts, update = step.init(init()), jax.jit(step)
    mask = jnp.arange(16) < 10
    expected, metrics = update(ts, (X[:10], LABELS[:10]), KEY)
    x = X[:16].at[10:].set(1e6)
    padded, padded_metrics = update(ts, (x, LABELS[:16]), KEY, mask)
    chex.assert_trees_all_close((padded, padded_metrics), (expected, metrics), rtol=1e-5, atol=1e-7)
    none, none_metrics = update(ts, (X[:16], LABELS[:16]), KEY, jnp.zeros(16, bool))
    assert none_metrics["loss"] == 0
    chex.assert_trees_all_equal(none.params, ts.params)


def test_a_mask_weighs():
    step = fnn.make_train_step(loss_fn, fnn.sgd(0.1))
    ts, update = step.init(init()), jax.jit(step)
    twice = jnp.concatenate([jnp.arange(8), jnp.arange(4)])
    expected, _ = update(ts, (X[twice], LABELS[twice]), KEY)
    weighted, _ = update(ts, (X[:8], LABELS[:8]), KEY, jnp.array([2.0] * 4 + [1.0] * 4))
    chex.assert_trees_all_close(weighted.params, expected.params, rtol=1e-5)


def test_losses_of_several_axes_are_averaged():
    step = fnn.make_train_step(scaled, fnn.sgd(0.1))
    x = jnp.arange(12.0).reshape(4, 3)
    masks = [None, jnp.array([1, 1, 0, 0])]
    whole, half = jax.jit(lambda ts: [step(ts, x, KEY, m)[1]["loss"] for m in masks])(
        step.init(jnp.ones(()))
    )
    assert (whole, half) == (5.5, 2.5)


# --- accumulation ---------------------------------------------------------------------------------


def test_parts_are_the_large_batch():
    # Without a mask; and with one that has parts without a row that counts, and rows of any weight.
    draws = np.random.default_rng(0).uniform(size=96)
    masks = [None, jnp.asarray(draws * (np.arange(96) % 48 >= 16), jnp.float32)]
    steps = [
        fnn.make_train_step(linear_loss_fn, fnn.adam(0.01), clip_norm=0.1, accumulate=parts)
        for parts in (1, 2, 6)
    ]
    results = jax.jit(lambda ts: [[s(ts, BATCH, KEY, m) for s in steps] for m in masks])(
        steps[0].init(linear_init())
    )
    for (whole, metrics), *in_parts in results:
        for ts, found in in_parts:
            chex.assert_trees_all_close(found, metrics, rtol=1e-5)
            chex.assert_trees_all_close(ts, whole, rtol=2e-5, atol=1e-6)


def test_parts_thread_the_state_and_draw_apart():
    def loss(params, state, batch, key):
        return batch * params + jax.random.normal(key), state + batch.sum()

    step = fnn.make_train_step(loss, fnn.sgd(1.0), accumulate=2)
    ts, metrics = jax.jit(step)(step.init(jnp.ones(()), jnp.zeros(())), jnp.arange(4.0), KEY)
    assert float(ts.state) == 6
    keys = [jax.random.fold_in(jax.random.fold_in(KEY, 0), i) for i in range(2)]
    noise = np.mean([jax.random.normal(key) for key in keys])
    np.testing.assert_allclose(metrics["loss"], 1.5 + noise, rtol=1e-6)


def test_half_precision_gradients_are_added_up_in_float32():
    # In bfloat16 the sum would stand still at 256.
    step = fnn.make_train_step(scaled, fnn.sgd(1.0), accumulate=512)
    ts, _ = jax.jit(step)(step.init(jnp.zeros((), jnp.bfloat16)), jnp.ones(512, jnp.bfloat16), KEY)
    assert float(ts.params) == -1


# --- precision ------------------------------------------------------------------------------------


def test_compute_in_half_precision_keep_float32():
    seen = []

    def loss(params, batch, key):
        seen.append({str(leaf.dtype) for leaf in jax.tree.leaves((params, batch[0]))})
        return linear_loss_fn(params, batch, key)

    types = (None, jnp.bfloat16, jnp.float16)
    steps = [fnn.make_train_step(loss, fnn.adam(0.01), compute_dtype=dtype) for dtype in types]
    results = jax.jit(lambda ts: [step(ts, BATCH, KEY) for step in steps])(
        steps[0].init(linear_init())
    )
    assert seen == [{"float32"}, {"bfloat16"}, {"float16"}]
    (_, exact), *halves = results
    for ts, metrics in halves:
        chex.assert_type(jax.tree.leaves(ts.params), jnp.float32)
        np.testing.assert_allclose(metrics["loss"], exact["loss"], rtol=2e-2)
        np.testing.assert_allclose(metrics["grad_norm"], exact["grad_norm"], rtol=5e-2)


def tiny(params, batch, key):
    """Gradients of 1e-8, which float16 does not have."""
    small = jnp.asarray(1e-4, params.dtype)
    return params * batch.astype(params.dtype) * small * small


def test_a_loss_scale_keeps_small_gradients():
    make = partial(fnn.make_train_step, tiny, fnn.sgd(1.0), compute_dtype=jnp.float16)
    plain, scales = make(), make(loss_scale=2.0**15)
    (without, _), (ts, metrics) = jax.jit(
        lambda batch: [
            plain(plain.init(jnp.ones(())), batch, KEY),
            scales(scales.init(jnp.zeros(())), batch, KEY),
        ]
    )(jnp.ones(4))
    assert float(without.params) == 1
    np.testing.assert_allclose(ts.params, -1e-8, rtol=0.02)
    assert float(metrics["loss_scale"]) == 2.0**15


def test_a_loss_scale_keeps_small_gradients_of_half_precision_parameters():
    def loss(params, batch, key):  # a gradient of 3e-8, half of float16's smallest number
        return params * batch * jnp.float16(2.0**-10)

    batch = jnp.full(4, 3e-8 * 2.0**10, jnp.float16)
    step = fnn.make_train_step(loss, fnn.adam(0.25, eps=1e-12), loss_scale=2.0**15)
    ts, metrics = jax.jit(step)(step.init(jnp.zeros((), jnp.float16)), batch, KEY)
    assert ts.params.dtype == jnp.float16
    np.testing.assert_allclose(metrics["grad_norm"], 3e-8, rtol=0.01)
    np.testing.assert_allclose(ts.params, -0.25, rtol=1e-3)


def test_the_loss_scale_halves_and_doubles_between_its_bounds():
    step = fnn.make_train_step(scaled, fnn.sgd(0.0), nonfinite="stop", loss_scale=4.0)
    update = jax.jit(step)
    bad, metrics = update(step.init(jnp.ones(())), jnp.full(4, 2e38), KEY)  # four times it is inf
    assert float(bad.loss_scale.scale) == 2
    assert int(metrics["nonfinite"]) == -1  # a smaller scale mends it
    assert not bad.first_bad.found()
    ts = bad._replace(loss_scale=bad.loss_scale._replace(good=jnp.int32(1999)))
    up, _ = update(ts, jnp.ones(4), KEY)
    assert (float(up.loss_scale.scale), int(up.loss_scale.good)) == (4, 0)
    top = ts.loss_scale._replace(scale=jnp.float32(2.0**24))
    top, _ = update(ts._replace(loss_scale=top), jnp.ones(4), KEY)
    assert float(top.loss_scale.scale) == 2.0**24
    least = ts._replace(loss_scale=ts.loss_scale._replace(scale=jnp.float32(1)))
    worst, metrics = update(least, jnp.full(4, jnp.inf), KEY)
    assert float(worst.loss_scale.scale) == 1
    assert int(worst.first_bad.step) == 1  # now it is the net's own
    assert worst.first_bad.ends()


# --- the average, the ratio, and errors -------------------------------------------------------


def test_the_average_is_optaxs_ema_of_the_parameters(standard_promotion):
    optimizer, params = fnn.averaged(fnn.adam(0.1), 0.9), linear_init()

    @jax.jit
    def one(state, params, average, i):
        grads = jax.tree.map(lambda p: jnp.cos(p + i), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return state, params, optax.incremental_update(params, average, 0.1)

    state, average = optimizer.init(params), params
    for i in range(5):
        state, params, average = one(state, params, average, float(i))
    chex.assert_trees_all_close(state["average"], average, rtol=1e-5, atol=1e-7)
    half = fnn.averaged(fnn.sgd(0.1)).init(jnp.ones(2, jnp.bfloat16))
    assert half["average"].dtype == jnp.float32


def test_the_update_ratio():
    step = fnn.make_train_step(lambda p, b, k: p["w"].sum() * b, fnn.sgd(0.1), update_ratio=True)
    _, metrics = jax.jit(step)(step.init({"w": jnp.array([3.0, 4.0])}), jnp.ones(3), KEY)
    np.testing.assert_allclose(metrics["update_ratio"], 0.1 * np.sqrt(2) / 5, rtol=1e-6)


def one_step(loss=scaled, params=1.0, batch=96, state=(), **options):
    step = fnn.make_train_step(loss, fnn.adam(0.01), **options)
    return jax.eval_shape(step, step.init(jnp.asarray(params), state), jnp.ones(batch), KEY)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: one_step(accumulate=5), ValueError, "a batch of 96 rows cannot be accumulated in 5 parts"),
        (lambda: one_step(accumulate=0), ValueError, "make_train_step: accumulate is 0, expected at least 1"),
        (lambda: one_step(nonfinite="warn"), ValueError, "make_train_step: nonfinite is 'warn', expected one of 'skip', 'stop', 'raise', 'ignore'"),
        (lambda: one_step(clipnorm=1.0), TypeError, "clipnorm"),
        (lambda: fnn.averaged(fnn.adam(0.01), 1.0), ValueError, r"averaged: decay is 1.0, expected a number in \[0, 1\)"),
        (
            lambda: one_step(lambda p, s, b, k: (p * b, {"mean": s["mean"].astype(jnp.bfloat16)}), state={"mean": jnp.ones(2)}),
            ValueError,
            r"loss_fn returned a state whose 'mean' is bfloat16\[2\], expected float32\[2\]",
        ),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- a train state of another step ----------------------------------------------------------------

ADAM = fnn.make_train_step(scaled, fnn.adam(0.1))
SGD = fnn.make_train_step(scaled, fnn.sgd(0.1))
SCALED = fnn.make_train_step(scaled, fnn.adam(0.1), loss_scale=8.0)
SAID = "make_train_step: ts is not of this step: "
OTHER_STATES = {
    "another optimizer": (
        lambda: (ADAM, SGD.init(jnp.ones(3))),
        SAID + r"'mu' of the optimizer's state has no such entry, but with this optimizer and these"
        r" parameters it has shape \(3,\); make ts by step.init\(params\)",
    ),
    "an optimizer with less state": (
        lambda: (SGD, ADAM.init(jnp.ones(3))),
        SAID + r"'[a-z]+' of the optimizer's state has shape .*, but with this optimizer and these"
        " parameters it has no such entry;",
    ),
    "other parameters": (
        lambda: (ADAM, ADAM.init(jnp.ones(3))._replace(params=jnp.ones(1))),
        SAID + r"'mu' of the optimizer's state has shape \(3,\), but .* it has shape \(1,\);",
    ),
    "no loss scale": (
        lambda: (SCALED, ADAM.init(jnp.ones(3))),
        r"make_train_step: ts has no loss scale, but this step takes one; make ts by step.init",
    ),
    "a loss scale": (
        lambda: (ADAM, SCALED.init(jnp.ones(3))),
        r"make_train_step: ts has a loss scale, but this step takes none; make ts by step.init",
    ),
}
NEVER_STOP = fnn.EarlyStopping("loss")
WAYS = {  # none of them compiles anything: the state is refused when the step is traced
    "the step": lambda step, ts, rows: step(ts, rows, KEY),
    "update": lambda step, ts, rows: step.update(ts, rows, KEY),
    "jit": lambda step, ts, rows: jax.jit(step)(ts, rows, KEY),
    "fit": lambda step, ts, rows: fnn.fit(step, ts, rows, KEY, epochs=1, batch_size=2),
    "fit_until": lambda step, ts, rows: fnn.fit_until(
        step, ts, rows, KEY, NEVER_STOP, epochs=1, batch_size=2
    ),
    "train": lambda step, ts, rows: fnn.train(
        step, ts, rows, KEY, epochs=1, batch_size=2, progress=False
    ),
    "train_on_batches": lambda step, ts, rows: fnn.train_on_batches(step, ts, [rows], KEY),
}


@pytest.mark.parametrize("state", OTHER_STATES)
def test_a_train_state_of_another_step_is_one_sentence(state):
    make, message = OTHER_STATES[state]
    step, ts = make()
    for name, way in WAYS.items():
        with pytest.raises(ValueError, match=message) as error:
            way(step, ts, np.ones((4, 3), np.float32))
        assert "\n" not in str(error.value), name


def test_a_train_state_from_elsewhere_may_be_of_this_step():
    """Saved and loaded, as NumPy, made under jit, of an equal step: what counts is its shapes."""
    equal = fnn.make_train_step(scaled, fnn.adam(0.3), clip_norm=1.0)
    for ts in (
        equal.init(jnp.ones(3)),
        jax.device_get(ADAM.init(jnp.ones(3))),
        jax.jit(ADAM.init)(jnp.ones(3)),
    ):
        assert int(ADAM(ts, jnp.ones((4, 3)), KEY)[0].step) == 1


def test_complex_parameters_descend():
    # |z - (1 + 2i)|^2: JAX's gradient is the conjugate of the direction of ascent.
    step = fnn.make_train_step(lambda z, batch, key: jnp.abs(z - batch) ** 2, fnn.sgd(0.25))
    target = jnp.full(2, 1 + 2j, jnp.complex64)
    ts, metrics = jax.lax.scan(
        lambda ts, _: step(ts, target, KEY), step.init(0 * target[0]), length=20
    )
    np.testing.assert_allclose(ts.params, 1 + 2j, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"][0], 2 * np.sqrt(5), rtol=1e-5)


def test_frozen_leaves_are_not_in_the_norm():
    params = {"body": jnp.array(3.0), "head": jnp.array(4.0)}

    def loss_fn(params, batch, key):
        return batch * (100 * params["body"] + 2 * params["head"])

    optimizer = fnn.by_path({"body": fnn.freeze(), "head": fnn.sgd(1.0)})
    step = fnn.make_train_step(loss_fn, optimizer, clip_norm=1.0)
    ts, metrics = jax.jit(step)(step.init(params), jnp.ones(2), KEY)
    assert {k: float(v) for k, v in ts.params.items()} == {"body": 3.0, "head": 3.0}
    np.testing.assert_allclose(metrics["grad_norm"], 2.0, rtol=1e-6)
