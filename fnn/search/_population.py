"""What came out of many runs: values with named axes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from fnn._base import paths
from fnn.search._points import Point

Mode = Literal["min", "max"]


class BestPoint(NamedTuple):
    """The point with the best mean over the keys, and that mean's 95 % interval."""

    point: Point
    mean: float
    low: float  # Student's t over the keys; NaN with one key
    high: float
    values: np.ndarray  # [n], of each key
    members: list[int]  # their numbers, for `Population.replay`


@dataclass(frozen=True)
class Population:
    """Many runs and what they returned.

    `values`: what the runs returned, NumPy leaves [n, *axes, ...]. ``found["loss"]`` is
    ``found.values["loss"]``.
    `axes`: the axes by name, each with its values: "key", then those of the grid, or "point".
    `points`: the points, in the order of the axes behind "key".
    `done`: bool [n, *axes], which members have run. Of others floats are NaN, other numbers 0.
    `unfinished`: parts (i, n) of which members are missing, as `read_population` finds them.
    """

    values: Any
    axes: dict[str, list[Any]]
    points: list[Point]
    done: np.ndarray
    again: Callable[[int], Any] | None = field(default=None, repr=False)  # a member, run alone
    unfinished: Sequence[tuple[int, int]] = ()

    def __getitem__(self, name: str) -> Any:
        """The values of this name."""
        return self.values[name]

    def __repr__(self) -> str:
        """One line, without the arrays."""
        axes = ", ".join(f"{name} {len(values)}" for name, values in self.axes.items())
        named = ", ".join(path or "value" for path in paths(self.values))
        done = f"{self.done.sum()} of {self.done.size} runs done"
        if self.missing:
            done += f"; missing: {_ranges(self.missing)}"
        if self.unfinished:
            done += f", of part {', '.join(map(str, self.unfinished))}"
        return f"Population(axes: {axes}; {done}; values: {named})"

    @property
    def missing(self) -> list[int]:
        """The numbers of the members that have not run."""
        return np.flatnonzero(~self.done.ravel()).tolist()

    def best(self, name: str, mode: Mode | None = None) -> BestPoint:
        """The best point by the mean over the keys of a scalar that the runs returned.

        `name` is its path, as "loss" or "valid/loss". `mode` is "min" or "max"; by default "min"
        if "loss" or "error" is in the name. A point where a value is NaN, or where a member has not
        run, is never the best; ValueError if all are such points.
        """
        mode = mode or ("min" if any(word in name for word in ("loss", "error")) else "max")
        if mode not in ("min", "max"):
            raise ValueError(f"best: mode is {mode!r}, expected 'min' or 'max'")
        values = self._scalar("best", name).reshape(self.done.shape[0], -1)
        with np.errstate(invalid="ignore"):  # inf - inf
            means = np.where(self.done.reshape(values.shape), values, np.nan).mean(axis=0)
        if np.isnan(means).all():
            raise ValueError(f"best: {name} is NaN in a run of every point, or has not run")
        at = int(np.nanargmin(means) if mode == "min" else np.nanargmax(means))
        half = _half_of_interval(values[:, at])
        members = [key * values.shape[1] + at for key in range(values.shape[0])]
        mean = float(means[at])
        return BestPoint(
            _plain(self.points[at]), mean, mean - half, mean + half, values[:, at], members
        )

    def to_dataframe(self) -> Any:
        """A pandas DataFrame: a row for each member that has run.

        Columns: member, key, each name of the points, each scalar that the runs returned, under
        "returned/..." if a point has its name. Arrays are left out.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("to_dataframe: pandas is missing: pip install pandas") from error
        done = self.done.ravel()
        rows = np.flatnonzero(done)
        keys, points = np.divmod(rows, len(self.points))
        columns: dict[str, Any] = {"member": rows, "key": keys}
        for name in self.points[0]:
            columns[name] = [self.points[at][name] for at in points]
        for path, leaf in paths(self.values).items():
            if leaf.shape == self.done.shape:
                name, values = path or "value", leaf.ravel()[rows]
                wide = values.astype(np.float32) if values.dtype.kind == "V" else values  # bfloat16
                columns[f"returned/{name}" if name in columns else name] = wide
        return pandas.DataFrame(columns)

    def replay(self, member: int | Sequence[int]) -> Any:
        """All that the run of one member returns, run again alone: on a CPU bit for bit.

        `member` is its number, as in `BestPoint.members`, or its place on each axis. What `keep`
        left out is here too, as the whole history.
        """
        number = self.number(member)
        if self.again is None:
            raise ValueError("replay: this population was read from files, which hold no run")
        return self.again(number)

    def number(self, member: int | Sequence[int]) -> int:
        """The number of the member at this place on each axis; IndexError if there is none."""
        place = (member,) if isinstance(member, (int, np.integer)) else tuple(member)
        sizes = (self.done.size,) if len(place) == 1 else self.done.shape
        if len(place) != len(sizes) or not all(
            0 <= i < n for i, n in zip(place, sizes, strict=True)
        ):
            raise IndexError(
                f"replay: member is {member}, expected a number below {self.done.size}, or a place"
                f" on the axes {dict(zip(self.axes, self.done.shape, strict=True))}"
            )
        return int(np.ravel_multi_index(place, sizes))

    def _scalar(self, who: str, name: str) -> np.ndarray:
        found = {path or "value": leaf for path, leaf in paths(self.values).items()}
        scalars = [
            path
            for path, leaf in found.items()
            if leaf.shape == self.done.shape and leaf.dtype.kind != "c"
        ]
        if name not in scalars:
            raise ValueError(f"{who}: {name!r} is no scalar of the runs, expected one of {scalars}")
        return np.asarray(found[name], np.float64)


def contiguous(numbers: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Ascending numbers, cut where one is left out: 3 4 5, 8."""
    whole = np.asarray(numbers, np.int64)
    return np.split(whole, np.flatnonzero(np.diff(whole) != 1) + 1) if whole.size else []


def _ranges(numbers: Sequence[int]) -> str:
    """``members 3 to 5, 8``, the first of them."""
    ranges = contiguous(numbers)
    said = [f"{r[0]} to {r[-1]}" if len(r) > 1 else str(r[0]) for r in ranges[:4]]
    return f"members {', '.join(said)}{', ...' if len(ranges) > 4 else ''}"


def _plain(point: Point) -> Point:
    """The point with Python's numbers in place of NumPy's, which print worse."""
    return {n: v.item() if isinstance(v, np.generic) else v for n, v in point.items()}


def _half_of_interval(values: np.ndarray) -> float:
    """Half the width of the 95 % interval of the mean, by Student's t; NaN of one value."""
    from scipy import special  # slow to import

    n = len(values)
    if n < 2:
        return float("nan")
    with np.errstate(invalid="ignore"):
        return float(special.stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n))
