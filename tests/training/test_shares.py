"""The same bits on any number of devices: `data_parallel(step, shares=)`."""

import itertools
import os
import random
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.inspect import diagnostics
from fnn.training import Weighted
from fnn.training._rows import batches_of
from fnn.training._run_folder import _mark_of_step
from tests.nets import KEY, LABELS, X, linear_dropout_loss_fn, linear_init, linear_loss_fn

SLOW = pytest.mark.slow
ALL = (1, 2, 4, 8)
ROWS = (X[:64], LABELS[:64])


def on(devices, step, shares=8):
    return fnn.data_parallel(step, jax.devices()[:devices], shares=shares)


def host(tree):
    """The tree in NumPy, so that results of different devices can be compared."""
    leaves = jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)
    return jax.tree.map(np.asarray, leaves)


def is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def taken(step, ts, *given, steps=2):
    """The train state and the metrics after so many steps."""
    update = jax.jit(step.update)
    for _ in range(steps):
        ts, metrics = update(ts, *given)
    return host((ts, metrics))


# --- the same bits ------------------------------------------------------------------------------


def full_init(key):
    norm, state = fnn.batch_norm_init(16)
    first, last = jax.random.split(key)
    params = {
        "in": fnn.dense_init(first, 4, 16),
        "norm": norm,
        "out": fnn.dense_init(last, 16, 3),
    }
    return params, state


def full_loss_fn(params, state, batch, key):
    h, state = fnn.batch_norm(params["norm"], state, fnn.dense(params["in"], batch[0]), train=True)
    h = fnn.dropout(key, fnn.relu(h), 0.3)
    return fnn.cross_entropy(fnn.dense(params["out"], h), batch[1]), state


WEIGHTS = jnp.linspace(0.3, 1.7, 103)
FULL = fnn.make_train_step(full_loss_fn, fnn.adam(0.01), clip_norm=0.5)


@SLOW
def test_train_has_the_same_bits_on_1_and_8_devices():
    """Also what it logs, and what it measures on other rows. On 2 and 4 the next test trains."""

    def validate(ts, rows):
        return {"loss": fnn.evaluate(lambda x: x @ ts.params["in"]["w"], rows, 30).mean()}

    def run(devices):
        told = []
        result = fnn.train(
            *(on(devices, FULL), FULL.init(*full_init(KEY)), (X, LABELS), KEY),
            epochs=3,
            batch_size=28,
            weights=WEIGHTS,
            validate=validate,
            validation=X,
            log=lambda epoch, metrics: told.append(metrics),
            progress=False,
        )
        assert len(jax.tree.leaves(result.last)[0].sharding.device_set) == devices
        return host((result.last, result.best)), result.history, told

    first = run(1)
    assert first[1]["grad_norm"].max() > 0.5  # so that clipping clips
    chex.assert_trees_all_equal(run(8), first)


@SLOW
def test_any_schedule_of_stops_and_devices_ends_in_the_same_bits(tmp_path):
    """Batch norm, dropout, Adam, clipping, row weights, a tail. Each leg of a run begins with the
    file that the leg before left, on other devices: any number of them after any other.
    """
    rng, epochs = random.Random(0), 12

    def fit(devices, ts, epochs):
        given = on(devices, FULL), ts, (X, LABELS), KEY
        return fnn.fit(*given, epochs=epochs, batch_size=28, weights=WEIGHTS)[0]

    legs = {devices: jax.jit(partial(fit_until_done, partial(fit, devices))) for devices in ALL}
    start = host(FULL.init(*full_init(KEY)))
    whole = host(legs[1](start, epochs))
    assert whole.step == 4 * epochs
    moves = set()
    for _ in range(20):
        ts, done, before = start, 0, 1
        while done < epochs:
            length, devices = min(rng.choice([1, 2, 5]), epochs - done), rng.choice(ALL)
            ts = host(legs[devices](ts, length))
            fnn.checkpoint.save(tmp_path / "run.safetensors", ts)
            ts, _ = fnn.checkpoint.load(tmp_path / "run.safetensors", ts)
            moves.add((before, devices))
            done, before = done + length, devices
        chex.assert_trees_all_equal(ts, whole)
    assert moves == set(itertools.product(ALL, ALL))


def fit_until_done(fit, ts, epochs):
    """A run of any number of epochs, in one program."""
    return jax.lax.fori_loop(0, epochs, lambda _, ts: fit(ts, 1), ts)


