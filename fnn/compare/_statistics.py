"""Statistics of a comparison: who is better, who contains whom, noise, trials, steps to a target.

Scores are [seeds, rows] or [seeds]. `_intervals.py` has the intervals and p-values.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from fnn.compare._intervals import ArrayLike, Difference, Floats, as_rows, floats, of_differences

Better = Literal["higher", "lower"]
Verdict = Literal["better", "not separable", "worse"]
SIGN: dict[Better, int] = {"higher": 1, "lower": -1}  # SIGN[better] * score is better high
Scores = Mapping[str, ArrayLike]  # of each rule, [seeds, rows] or [seeds]

ALPHA = 0.05  # of `RULE_FOR_BETTER`
RULE_FOR_BETTER = (
    "A rule is better than another if its mean test score over fresh seeds is better and the"
    " two-sided p-value of their difference, paired by seed and by test row, with both seeds and"
    " test rows taken as random, is at most 0.05 after Holm's correction over all pairs of rules."
)


class Comparison(NamedTuple):
    """Rule a against rule b: the difference a - b of their scores, and the verdict on a.

    `low` and `high` are the ends of the 95 % interval of this difference alone, not corrected.
    `p_corrected` is what `RULE_FOR_BETTER` speaks of, and decides the verdict.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_corrected: float
    verdict: Verdict


class Inclusion(NamedTuple):
    """Whether `rule` does not lose to `contains`; `difference` is rule - contains."""

    rule: str
    contains: str
    holds: bool
    difference: float


def holm(p_values: ArrayLike) -> Floats:
    """P-values [tests] -> corrected [tests]; those <= 0.05 have a family-wise error of 0.05.

    The i-th smallest of n (i = 1 ..) is multiplied by n - i + 1; then none may be smaller than one
    before it, or larger than 1. NaN counts as 1. Holm (1979).
    """
    p = np.nan_to_num(np.asarray(p_values, float), nan=1.0)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def ranking(scores: Scores, better: Better) -> list[str]:
    """The rules, the best mean first; a tie keeps the order given.

    A rule with diverged seeds (a score that is not finite) comes after all rules with fewer.
    """
    names = list(scores)
    return [names[i] for i in _order([as_rows("ranking", n, scores[n]) for n in names], better)]


def best_trial(valid: ArrayLike, better: Better, loss: ArrayLike | None = None) -> int:
    """Validation scores [trials, seeds] -> index of the trial with the best mean.

    A trial with diverged runs (not finite) comes after all trials with fewer. A tie: the lower mean
    of `loss` [trials, seeds], then the first.
    """
    valid = floats(valid)
    tie = None if loss is None else _mean_of_finite(floats(loss), np.inf)
    return _order(list(valid), better, tie)[0]


def compare_all(scores: Scores, better: Better) -> list[Comparison]:
    """Test scores of each rule -> the best by `ranking` against each other, in that order.

    Holm's correction is over all pairs of rules, not only those with the best: it is chosen from
    the same scores, and correcting for fewer pairs would call equal rules different too often.

    A diverged run counts as one whole range (best - worst finite score of all rules) below the
    worst. Then difference, low and high are NaN, and p and the verdict remain.
    """
    order = ranking(scores, better)
    filled = _diverged_as_worst("compare_all", scores, better)
    pairs = list(combinations(order, 2))
    results = [of_differences(filled[a] - filled[b]) for a, b in pairs]
    corrected = holm([result.p for result in results])
    with_best = list(zip(pairs, results, corrected, strict=True))[: len(order) - 1]
    return [
        Comparison(*pair, *_known(result, scores, pair), float(p), _verdict(result, p, better))
        for pair, result, p in with_best
    ]


def _verdict(result: Difference, p: float, better: Better) -> Verdict:
    """By `RULE_FOR_BETTER`, of the first rule of the pair."""
    if p > ALPHA:
        return "not separable"
    return "better" if SIGN[better] * result.difference > 0 else "worse"


def _known(result: Difference, scores: Scores, pair: tuple[str, str]) -> Difference:
    """The result; only its p if a run of the pair diverged, as the rest has no size then."""
    if not any(_diverged(scores[name]) for name in pair):
        return result
    return Difference(np.nan, np.nan, np.nan, result.p)


