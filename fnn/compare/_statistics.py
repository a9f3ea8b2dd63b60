"""Statistics of scores [seeds, rows]: intervals, paired differences, corrections, profiles.

Seeds and test rows are both samples: other seeds and other rows would have given other scores. All
seeds see the same rows, so the two are crossed. A score is modelled as

    score[s, r] = mean + seed[s] + row[r] + rest[s, r],    three independent random terms.

S, R and E are the mean squares of the seeds, the rows and the rest in the analysis of variance of a
seeds x b rows. The mean's variance is (S + R - E) / (a b). It has two parts, each with an interval
of its own by Student's t:

    of the seeds: half_s = t[a - 1] sqrt(S / (a b))
    of the rows:  half_r = t[b - 1] sqrt(max(R - E, 0) / (a b))

(with fewer rows than seeds E is taken from S instead). The interval of the mean is

    mean +- sqrt(half_s^2 + half_r^2),

the method of variance estimates recovery, MOVER (Zou & Donner 2008, Statistics in Medicine 27). A
p-value is the level at which this interval ends at 0. The interval is never narrower than the rest
alone would make it, half = t[(a - 1) (b - 1)] sqrt(E / (a b)): the means of a few seeds may be
equal by chance, above all accuracies.

Simulations chose this method, 2 to 10 seeds, 30 to 360 rows, normal terms of nine sizes. How often
an interval misses the true mean (promised: 5 % and, as corrections for many pairs need, 0.24 %):

    this method                                     0.6 to 5.3 %     0.00 to 0.30 %
    Student's t, Satterthwaite's degrees of freedom 1.1 to 12 %      0.00 to 5.5 %
    percentile bootstrap over seeds and rows        0.5 to 17 %      (5 seeds or more)
    Student's t over the means of the seeds         5 to 52 %        it leaves out the rows

From 5 seeds on this method misses 1.7 to 5.3 %. tests/compare/test_statistics.py measures again.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
else:  # `import fnn` loads no module of NumPy's that jax does not
    ArrayLike, NDArray = Any, np.ndarray

Better = Literal["higher", "lower"]
Scores = Mapping[str, ArrayLike]  # of each rule, [seeds, rows] or [seeds]
Floats = NDArray[np.float64]

ALPHA = 0.05  # of `RULE_FOR_BETTER`
RULE_FOR_BETTER = (
    "A rule is better than another if its mean test score over fresh seeds is better and the"
    " two-sided p-value of their difference, paired by seed and by test row, with both seeds and"
    " test rows taken as random, is at most 0.05 after Holm's correction over all pairs of rules."
)
FEW_ERRORS = 3.0  # wrong rows of a network: too few to see whether the networks share them


class Interval(NamedTuple):
    """A mean, and the ends of its interval (NaN if nothing can be said)."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of a - b, the ends of its interval, and the two-sided p-value of 'no difference'."""

    difference: float
    low: float
    high: float
    p: float


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
    verdict: Literal["better", "not separable", "worse"]


class Inclusion(NamedTuple):
    """Whether `rule` does not lose to `contains`; `difference` is rule - contains."""

    rule: str
    contains: str
    holds: bool
    difference: float


