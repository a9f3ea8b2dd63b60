import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fnn
from fnn.search import lr_find
from tests.nets import linear_run

KEYS = jax.random.split(jax.random.key(0), 3)
CURVATURES = np.array([0.5, 2.0, 8.0])
STEPS = 40


def start(key):
    return 1 + jax.random.uniform(key, (3,))


def quadratic(key, learning_rate):
    """Gradient descent on sum(curvature w^2) / 2 -> the losses after each step."""
    c = jnp.asarray(CURVATURES, jnp.float32)

    def step(w, _):
        w = w - learning_rate * c * w
        return w, jnp.sum(c * w**2) / 2

    return lax.scan(step, start(key), length=STEPS)[1]


def last(key, learning_rate):
    return quadratic(key, learning_rate)[-1]


def by_hand(rates, steps):
    """w after t steps is (1 - rate * curvature)^t w_0, in float64 [seeds, rates, steps]."""
    w = np.asarray(jax.vmap(start)(KEYS), np.float64)[:, None, None]
    factor = (1 - np.asarray(rates)[:, None, None] * CURVATURES) ** (2 * steps[:, None])
    return (CURVATURES * factor * w**2).sum(-1) / 2


def test_a_quadratic_in_closed_form():
    found = lr_find(last, KEYS, low=1e-3, high=10.0)
    assert found.rates.shape == (32,)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-3, 10, 32))
    expected = by_hand(found.rates, np.array([STEPS]))[..., 0]
    finite = np.isfinite(found.losses)  # the largest rates overflow float32
    np.testing.assert_allclose(found.losses[finite], expected[finite], rtol=1e-3)
    np.testing.assert_array_equal(found.median, np.median(found.losses, 0))
    # The edge of divergence is 2 / the largest curvature.
    np.testing.assert_array_equal(found.diverged, np.tile(found.rates > 2 / 8, (3, 1)))
    # In the long run 2 / (least + largest curvature) is best, here the rate of the grid below it.
    at = np.median(expected, 0).argmin()
    assert found.rates[at] < 2 / 8.5 < found.rates[at + 1]
    # That is the last below the edge, so the next lower rate is taken.
    at -= 1
    assert found.suggestion == found.rates[at]
    assert found.edge is None
    assert found.why == (
        f"{found.suggestion:.3g} has the least median loss, {found.median[at]:.3g}, of the"
        f" {(found.rates < 0.25).sum() - 1} rates at which none of 3 seeds diverged, nor at the"
        " next higher rate."
    )


def test_one_step_below_the_edge_of_divergence():
    """0.2 trains best, but the next higher rate diverges."""
    found = lr_find(last, KEYS, rates=[0.001, 0.05, 0.1, 0.2, 0.26])
    assert found.diverged.any(0).tolist() == [False] * 4 + [True]
    assert found.median.argmin() == 3
    assert found.suggestion == 0.1
    assert found.edge is None


def test_of_losses_of_steps_the_last_tenth_counts():
    found = lr_find(quadratic, KEYS, rates=[0.01, 0.05, 0.1])
    expected = by_hand(found.rates, np.arange(STEPS - 3, STEPS + 1)).mean(-1)
    np.testing.assert_allclose(found.losses, expected, rtol=1e-4)

    def two_axes(key, learning_rate):
        return quadratic(key, learning_rate).reshape(4, 10)

    np.testing.assert_array_equal(lr_find(two_axes, KEYS, rates=found.rates).losses, found.losses)


def test_one_seed():
    found = lr_find(last, KEYS[:1], low=1e-3, high=10.0)
    assert found.losses.shape == (1, 32)
    np.testing.assert_array_equal(found.median, found.losses[0])
    assert "has the least loss, " in found.why
    assert "at which the run did not diverge" in found.why


