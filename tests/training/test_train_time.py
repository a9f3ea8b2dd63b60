"""What `train` does about time: max_seconds, a recording, and floating-point operations."""

import gzip
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training import PEAKS, flops_of_step
from fnn.training._flops import peak_of
from tests.nets import KEY, LABELS, X, linear_dropout_loss_fn, linear_init

DATA = np.asarray(X[:80]), np.asarray(LABELS[:80])
STEP = fnn.make_train_step(linear_dropout_loss_fn, fnn.adamw(0.01), clip_norm=1.0)


def train(step=STEP, **options):
    options = {"epochs": 4, "batch_size": 16, "progress": False, "key": KEY} | options
    return fnn.train(step, step.init(linear_init()), options.pop("data", DATA), **options)


@pytest.fixture(scope="module")
def whole():
    return train()


@pytest.fixture
def an_epoch_a_chunk(monkeypatch):
    monkeypatch.setattr("fnn.training._train.CHUNK_SECONDS", 0.0)


class Clock:
    """The time goes on by a second at each look."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


# --- max_seconds ----------------------------------------------------------------------------------


def test_a_run_without_time_trains_one_epoch_at_a_call_and_ends_the_same(whole, tmp_path):
    for epochs in (1, 2, 3):
        result = train(max_seconds=0, checkpoint=tmp_path)
        assert (result.stopped, result.epochs) == ("max_seconds", epochs)
        np.testing.assert_array_equal(result.history["loss"], whole.history["loss"][:epochs])
        assert (tmp_path / f"step_{epochs:08}.safetensors").exists()
    result = train(max_seconds=0, checkpoint=tmp_path)
    assert (result.stopped, result.epochs) == ("epochs", 4)  # both: it is done
    chex.assert_trees_all_equal(result.last, whole.last)
    np.testing.assert_array_equal(result.history["loss"], whole.history["loss"])
    again = train(checkpoint=tmp_path)  # other limits are no other run
    chex.assert_trees_all_equal(again.last, whole.last)


def test_the_run_ends_when_the_clock_says_so(whole, monkeypatch, an_epoch_a_chunk):
    monkeypatch.setattr("fnn.training._train.time.monotonic", Clock())
    started, made = 1.0, 2.0  # the clock is looked at when the call starts and the run is made
    result = train(max_seconds=made - started + 2)
    assert (result.stopped, result.epochs) == ("max_seconds", 2)
    chex.assert_trees_all_equal(result.last, train(epochs=2).last)
    assert train(max_seconds=1e9).stopped == "epochs"
    assert train(max_seconds=float("inf")).stopped == "epochs"


def test_what_is_not_finite_goes_before(an_epoch_a_chunk):
    step = fnn.make_train_step(linear_dropout_loss_fn, fnn.sgd(jnp.inf), nonfinite="stop")
    assert train(step, max_seconds=0).stopped == "not finite"


# --- the recording --------------------------------------------------------------------------------


def test_one_epoch_is_recorded_and_the_run_is_the_same(whole, tmp_path):
    result = train(profile=tmp_path / "new" / "folder")
    chex.assert_trees_all_equal(result.last, whole.last)
    np.testing.assert_array_equal(result.history["loss"], whole.history["loss"])
    files = {file.name: file for file in tmp_path.rglob("*") if file.is_file()}
    assert [name for name in files if name.endswith(".xplane.pb")]  # TensorBoard's
    with gzip.open(files["perfetto_trace.json.gz"]) as file:
        events = json.load(file)["traceEvents"]
    assert any("chunk" in str(event.get("name")) for event in events)  # the compiled program


def test_a_run_of_one_epoch_is_recorded_whole(tmp_path):
    train(epochs=1, profile=str(tmp_path))
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_recording_that_fails_is_told_and_the_run_goes_on(whole, tmp_path, monkeypatch):
    def full(*given, **options):
        raise OSError("disk full")

    monkeypatch.setattr("jax.profiler.stop_trace", lambda: None)
    monkeypatch.setattr("jax.profiler.start_trace", full)
    with pytest.warns(
        UserWarning, match="train: the profile was not written, the run goes on: OSError: disk full"
    ) as caught:
        result = train(profile=tmp_path)
    assert [w.filename for w in caught] == [__file__]
    chex.assert_trees_all_equal(result.last, whole.last)


def test_a_run_that_ends_before_its_second_chunk_says_so(tmp_path):
    with pytest.warns(
        UserWarning, match=r"train: nothing is recorded in .*: the run has ended before"
    ) as caught:
        train(max_seconds=0, profile=tmp_path)
    assert [w.filename for w in caught] == [__file__]


# --- floating-point operations --------------------------------------------------------------------


def loss_of(apply):
    return lambda params, batch, key: (
        jnp.square(apply(params, batch)).reshape(len(batch), -1).sum(1)
    )


def flops(apply, params, *shape, **options):
    step = fnn.make_train_step(loss_of(apply), fnn.adam(0.1), **options)
    return flops_of_step(step, step.init(params), jnp.ones(shape), KEY)


def test_operations_are_counted_by_hand():
    """Forward 2 n k m a product; backward as much for w, and for x, except the input's."""
    mlp = fnn.mlp_init(KEY, (6, 5, 3))
    by_hand = 2 * 8 * (2 * 6 * 5 + 3 * 5 * 3)
    assert flops(fnn.mlp, mlp, 8, 6) == by_hand
    assert flops(fnn.mlp, mlp, 8, 6, accumulate=4) == by_hand  # XLA counts one part of four
    assert flops(fnn.mlp, mlp, 8, 6, compute_dtype="bfloat16") == by_hand
    steps = 7
    lstm = 2 * 2 * steps * (2 * 4 * 12 + 3 * 3 * 12)  # [2, 4] @ [4, 12] once, [2, 3] @ [3, 12]
    assert flops(lambda p, x: fnn.lstm(p, x)[1], fnn.lstm_init(KEY, 4, 3), 2, steps, 4) == lstm


