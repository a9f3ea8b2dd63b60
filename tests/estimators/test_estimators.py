"""scikit-learn's networks and formulas in NumPy as authorities; its checks are in test_checks."""

import pickle
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn")

import pandas as pd
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fnn
from fnn.estimators import FnnClassifier, FnnRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DRAWN = np.random.default_rng(0)
X = DRAWN.normal(size=(60, 4))
NAMES = np.array(["ant", "bee", "cat"])
Y = NAMES[X[:, :3].argmax(1)]
TARGETS = np.stack([X[:, 0] * X[:, 1], X[:, 2] - X[:, 3]], 1)
WEIGHTS = DRAWN.integers(0, 4, 60)


def classifier(**options):
    given = {"hidden_layer_sizes": (8,), "batch_size": 16, "max_iter": 4, "random_state": 0}
    return FnnClassifier(**(given | options))


def regressor(**options):
    given = {"hidden_layer_sizes": (8,), "batch_size": 16, "max_iter": 4, "random_state": 0}
    return FnnRegressor(**(given | options))


def equal(a, b):
    pairs = zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


# --- what it computes -----------------------------------------------------------------------------


def forward(coefs, intercepts, x):
    """The network in NumPy's float64."""
    for w, b in zip(coefs[:-1], intercepts[:-1], strict=True):
        x = np.maximum(x @ np.float64(w) + b, 0)
    return x @ np.float64(coefs[-1]) + intercepts[-1]


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("ours", "theirs", "y", "weights"),
    [
        (classifier, MLPClassifier, Y, None),
        (classifier, MLPClassifier, Y, WEIGHTS),
        (regressor, MLPRegressor, TARGETS, WEIGHTS),
    ],
)
def test_a_step_is_that_of_scikit_learns_network(ours, theirs, y, weights):
    """Loss, penalty and gradient: one step of gradient descent from the same parameters."""
    options = {"hidden_layer_sizes": (8,), "alpha": 3.0, "batch_size": 60, "random_state": 0}
    ours = ours(**options, optimizer="sgd", learning_rate=0.1)
    extra = {"classes": NAMES} if y is Y else {}
    ours.partial_fit(X, y, sample_weight=weights, **extra)
    rates = {"learning_rate_init": 0.1, "momentum": 0, "nesterovs_momentum": False}
    theirs = theirs(**options, solver="sgd", **rates).partial_fit(X, y, **extra)
    for i, (w, b) in enumerate(zip(ours.coefs_, ours.intercepts_, strict=True)):
        theirs.coefs_[i][:], theirs.intercepts_[i][:] = w, b
    ours.partial_fit(X, y, sample_weight=weights)
    theirs.partial_fit(X, y, sample_weight=weights)
    for a, b in zip(
        ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    if y is Y:  # of several outputs MLPRegressor reports another loss than the one it descends
        np.testing.assert_allclose(ours.loss_, theirs.loss_, rtol=1e-5)


def test_probabilities_and_predictions():
    rows = np.concatenate([X] * 20)  # more than one part
    found = classifier().fit(X, Y)
    expected = softmax(forward(found.coefs_, found.intercepts_, rows))
    np.testing.assert_allclose(found.predict_proba(rows), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.predict_log_proba(X), np.log(expected[:60]), atol=1e-5)
    assert (found.predict(X) == NAMES[expected[:60].argmax(1)]).all()
    assert found.predict_proba(X[:1]).shape == (1, 3)
    several = regressor().fit(X, TARGETS)
    expected = forward(several.coefs_, several.intercepts_, X)
    np.testing.assert_allclose(several.predict(X), expected, rtol=1e-5, atol=1e-6)
    assert several.predict(np.float32(X)).dtype == np.float32


@pytest.mark.slow
def test_it_learns_as_well_as_scikit_learns_network():
    x, y = fnn.datasets.digits().train
    x, y, rest, labels = np.asarray(x[:600]), np.asarray(y[:600]), x[600:], y[600:]
    ours = FnnClassifier(max_iter=60, random_state=0).fit(x, y).score(rest, labels)
    theirs = MLPClassifier(max_iter=60, random_state=0).fit(x, y).score(rest, labels)
    assert ours > theirs - 0.015 > 0.9


def test_several_seeds_are_the_mean_and_the_first_is_the_fit_of_one():
    many, one = classifier(n_seeds=2).fit(X, Y), classifier().fit(X, Y)
    assert [w.shape for w in many.coefs_] == [(2, 4, 8), (2, 8, 3)]
    assert all(np.array_equal(a[0], b) for a, b in zip(many.coefs_, one.coefs_, strict=True))
    assert np.array_equal(many.loss_curve_[0], one.loss_curve_)
    assert abs(many.coefs_[0][1] - one.coefs_[0]).mean() > 0.1  # other initial weights
    layers = [([w[i] for w in many.coefs_], [b[i] for b in many.intercepts_]) for i in (0, 1)]
    mean = np.mean([softmax(forward(*each, X)) for each in layers], 0)
    np.testing.assert_allclose(many.predict_proba(X), mean, rtol=1e-5, atol=1e-6)
    assert many.n_layers_ == one.n_layers_ == 3
    values = regressor(n_seeds=2).fit(X, TARGETS)
    layers = [([w[i] for w in values.coefs_], [b[i] for b in values.intercepts_]) for i in (0, 1)]
    mean = np.mean([forward(*each, X) for each in layers], 0)
    np.testing.assert_allclose(values.predict(X), mean, rtol=1e-5, atol=1e-6)


def test_early_stopping_keeps_the_best_epoch_of_its_own_split():
    options = {"early_stopping": True, "max_iter": 30, "n_iter_no_change": 3, "learning_rate": 0.03}
    found = classifier(**options, validation_fraction=0.3, tol=0.0).fit(X, Y, sample_weight=None)
    random_state = np.random.RandomState(0)
    random_state.randint(2)
    _, x, _, y = train_test_split(X, Y, test_size=0.3, random_state=random_state, stratify=Y)
    assert found.score(x, y) == pytest.approx(found.best_validation_score_, abs=1e-6)
    scores = found.validation_scores_
    assert scores.max() == pytest.approx(found.best_validation_score_, abs=1e-6)
    assert len(scores) == found.n_iter_ == len(found.loss_curve_) < 30
    assert scores.argmax() == found.n_iter_ - 4


def test_the_validation_score_of_a_regression_is_weighted_r2():
    weights = 1.0 + np.arange(60) % 3
    targets = np.c_[TARGETS, np.full(60, 7.0)]  # R2 of a constant is 0
    found = regressor(early_stopping=True, validation_fraction=0.3).fit(X, targets, weights)
    random_state = np.random.RandomState(0)
    random_state.randint(2)
    _, places = train_test_split(np.arange(60), test_size=0.3, random_state=random_state)
    x, y, w = X[places], targets[places], weights[places]
    expected = r2_score(y, found.predict(x), sample_weight=w)
    assert found.best_validation_score_ == pytest.approx(expected, abs=1e-5)
    assert found.best_validation_score_ == pytest.approx(found.score(x, y, w), abs=1e-5)


def test_the_loss_ends_a_fit_that_no_longer_improves():
    found = classifier(tol=1.0, n_iter_no_change=2).fit(X, Y)
    assert found.n_iter_ == 3  # the first epoch is an improvement on nothing
    assert found.loss_ == found.loss_curve_[-1]
    assert found.best_loss_ == found.loss_curve_.min()
    assert found.validation_scores_ is found.best_validation_score_ is None


# --- weights --------------------------------------------------------------------------------------


def test_a_weight_of_0_is_no_row():
    present = WEIGHTS > 0
    weighted = classifier().fit(X, Y, np.where(present, 2, 0))
    assert equal(weighted, classifier().fit(X[present], Y[present], np.full(present.sum(), 2)))


def test_a_weight_is_so_many_rows_if_all_are_one_batch():
    weighted = regressor(batch_size=1000).fit(X, TARGETS, WEIGHTS)
    repeated = regressor(batch_size=1000).fit(X.repeat(WEIGHTS, 0), TARGETS.repeat(WEIGHTS, 0))
    assert equal(weighted, repeated)


def test_weights_of_any_size():
    """Only the penalty knows how large weights are, as in scikit-learn."""
    small = classifier(alpha=1.0).fit(X, Y, WEIGHTS)
    large = classifier(alpha=2.0**120).fit(X, Y, WEIGHTS * 2.0**120)
    assert equal(small, large)
    assert np.array_equal(small.loss_curve_, large.loss_curve_)


def test_class_weights_are_sample_weights():
    by_label = {"ant": 2.0, "bee": 0.5, "cat": 0.0}
    weights = np.array([by_label[label] for label in Y])
    found = classifier(class_weight=by_label).fit(X, Y)
    assert equal(found, classifier().fit(X, Y, weights))
    assert not equal(found, classifier().fit(X, Y))
    counts = np.array([(label == Y).sum() for label in Y])
    balanced = classifier(class_weight="balanced").fit(X, Y, WEIGHTS)
    assert equal(balanced, classifier().fit(X, Y, WEIGHTS * 60 / (3 * counts)))
    assert (found.classes_ == NAMES).all()


# --- going on -------------------------------------------------------------------------------------


def test_partial_fits_and_warm_starts_are_one_fit():
    whole = classifier(tol=0.0).fit(X, Y)
    parts = classifier()
    for _ in range(4):
        parts.partial_fit(X, Y, classes=NAMES)
    warm = classifier(warm_start=True, max_iter=2).fit(X, Y).fit(X, Y)
    assert equal(whole, parts)
    assert equal(whole, warm)
    assert np.array_equal(whole.loss_curve_, parts.loss_curve_)
    assert np.array_equal(whole.loss_curve_, warm.loss_curve_)
    assert (parts.n_iter_, warm.n_iter_) == (1, 2)
    several = regressor(n_seeds=2)
    for _ in range(4):
        several.partial_fit(X, TARGETS)
    assert equal(several, regressor(n_seeds=2, tol=0.0).fit(X, TARGETS))


def test_a_partial_fit_may_lack_classes():
    found = classifier().partial_fit(X[:1], Y[:1], classes=NAMES[::-1])
    assert (found.classes_ == NAMES).all()
    assert found.predict_proba(X[:2]).shape == (2, 3)


def test_a_fit_goes_on_after_a_pickle():
    found = classifier(n_seeds=2).fit(X, Y)
    again = pickle.loads(pickle.dumps(found))
    assert np.array_equal(found.predict_proba(X), again.predict_proba(X))
    leaves = jax.tree.leaves(vars(again))
    assert not any(isinstance(leaf, jax.Array) for leaf in leaves)
    assert equal(found.partial_fit(X, Y), again.partial_fit(X, Y))


# --- programs -------------------------------------------------------------------------------------


def test_other_numbers_and_rows_compile_nothing():
    traces = []

    def activation(x):
        traces.append(x.shape)
        return fnn.relu(x)

    options = {"activation": activation, "optimizer": partial(fnn.nadam, b1=0.8)}
    first = classifier(**options).fit(X, Y)
    first.predict(X[:40])
    before = len(traces)
    assert before > 0
    numbers = {"learning_rate": 0.1, "alpha": 0, "tol": 0, "n_iter_no_change": 7, "random_state": 9}
    other = clone(first).set_params(**numbers).fit(X + 1, Y[::-1])
    assert not equal(first, other)
    for n in (33, 60):
        other.predict(X[:n])
    assert len(traces) == before
    clone(first).set_params(batch_size=17).fit(X, Y)  # the count can change
    assert len(traces) > before


def test_float64_if_jax_has_it():
    found = classifier().fit(np.float32(X), Y)
    assert {w.dtype for w in found.coefs_} == {np.dtype("float32")}
    assert equal(found, classifier().fit(np.float32(X).astype(np.float64), Y))
    with jax.enable_x64(True):
        wide = regressor().fit(X, TARGETS)
        expected = forward(wide.coefs_, wide.intercepts_, X)
        np.testing.assert_allclose(wide.predict(X), expected, rtol=1e-12)
    assert {w.dtype for w in wide.coefs_} == {np.dtype("float64")}


def test_repeatable_and_random():
    assert equal(classifier().fit(X, Y), classifier().fit(X, Y))
    drawn = np.random.RandomState(0)
    again = classifier(random_state=drawn)
    assert not equal(again.fit(X, Y), clone(again).set_params(random_state=drawn).fit(X, Y))
    assert not equal(
        classifier(random_state=None).fit(X, Y), classifier(random_state=None).fit(X, Y)
    )


# --- in scikit-learn's company ------------------------------------------------------------------


def test_pipelines_searches_and_tables():
    table = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    labels = pd.Series(Y, name="animal")
    pipeline = make_pipeline(StandardScaler(), classifier(learning_rate=0.03))
    pipeline.set_output(transform="pandas")
    search = GridSearchCV(pipeline, {"fnnclassifier__alpha": [0.0, 1e3]}, cv=3).fit(table, labels)
    assert search.best_params_ == {"fnnclassifier__alpha": 0.0}
    best = search.best_estimator_[-1]
    assert list(best.feature_names_in_) == list(table)
    assert best.n_features_in_ == 4
    assert set(search.predict(table)) <= set(NAMES)
    with pytest.raises(ValueError, match="feature names should match"):
        search.predict(table[["b", "a", "c", "d"]])
    scores = cross_val_score(pipeline, table, labels, cv=3, scoring="neg_log_loss")
    assert np.isfinite(scores).all()
    wide = TransformedTargetRegressor(regressor(learning_rate=0.05), transformer=StandardScaler())
    assert wide.fit(table, 1e6 * TARGETS[:, 1]).score(table, 1e6 * TARGETS[:, 1]) > 0.3


def test_labels_of_every_kind():
    for labels in (Y == "ant", np.where(Y == "ant", 7, -3), pd.Series(Y, dtype="category")):
        found = classifier().fit(X, labels)
        assert set(found.predict(X)) <= set(np.unique(np.asarray(labels)))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: classifier().fit(sparse.csr_array(X), Y), TypeError, "Sparse data was passed"),
        (lambda: regressor().fit(X, sparse.csr_array(TARGETS)), TypeError, "Sparse data was passed"),
        (lambda: classifier().fit(X * 1e300, Y), ValueError, "value too large for dtype"),
        (lambda: regressor().fit(X, TARGETS * 1e300), ValueError, "Input y contains infinity or a value too large"),
        (lambda: classifier().fit(X[:0], Y[:0]), ValueError, "0 sample"),
        (lambda: classifier().fit(np.where(X > 2, np.nan, X), Y), ValueError, "contains NaN"),
        (lambda: classifier().fit(X, Y[:-1]), ValueError, "inconsistent numbers of samples"),
        (lambda: classifier().fit(X, X[:, 0]), ValueError, "Unknown label type"),
        (lambda: classifier().fit(X, np.full(60, "one")), ValueError, "y has one class, one, expected at least 2"),
        (lambda: classifier().predict(X), NotFittedError, "not fitted yet"),
        (lambda: regressor(optimizer="sgd", learning_rate=1e30).fit(X, TARGETS), ValueError, "FnnRegressor: the parameters are not finite after . epochs"),
        (lambda: classifier(activation="swish").fit(X, Y), ValueError, "FnnClassifier: activation is 'swish', expected a function or one of 'identity', "),
        (lambda: classifier(optimizer="newton").fit(X, Y), ValueError, "optimizer is 'newton', expected"),
        (lambda: classifier(learning_rate=0).fit(X, Y), ValueError, "learning_rate is 0, expected a number > 0"),
        (lambda: classifier(alpha=-1).fit(X, Y), ValueError, "alpha is -1, expected"),
        (lambda: classifier(hidden_layer_sizes=(8, 0)).fit(X, Y), ValueError, "hidden_layer_sizes is 0, expected at least 1"),
        (lambda: classifier(max_iter=0).fit(X, Y), ValueError, "max_iter is 0"),
        (lambda: classifier(n_seeds=0).fit(X, Y), ValueError, "n_seeds is 0"),
        (lambda: classifier(batch_size=1.5).fit(X, Y), TypeError, "batch_size is 1.5"),
        (lambda: classifier(early_stopping=True, validation_fraction=0.01).fit(X, TARGETS[:, 0] > 0), ValueError, "test_size = 1 should be greater"),
        (lambda: regressor(early_stopping=True, validation_fraction=0.01).fit(X, TARGETS), ValueError, "validation_fraction 0.01 of 60 rows is 1 row, expected at least 2"),
        (lambda: regressor(early_stopping=True, validation_fraction=1.0).fit(X, TARGETS), ValueError, "validation_fraction is 1.0"),
        (lambda: classifier().fit(X, Y, WEIGHTS[:-1]), ValueError, r"sample_weight has shape \(59,\), expected \(60,\)"),
        (lambda: classifier().fit(X, Y, -WEIGHTS), ValueError, "sample_weight has negative"),
        (lambda: classifier().fit(X, Y, 0 * WEIGHTS), ValueError, "sample_weight is zero everywhere"),
        (lambda: classifier().partial_fit(X, Y), ValueError, "first call of partial_fit needs classes"),
        (lambda: classifier().partial_fit(X, Y, classes=NAMES[:2]), ValueError, r"y has \['cat'\], expected labels among"),
        (lambda: classifier(early_stopping=True).partial_fit(X, Y, classes=NAMES), ValueError, "does not support early_stopping"),
        (lambda: classifier(class_weight="balanced").partial_fit(X, Y, classes=NAMES), ValueError, "class_weight is 'balanced'"),
        (lambda: classifier(warm_start=True).fit(X, Y).fit(X, Y == "ant"), ValueError, "y has the classes"),
        (lambda: classifier(warm_start=True).fit(X, Y).set_params(n_seeds=2).fit(X, Y), ValueError, r"are \(2, 4, 8, 3\), but \(1, 4, 8, 3\)"),
        (lambda: regressor().partial_fit(X, TARGETS).partial_fit(X, TARGETS[:, 0]), ValueError, "y has 1 outputs, expected 2"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.filterwarnings("default")
def test_a_fit_that_fails_leaves_no_net_with_other_labels():
    fitted = classifier().fit(X, Y)
    with pytest.raises(ValueError, match="learning_rate is -1"):
        fitted.set_params(learning_rate=-1).fit(X, Y == "ant")
    with pytest.raises(NotFittedError):
        fitted.predict(X)
    fitted.set_params(learning_rate=1e-3).fit(X, Y == "ant")
    assert fitted.predict_proba(X).shape == (60, 2)


def test_warnings_and_words(capsys):
    with pytest.warns(
        ConvergenceWarning, match="max_iter 4 epochs were run, and the loss was still"
    ):
        classifier(tol=0.0, n_iter_no_change=3, verbose=True).fit(X, Y)
    assert capsys.readouterr().out.startswith("FnnClassifier: 4 epochs, loss ")
    with pytest.warns(DataConversionWarning, match="column-vector"):
        one = regressor().partial_fit(X, TARGETS[:, :1])
    assert one.predict(X).shape == (60,)


# --- without scikit-learn -------------------------------------------------------------------------


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_fnn_alone_does_not_import_scikit_learn():
    code = "import sys, fnn, fnn.estimators as e; print('sklearn' in sys.modules, *dir(e))"
    assert python(code) == "False FnnClassifier FnnRegressor"
    absent = "import sys; sys.modules['sklearn'] = None\nimport fnn\ntry:\n    fnn.estimators.FnnClassifier\nexcept ImportError as error:\n    print(error)"
    assert python(absent) == 'FnnClassifier: scikit-learn is missing: pip install "fnn[sklearn]"'
    with pytest.raises(AttributeError, match="has no attribute 'Fnn'"):
        fnn.estimators.Fnn  # noqa: B018
