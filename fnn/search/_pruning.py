"""Which points of a race go on: rules over what the race has measured so far."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fnn._base import as_count, check_range
from fnn.search._population import Mode

History = Mapping[str, np.ndarray]  # of each metric, [n keys, points, epochs so far]
Prune = Callable[[History], Any]  # -> bool [points], which of them go on


@dataclass(frozen=True)
class SuccessiveHalving:
    """history -> bool [points]: after `first` epochs the best 1/`factor` of the points go on.

    They are cut again to 1/`factor` after `first` * `factor` epochs, after `first` * `factor`^2,
    and so on, and at least one goes on. Of p points, floor(p / factor^k) are left after k cuts. The
    best are those with the best mean over the keys of `monitor` at the last epoch; NaN and infinity
    are the worst. `mode` "min": small values are good; "max": large ones. A cut that is due between
    two rungs is made at the next rung.

    Source: Jamieson & Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter
    Optimization (AISTATS 2016).
    """

    monitor: str
    factor: int = 3
    mode: Mode = "min"
    first: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        as_count("SuccessiveHalving", "factor", self.factor, least=2)
        as_count("SuccessiveHalving", "first", self.first)
        _check_mode("SuccessiveHalving", self.mode)

    def __call__(self, history: History) -> np.ndarray:
        """The rule; see the class."""
        costs = _last_costs(history, self.monitor, self.mode)
        points, epochs = history[self.monitor].shape[1:]
        cuts, rung = 0, self.first
        while rung <= epochs:
            cuts, rung = cuts + 1, rung * self.factor
        going = np.zeros(points, bool)
        best_first = np.argsort(costs.mean(axis=0), kind="stable")
        going[best_first[: max(1, points // self.factor**cuts)]] = True
        return going


@dataclass(frozen=True)
class Wilcoxon:
    """history -> bool [points]: a point is dropped when it is worse than the best, paired by key.

    The best point has the best mean over the keys of `monitor` at the last epoch. Each other point
    is compared with it by a Wilcoxon signed-rank test of the differences over the keys, one-sided,
    zeros split between both sides. If the test's p is below `p`, the point is dropped. `mode`
    "min": small values are good; "max": large ones. NaN and infinity are worse than any number.

    With n keys the test's least p is 2^-n: nothing is dropped by 3 keys or fewer at `p` 0.1, by 4
    or fewer at 0.05. `p` holds for one comparison at one rung. It is not corrected for the number
    of points and rungs, so a good point is dropped more often than that.

    The rule is Optuna's WilcoxonPruner, at each rung; the test is scipy.stats.wilcoxon.
    """

    monitor: str
    p: float = 0.1
    mode: Mode = "min"

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_range("Wilcoxon", "p", self.p, 0, upto=1, above=True)
        _check_mode("Wilcoxon", self.mode)

    def __call__(self, history: History) -> np.ndarray:
        """The rule; see the class."""
        costs = _last_costs(history, self.monitor, self.mode)
        best = costs[:, costs.mean(axis=0).argmin()]
        # What is not finite is one rank above all others, and no difference to its like.
        largest = np.abs(costs[np.isfinite(costs)]).max(initial=0.0)
        costs, best = (np.where(np.isfinite(c), c, 4 * largest + 1) for c in (costs, best))
        return np.array([_p_of_worse(cost - best) >= self.p for cost in costs.T])


def _p_of_worse(differences: np.ndarray) -> float:
    """The p that these are positive by chance."""
    if not differences.any():  # SciPy has no p for one zero
        return 1.0
    from scipy import stats  # slow to import

    found: Any = stats.wilcoxon(differences, alternative="greater", zero_method="zsplit")
    return float(found.pvalue)


def _last_costs(history: History, monitor: str, mode: Mode) -> np.ndarray:
    """The last values [n, points], so that less is better and what is not finite is infinity."""
    last = np.asarray(history[monitor][..., -1], np.float64)
    last = np.where(np.isinf(last), np.nan, np.clip(last, -1e300, 1e300))  # so no sum overflows
    return np.where(np.isfinite(last), last if mode == "min" else -last, np.inf)


def _check_mode(who: str, mode: str) -> None:
    if mode not in ("min", "max"):
        raise ValueError(f"{who}: mode is {mode!r}, expected 'min' or 'max'")