def inclusion(
    contains: Mapping[str, Sequence[str]], scores: Scores, better: Better
) -> list[Inclusion]:
    """``{rule: rules that it contains}`` and test scores -> the inclusion check of each pair.

    A rule contains another if some point of its search is the other rule. Tuned well enough, it
    cannot lose to it. The check fails if the contained rule is better by `RULE_FOR_BETTER`, with
    Holm's correction over the pairs of this check: then the search was too small or its ranges
    wrong, and its comparison says nothing about the rules. Pairs without scores are left out.
    Choi et al. (2019), arXiv 1910.05446.
    """
    filled = _diverged_as_worst("inclusion", scores, better)
    pairs = [(r, c) for r, inner in contains.items() for c in inner if {r, c} <= scores.keys()]
    results = [of_differences(filled[r] - filled[c]) for r, c in pairs]
    return [
        Inclusion(
            *pair,
            holds=_verdict(result, p, better) != "worse",
            difference=_known(result, scores, pair).difference,
        )
        for pair, result, p in zip(pairs, results, holm([r.p for r in results]), strict=True)
    ]


def noise_floor(pairs: Sequence[tuple[ArrayLike, ArrayLike]], quantile: float = 0.95) -> float:
    """Pairs of scores [seeds] of the same rule -> quantile of their absolute differences.

    Two runs of different rules that are closer than this may be apart by rounding alone. The mean
    over n seeds has a floor about sqrt(n) times lower. Two runs that both diverged are no
    difference; if only one did it is inf. NaN without pairs.
    """
    differences = [np.zeros(0)]
    for first, second in pairs:
        a, b = np.asarray(first, float), np.asarray(second, float)
        a, b = np.where(np.isfinite(a), a, np.inf), np.where(np.isfinite(b), b, np.inf)
        with np.errstate(invalid="ignore"):
            differences.append(np.where(a == b, 0.0, np.abs(a - b)).ravel())
    every = np.concatenate(differences)
    # of the differences seen, the smallest that holds the quantile: never between two, one inf
    return float(np.quantile(every, quantile, method="inverted_cdf")) if every.size else np.nan


def expected_best_after(valid: ArrayLike, better: Better, worst: float | None = None) -> Floats:
    """Scores [trials] -> [trials]: expected best after k = 1, 2, ... of these trials.

    The mean over all ways to draw k of the n trials without replacement: the i-th score from the
    worst is the best of k with probability C(i - 1, k - 1) / C(n, k). Nothing is drawn.

    A score that is not finite, or worse than `worst`, counts as `worst`; default the worst finite
    score. To compare rules give all the same `worst`, such as the score before training. NaN if
    there is no finite score and no `worst`. Dodge et al. (2019), arXiv 1909.03004, with
    replacement; Sivaprasad et al. (2020), arXiv 1910.11758.
    """
    scores = SIGN[better] * np.asarray(valid, float)  # higher is better from here on
    if scores.ndim != 1:
        raise ValueError(f"expected_best_after: valid has shape {scores.shape}, expected [trials]")
    if not scores.size:
        return np.zeros(0)
    finite = scores[np.isfinite(scores)]
    bound = SIGN[better] * worst if worst is not None else min(finite, default=np.nan)
    ordered = np.sort(np.where(np.isfinite(scores), np.maximum(scores, bound), bound))
    return SIGN[better] * (_chances(len(ordered)) @ ordered)


def _chances(n: int) -> Floats:
    """[n, n]: the chance that the i-th of n, from the worst, is the best of k drawn; k, then i."""
    k, i = np.arange(1, n + 1)[:, None], np.arange(1, n)[None]
    ratios = np.maximum(i - k + 1, 0) / i  # probability of the i-th over that of the one above it
    above = np.cumprod(ratios[:, ::-1], axis=1)[:, ::-1]
    return k / n * np.concatenate([above, np.ones((n, 1))], axis=1)


def steps_to_target(curves: ArrayLike, target: float, better: Better, every: int = 1) -> Floats:
    """Curves [seeds, points], a point each `every` steps -> [seeds] steps to reach target.

    inf for a run that does not reach it. The score has to be at least as good as the target; NaN
    never is.
    """
    curves = np.asarray(curves, float)
    if curves.ndim != 2:
        raise ValueError(
            f"steps_to_target: curves has shape {curves.shape}, expected [seeds, points]"
        )
    with np.errstate(invalid="ignore"):
        reached = curves >= target if better == "higher" else curves <= target
    if not curves.shape[1]:
        return np.full(len(curves), np.inf)
    return np.where(reached.any(1), (reached.argmax(1) + 1.0) * every, np.inf)


