"""What nobody holds is freed, and what somebody holds is compiled once."""

import gc
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn._base import _kept

pytestmark = pytest.mark.slow  # many programs, and what is left of them

KEY = jax.random.key(0)
ROWS = np.arange(1.0, 5.0, dtype=np.float32)
STEP = fnn.make_train_step(lambda p, batch, key: p * batch, fnn.sgd(0.1))


def train(step=STEP, rows=ROWS, **options):
    options = {"epochs": 1, "batch_size": 2, "progress": False} | options
    return fnn.train(step, STEP.init(jnp.ones(())), rows, KEY, **options)


class Model:
    """With methods, which Python makes anew whenever they are asked for."""

    def __init__(self):
        self.array = jnp.ones(100_000)

    def validate(self, ts, data):
        return {"loss": ts.params * self.array[0]}

    def step(self, ts, batch, key, mask=None):
        return STEP(ts, batch * self.array[1], key, mask)

    def run(self, key, rate):
        return rate * self.array.sum()


def sweep(run):
    return fnn.sweep(run, KEY[None], {"rate": [0.1, 0.2]})


def cross_validate(run):
    folds = fnn.k_folds(None, 4, 2)
    return fnn.cross_validate(lambda key, train, valid: run(key, 1.0), KEY[None], ROWS, folds)


USES = {
    "validate": lambda model: train(validate=lambda ts, data: model.validate(ts, data)),
    "validate that knows the step": lambda model: train(
        validate=lambda ts, data: STEP and model.validate(ts, data)
    ),
    "a method": lambda model: train(validate=model.validate),
    "a step": lambda model: train(lambda *given: model.step(*given)),
    "a step that is a method": lambda model: train(model.step),
    "sweep": lambda model: sweep(lambda key, rate: model.run(key, rate)),
    "sweep of a method": lambda model: sweep(model.run),
    "cross_validate": lambda model: cross_validate(lambda key, rate: model.run(key, rate)),
}


@pytest.mark.parametrize("use", USES)
def test_a_fresh_function_and_its_arrays_are_freed(use):
    model = Model()
    gone, kept = weakref.ref(model), len(_kept._kept)
    USES[use](model)
    del model
    gc.collect()
    assert gone() is None
    assert len(_kept._kept) <= kept + (use == "validate that knows the step")
    assert not [a for a in jax.live_arrays() if a.shape == (100_000,)]


def test_what_is_held_compiles_once():
    model = Model()
    assert train(validate=model.validate).traces == 1
    assert train(validate=model.validate).traces == 0
    assert train(validate=lambda ts, data: {"loss": ts.params}).traces == 1
    traces = []

    def run(key, rate):
        traces.append(1)
        return rate

    sweep(run), sweep(run)
    assert len(traces) == 1


MANY_CALLS = """
import ctypes, gc, os
import jax, jax.numpy as jnp, numpy as np
import fnn
KEY, ROWS = jax.random.key(0), np.arange(1.0, 5.0, dtype=np.float32)
STEP = fnn.make_train_step(lambda p, batch, key: p * batch, fnn.sgd(0.1))
OPTIONS = {"epochs": 1, "batch_size": 2}

def fresh(i):
    array = jnp.full(2_000_000, float(i))
    return lambda ts, data: {"loss": ts.params * array[0] + array.sum()}

def by_jit(i):
    validate = fresh(i)
    jax.jit(lambda ts: fnn.fit(STEP, ts, ROWS, KEY, validate=validate, **OPTIONS))(START)

def by_train(i):
    fnn.train(STEP, START, ROWS, KEY, validate=fresh(i), progress=False, **OPTIONS)

def by_sweep(i):
    run = lambda key, rate: fresh(i)(STEP.init(rate), 0)["loss"]
    fnn.sweep(run, KEY[None], {"rate": [0.1, 0.2]})

def megabytes():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

START = STEP.init(jnp.ones(()))
for use in (by_jit, by_train, by_sweep):
    use(0)
    before = megabytes()
    for i in range(6):
        use(i)
    print(megabytes() - before)
assert not [a for a in jax.live_arrays() if a.shape == (2_000_000,)]
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_calls_grow_no_more_than_fresh_jits_do():
    """In a process of its own, since what other tests have freed would hide growth."""
    done = subprocess.run(
        [sys.executable, "-c", MANY_CALLS], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plain, *ours = map(float, done.stdout.split())
    assert max(ours) < 2 * max(plain, 8.0)  # 6 arrays that are kept would be 48 MB


# --- where the data are ---------------------------------------------------------------------------


def test_a_run_is_where_its_data_are():
    devices = jax.devices()
    start = STEP.init(jnp.ones(()))
    elsewhere = jax.device_put(start, devices[5])
    expected = train().last.params
    for ts, device in ((start, devices[3]), (elsewhere, devices[0])):
        rows = jax.device_put(ROWS, device)
        last = fnn.train(STEP, ts, rows, KEY, epochs=1, batch_size=2, progress=False).last
        assert last.params.devices() == {device}
        assert last.params == expected
    last, _ = fnn.fit(STEP, elsewhere, rows, KEY, epochs=1, batch_size=2)
    assert last.params.devices() == {devices[0]}
    with jax.default_device(devices[2]):
        assert train().last.params.devices() == {devices[2]}
    assert train().last.params.devices() == {devices[0]}


def test_data_parallel_takes_a_state_that_is_on_one_device():
    step = fnn.data_parallel(STEP)
    rows, options = np.arange(16, dtype=np.float32), {"epochs": 1, "batch_size": 8}
    there = jax.device_put(STEP.init(jnp.ones(())), jax.devices()[3])
    expected = step.init(jnp.ones(()))
    assert there.params.committed
    ts, _ = step(there, rows[:8], KEY)
    assert len(ts.params.devices()) == 8
    a, _ = fnn.fit(step, there, rows, KEY, **options)
    b, _ = jax.jit(lambda ts: fnn.fit(step, ts, rows, KEY, **options))(step.init(there.params))
    c = fnn.train(step, there, rows, KEY, progress=False, **options).last
    d, _ = fnn.fit(step, expected, jax.device_put(rows, jax.devices()[1]), KEY, **options)
    for ts in (a, b, c, d):
        np.testing.assert_allclose(ts.params, a.params)
        assert len(ts.params.devices()) == 8
