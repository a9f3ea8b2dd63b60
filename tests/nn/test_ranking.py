"""The area under the ROC curve, and the metrics whose terms are summed over batches."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.nn import metrics

auc = jax.jit(metrics.auc)


def drawn(rows=997, seed=0, ties=None):
    """Labels, a third of them yes, and probabilities that tell a little."""
    rng = np.random.default_rng(seed)
    labels = rng.uniform(size=rows) < 1 / 3
    scores = 1 / (1 + np.exp(-rng.normal(labels * 1.0, 1.5)))
    scores = scores if ties is None else np.round(scores * ties) / ties
    return scores.astype(np.float32), labels


def by_pairs(scores, labels):
    """The definition, over all pairs, in float64."""
    positive, negative = (np.asarray(scores, np.float64)[labels == yes] for yes in (True, False))
    above = positive[:, None] > negative[None]
    same = positive[:, None] == negative[None]
    return above.mean() + same.mean() / 2


# --- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [None, 10, 1])
def test_auc_is_its_definition_and_scikit_learns(ties):
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, labels = drawn(ties=ties)
    expected = by_pairs(scores, labels)
    np.testing.assert_allclose(sklearn.roc_auc_score(labels, scores), expected, rtol=1e-12)
    for s in (scores, 3 * scores - 2, np.log(scores + 1e-3)):  # the order is all
        np.testing.assert_allclose(auc(s, labels), by_pairs(s, labels), rtol=1e-6)
    np.testing.assert_allclose(auc(scores, labels.astype(np.float32)), expected, rtol=1e-6)


def test_auc_of_several_columns_is_scikit_learns_one_against_the_rest():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 200)
    p = rng.dirichlet(np.ones(3), 200)
    p = (p + 0.3 * np.eye(3)[labels]) / 1.3
    each = auc(p.astype(np.float32), np.eye(3)[labels])
    assert each.shape == (3,)
    expected = sklearn.roc_auc_score(labels, p, multi_class="ovr")
    np.testing.assert_allclose(each.mean(), expected, rtol=1e-6)


def test_the_mask_takes_rows_out_nan_in_them_too():
    scores, labels = drawn()
    mask = np.arange(997) % 3 > 0
    expected = by_pairs(scores[mask], labels[mask])
    for other in (np.nan, np.inf, -np.inf, 0.5):
        given = np.where(mask, scores, np.float32(other))
        np.testing.assert_allclose(auc(given, labels, mask), expected, rtol=1e-6)
        sums = summed(given, labels, mask)
        np.testing.assert_allclose(sums, summed(scores[mask], labels[mask]), rtol=1e-6)


def test_ends_of_the_scale():
    labels = np.array([False, True, True, False])
    cases = {
        1.0: [-np.inf, np.inf, 2.0, 1.0],
        0.0: [3.0, -1.0, -np.inf, np.inf],
        0.5: [-0.0, 0.0, -0.0, 0.0],
        0.75: [1.0, 1.0, 2.0, 1.0],
    }
    for expected, scores in cases.items():
        assert auc(np.float32(scores), labels) == expected, scores
    assert auc(np.float32([3e38, 3.1e38, 3.2e38, 1e-45]), labels) == 1


def test_auc_is_nan_where_it_is_not_defined():
    scores = np.float32([0.1, 0.2, 0.3])
    undefined = [
        (scores, np.zeros(3)),
        (scores, np.ones(3)),
        (np.float32([0.1, np.nan, 0.3]), np.array([0, 0, 1])),
        (scores[:0], np.zeros(0)),
    ]
    for given in undefined:
        assert np.isnan(auc(*given))
        assert np.isnan(summed(*given)).all()
    assert np.isnan(auc(scores, np.array([0, 0, 1]), np.array([1, 1, 0])))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes(dtype):
    scores, labels = drawn(rows=200)
    with jax.enable_x64(True):
        scores = jnp.asarray(scores, dtype)
        found = metrics.auc(scores, labels)
        assert found.dtype == ("float64" if dtype == "float64" else "float32")
        rtol = 1e-14 if dtype == "float64" else 1e-6
        np.testing.assert_allclose(found, by_pairs(np.asarray(scores, float), labels), rtol=rtol)


def test_a_million_rows():
    """The number of pairs, 2e11, is no int32 and no float32."""
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, labels = drawn(1_000_000)
    np.testing.assert_allclose(
        auc(scores, labels), sklearn.roc_auc_score(labels, scores), rtol=2e-6
    )


# --- from sums over batches ---------------------------------------------------------------------


@partial(jax.jit, static_argnames=("bins", "low", "high"))
def summed(scores, labels, mask=None, **options):
    """(auc, error) of all rows at once."""
    terms = metrics.auc_terms(scores, labels, mask, **options)
    return metrics.auc_from_sums(jax.tree.map(lambda t: t.sum(0), terms))


@pytest.mark.parametrize("bins", [1, 2, 10, 1000])
def test_the_exact_area_is_within_the_error(bins):
    """Also on scores of which most stand in one bin, as those of a net that is sure."""
    for seed in range(5):
        scores, labels = drawn(seed=seed)
        for s in (scores, scores**20, 1 - scores**20):
            area, error = summed(s, labels, bins=bins)
            assert abs(by_pairs(s, labels) - area) <= error + 1e-6
            assert error <= 0.5
    if bins == 1:
        assert (area, error) == (0.5, 0.5)
    if bins == 1000:
        assert summed(scores, labels, bins=bins).error < 1e-3


def test_an_error_of_the_bound_happens():
    """One bin, all positives above all negatives: the area is 1, the estimate 1/2."""
    area, error = summed(np.float32([0.51, 0.52, 0.53]), np.array([0, 1, 1]), bins=2)
    assert (area, error) == (0.5, 0.5)


@pytest.mark.parametrize("batch_size", [64, 997])
def test_batches_are_all_rows(batch_size):
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, labels = drawn(ties=500)  # each score stands alone in its bin: exact
    sums = fnn.evaluate(lambda b: metrics.auc_terms(*b), (scores, labels), batch_size, reduce="sum")
    assert sums["positive"].dtype == jnp.int32
    area, error = metrics.auc_from_sums(sums)
    np.testing.assert_allclose(area, sklearn.roc_auc_score(labels, scores), rtol=1e-6)
    assert error <= (1 - (np.diff(np.sort(scores)) > 0).mean()) / 2


def test_scores_beyond_the_ends_and_logits():
    scores, labels = drawn()
    logits = np.log(scores / (1 - scores))
    area, error = summed(logits, labels, low=-3.0, high=3.0)
    assert abs(by_pairs(scores, labels) - area) <= error + 1e-6 < 0.02
    edge, wide = np.float32([-9, -8, 8, np.inf]), np.array([0, 1, 0, 1])
    assert abs(summed(edge, wide, low=-3.0, high=3.0).auc - by_pairs(edge, wide)) <= 0.25


def test_several_labels_a_row():
    scores, labels = (np.stack(pair, 1) for pair in zip(drawn(seed=0), drawn(seed=1), strict=True))
    found = summed(scores, labels)
    for column in range(2):
        alone = summed(scores[:, column], labels[:, column])
        np.testing.assert_allclose(np.stack(found)[:, column], np.stack(alone), rtol=1e-6)


# --- calibration, Brier, RMSE and MAE of batches ------------------------------------------------


def test_the_calibration_error_of_sums_is_that_of_all_rows():
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(4), 1003).astype(np.float32)
    labels = rng.integers(0, 4, 1003).astype(np.int32)
    mask = np.arange(1003) % 4 > 0
    sums = fnn.evaluate(
        lambda b: metrics.calibration_terms(*b, bins=10), (p, labels, mask), 64, reduce="sum"
    )
    confidence, right = p.max(1).astype(np.float64), p.argmax(1) == labels
    place = np.clip(np.ceil(confidence * 10) - 1, 0, 9)
    expected = sum(
        abs((confidence - right)[(place == i) & mask].sum()) / mask.sum() for i in range(10)
    )
    np.testing.assert_allclose(metrics.calibration_error_from_sums(sums), expected, rtol=1e-5)
    nothing = jax.tree.map(jnp.zeros_like, sums)
    assert np.isnan(metrics.calibration_error_from_sums(nothing))


def test_the_brier_score_of_batches_is_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    p, labels = drawn()
    both = np.stack([1 - p, p], -1)
    found = fnn.evaluate(
        lambda b: metrics.brier_score(*b), (both, labels.astype(np.int32)), 64, reduce="mean"
    )
    np.testing.assert_allclose(found / 2, sklearn.brier_score_loss(labels, p), rtol=1e-5)


def errors(predictions, targets, mask=None, batch_size=64):
    data = (predictions, targets, np.ones(len(targets)) if mask is None else mask)

    def terms(batch):
        p, t, m = batch
        m = m.reshape(-1, *[1] * (t.ndim - 1))
        return metrics.error_terms(p, t, jnp.broadcast_to(m, t.shape))

    return fnn.evaluate(terms, data, batch_size, reduce="sum")


def test_rmse_and_mae_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    targets = rng.normal(5.0, 3.0, (1003, 2)).astype(np.float32)
    predictions = (targets + rng.normal(0, [0.1, 30.0], targets.shape)).astype(np.float32)
    mask = np.arange(1003) % 5 > 0
    hidden = np.where(mask[:, None], predictions, np.float32(np.nan))
    for sums, p, t in (
        (errors(predictions, targets), predictions, targets),
        (errors(hidden, targets, mask), predictions[mask], targets[mask]),
    ):
        mse = sklearn.mean_squared_error(
            t.astype(np.float64), p.astype(np.float64), multioutput="raw_values"
        )
        mae = sklearn.mean_absolute_error(t, p, multioutput="raw_values")
        np.testing.assert_allclose(metrics.rmse(sums), np.sqrt(mse), rtol=1e-5)
        np.testing.assert_allclose(metrics.mae(sums), mae, rtol=1e-5)


def test_the_root_is_taken_of_all_rows_not_of_batches():
    zeros, targets = np.zeros(4, np.float32), np.float32([0, 0, 3, 4])
    assert metrics.rmse(errors(zeros, targets, batch_size=2)) == 2.5
    assert metrics.mae(errors(zeros, targets, batch_size=2)) == 1.75
    assert np.isnan(metrics.rmse(errors(zeros, targets, np.zeros(4))))
    assert jax.grad(lambda x: metrics.rmse(metrics.error_terms(x, x)).sum())(jnp.ones(3)).sum() == 0
    assert np.isnan(metrics.rmse(errors(np.full(4, np.nan, np.float32), targets)))


def test_errors_of_half_precision_are_float32s():
    p, t = jnp.full(3000, 1.0, jnp.bfloat16), jnp.zeros(3000, jnp.bfloat16)
    sums = errors(p, t)
    assert metrics.rmse(sums) == metrics.mae(sums) == 1  # in bfloat16 a sum of ones stops at 256
    assert metrics.rmse(sums).dtype == jnp.float32
    alone = jax.tree.map(lambda a: a.sum(0), metrics.error_terms(p, t))
    chex.assert_trees_all_close(metrics.rmse(alone), metrics.rmse(sums))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
def test_errors_are_in_the_wider_of_both_dtypes(dtype):
    with jax.enable_x64(True):
        p, t = np.array([1 + 1e-10, 2.0]), np.array([1, 2], dtype)
        for one, other in ((p, t), (t, p)):
            terms = metrics.error_terms(one, other)
            np.testing.assert_allclose(terms["absolute"], [1e-10, 0], rtol=1e-5)
            r2_terms = metrics.r2_terms(one, other, 1.5)
            np.testing.assert_allclose(r2_terms["residual"], [1e-20, 0], rtol=1e-5)


S, Y = drawn(10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.auc(S, Y[:3]), ValueError, r"auc: scores have shape \(10,\), but labels have shape \(3,\)"),
        (lambda: metrics.auc(S[0], Y[0]), ValueError, r"auc: scores have shape \(\), expected \[rows, ...\]"),
        (lambda: metrics.auc(S, Y, Y[:3]), ValueError, r"auc: mask has shape \(3,\), expected \(10,\)"),
        (lambda: metrics.auc(list(S), Y), TypeError, "auc: scores came as a list, expected an array"),
        (lambda: metrics.auc_terms(S, Y, bins=0), ValueError, "auc_terms: bins is 0, expected at least 1"),
        (lambda: metrics.auc_terms(S, Y, low=1.0), ValueError, r"auc_terms: low is 1\.0 and high 1\.0, expected finite, low < high"),
        (lambda: metrics.auc_terms(S, Y, high=float("inf")), ValueError, r"auc_terms: low is 0\.0 and high inf, expected finite"),
        (lambda: metrics.auc_terms(S, Y, low="a"), TypeError, "auc_terms: low is 'a', expected a number"),
        (lambda: metrics.error_terms(S, S[:, None]), ValueError, "error_terms: predictions have shape"),
        (lambda: metrics.error_terms(S, S, Y[:2]), ValueError, "error_terms: mask has shape"),
    ],
)  # fmt: skip
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()
