import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.search import nested_cross_validate
from fnn.training import weighted_mean

KEYS = jax.random.split(jax.random.key(0), 2)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(47, 6)).astype(np.float32)
Y = (X @ RNG.normal(size=6) + RNG.normal(0, 2, 47)).astype(np.float32)
DATA = (X, Y)
PENALTIES = np.geomspace(0.01, 1000, 7)
OUTER = fnn.k_folds(None, 47, 4)  # 12, 12, 12 and 11 rows


def ridge(key, train, valid, penalty):
    """Ridge regression in closed form -> its mean squared error on the rows to validate on."""
    (x, y), counted = train.data, train.weights
    x_mean, y_mean = weighted_mean(x, counted), weighted_mean(y, counted)
    z = jnp.where(counted[:, None] > 0, x - x_mean, 0)
    target = jnp.where(counted > 0, y - y_mean, 0)
    w = jnp.linalg.solve(z.T @ z + penalty * jnp.eye(6), z.T @ target)
    errors = fnn.squared_error((valid.data[0] - x_mean) @ w + y_mean, valid.data[1])
    return weighted_mean(errors, valid.weights)


def negative(key, train, valid, penalty):
    return -ridge(key, train, valid, penalty)


def valid_rows(folds, i):
    return folds.valid[i][folds.valid_mask[i]]


def train_rows(folds, i):
    return folds.train[i][folds.train_mask[i]]


def by_hand(mode_rows=OUTER, inner=3):
    """In NumPy's float64, one model after another: (scores, chosen, inner scores)."""

    def error(train, valid, penalty):
        x, y = X[train].astype(float), Y[train].astype(float)
        z = x - x.mean(0)
        w = np.linalg.solve(z.T @ z + penalty * np.eye(6), z.T @ (y - y.mean()))
        return (((X[valid] - x.mean(0)) @ w + y.mean() - Y[valid]) ** 2).mean()

    scores, chosen, trials = [], [], []
    for i in range(len(mode_rows.train)):
        own = train_rows(mode_rows, i)
        parts = [(own[np.arange(len(own)) % inner != j], own[np.arange(len(own)) % inner == j]) for j in range(inner)]  # fmt: skip
        means = [np.mean([error(*part, penalty) for part in parts]) for penalty in PENALTIES]
        best = PENALTIES[int(np.argmin(means))]
        scores.append(error(own, valid_rows(mode_rows, i), best))
        chosen.append(best)
        trials.append(means)
    return np.array(scores), np.array(chosen), np.array(trials)


def test_ridge_in_numpy():
    found = nested_cross_validate(ridge, KEYS, DATA, OUTER, {"penalty": PENALTIES}, inner=3, mode="min")  # fmt: skip
    scores, chosen, trials = by_hand()
    assert found.scores.shape == (4, 2)
    np.testing.assert_allclose(found.scores, np.stack([scores, scores], 1), rtol=1e-5)
    np.testing.assert_allclose(found.inner, trials, rtol=1e-5)
    np.testing.assert_allclose([p["penalty"] for p in found.points], chosen, rtol=1e-6)
    np.testing.assert_allclose(found.mean, scores.mean(), rtol=1e-5)
    # Nadeau & Bengio 2003; 3.182446 is Student's t at 0.975 with 3 degrees of freedom.
    error = scores.std(ddof=1) * np.sqrt(1 / 4 + 47 / (3 * 47))
    np.testing.assert_allclose(found.high - found.mean, 3.182446 * error, rtol=1e-4)
    np.testing.assert_allclose(found.mean - found.low, 3.182446 * error, rtol=1e-4)