def conv_and_lstm_run():
    """The rows of an image are a sequence."""
    first, middle, last = jax.random.split(KEY, 3)
    norm, state = fnn.batch_norm_init(4)
    params = {
        "conv": fnn.conv_init(first, 1, 4, 3),
        "norm": norm,
        "lstm": fnn.lstm_init(middle, 16, 8),
        "out": fnn.dense_init(last, 8, 3),
    }

    def loss(params, state, batch, key):
        h = fnn.conv(params["conv"], batch[0])
        h, state = fnn.batch_norm(params["norm"], state, h, train=True)
        h = fnn.max_pool(fnn.relu(h), 2).reshape(h.shape[0], 4, 16)
        h = fnn.lstm(params["lstm"], h)[1][:, -1]
        return fnn.cross_entropy(fnn.dense(params["out"], h), batch[1]), state

    x = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype(np.float32)
    batch = jnp.asarray(x), jnp.arange(32) % 3
    step = fnn.make_train_step(loss, fnn.adamw(0.01), clip_norm=0.1)
    return step, (params, state), batch


def half_run():
    """Half of it in float32: the moments, the norms and the sums of two parts."""
    options = {"compute_dtype": "bfloat16", "accumulate": 2}
    step = fnn.make_train_step(full_loss_fn, fnn.adam(0.01), clip_norm=0.1, **options)
    return step, full_init(KEY), ROWS


def search_run():
    """L-BFGS asks for the loss of the batch in a loop of its own."""
    return fnn.make_train_step(linear_dropout_loss_fn, optax.lbfgs()), (linear_init(),), ROWS


@pytest.mark.parametrize(
    "run", [half_run, *(pytest.param(r, marks=SLOW) for r in (conv_and_lstm_run, search_run))]
)
def test_steps_have_the_same_bits_on_1_and_8_devices(run, standard_promotion):
    step, first, batch = run()
    one, eight = (on(devices, step) for devices in (1, 8))
    ends = [taken(step, step.init(*first), batch, KEY) for step in (one, eight)]
    chex.assert_trees_all_equal(*ends)
    before = host(step.init(*first).params)
    moved = jax.tree.map(lambda new, old: (new != old).any(), ends[0][0].params, before)
    assert any(jax.tree.leaves(moved))


# --- the right numbers --------------------------------------------------------------------------


def weighted_loss_fn(params, batch, key):
    logits = fnn.dense(params, batch[0])
    return Weighted(fnn.cross_entropy(logits, batch[1]), 1.0 + batch[1].astype(jnp.float32))


def measured_loss_fn(params, batch, key):
    logits = fnn.dense(params, batch[0])
    return fnn.cross_entropy(logits, batch[1]), {"right": fnn.accuracy(logits, batch[1])}


CASES = {  # loss function, options, rows, mask
    "row weights": (linear_loss_fn, {}, 64, np.maximum(np.linspace(-1, 2, 64), 0)),
    "weighted": (weighted_loss_fn, {"accumulate": 2}, 13, None),
    "aux": (measured_loss_fn, {"aux": True}, 64, np.arange(64) < 37),
    "loss scale": (linear_loss_fn, {"loss_scale": 1024.0, "compute_dtype": "float16"}, 64, None),
    "1 row": (linear_loss_fn, {}, 1, None),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_gradient_of_the_batch(case):
    """Against the formulas of a softmax, in NumPy."""
    loss, options, rows, mask = CASES[case]
    step = fnn.make_train_step(loss, fnn.sgd(1.0), **options)
    params = host(linear_init())
    batch = X[:rows], LABELS[:rows]
    given = None if mask is None else jnp.asarray(mask, bool if mask.dtype == bool else float)
    ts, metrics = taken(on(4, step), step.init(linear_init()), batch, KEY, given, steps=1)

    x, labels = np.asarray(batch[0], np.float64), np.asarray(batch[1])
    weights = np.ones(rows) if mask is None else np.asarray(mask, np.float64)
    weights = weights * (1 + labels) if loss is weighted_loss_fn else weights
    z = np.exp(x @ params["w"] + params["b"])
    p = z / z.sum(1, keepdims=True)
    error = (p - np.eye(3)[labels]) * weights[:, None] / weights.sum()
    tolerance = {"rtol": 5e-3 if "loss_scale" in options else 1e-5, "atol": 1e-6}
    tolerance["atol"] *= 1000 if "loss_scale" in options else 1
    np.testing.assert_allclose(params["w"] - ts.params["w"], x.T @ error, **tolerance)
    np.testing.assert_allclose(params["b"] - ts.params["b"], error.sum(0), **tolerance)
    expected = -np.average(np.log(p[np.arange(rows), labels]), weights=weights)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=tolerance["rtol"])
    if "aux" in options:
        right = np.average(p.argmax(1) == labels, weights=weights)
        np.testing.assert_allclose(metrics["right"], right, rtol=1e-6)


