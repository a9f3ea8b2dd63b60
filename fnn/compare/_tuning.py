"""Axes of a search: their text form, the points of a grid, and Sobol points.

    learning_rate=0.001..1:log      a range, spaced evenly in log(value)
    b2=0.9..0.9999:log1m            a range, spaced evenly in log(1 - value): 0.9, 0.99, 0.999
    weight_decay=0..0.1             a range, spaced evenly
    b1=0.8,0.9,0.95                 values
    b1=0.9                          one value, the same in every trial

Every rule takes the axes in `RESERVED`; the others are hyperparameters of the rule.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fnn._base import as_count
from fnn.compare import _words
from fnn.compare._words import hint

WHO = f"{_words.WHO}: --tune"  # in messages
How = Literal["grid", "sobol"]
Point = dict[str, float]
SCALES = ("linear", "log", "log1m")
RESERVED = {
    "learning_rate": "the rate at its peak",
    "clip_norm": "largest norm of a gradient; larger ones are scaled down to it",
    "warmup": "fraction of all steps in which the rate rises from 0 to its peak",
    "final": "rate at the last step, as a fraction of the peak: 0 decays to zero, 1 is constant",
    "stable": "fraction of all steps after which the decay starts (trapezoid)",
}
_FRACTIONS = ("warmup", "final", "stable")
DIGITS = 6  # significant, of every point: what is printed by :g is what is run
NEAR = 0.05  # of a range: a Sobol point that is this close to an end is at its edge


@dataclass(frozen=True)
class Axis:
    """One hyperparameter and where it is searched: `low` .. `high` on `scale`, or `values`.

    Scales: "linear"; "log" spaces evenly in log(value); "log1m" spaces evenly in log(1 - value),
    for decay rates near 1. ``str(axis)`` is the text that `parse_axis` reads.
    """

    name: str
    low: float = math.nan
    high: float = math.nan
    scale: Literal["linear", "log", "log1m"] = "linear"
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the axis; one sentence says what came and what was expected."""
        ends = sorted(map(float, self.values)) or [float(self.low), float(self.high)]
        known = {"low": ends[0], "high": ends[-1], "values": tuple(ends) if self.values else ()}
        said = f"{WHO} {self}"
        for name, value in known.items():
            object.__setattr__(self, name, value)
        wrong = self._wrong()
        if wrong:
            raise ValueError(f"{said}: {wrong}")

    def _wrong(self) -> str:
        """What is wrong with the axis, as the end of a sentence."""
        name, low, high, finite = self.name, self.low, self.high, np.isfinite
        if self.values and not all(map(finite, self.values)):
            return "a value is not finite, expected numbers"
        if len(set(self.values)) < len(self.values):
            return "a value comes twice, expected different values"
        if not (finite(low) and finite(high)):
            return "an end of the range is not finite, expected numbers"
        if not self.values and low >= high:
            return "the range is empty, expected low < high"
        if self.scale not in SCALES:
            known = f"{', '.join(SCALES)}{hint(self.scale, SCALES)}"
            return f"unknown scale {self.scale!r}, expected one of: {known}"
        if self.scale == "log" and low <= 0:
            return f"starts at {low:g}, expected > 0 on a log scale"
        if self.scale == "log1m" and high >= 1:
            return f"ends at {high:g}, expected < 1 on a log1m scale"
        if name in _FRACTIONS and not 0 <= low <= high <= 1:
            return f"{name} is a fraction, expected within [0, 1]"
        if name in ("learning_rate", "clip_norm") and low <= 0:
            return f"{name} starts at {low:g}, expected > 0"
        return ""

    def __str__(self) -> str:
        if self.values:
            return f"{self.name}={','.join(map(_text, self.values))}"
        scale = "" if self.scale == "linear" else f":{self.scale}"
        return f"{self.name}={_text(self.low)}..{_text(self.high)}{scale}"

    def at(self, fraction: float) -> float:
        """The value at a fraction in [0, 1] of the axis, on its scale."""
        if self.values:
            return self.values[min(int(fraction * len(self.values)), len(self.values) - 1)]
        if fraction in (0, 1):  # the ends themselves, not what rounding makes of them
            return self.high if fraction else self.low
        low, high = self._scaled(self.low), self._scaled(self.high)
        x = low + fraction * (high - low)
        value = {"linear": x, "log": math.exp(x), "log1m": -math.expm1(x)}[self.scale]
        if self.scale == "log1m":  # 1 - value holds the digits; 15 decimals clear the rounding
            value = round(1 - _rounded(1 - value), 15)
        else:
            value = _rounded(value)
        return min(max(value, self.low), self.high)

    def fraction(self, value: float) -> float:
        """Where a value lies on the axis's scale: 0 at `low`, 1 at `high`."""
        if self.low == self.high:
            return 0.5
        low, high = self._scaled(self.low), self._scaled(self.high)
        return (self._scaled(value) - low) / (high - low)

    def _scaled(self, value: float) -> float:
        if self.scale == "log":
            return math.log(value)
        return math.log1p(-value) if self.scale == "log1m" else value


def parse_axis(text: str) -> Axis:
    """``name=low..high``, ``name=low..high:log``, ``:log1m`` or ``name=value,value`` -> Axis."""
    name, equals, rest = text.strip().partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ValueError(
            f"{WHO} {text}: expected name=low..high, name=low..high:log or name=value,value"
        )
    span, colon, scale = rest.partition(":")
    if ".." in span:
        low, high = (_number(text, part) for part in span.split("..", 1))
        return Axis(name, low, high, scale if colon else "linear")  # type: ignore[arg-type]
    if colon:
        raise ValueError(
            f"{WHO} {text}: values have no scale, expected name=value,value or"
            f" name=low..high:{scale or 'log'}"
        )
    return Axis(name, values=tuple(_number(text, part) for part in span.split(",")))


