"""The folder of a race: it is saved as it stands, and knows its race again."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fnn import checkpoint
from fnn._base import number_of
from fnn.search._pruning import Prune
from fnn.search._race_members import Arrays, Members

# What makes a race that race, as a message names it.
MARKS = {
    "keys": "keys",
    "points": "points",
    "every": "every",
    "stop": "stop",
    "prune": "prune",
    "programs": "init or update: what they compute, or the arrays that they close over",
    "keep": "keep",
}
SHORT = ("every", "stop", "prune")  # those that a message shows
OF_VERSIONS = ("programs", "keep")  # another version of JAX or fnn may write them differently
STANDING = ("epochs", "best_epoch", "stopped", "dropped")


class RaceFolder:
    """Saves and reads a race. To read another race is an error."""

    def __init__(self, folder: str | Path, members: Members, prune: Prune | None):
        self.folder, self.members = Path(folder), members
        self.marks = _marks(members, prune)
        self.written = -1

    def write(self) -> None:
        """Save the race as it stands, unless it is saved already."""
        members = self.members
        if (step := int(members.epochs.sum())) == self.written:
            return
        tree = {name: getattr(members, name) for name in STANDING}
        tree |= {f"history/{name}": values for name, values in members.history.items()}
        for what in ("arrays", "kept"):
            tree |= self._stacked(what)
        checkpoint.save_last(self.folder, tree, self.marks | {"judged": members.judged}, step=step)
        self.written = step

    def _stacked(self, what: str) -> Arrays:
        """The arrays of the members of each program, and these members' numbers."""
        held, stacked = getattr(self.members, what), {}
        for i, kind in enumerate(self.members.kinds):
            numbers = [number for number in kind.program.members if number in held]
            if numbers:
                stacked[f"{what}/{i}/members"] = np.array(numbers, np.int32)
                for name in held[numbers[0]]:
                    stacked[f"{what}/{i}/{name}"] = np.stack([held[n][name] for n in numbers])
        return stacked

    def read(self) -> bool:
        """Put the race where it was saved last; False if the folder holds none."""
        if not any(self.folder.glob("step_*.safetensors")):
            return False
        tree, extra = checkpoint.load_last(self.folder, self._like())
        members, first = self.members, next(iter(self.members.metrics))
        members.widen(tree[f"history/{first}"].shape[1])
        for name in STANDING:
            getattr(members, name)[:] = tree[name]
        for name, values in members.history.items():
            saved = tree[f"history/{name}"]
            values[:, : saved.shape[1]] = saved
        for what in ("arrays", "kept"):
            self._unstack(what, tree)
        members.judged = extra["judged"]
        self.written = int(members.epochs.sum())
        return True

    def _like(self) -> Callable[[Any], Arrays]:
        def like(header: Any) -> Arrays:
            self._refuse_another(header)
            leaves = header["leaves"].items()
            return {path: np.empty(leaf["shape"], leaf["dtype"]) for path, leaf in leaves}

        return like

    def _unstack(self, what: str, tree: Arrays) -> None:
        held = getattr(self.members, what)
        for i in range(len(self.members.kinds)):
            prefix = f"{what}/{i}/"
            rows = {p.removeprefix(prefix): a for p, a in tree.items() if p.startswith(prefix)}
            for at, number in enumerate(rows.pop("members", ())):
                held[int(number)] = {name: values[at] for name, values in rows.items()}

    def _refuse_another(self, header: Any) -> None:
        same = all(header["versions"].get(n) == metadata.version(n) for n in ("fnn", "jax"))
        compared = [name for name in MARKS if same or name not in OF_VERSIONS]
        found = header["extra"]
        others = [
            MARKS[name] + (f" ({found.get(name)}, now {self.marks[name]})" if name in SHORT else "")
            for name in compared
            if found.get(name) != self.marks[name]
        ]
        if not others and not self._fits(header["leaves"]):  # another version's
            others = ["state: its arrays"]
        if others:
            raise ValueError(
                f"race: {self.folder} holds another race, with another {'; another '.join(others)}."
                " Use another folder"
            )

    def _fits(self, leaves: Any) -> bool:
        """Whether the arrays of members have the shapes of this race."""
        for i, kind in enumerate(self.members.kinds):
            for what, shapes in (
                ("arrays", kind.functions.progress),
                ("kept", kind.functions.keeps),
            ):
                prefix = f"{what}/{i}/"
                found = {
                    path.removeprefix(prefix): (tuple(leaf["shape"][1:]), leaf["dtype"])
                    for path, leaf in leaves.items()
                    if path.startswith(prefix) and path != f"{prefix}members"
                }
                wanted = {name: (a.shape, a.dtype.name) for name, a in shapes.items()}
                if found and found != wanted:
                    return False
        return True


def _marks(members: Members, prune: Prune | None) -> dict[str, Any]:
    """What another race would have otherwise, each as a value that JSON can hold."""
    plan, stop, mark = members.plan, members.stop, checkpoint.fingerprint
    of_kinds = [kind.functions.marks for kind in members.kinds]
    return {
        "keys": mark(plan.keys),
        "points": [{name: _plain(value) for name, value in p.items()} for p in plan.points],
        "every": members.every,
        "stop": stop and {name: _plain(value) for name, value in stop._asdict().items()},
        "prune": prune and (repr(prune) if hasattr(prune, "monitor") else "a function"),
        "programs": [[marks[name] for name in ("init", "update")] for marks in of_kinds],
        "keep": members.keep and [marks["keep"] for marks in of_kinds],
    }


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    number = number_of(value)
    if number is not None or isinstance(value, str | None):
        return value if number is None else number
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray | jax.Array):
        return checkpoint.fingerprint(value)
    return getattr(value, "__qualname__", None) or repr(value)