def two_level_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Values [seeds, rows] or [seeds] -> mean and its interval over seeds and rows.

    - Two seeds and two rows or more: as the module's docstring says.
    - One row, or [seeds]: Student's t over the seeds.
    - One seed: Student's t over the rows; other seeds are then not covered.
    - One value: low and high are NaN.
    - A value that is not finite: mean, low and high are NaN.

    If all values of several rows are 0 or 1 they are taken for wrong and right, and the rows' part
    is Wilson's interval: the whole stays within [0, 1] and keeps a width at a mean of 0 or 1. Its
    number of rows is the effective one, mean (1 - mean) / the rows' part of the variance. If the
    networks are wrong, or right, on fewer than 3 rows on average, this is at most the number of
    rows: so few rows do not tell whether the networks err on the same ones. In simulations, with
    accuracies of 0.9 to 0.99, 2 to 10 seeds and 30 to 360 rows, the 95 % interval held the true
    accuracy in 93 to 100 % of cases.
    """
    rows = _as_rows("two_level_interval", "values", values)
    mean = float(rows.mean()) if np.isfinite(rows).all() else np.nan
    if rows.size == 1 or np.isnan(mean):
        return Interval(mean, np.nan, np.nan)
    ways = _parts_of_variance(rows)
    if rows.shape[1] > 1 and np.isin(rows, (0, 1)).all():
        return _of_proportion(rows, mean, ways[0], 1 - level)
    half = _half(1 - level, *ways)
    return Interval(mean, mean - half, mean + half)


def paired_two_level(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Difference:
    """A and b [seeds, rows] or [seeds], paired by seed and row -> mean of a - b, interval, p.

    The interval and p are those of the module's docstring, for the values a - b. p is 1 if a and b
    are equal everywhere, 0 if they differ by the same everywhere. With fewer than 2 seeds p is 1:
    one seed says nothing of the spread between seeds, whatever the number of rows. NaN if a value
    is not finite.
    """
    a, b = (_as_rows("paired_two_level", n, v) for n, v in (("a", a), ("b", b)))
    if a.shape != b.shape:
        raise ValueError(
            f"paired_two_level: b has shape {b.shape}, expected that of a, {a.shape}, because"
            " values are paired by seed and row"
        )
    differences = np.subtract(a, b, out=np.zeros_like(a), where=a != b)  # inf - inf is no tie
    if not np.isfinite(differences).all():
        return Difference(np.nan, np.nan, np.nan, np.nan)
    return _of_differences(differences, level)


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
    return [names[i] for i in _order([_as_rows("ranking", n, scores[n]) for n in names], better)]


def best_trial(valid: ArrayLike, better: Better, loss: ArrayLike | None = None) -> int:
    """Validation scores [trials, seeds] -> index of the trial with the best mean.

    A trial with diverged runs (not finite) comes after all trials with fewer. A tie: the lower mean
    of `loss` [trials, seeds], then the first.
    """
    valid = _floats(valid)
    tie = None if loss is None else _mean_of_finite(_floats(loss), np.inf)
    return int(_order(list(valid), better, tie)[0])


def compare_all(scores: Scores, better: Better, a: str | None = None) -> list[Comparison]:
    """Test scores of each rule -> rule `a` (the best by `ranking` if None) against each other.

    The others come in the order of `ranking`. Holm's correction is over all pairs of rules, not
    only those with `a`: the best is chosen from the same scores, and correcting for fewer pairs
    would call equal rules different too often. Any other `a` may therefore be looked at too.

    A diverged run counts as one whole range (best - worst finite score of all rules) below the
    worst. Then difference, low and high are NaN, and p and the verdict remain.
    """
    order = ranking(scores, better)
    first = order[0] if a is None else a
    if first not in order:
        raise ValueError(f"compare_all: a is {a!r}, expected one of: {', '.join(order)}")
    filled = _diverged_as_worst("compare_all", scores, better)
    pairs = list(combinations(order, 2))
    results = {(x, y): _of_differences(filled[x] - filled[y]) for x, y in pairs}
    corrected = dict(zip(pairs, holm([r.p for r in results.values()]), strict=True))
    sign = 1 if better == "higher" else -1

    def against(b: str) -> Comparison:
        forward = (first, b) in results
        pair = (first, b) if forward else (b, first)
        difference, low, high, p = results[pair]
        if not forward:
            difference, low, high = -difference, -high, -low
        p_corrected = float(corrected[pair])
        verdict = "not separable"
        if p_corrected <= ALPHA:
            verdict = "better" if sign * difference > 0 else "worse"
        if _diverged(scores[first]) or _diverged(scores[b]):
            difference = low = high = np.nan
        return Comparison(first, b, difference, low, high, p, p_corrected, verdict)

    return [against(b) for b in order if b != first]


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
    results = [_of_differences(filled[r] - filled[c]) for r, c in pairs]
    sign = 1 if better == "higher" else -1
    return [
        Inclusion(
            *pair,
            holds=bool(p > ALPHA or sign * result.difference >= 0),
            difference=np.nan if any(_diverged(scores[n]) for n in pair) else result.difference,
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


def expected_best_after(
    valid: ArrayLike,
    better: Better,
    of: ArrayLike | None = None,
    worst: float | None = None,
) -> Floats:
    """Scores [trials] -> [trials]: expected best after k = 1, 2, ... of these trials.

    The mean over all ways to draw k of the n trials without replacement: the i-th score from the
    worst is the best of k with probability C(i - 1, k - 1) / C(n, k). Nothing is drawn. `of` are
    the scores [trials] that are averaged, for instance test scores of the trials that `valid`
    chooses; default `valid`. Of equal trials the first is chosen.

    A score that is not finite, or worse than `worst`, counts as `worst`; default the worst finite
    score. To compare rules give all the same `worst`, such as the score before training. NaN if
    there is no finite score and no `worst`. Dodge et al. (2019), arXiv 1909.03004, with
    replacement; Sivaprasad et al. (2020), arXiv 1910.11758.
    """
    sign = 1 if better == "higher" else -1
    chosen_by = sign * np.asarray(valid, float)  # higher is better from here on
    averaged = chosen_by if of is None else sign * np.asarray(of, float)
    if chosen_by.ndim != 1 or chosen_by.shape != averaged.shape:
        raise ValueError(
            f"expected_best_after: valid and of have shapes {chosen_by.shape} and {averaged.shape},"
            " expected [trials]"
        )
    if chosen_by.size == 0:
        return np.zeros(0)
    chosen_by = np.where(np.isfinite(chosen_by), chosen_by, -np.inf)
    finite = averaged[np.isfinite(averaged)]
    bound = sign * worst if worst is not None else finite.min() if finite.size else np.nan
    averaged = np.where(np.isfinite(averaged), np.maximum(averaged, bound), bound)
    n = len(chosen_by)
    averaged = averaged[np.lexsort((-np.arange(n), chosen_by))]  # from the worst to the best
    k, i = np.arange(1, n + 1)[:, None], np.arange(1, n)[None]
    ratios = np.maximum(i - k + 1, 0) / i  # probability of the i-th over that of the one above it
    above = np.cumprod(ratios[:, ::-1], axis=1)[:, ::-1]
    probability = k / n * np.concatenate([above, np.ones((n, 1))], axis=1)
    return sign * (probability @ averaged)


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

TOO_LARGE = 1e150  # its square is no number of float64: counts as infinite


def _as_rows(who: str, argument: str, values: ArrayLike) -> Floats:
    """Values as float64 [seeds, rows]; [seeds] has one row."""
    array = _floats(values)
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(
            f"{who}: {argument} has shape {array.shape}, expected [seeds, rows] or [seeds]"
        )
    return array.reshape(len(array), -1)


def _floats(values: ArrayLike) -> Floats:
    array = np.asarray(values, np.float64)
    return np.where(np.abs(array) > TOO_LARGE, np.copysign(np.inf, array), array)


def _of_differences(differences: Floats, level: float = 0.95) -> Difference:
    """Finite differences [seeds, rows] -> their mean, its interval and p."""
    mean = float(differences.mean())
    if differences.size == 1:
        return Difference(mean, np.nan, np.nan, 1.0)
    ways = _parts_of_variance(differences)
    half = _half(1 - level, *ways)
    p = 1.0 if len(differences) < 2 else _two_sided(abs(mean), *ways)
    return Difference(mean, mean - half, mean + half, p)


class _Part(NamedTuple):
    """A part of the variance of the mean, and its degrees of freedom."""

    variance: float
    freedom: int


Parts = Sequence[_Part]


def _parts_of_variance(values: Floats) -> tuple[Parts, Parts]:
    """Values [seeds, rows], at least two -> parts of seeds and rows; that of the rest alone."""
    a, b = values.shape
    if min(a, b) == 1:
        n = values.size
        return [_Part(float(values.var(ddof=1)) / n, n - 1)], []
    S = float(b * values.mean(1).var(ddof=1))
    R = float(a * values.mean(0).var(ddof=1))
    rest = float(values.var()) * a * b - (a - 1) * S - (b - 1) * R
    E = max(rest, 0.0) / ((a - 1) * (b - 1))
    if b >= a:  # taken from the part with more degrees of freedom, which is known better
        R = max(R - E, 0.0)
    else:
        S = max(S - E, 0.0)
    both = [_Part(S / (a * b), a - 1), _Part(R / (a * b), b - 1)]
    return both, [_Part(E / (a * b), (a - 1) * (b - 1))]


def _half(alpha: float, *ways: Parts) -> float:
    """Half the width of the widest of the intervals that miss the mean with probability alpha."""
    from scipy import special  # slow to import

    def squared(parts: Parts) -> float:
        return sum(special.stdtrit(p.freedom, alpha / 2) ** 2 * p.variance for p in parts)

    return math.sqrt(max(map(squared, ways)))


def _two_sided(size: float, *ways: Parts) -> float:
    """The largest alpha at which half the width of one of the intervals is `size`."""
    return 1.0 if size == 0 else max(_p(size, parts) for parts in ways)


def _p(size: float, parts: Parts) -> float:
    """The alpha at which half the width is `size`; 0 if nothing varies."""
    from scipy import optimize, special

    variance = sum(part.variance for part in parts)
    if variance == 0:
        return 0.0
    # Between the p-values that either part's degrees of freedom would give to the whole variance.
    t = size / math.sqrt(variance)
    ends = [2 * special.stdtr(part.freedom, -t) for part in parts if part.variance > 0]
    low, high = (math.log(max(end, 1e-100)) for end in (min(ends), max(ends)))

    def excess(log_alpha: float) -> float:
        return math.log(_half(math.exp(log_alpha), parts) / size)

    if excess(low) > 0 > excess(high):
        high = optimize.root_scalar(excess, bracket=(low, high), xtol=1e-10).root
    return min(math.exp(high), 1.0)


def _of_proportion(rows: Floats, mean: float, parts: Parts, alpha: float) -> Interval:
    """The interval with Wilson's for the part of the rows."""
    a, b = rows.shape
    *of_seeds, of_rows = parts
    spread = mean * (1 - mean)
    most = b if b * min(mean, 1 - mean) < FEW_ERRORS else a * b
    n = min(spread / of_rows.variance, most) if of_rows.variance > 0 else most
    t2 = _half(alpha, [_Part(1.0, of_rows.freedom)]) ** 2
    centre = (mean + t2 / (2 * n)) / (1 + t2 / n)
    half = math.sqrt(t2 * (spread / n + t2 / (4 * n * n))) / (1 + t2 / n)
    half_s = _half(alpha, of_seeds)
    low = mean - math.hypot(mean - (centre - half), half_s)
    high = mean + math.hypot(centre + half - mean, half_s)
    return Interval(mean, max(low, 0.0), min(high, 1.0))


