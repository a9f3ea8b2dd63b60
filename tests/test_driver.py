import io
import json
import os
import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import logs

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(103, 4)).astype(np.float32)
LABELS = X[:, :3].argmax(-1)
TRAIN, VALID = (X[:80], LABELS[:80]), (X[80:], LABELS[80:])
OPTIMIZER = fnn.adamw(0.01)


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x, key=key, rate=0.2), labels)


def validate(ts, data):
    def metrics(batch):
        logits = fnn.mlp(ts.params, batch[0])
        return {
            "loss": fnn.cross_entropy(logits, batch[1]),
            "accuracy": fnn.accuracy(logits, batch[1]),
        }

    return fnn.evaluate(metrics, data, 32)


def start():
    return fnn.train_init(fnn.mlp_init(KEY, (4, 8, 3)), OPTIMIZER)


STEP = fnn.make_train_step(loss_fn, OPTIMIZER, clip_norm=1.0)


def train(step=STEP, ts=None, data=TRAIN, **options):
    options = {"epochs": 6, "batch_size": 16, "progress": False} | options
    return fnn.train(step, start() if ts is None else ts, data, KEY, **options)


WATCHED = {"validate": validate, "validation": VALID}


@pytest.fixture(scope="module")
def whole():
    return train(**WATCHED)


# --- the same run ---------------------------------------------------------------------------------


def test_it_is_fit_bit_for_bit(whole):
    ts, history = jax.jit(
        lambda ts: fnn.fit(STEP, ts, TRAIN, KEY, epochs=6, batch_size=16)
    )(start())  # fmt: skip
    chex.assert_trees_all_equal(whole.last, ts)
    for name, values in history.items():
        np.testing.assert_array_equal(whole.history[name], values)
    assert whole.history["loss"].shape == (6, 5)
    assert set(whole.history) == {*history, "val_loss", "val_accuracy"}
    assert all(type(values) is np.ndarray for values in whole.history.values())


def test_what_the_result_says(whole):
    assert whole.stopped == "epochs"
    assert whole.epochs == 6
    assert int(whole.best.epoch) == whole.history["val_loss"].argmin()
    assert float(whole.best.value) == whole.history["val_loss"].min()
    now = validate(fnn.train_init(whole.best.params, OPTIMIZER), VALID)
    np.testing.assert_allclose(now["loss"], whole.best.value, rtol=1e-6)
    assert whole.traces == 1
    assert whole.compile_seconds > 0 < whole.run_seconds
    params = 4 * fnn.params.count(start().params)
    assert 2 * params < whole.peak_bytes < 10_000_000
    said = json.loads(whole.to_json())
    assert said["device"] == "8 x cpu (cpu)"
    assert said["settings"]["batch_size"] == 16
    assert said["best"]["epoch"] == int(whole.best.epoch)
    np.testing.assert_allclose(said["history"]["loss"], whole.history["loss"])
    assert said["versions"]["jax"] == jax.__version__


def poisoned(policy):
    """A step that meets one bad row, number 3, once an epoch."""

    def loss(params, batch, key):
        bad = (batch[0][:, 0] == X[3, 0]).any()
        return loss_fn(params, batch, key) + jnp.where(bad, jnp.log(-1 + 0 * batch[0][0, 0]), 0)

    return fnn.make_train_step(loss, OPTIMIZER, nonfinite=policy)


def test_json_has_no_nan():
    said = r"train: 2 steps were not taken; epoch 0, step (\d): the loss is not finite"
    with pytest.warns(UserWarning, match=said):
        result = train(poisoned("skip"), epochs=2)
    losses = json.loads(result.to_json())["history"]["loss"]
    assert [row.count(None) for row in losses] == [1, 1]


def test_what_the_caller_holds_stays_his():
    ts = start()
    data = jax.tree.map(jnp.asarray, TRAIN)
    train(ts=ts, data=data)
    chex.assert_trees_all_equal(ts, start())
    chex.assert_trees_all_equal(data, jax.tree.map(jnp.asarray, TRAIN))


