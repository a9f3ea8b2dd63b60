"""`stochastic_average` against its closed form: the mean of the parameters that count."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.optim import stochastic_average
from tests.nets import KEY, LABELS, X, linear_init, linear_loss_fn


def walked(optimizer, params, steps=12):
    """Parameters after each step, and the optimizer's state after each: leaves [steps, ...]."""

    def one(carry, i):
        params, state = carry
        grads = jax.tree.map(lambda p: jnp.cos(p + i.astype(p.dtype)), params)
        updates, state = optimizer.update(grads, state, params)
        params = fnn.apply_updates(params, updates)
        return (params, state), (params, state)

    start = params, optimizer.init(params)
    return jax.jit(lambda: jax.lax.scan(one, start, jnp.arange(steps))[1])()


@pytest.mark.parametrize(("start", "every"), [(1, 1), (5, 1), (4, 3), (12, 1), (7, 100)])
def test_it_is_the_mean_of_the_iterates(start, every):
    params = {"b": jnp.zeros(3), "w": jnp.arange(6.0).reshape(2, 3)}
    path, state = walked(stochastic_average(fnn.adam(0.1), start, every), params)
    expected = walked(fnn.adam(0.1), params)[0]
    chex.assert_trees_all_equal(path, expected)  # the same updates
    counted = np.arange(start, 13, every) - 1
    for name, p in path.items():
        p = np.asarray(p, np.float64)
        for t in range(12):
            seen = counted[counted <= t]
            mean = p[seen].mean(0) if len(seen) else p[t]
            np.testing.assert_allclose(state["average"][name][t], mean, rtol=1e-5, atol=1e-6)
    assert int(state["averages"][-1]) == len(counted)


def test_it_is_the_formula_of_torchs_averaged_model():
    """torch.optim.swa_utils.get_swa_avg_fn: a + (p - a) / (number averaged + 1), first a copy."""
    path, state = walked(stochastic_average(fnn.sgd(0.3), 3, 2), jnp.arange(4.0))
    average = np.asarray(path[2], np.float64)
    for averaged, t in enumerate(range(4, 12, 2), 1):
        average = average + (np.asarray(path[t], np.float64) - average) / (averaged + 1)
        np.testing.assert_allclose(state["average"][t], average, rtol=1e-5)


def test_half_precision_complex_and_no_parameters():
    half = walked(stochastic_average(fnn.sgd(0.1), 1), jnp.ones(2, jnp.bfloat16))[1]["average"]
    assert half.dtype == jnp.float32
    z, state = walked(stochastic_average(fnn.sgd(0.1), 2), jnp.ones(2, jnp.complex64))
    np.testing.assert_allclose(state["average"][-1], np.asarray(z)[1:].mean(0), rtol=1e-5)
    assert stochastic_average(fnn.sgd(0.1), 1).init({})["average"] == {}


def test_starts_may_be_traced_and_a_run_goes_on():
    data = X[:64], LABELS[:64]

    def run(key, start, parts=1):
        step = fnn.make_train_step(linear_loss_fn, stochastic_average(fnn.sgd(0.1), start, 4))
        ts = step.init(linear_init(key))
        for _ in range(parts):
            ts, _ = fnn.fit(step, ts, data, key, epochs=4 // parts, batch_size=16)
        return ts.opt_state

    whole = jax.jit(run)
    assert [int(whole(KEY, start)["averages"]) for start in (8, 9)] == [3, 2]
    in_parts = jax.jit(lambda start: run(KEY, start, parts=2))(8)
    chex.assert_trees_all_close(whole(KEY, 8), in_parts, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: stochastic_average(fnn.sgd, 1), TypeError, "stochastic_average: sgd is a function"),
        (lambda: stochastic_average(fnn.sgd(0.1), 0), ValueError, "stochastic_average: start is 0, expected at least 1"),
        (lambda: stochastic_average(fnn.sgd(0.1), 1, 0.5), TypeError, "stochastic_average: every is 0.5, expected a whole number"),
        (lambda: stochastic_average(fnn.sgd(0.1), 1).update(jnp.ones(2), {}), ValueError, r"stochastic_average: update\(grads, state\) came without params"),
    ],
)  # fmt: skip
def test_mistakes(call, error, message):
    with pytest.raises(error, match=message):
        call()
