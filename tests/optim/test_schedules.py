from unittest.mock import ANY

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.optim.pruning import cubic_sparsity
from fnn.optim.schedules import (
    Epochs,
    Run,
    constant,
    cosine,
    inverse_square_root,
    linear,
    one_cycle,
    steps,
    trapezoid,
    warmup_cosine,
)
from tests.nets import KEY, LABELS, X, linear_init, linear_loss_fn

RUN = Run(epochs=10, rows=103, batch_size=16)  # 70 steps, 7 an epoch


def rates(schedule, n=75):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(n)))


def test_lengths():
    assert RUN.steps() == 70
    assert [RUN.steps(length) for length in (5, 0.1, Epochs(2), Epochs(0.5), 0, 1.0)] == [
        5,
        7,
        14,
        4,
        0,
        70,
    ]
    with pytest.raises(ValueError, match=r"Run\.steps: length 1\.5 is no fraction of the run"):
        RUN.steps(1.5)
    with pytest.raises(ValueError, match=r"Run\.steps: length is -3, expected at least 0"):
        RUN.steps(-3)


def test_schedules_are_optaxs_over_the_run(standard_promotion):
    n = jnp.arange(75)
    same = {
        "constant": (constant(0.1), lambda s: 0.1),
        "linear": (linear(RUN, 0.1, 0.01), optax.schedules.linear_schedule(0.1, 0.01, 70)),
        "cosine": (cosine(RUN, 0.1, 0.01), optax.schedules.cosine_decay_schedule(0.1, 70, 0.1)),
        "warm-up": (
            warmup_cosine(RUN, 0.1, warmup=0.1, end=0.01),
            optax.schedules.warmup_cosine_decay_schedule(0.0, 0.1, 7, 70, 0.01),
        ),
        "one cycle": (one_cycle(RUN, 0.1), optax.schedules.cosine_onecycle_schedule(70, 0.1)),
        "steps": (
            steps(RUN, 0.1, factor=0.5, at=[0.5, Epochs(8)]),
            None,
        ),
    }
    for name, (ours, theirs) in same.items():
        # Optax's step schedule changes one update later than its boundary.
        halved = 0.1 * 0.5 ** ((n >= 35) * 1 + (n >= 56) * 1)
        expected = halved if name == "steps" else jax.jit(jax.vmap(theirs))(n)
        np.testing.assert_allclose(rates(ours), expected, rtol=1e-5, atol=1e-8, err_msg=name)


def test_a_warm_up_ends_at_its_peak():
    values = rates(warmup_cosine(RUN, 0.1, warmup=Epochs(1), start=0.01))
    np.testing.assert_allclose(values[[0, 7, 70]], [0.01, 0.1, 0.0], atol=1e-8)
    assert values.argmax() == 7


def test_trapezoid_is_the_papers():
    run = Run(epochs=1, rows=10, batch_size=1)
    level = [1.0] * 2
    falls = {"linear": [1, 0.75, 0.5, 0.25, 0, 0], "sqrt": [1, 0.5, 0.292893, 0.133975, 0, 0]}
    for shape, fall in falls.items():
        found = rates(trapezoid(run, 1.0, warmup=4, decay=0.4, shape=shape), 12)
        np.testing.assert_allclose(found, [0.25, 0.5, 0.75, 1.0, *level, *fall], atol=1e-6)
    # from 0.1 to 0.02: the fall starts at the peak and ends above 0
    found = rates(trapezoid(run, 0.1, warmup=0, decay=1.0, end=0.02), 12)
    expected = np.maximum(0.1 - 0.008 * np.arange(12), 0.02)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(rates(trapezoid(run, 0.1, warmup=0, decay=0), 12), 0.1)
    up = rates(trapezoid(run, 0.1, warmup=1.0, decay=0), 12)
    np.testing.assert_allclose(up, 0.1 * np.minimum(np.arange(1, 13) / 10, 1), rtol=1e-6)


