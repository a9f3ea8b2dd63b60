"""Saving and loading: one file, a folder with the last two files, a folder of several processes.

The format of a file is described in ``_format.py``.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fnn._base import as_count, locked, path_matches, remove_dead, write_whole
from fnn.checkpoint import _format as form
from fnn.checkpoint._format import Extra

# --- one file ---------------------------------------------------------------------------------


def save(path: str | Path, tree: Any, extra: Extra | None = None) -> None:
    """Write `tree` and `extra` to the file `path`, whole or not at all; gather sharded arrays.

    - A file that was there before is replaced when the new file is on the disk, not earlier. Its
      mode stays. If `path` is a symbolic link, the file that it points to is replaced.
    - Several processes may save to one path; the last one wins.
    - Temporary files of killed processes that saved to this path are removed.
    """
    write_whole(path, form.pack(tree, extra))


def load(
    path: str | Path, like: Any = ..., *, expect: Extra | None = None
) -> tuple[Any, dict[str, Any]]:
    """-> (tree, extra), the tree built like `like`, which may come from ``jax.eval_shape``.

    `like` may also be a function of the header, as `read_header` returns it. This helps if only
    the file knows the shapes.

    Without `like`, the tree is nested dicts: the leaf ``hidden/w`` is tree["hidden"]["w"], and the
    keys of a list are "0", "1", ... Arrays are JAX arrays; those of 64 bits, which JAX would round,
    are NumPy arrays unless ``jax.enable_x64`` is on.

    - Paths, shapes and dtypes of the leaves must be those of `like`, and entries of extra those of
      `expect`. Otherwise one ValueError lists every difference.
    - A NumPy array or a Python number in `like` is one in the tree.
    - All other leaves are JAX arrays that own their memory and have strong types. They are on the
      devices that the leaves of `like` are committed to.

    A safetensors file of another tool is read too. It has no checksum, and its metadata are extra.
    ValueError if the file is damaged, is no such file, or is not a regular file.
    """
    return form.restore(path, *form.unpack(path, others=True), like, expect)


def load_leaves(path: str | Path, like: Any, *, names: Sequence[str]) -> Any:
    """`like`, but with the leaves whose paths match one of `names` taken from the file.

    `names` are patterns as in ``fnn.params.matching``: ``params/encoder/**``. Leaves that match, in
    the file or in `like`, are compared as strictly as in `load`. A pattern that matches no leaf is
    a ValueError. The file may be another tool's, as in `load`.
    """
    header, arrays = form.unpack(path, others=True)
    every = form.named_leaves("load_leaves", like)

    def chosen(leaves: Mapping[str, Any]) -> dict[str, Any]:
        return {p: leaf for p, leaf in leaves.items() if any(path_matches(n, p) for n in names)}

    found, wanted = chosen(header["leaves"]), chosen(every)
    idle = [n for n in names if not any(path_matches(n, p) for p in [*found, *wanted])]
    unmatched = [f"unmatched   {name}: matches no leaf of the file or of like" for name in idle]
    form.refuse(path, [*unmatched, *form.differences(found, wanted)])
    new = {p: form.place(p, arrays[p], found[p], leaf) for p, leaf in wanted.items()}
    return jax.tree.unflatten(jax.tree.structure(like), (every | new).values())


def describe(path: str | Path) -> str:
    """The header as text, one line for each leaf. See `read_header`."""
    header = form.read_header(path)
    made_by = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    lines = [
        f"{path}: format {header['format']}, {made_by or 'safetensors of another tool'}",
        f"extra: {header['extra']}",
    ]
    return "\n".join(lines + [f"{p}: {form.show(leaf)}" for p, leaf in header["leaves"].items()])


def fingerprint(data: Any) -> str:
    """The sha256, in hexadecimal, of dtype, shape and bytes of every leaf, in the tree's order."""
    digest = hashlib.sha256()
    for path, leaf in form.named_leaves("fingerprint", data).items():
        digest.update(form.show(form.spec(path, leaf)).encode())
        digest.update(form.numpy_of(path, leaf).tobytes())
    return digest.hexdigest()


def fingerprint_program(function: Callable[..., Any], *args: Any) -> str:
    """The sha256, in hexadecimal, of what ``function(*args)`` computes: operations and constants.

    The function is traced, not run; `args` may be shapes, as of ``jax.eval_shape``. Names of
    functions, addresses and devices do not count, values of `args` neither. Another version of JAX
    may write the same computation as other operations.
    """
    program = jax.make_jaxpr(function)(*args)
    text = re.sub(r" at 0x[0-9a-f]+|\bname=\S+", "", str(program))
    text = re.sub(r"(?m)^\s*\w*(shardings?|mesh|layouts?)=.*$", "", text)
    return fingerprint((np.frombuffer(text.encode(), np.uint8), list(_arrays_of(program))))


def _arrays_of(part: Any) -> Iterator[Any]:
    """The arrays in a program, also in the programs that its operations hold, as those of jit."""
    from jax.extend.core import ClosedJaxpr, Jaxpr, Literal  # slow to import

    if isinstance(part, ClosedJaxpr):
        yield from part.consts
        part = part.jaxpr
    if isinstance(part, Jaxpr):
        for operation in part.eqns:
            yield from (
                v.val for v in operation.invars if isinstance(v, Literal) and np.ndim(v.val)
            )
            for inner in jax.tree.leaves(operation.params):
                yield from _arrays_of(inner)
    elif isinstance(part, np.ndarray | jax.Array):
        yield part


# --- a folder with the last two ---------------------------------------------------------------


def save_last(folder: str | Path, tree: Any, extra: Extra | None = None, *, step: int) -> Path:
    """Write ``folder/step_00000042.safetensors``; keep this file and the last good one before it.

    - `step` is any counter that grows, at least 0. Older files of `save_last` are removed, other
      files stay. The file that is kept is read once more, so a damaged one is not taken for good.
    - Only one process at a time may write to a folder; see `run_lock`.
    - A file of a later step is a ValueError: it is from another run, or this run should have
      resumed from it. A damaged file of a later step is removed.
    - For the best parameters, write ``save(folder / "best.safetensors", ...)`` beside it.
    """
    step = as_count("save_last", "step", step, least=0)
    folder, path = Path(folder), Path(folder) / f"step_{step:08}.safetensors"
    later = [other for other in _steps(folder) if _step(other) > step]
    for other in later:
        if not _is_damaged(other):
            raise ValueError(
                f"save_last: {other} is later than step {step}; resume from it with load_last,"
                " or use another folder"
            )
    save(path, tree, extra)
    _remove(later)
    _remove(_useless([other for other in _steps(folder) if _step(other) < step]))
    remove_dead(folder, r"step_\d+\.safetensors")
    return path


def load_last(
    folder: str | Path, like: Any = ..., *, expect: Extra | None = None
) -> tuple[Any, dict[str, Any]]:
    """`load` of the last file that `save_last` wrote; if it is damaged, of the file before it.

    A UserWarning then names the damaged file and the damage. FileNotFoundError if there is no file,
    ValueError if all files are damaged. Nothing in the folder is changed, so another process may
    write to it.
    """
    folder, damages = Path(folder), []
    for path in _steps(folder):
        try:
            content = form.unpack(path)
        except (ValueError, OSError) as error:
            damages.append(str(error))
            warnings.warn(f"load_last: {error}; trying the file before it", stacklevel=2)
        else:
            return form.restore(path, *content, like, expect)
    if damages:
        raise ValueError("load_last: every file is damaged:\n  " + "\n  ".join(damages))
    raise FileNotFoundError(f"load_last: {folder} has no step_*.safetensors")


@contextmanager
def run_lock(name: str, folder: str | Path) -> Iterator[None]:
    """Hold the folder of a run; RuntimeError, with the function's `name`, if another run holds it.

    The lock of a process that died is free. On a disk that has no locks, nothing is refused.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", wait=False) as other:
        if other:
            raise RuntimeError(
                f"{name}: {folder} is in use by another run ({other}); wait for its end, or use"
                " another folder"
            )
        yield


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _steps(folder: Path) -> list[Path]:
    """The files of `save_last`, the newest first."""
    files = [p for p in folder.glob("step_*.safetensors") if p.stem[len("step_") :].isdecimal()]
    return sorted(files, key=_step, reverse=True)


def _useless(files: Iterable[Path]) -> Iterator[Path]:
    """Of the files, the newest first, those that are damaged or older than one that is not."""
    spare = None
    for file in files:
        try:
            if spare or _is_damaged(file):
                yield file
            else:
                spare = file
        except OSError:  # it cannot be read now, but may be good
            continue


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _is_damaged(path: Path) -> bool:
    try:
        form.check_whole(path)
    except ValueError:
        return True
    except NotImplementedError:  # a newer fnn's
        return False
    return False


# --- several processes ------------------------------------------------------------------------


def save_sharded(folder: str | Path, tree: Any, extra: Extra | None = None) -> None:
    """Write a new folder by Orbax; every process calls this function and writes its own shards."""
    import orbax.checkpoint as ocp  # pyright: ignore[reportMissingImports]

    leaves = form.named_leaves("save_sharded", tree)
    data = {str(i): form.data_of(leaf) for i, leaf in enumerate(leaves.values())}
    # Orbax refuses arrays without elements; their shape and dtype in the header are enough.
    arrays = ocp.args.StandardSave({name: array for name, array in data.items() if array.size})
    header = ocp.args.JsonSave(form.header_of(tree, leaves, extra))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(header=header, arrays=arrays)
        checkpointer.save(Path(folder).absolute(), args=args)


def load_sharded(
    folder: str | Path, like: Any, *, expect: Extra | None = None
) -> tuple[Any, dict[str, Any]]:
    """`load` after `save_sharded`; each process reads the shards that it has in `like`."""
    import orbax.checkpoint as ocp  # pyright: ignore[reportMissingImports]

    folder, wanted = Path(folder).absolute(), form.named_leaves("load_sharded", like)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(header=ocp.args.JsonRestore())
        header = checkpointer.restore(folder, args=args).header
        form.check(folder, header, wanted, expect)
        targets = {p: _target(wanted[p]) for p in header["leaves"]}
        stored = {str(i): t for i, t in enumerate(targets.values()) if t.size}
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(stored))
        found = checkpointer.restore(folder, args=args).arrays
    arrays = {p: found.get(str(i), targets[p]) for i, p in enumerate(targets)}
    return form.restore(folder, header, arrays, like, expect)


def _target(like: Any) -> Any:
    """The target for Orbax: a NumPy array, or a JAX array on the devices of `like`."""
    if type(like) in form.PYTHON:
        like = form.data_of(like)
    data = jax.eval_shape(jax.random.key_data, like) if form.is_key(like) else like
    if (sharding := form.sharding_of(like)) is None or not data.size:
        return np.empty(data.shape, data.dtype)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
