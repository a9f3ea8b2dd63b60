import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.nn import metrics
from fnn.nn.metrics import perplexity, r2, r2_terms

# One program each, where the functions of `metrics` are one for each operation.
binary_accuracy, binary_counts, class_counts, confusion = map(
    jax.jit,
    (metrics.binary_accuracy, metrics.binary_counts, metrics.class_counts, metrics.confusion),
)
top_k_accuracy = jax.jit(metrics.top_k_accuracy, static_argnums=2)
precision, recall, f1 = (
    jax.jit(function, static_argnames=("average", "zero_division"))
    for function in (metrics.precision, metrics.recall, metrics.f1)
)

RNG = np.random.default_rng(0)
CLASSES = 5


def labelled(rows=1003):
    """Class 3 is never present, class 4 never answered."""
    logits = RNG.normal(size=(rows, CLASSES)).astype(np.float32)
    logits[:, 4] = -10
    labels = RNG.choice([0, 1, 2, 4], size=rows).astype(np.int32)
    return jnp.asarray(logits), jnp.asarray(labels)


LOGITS, LABELS = labelled()


@functools.cache
def matrix():
    return confusion(LOGITS, LABELS).sum(0)


@functools.cache
def counts():
    return jax.tree.map(lambda c: c.sum(0), class_counts(LOGITS, LABELS))


def by_hand(logits=LOGITS, labels=LABELS):
    table = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(table, (np.asarray(labels), np.asarray(logits).argmax(-1)), 1)
    return table


def definitions(table, zero_division):
    """Precision, recall, F1 of each class, one at a time, in float64."""

    def ratio(a, b):
        return a / b if b else zero_division

    rows = []
    for c in range(len(table)):
        correct, answered, present = table[c, c], table[:, c].sum(), table[c].sum()
        rows.append(
            (
                ratio(correct, answered),
                ratio(correct, present),
                ratio(2 * correct, answered + present),
            )
        )
    return np.array(rows, np.float64).T


# --- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [64, 5000])
def test_confusion_is_counted_exactly(batch_size):
    def count(data):
        def both(batch):
            return confusion(*batch), class_counts(*batch)

        return fnn.evaluate(both, data, batch_size, reduce="sum")

    table, summed = jax.jit(count)((LOGITS, LABELS))
    np.testing.assert_array_equal(table, by_hand())
    assert {leaf.dtype for leaf in (table, *summed.values())} == {jnp.dtype("int32")}
    expected = by_hand()
    np.testing.assert_array_equal(summed["correct"], np.diag(expected))
    np.testing.assert_array_equal(summed["answered"], expected.sum(0))
    np.testing.assert_array_equal(summed["present"], expected.sum(1))


def test_labels_may_be_probabilities_and_may_have_more_axes():
    logits, labels = np.asarray(LOGITS)[:12], np.asarray(LABELS)[:12]

    @jax.jit
    def both(logits, labels):
        return confusion(logits, labels), top_k_accuracy(logits, labels, 2)

    expected = [np.asarray(found) for found in both(logits, labels)]
    probable = both(logits, np.eye(CLASSES, dtype=np.float32)[labels])
    shaped = both(logits.reshape(3, 4, CLASSES), labels.reshape(3, 4))
    for of_labels, of_probabilities, of_axes in zip(expected, probable, shaped, strict=True):
        np.testing.assert_array_equal(of_probabilities, of_labels)
        np.testing.assert_array_equal(of_axes, of_labels.reshape(3, 4, *of_labels.shape[1:]))


def test_the_mask_takes_rows_out():
    mask = jnp.arange(1003) % 3 > 0
    kept = np.asarray(mask)
    for m in (mask, mask.astype(jnp.float32)):
        np.testing.assert_array_equal(
            confusion(LOGITS, LABELS, m).sum(0), by_hand(LOGITS[kept], LABELS[kept])
        )
    assert class_counts(LOGITS, LABELS, mask)["present"].sum() == kept.sum()


