"""The checkpoints of one run, and how a folder knows its run again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from fnn import checkpoint
from fnn._base import Data
from fnn.training._rows import Batches
from fnn.training._sharding import shares_of
from fnn.training._shares import as_on_one_device
from fnn.training._state import TrainState
from fnn.training._step import Step
from fnn.training._stopping import NEVER, Progress

History = dict[str, np.ndarray]

# What makes a run that run, as a message names it.
MARKS = {
    "settings": "settings",
    "data": "data or weights",
    "validation": "validation data",
    "key": "key",
    "shares": "number of shares",
    "start": "initial train state, which the initial key and the optimizer make",
    "step": "step: its loss function, its optimizer, their numbers (such as the learning rate), or"
    " options of make_train_step",
}
NEW_MARKS = {"validation", "shares", "start", "step"}  # an older file may not have them


def marks_of_run(
    step: Step,
    ts: TrainState,
    batches: Batches,
    validation: Data,
    key: Array,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """What another run would have otherwise, each as a value that JSON can hold."""
    mark = checkpoint.fingerprint
    return {
        "settings": settings,
        "data": mark((batches.data, batches.weights)),
        "validation": mark(validation),
        "key": mark(key),
        "shares": shares_of(step),
        "start": mark(ts),
        "step": _mark_of_step(step, ts, batches, key),
    }


class RunFolder:
    """A folder of checkpoints of one run. To resume another run from it is an error."""

    def __init__(self, folder: str | Path, marks: dict[str, Any]):
        self.folder, self.marks = Path(folder), marks

    def resume(
        self, progress: Progress, metrics: Callable[[], set[str]]
    ) -> tuple[Progress, History, list[str]]:
        """Progress, history and the hook's metrics of the last checkpoint; else those given, {}.

        `metrics` gives the names of what the run measures.
        """
        if not any(self.folder.glob("step_*.safetensors")):
            return progress, {}, []

        def like(header: Any) -> Any:
            leaves, prefix = header["leaves"], "history/"
            self._refuse_another(header)
            history = {
                path[len(prefix) :]: np.empty(leaf["shape"], leaf["dtype"])
                for path, leaf in leaves.items()
                if path.startswith(prefix)
            }
            self._refuse_other_metrics(history.keys() - header["extra"].get("hook", []), metrics())
            return {"progress": progress, "history": history}

        tree, extra = checkpoint.load_last(self.folder, like)
        return tree["progress"], tree["history"], extra.get("hook", [])

    def _refuse_another(self, header: Any) -> None:
        found = header["extra"]
        # Another version of JAX or fnn writes the same step as another program.
        same = all(header["versions"].get(n) == metadata.version(n) for n in ("fnn", "jax"))
        known = [name for name in MARKS if name in found or name not in NEW_MARKS]
        known = [name for name in known if same or name != "step"]
        others = [name for name in known if found.get(name) != self.marks[name]]
        if "shares" in others:  # which makes it another step too
            others = [name for name in others if name != "step"]
        if others:
            raise ValueError(
                f"train: {self.folder} holds another run, with another"
                f" {'; another '.join(self._said(others, found))}. Use another folder, delete this"
                " one, or go on from its state: fnn.checkpoint.load_last"
            )

    def _said(self, others: list[str], found: dict[str, Any]) -> Iterator[str]:
        """What is another, in words."""
        both = {"start", "step"} <= set(others)  # the state of an optimizer may hold the rate
        for name in others:
            if both and name in ("start", "step"):
                if name == "start":
                    yield "net, optimizer, learning rate or initial key"
            elif name == "shares":
                yield f"{MARKS[name]} ({found.get(name)}, now {self.marks[name]})"
            elif name == "settings":
                changed = _changed(found.get(name) or {}, self.marks[name])
                yield f"{MARKS[name]} ({'; '.join(changed)})"
            else:
                yield MARKS[name]

    def _refuse_other_metrics(self, found: set[str], now: set[str]) -> None:
        if found != now:
            raise ValueError(
                f"train: {self.folder} holds a run that measured {sorted(found)}, but this run"
                f" measures {sorted(now)}; use the same validate, or another folder"
            )

    def save(self, progress: Progress, history: History, hooked: list[str]) -> None:
        """Write all, and the best parameters beside them as best.safetensors."""
        epoch = int(progress.epochs)
        extra = self.marks | {"epoch": epoch, "hook": hooked}
        tree = {"progress": progress, "history": history}
        checkpoint.save_last(self.folder, tree, extra, step=epoch)
        if progress.best.epoch >= 0:
            best = {"epoch": int(progress.best.epoch), "value": float(progress.best.value)}
            tree = {"params": progress.best.params, "state": progress.best.state}
            checkpoint.save(self.folder / "best.safetensors", tree, best)


def _changed(was: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """The settings that differ."""
    for name in was | now:
        old, value = was.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            yield from (f"{name} {said}" for said in _changed(old, value))
        elif old != value:
            yield f"{name} {_word(old)}, now {_word(value)}"


def _word(setting: Any) -> Any:
    return "never" if setting == NEVER else setting  # the patience of a run that nothing stops


@contextmanager
def opened(folder: str | Path | None, marks: Callable[[], dict[str, Any]]) -> Iterator[Any]:
    """The `RunFolder`, held by this run until the end of the block; None without a folder."""
    if not folder:
        yield None
        return
    with checkpoint.run_lock("train", folder):
        yield RunFolder(folder, marks())


def fresh(leaf: Any) -> Array:
    """A copy, strongly typed, whose memory a program may overwrite."""
    leaf = jax.numpy.asarray(leaf)
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf.copy() if is_key else jax.numpy.array(leaf, dtype=leaf.dtype, copy=True)


def _mark_of_step(step: Step, ts: TrainState, batches: Batches, key: Array) -> str:
    """A checksum of the step as a program: of its operations, and of the arrays it closes over."""

    def first(batches: Batches) -> Any:
        return batches.draw(batches.in_order()[0])

    batch, mask = jax.eval_shape(first, batches)
    # A run by shares is the same run on any number of devices.
    with as_on_one_device(True):
        return checkpoint.fingerprint_program(step, ts, batch, key, mask)
