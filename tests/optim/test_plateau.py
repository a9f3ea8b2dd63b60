"""`reduce_on_plateau` against PyTorch's and Optax's on sequences of losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.optim import reduce_on_plateau
from tests.nets import KEY, LABELS, X, linear_init, linear_loss_fn

NAN, INF = float("nan"), float("inf")
LOSSES = [1.019, 0.687, 0.673, 0.516, 0.367, NAN, 0.574, 0.496, 0.228, 0.126, 0.208, 0.295, -0.071, INF, 0.071, 0.14, 0.161, 0.188, 0.291, 0.38, 0.199, 0.418, 0.109, 0.257]  # fmt: skip

# The rates of torch 2.13's ReduceLROnPlateau, (rate, steps with it), at rate 1 and factor 0.5.
TORCH = {  # its patience is smaller by 1
    "patience=1, threshold=0.01": (
        {"patience": 2, "rtol": 0.01},
        [(1.0, 6), (0.5, 5), (0.25, 3), (0.125, 2), (0.0625, 2), (0.03125, 2), (0.015625, 2), (0.0078125, 2)],
    ),
    "patience=1, threshold=0.01, cooldown=3": (
        {"patience": 2, "rtol": 0.01, "cooldown": 3},
        [(1.0, 6), (0.5, 5), (0.25, 5), (0.125, 5), (0.0625, 3)],
    ),
    "patience=0, threshold=0.05, threshold_mode='abs', min_lr=0.2": (
        {"patience": 1, "rtol": 0.0, "atol": 0.05, "min_scale": 0.2},
        [(1.0, 2), (0.5, 3), (0.25, 1), (0.2, 18)],
    ),
}  # fmt: skip


def scales(transform, losses, dtype=jnp.float32):
    """What the updates are multiplied by, one after each loss."""
    ones = jnp.ones(2, dtype)

    def one(state, loss):
        updates, state = transform.update(ones, state, ones, value=loss)
        return state, updates[0]

    losses = jnp.asarray(losses, jnp.float32)
    return np.asarray(jax.jit(lambda: jax.lax.scan(one, transform.init(ones), losses)[1])())


@pytest.mark.parametrize("name", TORCH)
def test_it_is_torchs(name):
    options, expected = TORCH[name]
    expected = [rate for rate, times in expected for _ in range(times)]
    np.testing.assert_allclose(scales(reduce_on_plateau(0.5, **options), LOSSES), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cooldown": 2},
        {"every": 3},
        {"patience": 1, "every": 2, "cooldown": 1, "min_scale": 0.3},
    ],
)
def test_it_is_optaxs(options, standard_promotion):
    rng = np.random.default_rng(0)
    losses = 1 / np.sqrt(np.arange(1, 121)) + 0.1 * rng.normal(size=120) + 1
    losses[[7, 50]] = NAN
    options = {"factor": 0.7, "patience": 3, "rtol": 1e-3} | options
    theirs = {"accumulation_size": options.get("every", 1)} | options
    theirs.pop("every", None)
    expected = scales(optax.contrib.reduce_on_plateau(**theirs), losses)
    assert len(np.unique(expected)) > 3
    np.testing.assert_allclose(scales(reduce_on_plateau(**options), losses), expected, rtol=1e-6)


def test_a_best_that_is_negative_has_to_be_beaten():
    """best (1 - rtol), PyTorch's, would take -0.95 for an improvement over -1."""
    plateau = reduce_on_plateau(0.5, 1, rtol=0.1)
    np.testing.assert_array_equal(scales(plateau, [-1.0, -0.95, -1.05, -1.2]), [1, 0.5, 0.25, 0.25])


def test_bfloat16_parameters_have_a_mean_in_float32():
    """In bfloat16 256 + 1 is 256: a mean of 600 losses would not see the last ones."""
    losses = np.concatenate([np.ones(600), np.full(600, 0.99), np.full(600, 0.98)])
    plateau = reduce_on_plateau(0.5, 1, every=600, rtol=5e-3)
    found = scales(plateau, losses, jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(found, float), np.ones(1800))


def test_a_run_is_given_the_loss_and_a_sweep_has_a_scale_each():
    def run(key, factor):
        optimizer = fnn.chain(fnn.sgd(0.0), reduce_on_plateau(factor, 2, every=7, rtol=0.5))
        step = fnn.make_train_step(linear_loss_fn, optimizer)
        ts = step.init(linear_init(key))
        return fnn.fit(step, ts, (X, LABELS), key, epochs=5, batch_size=16)[0].opt_state[-1]

    state = fnn.sweep(run, KEY[None], {"factor": [0.5, 0.1]})
    # Nothing is learnt at rate 0: epoch 1 is the best, and epochs 3 and 5 end two bad ones.
    np.testing.assert_allclose(state["scale"], [[0.25, 0.01]], rtol=1e-6)


def test_a_step_that_is_not_taken_does_not_count():
    optimizer = fnn.chain(fnn.sgd(0.1), reduce_on_plateau(0.5, 1))
    step = fnn.make_train_step(lambda p, b, k: p * b, optimizer)
    ts, batch = step.init(jnp.ones(())), jnp.full(2, NAN)
    ts, _ = jax.jit(step)(ts, batch, KEY)
    assert int(ts.step) == 1
    assert float(ts.opt_state[-1]["scale"]) == 1
    assert int(ts.opt_state[-1]["bad"]) == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: reduce_on_plateau(1.0), ValueError, r"reduce_on_plateau: factor is 1.0, expected a number in \(0.*, 1\)"),
        (lambda: reduce_on_plateau(0.5, 0), ValueError, "reduce_on_plateau: patience is 0, expected at least 1"),
        (lambda: reduce_on_plateau(0.5, every=2.5), TypeError, "reduce_on_plateau: every is 2.5, expected a whole number"),
        (lambda: reduce_on_plateau(0.5, min_scale=2), ValueError, "reduce_on_plateau: min_scale is 2"),
        (lambda: reduce_on_plateau().update(jnp.ones(2), {}, value=jnp.ones(1)), ValueError, r"reduce_on_plateau: value has shape \(1,\), expected one number"),
        (lambda: reduce_on_plateau().update(jnp.ones(2), {}), TypeError, "reduce_on_plateau: update came without value, expected the loss"),
    ],
)  # fmt: skip
def test_mistakes(call, error, message):
    with pytest.raises(error, match=message):
        call()
