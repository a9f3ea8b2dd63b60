"""What varies in a population: a grid, or points; and its members, in order."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from jax.core import Tracer

from fnn._base import as_count, check_keys, number_of

Point = dict[str, Any]  # a value for each name
Scale = Literal["linear", "log", "log1m"]


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, for `sample`.

    `scale` is how they are spaced: "linear"; "log", evenly in log(value), for rates; "log1m",
    evenly in log(1 - value), for decays near 1 such as 0.9, 0.99, 0.999.
    """

    low: float
    high: float
    scale: Scale = "linear"

    def __post_init__(self) -> None:
        """Check the range."""
        ends = number_of(self.low), number_of(self.high)
        if None in ends or not all(map(math.isfinite, ends)) or not ends[0] < ends[1]:  # type: ignore[operator,arg-type]
            raise ValueError(
                f"Range: {self.low} to {self.high}, expected two finite numbers, the smaller first"
            )
        if self.scale not in ("linear", "log", "log1m"):
            raise ValueError(f"Range: scale is {self.scale!r}, expected 'linear', 'log' or 'log1m'")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"Range: low is {self.low}, expected > 0 on a log scale")
        if self.scale == "log1m" and self.high >= 1:
            raise ValueError(f"Range: high is {self.high}, expected < 1 on a log1m scale")

    def at(self, fraction: float) -> float:
        """The number at this fraction of the way, 0 to 1, on the scale."""
        low, high, rest = float(self.low), float(self.high), 1 - fraction
        if self.scale == "linear":
            value = rest * low + fraction * high
        elif self.scale == "log":
            value = math.exp(rest * math.log(low) + fraction * math.log(high))
        else:
            value = -math.expm1(rest * math.log1p(-low) + fraction * math.log1p(-high))
        return min(max(value, low), high)  # rounding leaves the range at its ends


class Static:
    """Values that shape the program, one program for each: ``Static(32, 64)`` for a batch size.

    A run receives them as they are, not traced. Words, tuples and functions are static anyway;
    numbers are traced unless they stand in a `Static`.
    """

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __repr__(self) -> str:
        return f"Static{self.values}"


def sample(
    space: Mapping[str, Any],
    count: int,
    *,
    how: Literal["sobol", "random"] = "sobol",
    seed: int = 0,
) -> list[Point]:
    """{name: Range, or values to choose from} -> `count` points, each {name: a value}.

    "sobol": scrambled Sobol points, which fill the space more evenly than chance does; `count` is
    best a power of 2. "random": independent uniform draws. The same seed gives the same points.
    """
    from scipy.stats import qmc  # slow to import

    count = as_count("sample", "count", count)
    seed = as_count("sample", "seed", seed, least=0)
    if not isinstance(space, Mapping) or not space:
        raise TypeError(
            f"sample: space is {space!r:.60}, expected a dict such as"
            ' {"learning_rate": Range(1e-4, 1, "log")}'
        )
    if how not in ("sobol", "random"):
        raise ValueError(f"sample: how is {how!r}, expected 'sobol' or 'random'")
    choices = {name: to_choose("sample", name, values) for name, values in space.items()}
    rng = np.random.default_rng(seed)
    if how == "sobol":
        engine = qmc.Sobol(len(space), seed=rng)  # pyright: ignore[reportCallIssue], named rng from SciPy 1.15 on
        drawn = engine.random_base2(math.ceil(math.log2(count)))[:count]
    else:
        drawn = rng.random((count, len(space)))
    return [
        {
            name: choice.at(float(fraction))
            if isinstance(choice, Range)
            else choice[min(int(fraction * len(choice)), len(choice) - 1)]
            for (name, choice), fraction in zip(choices.items(), fractions, strict=True)
        }
        for fractions in drawn
    ]


def to_choose(who: str, name: str, values: Any) -> Range | list[Any]:
    """A range as it is, else the list of values, each in a `Static` if they came in one."""
    if isinstance(values, Range):
        return values
    if isinstance(values, Static):
        return [Static(value) for value in values.values]
    return _listed(who, name, values)


def _listed(who: str, name: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes, Range)) or not isinstance(
        values, (Sequence, np.ndarray, Array)
    ):
        advice = "; a range is for fnn.search.sample" if isinstance(values, Range) else ""
        raise TypeError(f"{who}: {name} is {values!r:.60}, expected a list of values{advice}")
    if not len(values):
        raise ValueError(f"{who}: {name} has no value, expected at least one")
    return list(values)