def test_the_end_of_a_run_of_more_steps_than_float32_can_count():
    total, t = 2**24 + 41, np.arange(21)
    run, count = Run(epochs=1, rows=total, batch_size=1), jnp.arange(total - 20, total + 1)
    falling = {
        "trapezoid": (trapezoid(run, 1.0, warmup=0, decay=20), 1 - t / 20),
        "cosine": (warmup_cosine(run, 1.0, warmup=total - 20), np.cos(np.pi * t / 40) ** 2),
        "sparsity": (cubic_sparsity(1.0, 20, begin=total - 20), 1 - (1 - t / 20) ** 3),
        "constant": (constant(1.0), np.ones(21)),  # of this shape too
    }
    at = jax.jit(lambda count: {name: schedule(count) for name, (schedule, _) in falling.items()})
    found = at(count)
    for name, (_, expected) in falling.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-6, err_msg=name)
    for small in (np.int8(9), np.uint32(9)):  # less a length they would wrap
        assert at(small) == {"trapezoid": 1, "cosine": ANY, "sparsity": 0, "constant": 1}


def test_inverse_square_root_is_vaswanis():
    t = np.arange(1, 76)
    found = rates(inverse_square_root(RUN, 0.1, warmup=Epochs(1)))
    vaswani = 0.1 * 7**0.5 * np.minimum(t**-0.5, t * 7**-1.5)
    np.testing.assert_allclose(found, vaswani, rtol=1e-6)
    slower = rates(inverse_square_root(RUN, 0.1, warmup=7, timescale=100))
    expected = np.where(t <= 7, 0.1 * t / 7, 0.1 / np.sqrt(1 + (t - 7) / 100))
    np.testing.assert_allclose(slower, expected, rtol=1e-6)
    cold = rates(inverse_square_root(RUN, 0.1, warmup=0, timescale=50))
    np.testing.assert_allclose(cold, 0.1 / np.sqrt(1 + t / 50), rtol=1e-6)


def test_the_newer_schedules_may_be_swept():
    def value(peak):
        falling = trapezoid(RUN, peak, warmup=7, decay=0.5, end=0.1 * peak)
        return fnn.nadam(falling).init(jnp.ones(1))["last_rate"], falling(50), (
            inverse_square_root(RUN, peak, warmup=7)(jnp.int32(50))
        )  # fmt: skip

    peaks = jnp.array([0.1, 0.7])
    together = jax.vmap(value)(peaks)
    np.testing.assert_allclose(together[0], peaks / 7, rtol=1e-6)
    np.testing.assert_allclose(together[1], peaks * (1 - 0.9 * 15 / 35), rtol=1e-6)
    assert all(leaf.dtype == jnp.float32 for leaf in together)


def test_peaks_may_be_swept_and_history_tells_the_rate():
    def run(key, peak):
        optimizer = fnn.adam(warmup_cosine(RUN, peak, warmup=0.1))
        step = fnn.make_train_step(linear_loss_fn, optimizer)
        ts = step.init(linear_init(key))
        return fnn.fit(step, ts, (X, LABELS), key, epochs=10, batch_size=16)[1]

    history = fnn.sweep(run, KEY[None], {"peak": [0.1, 0.01]})
    for i, peak in enumerate((0.1, 0.01)):
        recorded = np.asarray(history["learning_rate"][0, i]).ravel()
        np.testing.assert_allclose(
            recorded, rates(warmup_cosine(RUN, peak, warmup=0.1), 70), rtol=1e-5
        )


def test_history_tells_every_groups_rate_and_optaxs(standard_promotion):
    groups = fnn.by_path({"**/b": fnn.sgd(0.5), "**": fnn.adam(0.25)})
    injected = optax.inject_hyperparams(optax.adam)(learning_rate=0.125)
    optimizers = {"groups": groups, "injected": injected, "plain": optax.adam(1.0)}

    @jax.jit
    def metrics():
        def of(optimizer):
            step = fnn.make_train_step(linear_loss_fn, optimizer)
            return step(step.init(linear_init()), (X, LABELS), KEY)[1]

        return {name: of(optimizer) for name, optimizer in optimizers.items()}

    told = {
        name: {k: float(v) for k, v in of.items() if "learning_rate" in k}
        for name, of in metrics().items()
    }
    assert told["groups"] == {"**/b/learning_rate": 0.5, "**/learning_rate": 0.25}
    assert told["injected"] == {"learning_rate": 0.125}
    assert told["plain"] == {}
