"""`mean_state` gives batch norm's statistics as NumPy does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training import mean_state
from tests.nets import KEY, X

PARAMS, STATE = fnn.batch_norm_init(4)


def statistics(batch):
    return fnn.batch_norm(PARAMS, STATE, batch, train=True, momentum=0.0)[1]


@pytest.mark.parametrize(("rows", "batch_size"), [(96, 16), (103, 16), (103, 200), (5, 1)])
def test_it_is_the_mean_of_the_batches_by_their_rows(rows, batch_size):
    x = np.asarray(X, np.float64)[:rows]
    parts = [x[i : i + batch_size] for i in range(0, rows, batch_size)]
    counts = [len(part) for part in parts]
    found = jax.jit(lambda x: mean_state(statistics, x, batch_size))(X[:rows])
    mean, var = (
        np.average([f(part, axis=0) for part in parts], axis=0, weights=counts)
        for f in (np.mean, np.var)
    )
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], var, rtol=1e-4, atol=1e-6)


def test_it_is_the_cumulative_mean_of_torchs_update_bn():
    """With momentum None: m <- m + (batch - m) / number of batches; variances here divide by n."""
    m = np.zeros(4)
    for i in range(6):
        m = m + (np.asarray(X[16 * i : 16 * i + 16], float).mean(0) - m) / (i + 1)
    found = mean_state(statistics, X[:96], 16)
    np.testing.assert_allclose(found["mean"], m, rtol=1e-4, atol=1e-6)


def test_a_key_shuffles_the_rows():
    """Sorted rows have batches of small variance; shuffled ones have about that of all rows."""
    x = jnp.sort(X[:96], axis=0)
    in_order, shuffled = mean_state(statistics, x, 16), mean_state(statistics, x, 16, key=KEY)
    whole = np.var(np.asarray(x), axis=0)
    assert (in_order["var"] < 0.3 * whole).all()
    assert (abs(shuffled["var"] / whole - 1) < 0.3).all()
    np.testing.assert_allclose(in_order["mean"], shuffled["mean"], rtol=1e-4, atol=1e-6)


def test_averaged_parameters_get_statistics_of_their_own():
    def apply(params, state, x, **options):
        h, state = fnn.batch_norm(PARAMS, state, fnn.dense(params, x), train=True, **options)
        return h, state

    def loss_fn(params, state, x, key):
        h, state = apply(params, state, x)
        return jnp.square(h - x).sum(1), state

    step = fnn.make_train_step(loss_fn, fnn.optim.stochastic_average(fnn.sgd(0.1), 7, 7))
    ts = step.init(fnn.dense_init(KEY, 4, 4), STATE)
    ts = jax.jit(lambda ts: fnn.fit(step, ts, X, KEY, epochs=3, batch_size=16)[0])(ts)
    average = ts.opt_state["average"]
    found = mean_state(lambda x: apply(average, ts.state, x, momentum=0.0)[1], X, len(X))
    h = np.asarray(X, float) @ np.asarray(average["w"], float) + np.asarray(average["b"], float)
    np.testing.assert_allclose(found["mean"], h.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], h.var(0), rtol=1e-4, atol=1e-5)
    assert not np.allclose(found["mean"], ts.state["mean"], rtol=1e-2)


def test_mistakes():
    with pytest.raises(ValueError, match="mean_state: batch_size is 0, expected at least 1"):
        mean_state(statistics, X, 0)
    with pytest.raises(TypeError, match="mean_state: state_fn is a dict, expected a function"):
        mean_state({}, X, 16)
    with pytest.raises(TypeError, match="mean_state: key is int, expected a key"):
        mean_state(statistics, X, 16, key=0)
    with pytest.raises(TypeError, match="mean_state: state_fn needs values while it is traced"):
        mean_state(lambda x: float(x.sum()), X, 16)
