"""What is done of a population, in a folder: a file for each piece, and one that says what it is.

    population.json                            keys, axes, points, programs, leaves
    runs_00000000_00000032.safetensors         the runs at places 0 to 31 of the work

The work is all members, program by program, in each program in the order of their numbers. The name
of a file says which runs are in it. So processes that write at the same time never need to know of
each other: two files with the same name have the same content, and all files together are the
population.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn import checkpoint
from fnn._base import locked, remove_dead, write_whole
from fnn.search._points import Plan
from fnn.search._programs import Outline, Program

ABOUT = "population.json"
_NAME = re.compile(r"runs_(\d+)_(\d+)\.safetensors")
VERSIONS = ("fnn", "jax")


class Piece(NamedTuple):
    """The runs at places start to stop - 1 of the work."""

    start: int
    stop: int
    leaves: dict[str, np.ndarray]  # [stop - start, ...], by path
    part: tuple[int, int]  # that made it


def order_of(programs: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """The numbers of all members in the order of the work, from those of each program."""
    return np.concatenate([np.asarray(members, np.int64) for members in programs])


def order_of_points(program_of: Sequence[int], keys: int) -> np.ndarray:
    """The same, from the number of each point's program."""
    numbers = np.arange(keys)[:, None] * len(program_of)
    places = [np.flatnonzero(np.asarray(program_of) == p) for p in range(max(program_of) + 1)]
    return order_of([(numbers + points).ravel() for points in places])


def share_of(part: tuple[int, int], members: int) -> tuple[int, int]:
    """The places in the work from which and up to which a part goes; parts are even."""
    i, n = part
    return members * i // n, members * (i + 1) // n


class Store:
    """The files of a population in its folder."""

    def __init__(self, folder: Path, about: Mapping[str, Any], part: tuple[int, int] = (0, 1)):
        self.folder, self.about, self.part = folder, about, part
        self.damaged: list[tuple[int, int, Path]] = []

    def pieces(self, first: int, last: int) -> Iterator[Piece]:
        """The pieces with runs at places first to last - 1. UserWarning for one that is damaged."""
        for path in sorted(self.folder.glob("runs_*.safetensors")):
            if not (named := _NAME.fullmatch(path.name)):
                continue
            start, stop = map(int, named.groups())
            if start < last and stop > first:
                try:
                    leaves, extra = checkpoint.load(path, _as_they_are)
                except FileNotFoundError:  # another process found it damaged
                    continue
                except ValueError as error:
                    warnings.warn(f"population: {error}; its runs are missing", stacklevel=2)
                    self.damaged.append((start, stop, path))
                else:
                    self._check(path, stop - start, leaves, extra)
                    yield Piece(start, stop, leaves, tuple(extra["part"]))

    def _check(self, path: Path, rows: int, leaves: Mapping[str, Any], extra: Any) -> None:
        about = self.about
        shapes = {
            name: ((rows, *leaf["shape"]), leaf["dtype"]) for name, leaf in about["leaves"].items()
        }
        found = {name: (leaf.shape, leaf.dtype.name) for name, leaf in leaves.items()}
        if extra.get("population") != about["mark"] or found != shapes:
            raise ValueError(
                f"population: {path} has runs of another population, expected those of {ABOUT}"
            )

    def save(self, start: int, stop: int, leaves: Mapping[str, np.ndarray]) -> None:
        """Write the runs at places start to stop - 1, whole or not at all."""
        path = self.folder / f"runs_{start:08}_{stop:08}.safetensors"
        extra = {"population": self.about["mark"], "part": list(self.part)}
        checkpoint.save(path, dict(leaves), extra)

    def remove_damaged(self, done: np.ndarray) -> None:
        """Remove damaged files whose runs were all made again; `done` is by places of the work."""
        for start, stop, path in self.damaged:
            if done[start:stop].all() and _is_damaged(path):
                path.unlink(missing_ok=True)


def _as_they_are(header: Any) -> dict[str, np.ndarray]:
    return {path: np.empty(a["shape"], a["dtype"]) for path, a in header["leaves"].items()}


def _is_damaged(path: Path) -> bool:
    try:
        checkpoint.load(path, _as_they_are)
    except ValueError:
        return True
    except FileNotFoundError:
        return False
    return False


# --- which population it is ---------------------------------------------------------------------


@contextmanager
def opened(
    who: str, folder: str | Path, about: Mapping[str, Any], part: tuple[int, int], writes: bool
) -> Iterator[Store]:
    """The store of this population in the folder, this part of it held until the end of the block.

    ValueError if the folder has another population, RuntimeError if another process runs this part.
    With `writes` False, another process of the same program holds it.
    """
    folder = Path(folder)
    with ExitStack() as held:
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            lock = folder / f".part_{part[0]}_of_{part[1]}.lock"
            if other := held.enter_context(locked(lock, wait=False)):
                raise RuntimeError(
                    f"{who}: part {part} in {folder} is run by another process ({other}); wait for"
                    " its end, or use another folder"
                )
            with locked(folder / ".claim.lock", wait=True):  # of two that begin, one is first
                _claim(who, folder, about)
            remove_dead(folder, r"runs_\d+_\d+\.safetensors")
        yield Store(folder, about, part)


