"""One table of traces; the plain loop below is what every way of running has to agree with."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

KEY = jax.random.key(0)
NAN, INF = math.nan, math.inf
EPOCHS = 8
Stop = fnn.EarlyStopping

TRACES = {  # values by epoch, rule, epochs run, best epoch
    "improves to the end": ([8, 7, 6, 5, 4, 3, 2, 1], Stop(patience=2), 8, 7),
    "best at the last epoch": ([5, 6, 5, 6, 5, 6, 5, 4], Stop(patience=8), 8, 7),
    "a tie is no improvement": ([3, 3, 3, 1, 1, 1, 1, 1], Stop(patience=2), 3, 0),
    "patience 0 is 1": ([3, 2, 2, 1, 1, 1, 1, 1], Stop(patience=0), 3, 1),
    "patience 1": ([3, 2, 2, 1, 1, 1, 1, 1], Stop(patience=1), 3, 1),
    "patience 2": ([3, 2, 2, 1, 1, 1, 0, 0], Stop(patience=2), 6, 3),
    "a plateau exactly at min_delta": ([4, 3.5, 3, 2.5, 2, 2, 2, 2], Stop(patience=1, min_delta=0.5), 2, 0),
    "just beyond min_delta": ([4, 3.25, 2.5, 1.75, 1.5, 1.5, 1, 1], Stop(patience=1, min_delta=0.5), 5, 3),
    "slow gains add up": ([4, 3.75, 3.25, 3, 2.5, 2.5, 2.5, 2.5], Stop(patience=2, min_delta=0.5), 7, 4),
    "NaN is none": ([3, NAN, NAN, 1, 1, 1, 1, 1], Stop(patience=2), 3, 0),
    "NaN at first": ([NAN, 3, 2, NAN, 1, NAN, NAN, 0], Stop(patience=2), 7, 4),
    "nothing but NaN": ([NAN] * 8, Stop(patience=3), 3, -1),
    "nothing but inf": ([INF] * 8, Stop(patience=3), 3, -1),
    "max": ([1, 2, 2, 1, 3, 1, 1, 1], Stop(patience=4, mode="max"), 8, 4),
    "max with min_delta": ([1, 1.5, 2.25, 2.5, 2.5, 9, 9, 9], Stop(patience=2, min_delta=1, mode="max"), 5, 2),
    "not before start_epoch": ([1, 2, 2, 2, 2, 2, 2, 2], Stop(patience=2, start_epoch=4), 6, 0),
    "but the best may be": ([3, 1, 2, 2, 2, 0, 0, 0], Stop(patience=3, start_epoch=3), 8, 5),
}  # fmt: skip


def plain_loop(values, stop):
    """(epochs run, best epoch), in Python."""
    sign = 1 if stop.mode == "min" else -1
    best, best_epoch, waited = sign * INF, -1, 0
    for epoch, value in enumerate(values):
        if sign * value < sign * best - stop.min_delta:
            best, best_epoch, waited = value, epoch, 0
        elif epoch >= stop.start_epoch:
            waited += 1
        if waited >= max(stop.patience, 1):
            return epoch + 1, best_epoch
    return len(values), best_epoch


# The parameter counts the steps, 4 an epoch.
STEP = fnn.make_train_step(lambda p, batch, key: -p + 0 * batch, fnn.sgd(1.0))


def validate(ts, values):
    return {"loss": values[ts.step // 4 - 1]}


DATA = jnp.arange(16.0)


def run(values, stop):
    ts = STEP.init(jnp.zeros(()))
    return fnn.fit_until(
        STEP, ts, DATA, KEY, stop, epochs=EPOCHS, batch_size=4, validate=validate, validation=values
    )  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    """Every trace of one mode as one vmapped program, its numbers traced."""
    found = {}
    for mode in ("min", "max"):
        names = [name for name in TRACES if TRACES[name][1].mode == mode]
        values = jnp.array([TRACES[name][0] for name in names], jnp.float32)
        numbers = [
            [getattr(TRACES[name][1], field) for name in names]
            for field in ("patience", "min_delta", "start_epoch")
        ]

        def one(values, patience, min_delta, start_epoch, mode=mode):
            return run(values, Stop("val_loss", patience, min_delta, mode, start_epoch))

        results = jax.jit(jax.vmap(one))(values, *map(jnp.array, numbers))
        for i, name in enumerate(names):
            found[name] = jax.tree.map(lambda leaf, i=i: leaf[i], results)
    return found


@pytest.mark.parametrize("name", TRACES)
def test_traces(name, compiled):
    values, stop, epochs, best_epoch = TRACES[name]
    assert plain_loop(values, stop) == (epochs, best_epoch)
    progress, history = compiled[name]
    assert (int(progress.epochs), int(progress.best.epoch)) == (epochs, best_epoch)
    assert bool(progress.stopped) == (epochs < EPOCHS)
    assert float(progress.last.params) == 4 * epochs
    assert float(progress.best.params) == 4 * (best_epoch + 1)
    np.testing.assert_array_equal(history["val_loss"][:epochs], np.float32(values[:epochs]))
    assert np.isnan(history["val_loss"][epochs:]).all()
    assert (np.asarray(history["nonfinite"])[epochs:] == -1).all()
    assert history["loss"].shape == (EPOCHS, 4)


def test_alone_and_in_a_batch_are_the_same_bit_for_bit(compiled):
    name = "NaN at first"
    alone = jax.jit(lambda values: run(values, TRACES[name][1]))(jnp.array(TRACES[name][0]))
    chex.assert_trees_all_equal(alone, compiled[name])


def test_train_agrees():
    values, stop, epochs, best_epoch = TRACES["patience 2"]
    result = fnn.train(
        STEP,
        STEP.init(jnp.zeros(())),
        DATA,
        KEY,
        epochs=EPOCHS,
        batch_size=4,
        validate=validate,
        validation=jnp.array(values, jnp.float32),
        stop=stop,
        progress=False,
    )
    assert (result.stopped, result.epochs) == ("early stopping", epochs)
    assert int(result.best.epoch) == best_epoch
    assert float(result.best.params) == 4 * (best_epoch + 1)
    assert float(result.last.params) == 4 * epochs
    assert result.history["val_loss"].shape == (epochs,)


def test_the_best_has_the_state_that_went_with_it():
    def loss(params, state, batch, key):
        return -params + 0 * batch, state + 1

    step = fnn.make_train_step(loss, fnn.sgd(1.0))
    ts = step.init(jnp.zeros(()), jnp.zeros((), jnp.int32))
    values = jnp.array([3.0, 1.0, 2.0, 2.0])
    progress, _ = jax.jit(
        lambda ts: fnn.fit_until(
            step, ts, DATA, KEY, Stop(patience=2), epochs=4, batch_size=4, validate=validate, validation=values
        )
    )(ts)  # fmt: skip
    assert int(progress.best.state) == 8
    assert int(progress.last.state) == 16


def test_a_training_metric_may_be_monitored():
    ts = STEP.init(jnp.zeros(()))
    stop = Stop("loss", patience=2, mode="max")  # it falls at every step
    progress, history = jax.jit(
        lambda ts: fnn.fit_until(STEP, ts, DATA, KEY, stop, epochs=4, batch_size=4)
    )(ts)
    assert (int(progress.epochs), int(progress.best.epoch)) == (3, 0)
    assert float(progress.best.value) == np.mean(history["loss"][0])


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (Stop("accuracy"), "EarlyStopping: monitor is 'accuracy', expected one of grad_norm, .*val_loss"),
        (Stop("val_auc"), r"monitor is 'val_auc', expected one of [^;]*val_loss(\n|$)"),
        (Stop(mode="least"), "EarlyStopping: mode is 'least', expected 'min' or 'max'"),
        (Stop(patience=2.5), "EarlyStopping: patience is 2.5, expected a whole number >= 0"),
        (Stop(patience=np.int64(-1)), "EarlyStopping: patience is -1, expected at least 0"),
        (Stop(patience=INF), "EarlyStopping: patience is inf, expected a whole number >= 0"),
        (Stop(start_epoch="3"), "EarlyStopping: start_epoch is str, expected a whole number >= 0"),
        (Stop(min_delta=NAN), "EarlyStopping: min_delta is nan, expected a number >= 0"),
    ],
)  # fmt: skip
def test_errors(stop, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(jnp.zeros(8), stop)