def test_scikit_learns_grid_search_in_cross_val_score():
    linear_model = pytest.importorskip("sklearn.linear_model")
    from sklearn.model_selection import GridSearchCV, cross_val_score

    class InTurn:
        """Row i is in fold i modulo folds."""

        def __init__(self, folds):
            self.folds = folds

        def split(self, x, y=None, groups=None):
            place = np.arange(len(x)) % self.folds
            return [(np.flatnonzero(place != i), np.flatnonzero(place == i)) for i in range(self.folds)]  # fmt: skip

        def get_n_splits(self, x=None, y=None, groups=None):
            return self.folds

    score = "neg_mean_squared_error"
    search = GridSearchCV(linear_model.Ridge(), {"alpha": PENALTIES}, cv=InTurn(5), scoring=score)
    theirs = cross_val_score(search, X.astype(float), Y.astype(float), cv=InTurn(4), scoring=score)
    found = nested_cross_validate(negative, KEYS[:1], DATA, OUTER, {"penalty": PENALTIES})
    np.testing.assert_allclose(found.scores[:, 0], theirs, rtol=1e-5)
    assert len({p["penalty"] for p in found.points}) > 1  # the folds do not all choose the same


def test_no_row_to_validate_on_takes_part_in_choosing():
    """They become NaN: the inner scores and the choice are the same bit for bit."""
    settings = {"inner": 3, "mode": "min", "key": jax.random.key(5)}
    found = nested_cross_validate(ridge, KEYS, DATA, OUTER, {"penalty": PENALTIES}, **settings)
    for i in range(4):
        x = X.copy()
        x[valid_rows(OUTER, i)] = 1e3
        other = nested_cross_validate(ridge, KEYS, (x, Y), OUTER, {"penalty": PENALTIES}, **settings)  # fmt: skip
        np.testing.assert_array_equal(other.inner[i], found.inner[i])
        assert other.points[i] == found.points[i]
        assert (other.inner[i - 1] != found.inner[i - 1]).all()
        assert (other.scores[i] != found.scores[i]).all()


def test_every_run_gets_the_rows_it_should():
    """A score is a number of 24 bits: which rows were trained on, and which validated on."""
    rows = np.arange(12, dtype=np.int32)

    def told(key, train, valid, a):
        bits = [jnp.sum(jnp.where(part.weights > 0, 1 << part.data, 0)) for part in (train, valid)]
        return bits[0] + 4096 * bits[1] + a

    def code(train, valid):
        return sum(1 << int(i) for i in train) + 4096 * sum(1 << int(i) for i in valid)

    outer = fnn.k_folds(None, 12, 3)
    found = nested_cross_validate(told, KEYS[:1], rows, outer, {"a": [0]}, inner=2)
    for i in range(3):
        own, held = train_rows(outer, i), valid_rows(outer, i)
        assert found.scores[i, 0] == code(own, held)
        expected = [code(own[1::2], own[::2]), code(own[::2], own[1::2])]
        assert found.inner[i, 0] == np.mean(expected)


def test_several_axes_vectors_and_ties():
    def score(key, train, valid, a, b):
        return jnp.where(a == 2, 1.0, 0.5) - jnp.abs(b - 0.3).sum()

    grid = {"a": np.array([1, 2, 2]), "b": np.array([[0.1, 0.2], [0.3, 0.3]])}
    found = nested_cross_validate(score, KEYS, DATA, OUTER, grid)
    assert found.inner.shape == (4, 3, 2)
    for point in found.points:
        assert point["a"] == 2
        np.testing.assert_allclose(point["b"], 0.3)
    np.testing.assert_allclose(found.scores, 1)
    tied = nested_cross_validate(lambda key, train, valid, a: 0 * a, KEYS, DATA, OUTER, {"a": [3.0, 4.0]})  # fmt: skip
    assert [p["a"] for p in tied.points] == [3.0] * 4


def test_two_traces_and_none_for_other_data():
    traces = []

    def run(key, train, valid, penalty):
        traces.append(1)
        return ridge(key, train, valid, penalty)

    for data in (DATA, (2 * X, Y)):
        nested_cross_validate(run, KEYS, data, OUTER, {"penalty": PENALTIES}, mode="min")
    assert len(traces) == 2


