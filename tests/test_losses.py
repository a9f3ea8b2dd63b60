import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import fnn

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
LABELS = jnp.asarray([0, 1, 2, 3, 1, 0])
PROBABILITIES = jax.nn.softmax(jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32))

REGRESSION = {
    "squared_error": lambda p, t: (p - t) ** 2,
    "absolute_error": lambda p, t: abs(p - t),
    "huber": lambda p, t: np.where(abs(p - t) <= 1, (p - t) ** 2 / 2, abs(p - t) - 0.5),
}
every_regression = pytest.mark.parametrize("name", REGRESSION)


@every_regression
def test_regression_losses_are_their_formulas(name):
    p, t = RNG.normal(size=(2, 5, 3)).astype(np.float32) * 2
    losses = getattr(fnn, name)(jnp.asarray(p), jnp.asarray(t))
    np.testing.assert_allclose(
        losses, REGRESSION[name](p.astype(float), t.astype(float)), rtol=1e-5
    )


@every_regression
def test_regression_losses_refuse_to_broadcast(name):
    with pytest.raises(ValueError, match=rf"{name}: predictions have shape \(3, 1\), but targets"):
        getattr(fnn, name)(jnp.ones((3, 1)), jnp.ones(3))
    with pytest.raises(TypeError, match=rf"{name}: predictions are int32, expected floating"):
        getattr(fnn, name)(jnp.ones(3, int), jnp.ones(3))


def test_derivatives_where_the_formulas_join():
    grads = {
        name: jax.grad(getattr(fnn, name))(0.0 * jnp.ones(()), jnp.zeros(())) for name in REGRESSION
    }
    assert grads == dict.fromkeys(REGRESSION, 0)
    assert jax.grad(fnn.huber)(jnp.float32(2.0), jnp.float32(0), 2.0) == 2
    assert jax.grad(fnn.huber)(jnp.float32(-9.0), jnp.float32(0), 2.0) == -2
    with pytest.raises(ValueError, match="huber: delta is 0, expected a number > 0"):
        fnn.huber(jnp.ones(1), jnp.ones(1), 0)


def test_huber_does_not_overflow_in_half_precision():
    x = jnp.float16(3e4)
    assert fnn.huber(x, jnp.float16(0)) == jnp.float16(3e4 - 0.5)


def cross_entropy_64(logits, q):
    logits, q = np.asarray(logits, np.float64), np.asarray(q, np.float64)
    log_p = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    return -(q * (log_p - logits.max(-1, keepdims=True))).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_its_formula(smoothing):
    one_hot = np.eye(4)[LABELS]
    for labels, q in ((LABELS, one_hot), (PROBABILITIES, np.asarray(PROBABILITIES))):
        losses = fnn.cross_entropy(LOGITS, labels, label_smoothing=smoothing)
        expected = cross_entropy_64(LOGITS, (1 - smoothing) * q + smoothing / 4)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_cross_entropy_is_optaxs():
    theirs = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)
    chex.assert_trees_all_close(fnn.cross_entropy(LOGITS, LABELS), theirs, rtol=1e-6)
    theirs = optax.softmax_cross_entropy(LOGITS, PROBABILITIES)
    chex.assert_trees_all_close(fnn.cross_entropy(LOGITS, PROBABILITIES), theirs, rtol=1e-6)


def test_smoothing_may_be_traced():
    traced = jax.jit(lambda s: fnn.cross_entropy(LOGITS, LABELS, label_smoothing=s))(0.1)
    chex.assert_trees_all_close(
        traced, fnn.cross_entropy(LOGITS, LABELS, label_smoothing=0.1), rtol=1e-6
    )
    with pytest.raises(
        ValueError, match=r"cross_entropy: label_smoothing is 1\.5, expected a number"
    ):
        fnn.cross_entropy(LOGITS, LABELS, label_smoothing=1.5)