def test_complex_parameters():
    def loss(params, batch, key):
        return jnp.abs(batch @ params - 1j) ** 2

    step = fnn.make_train_step(loss, fnn.sgd(0.5))
    x = np.asarray(X[:16], np.float64) * (1 + 2j)
    params = np.array([1 + 1j, 0, 2j, -1])
    ts = step.init(jnp.asarray(params, jnp.complex64))
    ts, _ = taken(on(2, step), ts, jnp.asarray(x, jnp.complex64), KEY, steps=1)
    gradient = 2 * x.conj().T @ (x @ params - 1j) / 16
    np.testing.assert_allclose(ts.params, params - 0.5 * gradient, rtol=1e-5)


def test_each_share_draws_its_own_numbers():
    def loss(params, batch, key):
        return jax.random.uniform(key, batch.shape) * params

    step = fnn.make_train_step(loss, fnn.sgd(1.0))
    _, metrics = taken(on(2, step), step.init(jnp.ones(())), X[:32, 0], KEY, steps=1)
    key = jax.random.fold_in(KEY, 0)  # of the first step
    keys = [jax.random.fold_in(key, share) for share in range(8)]
    drawn = [np.asarray(jax.random.uniform(key, (4,)), np.float64) for key in keys]
    np.testing.assert_allclose(metrics["loss"], np.mean(drawn), rtol=1e-6)


# --- the model's state --------------------------------------------------------------------------


def states_of(batch, mask=None, devices=4):
    """The state after one step of a model that keeps the mean of its rows, and other things."""

    def loss(params, state, batch, key):
        new = {
            "mean": batch.mean(),
            "still": state["still"],
            "count": state["count"] + batch.astype(jnp.int32).sum(),
            "seen": ~state["seen"],
            "key": key,
            "half": batch.mean().astype(jnp.bfloat16),
        }
        return batch * params, new

    step = fnn.make_train_step(loss, fnn.sgd(0.1))
    start = {
        "mean": jnp.float32(3.0),
        "still": jnp.float32([0.1, jnp.inf]),
        "count": jnp.int32(5),
        "seen": jnp.asarray(False),
        "key": KEY,
        "half": jnp.bfloat16(1.0),
    }
    ts = step.init(jnp.ones(()), start)
    return taken(on(devices, step), ts, batch, KEY, mask, steps=1)[0].state


def test_the_next_state_is_the_mean_of_the_shares_states():
    batch = np.arange(16, dtype=np.float32)
    mask = np.array([1, 1] * 3 + [0, 1] + [0, 0] * 4)  # shares of 2, 2, 2, 1 and no rows
    means = np.array([0.5, 2.5, 4.5, 6.5])
    state = states_of(jnp.asarray(batch), jnp.asarray(mask))
    expected = np.average(means, weights=[2, 2, 2, 1])
    np.testing.assert_allclose(state["mean"], expected, rtol=1e-6)
    assert state["half"].dtype == jnp.bfloat16
    np.testing.assert_allclose(state["half"].astype(float), expected, rtol=4e-3)
    np.testing.assert_array_equal(state["still"], np.float32([0.1, np.inf]))  # not 0.1 x 7 / 7
    assert state["count"] == 5 + 0 + 1  # of the first share
    assert state["seen"]
    key = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)
    np.testing.assert_array_equal(state["key"], jax.random.key_data(key))


def test_where_no_row_counts_the_state_stays():
    batch = jnp.full(16, jnp.nan).at[8:].set(1.0)
    assert states_of(batch, jnp.arange(16) >= 8)["mean"] == 1.0
    assert states_of(batch, jnp.zeros(16))["mean"] == 3.0


def test_batch_norm_is_of_each_share():
    ts = FULL.init(*full_init(KEY))
    state = taken(on(2, FULL), ts, ROWS, KEY, steps=1)[0].state
    params = host(ts.params)
    h = np.asarray(ROWS[0], np.float64) @ params["in"]["w"] + params["in"]["b"]
    var = h.reshape(8, 8, 16).var(1).mean(0)
    np.testing.assert_allclose(state["mean"], 0.1 * h.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state["var"], 0.9 + 0.1 * var, rtol=1e-5)


