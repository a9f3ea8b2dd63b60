import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.search import design
from fnn.search.design import Tried, suggest

KEY = jax.random.key(1)
# Tests share rows and settings, so that they share the programs of their networks.
ROWS = 90
QUICK = {"folds": 3, "seeds": 1, "largest": 4, "epochs": 120, "learning_rate": 0.05}


def table(suggestion):
    return {tried.hidden: tried for tried in suggestion.table}


@pytest.mark.slow
def test_clusters_need_no_hidden_layer():
    found = suggest(fnn.data.clusters(KEY, ROWS, classes=2, noise=0.3), **QUICK)
    assert found.hidden == ()
    assert found.table == [Tried((), 6, 1.0, 0.0, 1.0)]
    assert found.why == [
        "A linear model is right on 100.0 % of the rows left out (standard error 0.0 %), at least"
        " the 99.0 % that is enough; planes separate the classes of the rows trained on. No hidden"
        " layer is needed."
    ]


@functools.cache
def of_rings():
    return suggest(fnn.data.rings(KEY, ROWS, noise=0.05), enough=0.95, **QUICK)


def test_rings_need_one_hidden_layer():
    found = of_rings()
    assert found.hidden == (4,)
    tried = table(found)
    assert list(tried) == [(), (2,), (4,)]  # 2 is the mean of 2 inputs and 2 outputs
    assert tried[()].score < 0.7 < 0.95 < tried[4,].score
    assert tried[()].seen < 1
    assert "planes do not separate the classes" in found.why[0]
    assert f"is right on {100 * tried[()].score:.1f} % of the rows left out" in found.why[0]
    assert f"(4,) is right on {100 * tried[4,].score:.1f} %" in found.why[2]
    assert f"{tried[found.hidden].parameters:,} parameters" in found.why[-1]
    shown = str(found)
    assert shown.startswith("hidden layers     parameters")
    assert shown.count("<- suggested") == 1
    assert all(sentence in shown for sentence in found.why)


def test_what_was_tried_is_cross_validation_by_hand():
    """Score, standard error and the number of parameters, from the runs of the folds."""
    x, y = fnn.data.rings(KEY, ROWS, noise=0.05)
    found = of_rings()
    fold_key, run_key = jax.random.split(jax.random.key(0))  # the key, if none is given
    folds = fnn.k_folds(fold_key, ROWS, 3, labels=np.asarray(y))
    how = design._How(2, True, 120, 32, 0.05)
    scores, seen = fnn.cross_validate(
        design._run_of((4,), how),
        jax.random.split(run_key, 1),
        (np.asarray(x), np.asarray(y)),
        folds,
    )
    tried = table(found)[4,]
    by_fold = np.asarray(scores, np.float64).mean(0)
    np.testing.assert_allclose(tried.score, by_fold.mean())
    np.testing.assert_allclose(tried.standard_error, by_fold.std(ddof=1) / np.sqrt(3))
    np.testing.assert_allclose(tried.seen, np.asarray(seen, np.float64).mean())
    assert tried.parameters == 3 * 4 + 5 * 2
    # Accuracies of 30 rows each.
    np.testing.assert_allclose(
        np.asarray(scores) * 30, np.round(np.asarray(scores) * 30), atol=1e-4
    )


@pytest.mark.slow
def test_a_line_and_a_curve():
    x = np.repeat(np.random.default_rng(0).normal(size=(ROWS, 1)), 7, axis=1)
    line = suggest((x, 3e4 + 1e3 * x[:, 0]), **QUICK)
    assert line.hidden == ()
    assert line.table[0].score > 0.999
    assert "A linear model has R2 1.000 on the rows left out" in line.why[0]
    curve = suggest((x, 1e-3 * np.abs(x[:, 0])), enough=0.9, **QUICK)
    assert curve.hidden == (4,)  # the mean of 7 inputs and 1 output
    tried = table(curve)
    assert tried[()].score < 0.5
    assert tried[4,].score > 0.9
    assert f"has R2 {tried[4,].score:.3f} on the rows left out" in curve.why[1]


# --- the rule, without training ------------------------------------------------------------------


def suggested(monkeypatch, scores, **options):
    """The suggestion if networks had these (score, standard error) or score."""
    asked = []

    class Trials(design._Trials):
        def __call__(self, hidden):
            asked.append(hidden)
            score, error = np.broadcast_to(scores(hidden), 2) if np.ndim(scores(hidden)) else (scores(hidden), 0.01)  # fmt: skip
            self.table.append(Tried(hidden, 1 + sum(hidden) * 10 ** len(hidden), score, error, score))  # fmt: skip
            return self.table[-1]

    monkeypatch.setattr(design, "_Trials", Trials)
    x = np.zeros((20, 6), np.float32)
    found = suggest((x, np.arange(20) % 2), folds=2, **options)
    assert asked == [tried.hidden for tried in found.table]
    return found, asked