def test_nan_logits_answer_nothing():
    logits = jnp.array([[1.0, 0.0], [jnp.nan, 0.0], [0.0, jnp.nan], [0.0, 1.0]])
    labels = jnp.array([0, 0, 1, 1])
    np.testing.assert_array_equal(confusion(logits, labels).sum(0), [[1, 0], [0, 1]])
    both = jax.tree.map(lambda c: c.sum(0), class_counts(logits, labels))
    np.testing.assert_array_equal(both["answered"], [1, 1])
    np.testing.assert_array_equal(both["present"], [2, 2])
    np.testing.assert_allclose(precision(both), [1, 1])
    np.testing.assert_allclose(recall(both), [0.5, 0.5])
    np.testing.assert_array_equal(top_k_accuracy(logits, labels, 2), [1, 0, 0, 1])


def test_labels_out_of_range_are_no_class():
    logits, labels = jnp.eye(3), jnp.array([0, -1, 3])
    assert confusion(logits, labels).sum() == 1
    np.testing.assert_array_equal(class_counts(logits, labels)["present"].sum(0), [1, 0, 0])
    np.testing.assert_array_equal(class_counts(logits, labels)["answered"].sum(0), [1, 1, 1])
    np.testing.assert_array_equal(top_k_accuracy(logits, labels, 3), [1, 0, 0])


def test_of_tied_logits_the_first_counts():
    tied, labels = jnp.array([[1.0, 1.0, 1.0, 0.0]] * 4), jnp.arange(4)
    np.testing.assert_array_equal(confusion(tied, labels).argmax(-1)[:, 0], 0)
    assert confusion(tied, labels).sum() == 4
    for k in (1, 2, 3, 4):
        np.testing.assert_array_equal(top_k_accuracy(tied, labels, k), jnp.arange(4) < k)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_top_k_is_numpys_order(dtype):
    logits = LOGITS.astype(dtype)  # half precision has ties, which a stable sort keeps in order
    order = np.argsort(-np.asarray(logits, np.float64), axis=-1, kind="stable")
    for k in range(1, CLASSES + 1):
        expected = (order[:, :k] == np.asarray(LABELS)[:, None]).any(-1)
        ours = top_k_accuracy(logits, LABELS, k)
        np.testing.assert_array_equal(ours, expected)
        assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(top_k_accuracy(logits, LABELS, 1), fnn.accuracy(logits, LABELS))


def test_infinite_logits_have_an_order():
    logits = jnp.array([[jnp.inf, -jnp.inf, 0.0]])
    ranks = [top_k_accuracy(logits, jnp.array([c]), k)[0] for c in range(3) for k in (1, 2, 3)]
    assert ranks == [1, 1, 1, 0, 0, 1, 0, 1, 1]


def test_classes_of_every_dtype():
    """256 classes do not fit in a uint8; 2^32 + 1 is not class 1."""
    dtypes = (np.uint8, np.int16, np.uint16, np.uint32, np.int64, np.uint64)
    logits = jax.nn.one_hot(jnp.array([255, 1, 1]), 256)

    def counts(logits, labels):
        right = metrics.top_k_accuracy(logits, labels, np.int64(1))
        return metrics.class_counts(logits, labels), right, metrics.confusion(logits, labels).sum()

    for dtype in dtypes:
        y = np.array([255, 1, 2**32 + 1 if np.iinfo(dtype).bits == 64 else 0], dtype)
        found, right, cells = counts(logits, y)
        np.testing.assert_array_equal(found["correct"].sum(-1), [1, 1, 0])
        np.testing.assert_array_equal(found["present"].sum(-1), [1, 1, y[2] == 0])
        np.testing.assert_array_equal(right, [1, 1, 0])
        assert cells == 2 + (y[2] == 0)
    inside = jax.jit(lambda x, *ys: [counts(x, y)[1] for y in ys])
    small = [np.array([255, 1, 0], dtype) for dtype in dtypes]
    np.testing.assert_array_equal(inside(logits, *small), [[1, 1, 0]] * len(dtypes))


def test_several_labels_a_row_are_counted_one_by_one():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(203, 4)).astype(np.float32)
    labels = (logits + rng.normal(size=(203, 4)) > 0.3).astype(np.float32)
    logits[5, 2] = np.nan
    answered, present = logits > 0, labels > 0
    sums = fnn.evaluate(lambda b: binary_counts(*b), (logits, labels), 64, reduce="sum")
    np.testing.assert_array_equal(sums["answered"], answered.sum(0))
    np.testing.assert_array_equal(sums["present"], present.sum(0))
    np.testing.assert_array_equal(sums["correct"], (answered & present).sum(0))
    tp = (answered & present).sum(0)
    np.testing.assert_allclose(f1(sums), 2 * tp / (answered.sum(0) + present.sum(0)), rtol=1e-6)
    total = 2 * tp.sum() / (answered.sum() + present.sum())
    np.testing.assert_allclose(f1(sums, average="micro"), total, rtol=1e-6)
    right = (answered == present) & ~np.isnan(logits)
    for y in (labels, labels.astype(np.int64), labels.astype(bool)):
        np.testing.assert_array_equal(binary_accuracy(logits, y), right)
    one = binary_counts(logits[:, 0], labels[:, 0], np.arange(203) < 100)
    assert one["present"].sum() == present[:100, 0].sum()


