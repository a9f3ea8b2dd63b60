"""`train`: the same run as `fit`, watched, stopped, saved, and told about."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.inspect.diagnostics import observe
from fnn.training._run_folder import MARKS, RunFolder
from tests.nets import KEY, LABELS, X, linear_dropout_loss_fn, linear_init

X, LABELS = np.asarray(X), np.asarray(LABELS)
TRAIN, VALID = (X[:80], LABELS[:80]), (X[80:], LABELS[80:])
STEP = fnn.make_train_step(linear_dropout_loss_fn, fnn.adamw(0.01), clip_norm=1.0)


def validate(ts, data):
    def metrics(batch):
        logits = fnn.dense(ts.params, batch[0])
        return {
            "loss": fnn.cross_entropy(logits, batch[1]),
            "accuracy": fnn.accuracy(logits, batch[1]),
        }

    return fnn.evaluate(metrics, data, 10)


WATCHED = {"validate": validate, "validation": VALID}


def start():
    return STEP.init(linear_init())


def train(step=STEP, ts=None, data=TRAIN, **options):
    options = {"epochs": 6, "batch_size": 16, "progress": False, "key": KEY} | options
    return fnn.train(step, start() if ts is None else ts, data, **options)


@pytest.fixture(scope="module")
def whole():
    return train(**WATCHED)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as Python handles it, also under a shell that has the process ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# --- the same run ---------------------------------------------------------------------------------


def test_it_is_fit_and_fit_until_bit_for_bit(whole):
    @jax.jit
    def both(ts):
        options = {"epochs": 6, "batch_size": 16, **WATCHED}
        stop = fnn.EarlyStopping(patience=99)
        until = fnn.fit_until(STEP, ts, TRAIN, KEY, stop, **options)
        return fnn.fit(STEP, ts, TRAIN, KEY, **options), until

    (ts, history), (progress, until) = both(start())
    chex.assert_trees_all_equal(whole.last, ts, progress.last)
    chex.assert_trees_all_equal(whole.best, progress.best)
    names = {"loss", "grad_norm", "learning_rate", "nonfinite", "val_loss", "val_accuracy"}
    assert set(whole.history) == set(history) == set(until) == names
    for name in names:
        np.testing.assert_array_equal(whole.history[name], history[name])
        np.testing.assert_array_equal(whole.history[name], until[name])
    assert whole.history["loss"].shape == (6, 5)
    assert history["val_loss"].shape == history["val_accuracy"].shape == (6,)
    assert len(np.unique(history["val_loss"])) == 6
    # The last value is that of the last state.
    np.testing.assert_allclose(history["val_loss"][-1], validate(ts, VALID)["loss"], rtol=1e-6)
    assert all(type(values) is np.ndarray for values in whole.history.values())


def test_what_the_result_says(whole):
    assert whole.stopped == "epochs"
    assert whole.epochs == 6
    assert int(whole.best.epoch) == whole.history["val_loss"].argmin()
    assert float(whole.best.value) == whole.history["val_loss"].min()
    now = validate(STEP.init(whole.best.params), VALID)
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


# The number of a row that comes in the last batch of the first epoch.
BAD = int(fnn.data.permutation(jax.random.fold_in(jax.random.split(KEY)[0], 0), 10)[9]) + 1


def poisoned(policy):
    """A step on a number that meets one bad row once an epoch, and the rows: 3 steps of 4."""

    def loss(params, batch, key):
        return params * batch + jnp.where(batch == BAD, jnp.log(-batch), 0)

    step = fnn.make_train_step(loss, fnn.sgd(0.01), nonfinite=policy)
    rows = np.arange(1.0, 11.0, dtype=np.float32)
    return {"step": step, "ts": step.init(jnp.ones(())), "data": rows, "batch_size": 4}


def test_json_has_no_nan():
    said = r"train: 2 steps were not taken; epoch 0, step (\d): the loss is not finite"
    with pytest.warns(UserWarning, match=said):
        result = train(**poisoned("skip"), epochs=2)
    losses = json.loads(result.to_json())["history"]["loss"]
    assert [row.count(None) for row in losses] == [1, 1]


def test_what_the_caller_holds_stays_his():
    ts = start()
    data = jax.tree.map(jnp.asarray, TRAIN)
    train(ts=ts, data=data, **WATCHED)
    chex.assert_trees_all_equal(ts, start())
    chex.assert_trees_all_equal(data, jax.tree.map(jnp.asarray, TRAIN))


def test_a_second_call_compiles_nothing_and_another_shape_says_so():
    train(**WATCHED)
    assert train(**WATCHED).traces == 0
    fewer = jax.tree.map(lambda a: a[:64], TRAIN)
    said = r"train: this step was compiled before for other shapes \(data/0 float32\[80, 4\], .*\); now for \(data/0 float32\[64, 4\], .*\)\. This is normal if the data changed on purpose"
    with pytest.warns(UserWarning, match=said) as caught:
        assert train(data=fewer, **WATCHED).traces == 1
    assert [w.filename for w in caught] == [__file__]


def test_one_program_does_for_any_chunk(whole, monkeypatch, tmp_path):
    monkeypatch.setattr("fnn.training._train.CHUNK_SECONDS", 0.0)  # an epoch at a time
    epochs = []
    log = fnn.logs.to_all(
        fnn.logs.to_csv(tmp_path / "log.csv"), lambda *given: epochs.append(given)
    )
    train(**WATCHED)
    result = train(**WATCHED, log=log)
    assert result.traces == 0
    chex.assert_trees_all_equal(result.last, whole.last)
    assert [epoch for epoch, _ in epochs] == list(range(6))
    np.testing.assert_allclose(
        [m["loss"] for _, m in epochs], whole.history["loss"].mean(1), rtol=1e-6
    )
    np.testing.assert_array_equal([m["val_loss"] for _, m in epochs], whole.history["val_loss"])
    columns = (tmp_path / "log.csv").read_text().splitlines()[0].split(",")
    assert columns == ["epoch", *epochs[0][1]]
    assert set(columns[1:]) == set(whole.history)


# --- stopping, and going on -----------------------------------------------------------------------


def interrupting(epoch, metrics):
    if epoch == 2:
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_returns_what_there_is_and_the_run_goes_on(whole, tmp_path, monkeypatch, ctrl_c):
    monkeypatch.setattr("fnn.training._train.CHUNK_SECONDS", 0.0)
    before = signal.getsignal(signal.SIGINT)
    result = train(**WATCHED, checkpoint=tmp_path, log=interrupting)
    assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler
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
    """Nor does a disk that is full from the first checkpoint on. Each is said once."""
    monkeypatch.setattr("fnn.training._train.CHUNK_SECONDS", 0.0)

    def full(*given, **options):
        raise OSError("disk full")

    monkeypatch.setattr("fnn.checkpoint.save_last", full)
    options = {"checkpoint": tmp_path, "checkpoint_seconds": 0, "log": full}
    with pytest.warns(UserWarning, match="train: the ") as caught:
        result = train(**WATCHED, **options)
    said = ("the log failed", "the checkpoint was not written")
    assert [str(w.message) for w in caught] == [
        f"train: {what}, the run goes on: OSError: disk full" for what in said
    ]
    assert {w.filename for w in caught} == {__file__}
    chex.assert_trees_all_equal(result.last, whole.last)
    np.testing.assert_array_equal(result.history["loss"], whole.history["loss"])


# --- the hook -------------------------------------------------------------------------------------


def auc(ts, epoch, metrics):
    """On the host, with NumPy."""
    w = np.asarray(ts.params["w"])
    return {"auc": w.sum(), "twice": 2 * metrics["val_loss"]}


def test_the_hook_sees_the_state_of_its_epochs(whole, tmp_path):
    """Every second epoch, also where a run goes on; chunks would be longer without it."""
    seen, logged = {}, []

    def hook(ts, epoch, metrics):
        seen[epoch] = ts
        return auc(ts, epoch, metrics)

    def log(epoch, metrics):
        csv(epoch, metrics)
        logged.append((epoch, metrics))

    csv = fnn.logs.to_csv(tmp_path / "log.csv")
    options = {**WATCHED, "hook": hook, "hook_every": 2, "log": log, "checkpoint": tmp_path}
    first = train(**options, epochs=3)
    assert np.isnan(first.history["auc"]).tolist() == [True, False, True]
    result = train(**options, epochs=6)
    chex.assert_trees_all_equal(result.last, whole.last)
    chex.assert_trees_all_equal(seen[5], whole.last)  # a copy, which stays
    assert [int(seen[epoch].step) for epoch in (1, 3, 5)] == [10, 20, 30]
    assert [epoch for epoch, _ in logged] == list(range(6))
    assert len({tuple(metrics) for _, metrics in logged}) == 1  # one set of columns
    for name in ("auc", "twice"):
        values = result.history[name]
        np.testing.assert_array_equal([m[name] for _, m in logged], values)
        assert np.isnan(values).tolist() == [True, False] * 3
    np.testing.assert_array_equal(
        result.history["twice"][1::2], 2 * whole.history["val_loss"][1::2]
    )
    without = train(**WATCHED, checkpoint=tmp_path, epochs=7)  # and without the hook
    assert np.isnan(without.history["auc"]).tolist() == [True, False] * 3 + [True]


def test_an_error_of_the_hook_goes_on_and_loses_nothing(whole, tmp_path):
    def stop(ts, epoch, metrics):
        raise StopIteration(epoch)

    logged = []
    options = {**WATCHED, "checkpoint": tmp_path, "log": lambda epoch, _: logged.append(epoch)}
    with pytest.raises(StopIteration, match="1"):
        train(**options, hook=stop, hook_every=2)
    assert logged == [0, 1]
    result = train(**WATCHED, checkpoint=tmp_path)
    chex.assert_trees_all_equal(result.last, whole.last)
    assert result.history["loss"].shape == whole.history["loss"].shape


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (0.5, TypeError, "train: hook returned a float, expected a dict"),
        ({"loss": 1.0}, ValueError, r"train: hook returned \['loss'\], which the run measures itself"),
    ],
)  # fmt: skip
def test_what_a_hook_may_return(returned, error, message, whole):
    with pytest.raises(error, match=message):
        train(**WATCHED, hook=lambda *_: returned)


def test_what_is_measured_may_be_anything():
    step = fnn.make_train_step(lambda p, batch, key: p * batch, fnn.sgd(0.1))
    step = observe(step, lambda ts, new, batch: {"layers": {"one": batch, "two": ts.params}})
    ts, rows = step.init(jnp.ones(())), np.ones(4, np.float32)
    result = train(
        step, ts, rows, validate=lambda ts, _: {"norm": ts.params}, epochs=2, batch_size=2
    )
    assert result.best is None
    assert result.history["val_norm"].shape == (2,)
    assert result.history["layers/one"].shape == (2, 2, 2)
    assert result.history["layers/two"].shape == (2, 2)


def test_a_second_ctrl_c_interrupts(whole, ctrl_c):
    def impatient(epoch, metrics):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(**WATCHED, log=impatient)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_somebody_else_is_left_alone(whole, ctrl_c):
    seen = []

    def theirs(*_):
        seen.append(1)

    signal.signal(signal.SIGINT, theirs)
    result = train(**WATCHED, log=interrupting)
    assert (result.stopped, seen) == ("epochs", [1])
    assert signal.getsignal(signal.SIGINT) is theirs


OTHER = fnn.make_train_step(linear_dropout_loss_fn, fnn.momentum(1.0))


def similar(rate=0.01, decay=1e-4, clip_norm=1.0, loss=linear_dropout_loss_fn, rule=None):
    """`STEP`, made anew, or with one thing changed."""
    rule = rule or partial(fnn.adamw, weight_decay=decay)
    return fnn.make_train_step(loss, rule(rate), clip_norm=clip_norm)


OPTIMIZER = (
    "with another net, optimizer, learning rate or initial key. Use another folder, delete this"
    " one, or go on from its state: fnn.checkpoint.load_last"
)


def with_step(step):
    return {"step": step, "ts": step.init(linear_init())}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"data": (X[:80] + 1, LABELS[:80])}, ["data or weights"]),
        ({"weights": np.ones(80, np.float32)}, ["data or weights", "step"]),
        ({"validation": (X[81:], LABELS[81:])}, ["validation data"]),
        ({"batch_size": 20}, ["settings (batch_size 16, now 20);", "step"]),
        ({"stop": fnn.EarlyStopping(patience=3)}, ["settings (stop patience never, now 3.0). Use"]),
        ({"stop": None, "validate": None, "validation": None, "tail": "drop"}, ["settings (tail pad, now drop; stop {", "validation data"]),
        ({"key": jax.random.key(1)}, ["key"]),
        ({"ts": STEP.init(linear_init(jax.random.key(1)))}, ["initial train state"]),
        (with_step(OTHER), [OPTIMIZER]),
        (with_step(similar(rate=0.02)), [OPTIMIZER]),  # the state holds the rate
        (with_step(similar(rate=jnp.float32(0.02))), [OPTIMIZER]),
        (with_step(similar(decay=0.1)), ["step"]),
        (with_step(similar(clip_norm=2.0)), ["step"]),
        (with_step(similar(loss=lambda p, b, k: 100 * linear_dropout_loss_fn(p, b, k))), ["step"]),
        (with_step(similar(rule=fnn.nadam)), ["step"]),
        ({"validate": lambda ts, data: validate(ts, data) | {"one": 1.0}}, ["'val_one'", "use the same validate"]),
        ({"validate": lambda ts, data: {"loss": validate(ts, data)["loss"]}}, ["'val_accuracy'"]),
    ],
)  # fmt: skip
def test_another_run_does_not_go_on_from_it(change, parts, a_saved_run):
    with pytest.raises(ValueError, match=f"train: {a_saved_run} holds a") as caught:
        train(**WATCHED | change, checkpoint=a_saved_run)
    said = str(caught.value)
    assert all(part in said for part in parts), said
    assert "'val_" in said or said.count("; another ") + 1 == len(parts)


def test_the_same_run_made_anew_goes_on_and_says_so(whole, a_saved_run, tmp_path, capsys):
    shutil.copytree(a_saved_run, tmp_path, dirs_exist_ok=True)
    again = with_step(similar()) | {"checkpoint": tmp_path, "progress": True}
    result = train(**WATCHED, **again)
    assert capsys.readouterr().err.startswith(f"train: goes on from epoch 1 of {tmp_path}\n")
    chex.assert_trees_all_equal(result.last, whole.last)
    (saved,) = tmp_path.glob("step_00000006.*")
    header = fnn.checkpoint.read_header(saved)
    assert header["extra"]["epoch"] == 6


@pytest.mark.parametrize("lacks", ["versions", "marks"])
def test_a_file_of_another_version_goes_on(lacks, whole, a_saved_run, tmp_path):
    """Another JAX writes the same step otherwise; older files have no mark of the step."""
    (saved,) = a_saved_run.glob("step_*")
    header = fnn.checkpoint.read_header(saved)
    if lacks == "versions":
        header["versions"]["jax"] = "0.0"
        header["extra"]["step"] = "0"
    else:
        for name in ("start", "step", "validation", "hook"):
            del header["extra"][name]
    folder = RunFolder(tmp_path, a_saved_marks(header["extra"]))
    folder._refuse_another(header)
    header["extra"]["key"] = "0"
    with pytest.raises(ValueError, match="another key"):
        folder._refuse_another(header)


def a_saved_marks(extra):
    return dict.fromkeys(MARKS, "now") | {n: extra[n] for n in ("settings", "data", "key")} | (
        {n: extra[n] for n in ("start", "validation", "shares") if n in extra}
    )  # fmt: skip


MARKS_OF_STEPS = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import fnn
from fnn.training._loops import batches_of_run
from fnn.training._run_folder import _mark_of_step
from tests.nets import KEY, LABELS, X, linear_dropout_loss_fn, linear_init
from tests.table_of_optimizers import OPTIMIZERS

def mark(loss, rule, params, data, state=(), wrap=lambda step: step):
    step = wrap(fnn.make_train_step(loss, rule, clip_norm=1.0))
    ts = step.init(params, state)
    batches = batches_of_run("train", ts, data, KEY, None, 16, "pad")
    print(_mark_of_step(step, ts, batches, KEY))

for row in OPTIMIZERS:
    mark(linear_dropout_loss_fn, row.make(0.1), linear_init(), (X, LABELS))
norm, state = fnn.batch_norm_init(2)
conv = {"conv": fnn.conv_init(KEY, 1, 2, 3), "norm": norm}
def images(params, state, batch, key):
    x, state = fnn.batch_norm(params["norm"], state, fnn.conv(params["conv"], batch), train=True)
    return fnn.max_pool(x, 2).mean((1, 2, 3)), state
mark(images, fnn.adam(0.1), conv, np.ones((20, 4, 4, 1), "f4"), state)
step = lambda wrap: mark(images, fnn.adam(0.1), conv, np.ones((32, 4, 4, 1), "f4"), state, wrap)
step(lambda step: fnn.data_parallel(step))
def wrapped(step):
    inner = fnn.data_parallel(step)
    return fnn.training.with_update(inner, lambda *given: inner(*given))
step(wrapped)
lstm = fnn.lstm_init(KEY, 3, 4)
mark(lambda p, x, key: fnn.lstm(p, x)[1].mean((1, 2)), fnn.sgd(0.1), lstm, np.ones((20, 5, 3), "f4"))
"""


