"""Scores [seeds, rows] -> the interval of their mean, and of a paired difference with its p.

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

From 5 seeds on this method misses 1.7 to 5.3 %. tests/compare/test_intervals.py measures again.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
else:  # `import fnn` loads no module of NumPy's that jax does not
    ArrayLike, NDArray = Any, np.ndarray

Floats = NDArray[np.float64]

FEW_ERRORS = 3.0  # wrong rows of a network: too few to see whether the networks share them
TOO_LARGE = 1e150  # its square is no number of float64: counts as infinite


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
    rows = as_rows("two_level_interval", "values", values)
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
    a, b = (as_rows("paired_two_level", n, v) for n, v in (("a", a), ("b", b)))
    if a.shape != b.shape:
        raise ValueError(
            f"paired_two_level: b has shape {b.shape}, expected that of a, {a.shape}, because"
            " values are paired by seed and row"
        )
    differences = np.subtract(a, b, out=np.zeros_like(a), where=a != b)  # inf - inf is no tie
    if not np.isfinite(differences).all():
        return Difference(np.nan, np.nan, np.nan, np.nan)
    return of_differences(differences, level)


def of_differences(differences: Floats, level: float = 0.95) -> Difference:
    """Finite differences [seeds, rows] -> their mean, its interval and p."""
    mean = float(differences.mean())
    if differences.size == 1:
        return Difference(mean, np.nan, np.nan, 1.0)
    ways = _parts_of_variance(differences)
    half = _half(1 - level, *ways)
    p = 1.0 if len(differences) < 2 else _two_sided(abs(mean), *ways)
    return Difference(mean, mean - half, mean + half, p)


def as_rows(who: str, argument: str, values: ArrayLike) -> Floats:
    """Values as float64 [seeds, rows]; [seeds] has one row."""
    array = floats(values)
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(
            f"{who}: {argument} has shape {array.shape}, expected [seeds, rows] or [seeds]"
        )
    return array.reshape(len(array), -1)


def floats(values: ArrayLike) -> Floats:
    """Values as float64; those whose squares would overflow count as infinite."""
    array = np.asarray(values, np.float64)
    return np.where(np.abs(array) > TOO_LARGE, np.copysign(np.inf, array), array)


# --- the parts of the variance ------------------------------------------------------------------


class _Part(NamedTuple):
    """A part of the variance of the mean, and its degrees of freedom."""

    variance: float
    freedom: int


_Way = Sequence[_Part]  # parts whose intervals are combined to one


def _parts_of_variance(values: Floats) -> tuple[_Way, _Way]:
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


def _half(alpha: float, *ways: _Way) -> float:
    """Half the width of the widest of the intervals that miss the mean with probability alpha."""
    from scipy import special  # slow to import

    def squared(parts: _Way) -> float:
        return sum(special.stdtrit(p.freedom, alpha / 2) ** 2 * p.variance for p in parts)

    return math.sqrt(max(map(squared, ways)))


def _two_sided(size: float, *ways: _Way) -> float:
    """The largest alpha at which half the width of one of the intervals is `size`."""
    return 1.0 if size == 0 else max(_p(size, parts) for parts in ways)


def _p(size: float, parts: _Way) -> float:
    """The alpha at which half the width is `size`; 0 if nothing varies."""
    from scipy import optimize, special

    variance = sum(part.variance for part in parts)
    if variance == 0:
        return 0.0
    # Between the p-values that either part's degrees of freedom would give to the whole variance.
    t = size / math.sqrt(variance)
    ends = [2 * special.stdtr(part.freedom, -t) for part in parts if part.variance > 0]
    if min(ends) > 1 - 1e-9:
        return float(max(ends))  # `size` is a rounding; near 1 the half width rounds to 0
    low, high = (math.log(max(end, 1e-100)) for end in (min(ends), max(ends)))

    def excess(log_alpha: float) -> float:
        return math.log(_half(math.exp(log_alpha), parts) / size)

    if excess(low) > 0 > excess(high):
        high = optimize.root_scalar(excess, bracket=(low, high), xtol=1e-10).root
    return min(math.exp(high), 1.0)


def _of_proportion(rows: Floats, mean: float, parts: _Way, alpha: float) -> Interval:
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