def test_several_labels_a_row_have_no_class():
    logits, multi_hot = jnp.ones((2, 4)), jnp.asarray([[1.0, 0, 1, 0], [0, 1, 0, 0]])
    top_2 = functools.partial(metrics.top_k_accuracy, k=2)
    for counts in (metrics.class_counts, metrics.confusion, top_2):
        with pytest.raises(ValueError, match=r"labels a row there are metrics\.binary_acc"):
            counts(logits, multi_hot)
    found = class_counts(logits, multi_hot)
    np.testing.assert_array_equal(found["present"].sum(-1), [0, 1])
    assert np.isnan(top_k_accuracy(logits, multi_hot, 2)[0])


# --- what the sums say --------------------------------------------------------------------------


@pytest.mark.parametrize("zero_division", [0.0, 1.0, np.nan])
def test_precision_recall_f1_are_their_definitions(zero_division):
    expected = definitions(by_hand(), zero_division)
    for sums in (matrix(), counts()):
        for function, of_classes in zip((precision, recall, f1), expected, strict=True):
            ours = function(sums, zero_division=zero_division)
            np.testing.assert_allclose(ours, of_classes, rtol=1e-6)
            macro = function(sums, average="macro", zero_division=zero_division)
            np.testing.assert_allclose(macro, np.nanmean(of_classes), rtol=1e-6)
    np.testing.assert_equal([expected[0, 4], expected[1, 3]], [zero_division] * 2)  # 0 / 0


def test_micro_is_the_accuracy_of_one_label_a_row():
    accuracy = np.asarray(fnn.accuracy(LOGITS, LABELS), np.float64).mean()
    for function in (precision, recall, f1):
        for sums in (matrix(), counts()):
            np.testing.assert_allclose(function(sums, average="micro"), accuracy, rtol=1e-6)


def test_by_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    y, answers = np.asarray(LABELS), np.asarray(LOGITS).argmax(-1)
    every = np.arange(CLASSES)
    np.testing.assert_array_equal(matrix(), sklearn.confusion_matrix(y, answers, labels=every))
    for average in (None, "macro", "micro"):
        for zero in (0.0, 1.0):
            theirs = sklearn.precision_recall_fscore_support(
                y, answers, labels=every, average=average, zero_division=zero
            )
            ours = [
                f(matrix(), average=average, zero_division=zero) for f in (precision, recall, f1)
            ]
            for a, b in zip(ours, theirs[:3], strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)
    for k in (1, 2, 3):
        theirs = sklearn.top_k_accuracy_score(y, np.asarray(LOGITS), k=k, labels=every)
        np.testing.assert_allclose(top_k_accuracy(LOGITS, LABELS, k).mean(), theirs, rtol=1e-6)
    predictions, targets = regression()
    theirs = sklearn.r2_score(targets, predictions, multioutput="raw_values")
    np.testing.assert_allclose(r2_of(predictions, targets, targets.mean(0)), theirs, rtol=1e-4)


def test_no_rows_and_one_row():
    none = confusion(LOGITS[:0], LABELS[:0]).sum(0)
    assert (f1(none) == 0).all()
    assert np.isnan(precision(none, average="macro", zero_division=np.nan))
    one = confusion(LOGITS[:1], LABELS[:1]).sum(0)
    assert one.sum() == 1


def test_many_counts_stay_exact():
    many = jnp.array([[2**24 + 1, 0], [1, 2**24 + 3]], jnp.int32)
    of_classes = definitions(np.asarray(many, np.float64), 0.0)
    for function, expected in zip((precision, recall, f1), of_classes, strict=True):
        np.testing.assert_allclose(1 - function(many), 1 - expected, atol=1e-7)