@pytest.mark.slow
def test_another_process_knows_a_step_again():
    """Whatever the order of its sets, the addresses of its functions, and its devices."""

    def marks(seed, devices):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", MARKS_OF_STEPS, devices]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.split()

    first = marks("0", "4")
    assert len(set(first)) == len(first) - 1  # of the last two but one, one is wrapped once more
    assert marks("1", "2") == first


def test_a_folder_has_one_run_at_a_time(whole, tmp_path):
    def second(epoch, metrics):
        with pytest.raises(RuntimeError, match=f"train: {tmp_path} is in use by another run"):
            train(**WATCHED, checkpoint=tmp_path)
        tried.append(epoch)

    tried = []
    train(**WATCHED, checkpoint=tmp_path, epochs=1, log=second)
    assert tried == [0]
    assert train(**WATCHED, checkpoint=tmp_path, epochs=1).epochs == 1


@pytest.fixture(scope="module")
def a_saved_run(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(**WATCHED, epochs=1, checkpoint=folder)
    return folder


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    """Each life is a new process."""
    module = ["-m", "tests.training.killed", str(tmp_path), "6"]
    command = [sys.executable, "-W", "ignore", *module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# --- not finite -----------------------------------------------------------------------------------


def test_raise_says_where_and_loses_nothing(tmp_path):
    said = r"train: epoch (\d), step (\d): the loss is not finite; fnn.replay takes that step again"
    with pytest.raises(fnn.training.NonFiniteError, match=said) as caught:
        train(**poisoned("raise"), checkpoint=tmp_path)
    result = caught.value.result
    assert (result.stopped, result.epochs) == ("not finite", 1)
    at = int(result.last.first_bad.step)
    assert f"epoch 0, step {at}:" in result.nonfinite
    assert np.isfinite(result.last.params)
    assert list(tmp_path.glob("step_*"))


def test_stop_returns():
    result = train(**poisoned("stop"))
    assert (result.stopped, result.epochs) == ("not finite", 1)
    assert "the loss is not finite" in result.nonfinite


def test_ignore_goes_on():
    result = train(**poisoned("ignore"))
    assert (result.stopped, result.epochs) == ("epochs", 6)
    assert result.nonfinite is not None


# --- what can go wrong ----------------------------------------------------------------------------


def test_nothing_moved():
    step = fnn.make_train_step(lambda p, batch, key: p * batch, fnn.freeze())
    ts, rows = step.init(jnp.ones(())), np.ones(4, np.float32)
    with pytest.warns(UserWarning, match="train: no parameter moved in the first epoch"):
        train(step, ts, rows, batch_size=2, epochs=1)


def test_what_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    step = fnn.make_train_step(lambda p, batch, key: p * batch, fnn.sgd(0.1))
    said = r"train: the program needs .* GB at once, but .* has 1e-05 GB"
    with pytest.raises(MemoryError, match=said):
        train(step, step.init(jnp.ones(4000)), np.ones((4, 1), np.float32), batch_size=2)


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


# --- what is shown --------------------------------------------------------------------------------


def test_lines_where_there_is_no_terminal(whole, capsys):
    train(progress=True, **WATCHED)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("epoch 1/6  loss ")
    assert lines[-1].startswith("epoch 6/6  loss ")
    assert "val_accuracy" in lines[-1]
    train(progress=False, **WATCHED)
    assert capsys.readouterr() == ("", "")


def test_the_end_is_said(tmp_path, capsys):
    """Where it is not the last epoch; epochs are counted from 1, as the bar counts them."""

    def said():
        return capsys.readouterr().err.splitlines()

    measured = {"validate": lambda ts, data: {"loss": ts.step.astype(float)}, "progress": True}
    result = train(**measured, stop=fnn.EarlyStopping(patience=2), checkpoint=tmp_path)
    assert said()[-1] == "train: stopped early at epoch 3; best epoch 1"
    assert "epochs=3, best=epoch 1 of 3, nonfinite=None" in repr(result)
    train(**measured, stop=fnn.EarlyStopping(patience=2), checkpoint=tmp_path)
    assert said() == [
        f"train: {tmp_path} holds all 3 epochs; nothing is trained",
        "train: stopped early at epoch 3; best epoch 1",
    ]
    nothing = {"validate": lambda ts, data: {"loss": jnp.nan}, "progress": True}
    result = train(**nothing, stop=fnn.EarlyStopping(patience=1))
    assert said()[-1] == "train: stopped early at epoch 1"
    assert "best=none, " in repr(result)


def test_the_end_by_the_clock_is_said(tmp_path, capsys):
    for folder, more in ((None, ""), (tmp_path, "; the same call goes on")):
        train(max_seconds=0, progress=True, checkpoint=folder)
        last = capsys.readouterr().err.splitlines()[-1]
        begin, end = "train: stopped after ", f" s (max_seconds) at epoch 1 of 6{more}"
        assert last.startswith(begin)
        assert last.endswith(end)
        assert float(last.removeprefix(begin).removesuffix(end)) > 0
    train(progress=True, checkpoint=tmp_path, epochs=1)
    assert capsys.readouterr().err == f"train: {tmp_path} holds all 1 epochs; nothing is trained\n"


def test_a_bar_on_a_terminal(whole, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    train(progress=True, epochs=3, **WATCHED)
    assert "3/3" in sys.stderr.getvalue()
    assert "loss" in sys.stderr.getvalue()