@dataclass(frozen=True)
class Plan:
    """Every key at every point. Members are numbered key by key, the points of a key in order."""

    keys: Array  # [n]
    axes: dict[str, list[Any]]  # behind the axis of the keys
    points: list[Point]  # in the order of the axes, the last of them fastest
    static: frozenset[str]  # names whose values shape the program

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes: of the keys, then of the others."""
        return (self.keys.shape[0], *map(len, self.axes.values()))

    def program(self, point: Point) -> tuple[tuple[str, Any], ...]:
        """What of the point shapes its program; hashable if the values are."""
        return tuple((name, value) for name, value in point.items() if name in self.static)

    def key_of(self, member: int) -> int:
        """The number of a member's key."""
        return member // len(self.points)

    @property
    def members(self) -> int:
        """How many there are."""
        return self.keys.shape[0] * len(self.points)

    @property
    def named_axes(self) -> dict[str, list[Any]]:
        """All axes, each with its values; those of "key" are the numbers of the keys."""
        return {"key": list(range(self.keys.shape[0]))} | self.axes


def plan_of(
    who: str,
    keys: Any,
    grid: Mapping[str, Any] | None,
    points: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None,
) -> Plan:
    """The members of a population, checked; `who` is the function that messages name.

    `points` is a list of dicts, or a dict of lists of one length.
    """
    if grid is not None and points is not None:
        raise TypeError(f"{who}: grid and points came, expected one of them")
    check_distinct_keys(who, keys)
    if points is None:
        if not isinstance(grid or {}, Mapping):
            raise TypeError(
                f"{who}: grid is a {type(grid).__name__}, expected a dict such as"
                ' {"learning_rate": [0.1, 0.2]}'
            )
        listed = {n: _listed_or_static(who, n, v) for n, v in (grid or {}).items()}
        axes = {name: [bare_value(value) for value in values] for name, values in listed.items()}
        rows = [dict(zip(listed, row, strict=True)) for row in itertools.product(*listed.values())]
    else:
        rows = _rows(who, points)
        axes = {"point": list(range(len(rows)))}
    for name, value in itertools.chain.from_iterable(row.items() for row in rows):
        _check_value(who, name, value)
    static = frozenset(name for name in rows[0] if any(shapes_program(row[name]) for row in rows))
    bare = [{name: bare_value(value) for name, value in row.items()} for row in rows]
    return Plan(keys, axes, bare, static)


def _listed_or_static(who: str, name: str, values: Any) -> list[Any]:
    if isinstance(values, Static):
        return [Static(value) for value in _listed(who, name, values.values)]
    return _listed(who, name, values)


def _rows(who: str, points: Any) -> list[Point]:
    if isinstance(points, Mapping) and points:
        listed = {name: _listed_or_static(who, name, v) for name, v in points.items()}
        sizes = {name: len(values) for name, values in listed.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"{who}: points have {sizes} values, expected as many of each")
        return [dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)]
    if not isinstance(points, Sequence) or isinstance(points, str) or not points:
        raise TypeError(f"{who}: points is {points!r:.60}, expected a list of dicts")
    for i, point in enumerate(points):
        if not isinstance(point, Mapping):
            raise TypeError(f"{who}: point {i} is {point!r:.60}, expected a dict")
        if point.keys() != points[0].keys():
            raise ValueError(
                f"{who}: point {i} has {sorted(point)}, expected the names of point 0,"
                f" {sorted(points[0])}"
            )
    return [{name: point[name] for name in points[0]} for point in points]


def _check_value(who: str, name: str, value: Any) -> None:
    if isinstance(value, Range):
        raise TypeError(
            f"{who}: {name} is {value}, expected a value; fnn.search.sample draws points of ranges"
        )
    if isinstance(value, Static) and len(value.values) != 1:
        raise TypeError(f"{who}: {name} is {value} at a point, expected one value in it")


def bare_value(value: Any) -> Any:
    """The value without its `Static`."""
    return value.values[0] if isinstance(value, Static) else value


def shapes_program(value: Any) -> bool:
    """Whether a value shapes the program: it stands in a `Static`, or is no number and no array."""
    if isinstance(value, Static):
        return True
    if isinstance(value, Array):
        return False
    return not isinstance(value, (bool, int, float, complex, np.generic, np.ndarray))


def check_distinct_keys(who: str, keys: Any) -> None:
    """An error unless these are keys [n], all different."""
    if isinstance(keys, Tracer):
        raise TypeError(
            f"{who}: keys are traced, expected values: inside jit and vmap use fnn.sweep"
        )
    typed = check_keys(who, keys)
    data = np.asarray(jax.random.key_data(keys) if typed else keys)
    different = np.unique(data.reshape(len(data), -1), axis=0, return_index=True)[1]
    if len(different) < len(data):
        twice = min(set(range(len(data))) - set(different.tolist()))
        raise ValueError(
            f"{who}: key {twice} is the same as one before it, expected {len(data)} different keys;"
            " runs of the same key are the same run"
        )