def test_a_second_call_compiles_nothing_and_another_shape_says_so(whole):
    assert train(**WATCHED).traces == 0
    fewer = jax.tree.map(lambda a: a[:64], TRAIN)
    said = r"train: compiles this step once more, for data/0 float32\[64, 4\] .* after data/0 float32\[80, 4\]"
    with pytest.warns(UserWarning, match=said):
        assert train(data=fewer, **WATCHED).traces == 1


def test_one_program_does_for_any_chunk(whole, monkeypatch):
    monkeypatch.setattr("fnn.driver.CHUNK_SECONDS", 0.0)  # an epoch at a time
    epochs = []
    result = train(**WATCHED, log=lambda epoch, metrics: epochs.append((epoch, metrics)))
    assert result.traces == 0
    chex.assert_trees_all_equal(result.last, whole.last)
    assert [epoch for epoch, _ in epochs] == list(range(6))
    np.testing.assert_allclose(
        [m["loss"] for _, m in epochs], whole.history["loss"].mean(1), rtol=1e-6
    )
    np.testing.assert_array_equal([m["val_loss"] for _, m in epochs], whole.history["val_loss"])


# --- stopping, and going on -----------------------------------------------------------------------


def interrupting(epoch, metrics):
    if epoch == 2:
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_returns_what_there_is_and_the_run_goes_on(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("fnn.driver.CHUNK_SECONDS", 0.0)
    before = signal.getsignal(signal.SIGINT)
    result = train(**WATCHED, checkpoint=tmp_path, log=interrupting)
    assert signal.getsignal(signal.SIGINT) is before
    assert (result.stopped, result.epochs) == ("interrupted", 3)
    np.testing.assert_array_equal(result.history["loss"], whole.history["loss"][:3])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.safetensors",
        "step_00000003.safetensors",
    ]
    result = train(**WATCHED, checkpoint=tmp_path)
    assert (result.stopped, result.epochs) == ("epochs", 6)
    chex.assert_trees_all_equal((result.last, result.best), (whole.last, whole.best))
    for name, values in whole.history.items():
        np.testing.assert_array_equal(result.history[name], values)
    again = train(**WATCHED, checkpoint=tmp_path)  # nothing is left to do
    chex.assert_trees_all_equal(again.last, whole.last)
    assert again.run_seconds == 0
    longer = train(**WATCHED, checkpoint=tmp_path, epochs=8)
    assert longer.history["loss"].shape == (8, 5)


def test_a_log_that_fails_loses_nothing(whole, tmp_path, monkeypatch):
    def failing(epoch, metrics):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        train(**WATCHED, checkpoint=tmp_path, log=failing)
    result = train(**WATCHED, checkpoint=tmp_path)
    chex.assert_trees_all_equal(result.last, whole.last)
    np.testing.assert_array_equal(result.history["loss"], whole.history["loss"])


def test_validation_may_be_of_anything():
    result = train(validate=lambda ts, data: {"norm": fnn.params.global_norm(ts.params)}, epochs=2)
    assert result.best is None
    assert result.history["val_norm"].shape == (2,)


def test_a_second_ctrl_c_interrupts():
    def impatient(epoch, metrics):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(log=impatient)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": (X[:80] + 1, LABELS[:80])}, "other data: "),
        ({"batch_size": 20}, "other settings: .*'batch_size': 16.*'batch_size': 20"),
        ({"ts": fnn.train_init(fnn.mlp_init(KEY, (4, 9, 3)), OPTIMIZER)}, r"shape       progress/ts/params/layer_0/b: the file has \[8\], expected \[9\]"),
        ({"ts": fnn.train_init(start().params, fnn.sgd(1.0)), "step": fnn.make_train_step(loss_fn, fnn.sgd(1.0))}, "unexpected  progress/ts/opt_state/m/layer_0/b"),
    ],
)  # fmt: skip
def test_another_run_does_not_go_on_from_it(change, message, tmp_path):
    train(epochs=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=message):
        train(checkpoint=tmp_path, **change)


