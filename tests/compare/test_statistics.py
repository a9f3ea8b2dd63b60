"""Statistics of comparisons, against SciPy, brute force, and simulated seeds and rows."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fnn.compare._intervals import paired_two_level
from fnn.compare._statistics import (
    ALPHA,
    RULE_FOR_BETTER,
    best_trial,
    compare_all,
    expected_best_after,
    holm,
    inclusion,
    median_steps,
    noise_floor,
    performance_profile,
    ranking,
    steps_to_target,
)
from tests.compare.crossed import crossed, right_or_wrong

NAN, INF = math.nan, math.inf


# --- many comparisons -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
def test_holm_is_the_closed_test_of_bonferronis(n):
    """Corrected p of one: the largest Bonferroni p of all sets of hypotheses that it is in."""
    p = np.random.default_rng(n).random(n) / 3
    closed = np.zeros(n)
    for size in range(1, n + 1):
        for chosen in itertools.combinations(range(n), size):
            of_set = min(size * p[list(chosen)].min(), 1.0)
            closed[list(chosen)] = np.maximum(closed[list(chosen)], of_set)
    np.testing.assert_allclose(holm(p), closed)


def test_holm_of_nothing_and_of_nan():
    assert holm([]).shape == (0,)
    np.testing.assert_allclose(holm([NAN, 0.01]), [1, 0.02])


def test_compare_all():
    rng = np.random.default_rng(10)
    shared = crossed(rng, 5, 60, 0.1, 1.0, 0.1)
    scores = {
        name: shared + mean + crossed(rng, 5, 60, 0.01, 0.01, 0.05)
        for name, mean in {"worst": 1.0, "best": 3.0, "twin": 2.99, "middle": 2.0}.items()
    }
    assert ranking(scores, "higher") == ["best", "twin", "middle", "worst"]
    rows = compare_all(scores, "higher")
    assert [(r.a, r.b, r.verdict) for r in rows] == [
        ("best", "twin", "not separable"),
        ("best", "middle", "better"),
        ("best", "worst", "better"),
    ]
    pairs = list(itertools.combinations(ranking(scores, "higher"), 2))
    every = [paired_two_level(scores[a], scores[b]).p for a, b in pairs]
    np.testing.assert_allclose([r.p for r in rows], every[:3])
    np.testing.assert_allclose([r.p_corrected for r in rows], holm(every)[:3])
    assert rows[0].low < 0 < rows[0].high
    lower = compare_all({n: -v for n, v in scores.items()}, "lower")
    assert [r.verdict for r in lower] == [r.verdict for r in rows]
    assert lower[1].difference < 0


def test_compare_all_says_what_is_wrong():
    scores = {"adam": np.zeros((5, 3)), "sgd": np.zeros((4, 3))}
    with pytest.raises(
        ValueError, match=r"sgd has shape \(4, 3\), expected that of adam, \(5, 3\)"
    ):
        compare_all(scores, "higher")
    with pytest.raises(ValueError, match="better is 'more', expected 'higher' or 'lower'"):
        ranking(scores, "more")  # type: ignore[arg-type]
    assert compare_all({"adam": np.zeros(5)}, "lower") == []


def test_equal_rules_are_not_separable():
    rows = compare_all({n: np.ones((5, 360)) for n in "abc"}, "higher")
    assert {(r.verdict, r.p, r.p_corrected, r.difference) for r in rows} == {
        ("not separable", 1.0, 1.0, 0.0)
    }


def test_a_diverged_rule_is_worst():
    rng = np.random.default_rng(11)
    good = crossed(rng, 5, 20, 0.1, 1.0, 0.1)
    lucky = good - 10  # the least loss by far, but one of its seeds diverged
    lucky[3] = NAN
    scores = {"all": np.full((5, 20), NAN), "one": lucky, "good": good, "bad": good + 100}
    assert ranking(scores, "lower") == ["good", "bad", "one", "all"]
    verdicts = {r.b: r for r in compare_all(scores, "lower")}
    assert verdicts["all"].verdict == "better"
    assert verdicts["one"].verdict == "not separable"  # one seed of five
    assert verdicts["bad"].difference < 0
    assert math.isnan(verdicts["all"].difference)
    two = compare_all({"a": np.ones(5), "b": np.full(5, INF)}, "lower")
    assert [r.verdict for r in two] == ["better"]
    both = compare_all({"a": np.full(5, NAN), "b": np.full(5, NAN)}, "lower")
    assert [(r.verdict, r.p) for r in both] == [("not separable", 1.0)]


NULLS = [  # rules, seeds, rows, accuracy (None: normal scores), standard deviations
    (7, 5, 360, None, {"seed": 0.1, "row": 0.5, "rest": 0.5}),
    (7, 3, 100, None, {"seed": 0.1, "row": 0.5, "rest": 0.5}),
    (5, 2, 100, None, {"seed": 0.3, "row": 0.5, "rest": 0.5}),
    (7, 5, 1, None, {"seed": 1.0}),
    (7, 5, 360, 0.9, {"seed": 0.1, "row": 1.0, "rest": 0.5}),
    (5, 2, 100, 0.97, {"rest": 1.0}),  # the means of two seeds are often equal
]


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "a", "b", "accuracy", "terms"), NULLS)
def test_family_wise_error(rules, a, b, accuracy, terms):
    """Equal rules: the chance that any is called better is 5 % at most, the best chosen by us."""
    rng = np.random.default_rng(12)

    def draw():
        if accuracy is None:
            return crossed(rng, a, b, **terms)
        return right_or_wrong(rng, a, b, accuracy, **terms)

    def wrong():
        scores = {str(i): draw() for i in range(rules)}
        return any(r.verdict != "not separable" for r in compare_all(scores, "higher"))

    assert np.mean([wrong() for _ in range(400)]) < 0.05 + 0.022  # two standard errors


@pytest.mark.slow
def test_correcting_for_the_pairs_with_the_best_is_not_enough():
    """Why the correction is over all pairs: the best is chosen from the same scores."""
    rng = np.random.default_rng(13)

    def wrong():
        scores = {str(i): rng.normal(size=10) for i in range(7)}
        rows = compare_all(scores, "higher")
        return holm([r.p for r in rows]).min() <= ALPHA

    assert np.mean([wrong() for _ in range(400)]) > 0.07


def test_power():
    """Accuracies 0.90 and 0.96, 10 seeds, 360 rows, seven rules: nearly always found."""
    rng = np.random.default_rng(14)

    def found():
        row = 0.9 * rng.normal(size=360)

        def rule(accuracy):
            own = crossed(rng, 10, 360, 0.1, 0.2, 0.4)
            total = math.sqrt(0.9**2 + 0.1**2 + 0.2**2 + 0.4**2)
            return (row + own + stats.norm.ppf(accuracy) * total > 0).astype(float)

        scores = {"best": rule(0.96)} | {str(i): rule(0.9) for i in range(6)}
        return all(r.a == "best" and r.verdict == "better" for r in compare_all(scores, "higher"))

    assert np.mean([found() for _ in range(40)]) > 0.9


def test_the_rule_names_its_level():
    assert f"at most {ALPHA} after Holm's" in RULE_FOR_BETTER
    assert RULE_FOR_BETTER.count(".") == 2  # one sentence, and 0.05


# --- inclusion, noise, trials ---------------------------------------------------------------------


def test_inclusion():
    rng = np.random.default_rng(15)
    base = rng.normal(size=(8, 1)) * 0.01
    scores = {"sgd": base + 1.0, "momentum": base + 0.9, "adam": base + 1.00, "lost": base * NAN}
    contains = {"momentum": ["sgd"], "adam": ["sgd", "momentum"], "lost": ["sgd"], "muon": ["sgd"]}
    assert [(c.rule, c.contains, c.holds) for c in inclusion(contains, scores, "higher")] == [
        ("momentum", "sgd", False),
        ("adam", "sgd", True),
        ("adam", "momentum", True),
        ("lost", "sgd", False),
    ]
    lower = inclusion(contains, scores, "lower")
    assert [c.holds for c in lower] == [True, True, False, False]
    np.testing.assert_allclose(lower[0].difference, -0.1)
    assert inclusion({}, scores, "higher") == []


def test_noise_floor():
    a = np.arange(20.0)
    assert noise_floor([(a, a)]) == 0
    assert noise_floor([(a[:10], a[:10] + np.arange(1, 11)), (a, a - np.arange(11, 31))]) == 29
    assert noise_floor([(np.array([NAN, 1.0]), np.array([NAN, 1.5]))]) == 0.5
    assert noise_floor([(np.array([NAN, 1.0]), np.array([2.0, 1.0]))]) == INF
    assert math.isnan(noise_floor([]))


def test_best_trial():
    valid = [[0.5, 0.7], [0.9, 0.9], [0.99, NAN], [0.8, 1.0]]
    assert best_trial(valid, "higher") == 1  # of two with the same mean
    assert best_trial(valid, "higher", loss=[[1, 1], [1, 1], [0, 0], [0.5, 1]]) == 3
    assert best_trial(valid, "higher", loss=[[1, 1], [1, 1], [0, 0], [NAN, NAN]]) == 1
    assert best_trial(valid, "lower") == 0
    assert best_trial([[NAN, NAN], [NAN, 5.0], [NAN, NAN]], "lower") == 1
    assert best_trial([[NAN], [INF]], "lower") == 0


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("n", [1, 2, 6])
def test_expected_best_is_the_mean_over_all_draws(better, n):
    rng = np.random.default_rng(n)
    valid = rng.integers(0, 4, n).astype(float)  # with ties
    if n > 1:
        valid[1] = NAN
    worst = np.nanmin(valid) if better == "higher" else np.nanmax(valid)
    sign = 1 if better == "higher" else -1
    bests = np.zeros(n)
    for k in range(1, n + 1):
        draws = list(itertools.combinations(range(n), k))
        for draw in draws:
            chosen = max(draw, key=lambda i: (sign * np.nan_to_num(valid[i], nan=-sign * INF), -i))
            bests[k - 1] += (worst if np.isnan(valid[chosen]) else valid[chosen]) / len(draws)
    np.testing.assert_allclose(expected_best_after(valid, better), bests)


def test_expected_best_of_bounded_and_of_nothing():
    np.testing.assert_allclose(expected_best_after([1.0, 9.0], "lower", worst=3.0), [2, 1])
    np.testing.assert_allclose(expected_best_after([NAN, 2.0], "lower", worst=3.0), [2.5, 2])
    np.testing.assert_equal(expected_best_after([NAN, NAN], "lower"), [NAN, NAN])
    assert expected_best_after([], "lower").shape == (0,)
    many = expected_best_after(np.arange(1000.0), "higher")
    k = np.arange(1, 1001)
    np.testing.assert_allclose(many, k * 1001 / (k + 1) - 1)  # of the numbers 0 .. n - 1
    with pytest.raises(ValueError, match=r"shape \(1, 2\), expected \[trials\]"):
        expected_best_after([[1, 2]], "lower")


# --- steps ----------------------------------------------------------------------------------------


def test_steps_to_target():
    curves = [[3, 2, 1, 2], [3, NAN, 2, NAN], [9, 8, 7, 6], [NAN] * 4, [1, 5, 5, 5]]
    steps = steps_to_target(curves, 2, "lower", every=10)
    np.testing.assert_equal(steps, [20, 30, INF, INF, 10])
    np.testing.assert_equal(steps_to_target(curves, 7, "higher"), [INF, INF, 1, INF, INF])
    np.testing.assert_equal(steps_to_target(np.zeros((2, 0)), 7, "higher"), [INF, INF])
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \[seeds, points\]"):
        steps_to_target([1, 2], 2, "lower")


def test_median_counts_the_runs_that_failed():
    assert median_steps([20, 30, None, None, 10]) == 30
    assert median_steps([20, None, None, 10]) == INF
    assert median_steps(np.array([INF, INF, 5.0])) == INF
    assert median_steps([20, 30]) == 25
    assert median_steps([]) == INF


def test_performance_profile():
    problems = {
        "p": {"a": 10.0, "b": 20.0, "c": None},
        "q": {"a": 30.0, "b": 10.0, "c": INF},
        "r": {"a": 5.0, "b": 5.0, "c": NAN},
        "nobody": {"a": None, "b": None, "c": None},
    }
    tau, rho = performance_profile(problems)
    np.testing.assert_allclose(tau, [1, 2, 3])
    np.testing.assert_allclose(rho["a"], [0.5, 0.5, 0.75])
    np.testing.assert_allclose(rho["b"], [0.5, 0.75, 0.75])
    np.testing.assert_allclose(rho["c"], [0, 0, 0])
    tau, rho = performance_profile({"nobody": {"a": None}})
    np.testing.assert_allclose((tau, rho["a"]), ([1], [0]))
    assert performance_profile({})[1] == {}
    with pytest.raises(ValueError, match="problem 'q' has rules a, expected the same in every"):
        performance_profile({"p": {"a": 1, "b": 1}, "q": {"a": 1}})
    with pytest.raises(ValueError, match="steps are 0, expected > 0"):
        performance_profile({"p": {"a": 0, "b": 1}})
