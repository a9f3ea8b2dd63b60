"""JAX's own switches: every loop works under each of them, and gives what it gives without."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

pytestmark = pytest.mark.slow  # every loop under every switch of JAX's

ROWS = np.arange(1.0, 4.0)
STOP = fnn.EarlyStopping("val_size", patience=1)  # it grows: stopped after 2 of 3 epochs


@contextmanager
def debug_nans_and_infs():
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


@contextmanager
def checks_while_tracing():
    """Two switches that only raise, and one that only moves arrays."""
    with (
        jax.numpy_rank_promotion("raise"),
        jax.debug_key_reuse(True),
        jax.default_device(jax.devices()[2]),
    ):
        yield


SWITCHES = {
    "debug_nans and debug_infs": debug_nans_and_infs,
    "disable_jit": jax.disable_jit,
    "enable_x64": lambda: jax.enable_x64(True),
    "numpy_rank_promotion, debug_key_reuse and default_device": checks_while_tracing,
    "default_prng_impl": lambda: jax.default_prng_impl("rbg"),
}


def loss(params, batch, key):
    return (params - batch) ** 2 + 0 * jax.random.normal(key, dtype=batch.dtype)


def validate(ts, data):
    return fnn.evaluate(lambda x: {"size": x * ts.params}, data, 2)


STEP = fnn.make_train_step(loss, fnn.adam(0.1), clip_norm=1.0)
OPTIONS = {"batch_size": 2, "validate": validate}


def everything():
    """The last parameter by each loop from one key: after one epoch, [2], and after two, [2]."""
    rows = jnp.asarray(ROWS)  # float64 under enable_x64
    options = OPTIONS | {"validation": rows}

    @jax.jit
    def pure(ts, key):
        last, _ = fnn.fit(STEP, ts, rows, key, epochs=1, **options)
        progress, history = fnn.fit_until(STEP, ts, rows, key, STOP, epochs=3, **options)
        return last.params, progress.last.params, history["loss"]

    def run(key, start):
        ts = STEP.init(start)
        return fnn.fit(STEP, ts, rows, key, epochs=1, batch_size=2)[0].params

    ts, key = STEP.init(jnp.zeros(())), jax.random.key(3)
    last, until, _ = pure(ts, key)
    watched = fnn.train(STEP, ts, rows, key, epochs=3, stop=STOP, progress=False, **options)
    assert (watched.stopped, watched.epochs) == ("early stopping", 2)
    swept = fnn.sweep(run, key[None], {"start": [0.0]})
    assert swept.shape == (1, 1)
    doubled = fnn.predict(lambda x: 2 * x, rows, 2)
    np.testing.assert_array_equal(doubled, 2 * ROWS)
    return np.array([[last, swept[0, 0]], [until, watched.last.params]], float)


@pytest.fixture(scope="module")
def plain():
    found = everything()
    check_that_loops_agree(found)
    return found


def check_that_loops_agree(found):
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 0], found[:, 1], rtol=1e-5)


@pytest.mark.filterwarnings("ignore:train. this step was compiled before")
@pytest.mark.parametrize("switch", SWITCHES)
def test_under(switch, plain):
    with SWITCHES[switch]():
        found = everything()
    check_that_loops_agree(found)
    if switch != "default_prng_impl":
        np.testing.assert_allclose(found, plain, rtol=1e-4)


def test_a_switch_on_and_off_between_two_calls():
    """A program that was compiled before the hunt for NaN is used in it."""
    rows = jnp.asarray(ROWS)
    ts, key = STEP.init(jnp.zeros(())), jax.random.key(3)
    options = {"epochs": 3, "stop": STOP, "progress": False, "validation": rows, **OPTIONS}
    fnn.train(STEP, ts, rows, key, **options)
    with debug_nans_and_infs():
        assert fnn.train(STEP, ts, rows, key, **options).traces == 0