def test_leading_axes_are_kept():
    logits, labels = jnp.zeros((2, 3, 5)), jnp.zeros((2, 3), int)
    assert fnn.cross_entropy(logits, labels).shape == (2, 3)
    assert fnn.accuracy(logits, labels).shape == (2, 3)
    assert fnn.cross_entropy(jnp.zeros(5), jnp.int32(2)).shape == ()
    assert fnn.cross_entropy(jnp.zeros((0, 5)), jnp.zeros(0, int)).shape == (0,)


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.float16, jnp.bfloat16], ids=lambda d: d.__name__
)
def test_stable_at_huge_logits(dtype):
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype)
    labels = jnp.asarray([0, 0])
    np.testing.assert_allclose(
        fnn.cross_entropy(logits, labels).astype("float32"), [0, 2e4], rtol=0.01
    )
    grads = jax.grad(lambda x: fnn.cross_entropy(x, labels).sum())(logits)
    np.testing.assert_allclose(grads.astype("float32"), [[0, 0, 0], [-1, 1, 0]])
    x = jnp.asarray([1e4, -1e4, 1e4, -1e4], dtype)
    y = jnp.asarray([1, 1, 0, 0])
    np.testing.assert_allclose(
        fnn.binary_cross_entropy(x, y).astype("float32"), [0, 1e4, 1e4, 0], rtol=0.01
    )
    grads = jax.grad(lambda x: fnn.binary_cross_entropy(x, y).sum())(x)
    np.testing.assert_allclose(grads.astype("float32"), [0, -1, 1, 0])


def test_small_losses_keep_their_digits():
    x = jnp.asarray([20.0, 50.0])
    np.testing.assert_allclose(
        fnn.binary_cross_entropy(x, jnp.ones(2)), np.log1p(np.exp([-20.0, -50.0])), rtol=1e-5
    )


def test_a_masked_logit_costs_nothing():
    logits = jnp.asarray([[0.0, 1.0, -jnp.inf]])
    q = jnp.asarray([[0.25, 0.75, 0.0]])
    for labels in (jnp.asarray([1]), q):
        value, grad = jax.value_and_grad(lambda x, y=labels: fnn.cross_entropy(x, y)[0])(logits)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


def test_certainty_that_is_right_costs_nothing_and_wrong_all():
    x, y = jnp.array([jnp.inf, -jnp.inf, jnp.inf, -jnp.inf]), jnp.array([1, 0, 0, 1])
    np.testing.assert_array_equal(fnn.binary_cross_entropy(x, y), [0, 0, np.inf, np.inf])
    grads = jax.grad(lambda x: fnn.binary_cross_entropy(x, y).sum())(x)
    np.testing.assert_array_equal(grads, [0, 0, 1, -1])


def test_derivatives_by_the_labels_are_surprises_at_zero_too():
    q = jnp.array([1.0, 0, 0, 0])
    by_q = jax.grad(lambda q: fnn.cross_entropy(LOGITS[0], q))(q)
    np.testing.assert_allclose(by_q, -jax.nn.log_softmax(LOGITS[0]), rtol=1e-6)
    by_y = jax.grad(fnn.binary_cross_entropy, 1)(jnp.float32(2), jnp.float32(0))
    np.testing.assert_allclose(by_y, -2, rtol=1e-6)


def test_binary_cross_entropy_is_its_formula():
    x = RNG.normal(size=20) * 3
    for y in (RNG.integers(0, 2, 20), RNG.uniform(size=20)):
        p = 1 / (1 + np.exp(-x))
        expected = -(y * np.log(p) + (1 - y) * np.log(1 - p))
        y32 = y.astype(np.int32 if y.dtype == int else np.float32)
        ours = fnn.binary_cross_entropy(jnp.asarray(x, jnp.float32), jnp.asarray(y32))
        np.testing.assert_allclose(ours, expected, rtol=1e-4)
    assert jax.grad(fnn.binary_cross_entropy)(0.0 * jnp.ones(()), jnp.ones(())) == -0.5
    assert jax.grad(jax.grad(fnn.binary_cross_entropy))(0.0 * jnp.ones(()), jnp.ones(())) == 0.25
    with pytest.raises(ValueError, match="binary_cross_entropy: logits have shape"):
        fnn.binary_cross_entropy(jnp.ones((3, 1)), jnp.ones(3))