def test_operations_of_convolutions_are_counted_by_hand():
    params = {"a": fnn.conv_init(KEY, 3, 4, 3), "b": fnn.conv_init(KEY, 4, 5, 3)}

    def apply(params, x):
        x = fnn.conv(params["a"], x, padding=1)
        return fnn.conv(params["b"], x, stride=2, padding=1)

    first, second = 2 * 2 * 8 * 8 * 4 * 27, 2 * 2 * 4 * 4 * 5 * 36
    assert flops(apply, params, 2, 8, 8, 3) == 2 * first + 3 * second


def test_a_run_counts_its_operations_and_its_share_of_the_peak(whole):
    assert whole.flops is None
    assert json.loads(whole.to_json())["flops"] is None
    result = train(count_flops=True)
    assert result.flops.per_step == 2 * 2 * 16 * 4 * 3  # rows, in, out; for w, not for x
    assert (result.flops.peak, result.flops.utilisation) == (None, None)  # a CPU
    result = train(peak_flops=1e9)
    per_second = result.flops.per_step * 4 * 5 / result.run_seconds
    np.testing.assert_allclose(result.flops.per_second, per_second, rtol=1e-9)
    np.testing.assert_allclose(result.flops.utilisation, per_second / 1e9, rtol=1e-9)
    assert json.loads(result.to_json())["flops"]["peak"] == 1e9
    result = train(peak_flops=np.float32(1e9))
    assert json.loads(result.to_json())["flops"]["peak"] == 1e9
    assert result.traces == 0  # the step is traced, nothing is compiled


@pytest.mark.parametrize("shares", [None, 2])
def test_the_peak_is_that_of_all_devices(shares):
    step = fnn.data_parallel(STEP, jax.devices()[:2], shares=shares)
    result = train(step, epochs=1, peak_flops=1e9)
    assert result.flops.peak == 2e9
    assert result.flops.per_step == 2 * 2 * 16 * 4 * 3


def test_a_resumed_run_counts_its_own_steps(tmp_path):
    train(epochs=3, checkpoint=tmp_path)
    result = train(epochs=4, checkpoint=tmp_path, count_flops=True)
    expected = result.flops.per_step * 5 / result.run_seconds
    np.testing.assert_allclose(result.flops.per_second, expected, rtol=1e-9)
    done = train(epochs=4, checkpoint=tmp_path, count_flops=True)
    assert done.flops.per_second == 0.0


def test_the_table_of_peaks():
    assert peak_of("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_of("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_of("NVIDIA A100-SXM4-40GB", "float32") == 156e12
    assert peak_of("Tesla V100-SXM2-16GB", "float16") == 125e12
    assert peak_of("Tesla T4", "float16") == 65e12
    assert [peak_of(f"TPU {v}", "bfloat16") for v in ("v4", "v5 lite", "v5", "v6 lite")] == [
        275e12,
        197e12,
        459e12,
        918e12,
    ]
    assert peak_of("Tesla V100-SXM2-16GB", "bfloat16") is None
    assert peak_of("cpu", "float32") is None
    assert all(0 < peak < 1e16 for peaks in PEAKS.values() for peak in peaks.values())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_seconds": -1}, ValueError, "train: max_seconds is -1, expected a number >= 0"),
        ({"max_seconds": float("nan")}, ValueError, "train: max_seconds is nan"),
        ({"max_seconds": "1h"}, TypeError, "train: max_seconds is '1h', expected a number"),
        ({"peak_flops": 0.0}, ValueError, "train: peak_flops is 0.0, expected a number > 0"),
        ({"profile": True}, TypeError, "train: profile is True, expected the path of a folder"),
        ({"profile": __file__}, ValueError, "train: profile is .*test_train_time.py, a file, expected a folder"),
    ],
)  # fmt: skip
def test_mistakes(options, error, message):
    with pytest.raises(error, match=message):
        train(**options)
