"""The programs of a population: one for each combination of values that shape it."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn._base import kept_with, paths, weakly
from fnn.checkpoint import fingerprint_program
from fnn.search._points import Plan, Point

Run = Callable[..., Any]


class Program(NamedTuple):
    """The members of a population that one program trains."""

    static: Point  # the values that shape it
    members: list[int]  # their numbers, in order
    columns: dict[str, np.ndarray]  # the values of these members that it computes with

    def rows(self, places: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The values of some of the members, by their places in `members`."""
        return {name: values[np.asarray(places)] for name, values in self.columns.items()}


def programs_of(who: str, plan: Plan) -> list[Program]:
    """The programs, in the order of their first points."""
    groups: dict[Any, list[int]] = {}
    for at, point in enumerate(plan.points):
        static = _hashable(who, plan.program(point))
        groups.setdefault((static, _types(static)), []).append(at)
    n, m = plan.keys.shape[0], len(plan.points)
    programs = []
    for (static, _), points in groups.items():
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


def _types(static: tuple[tuple[str, Any], ...]) -> tuple[type, ...]:
    """True, 1 and 1.0 are equal, and three programs."""
    return tuple(type(value) for _, value in static)


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
        raise ValueError(
            f"{who}: {name} has values of shapes {shapes}, expected one shape"
        ) from None
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def bound(
    run: Run, static: Point, keep: Callable[[Any], Any] | None, mark: str | None = None
) -> Run:
    """run(key, **numbers) with the values that shape it; each time the same function.

    It does not hold `run`, so what is compiled for it lives as long as `run`. With another `mark`
    it is another function: if what `run` closes over has changed, it is compiled anew.
    """
    if not static and keep is None and mark is None:
        return run

    def make() -> Run:
        run_of, keep_of = weakly(run), weakly(keep)

        def one(key: Any, **numbers: Any) -> Any:
            result = run_of()(key, **static, **numbers)
            chosen = keep_of()
            return result if chosen is None else chosen(result)

        return one

    settings = tuple(static.items())
    return kept_with((run, keep), ("bound", mark, settings, _types(settings)), make)


def alone(plan: Plan, run: Run, programs: Sequence[Program], number: int) -> Any:
    """What run returns for one member, as NumPy."""
    program = next(p for p in programs if number in p.members)
    at = program.members.index(number)
    key = plan.keys[plan.key_of(number)]
    numbers = {name: jnp.asarray(values[at]) for name, values in program.columns.items()}
    return jax.device_get(jax.jit(bound(run, program.static, None))(key, **numbers))


# --- what a program computes, by tracing it -----------------------------------------------------


class Outline(NamedTuple):
    """What a program computes, and what it returns of one member."""

    mark: str  # of its operations and constants
    structure: Any
    leaves: dict[str, jax.ShapeDtypeStruct]  # by path


def check_names(who: str, run: Run, names: Sequence[str]) -> None:
    """TypeError unless run takes a key and arguments of these names, and needs no others."""
    if not callable(run):
        raise TypeError(f"{who}: run is a {type(run).__name__}, expected a function")
    try:
        arguments = list(inspect.signature(run).parameters.values())
    except ValueError:  # a builtin, which does not tell
        return
    kinds = [a.kind for a in arguments]
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not kinds or kinds[0] not in (*places, inspect.Parameter.VAR_POSITIONAL):
        raise TypeError(f"{who}: run takes {[a.name for a in arguments]}, expected a key first")
    others = arguments[kinds[0] in places :]
    named = {a.name: a for a in others if a.kind in (places[1], inspect.Parameter.KEYWORD_ONLY)}
    strange = [name for name in names if name not in named]
    if strange and (inspect.Parameter.VAR_KEYWORD not in kinds or strange[0] == arguments[0].name):
        raise TypeError(
            f"{who}: run has no argument {strange[0]!r} to vary, expected some of {list(named)}"
        )
    absent = [n for n, a in named.items() if a.default is a.empty and n not in names]
    if absent:
        raise TypeError(
            f"{who}: run needs {absent[0]!r}, expected a value for it in the grid, the points or as"
            " its default"
        )