def test_sums_near_2_to_31_do_not_wrap():
    """2 correct, answered + present, and the sum over classes are beyond int32."""
    n = 2**31 - 1
    sums = {name: jnp.array([n, n - 10], jnp.int32) for name in ("correct", "answered", "present")}
    for average in (None, "macro", "micro"):
        for function in (precision, recall, f1):
            np.testing.assert_allclose(function(sums, average=average), 1, rtol=1e-6)


def regression(mean=1e4, rows=1003):
    rng = np.random.default_rng(1)
    targets = (mean + rng.normal(size=(rows, 2)) * [1.0, 5.0]).astype(np.float32)
    noise = rng.normal(size=(rows, 2)) * [0.3, 6.0]
    return (targets + noise).astype(np.float32), targets


@jax.jit
def r2_of(predictions, targets, center):
    def terms(batch):
        return r2_terms(*batch, center)

    return r2(fnn.evaluate(terms, (predictions, targets), 64))


def r2_float64(predictions, targets):
    p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    return 1 - ((t - p) ** 2).sum(0) / ((t - t.mean(0)) ** 2).sum(0)


@pytest.mark.parametrize("mean", [0.0, 1e4, -1e6])
def test_r2_is_numpys_in_float64(mean):
    predictions, targets = regression(mean)
    expected = r2_float64(predictions, targets)
    # The mean, the first row, a round number: all that matters is that it is near.
    for center in (targets.mean(0), targets[0], mean):
        ours = r2_of(predictions, targets, center)
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6)
    assert (r2_of(targets, targets, mean) == 1).all()


def test_r2_of_the_mean_and_of_constants():
    _, targets = regression()
    at_mean = np.broadcast_to(targets.mean(0), targets.shape)
    np.testing.assert_allclose(r2_of(at_mean, targets, targets[0]), 0, atol=1e-5)
    constant = jnp.full((1003, 2), 0.1)
    for center in (0.1, 0.0999, 0.0):
        assert np.isnan(r2_of(constant, constant, center)).all()
    # Too far away for float32 to see the spread: no number rather than a wrong one.
    assert np.isnan(r2_of(*regression(1e6), 0.0)).all()


def test_r2_of_half_precision():
    predictions, targets = (jnp.asarray(a - 1e4, jnp.bfloat16) for a in regression())
    terms = r2_terms(predictions, targets, 0.0)
    assert {v.dtype for v in terms.values()} == {jnp.dtype("float32")}
    means = jax.tree.map(lambda v: v.mean(0), terms)
    np.testing.assert_allclose(r2(means), r2_float64(predictions, targets), rtol=1e-5)


def test_perplexity():
    uniform = jnp.zeros((7, 50))
    losses = fnn.cross_entropy(uniform, jnp.arange(7))
    np.testing.assert_allclose(perplexity(losses.mean()), 50, rtol=1e-5)
    assert perplexity(0.0) == 1
    assert perplexity(1e4) == np.inf
    assert np.isnan(perplexity(jnp.nan))
    assert perplexity(jnp.asarray(11.0, jnp.float16)).dtype == jnp.float32


# --- probabilities ------------------------------------------------------------------------------

calibration_error = jax.jit(metrics.calibration_error, static_argnames="bins")
brier_score = jax.jit(metrics.brier_score)
P = np.asarray(fnn.softmax(LOGITS))


def calibration_by_hand(p, labels, bins=15):
    """Guo et al. 2017, equations 2 and 3, bin by bin, in float64."""
    confidence, right = p.max(-1).astype(np.float64), p.argmax(-1) == labels
    error = 0.0
    for low in range(bins):
        inside = (confidence * bins > low) & (confidence * bins <= low + 1)
        inside |= (confidence == 0) & (low == 0)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("bins", [1, 7, 15, 40])
def test_calibration_error_is_its_definition(bins):
    y = np.asarray(LABELS)
    expected = calibration_by_hand(P, y, bins)
    np.testing.assert_allclose(calibration_error(P, y, bins=bins), expected, rtol=1e-5)
    assert 0.1 < expected < 0.5
    mask = np.arange(1003) % 3 > 0
    found = calibration_error(P, y, mask, bins=bins)
    np.testing.assert_allclose(found, calibration_by_hand(P[mask], y[mask], bins), rtol=1e-5)
    if bins == 15:  # the default
        assert calibration_error(P, y) == calibration_error(P, y, bins=15)


