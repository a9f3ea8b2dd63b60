"""What a loss function may take and return: a mask, weights of its own, metrics beside the loss."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.training import Weighted
from tests.nets import KEY, LABELS, X, linear_init, linear_loss_fn

BATCH = (X[:12], LABELS[:12])
MASK = jnp.arange(12) < 9


def linear(params, batch):
    return fnn.dense(params, batch[0])


# --- metrics beside the loss --------------------------------------------------------------------


def with_accuracy(params, batch, key):
    logits = linear(params, batch)
    right = fnn.accuracy(logits, batch[1])
    return fnn.cross_entropy(logits, batch[1]), {"accuracy": right, "norm": jnp.float32(3)}


@pytest.mark.parametrize("parts", [1, 3])
def test_aux_is_averaged_as_the_losses_are(parts):
    plain = fnn.make_train_step(linear_loss_fn, fnn.sgd(0.1), accumulate=parts)
    step = fnn.make_train_step(with_accuracy, fnn.sgd(0.1), aux=True, accumulate=parts)
    ts = step.init(linear_init())
    after, metrics = jax.jit(step)(ts, BATCH, KEY, MASK)
    expected, plain_metrics = jax.jit(plain)(ts, BATCH, KEY, MASK)
    jax.tree.map(np.testing.assert_array_equal, after.params, expected.params)
    right = fnn.accuracy(linear(ts.params, BATCH), BATCH[1])
    np.testing.assert_allclose(metrics["accuracy"], right[:9].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["norm"], 3, rtol=1e-6)
    assert set(metrics) == {*plain_metrics, "accuracy", "norm"}


def test_aux_comes_after_the_state():
    def loss(params, state, batch, key):
        return params * batch, state + 1, {"twice": 2 * batch}

    step = fnn.make_train_step(loss, fnn.sgd(1.0), aux=True)
    ts, metrics = step(step.init(jnp.ones(()), jnp.zeros(())), jnp.arange(4.0), KEY)
    assert (float(ts.state), float(metrics["twice"])) == (1, 3)


# --- weights of its own -------------------------------------------------------------------------

TOKENS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
REAL = jnp.arange(8) < jnp.array([8, 8, 1, 1])[:, None]


def by_tokens(params, batch, key):
    tokens, real = batch
    return Weighted((params - tokens) ** 2, real)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_are_weighed_by_their_tokens(parts):
    """Lengths 8, 8 and 1, 1: the mean of two means of tokens would be far off."""
    step = fnn.make_train_step(by_tokens, fnn.sgd(1.0), accumulate=parts)
    ts, metrics = jax.jit(step)(step.init(jnp.zeros(())), (TOKENS, REAL), KEY)
    tokens = np.asarray(TOKENS, float)[np.asarray(REAL)]
    np.testing.assert_allclose(metrics["loss"], (tokens**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(ts.params, 2 * tokens.mean(), rtol=1e-5)


def test_a_weight_of_zero_takes_part_in_nothing():
    step = fnn.make_train_step(by_tokens, fnn.sgd(1.0))
    ts = step.init(jnp.zeros(()))
    poisoned = jnp.where(REAL, TOKENS, jnp.nan)
    clean, _ = step(ts, (jnp.where(REAL, TOKENS, 0), REAL), KEY)
    _, metrics = step(ts, (poisoned, REAL), KEY)
    assert np.isfinite(metrics["loss"])
    masked, _ = step(ts, (TOKENS, REAL), KEY, jnp.array([1.0, 1, 1, 0]))
    three, _ = step(ts, (TOKENS[:3], REAL[:3]), KEY)
    np.testing.assert_allclose(masked.params, three.params, rtol=1e-6)
    assert np.isfinite(clean.params)


# --- the mask -----------------------------------------------------------------------------------


def test_a_loss_function_that_asks_for_the_mask_gets_it():
    def loss(params, batch, key, mask=None):
        count = jnp.float32(len(batch)) if mask is None else mask.sum()
        return params * batch, {"rows": count.astype(jnp.float32)}

    step = fnn.make_train_step(loss, fnn.sgd(0.0), aux=True)
    run = jax.jit(
        lambda ts: fnn.fit(step, ts, jnp.arange(10.0), KEY, epochs=1, batch_size=4)[1]["rows"]
    )
    np.testing.assert_array_equal(run(step.init(jnp.ones(()))), [[4, 4, 2]])
    _, metrics = step(step.init(jnp.ones(())), jnp.arange(4.0), KEY)
    assert metrics["rows"] == 4


# --- Optax's transformations that want more ------------------------------------------------------


def quadratic(params, batch, key):
    return ((params - batch) ** 2).sum(-1)


def test_line_searches_get_the_value_and_the_function(standard_promotion):
    target = jnp.array([[1.0, -2.0, 3.0]])
    step = fnn.make_train_step(quadratic, optax.lbfgs())
    ts, metrics = jax.jit(
        lambda ts: jax.lax.scan(lambda ts, _: step(ts, target, KEY), ts, length=5)
    )(step.init(jnp.zeros(3)))
    np.testing.assert_allclose(ts.params, target[0], atol=1e-5)
    assert metrics["loss"][-1] < 1e-8


def test_polyaks_rate_is_optaxs(standard_promotion):
    target = jnp.array([[1.0, -2.0, 3.0]])
    step = fnn.make_train_step(quadratic, optax.polyak_sgd())
    ts, _ = jax.jit(step)(step.init(jnp.zeros(3)), target, KEY)
    np.testing.assert_allclose(ts.params, target[0] / 2, rtol=1e-6)  # f / |g|^2 is 1/4, g -2 target


def test_plateaus_are_seen(standard_promotion):
    rule = fnn.chain(fnn.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    step = fnn.make_train_step(lambda p, b, k: 0 * p * b + 1, rule)
    ts, _ = jax.jit(
        lambda ts: jax.lax.scan(lambda ts, _: step(ts, jnp.ones(2), KEY), ts, length=6)
    )(step.init(jnp.ones(())))
    assert float(ts.opt_state[1].scale) < 0.5


# --- mistakes -----------------------------------------------------------------------------------

MISTAKES = {
    "metrics without aux": (
        lambda p, b, k: (p * b, {"a": b}), {}, (),
        "loss_fn returned a tuple of 2, expected losses alone; metrics beside the loss want aux=True",
    ),
    "losses alone with aux": (
        lambda p, b, k: p * b, {"aux": True}, (), "expected (losses, aux)",
    ),
    "a state forgotten": (
        lambda p, s, b, k: p * b, {}, {"n": jnp.zeros(())}, "expected (losses, state)",
    ),
    "aux that is no dict": (
        lambda p, b, k: (p * b, b), {"aux": True}, (), "expected a dict of metrics",
    ),
    "a name twice": (
        lambda p, b, k: (p * b, {"loss": b}), {"aux": True}, (),
        "make_train_step: aux has ['loss'], which the step's own metrics have",
    ),
    "weights of another shape": (
        lambda p, b, k: Weighted(p * b, b[:, None]), {}, (), "weights of shape (4, 1)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    loss, options, state, message = MISTAKES[name]
    step = fnn.make_train_step(loss, fnn.sgd(0.1), **options)
    with pytest.raises(ValueError, match=re.escape(message)):
        step(step.init(jnp.ones(()), state), jnp.arange(4.0), KEY)


def test_a_metric_that_cannot_be_averaged_is_named():
    def step(metric):
        step = fnn.make_train_step(lambda p, b, k: (p * b, {"odd": metric}), fnn.sgd(0.1), aux=True)
        return lambda: step(step.init(jnp.ones(())), jnp.arange(4.0), KEY, jnp.ones(4, bool))

    with pytest.raises(ValueError, match=r"aux\['odd'\] has shape \(0, 2\), but 4 rows are masked"):
        step(jnp.zeros((0, 2)))()
    for metric, came in (
        (KEY, "an array of key"),
        ("x", "a str"),
        (jnp.zeros(4, complex), "complex"),
    ):
        with pytest.raises(TypeError, match=rf"make_train_step: aux\['odd'\] is .*{came}"):
            step(metric)()


@pytest.mark.parametrize("limit", [-1.0, float("nan")])
def test_a_clip_norm_that_cannot_be(limit):
    with pytest.raises(ValueError, match="make_train_step: clip_norm is"):
        fnn.make_train_step(linear_loss_fn, fnn.sgd(0.1), clip_norm=limit)


def test_nan_in_a_row_that_does_not_count_moves_nothing():
    # Through a product: x^T g is NaN for a row of NaN, though its g is 0.
    def loss_fn(params, batch, key):
        return fnn.squared_error(fnn.dense(params, batch[0])[:, 0], batch[1])

    step = fnn.make_train_step(loss_fn, fnn.sgd(0.1))
    ts = step.init(fnn.dense_init(KEY, 3, 1))
    x, y = jax.random.normal(KEY, (4, 3)), jnp.arange(4.0)
    bad = x.at[2].set(jnp.array([jnp.nan, jnp.inf, 1.0])), y.at[2].set(jnp.nan)
    keep = jnp.array([1.0, 2.0, 0.0, 1.0])
    moved, metrics = jax.jit(step)(ts, bad, KEY, keep)
    expected, _ = jax.jit(step)(ts, (x.at[2].set(5.0), y), KEY, keep)
    chex.assert_trees_all_close(moved.params, expected.params, rtol=1e-6)
    assert int(metrics["nonfinite"]) == -1
    run = {"epochs": 2, "batch_size": 2, "weights": keep}
    after, history = fnn.fit(step, ts, bad, KEY, **run)
    chex.assert_trees_all_close(after, fnn.fit(step, ts, (x, y), KEY, **run)[0], rtol=1e-6)
    assert (history["nonfinite"] == -1).all()