def check_names(axes: Sequence[Axis]) -> None:
    """ValueError if two axes have the same name."""
    seen: dict[str, Axis] = {}
    for axis in axes:
        if axis.name in seen:
            raise ValueError(
                f"{WHO} {axis}: {axis.name} is already tuned by {seen[axis.name]}, expected each"
                " name once"
            )
        seen[axis.name] = axis


def check_taken(axes: Sequence[Axis], rule: str, takes: Sequence[str]) -> None:
    """ValueError if a rule does not take a tuned name; `takes` are its own, without `RESERVED`."""
    known = [*RESERVED, *(name for name in takes if name not in RESERVED)]
    for axis in axes:
        if axis.name not in known:
            raise ValueError(
                f"{WHO} {axis}: {rule} does not take {axis.name}, expected one of:"
                f" {', '.join(known)}{hint(axis.name, known)}"
            )


def points(
    axes: Sequence[Axis], trials: int | None = None, how: How = "grid", seed: int = 0
) -> list[Point]:
    """Axes -> the points of `trials` trials, ``[{name: value}]``.

    "grid": every combination, the last axis quickest. Axes with values give all of them. The ranges
    share what is left of `trials` equally: n points each, ends included. ValueError if no whole n
    makes exactly `trials`, because every rule must get the same number. If `trials` is None, all
    axes must have values.

    "sobol": the first `trials` of Owen-scrambled Sobol points, the same for the same axes and
    `seed`, so that a search with more trials begins with the points of a smaller one. Axes with
    values get each of them about equally often.

    Each point is rounded to 6 significant digits (of 1 - value on a log1m scale).
    """
    check_names(axes)
    if how not in ("grid", "sobol"):
        raise ValueError(f"points: how is {how!r}, expected 'grid' or 'sobol'")
    if trials is not None:
        as_count("points", "trials", trials)
    if how == "grid":
        return _grid(axes, trials)
    if trials is None:
        raise ValueError("points: trials is None, expected a number of trials for Sobol points")
    if not axes:
        raise ValueError("points: axes is empty, expected at least one axis for Sobol points")
    from scipy.stats import qmc  # slow to import

    generator = np.random.default_rng(seed)  # the argument is called seed until SciPy 1.15
    sobol = qmc.Sobol(len(axes), scramble=True, seed=generator)  # pyright: ignore[reportCallIssue]
    unit = sobol.random_base2(max(trials - 1, 0).bit_length())[:trials]  # a power of 2 is balanced
    return [{a.name: a.at(float(u)) for a, u in zip(axes, row, strict=True)} for row in unit]


def edge(axes: Sequence[Axis], point: Point, how: How = "grid") -> list[str]:
    """Names of the point's values that are at an edge of their axis: beyond it may be better.

    Grid, and axes with values: the first or the last. Sobol: within 5 % of an end, on the axis's
    scale. Not an edge: the one value of an axis; 0, which nothing goes below; and 1 for warmup,
    final and stable, which are fractions.
    """

    def at_edge(axis: Axis) -> bool:
        if axis.low == axis.high:
            return False
        near = NEAR if how == "sobol" and not axis.values else 1e-9
        fraction = axis.fraction(point[axis.name])
        below = fraction <= near and axis.low != 0
        above = fraction >= 1 - near and not (axis.name in _FRACTIONS and axis.high == 1)
        return below or above

    return [axis.name for axis in axes if at_edge(axis)]


def point_text(point: Point) -> str:
    """``{"learning_rate": 0.01, "b1": 0.9}`` -> ``learning_rate=0.01 b1=0.9``; reads back."""
    return " ".join(f"{name}={_text(value)}" for name, value in point.items())


# --- inside --------------------------------------------------------------------------------------


def _grid(axes: Sequence[Axis], trials: int | None) -> list[Point]:
    listed = math.prod(len(a.values) for a in axes if a.values)
    ranges = [a for a in axes if not a.values]
    if trials is None and ranges:
        raise ValueError(
            f"points: trials is None, expected a number of trials for the range {ranges[0]}"
        )
    each = 1
    if trials is not None:
        most = trials // listed
        each = max(1, round(most ** (1 / len(ranges)))) if ranges else 1
        if listed * each ** len(ranges) != trials:
            raise ValueError(
                f"points: trials is {trials}, expected {_sizes(listed, len(ranges))} for a grid of"
                f" {' '.join(map(str, axes)) or 'no axes'}"
                + ("; how='sobol' takes any number" if axes else "")
            )
    ends = [0.5] if each == 1 else [i / (each - 1) for i in range(each)]
    marks = [a.values or [a.at(fraction) for fraction in ends] for a in axes]
    names = [a.name for a in axes]
    return [dict(zip(names, row, strict=True)) for row in itertools.product(*marks)]


def _sizes(listed: int, ranges: int) -> str:
    """How many points a grid can have, as words."""
    if not ranges:
        return f"{listed}"
    if ranges == 1:
        return f"a multiple of {listed}"
    return ", ".join(str(listed * n**ranges) for n in range(2, 6)) + ", ..."


def _number(text: str, part: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise ValueError(f"{WHO} {text}: {part!r} is not a number") from None


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _text(value: float) -> str:
    """The shortest text of a number that reads back."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))
