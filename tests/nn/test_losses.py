import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from tests.nn.derivatives import check_derivatives

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
    losses = getattr(fnn.nn, name)(jnp.asarray(p), jnp.asarray(t))
    np.testing.assert_allclose(
        losses, REGRESSION[name](p.astype(float), t.astype(float)), rtol=1e-5
    )


@every_regression
def test_regression_losses_refuse_to_broadcast(name):
    with pytest.raises(ValueError, match=rf"{name}: predictions have shape \(3, 1\), but targets"):
        getattr(fnn.nn, name)(jnp.ones((3, 1)), jnp.ones(3))
    with pytest.raises(TypeError, match=rf"{name}: predictions are int32, expected floating"):
        getattr(fnn.nn, name)(jnp.ones(3, int), jnp.ones(3))


def test_derivatives_where_the_formulas_join():
    grads = {
        name: jax.grad(getattr(fnn.nn, name))(0.0 * jnp.ones(()), jnp.zeros(()))
        for name in REGRESSION
    }
    assert grads == dict.fromkeys(REGRESSION, 0)
    assert jax.grad(fnn.huber)(jnp.float32(2.0), jnp.float32(0), 2.0) == 2
    assert jax.grad(fnn.huber)(jnp.float32(-9.0), jnp.float32(0), 2.0) == -2
    by_x = jax.grad(lambda x: fnn.huber(x, jnp.zeros(3), 2.0).sum())
    np.testing.assert_array_equal(by_x(jnp.asarray([np.inf, -np.inf, np.nan])), [2, -2, np.nan])
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
    # Smoothing takes the label out and asks for all classes: not 0 * inf, but inf.
    for labels in (jnp.asarray([2]), jnp.asarray([[0.0, 0.0, 1.0]])):
        assert fnn.cross_entropy(logits, labels, label_smoothing=1.0) == np.inf


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


def test_derivatives_of_both_orders_and_modes_are_the_finite_differences():
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.normal(size=(3, 4)))
        q = jax.nn.softmax(jnp.asarray(RNG.normal(size=(3, 4))))

    def losses(x):
        return {
            "labels": fnn.cross_entropy(x, jnp.asarray([0, 1, 3]), label_smoothing=0.1),
            "probabilities": fnn.cross_entropy(x, q),
            "binary": fnn.binary_cross_entropy(x, q),
            "squared": fnn.squared_error(x, q),
            "absolute": fnn.absolute_error(x, q),
            "huber": fnn.huber(x, q, 0.7),
        }

    check_derivatives(losses, x, order=2)