def test_a_seed_that_diverges_takes_a_rate_out():
    def run(key, learning_rate):
        loss = jnp.where(learning_rate > 0.35, 0.1, 1 - learning_rate)
        bad = (jax.random.bits(key) == jax.random.bits(KEYS[1])) & (learning_rate > 0.35)
        return jnp.where(bad, jnp.nan, loss)

    found = lr_find(run, KEYS, rates=[0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(found.diverged.sum(0), [0, 0, 0, 1])
    assert found.median.argmin() == 3
    assert found.losses[1, 3] == np.inf
    assert found.suggestion == 0.2


def test_nan_in_one_step_is_divergence():
    def run(key, learning_rate):
        losses = jnp.full(20, 1 - learning_rate)
        return losses.at[3].set(jnp.where(learning_rate > 0.25, jnp.nan, 0.0))

    found = lr_find(run, KEYS, rates=[0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(found.diverged, [[False, False, True, True]] * 3)
    assert found.suggestion == 0.1
    assert found.edge == "lowest"


def test_nan_everywhere():
    found = lr_find(lambda key, learning_rate: learning_rate * jnp.nan, KEYS, count=4)
    assert found.suggestion is None
    assert found.edge is None
    assert np.isinf(found.losses).all()
    assert found.diverged.all()
    assert found.why == (
        "No rate is suggested: at each of the 4 rates, from 1e-05 to 10, a loss of at least one of"
        " 3 seeds is not finite."
    )


@pytest.mark.parametrize(
    ("rates", "suggestion", "edge", "advice"),
    [
        ([1e-4, 1e-3, 1e-2], 1e-2, "highest", "highest rate that was tried: try rates above"),
        ([0.2, 1.0, 10.0], 0.2, "lowest", "lowest rate that was tried: try rates below"),
        ([0.2, 0.3], 0.2, "lowest", "try rates below"),
    ],
)
def test_at_the_edge_of_the_range(rates, suggestion, edge, advice):
    found = lr_find(last, KEYS, rates=rates)
    assert (found.suggestion, found.edge) == (suggestion, edge)
    assert advice in found.why


@pytest.mark.slow
def test_a_network_in_one_trace():
    traces = []

    def run(key, learning_rate):
        traces.append(1)
        return linear_run(key, learning_rate, epochs=2)[1]["loss"]

    found = lr_find(run, KEYS, low=1e-4, high=1e3, count=8)
    assert len(traces) == 1
    alone = np.asarray(jax.jit(run)(KEYS[2], jnp.float32(found.rates[3])), np.float64)
    assert found.losses[2, 3] == alone.ravel()[-2:].mean()  # 14 steps: the last 2
    assert 1e-3 < found.suggestion < 1e3
    fnn.plots.lr_find(found)


def test_bfloat16_and_side_by_side():
    def half(key, learning_rate):
        return last(key, learning_rate).astype(jnp.bfloat16)

    found = lr_find(half, KEYS, rates=[0.01, 0.1], width=3)
    expected = by_hand(found.rates, np.array([STEPS]))[..., 0]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lr_find(last, KEYS, low=0.0), ValueError, r"lr_find: low is 0\.0, expected a number > 0"),
        (lambda: lr_find(last, KEYS, low=1.0, high=0.1), ValueError, r"lr_find: high is 0\.1, expected a number > 1\.0"),
        (lambda: lr_find(last, KEYS, high=np.inf), ValueError, "lr_find: high is inf, expected a finite"),
        (lambda: lr_find(last, KEYS, count=1), ValueError, "lr_find: count is 1, expected at least 2"),
        (lambda: lr_find(last, KEYS, rates=[0.1]), ValueError, r"lr_find: rates are \[0\.1\], expected at least two"),
        (lambda: lr_find(last, KEYS, rates=[0.2, 0.1]), ValueError, r"lr_find: rates are \[0\.2 0\.1\]"),
        (lambda: lr_find(last, KEYS, rates=[0.1, np.nan]), ValueError, r"rates are \[0\.1 nan\]"),
        (lambda: lr_find(last, KEYS, rates=[-0.1, 0.1]), ValueError, r"rates are \[-0\.1 {1,2}0\.1\]"),
        (lambda: lr_find(last, KEYS[jnp.zeros(2, int)]), ValueError, "lr_find: key 1 is the same as one before"),
        (lambda: lr_find(last, 0), TypeError, "lr_find: keys came as 0"),
        (lambda: lr_find(lambda key, learning_rate: {"loss": learning_rate}, KEYS, count=2), TypeError, "lr_find: run returned dict, expected a loss"),
        (lambda: lr_find(lambda key, learning_rate: 1, KEYS, count=2), TypeError, "lr_find: run returned int32, expected a loss"),
        (lambda: lr_find(lambda key, learning_rate: jnp.zeros(0), KEYS, count=2), ValueError, "run returned no losses"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