# --- what is not finite -------------------------------------------------------------------------


def test_a_bad_row_stops_the_run_unless_it_is_masked():
    step = fnn.make_train_step(linear_loss_fn, fnn.adam(0.1), nonfinite="stop")
    update = jax.jit(on(8, step).update)
    ts, batch = step.init(linear_init()), (X[:32].at[29, 1].set(jnp.nan), LABELS[:32])
    good, _ = update(ts, batch, KEY, jnp.arange(32) != 29)
    assert not good.first_bad.found()
    assert (good.params["w"] != ts.params["w"]).all()
    bad, metrics = update(ts, batch, KEY, jnp.ones(32, bool))
    chex.assert_trees_all_equal(host(bad.params), host(ts.params))
    with pytest.raises(FloatingPointError, match="the input is not finite"):
        fnn.check_finite({"nonfinite": metrics["nonfinite"][None]}, ts.params)


@SLOW
def test_replay_takes_a_step_of_shares_again():
    rows = X.at[70, 0].set(jnp.inf), LABELS
    step = on(2, fnn.make_train_step(linear_loss_fn, fnn.sgd(0.1), nonfinite="stop"))
    ts = step.init(linear_init())
    last, _ = fnn.fit(step, ts, rows, KEY, epochs=1, batch_size=16)
    assert last.first_bad.found()
    at = int(last.first_bad.step)
    with pytest.raises(FloatingPointError, match="nan"):
        fnn.training.replay(step, ts, rows, KEY, at=at, batch_size=16)


# --- a run that goes on elsewhere ---------------------------------------------------------------

STEP = fnn.make_train_step(linear_dropout_loss_fn, fnn.adam(0.01), clip_norm=1.0)
TRAIN = partial(fnn.train, batch_size=24, progress=False)


def test_a_folder_knows_the_step_by_its_shares_and_not_its_devices():
    def mark(devices, step=STEP, shares=8):
        step = diagnostics.observe(on(devices, step, shares), lambda *_: {"one": jnp.ones(())})
        ts = STEP.init(linear_init())
        return _mark_of_step(step, ts, batches_of("train", (X, LABELS), None, 24), KEY)

    rate = fnn.make_train_step(linear_dropout_loss_fn, fnn.adam(0.02), clip_norm=1.0)
    assert mark(1) == mark(2) == mark(8)
    assert len({mark(1), mark(2, rate), mark(2, shares=4)}) == 3


@SLOW
def test_another_number_of_shares_is_another_run(tmp_path):
    def run(step):
        TRAIN(step, STEP.init(linear_init()), (X, LABELS), KEY, epochs=1, checkpoint=tmp_path)

    run(on(2, STEP))
    said = r"holds another run, with another number of shares \(8, now {}\)\. Use another folder"
    with pytest.raises(ValueError, match=said.format(4)):
        run(on(2, STEP, shares=4))
    with pytest.raises(ValueError, match=said.format(None)):
        run(fnn.data_parallel(STEP))
    rate = fnn.make_train_step(linear_dropout_loss_fn, fnn.adam(0.02), clip_norm=1.0)
    with pytest.raises(ValueError, match="holds another run, with another"):
        run(on(2, rate))


# --- what the devices exchange ------------------------------------------------------------------


@SLOW
def test_memory_and_exchanged_bytes_are_those_of_the_theory():
    devices, params = 2, fnn.dense_init(KEY, 400, 300)
    size = fnn.params.count(params)
    step = fnn.make_train_step(linear_loss_fn, fnn.sgd(0.1))
    batch = jnp.ones((32, 400)), jnp.zeros(32, jnp.int32)

    def compiled(step):
        update = jax.jit(step.update, donate_argnums=0)
        return update.lower(step.init(params), batch, KEY).compile()

    shared = compiled(on(devices, step))
    found = re.findall(
        r"= (\S+|\(.*?\)) (all-[\w-]+|collective-permute|reduce-scatter)\(", shared.as_text()
    )
    sizes = {kind: sum(map(numbers, sized(shape))) for shape, kind in found if "f32" in shape}
    # All-to-all and all-gather send (devices - 1) / devices of their result, an all-reduce twice.
    sent = size + 3 + (size + 3) % devices  # with loss, weight, and the rows that count
    assert sizes == {"all-to-all": sent, "all-gather": sent}

    others = (
        on(devices, step, shares=32),
        fnn.data_parallel(step, jax.devices()[:devices]),
    )
    programs = (shared, *map(compiled, others))
    eight, many, plain = (p.memory_analysis().temp_size_in_bytes / (4 * size) for p in programs)
    np.testing.assert_allclose(many - eight, np.log2(32 / 8), atol=0.1)
    assert eight - plain < np.log2(8 / devices) + 0.1


