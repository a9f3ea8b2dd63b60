"""The programs of a population: one for each combination of values that shape it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn._base import kept_with, weakly
from fnn.search._points import Plan, Point

Run = Callable[..., Any]


class Program(NamedTuple):
    """The members of a population that one program trains."""

    static: Point  # the values that shape it
    members: list[int]  # their numbers, in order
    columns: dict[str, np.ndarray]  # the values of these members that it computes with

    def rows(self, places: Sequence[int]) -> dict[str, np.ndarray]:
        """The values of some of the members, by their places in `members`."""
        return {name: values[np.asarray(places)] for name, values in self.columns.items()}


def programs_of(who: str, plan: Plan) -> list[Program]:
    """The programs, in the order of their first points."""
    groups: dict[Any, list[int]] = {}
    for at, point in enumerate(plan.points):
        groups.setdefault(_hashable(who, plan.program(point)), []).append(at)
    n, m = plan.keys.shape[0], len(plan.points)
    programs = []
    for static, points in groups.items():
        members = [key * m + at for key in range(n) for at in points]
        numbers = {name: [plan.points[at][name] for at in points] for name in plan.points[0]}
        columns = {
            name: np.concatenate([_as_numbers(who, name, numbers[name])] * n)
            for name in plan.points[0]
            if name not in plan.static
        }
        programs.append(Program(dict(static), members, columns))
    return programs


def _hashable(who: str, static: tuple[tuple[str, Any], ...]) -> Any:
    try:
        hash(static)
    except TypeError:
        name, value = next((n, v) for n, v in static if not _has_hash(v))
        raise TypeError(
            f"{who}: {name} has the value {value!r:.60}, which has no hash; expected such as a"
            " tuple, a word or a function"
        ) from None
    return static


def _has_hash(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _as_numbers(who: str, name: str, values: list[Any]) -> np.ndarray:
    """The values as JAX takes them: float32 and int32, unless 64 bits are switched on."""
    try:
        array = np.stack([np.asarray(value) for value in values])
    except ValueError:
        shapes = sorted({np.shape(value) for value in values})
        raise ValueError(f"{who}: {name} has values of shapes {shapes}, expected one shape") from None
    return np.asarray(jnp.asarray(array))


def bound(run: Run, static: Point, keep: Callable[[Any], Any] | None) -> Run:
    """run(key, **numbers) with the values that shape it; the same function whenever it is asked for.

    It does not hold `run`, so what is compiled for it lives as long as `run`.
    """
    if not static and keep is None:
        return run

    def make() -> Run:
        run_of, keep_of = weakly(run), weakly(keep)

        def one(key: Any, **numbers: Any) -> Any:
            result = run_of()(key, **static, **numbers)
            chosen = keep_of()
            return result if chosen is None else chosen(result)

        return one

    return kept_with((run, keep), ("bound", tuple(static.items())), make)


def alone(plan: Plan, run: Run, programs: Sequence[Program], number: int) -> Any:
    """What run returns for one member, as NumPy."""
    program = next(p for p in programs if number in p.members)
    at = program.members.index(number)
    key = plan.keys[plan.key_of(number)]
    numbers = {name: jnp.asarray(values[at]) for name, values in program.columns.items()}
    return jax.device_get(jax.jit(bound(run, program.static, None))(key, **numbers))