def _claim(who: str, folder: Path, about: Mapping[str, Any]) -> None:
    path, about = folder / ABOUT, json.loads(json.dumps(about))
    if not path.exists():
        write_whole(path, json.dumps(about).encode())
    elif others := _differences(read_about(who, folder), about):
        raise ValueError(
            f"{who}: {folder} has another population, with {'; '.join(others)}; use another folder"
        )


def read_about(who: str, folder: Path) -> dict[str, Any]:
    """What the folder says of its population."""
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not about.keys() >= {"mark", "keys", "axes", "programs", "leaves", "versions"}:
            raise ValueError("it lacks something")
    except FileNotFoundError:
        raise FileNotFoundError(f"{who}: {folder} has no {ABOUT}, so no population") from None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{who}: {path} cannot be read ({error!s:.100})") from None
    return about


def about_of(
    plan: Plan, programs: Sequence[Program], outlines: Sequence[Outline]
) -> dict[str, Any]:
    """What makes this population that one, in values that JSON can hold."""
    typed = jnp.issubdtype(plan.keys.dtype, jax.dtypes.prng_key)
    keys = np.asarray(jax.random.key_data(plan.keys) if typed else plan.keys)
    members = {at: p for p, program in enumerate(programs) for at in program.members}
    statics = [_said(program.static) for program in programs]
    columns = [program.columns for program in programs]
    axes = {name: _said(values) for name, values in plan.axes.items()}
    of_point = [members[at] for at in range(len(plan.points))]
    listed = {name: _said([point[name] for point in plan.points]) for name in plan.points[0]}
    text = json.dumps([[*axes], statics, of_point])
    mark = checkpoint.fingerprint((keys, columns, np.frombuffer(text.encode(), np.uint8)))
    return {
        "mark": mark,
        "keys": {"count": len(keys), "mark": checkpoint.fingerprint(keys)},
        "axes": axes,
        "points": listed if [*axes] == ["point"] else None,
        "programs": [
            {"with": static, "mark": outline.mark}
            for static, outline in zip(statics, outlines, strict=True)
        ],
        "program of point": of_point,
        "leaves": {
            name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name}
            for name, leaf in outlines[0].leaves.items()
        },
        "versions": {name: metadata.version(name) for name in VERSIONS},
    }


def _said(value: Any) -> Any:
    """The value as JSON has it; functions and other objects by their names."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _said(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_said(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array) and value.dtype.kind in "biufV":
        return np.asarray(value).tolist()
    if name := getattr(value, "__qualname__", ""):
        return f"{getattr(value, '__module__', '')}.{name}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def as_read(columns: Mapping[str, list[Any]] | None) -> dict[str, list[Any]]:
    """Lists of values as they were; JSON has tuples as lists."""

    def restored(value: Any) -> Any:
        return tuple(map(restored, value)) if isinstance(value, list) else value

    return {name: list(map(restored, values)) for name, values in (columns or {}).items()}


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``learning_rate [0.1, 0.2] where [0.1, 0.3] was given``, of everything that differs."""
    found = []
    if was["keys"] != now["keys"]:
        counts = was["keys"]["count"], now["keys"]["count"]
        said = "as many other keys" if counts[0] == counts[1] else "{} keys where {} were given"
        found.append(said.format(*counts))
    before, after = (a.get("points") or a["axes"] for a in (was, now))
    found += [
        f"{name} {_short(before.get(name))} where {_short(after.get(name))} was given"
        for name in {**before, **after}
        if not _same(before.get(name), after.get(name))
    ]
    if not found and [*before] != [*after]:
        found.append(f"the axes {[*before]} where {[*after]} was given")
    if not found:
        found += _other_programs(was, now)
    return found or (["other types of its values"] if was["mark"] != now["mark"] else [])


def _other_programs(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Another version of JAX or fnn writes the same run as another program."""
    if was["leaves"] != now["leaves"]:
        shown = (
            ", ".join(
                f"{name} {leaf['dtype']}{leaf['shape']}" for name, leaf in a["leaves"].items()
            )
            for a in (was, now)
        )
        return [" kept where ".join(shown) + " is kept now"]
    pairs = zip(was["programs"], now["programs"], strict=False)
    other = [new["with"] for old, new in pairs if old["mark"] != new["mark"]]
    if not other or was["versions"] != now["versions"]:
        return []
    where = f" at {other[0]}" if other[0] else ""
    return [f"a run that computes something else{where}: its operations, or arrays in it, differ"]


def _same(was: Any, now: Any) -> bool:
    """Equal, or equal as the numbers that a program gets: 0.1 and float32's 0.1."""
    if json.dumps(was) == json.dumps(now):
        return True
    try:
        a, b = jnp.asarray(was), jnp.asarray(now)
    except (TypeError, ValueError):
        return False
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