def test_keys_are_runs_and_are_averaged():
    """Seed 0 likes a = 1, seed 1 likes a = 0 less; all keys of a fold take the same point."""
    bits = jax.random.bits(KEYS[0])

    def score(key, train, valid, a):
        return jnp.where(jax.random.bits(key) == bits, a, -0.5 * a)

    found = nested_cross_validate(score, KEYS, DATA, OUTER, {"a": [0.0, 1.0]})
    np.testing.assert_allclose(found.scores, [[1, -0.5]] * 4)
    np.testing.assert_allclose(found.inner, [[0, 0.25]] * 4)


def test_nan_is_never_chosen():
    def score(key, train, valid, a):
        return jnp.where(a == 1, jnp.nan, a)

    found = nested_cross_validate(score, KEYS, DATA, OUTER, {"a": [0.0, 1.0]})
    assert [p["a"] for p in found.points] == [0.0] * 4
    with pytest.raises(ValueError, match="at every point an inner score of outer fold 0 is NaN"):
        nested_cross_validate(score, KEYS, DATA, OUTER, {"a": [1.0]})


def test_groups_and_labels_reach_the_inner_folds():
    groups = np.repeat(np.arange(12, dtype=np.int32), 4)
    outer = fnn.k_folds(None, 48, 3, groups=groups)

    def mixed(key, train, valid, a):
        """Whether a group is on both sides."""
        both = (train.data[:, None] == valid.data) & (train.weights[:, None] * valid.weights > 0)
        return a + both.any().astype(jnp.float32)

    kept = nested_cross_validate(mixed, KEYS, groups, outer, {"a": [0.0]}, inner=4, groups=groups)
    assert (kept.inner == 0).all()
    torn = nested_cross_validate(mixed, KEYS, groups, outer, {"a": [0.0]}, inner=4)
    assert (torn.inner == 1).all()
    labels = np.repeat(np.arange(2, dtype=np.int32), [40, 8])

    def least(key, train, valid, a):
        return a + jnp.sum(jnp.where(valid.weights > 0, valid.data, 0))

    outer = fnn.k_folds(None, 48, 2, labels=labels)
    dealt = nested_cross_validate(least, KEYS, labels, outer, {"a": [0]}, inner=2, labels=labels)
    assert (dealt.inner == 2).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"grid": {}}, TypeError, r"nested_cross_validate: grid is \{\}, expected a dict"),
        ({"grid": {"penalty": []}}, ValueError, r"penalty has shape \(0,\), expected at least one value"),
        ({"grid": {"penalty": ["a", "b"]}}, TypeError, r"penalty has values \['a', 'b'\], expected numbers"),
        ({"mode": "least"}, ValueError, "mode is 'least', expected 'max' or 'min'"),
        ({"inner": 1}, ValueError, "nested_cross_validate: inner is 1, expected at least 2"),
        ({"inner": 36}, ValueError, "outer fold 0 trains on 35 rows, expected at least 36"),
        ({"labels": np.zeros(3)}, ValueError, r"nested_cross_validate: labels have shape \(3,\), expected \(47,\)"),
        ({"key": 3}, TypeError, "nested_cross_validate: key"),
        ({"keys": KEYS[jnp.zeros(2, int)]}, ValueError, "nested_cross_validate: key 1 is the same"),
        ({"run": lambda key, train, valid, penalty: (penalty, penalty)}, TypeError, "nested_cross_validate: run returned a tuple, expected one number"),
        ({"run": lambda key, train, valid, penalty: jnp.zeros(3)}, TypeError, r"run returned shape \(3,\), expected one number"),
        ({"data": (X, Y[1:])}, ValueError, "nested_cross_validate: data have shapes"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    given = {"run": ridge, "keys": KEYS, "data": DATA, "outer": OUTER, "grid": {"penalty": PENALTIES}}  # fmt: skip
    with pytest.raises(error, match=message):
        nested_cross_validate(**(given | call))
