"""Statistics of comparisons, against SciPy, brute force, and simulated seeds and rows."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

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
    paired_two_level,
    performance_profile,
    ranking,
    steps_to_target,
    two_level_interval,
)

NAN, INF = math.nan, math.inf


def crossed(rng, a, b, seed=0.0, row=0.0, rest=0.0):
    """Scores [a, b] of the two-way model, mean 0, with these standard deviations."""
    return (
        seed * rng.normal(size=(a, 1)) + row * rng.normal(size=b) + rest * rng.normal(size=(a, b))
    )


def right_or_wrong(rng, a, b, accuracy, **terms):
    total = math.sqrt(sum(size**2 for size in terms.values()))
    return (crossed(rng, a, b, **terms) + stats.norm.ppf(accuracy) * total > 0).astype(float)


# --- the interval --------------------------------------------------------------------------------


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


# --- differences ---------------------------------------------------------------------------------


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


# --- many comparisons ----------------------------------------------------------------------------


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
    # the same family from another rule's side
    middle = {r.b: r for r in compare_all(scores, "higher", a="middle")}
    assert [r.verdict for r in middle.values()] == ["worse", "worse", "better"]
    assert middle["best"].p_corrected == rows[1].p_corrected
    np.testing.assert_allclose(middle["best"].difference, -rows[1].difference)
    np.testing.assert_allclose(
        (middle["best"].low, middle["best"].high), (-rows[1].high, -rows[1].low)
    )
    lower = compare_all({n: -v for n, v in scores.items()}, "lower")
    assert [r.verdict for r in lower] == [r.verdict for r in rows]
    assert lower[1].difference < 0


def test_compare_all_says_what_is_wrong():
    scores = {"adam": np.zeros((5, 3)), "sgd": np.zeros((4, 3))}
    with pytest.raises(
        ValueError, match=r"sgd has shape \(4, 3\), expected that of adam, \(5, 3\)"
    ):
        compare_all(scores, "higher")
    with pytest.raises(ValueError, match="a is 'muon', expected one of: adam, sgd"):
        compare_all(scores, "higher", a="muon")
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


# --- inclusion, noise, trials --------------------------------------------------------------------


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
    valid, test = rng.integers(0, 4, n).astype(float), rng.normal(size=n)  # with ties
    if n > 1:
        valid[1] = NAN
    worst = np.nanmin(valid) if better == "higher" else np.nanmax(valid)
    sign = 1 if better == "higher" else -1
    bests, tests = np.zeros(n), np.zeros(n)
    for k in range(1, n + 1):
        draws = list(itertools.combinations(range(n), k))
        for draw in draws:
            chosen = max(draw, key=lambda i: (sign * np.nan_to_num(valid[i], nan=-sign * INF), -i))
            bests[k - 1] += (worst if np.isnan(valid[chosen]) else valid[chosen]) / len(draws)
            tests[k - 1] += test[chosen] / len(draws)
    np.testing.assert_allclose(expected_best_after(valid, better), bests)
    np.testing.assert_allclose(expected_best_after(valid, better, of=test), tests)


def test_expected_best_of_bounded_and_of_nothing():
    np.testing.assert_allclose(expected_best_after([1.0, 9.0], "lower", worst=3.0), [2, 1])
    np.testing.assert_allclose(expected_best_after([NAN, 2.0], "lower", worst=3.0), [2.5, 2])
    np.testing.assert_equal(expected_best_after([NAN, NAN], "lower"), [NAN, NAN])
    assert expected_best_after([], "lower").shape == (0,)
    many = expected_best_after(np.arange(1000.0), "higher")
    k = np.arange(1, 1001)
    np.testing.assert_allclose(many, k * 1001 / (k + 1) - 1)  # of the numbers 0 .. n - 1
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\), expected \[trials\]"):
        expected_best_after([1, 2], "lower", of=[1, 2, 3])


# --- steps ---------------------------------------------------------------------------------------


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