def median_steps(steps: Sequence[float | None] | Floats) -> float:
    """Steps [seeds], None or inf where not reached -> median; inf unless over half reached it.

    The runs that did not reach the target count. A median over the others would make a rule that
    fails often look quick.
    """
    counted = _censored(steps)
    return float(np.median(counted)) if counted.size else np.inf


def performance_profile(
    problems: Mapping[str, Mapping[str, float | None]],
) -> tuple[Floats, dict[str, Floats]]:
    """``{problem: {rule: steps}}`` -> tau [points] and ``{rule: rho [points]}``.

    rho(tau) is the fraction of problems that the rule solves in at most tau times the steps of the
    quickest rule there. None, NaN or inf: not solved; a problem that no rule solves stays in the
    count. tau are all ratios at which a rho rises, from 1 on; rho is constant between them. Dolan &
    More (2002), Mathematical Programming 91.
    """
    rules = list(next(iter(problems.values()), {}))
    for problem, of_rules in problems.items():
        if set(of_rules) != set(rules):
            raise ValueError(
                f"performance_profile: problem {problem!r} has rules {', '.join(of_rules)},"
                f" expected the same in every problem: {', '.join(rules)}"
            )
    if not rules:
        return np.ones(1), {}
    steps = np.stack([_censored([of_rules[r] for r in rules]) for of_rules in problems.values()])
    if (steps <= 0).any():
        raise ValueError(f"performance_profile: steps are {steps.min():g}, expected > 0")
    quickest = steps.min(1, keepdims=True)
    solved = np.isfinite(steps)
    ratios = np.divide(steps, quickest, out=np.full_like(steps, np.inf), where=solved)
    tau = np.unique(np.append(ratios[solved], 1.0))
    rho = (ratios[:, :, None] <= tau).mean(0)
    return tau, dict(zip(rules, rho, strict=True))


# --- inside --------------------------------------------------------------------------------------


def _order(values: Sequence[Floats], better: Better, tie: Floats | None = None) -> list[int]:
    """Indices of the arrays: those with fewer diverged seeds first, then by mean, then by `tie`."""
    if better not in SIGN:
        raise ValueError(f"better is {better!r}, expected 'higher' or 'lower'")
    sign = -SIGN[better]
    means = [sign * _mean_of_finite(np.ravel(v), sign * np.inf) for v in values]
    ties = np.zeros(len(values)) if tie is None else tie
    return np.lexsort(np.asarray([ties, means, list(map(_diverged, values))], float)).tolist()


def _mean_of_finite(values: Floats, none: float) -> Floats:
    """Mean over the last axis of what is finite; `none` where nothing is."""
    finite = np.isfinite(values)
    total, count = np.where(finite, values, 0.0).sum(-1), finite.sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), none)


def _diverged(values: ArrayLike) -> int:
    """Number of seeds with a score that is not finite."""
    rows = floats(values)
    return int((~np.isfinite(rows.reshape(len(rows), -1))).any(1).sum())


def _diverged_as_worst(who: str, scores: Scores, better: Better) -> dict[str, Floats]:
    """Scores as [seeds, rows] of one shape, what is not finite one range below the worst."""
    arrays = {name: as_rows(who, name, values) for name, values in scores.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    first = next(iter(shapes), "")
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise ValueError(
                f"{who}: {name} has shape {shape}, expected that of {first}, {shapes[first]},"
                " because scores are paired by seed and row"
            )
    parts = [array[np.isfinite(array)] for array in arrays.values()]
    every = np.concatenate(parts) if parts else np.zeros(0)
    low, high = (every.min(), every.max()) if every.size else (0.0, 0.0)
    span = (high - low) or max(abs(low), 1.0)
    worst = low - span if better == "higher" else high + span
    return {name: np.where(np.isfinite(v), v, worst) for name, v in arrays.items()}


def _censored(steps: Sequence[float | None] | Floats) -> Floats:
    """Steps as floats; inf for None and NaN."""
    counted = np.asarray([np.inf if s is None else s for s in steps], float)
    return np.where(np.isnan(counted), np.inf, counted)
