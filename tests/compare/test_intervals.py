"""Intervals and p-values, against SciPy, brute force, and simulated seeds and rows."""

import math

import numpy as np
import pytest
from scipy import stats

from fnn.compare._intervals import paired_two_level, two_level_interval
from fnn.compare._statistics import (
    best_trial,
    compare_all,
    ranking,
)
from tests.compare.crossed import crossed, right_or_wrong

NAN, INF = math.nan, math.inf


# --- the interval ---------------------------------------------------------------------------------


def test_interval_is_two_intervals_of_an_analysis_of_variance():
    """The mean squares from least squares on dummy columns, in place of means."""
    rng = np.random.default_rng(0)
    a, b = 4, 9
    y = crossed(rng, a, b, 1.0, 2.0, 0.5)
    seeds, rows = np.indices((a, b)).reshape(2, -1)
    of_seeds, of_rows = np.eye(a)[seeds], np.eye(b)[rows]

    def left(*columns):
        X = np.hstack([np.ones((a * b, 1)), *columns])
        return np.sum((y.ravel() - X @ np.linalg.lstsq(X, y.ravel())[0]) ** 2)

    both = left(of_seeds, of_rows)
    S, R = (left(of_rows) - both) / (a - 1), (left(of_seeds) - both) / (b - 1)
    E = both / ((a - 1) * (b - 1))
    half_s = stats.t.ppf(0.975, a - 1) * math.sqrt(S / (a * b))
    half_r = stats.t.ppf(0.975, b - 1) * math.sqrt((R - E) / (a * b))
    mean, low, high = two_level_interval(y)
    np.testing.assert_allclose(mean, y.mean())
    np.testing.assert_allclose([mean - low, high - mean], math.hypot(half_s, half_r))
    fewer_rows = two_level_interval(y[:, :2])
    turned = two_level_interval(y[:, :2].T)
    np.testing.assert_allclose(fewer_rows, turned)  # seeds and rows are alike to the model


@pytest.mark.parametrize("turn", [False, True])
def test_without_rows_or_without_seeds_it_is_students(turn):
    values = np.array([0.3, 0.5, 0.4, 0.9])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    _, low, high = two_level_interval(values[None] if turn else values, 0.9)
    np.testing.assert_allclose((low, high), (expected.low, expected.high))


def test_right_and_wrong_of_one_seed_is_wilsons():
    values = np.zeros((1, 2000))
    values[0, :40] = 1
    expected = stats.binomtest(40, 2000).proportion_ci(method="wilson")
    _, low, high = two_level_interval(values)
    np.testing.assert_allclose((low, high), (expected.low, expected.high), rtol=2e-3)


def test_all_right_keeps_a_width():
    mean, low, high = two_level_interval(np.ones((5, 360)))
    assert (mean, high) == (1, 1)
    assert 1 - 2 * 3 / 360 < low < 1 - 3 / 360  # 3 / n: the rule of three, at 95 % one-sided
    mean, low, high = two_level_interval(np.zeros((5, 360)))
    assert (mean, low) == (0, 0)
    assert 3 / 360 < high < 2 * 3 / 360


def test_zero_variance_and_too_few():
    assert two_level_interval(np.full(5, 0.25)) == (0.25, 0.25, 0.25)
    assert two_level_interval(np.full((5, 3), 0.25)) == (0.25, 0.25, 0.25)
    np.testing.assert_equal(two_level_interval([0.5]), (0.5, NAN, NAN))
    np.testing.assert_equal(two_level_interval([0.5, NAN, 1.0]), (NAN, NAN, NAN))


def test_shapes_are_said():
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\), expected \[seeds, rows\] or"):
        two_level_interval(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match=r"shape \(0,\), expected"):
        two_level_interval([])
    with pytest.raises(ValueError, match=r"b has shape \(3, 1\), expected that of a, \(2, 1\)"):
        paired_two_level([1, 2], [1, 2, 3])


SIZES = [
    (3, 30, {"row": 1.0, "rest": 1.0}),
    (5, 30, {"seed": 0.3, "row": 1.0, "rest": 1.0}),
    (5, 360, {"rest": 1.0}),
    (5, 360, {"seed": 0.1, "row": 1.0, "rest": 1.0}),
    (5, 360, {"seed": 1.0, "row": 1.0, "rest": 1.0}),
    (10, 100, {"seed": 0.1, "row": 0.3, "rest": 0.5}),
]


@pytest.mark.parametrize(("a", "b", "terms"), SIZES)
def test_interval_covers(a, b, terms):
    rng = np.random.default_rng(1)
    intervals = [two_level_interval(crossed(rng, a, b, **terms)) for _ in range(1000)]
    covered = np.mean([low <= 0 <= high for _, low, high in intervals])
    assert 0.93 < covered < 0.99  # 0.947 to 0.980 in 10,000 draws; two standard errors: 0.013


@pytest.mark.parametrize(("accuracy", "most"), [(0.9, 0.98), (0.97, 0.98), (0.99, 0.995)])
def test_interval_of_an_accuracy_covers(accuracy, most):
    """At 0.99 a network errs on 3.6 of 360 rows: the interval is cautious."""
    rng = np.random.default_rng(2)
    terms = {"seed": 0.1, "row": 1.0, "rest": 0.5}
    draws = [right_or_wrong(rng, 5, 360, accuracy, **terms) for _ in range(1000)]
    covered = np.mean([low <= accuracy <= high for _, low, high in map(two_level_interval, draws)])
    assert 0.93 < covered < most