def _order(values: Sequence[Floats], better: Better, tie: Floats | None = None) -> NDArray[np.intp]:
    """Indices of the arrays: those with fewer diverged seeds first, then by mean, then by `tie`."""
    if better not in ("higher", "lower"):
        raise ValueError(f"better is {better!r}, expected 'higher' or 'lower'")
    sign = -1 if better == "higher" else 1
    diverged = [_diverged(v) for v in values]
    means = [sign * _mean_of_finite(np.ravel(v), sign * np.inf) for v in values]
    ties = np.zeros(len(values)) if tie is None else tie
    return np.lexsort(np.asarray([ties, means, diverged], float))


def _mean_of_finite(values: Floats, none: float) -> Floats:
    """Mean over the last axis of what is finite; `none` where nothing is."""
    finite = np.isfinite(values)
    total, count = np.where(finite, values, 0.0).sum(-1), finite.sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), none)


def _diverged(values: ArrayLike) -> int:
    """Number of seeds with a score that is not finite."""
    rows = _floats(values)
    return int((~np.isfinite(rows.reshape(len(rows), -1))).any(1).sum())


def _diverged_as_worst(who: str, scores: Scores, better: Better) -> dict[str, Floats]:
    """Scores as [seeds, rows] of one shape, what is not finite one range below the worst."""
    arrays = {name: _as_rows(who, name, values) for name, values in scores.items()}
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
