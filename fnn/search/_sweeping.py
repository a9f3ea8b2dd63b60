"""`sweep` on the host: in pieces, with a program for each structure, kept in a folder."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base import Interrupts, as_count, counter, nested, paths
from fnn.search._points import Plan, plan_of
from fnn.search._population import Population, contiguous
from fnn.search._programs import (
    Outline,
    Program,
    Run,
    alone,
    bound,
    check_names,
    outlines_of,
    programs_of,
)
from fnn.search._store import (
    Store,
    about_of,
    as_read,
    opened,
    order_of,
    order_of_points,
    read_about,
    share_of,
)
from fnn.training import everyone, fetch, is_first, side_by_side, sweep_with, together, width_of

WHO = "population"
PIECES = 32  # of one program by default


def population(
    run: Run,
    keys: Array,
    grid: Mapping[str, Any] | None = None,
    *,
    points: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    keep: Callable[[Any], Any] | None = None,
    width: int | None = None,
    piece: int | None = None,
    folder: str | Path | None = None,
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> Population:
    """run(key, **point) for each of keys [n] at each point -> `Population`, values [n, *axes, ...].

    `run` is a pure function, as for `fnn.sweep`. On a CPU, with fnn's rules, each member is its
    solo run bit for bit; so pieces, parts and interruptions change nothing. Unlike `sweep` it is
    driven by the host, piece by piece, and a point may have any values.

    - `grid`: ``{"hidden": [(64,), (128, 64)], "learning_rate": rates}``, every combination.
      `points`: a list of dicts, as `sample` draws them, or a dict of lists of one length. Numbers
      are traced. Words, tuples, functions, and numbers in a `Static` shape the program: each
      combination of them is compiled once, however many pieces there are.
    - `keep`: keep(result) is what is kept of each run; nothing else is stored. The population's
      ``replay(member)`` has all of it again. All programs must keep the same shapes.
    - `width`: as that of `sweep`.
    - `piece`: the number of runs between two looks of the host. By default about a 32nd of a
      program's runs; on an accelerator at least as many as fit into memory side by side.
    - `folder`: each piece is saved when it is done. The same call again does what is missing and
      ends in the same bits. A damaged piece is a UserWarning, and is run again.
    - `part`: (i, n) does the i-th of n shares, i from 0, for instance on a machine of its own with
      the same folder. `read_population`, or the same call without `part`, has all of them.
    - `progress`: a bar on a terminal, else a line every 5 s.

    Ctrl-C and SIGTERM end it after the present piece; what is done is returned. SIGKILL loses at
    most a piece.

    Errors, before anything runs: ValueError if keys repeat, if the folder has another population,
    or if programs return different shapes; TypeError if run is not pure or has no such arguments;
    MemoryError if one member, or all that is kept, is too large; RuntimeError if another process
    runs this part.
    """
    plan = plan_of(WHO, keys, grid, points)
    check_names(WHO, run, list(plan.points[0]))
    if not (keep is None or callable(keep)):
        raise TypeError(f"{WHO}: keep is a {type(keep).__name__}, expected a function")
    part = _checked_part(part)
    programs = programs_of(WHO, plan)
    outlines = outlines_of(WHO, plan, run, keep, programs)
    order = order_of([program.members for program in programs])
    results = _Results(order, outlines[0].leaves, share_of(part, plan.members))
    width, piece = _counted("width", width), _counted("piece", piece)
    todo = _Todo(run, keep, plan, programs, outlines, width, piece)
    if folder is None:
        _do(todo, results, None, progress)
    else:
        about = about_of(plan, programs, outlines)
        with ExitStack() as held:
            ours = opened(WHO, folder, about, part, writes=is_first())
            store = together(WHO, lambda: held.enter_context(ours))
            together(WHO, lambda: results.read(store))
            # What one process did not see yet, all do again, so that all do the same.
            results.done = np.asarray(everyone(results.done).all(axis=0))
            _do(todo, results, store, progress)
    return Population(
        jax.tree.unflatten(outlines[0].structure, results.shaped(plan.shape)),
        plan.named_axes,
        plan.points,
        results.done_members().reshape(plan.shape),
        partial(alone, plan, run, programs),
    )


def read_population(folder: str | Path) -> Population:
    """A folder of `population` -> all that is in it, whichever processes wrote it.

    It changes nothing, so runs may still be written. ``.missing`` names the runs that are not
    there, and ``.unfinished`` the parts (i, n) that have them. Values are nested dicts, and
    functions on the axes are their names, because a file holds no code. For the same reason it has
    no `replay`; the call of `population` with this folder returns the same and has.

    FileNotFoundError if the folder has no population. A damaged piece is a UserWarning, and its
    runs are missing.
    """
    about = read_about("read_population", Path(folder))
    axes, listed = as_read(about["axes"]), as_read(about["points"])
    rows = zip(*listed.values(), strict=True) if listed else product(*axes.values())
    points = [dict(zip(listed or axes, row, strict=True)) for row in rows]
    axes = {"key": list(range(about["keys"]["count"]))} | axes
    shape = tuple(map(len, axes.values()))
    order = order_of_points(about["program of point"], shape[0])
    leaves = {
        path: jax.ShapeDtypeStruct(a["shape"], a["dtype"]) for path, a in about["leaves"].items()
    }
    results = _Results(order, leaves, (0, len(order)))
    results.read(Store(Path(folder), about))
    values = nested(dict(zip(leaves, results.shaped(shape), strict=True)))
    done = results.done_members().reshape(shape)
    return Population(values, axes, points, done, None, results.unfinished())


# --- results ------------------------------------------------------------------------------------


class _Results:
    """What is kept of the runs so far. Places are those in the order of the work; see `_store`."""

    def __init__(
        self, order: np.ndarray, leaves: Mapping[str, Any], share: tuple[int, int]
    ) -> None:
        needed = len(order) * _bytes_of(leaves)
        limit = _host_memory()
        if needed > limit:
            raise MemoryError(
                f"{WHO}: what is kept of {len(order)} runs is {needed / 1e9:.3g} GB, but the memory"
                f" is {limit / 1e9:.3g} GB; keep less, as by keep=lambda result: result['loss']"
            )
        self.order, self.share = order, share
        self.done: np.ndarray = np.zeros(len(order), bool)  # by place
        self.parts: set[tuple[int, int]] = set()  # that wrote what was read
        self.values = {path: _empty((len(order), *a.shape), a.dtype) for path, a in leaves.items()}

    def put(self, places: np.ndarray, leaves: Mapping[str, np.ndarray]) -> None:
        """The results of the runs at these places; those outside of the share are left out."""
        mine = (places >= self.share[0]) & (places < self.share[1])
        for path, values in self.values.items():
            values[self.order[places[mine]]] = leaves[path][mine]
        self.done[places[mine]] = True

    def read(self, store: Store) -> None:
        """Put what is in the files."""
        for piece in store.pieces(*self.share):
            self.put(np.arange(piece.start, piece.stop), piece.leaves)
            self.parts.add(piece.part)

    def shaped(self, shape: tuple[int, ...]) -> list[np.ndarray]:
        """The leaves [*shape, ...]."""
        return [a.reshape(*shape, *a.shape[1:]) for a in self.values.values()]

    def done_members(self) -> np.ndarray:
        """Which members are done, by their numbers."""
        done = np.empty_like(self.done)
        done[self.order] = self.done
        return done

    def unfinished(self) -> list[tuple[int, int]]:
        """The parts that have runs which are not done, by the finest division that was used."""
        n = max((n for _, n in self.parts), default=1)
        shares = {(i, n): share_of((i, n), len(self.done)) for i in range(n)}
        return [part for part, (first, last) in shares.items() if not self.done[first:last].all()]


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.full(shape, np.nan if jnp.issubdtype(dtype, jnp.inexact) else 0, dtype)


def _bytes_of(leaves: Mapping[str, Any]) -> int:
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in leaves.values())


def _host_memory() -> float:
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# --- pieces -------------------------------------------------------------------------------------


class _Todo(NamedTuple):
    """What there is to run, and how."""

    run: Run
    keep: Callable[[Any], Any] | None
    plan: Plan
    programs: list[Program]
    outlines: list[Outline]
    width: int | None
    piece: int | None

    def function(self, at: int) -> Run:
        """The run of a program; what is compiled for it is kept with it."""
        return bound(self.run, self.programs[at].static, self.keep, self.outlines[at].mark)

    def members(self, at: int, rows: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
        """Keys and values of some members of a program, by their numbers in it."""
        numbers = np.asarray(self.programs[at].members)[rows]
        return self.plan.keys[numbers // len(self.plan.points)], self.programs[at].rows(rows)


def _do(todo: _Todo, results: _Results, store: Store | None, progress: bool) -> None:
    """Run what is missing of the share, piece by piece, until it is done or a signal came."""
    total, begun = results.share[1] - results.share[0], int(results.done.sum())
    said = counter("run", total, begun, progress and is_first(), timed=True)
    with Interrupts() as signals, said as say:
        for at, start, rows, width in _pieces(todo, results):
            if everyone([signals.seen]).any():
                break
            leaves = _run(todo, at, rows, width)
            results.put(start + rows, leaves)
            if store is not None and is_first():
                for some in contiguous(rows):
                    ours = {path: a[np.isin(rows, some)] for path, a in leaves.items()}
                    store.save(start + some[0], start + some[-1] + 1, ours)
            static = todo.programs[at].static
            say(int(results.done.sum()), ", ".join(f"{n} {v!r:.30}" for n, v in static.items()))
    if store is not None and is_first():
        store.remove_damaged(results.done)


def _pieces(todo: _Todo, results: _Results) -> Iterator[tuple[int, int, np.ndarray, int]]:
    """Number of a program, its first place, rows of it that are to run, and their width."""
    start = 0
    for at, program in enumerate(todo.programs):
        stop = start + len(program.members)
        first, last = np.clip(results.share, start, stop)
        rows = first - start + np.flatnonzero(~results.done[first:last])
        if rows.size:
            width = _width(todo, at, rows)
            size = todo.piece or _size(rows.size, jax.device_count() * width)
            for begin in range(0, rows.size, size):
                yield at, start, rows[begin : begin + size], width
        start = stop


def _width(todo: _Todo, at: int, rows: np.ndarray) -> int:
    """How many members run side by side on a device."""
    if todo.width is not None:
        return min(todo.width, -(-len(todo.programs[at].members) // jax.device_count()))
    if not side_by_side(jax.devices()[0]):
        return 1
    return width_of(WHO, todo.function(at), *todo.members(at, rows))


def _size(members: int, group: int) -> int:
    """The members of a piece: whole groups, so many that there are at most `PIECES`."""
    groups = -(-members // group)
    return -(-groups // min(groups, PIECES)) * group


def _run(todo: _Todo, at: int, rows: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """What these runs return, [rows, ...] by path, a group at a time.

    A group is what all devices do at once. So the program is the same, and so are the bits,
    whatever the piece, the part and what was done before. And no loop is around a member: XLA may
    round otherwise in one. Nothing waits between groups, because JAX returns before one is done.
    """
    group = jax.device_count() * width
    whole = np.pad(rows, (0, -rows.size % group), mode="edge")
    groups = []
    for some in np.split(whole, whole.size // group):
        keys, values = todo.members(at, some)
        groups.append(sweep_with(WHO, todo.function(at), keys, None, width, paired=values))
    results = [paths(fetch(result)) for result in groups]
    return {
        path: np.concatenate([result[path] for result in results])[: rows.size]
        for path in results[0]
    }


def _counted(argument: str, value: int | None) -> int | None:
    return None if value is None else as_count(WHO, argument, value)


def _checked_part(part: Any) -> tuple[int, int]:
    if not isinstance(part, Sequence) or len(part) != 2:
        raise TypeError(f"{WHO}: part is {part!r:.60}, expected (i, n), the i-th of n shares")
    i, n = as_count(WHO, "part", part[0], least=0), as_count(WHO, "part", part[1])
    if i >= n:
        raise ValueError(f"{WHO}: part is ({i}, {n}), expected i from 0 to {n - 1}")
    return i, n