def test_gradients_are_the_finite_differences():
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.normal(size=(3, 4)))
        q = jax.nn.softmax(jnp.asarray(RNG.normal(size=(3, 4))))
        for loss in (
            lambda x: fnn.cross_entropy(x, jnp.asarray([0, 1, 3]), label_smoothing=0.1),
            lambda x: fnn.cross_entropy(x, q),
            lambda x: fnn.binary_cross_entropy(x, q),
            lambda x: fnn.squared_error(x, q),
            lambda x: fnn.absolute_error(x, q),
            lambda x: fnn.huber(x, q, 0.7),
        ):
            check_grads(jax.jit(loss), (x,), order=2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "dtype", [jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16], ids=lambda d: d.__name__
)
def test_dtype_passes_through(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(RNG.normal(size=(3, 4)), dtype)
        y = jnp.zeros((3, 4), jnp.float32)
        outs = [getattr(fnn, name)(x, y) for name in (*REGRESSION, "binary_cross_entropy")]
        outs += [
            fnn.cross_entropy(x, jnp.zeros(3, jnp.int8)),
            fnn.cross_entropy(x, y, label_smoothing=0.1),
        ]
        chex.assert_type(outs, dtype)


@pytest.mark.parametrize("bad", [-1, 4, 255])
def test_labels_out_of_range_never_pass_silently(bad):
    labels = np.asarray(LABELS).copy()
    labels[2] = bad
    losses, grad = jax.value_and_grad(lambda x: fnn.cross_entropy(x, jnp.asarray(labels)).sum())(
        LOGITS
    )
    assert np.isnan(losses)
    assert np.isnan(grad[2]).all()
    assert np.isfinite(np.delete(np.asarray(grad), 2, 0)).all()
    assert fnn.accuracy(LOGITS, jnp.asarray(labels))[2] == 0
    message = rf"check_labels: row 2 has label {bad}, expected 0 to 3 \(1 of 6 labels are out"
    with pytest.raises(ValueError, match=message):
        fnn.check_labels(labels, 4)


def test_check_labels_passes_what_is_right():
    fnn.check_labels(LABELS, 4)
    fnn.check_labels(np.zeros((0,), int), 4)
    with pytest.raises(ValueError, match=r"row \(1, 0\) has label 9"):
        fnn.check_labels([[0, 1], [9, 0]], 4)
    with pytest.raises(TypeError, match="labels are float64, expected integers"):
        fnn.check_labels([0.5], 4)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((6, 4), np.zeros((6, 1), int), r"labels have shape \(6, 1\) \(int32\), but logits"),
        ((6,), np.zeros((6, 4), int), r"expect integer labels of shape \(\)"),
        ((6, 4), np.zeros((6, 3), np.float32), r"expect probabilities of shape \(6, 4\)"),
        ((6, 4), np.zeros((5,), int), r"expect integer labels of shape \(6,\)"),
    ],
)  # fmt: skip
def test_labels_of_a_wrong_shape(logits, labels, message):
    labels = jnp.asarray(labels)
    with pytest.raises(ValueError, match="cross_entropy: " + ".*" + message):
        fnn.cross_entropy(jnp.zeros(logits), labels)
    with pytest.raises(ValueError, match="accuracy: "):
        fnn.accuracy(jnp.zeros(logits), labels)


def test_swapped_arguments_are_named():
    with pytest.raises(TypeError, match="cross_entropy: logits are int32, expected floating point"):
        fnn.cross_entropy(LABELS, LOGITS)


def test_accuracy():
    logits = jnp.asarray([[0.0, 1.0], [1.0, 0.0], [jnp.nan, 0.0], [2.0, 2.0]])
    np.testing.assert_array_equal(fnn.accuracy(logits, jnp.asarray([1, 1, 0, 0])), [1, 0, 0, 1])
    one_hot = jnp.asarray([[0.2, 0.8], [0.3, 0.7], [1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_array_equal(fnn.accuracy(logits, one_hot), [1, 0, 0, 1])


def test_debug_nans_stops_at_none_of_ours():
    logits, labels = jnp.zeros((2, 3)), jnp.array([0, 2])
    with jax.debug_nans(True):
        jax.value_and_grad(lambda x: fnn.cross_entropy(x, labels).sum())(logits)
        with pytest.raises(FloatingPointError):
            fnn.cross_entropy(logits, labels + 1)