def outlines_of(
    who: str, plan: Plan, run: Run, keep: Callable[[Any], Any] | None, programs: Sequence[Program]
) -> list[Outline]:
    """The outline of each program, traced, not run; an error unless all return the same shapes."""
    outlines = [_outline(who, plan, run, keep, program) for program in programs]
    first = outlines[0]
    for program, outline in zip(programs, outlines, strict=True):
        if outline.leaves != first.leaves:
            names = {**first.leaves, **outline.leaves}
            odd = [n for n in names if first.leaves.get(n) != outline.leaves.get(n)]
            raise ValueError(
                f"{who}: the run returns {_shown(first, odd)} with {_said(programs[0].static)} and"
                f" {_shown(outline, odd)} with {_said(program.static)}, expected the same shapes:"
                " keep what has them, as by keep=lambda result: ..."
            )
    return outlines


def _outline(
    who: str, plan: Plan, run: Run, keep: Callable[[Any], Any] | None, program: Program
) -> Outline:
    """Traced once more if it is new, because a pure function gives the same program twice."""

    def traced() -> Outline:
        return _traced(who, plan, bound(run, program.static, keep), program)

    outline = traced()

    def make() -> bool:
        return traced().mark == outline.mark

    if not kept_with((run, keep), ("pure", outline.mark), make):
        raise TypeError(
            f"{who}: run is not a pure function: traced twice, it gave two different programs; it"
            " may read or write only its arguments, and what it closes over must not change"
        )
    return outline


def _traced(who: str, plan: Plan, one: Run, program: Program) -> Outline:
    found = []

    def probe(key: Any, numbers: dict[str, Any]) -> Any:
        result = one(key, **numbers)
        leaves = {path: _as_result(who, path, leaf) for path, leaf in paths(result).items()}
        if not leaves:
            raise TypeError(f"{who}: the run returns {result!r:.60}, expected arrays")
        shapes = {path: jax.ShapeDtypeStruct(a.shape, a.dtype) for path, a in leaves.items()}
        found.append((jax.tree.structure(result), shapes))
        return list(leaves.values())

    key = jax.eval_shape(lambda keys: keys[0], plan.keys)
    numbers = {n: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for n, v in program.columns.items()}
    try:
        with jax.disable_jit(False):
            mark = fingerprint_program(probe, key, numbers)
    except TypeError as error:  # also JAX's own
        if isinstance(error, jax.errors.UnexpectedTracerError) or "expected values; save" in str(
            error
        ):
            raise TypeError(
                f"{who}: run is not a pure function: it uses a traced value of another call"
            ) from error
        if str(error).startswith(who) or not re.search("[Tt]race[dr]", str(error)):
            raise
        raise TypeError(
            f"{who}: run needs the value of its key or of one of {list(numbers)} while it is"
            " traced; a number that shapes the program, such as a size or a number of epochs, is"
            f" varied as fnn.search.Static(...) ({str(error).splitlines()[0]:.200})"
        ) from error
    return Outline(mark, *found[0])


def _as_result(who: str, path: str, leaf: Any) -> Any:
    """The leaf as an array; TypeError if it holds no numbers."""
    dtype = getattr(leaf, "dtype", None)
    if not isinstance(leaf, bool | int | float | complex) and not (
        dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in (np.number, np.bool_))
    ):
        came = type(leaf).__name__ if dtype is None else f"array of {dtype}"
        raise TypeError(
            f"{who}: the run returns a {came}{f' as {path}' if path else ''}, expected numbers:"
            " leave it out by keep"
        )
    return jnp.asarray(leaf)


def _shown(outline: Outline, names: Sequence[str]) -> str:
    found = {name: outline.leaves[name] for name in names if name in outline.leaves}
    return ", ".join(f"{n} {a.dtype}{list(a.shape)}".strip() for n, a in found.items()) or "less"


def _said(static: Point) -> str:
    return ", ".join(f"{name}={value!r:.60}" for name, value in static.items())