def test_a_run_killed_twenty_times_ends_as_if_it_had_not_been(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "tests.killed", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# --- not finite -----------------------------------------------------------------------------------


def test_raise_says_where_and_loses_nothing(tmp_path):
    step = poisoned("raise")
    said = r"train: epoch (\d), step (\d): the loss is not finite; fnn.replay takes that step again"
    with pytest.raises(fnn.NonFiniteError, match=said) as caught:
        train(step, checkpoint=tmp_path)
    result = caught.value.result
    assert result.stopped == "not finite"
    at = int(result.last.first_bad[0])
    assert f"epoch {at // 5}, step {at % 5}:" in result.nonfinite
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.last.params))
    assert list(tmp_path.glob("step_*"))
    for ts in (result.last, start()):
        with pytest.raises(FloatingPointError, match="nan"):
            fnn.replay(step, ts, TRAIN, KEY, at=at, batch_size=16)
    same = fnn.train_init(start().params, OPTIMIZER)
    ok, metrics = fnn.replay(STEP, same, TRAIN, KEY, at=2, batch_size=16)
    assert int(ok.step) == 3
    np.testing.assert_allclose(metrics["loss"], train(epochs=1).history["loss"][0, 2], rtol=1e-5)
    with pytest.raises(ValueError, match="replay: ts has 3 steps behind it, expected at most 2"):
        fnn.replay(STEP, ok, TRAIN, KEY, at=2, batch_size=16)


def test_stop_returns():
    result = train(poisoned("stop"))
    assert result.stopped == "not finite"
    assert result.epochs == 1 + int(result.last.first_bad[0]) // 5
    assert "the loss is not finite" in result.nonfinite


def test_ignore_goes_on():
    result = train(poisoned("ignore"))
    assert (result.stopped, result.epochs) == ("epochs", 6)
    assert result.nonfinite is not None


# --- what can go wrong ----------------------------------------------------------------------------


def test_nothing_moved():
    step = fnn.make_train_step(loss_fn, fnn.freeze())
    with pytest.warns(UserWarning, match="train: no parameter moved in the first epoch"):
        train(step, fnn.train_init(start().params, fnn.freeze()), epochs=1)


def test_what_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    with pytest.raises(
        MemoryError, match=r"train: the program needs .* GB at once, but .* has 1e-05 GB"
    ):
        train(data=(X, LABELS), batch_size=50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "train: epochs is 0"),
        ({"batch_size": 81}, "train: batch_size 81 exceeds the 80 rows"),
        ({"tail": "cut"}, "train: tail is 'cut'"),
        (
            {"stop": fnn.EarlyStopping()},
            "EarlyStopping: monitor is 'val_loss', expected one of grad_norm",
        ),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)


# --- what is shown and written --------------------------------------------------------------------


def test_lines_where_there_is_no_terminal(capsys):
    train(progress=True, **WATCHED)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("epoch 1/6  loss ")
    assert lines[-1].startswith("epoch 6/6  loss ")
    assert "val_accuracy" in lines[-1]
    train(progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    train(progress=True, epochs=3)
    assert "3/3" in sys.stderr.getvalue()
    assert "loss" in sys.stderr.getvalue()


def test_csv(tmp_path):
    path = tmp_path / "run" / "log.csv"
    train(epochs=2, log=logs.to_csv(path))
    train(epochs=3, log=logs.to_all(logs.to_csv(path), lambda epoch, metrics: None))
    lines = path.read_text().splitlines()
    assert lines[0] == "epoch,grad_norm,learning_rate,loss,nonfinite"
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "0", "1", "2"]
    with pytest.raises(
        ValueError, match=r"to_csv: .*log.csv has the columns .*, expected \['epoch', 'l"
    ):
        logs.to_csv(path)(0, {"loss": 1.0})


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    train(epochs=2, log=logs.to_tensorboard(tmp_path))
    assert list(tmp_path.glob("events.out.tfevents*"))
