"""Several processes on one machine, by Gloo: they compute what one process does, and end together."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import fnn
from tests.training import on_processes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder for compiled programs: a second start of the same scenario compiles nothing."""
    return tmp_path_factory.mktemp("programs")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def started(scenario, folder, programs, count, devices=1, only=None, **variables):
    """The processes; each gets `devices` devices."""
    own = {"JAX_NUM_CPU_DEVICES": devices, "JAX_COMPILATION_CACHE_DIR": programs}
    own |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0} | variables
    environment = os.environ | {name: str(value) for name, value in own.items()}
    environment.pop("XLA_FLAGS", None)
    module = [sys.executable, "-m", "tests.training.on_processes", scenario, str(folder)]
    address = f"127.0.0.1:{free_port()}"
    return [
        subprocess.Popen(
            [*module, address, str(count), str(index)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in ([only] if only is not None else range(count))
    ]


def ended(processes):
    """(exit code, stdout, stderr) of each."""
    try:
        said = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def all_well(processes):
    results = ended(processes)
    for code, _, errors in results:
        assert code == 0, errors
    return [out for _, out, _ in results]


# --- what they compute --------------------------------------------------------------------------


def test_a_sweep_is_the_same_on_every_process_and_can_be_read(tmp_path, programs):
    outs = all_well(started("sweep", tmp_path, programs, 2))
    expected = np.asarray(on_processes.swept()["draw"])
    for index in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"{index}.npz")["draw"], expected)
        assert "sweep: keys of process 1 is not that of process 0" in outs[index]


@pytest.fixture(scope="module")
def two(tmp_path_factory, programs):
    """What two processes of two devices have said, and the folder of what they computed."""
    folder = tmp_path_factory.mktemp("two")
    return all_well(started("everything", folder, programs, 2, 2)), folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process of four devices computes."""
    return on_processes.everything(tmp_path_factory.mktemp("one"), jax.devices()[:4])


def check_what_was_computed(folder, count, expected):
    for index in range(count):
        found = dict(np.load(folder / f"{index}.npz"))
        assert found.pop("hooked") == (on_processes.EPOCHS // 2 if index == 0 else 0)
        assert found.keys() == expected.keys() - {"hooked"}
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_two_processes_compute_what_one_does(two, one):
    assert one["hooked"] == on_processes.EPOCHS // 2
    check_what_was_computed(two[1], 2, one)


@pytest.mark.slow
def test_four_processes_compute_what_one_does(one, tmp_path, programs):
    all_well(started("trained", tmp_path, programs, 4))
    trained = {name: values for name, values in one.items() if not name.startswith("fit")}
    check_what_was_computed(tmp_path, 4, trained)


@pytest.mark.slow
def test_a_population_and_a_race_are_those_of_one_process_bit_for_bit(two, tmp_path):
    _, folder = two
    expected = on_processes.searched(tmp_path)
    again = on_processes.searched(folder / "searched")  # one process reads what two have written
    both = (dict(np.load(folder / f"searched{index}.npz")) for index in range(2))
    for found in (again, *both):
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.slow
def test_an_error_of_one_process_is_told_to_all(two):
    (first, second), _ = two
    assert "ZeroDivisionError of the hook" in first
    assert "RuntimeError train: process 0 ended with ZeroDivisionError: of the hook" in second
    for out in (first, second):
        assert re.search(r"has epoch 0 for process 1, but epoch 1 for process 0; expected a", out)


# --- how they end -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return on_processes.watched(folder, jax.devices()[:2], progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("hit", [0, 1])
def test_a_killed_process_ends_the_others_and_fewer_go_on(hit, whole, tmp_path, programs):
    variables = {"HIT": hit, "SIGNAL": int(signal.SIGKILL), "HEARTBEAT": 5}
    processes = started("endless", tmp_path, programs, 2, **variables)
    processes[hit].wait(400)
    killed = time.monotonic()
    processes[1 - hit].wait(400)
    assert time.monotonic() - killed < 2 * 5 + 15  # on a machine with much else to do
    results = ended(processes)
    assert results[hit][0] == -signal.SIGKILL
    code, _, errors = results[1 - hit]
    assert code != 0
    assert "if a process is killed, all end within about 5 s" in errors or hit == 0
    assert re.search(r"tasks are unhealthy|another task died", errors)
    rest = on_processes.watched(tmp_path / "run", jax.devices()[:2], progress=False)
    assert rest.epochs == on_processes.EPOCHS
    for a, b in zip(jax.tree.leaves(rest.last), jax.tree.leaves(whole.last), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rest.history["loss"], whole.history["loss"], rtol=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_after_the_same_epoch(tmp_path, programs):
    variables = {"HIT": 1, "SIGNAL": int(signal.SIGTERM)}
    (code0, out0, errors0), (code1, out1, _) = ended(
        started("endless", tmp_path, programs, 2, **variables)
    )
    assert out0.strip().splitlines()[-1] == out1.strip().splitlines()[-1], errors0
    assert out0.strip().splitlines()[-1].startswith("interrupted ")
    assert (code0, code1) == (0, -signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("only", [0, 1])
def test_a_process_that_never_comes_is_not_waited_for(only, tmp_path, programs):
    ((code, _, errors),) = ended(started("alone", tmp_path, programs, 2, only=only))
    assert code == 1
    assert "TimeoutError: start_processes: after 3 s not all processes had come to 127.0" in errors


# --- mistakes, and one process ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((None, 2, 0), TypeError, "address did not come, expected address, count and index"),
        (("host:1", 2, None), TypeError, "index did not come"),
        (("host", 2, 0), ValueError, "address is 'host', expected \"host:port\""),
        (("host:1", 2, 2), ValueError, "index is 2, expected 0 to 1"),
        (("host:1", 0, 0), ValueError, "count is 0, expected at least 1"),
        (("host:1", 2, 0), RuntimeError, "JAX has started already; call start_processes before"),
    ],
)
def test_mistakes_at_the_start(given, error, message):
    jax.devices()
    with pytest.raises(error, match=re.escape(message)):
        fnn.training.start_processes(*given)


def test_one_process_is_not_joined_to_any():
    fnn.training.start_processes(count=1)
    assert jax.process_count() == 1
    tree = {"key": jax.random.key(0), "x": jax.numpy.ones(2), "n": 3}
    fetched = fnn.training.fetch(tree)
    assert isinstance(fetched["x"], np.ndarray)
    assert fetched["n"] == 3
    assert fetched["key"] == tree["key"]