def test_growing_ends_after_two_widths_that_are_no_better(monkeypatch):
    scores = {(): 0.5, (4,): 0.6, (8,): 0.605, (16,): 0.7, (32,): 0.705, (64,): 0.709, (16, 16): 0.69}  # fmt: skip
    found, asked = suggested(monkeypatch, scores.get)
    assert asked == list(scores)
    assert found.hidden == (16,)  # within 0.01 of 0.709
    assert "(16,) is the smallest network within one standard error of it, 69.9 %" in found.why[-1]


def test_a_second_layer_is_grown_too(monkeypatch):
    scores = {(): 0.5, (4,): 0.6, (8,): 0.6, (16,): 0.6, (4, 4): 0.8, (8, 8): 0.9, (16, 16): 0.995}
    found, asked = suggested(monkeypatch, scores.get)
    assert asked == list(scores)  # 0.995 is enough
    assert found.hidden == (16, 16)


def test_the_linear_model_may_be_within_one_standard_error(monkeypatch):
    found, _ = suggested(monkeypatch, lambda hidden: 0.9 + 0.001 * len(hidden))
    assert found.hidden == ()
    # The error of the best counts, not that of the smaller one.
    spread = {(): (0.9, 0.05), (4,): (0.93, 0.02), (8,): (0.93, 0.02), (16,): (0.93, 0.02), (4, 4): (0.93, 0.02)}  # fmt: skip
    found, _ = suggested(monkeypatch, spread.get)
    assert found.hidden == (4,)


def test_no_layer_is_larger_than_the_largest(monkeypatch):
    found, asked = suggested(monkeypatch, lambda h: 0.5 + 0.001 * sum(h), largest=3)
    assert asked == [(), (3,), (3, 3)]
    assert "Layers of more than 3 units are not tried." in found.why
    with pytest.raises(ValueError, match="suggest: every network diverged"):
        suggested(monkeypatch, lambda h: -np.inf)


X = np.zeros((20, 2), np.float32)
Y = np.arange(20) % 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: suggest(X), TypeError, r"suggest: data is a ndarray, expected \(x, y\)"),
        (lambda: suggest((X, Y[1:])), ValueError, "suggest: data have shapes"),
        (lambda: suggest((X, Y * 0)), ValueError, "suggest: y has labels from 0 to 0, expected two classes"),
        (lambda: suggest((X, Y - 1)), ValueError, "suggest: y has labels from -1 to 0"),
        (lambda: suggest((X, np.stack([Y, Y], 1))), ValueError, r"suggest: y is int64\[20, 2\], expected labels"),
        (lambda: suggest((X, 1j * Y)), ValueError, "suggest: y is complex128"),
        (lambda: suggest((X * np.nan, Y)), ValueError, "suggest: x has NaN or inf"),
        (lambda: suggest((X, np.full(20, np.inf))), ValueError, "suggest: y has NaN or inf"),
        (lambda: suggest((X[:, :0], Y)), ValueError, "suggest: x has no column"),
        (lambda: suggest((X, Y), folds=1), ValueError, "folds is 1, expected 2 to the 20 rows"),
        (lambda: suggest((X, Y), seeds=0), ValueError, "suggest: seeds is 0"),
        (lambda: suggest((X, Y), epochs=0), ValueError, "suggest: epochs is 0"),
        (lambda: suggest((X, Y), batch_size=0), ValueError, "suggest: batch_size is 0"),
        (lambda: suggest((X, Y), largest=0), ValueError, "suggest: largest is 0"),
        (lambda: suggest((X, Y), learning_rate=0.0), ValueError, r"suggest: learning_rate is 0\.0"),
        (lambda: suggest((X, Y), 3), TypeError, "suggest: key"),
        (lambda: suggest((X, Y), enough="all"), TypeError, "suggest: enough is 'all'"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_bools_bytes_and_images_are_rows_too(monkeypatch):
    seen = []
    monkeypatch.setattr(design, "_recipe", lambda trials: seen.append(trials))
    image = np.zeros((20, 4, 3), np.uint8)
    suggest((image, Y.astype(bool)))
    suggest((jnp.asarray(X, jnp.bfloat16), Y.astype(np.uint8)))
    suggest((X, (Y / 2).astype(np.float16)))
    assert [(str(t.data[0].dtype), t.data[0].shape) for t in seen] == [
        ("float32", (20, 12)),
        ("float32", (20, 2)),
        ("float32", (20, 2)),
    ]
    assert [str(t.data[1].dtype) for t in seen] == ["int32", "int32", "float32"]
    assert [t.how.outputs for t in seen] == [2, 2, 1]
    assert seen[0].how[-3:] == (2000, 16, 0.01)  # 16 rows to train on are one step