def sized(shape):
    return re.findall(r"f32\[([\d,]+)\]", shape)


def numbers(axes):
    return int(np.prod([int(n) for n in axes.split(",")]))


# --- mistakes -----------------------------------------------------------------------------------


def test_shares_that_cannot_be():
    for devices, shares in ((8, 4), (2, 6), (3, 8), (1, 0), (1, 2.5)):
        with pytest.raises((ValueError, TypeError), match="data_parallel: shares "):
            on(devices, STEP, shares)


def test_a_wrapper_is_never_lost():
    def measure(ts, new, batch):
        return {"moved": jnp.abs(new.params["w"] - ts.params["w"]).sum()}

    said = "make the step parallel first, then wrap it: observe"
    wrapped = (
        diagnostics.observe(STEP, measure),
        fnn.training.Step(STEP.init, lambda *given: STEP(*given)),
        lambda *given: STEP(*given),
        fnn.data_parallel(STEP),
    )
    for step in wrapped:
        with pytest.raises(ValueError, match=said):
            fnn.data_parallel(step, shares=8)
    step = diagnostics.observe(on(2, STEP), measure)
    _, metrics = taken(step, STEP.init(linear_init()), ROWS, KEY)
    assert metrics["moved"] > 0


def test_leaves_of_a_batch_share_their_rows():
    with pytest.raises(ValueError, match="data_parallel: data have shapes"):
        on(2, STEP)(STEP.init(linear_init()), (X, LABELS[:9]), KEY)


# --- other processes ----------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[2] / "examples" / "same_bits.py"


def python(*arguments, devices):
    options = {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(EXAMPLE.parents[1])}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | options, stdout=subprocess.PIPE, text=True)


def digest_of(process):
    told = process.communicate(timeout=600)[0]
    assert process.returncode == 0
    return re.fullmatch(r"devices \d+ digest ([0-9a-f]{16})", told.splitlines()[-1])[1]


@SLOW
def test_the_example_ends_in_one_digest_on_other_devices_and_processes():
    """One device, and two processes of two each: on four devices, a program knows no more."""
    alone = python(EXAMPLE, "--quick", devices=1)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = "--address", f"localhost:{free.getsockname()[1]}", "--count", 2
    first, other = (
        python(EXAMPLE, "--quick", *address, "--index", index, devices=2) for index in (0, 1)
    )
    assert digest_of(first) == digest_of(alone)
    assert "digest" not in other.communicate()[0]  # the first says it


RUN = """
import sys, time
import jax
import fnn
jax.config.update("jax_numpy_dtype_promotion", "strict")
from tests.training.test_shares import watched

def told(epoch, metrics):
    print(epoch, flush=True)
    time.sleep(0.05)

fnn.training._train.CHUNK_SECONDS = 0.0
watched(8, 100_000, checkpoint=sys.argv[1], checkpoint_seconds=0.0, log=told)
"""


def watched(devices, epochs, **options):
    """A run with a wrapper, of which its folder knows nothing but what it computes."""

    def measure(ts, new, batch):
        return {"moved": jnp.abs(new.params["b"] - ts.params["b"]).max()}

    step = diagnostics.observe(on(devices, STEP), measure)
    ts = STEP.init(linear_init())
    return TRAIN(step, ts, (X, LABELS), KEY, epochs=epochs, **options)


@SLOW
def test_a_run_that_is_killed_on_8_devices_goes_on_on_2(tmp_path, capsys):
    """By SIGKILL. It ends in the bits of a run that nobody killed, on one device."""
    child = python("-c", RUN, tmp_path, devices=8)
    while int(child.stdout.readline()) < 3:
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    killed = watched(2, 100, checkpoint=tmp_path, progress=True)
    assert re.match(r"train: goes on from epoch \d+ of ", capsys.readouterr().err)
    whole = watched(1, 100)
    chex.assert_trees_all_equal(host(killed.last), host(whole.last))
    chex.assert_trees_all_equal(killed.history, whole.history)
