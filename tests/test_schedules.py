import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.schedules import Epochs, Run, constant, cosine, linear, one_cycle, steps, warmup_cosine
from tests.test_training import KEY, LABELS, X, init, loss_fn

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
    with pytest.raises(ValueError, match=r"Run\.steps: length 1\.5 is no part of the run"):
        RUN.steps(1.5)
    with pytest.raises(ValueError, match=r"Run\.steps: length -3 is negative"):
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
        np.testing.assert_allclose(rates(ours), expected, rtol=1e-5, atol=1e-9, err_msg=name)


def test_a_warm_up_ends_at_its_peak():
    values = rates(warmup_cosine(RUN, 0.1, warmup=Epochs(1), start=0.01))
    np.testing.assert_allclose(values[[0, 7, 70]], [0.01, 0.1, 0.0], atol=1e-8)
    assert values.argmax() == 7


def test_peaks_may_be_swept_and_history_tells_the_rate():
    def run(key, peak):
        optimizer = fnn.adam(warmup_cosine(RUN, peak, warmup=0.1))
        step = fnn.make_train_step(loss_fn, optimizer)
        ts = fnn.train_init(init(key), optimizer)
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
    told = {}
    for name, optimizer in (("groups", groups), ("injected", injected), ("plain", optax.adam(1.0))):
        step = fnn.make_train_step(loss_fn, optimizer)
        start = jax.jit(lambda optimizer=optimizer: fnn.train_init(init(), optimizer))()
        _, metrics = jax.jit(step)(start, (X, LABELS), KEY)
        told[name] = {k: float(v) for k, v in metrics.items() if "learning_rate" in k}
    assert told["groups"] == {"**/b/learning_rate": 0.5, "**/learning_rate": 0.25}
    assert told["injected"] == {"learning_rate": 0.125}
    assert told["plain"] == {}