def test_calibration_error_of_certainty_and_at_the_edges_of_bins():
    certain = jnp.eye(2)[jnp.array([0, 0, 0, 1])]
    np.testing.assert_allclose(calibration_error(certain, jnp.array([0, 0, 0, 1])), 0)
    np.testing.assert_allclose(calibration_error(certain, jnp.array([0, 1, 1, 1])), 0.5)
    # Confidence 3/4 is in (1/2, 3/4], and 1 in (3/4, 1].
    p = jnp.array([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
    terms = metrics.calibration_terms(p, jnp.array([0, 0, 0, 1]), bins=4)
    np.testing.assert_array_equal(terms["answers"].argmax(-1), [2, 2, 3, 1])
    np.testing.assert_array_equal(terms["answers"].sum(-1), 1)
    np.testing.assert_array_equal(terms["confidence"].max(-1), [0.75, 0.75, 1, 0.5])
    np.testing.assert_array_equal(terms["right"].max(-1), [1, 0, 1, 0])
    none = metrics.calibration_terms(p, jnp.array([0, 0, 0, 1]), jnp.zeros(4), bins=4)
    assert not none["answers"].any()
    assert np.isnan(calibration_error(p, jnp.array([0, 0, 0, 1]), jnp.zeros(4)))


def test_calibration_error_of_batches():
    y = np.asarray(LABELS)
    sums = fnn.evaluate(lambda b: metrics.calibration_terms(*b), (P, y), 64, reduce="sum")
    assert sums["answers"].shape == (15,)
    assert sums["answers"].sum() == 1003
    error = abs(sums["confidence"] - sums["right"]).sum() / sums["answers"].sum()
    np.testing.assert_allclose(error, calibration_by_hand(P, y), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_calibration_and_brier_in_float32_at_least(dtype):
    p, y = jnp.asarray(P, dtype), np.asarray(LABELS)
    rounded = np.asarray(p, np.float64)
    error, scores = calibration_error(p, LABELS), brier_score(p, LABELS)
    assert error.dtype == scores.dtype == jnp.float32
    np.testing.assert_allclose(error, calibration_by_hand(rounded, y), rtol=1e-4)
    expected = ((rounded - np.eye(CLASSES)[y]) ** 2).sum(-1)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-7)


def test_brier_score():
    np.testing.assert_allclose(brier_score(jnp.eye(3), jnp.array([0, 1, 0])), [0, 0, 2])
    soft = np.random.default_rng(4).dirichlet(np.ones(CLASSES), 1003).astype(np.float32)
    expected = ((P.astype(np.float64) - soft) ** 2).sum(-1)
    np.testing.assert_allclose(brier_score(P, soft), expected, rtol=1e-4, atol=1e-6)
    mask = np.arange(1003) % 2 == 0
    np.testing.assert_allclose(brier_score(P, soft, mask), expected * mask, rtol=1e-4, atol=1e-6)
    # The least mean for true probabilities.
    true = jnp.broadcast_to(jnp.array([0.7, 0.3]), (10, 2))
    labels = jnp.arange(10) >= 7
    score = [
        brier_score(true + jnp.array(d), labels.astype(int)).mean()
        for d in ([0.0, 0.0], [0.1, -0.1])
    ]
    np.testing.assert_allclose(score, [0.42, 0.44], rtol=1e-5)


def test_brier_score_by_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    y = np.asarray(LABELS) > 1
    p = P[:, 2:].sum(-1)
    both = jnp.stack([1 - p, p], -1)
    theirs = sklearn.brier_score_loss(y, p)
    np.testing.assert_allclose(brier_score(both, y.astype(int)).mean() / 2, theirs, rtol=1e-5)


def test_what_is_no_probability():
    """NaN in a program, an error outside, nothing where the mask takes it out."""
    p = P.copy()
    p[3] = np.nan
    mask = np.arange(1003) != 3
    for function in (metrics.calibration_error, metrics.brier_score):
        assert np.isnan(function(p, LABELS).sum())
        assert np.isfinite(function(p, LABELS, mask).sum())
        assert np.isnan(jax.jit(function)(LOGITS, LABELS).sum())
        with pytest.raises(ValueError, match=r"have a row with the sum .* expected the sum 1 and"):
            function(LOGITS, LABELS)
    labels = np.asarray(LABELS).copy()
    labels[:2] = [-100, CLASSES]
    found = brier_score(P, labels, labels != -100)
    np.testing.assert_array_equal(np.isnan(found[:3]), [False, True, False])
    right = metrics.calibration_terms(P, labels)["right"]
    assert not right[:2].any()


# --- evaluate's sums ----------------------------------------------------------------------------


def test_sums_count_in_integers():
    def metrics(batch):
        return {
            "bool": batch >= 0,
            "int8": jnp.full(batch.shape, 100, jnp.int8),
            "uint8": jnp.full(batch.shape, 200, jnp.uint8),
            "int32": batch,
            "half": jnp.ones(batch.shape, jnp.bfloat16),
        }

    for batch_size in (64, 1003):
        sums = fnn.evaluate(metrics, jnp.arange(1003), batch_size, reduce="sum")
        found = {name: (int(s), str(s.dtype)) for name, s in sums.items()}
        assert found == {
            "bool": (1003, "int32"),
            "int8": (100300, "int32"),
            "uint8": (200600, "int32"),
            "int32": (502503, "int32"),
            "half": (1003, "float32"),
        }
    large = fnn.evaluate(lambda b: b, jnp.full(3, 2**24 + 1, jnp.int32), 2, reduce="sum")
    assert large == 3 * (2**24 + 1)  # odd: float32 has no such number


def test_an_average_over_one_label_is_that_label():
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 2, 50), rng.normal(size=50).astype(np.float32)
    sums = fnn.evaluate(lambda b: metrics.binary_counts(*b), (logits, labels), 8, reduce="sum")
    right, yes = ((labels == 1) & (logits > 0)).sum(), labels.sum() + (logits > 0).sum()
    expected = 2 * right / yes
    for average in (None, "macro", "micro"):
        np.testing.assert_allclose(metrics.f1(sums, average=average), expected, rtol=1e-6)


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.top_k_accuracy(LOGITS, LABELS, 6), ValueError, "top_k_accuracy: k is 6, expected 1 to 5"),
        (lambda: metrics.top_k_accuracy(LOGITS, LABELS, 0), ValueError, "top_k_accuracy: k is 0"),
        (lambda: metrics.top_k_accuracy(LOGITS, LABELS, 2.0), TypeError, r"top_k_accuracy: k is 2\.0, expected a whole number"),
        (lambda: metrics.class_counts(LOGITS[:, :1], LABELS), ValueError, r"class_counts: logits have shape \(1003, 1\), with 1 class"),
        (lambda: metrics.binary_counts(LOGITS[:, 0], LABELS[:3]), ValueError, r"binary_counts: logits have shape \(1003,\), but labels"),
        (lambda: metrics.confusion(LOGITS, LABELS[:3]), ValueError, r"confusion: labels have shape \(3,\)"),
        (lambda: metrics.class_counts(LOGITS, LABELS, jnp.ones(3)), ValueError, r"class_counts: mask has shape \(3,\), expected \(1003,\)"),
        (lambda: metrics.error_terms(jnp.ones(2, complex), jnp.ones(2)), TypeError, "error_terms: predictions are complex64, expected real numbers"),
        (lambda: metrics.f1(jnp.ones((2, 3))), ValueError, r"f1: counts have shape \(2, 3\), expected \[classes, classes\]"),
        (lambda: metrics.recall(jnp.ones((2, 2)), average="weighted"), ValueError, "recall: average is 'weighted', expected None, 'macro' or 'micro'"),
        (lambda: metrics.calibration_error(LABELS, LABELS), ValueError, r"calibration_error: probabilities are int32\[1003\], expected floating point"),
        (lambda: metrics.brier_score(P[:, :1], LABELS), ValueError, r"brier_score: probabilities are float32\[1003, 1\]"),
        (lambda: metrics.calibration_error(P, LABELS[:3]), ValueError, r"labels have shape \(3,\)"),
        (lambda: metrics.calibration_error(P, LABELS, bins=0), ValueError, "bins is 0, expected at least 1"),
        (lambda: r2_terms(jnp.ones(3), jnp.ones((3, 1)), 0.0), ValueError, "r2_terms: predictions have shape"),
        (lambda: fnn.evaluate(lambda b: b, LABELS, 3, reduce="max"), ValueError, "evaluate: reduce is 'max', expected 'mean' or 'sum'"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
