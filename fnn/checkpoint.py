"""Checkpoints of any tree of arrays, strict and bit for bit.

`save` and `load` are one file, of one process with any number of devices; `save_last` and
`load_last` a folder that survives a kill and a damaged file; `save_sharded` and `load_sharded`
are for several processes, through Orbax. The format is described in ``checkpoint_format``.

Leaves are arrays of JAX or NumPy, typed keys, and Python's bool, int (of 64 bits), float and
complex. `extra` is whatever JSON can hold: settings, the epoch, the `fingerprint` of the data, a
description of the optimizer. Its tuples come back as lists, its keys as strings.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fnn import checkpoint_format as form
from fnn.checkpoint_format import Extra
from fnn.checkpoint_format import read_header as read_header
from fnn.params import path_matches

# --- one file ---------------------------------------------------------------------------------


def save(path: str | Path, tree: Any, extra: Extra | None = None) -> None:
    """Write `tree` and `extra` to the file `path`, whole or not at all; sharded arrays gathered.

    What was there before stays until the new file is on the disk.
    """
    content = form.pack(tree, extra)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":  # where a folder can be opened: its new entry must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def load(path: str | Path, like: Any, *, expect: Extra | None = None) -> tuple[Any, dict[str, Any]]:
    """-> (tree, extra), the tree built like `like`, which may come from ``jax.eval_shape``.

    Or `like` is a function of what `read_header` reads, where shapes are only known from there.

    Strict: where paths, shapes or dtypes of the leaves are not those of `like`, or entries of
    extra not those of `expect`, one ValueError lists every difference. What is a NumPy array or
    a Python number in `like` is one in the tree; all else are JAX arrays that own their memory,
    strongly typed, on the devices that those of `like` are committed to.
    """
    return form.restore(path, *form.unpack(path), like, expect)


def load_leaves(path: str | Path, like: Any, *, names: Sequence[str]) -> Any:
    """`like`, but with the leaves whose paths match one of `names` taken from the file.

    Patterns are those of ``fnn.params.matching``: ``params/encoder/**``. What matches, in the
    file or in `like`, is compared as strictly as by `load`; what matches nothing is an error.
    """
    header, arrays = form.unpack(path)
    every = form.named_leaves("load_leaves", like)

    def chosen(leaves: Mapping[str, Any]) -> dict[str, Any]:
        return {p: leaf for p, leaf in leaves.items() if any(path_matches(n, p) for n in names)}

    found, wanted = chosen(header["leaves"]), chosen(every)
    idle = [n for n in names if not any(path_matches(n, p) for p in [*found, *wanted])]
    unmatched = [f"unmatched   {name}: no leaf, of the file or of like" for name in idle]
    form.refuse(path, [*unmatched, *form.differences(found, wanted)])
    new = {p: form.place(p, arrays[p], found[p], leaf) for p, leaf in wanted.items()}
    return jax.tree.unflatten(jax.tree.structure(like), (every | new).values())


def describe(path: str | Path) -> str:
    """What `read_header` reads, as text, a line a leaf."""
    header = read_header(path)
    made_by = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    lines = [
        f"{path}: format {header['format']}, {made_by}",
        f"extra: {header['extra']}",
    ]
    return "\n".join(lines + [f"{p}: {form.show(leaf)}" for p, leaf in header["leaves"].items()])


def fingerprint(data: Any) -> str:
    """The sha256, in hexadecimal, of every leaf's dtype, shape and bytes in the tree's order."""
    digest = hashlib.sha256()
    for path, leaf in form.named_leaves("fingerprint", data).items():
        digest.update(form.show(form.spec(path, leaf)).encode())
        digest.update(form.numpy_of(path, leaf).tobytes())
    return digest.hexdigest()


# --- a folder with the last two ---------------------------------------------------------------


def save_last(folder: str | Path, tree: Any, extra: Extra | None = None, *, step: int) -> Path:
    """Write ``folder/step_00000042.safetensors``; keep it and the one before, remove the rest.

    `step` is any counter that grows; one process at a time writes to a folder. A file of a later
    step is a ValueError, unless it is damaged: it is another run's, or this run should have gone
    on from it. For the best parameters, ``save(folder / "best.safetensors", ...)`` beside it.
    """
    folder, path = Path(folder), Path(folder) / f"step_{step:08}.safetensors"
    later = [other for other in _steps(folder) if _step(other) > step]
    for other in later:
        if not _is_damaged(other):
            raise ValueError(
                f"save_last: {other} is later than step {step}; go on from it with load_last,"
                " or begin in another folder"
            )
    save(path, tree, extra)
    before = [other for other in _steps(folder) if _step(other) < step]
    for other in [*later, *before[1:], *_half_written(folder)]:
        other.unlink(missing_ok=True)
    return path


def load_last(
    folder: str | Path, like: Any, *, expect: Extra | None = None
) -> tuple[Any, dict[str, Any]]:
    """`load` of the last file that `save_last` wrote, or of the one before if that is damaged.

    A UserWarning then names the file and says why. FileNotFoundError if there is no file,
    ValueError if all are damaged. What a killed process left half written is removed.
    """
    folder, damages = Path(folder), []
    for part in _half_written(folder):
        part.unlink(missing_ok=True)
    for path in _steps(folder):
        try:
            content = form.unpack(path)
        except (ValueError, OSError) as error:
            damages.append(str(error))
            warnings.warn(f"load_last: {error}; passed over", stacklevel=2)
        else:
            return form.restore(path, *content, like, expect)
    if damages:
        raise ValueError("load_last: every file is damaged:\n  " + "\n  ".join(damages))
    raise FileNotFoundError(f"load_last: {folder} holds no step_*.safetensors")


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _steps(folder: Path) -> list[Path]:
    files = [p for p in folder.glob("step_*.safetensors") if p.stem[len("step_") :].isdecimal()]
    return sorted(files, key=_step, reverse=True)


def _half_written(folder: Path) -> Iterable[Path]:
    return folder.glob(".*.safetensors.*.tmp")


def _is_damaged(path: Path) -> bool:
    try:
        form.unpack(path)
    except (ValueError, OSError):
        return True
    return False


# --- several processes ------------------------------------------------------------------------


def save_sharded(folder: str | Path, tree: Any, extra: Extra | None = None) -> None:
    """Write a new folder by Orbax; every process calls it and writes its own shards."""
    import orbax.checkpoint as ocp  # pyright: ignore[reportMissingImports]

    leaves = form.named_leaves("save_sharded", tree)
    data = {str(i): form.data_of(leaf) for i, leaf in enumerate(leaves.values())}
    # Orbax refuses arrays without elements; the header says all there is to them.
    arrays = ocp.args.StandardSave({name: array for name, array in data.items() if array.size})
    header = ocp.args.JsonSave(form.header_of(tree, leaves, extra))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(header=header, arrays=arrays)
        checkpointer.save(Path(folder).absolute(), args=args)


def load_sharded(
    folder: str | Path, like: Any, *, expect: Extra | None = None
) -> tuple[Any, dict[str, Any]]:
    """`load` of what `save_sharded` wrote; each process reads its own shards of `like`'s."""
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
    """What Orbax is to make of the stored data: a NumPy array, or one on like's devices."""
    if type(like) in form.PYTHON:
        like = form.data_of(like)
    data = jax.eval_shape(jax.random.key_data, like) if form.is_key(like) else like
    if (sharding := form.sharding_of(like)) is None or not data.size:
        return np.empty(data.shape, data.dtype)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
