import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.search import ensemble
from tests.nets import LABELS, X, linear_init, linear_run

KEYS = jax.random.split(jax.random.key(0), 5)
MEMBERS = jax.vmap(linear_init)(KEYS)
together = jax.jit(ensemble, static_argnums=0, static_argnames="outputs")


def constant(params, x):
    """A member that answers the same to every row."""
    return jnp.broadcast_to(params, (len(x), *params.shape))


def by_hand(members, x):
    """(mean probabilities, mutual information, members' probabilities) in float64."""
    w, b = (np.asarray(members[name], np.float64) for name in ("w", "b"))
    logits = np.asarray(x, np.float64) @ w + b[:, None]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def entropy(p):
        return -(p * np.log(p)).sum(-1)

    return p.mean(0), entropy(p.mean(0)) - entropy(p).mean(0), p


def test_mean_and_mutual_information_in_float64():
    found = together(fnn.dense, MEMBERS, X)
    mean, information, p = by_hand(MEMBERS, X)
    assert found.members.shape == (5, 103, 3)
    np.testing.assert_allclose(found.members, p, rtol=1e-4)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4)
    np.testing.assert_allclose(found.disagreement, information, rtol=1e-3, atol=1e-6)
    assert 0.01 < information.mean() < np.log(3)
    given = together(lambda params, x: fnn.softmax(fnn.dense(params, x)), MEMBERS, X, outputs="probabilities")  # fmt: skip
    np.testing.assert_allclose(given.disagreement, found.disagreement, rtol=1e-4, atol=1e-6)