@pytest.mark.parametrize(
    "dtype", [jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16], ids=lambda d: d.__name__
)
def test_dtype_passes_through(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(RNG.normal(size=(3, 4)), dtype)
        y = jnp.zeros((3, 4), jnp.float32)
        outs = [getattr(fnn.nn, name)(x, y) for name in (*REGRESSION, "binary_cross_entropy")]
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
        fnn.nn.check_labels(labels, 4)


def test_check_labels_passes_what_is_right():
    fnn.nn.check_labels(LABELS, 4)
    fnn.nn.check_labels(np.zeros((0,), int), 4)
    with pytest.raises(ValueError, match=r"row \(1, 0\) has label 9"):
        fnn.nn.check_labels([[0, 1], [9, 0]], 4)
    with pytest.raises(TypeError, match="labels are float64, expected integers"):
        fnn.nn.check_labels([0.5], 4)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((6, 4), np.zeros((6, 1), int), r"labels have shape \(6, 1\) \(int32\), but logits"),
        ((6,), np.zeros((6, 4), int), r"expect integer labels of shape \(\)"),
        ((6, 4), np.zeros((6, 3), np.float32), r"expect probabilities of shape \(6, 4\)$"),
        ((6, 4), np.zeros(6, np.float32), r"expect probabilities of shape \(6, 4\), or integer labels of shape \(6,\): labels.astype\(int\)$"),
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


# --- numbers of classes, and dtypes that cannot hold them ----------------------------------------

DTYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


@pytest.mark.parametrize("classes", [128, 256, 65_536])
def test_labels_of_every_dtype(classes):
    """log(e^10 + C - 1) - 10 is the loss of a logit 10 among zeros, as NumPy's float64 says."""
    logits = 10 * jax.nn.one_hot(jnp.arange(8), classes)
    labels = [np.arange(8, dtype=dtype) for dtype in DTYPES]

    def both(logits, labels):
        return [(fnn.cross_entropy(logits, y), fnn.accuracy(logits, y)) for y in labels]

    expected = np.log(np.exp(10.0) + classes - 1) - 10
    for found in (both(logits, labels), jax.jit(jax.vmap(both))(logits, labels)):
        for losses, right in found:
            np.testing.assert_allclose(losses, expected, atol=1e-6)
            np.testing.assert_array_equal(right, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_labels_at_the_ends_of_every_dtype(dtype):
    info = np.iinfo(dtype)
    ends = np.array([info.max, info.min, (2**32 + 1) & info.max], dtype)
    losses = fnn.cross_entropy(jnp.zeros((3, 100)), ends)
    inside = [0 <= end < 100 for end in ends.tolist()]
    np.testing.assert_allclose(losses, np.where(inside, np.log(100), np.nan), rtol=1e-6)
    np.testing.assert_array_equal(fnn.accuracy(jnp.zeros((3, 100)), ends), ends == 0)
    with pytest.raises(ValueError, match=f"label {ends[0]}, expected 0 to 99"):
        fnn.nn.check_labels(ends, 100)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_binary_labels_other_than_0_and_1_never_pass_silently(dtype):
    labels = np.array([0, 1, np.iinfo(dtype).max, np.iinfo(dtype).min], dtype)
    x = jnp.ones(4)
    losses = fnn.binary_cross_entropy(x, labels)
    grad = jax.grad(lambda x: fnn.binary_cross_entropy(x, labels).sum())(x)
    expected = [False, False, True, np.iinfo(dtype).min < 0]
    np.testing.assert_array_equal(np.isnan(losses), expected)
    np.testing.assert_array_equal(np.isnan(grad), expected)


# --- what is ignored moves nothing ---------------------------------------------------------------


def ways(loss, ignored):
    """The ways to ignore rows: all give 0 as the gradient of these."""
    return {
        "where": lambda x, y: jnp.where(ignored, 0, loss(x, y)).sum(),
        "weighted_mean": lambda x, y: fnn.training.weighted_mean(loss(x, y), ~ignored),
        "mask": lambda x, y: loss(x, y, mask=~ignored).sum(),
    }


@pytest.mark.parametrize(
    ("way", "smoothing"),
    [("where", 0.0), ("where", 0.1), ("where", 1.0), ("weighted_mean", 0.0), ("mask", 0.1)],
)
def test_ignored_labels_move_nothing(way, smoothing):
    """As with PyTorch's ignore_index: the others have the gradient that they have alone."""
    ignored = np.arange(6) % 3 == 2
    labels = np.where(ignored, -100, LABELS)

    def loss(x, y, **options):
        return fnn.cross_entropy(x, y, label_smoothing=smoothing, **options)

    of = ways(loss, ignored)[way]
    scale = 1 / 4 if way == "weighted_mean" else 1
    alone = jax.grad(lambda x: loss(x, jnp.asarray(labels[~ignored])).sum() * scale)
    expected = np.zeros((6, 4))
    expected[~ignored] = alone(LOGITS[~ignored])
    traced = jax.jit(
        lambda x, y: (
            jax.grad(of)(x, y),
            jax.jacfwd(of)(x, y),
            jax.grad(lambda x: of(x, labels))(x),  # labels are a constant of the program
            jax.vmap(jax.grad(of), (0, None))(x[None], y)[0],
        )
    )(LOGITS, jnp.asarray(labels))
    for grad in (jax.grad(of)(LOGITS, jnp.asarray(labels)), *traced):
        np.testing.assert_allclose(grad, expected, atol=1e-6)
    np.testing.assert_array_equal(grad[ignored], 0)


def test_fit_takes_rows_of_weight_0_out():
    """With labels of -100 there, the run is that with any other label there."""
    ignored = np.arange(6) % 3 == 2

    def loss_fn(params, batch, key):
        return fnn.cross_entropy(fnn.dense(params, batch[0]), batch[1])

    @jax.jit
    def run(labels):
        step = fnn.make_train_step(loss_fn, fnn.sgd(0.5))
        ts = step.init(fnn.dense_init(jax.random.key(0), 4, 4))
        weights = (~ignored).astype(np.float32)
        options = {"epochs": 3, "batch_size": 4, "weights": weights}
        ts, history = fnn.fit(step, ts, (LOGITS, labels), jax.random.key(1), **options)
        return ts.params, history["loss"]

    found, expected = (run(jnp.where(ignored, other, LABELS)) for other in (-100, 0))
    chex.assert_trees_all_equal(found, expected)
    chex.assert_tree_all_finite(found)


def test_a_label_out_of_range_that_counts_is_nan_in_every_direction():
    """Also where the gradient of its loss is tiny, or the model is sure of class 0."""
    x, y = jnp.array([[90.0, 0, 0], [1, 2, 3]]), jnp.array([7, 1])

    def loss(x, scale):
        return (fnn.cross_entropy(x, y) * scale).sum()

    grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(x, jnp.array([1.0, 1e-37, -3e38]))
    assert np.isnan(grads[:, 0]).all()
    assert np.isfinite(grads[:, 1]).all()
    with jax.enable_x64(True):
        grad = jax.grad(loss)(np.float64([[90.0, 0, 0], [1, 2, 3]]), 1e-300)
        np.testing.assert_array_equal(np.isnan(grad), [[True] * 3, [False] * 3])


MASKED = {
    **{name: (name, "float32", np.ones(6, np.float32)) for name in REGRESSION},
    "binary": ("binary_cross_entropy", "float32", np.ones(6, np.int32)),
    "half": ("binary_cross_entropy", "bfloat16", np.ones(6, np.float32)),
    "labels": ("cross_entropy", "float32", np.asarray(LABELS)),
    "probabilities": ("cross_entropy", "float32", np.asarray(PROBABILITIES)),
}


@pytest.mark.parametrize("case", MASKED)
def test_a_mask_takes_nan_and_inf_out_of_values_and_gradients(case):
    name, dtype, targets = MASKED[case]
    loss = getattr(fnn.nn, name)
    x = (LOGITS if name == "cross_entropy" else LOGITS[:, 0]).astype(dtype)
    mask = np.arange(6) % 3 != 1
    clean = loss(x, jnp.asarray(targets))
    bad = jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.array(jnp.nan, dtype))
    bad = bad.at[1].set(jnp.inf)
    bad_targets = targets.copy()
    bad_targets[~mask] = -100 if targets.dtype == np.int32 else np.nan

    @jax.jit
    def masked(x, y, mask):
        return loss(x, y, mask=mask), jax.grad(lambda x: loss(x, y, mask=mask).sum())(x)

    for m in (mask, mask.astype(np.float32)):
        losses, grad = masked(bad, bad_targets, m)
        np.testing.assert_array_equal(losses[~mask], 0)
        np.testing.assert_allclose(
            np.asarray(losses[mask], float), np.asarray(clean[mask], float), rtol=1e-6
        )
        np.testing.assert_array_equal(grad[~mask], 0)
        expected = jax.grad(lambda x: loss(x, jnp.asarray(targets)).sum())(x)[mask]
        np.testing.assert_allclose(
            np.asarray(grad[mask], float), np.asarray(expected, float), rtol=0.01
        )
    with pytest.raises(ValueError, match=rf"{name}: mask has shape \(5,\), expected \(6,\)"):
        loss(x, jnp.asarray(targets), mask=mask[:5])


def test_a_weight_of_0_hides_nan_and_its_gradient_is_the_value():
    values = jnp.array([1.0, jnp.nan, jnp.inf, 5.0])
    weights = jnp.array([2.0, 0, 0, 0])
    by_values, by_weights = jax.grad(fnn.training.weighted_mean, (0, 1))(values, weights)
    np.testing.assert_array_equal(by_values, [1, 0, 0, 0])
    # d/dw of sum w v / sum w is (v - mean) / sum w, also where w is 0.
    np.testing.assert_allclose(by_weights, [0, -0.5, -0.5, 2])


# --- options ------------------------------------------------------------------------------------


def test_pos_weight_is_pytorchs():
    """-[w y log s(x) + (1 - y) log(1 - s(x))], in NumPy's float64; at +-1e4 it is linear."""
    x, y = RNG.normal(size=(20, 3)) * 3, RNG.integers(0, 2, (20, 3))
    p = 1 / (1 + np.exp(-x))
    for w in (2.5, np.float64(0.5), np.array([0.0, 1.0, 7.0])):
        expected = -(w * y * np.log(p) + (1 - y) * np.log(1 - p))
        w32 = np.float32(w) if np.ndim(w) else w
        ours = fnn.binary_cross_entropy(jnp.asarray(x, jnp.float32), y, pos_weight=w32)
        np.testing.assert_allclose(ours, expected, rtol=1e-4)
    huge = fnn.binary_cross_entropy(jnp.array([-1e4, 1e4]), np.array([1, 0]), pos_weight=3.0)
    np.testing.assert_allclose(huge, [3e4, 1e4])


def test_numbers_of_every_kind_are_checked():
    one = jnp.ones(1)
    for kind in (float, np.float32, np.float64, jnp.float32):
        with pytest.raises(ValueError, match="huber: delta is nan, expected a number > 0"):
            fnn.huber(one, one, kind(np.nan))
        with pytest.raises(ValueError, match=r"cross_entropy: label_smoothing is -1\.0, "):
            fnn.cross_entropy(LOGITS, LABELS, label_smoothing=kind(-1))
        with pytest.raises(ValueError, match=r"binary_cross_entropy: pos_weight is -1\.0, "):
            fnn.binary_cross_entropy(one, one, pos_weight=kind(-1))
    for delta in (1e10, np.inf):
        value, grad = jax.value_and_grad(fnn.huber)(jnp.float32(3), jnp.float32(0), delta)
        assert (value, grad) == (4.5, 3)


def test_several_labels_a_row_are_not_argmaxed():
    logits, multi_hot = jnp.ones((3, 4)), jnp.asarray([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    message = r"accuracy: labels \(3, 4\) \(float32\) have rows that sum to 2, expected probab"
    with pytest.raises(ValueError, match=message):
        fnn.accuracy(logits, multi_hot)
    np.testing.assert_array_equal(jax.jit(fnn.accuracy)(logits, multi_hot), [np.nan, 0, 0])
    halves = jax.nn.softmax(jnp.asarray(RNG.normal(size=(6, 1000)), jnp.bfloat16))
    assert fnn.accuracy(halves, halves).min() == 1
    for one in (fnn.accuracy, fnn.cross_entropy):
        for labels in (jnp.zeros(6, int), jnp.ones((6, 1))):
            with pytest.raises(ValueError, match=r"logits have shape \(6, 1\), with 1 class, whi"):
                one(jnp.zeros((6, 1)), labels)


def test_float64_of_numpy_is_taken_as_jax_takes_it():
    # 32 bits without jax_enable_x64, and no warning of JAX's, which would be an error here.
    x, y, key = RNG.normal(size=(4, 6)), np.array([0, 1, 2, 3]), jax.random.key(0)
    batch_params, batch_state = fnn.batch_norm_init(6)
    calls = {
        "squared_error": lambda x: fnn.squared_error(x, x[::-1]),
        "absolute_error": lambda x: fnn.absolute_error(x, x[::-1]),
        "huber": lambda x: fnn.huber(x, x[::-1]),
        "cross_entropy": lambda x: fnn.cross_entropy(x, y, mask=y > 0),
        "binary_cross_entropy": lambda x: fnn.binary_cross_entropy(x, x > 0),
        "dropout": lambda x: fnn.dropout(key, x, 0.5),
        "layer_norm": lambda x: fnn.layer_norm(fnn.layer_norm_init(6), x),
        "batch_norm": lambda x: fnn.batch_norm(batch_params, batch_state, x, train=True)[0],
        "rotary": lambda x: fnn.nn.rotary(x.reshape(2, 2, 3, 2), np.arange(2)),
        "unroll": lambda x: fnn.nn.unroll(lambda p, c, x: (c + x, c), {}, x[None], x[:1])[0],
        "standardizer": lambda x: fnn.training.standardizer(x)(x),
    }
    for name, call in calls.items():
        assert call(x).dtype == "float32", name
        np.testing.assert_array_equal(call(x), call(x.astype(np.float32)), name)