def test_seeds_alone_cover_far_less():
    """Why rows count: Student's t over the means of 5 seeds, 360 rows, accuracy 0.97."""
    rng = np.random.default_rng(3)
    terms = {"seed": 0.03, "row": 1.0, "rest": 0.5}
    draws = [right_or_wrong(rng, 5, 360, 0.97, **terms).mean(1) for _ in range(1000)]
    covered = np.mean([low <= 0.97 <= high for _, low, high in map(two_level_interval, draws)])
    assert covered < 0.8


@pytest.mark.slow
def test_bootstrap_of_few_seeds_covers_less():
    """Why not the percentile bootstrap over seeds and rows."""
    rng = np.random.default_rng(4)
    hits = {"bootstrap": 0, "ours": 0}
    for _ in range(400):
        y = crossed(rng, 5, 100, seed=0.3, rest=1.0)
        seeds = rng.multinomial(5, [1 / 5] * 5, 300) / 5
        rows = rng.multinomial(100, [1 / 100] * 100, 300) / 100
        low, high = np.quantile(((seeds @ y) * rows).sum(1), [0.025, 0.975])
        hits["bootstrap"] += low <= 0 <= high
        _, low, high = two_level_interval(y)
        hits["ours"] += low <= 0 <= high
    assert hits["bootstrap"] / 400 < 0.92 < hits["ours"] / 400


# --- differences ----------------------------------------------------------------------------------


def test_paired_without_rows_is_the_paired_t_test():
    rng = np.random.default_rng(5)
    for shift in (0.01, 0.5, 10, 300):
        a, b = rng.normal(size=(2, 6))
        a += shift
        expected = stats.ttest_rel(a, b)
        difference, low, high, p = paired_two_level(a, b)
        ci = expected.confidence_interval()
        np.testing.assert_allclose((difference, low, high), ((a - b).mean(), ci.low, ci.high))
        np.testing.assert_allclose(p, expected.pvalue, rtol=1e-9)


def test_p_is_the_level_whose_interval_ends_at_zero():
    rng = np.random.default_rng(6)
    a, b = crossed(rng, 5, 40, 0.2, 1.0, 1.0) + 0.3, crossed(rng, 5, 40, 0.2, 1.0, 1.0)
    p = paired_two_level(a, b).p
    assert 0 < p < 1
    difference = paired_two_level(a, b, 1 - p)
    ends = (difference.low, difference.high)
    np.testing.assert_allclose(np.min(np.abs(ends)), 0, atol=1e-9)
    other = paired_two_level(b, a)
    np.testing.assert_allclose(other, (-difference.difference, other.low, other.high, p))


def test_pairing_takes_out_what_is_shared():
    rng = np.random.default_rng(7)
    shared = crossed(rng, 5, 50, 1.0, 1.0, 1.0)
    a = shared + 0.1 + crossed(rng, 5, 50, 0.01, 0.01, 0.01)
    assert paired_two_level(a, shared).p < 1e-4
    _, low, high = two_level_interval(a)
    assert low < 0 < high


def test_ties_and_zero_variance_give_numbers():
    same = np.random.default_rng(8).normal(size=(5, 7))
    assert paired_two_level(same, same) == (0, 0, 0, 1)
    assert paired_two_level(np.ones((5, 360)), np.ones((5, 360))).p == 1
    assert paired_two_level(np.ones(5), np.zeros(5)) == (1, 1, 1, 0)
    rounding = np.array([0.3, -0.1, -0.2])  # its mean is -9e-18
    for values in (rounding, np.outer(rounding, np.ones(2))):
        np.testing.assert_allclose(paired_two_level(values, np.zeros_like(values)).p, 1, rtol=1e-12)
    assert paired_two_level([INF, INF], [INF, INF]).p == 1
    np.testing.assert_equal(paired_two_level([1.0, NAN], [1.0, 2.0]), (NAN, NAN, NAN, NAN))


def test_seeds_that_agree_by_chance_decide_nothing():
    """The means of the seeds are equal and so are those of the rows, but the scores vary."""
    difference = paired_two_level(np.eye(2), np.zeros((2, 2)))
    assert difference.low < 0 < difference.high
    expected = 2 * stats.t.sf(0.5 / math.sqrt(1 / 4), 1)  # E = 1, one degree of freedom
    np.testing.assert_allclose(difference.p, expected)
    a = np.zeros((2, 100))  # each seed is right on three rows more, but not on the same
    a[0, :3] = a[1, 3:6] = 1
    assert paired_two_level(a, np.zeros((2, 100))).p > 0.01


def test_huge_numbers_count_as_infinite():
    assert ranking({"a": [1e300, 1], "b": [5, 5]}, "higher") == ["b", "a"]
    assert best_trial([[1e308, 1e308], [9, 9]], "lower") == 1
    np.testing.assert_equal(two_level_interval([1e200, 1.0]), (NAN, NAN, NAN))
    big = np.random.default_rng(16).normal(size=(3, 5)) * 1e38
    assert 0 < paired_two_level(big, -big).p < 1


def test_one_seed_decides_nothing():
    rng = np.random.default_rng(9)
    a = rng.normal(size=(1, 500)) + 3
    difference = paired_two_level(a, np.zeros((1, 500)))
    assert difference.low > 2  # over the rows
    assert difference.p == 1
    (row,) = compare_all({"a": a, "b": np.zeros((1, 500))}, "higher")
    assert row.verdict == "not separable"
    np.testing.assert_equal(paired_two_level([1.0], [0.0]), (1.0, NAN, NAN, 1.0))