def test_members_that_agree_and_members_that_do_not():
    same = jax.tree.map(lambda a: jnp.stack([a[0]] * 7), MEMBERS)
    found = together(fnn.dense, same, X)
    np.testing.assert_allclose(found.disagreement, 0, atol=1e-6)
    assert (found.disagreement >= 0).all()
    np.testing.assert_allclose(found.mean, found.members[0], rtol=1e-5)
    opposite = together(constant, jnp.eye(2), X[:3], outputs="probabilities")
    np.testing.assert_allclose(opposite.disagreement, np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(opposite.mean, 0.5)
    # Each member its own class, by logits: log of the number of members.
    certain = together(constant, 1e4 * jnp.eye(3), X[:2])
    np.testing.assert_allclose(certain.disagreement, np.log(3), rtol=1e-6)
    # Equally unsure is no disagreement.
    unsure = together(constant, jnp.zeros((4, 3)), X[:2])
    np.testing.assert_allclose(unsure.disagreement, 0, atol=1e-7)


def test_one_member_is_itself():
    one = jax.tree.map(lambda a: a[:1], MEMBERS)
    found = together(fnn.dense, one, X)
    np.testing.assert_array_equal(found.disagreement, 0)
    np.testing.assert_array_equal(found.mean, found.members[0])


def test_values_of_a_regression():
    members = {"w": MEMBERS["w"][..., :1], "b": MEMBERS["b"][..., :1]}
    found = together(fnn.dense, members, X, outputs="values")
    w = np.asarray(members["w"], np.float64)
    each = np.asarray(X, np.float64) @ w + np.asarray(members["b"], np.float64)[:, None]
    np.testing.assert_allclose(found.mean, each.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.disagreement, each.std(0), rtol=1e-4)
    assert found.disagreement.shape == (103, 1)
    flat = together(lambda p, x: fnn.dense(p, x)[:, 0], members, X, outputs="values")
    np.testing.assert_allclose(flat.disagreement, each.std(0)[:, 0], rtol=1e-4)


def test_scores_against_numpy():
    y = np.asarray(LABELS)
    mask = np.arange(103) < 77
    found = together(fnn.dense, MEMBERS, X)
    of_mean, of_members = jax.jit(lambda found, y, m: found.scores(y, m))(found, LABELS, mask)
    mean, _, p = by_hand(MEMBERS, X)
    for scores, q in [(of_mean, mean), *((jax.tree.map(lambda s, i=i: s[i], of_members), p[i]) for i in range(5))]:  # fmt: skip
        q, own = q[mask], y[mask]
        np.testing.assert_allclose(scores.accuracy, (q.argmax(-1) == own).mean(), rtol=1e-6)
        np.testing.assert_allclose(scores.loss, -np.log(q[np.arange(77), own]).mean(), rtol=1e-5)
        np.testing.assert_allclose(scores.brier_score, ((q - np.eye(3)[own]) ** 2).sum(-1).mean(), rtol=1e-5)  # fmt: skip
        expected = fnn.metrics.calibration_error(jnp.asarray(q, jnp.float32), own)
        np.testing.assert_allclose(scores.calibration_error, expected, rtol=1e-4)
    # The mean's loss and Brier score are at most the members' mean ones, by convexity.
    assert of_mean.loss <= of_members.loss.mean()
    assert of_mean.brier_score <= of_members.brier_score.mean()


def test_of_a_sweep_on_all_devices_and_in_batches():
    members = fnn.sweep(lambda key: linear_run(key, 0.3)[0].params, KEYS)
    assert len(members["w"].sharding.device_set) == 8

    def answers(x):
        found = ensemble(fnn.dense, members, x)
        return found.mean, found.disagreement

    found = together(fnn.dense, members, X)
    pieces = jax.jit(lambda x: fnn.predict(answers, x, 16))(X)
    for whole, piecewise in zip((found.mean, found.disagreement), pieces, strict=True):
        np.testing.assert_allclose(whole, piecewise, rtol=1e-4, atol=1e-6)
    assert (found.mean.argmax(-1) == LABELS).mean() > 0.8


def test_half_precision_gradients_and_a_diverged_member():
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), MEMBERS)
    found = together(fnn.dense, half, X.astype(jnp.bfloat16))
    assert {a.dtype for a in found} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found.mean, by_hand(MEMBERS, X)[0], atol=0.02)
    grad = jax.jit(jax.grad(lambda x: ensemble(fnn.dense, MEMBERS, x).disagreement.sum()))(X)
    assert np.isfinite(grad).all()
    spoilt = MEMBERS | {"b": MEMBERS["b"].at[2].set(jnp.nan)}
    assert np.isnan(together(fnn.dense, spoilt, X).mean).all()
    finite = np.arange(5) != 2
    kept = jax.tree.map(lambda a: a[finite], spoilt)
    assert np.isfinite(together(fnn.dense, kept, X).mean).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ensemble(fnn.dense, MEMBERS, X, outputs="logit"), ValueError, "ensemble: outputs is 'logit', expected 'logits'"),
        (lambda: ensemble(fnn.dense, MEMBERS | {"b": jnp.zeros((4, 3))}, X), ValueError, r"ensemble: members have shapes \[\(4, 3\), \(5, 4, 3\)\], expected one first axis"),
        (lambda: ensemble(fnn.dense, {}, X), ValueError, r"ensemble: members have shapes \[\]"),
        (lambda: ensemble(constant, jnp.zeros((0, 3)), X), ValueError, r"ensemble: members have shapes \[\(0, 3\)\]"),
        (lambda: ensemble(constant, jnp.zeros((2, 1)), X), ValueError, r"ensemble: predict returned shape \(103, 1\), expected \[batch, classes\], 2"),
        (lambda: ensemble(constant, jnp.zeros(2), X), ValueError, r"predict returned shape \(103,\), expected \[batch, classes\]"),
        (lambda: ensemble(lambda p, x: (p, x), MEMBERS, X), TypeError, "ensemble: predict returned a tuple, expected one array"),
        (lambda: ensemble(lambda p, x: x.argmax(-1), MEMBERS, X), TypeError, "ensemble: predict returned int32, expected one array of floating point"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
