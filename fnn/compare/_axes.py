"""The axes of charts: where a score is drawn, and with which ticks."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fnn.compare._charts import FAR, Chart, values_of
from fnn.compare._reading import Document, Score, score_of


class Axis(NamedTuple):
    """An axis of scores: plotted is `place(value)`, on a log or a linear scale.

    Of percentages that are better high, the error 1 - score is plotted, downwards: on its log
    scale 90, 99 and 99.9 % are evenly spaced. `ticks` are (place, label).
    """

    place: Callable[[float | None], float | None]
    reverse: bool
    log: bool
    ticks: list[tuple[float, str]] | None
    linear_ticks: list[tuple[float, str]] | None


_LOG_TICKS = (10.0, 50.0, 80.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.8, 99.9, 99.95, 99.98, 99.99)


def y_axis(document: Document, chart: Chart) -> Axis:
    """The y axis of a chart."""
    if chart.y_score:
        return score_axis(score_of(document), values_of(chart))
    return Axis(lambda value: value, False, chart.y_log, None, None)


def score_axis(score: Score, values: Sequence[float]) -> Axis:
    """The axis for these values."""
    if score.unit == "%" and score.better == "higher" and all(0 <= v <= 1 for v in values):
        errors = [1 - v for v in values if v < 1]
        least = min(errors, default=0.01) / 2

        def place(value: float | None) -> float | None:
            return None if value is None else max(1 - value, least)

        ends = 100 * min(values, default=0), 100 * max(values, default=1)
        even = _even_ticks(*ends)
        inside = [t for t in _LOG_TICKS if ends[0] <= t <= ends[1]]
        log, linear = (
            [(round(1 - t / 100, 10), f"{t:g}") for t in ticks]
            for ticks in (_LOG_TICKS if len(inside) > 2 else [t for t in even if t < 100], even)
        )
        return Axis(place, True, True, log, linear)
    positive = bool(values) and min(values) > 0
    far = positive and max(values) >= FAR * min(values)

    def scaled(value: float | None) -> float | None:
        return None if value is None else score.factor * value

    return Axis(scaled, False, far, None, None)


def _even_ticks(low: float, high: float) -> list[float]:
    """About five round percentages from below `low` to above `high`."""
    rough = max(high - low, 1e-3) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(d for d in (1, 2, 5, 10) if d * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(n * step, 10) for n in range(first, last + 1) if 0 <= n * step <= 100]


def x_places(chart: Chart, x: Sequence[float]) -> list[float]:
    """What is drawn for x: 1 - x on the scale log1m."""
    return [float(f"{1 - v:.6g}") for v in x] if chart.x_scale == "log1m" else list(x)
