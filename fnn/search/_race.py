"""A race: many runs trained a few epochs at a time, and between, those that are done are taken out.

Between two rungs a member is a dict of NumPy arrays. A rung takes the members that go on in groups
of one size, so one program serves all rungs. A place of a group that no member has runs no epoch.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base import Interrupts, as_count, counter, number_of
from fnn.checkpoint import run_lock
from fnn.search._points import plan_of
from fnn.search._population import Population
from fnn.search._pruning import Prune
from fnn.search._race_folder import RaceFolder
from fnn.search._race_members import Arrays, Kind, Members
from fnn.search._trainable import TO_RUN, Keep, Trainable, as_trainable, kept_of
from fnn.training import (
    EarlyStopping,
    check_same,
    everyone,
    fetch,
    is_first,
    sweep_with,
    together,
)

SAVE_SECONDS = 60.0  # a long rung is saved on the way too
ONE_AFTER_ANOTHER = 8  # members of a group on each device, if that is a CPU
SIDE_BY_SIDE = 256  # elsewhere


def race(
    trainable: Trainable | tuple[Callable[..., Any], Callable[..., Any]],
    keys: Array,
    grid: Mapping[str, Any] | None = None,
    *,
    points: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    epochs: int,
    every: int = 1,
    stop: EarlyStopping | None = None,
    prune: Prune | None = None,
    keep: Keep | None = None,
    folder: str | Path | None = None,
    width: int | None = None,
    progress: bool = True,
) -> Population:
    """(init, update) for each of keys [n] at each point -> `Population`, leaves [n, *axes, ...].

    All runs are trained `every` epochs, a rung; then those that are done are taken out, and the
    others go on. Neither `stop` nor `prune` changes a bit of the runs that go on.

    - `keys`, `grid`, `points`, `width`: as in `population`. Each combination of values that shape
      the program is one program, compiled once. It trains a group of members at a time.
    - `epochs`: the most that a run is trained. `every`: the epochs of a rung.
    - `stop`: a run that has stopped is frozen at that epoch, as in ``fnn.fit_until``, and taken out
      at the end of the rung. The policies "stop" and "raise" of a train state end a run too.
    - `prune`: a rule such as `SuccessiveHalving` or `Wilcoxon`, or one's own. Between two rungs,
      ``prune(history) -> bool [points]`` says which points go on; the others are dropped, with all
      keys. `history` has for each metric a NumPy array [n, points, epochs so far]. From its best
      epoch on, a run that has stopped has the values of that epoch. Points that were dropped are
      NaN. If a rule drops every point that is left, none is dropped.
    - `keep`: keep(state) is what is kept of a run's last state, and of its best with `stop`.
    - `folder`: the race is saved after each rung. The same call goes on from there, to the same
      bits; it may have more epochs. Another race in the folder is a ValueError. A rule of one's own
      is not compared.

    The values of the population:

    - each metric [n, *axes]: at the best epoch with `stop`, else at the last epoch of the run. Of
      points that were dropped it is NaN, so ``.best("val_loss")`` is the best of the others;
    - "history": {metric: [n, *axes, epochs]}, NaN for epochs that were not run;
    - "epochs" [n, *axes]: how many were run;
    - "best_epoch" [n, *axes], with `stop`: from 0; -1 if there is none;
    - "last", and "best" with `stop`: what `keep` gives.

    ``.replay(member)`` trains one run again alone, for as many epochs as it had. It gives the same
    values, with the whole states as "last" and "best".

    Ctrl-C or SIGTERM ends the race after the present group. It is saved and returned. Of several
    processes all have the whole population, and process 0 writes the folder, which all must see.
    """
    epochs, every = as_count("race", "epochs", epochs), as_count("race", "every", every)
    if epochs < every:
        raise ValueError(f"race: epochs is {epochs}, expected at least every, which is {every}")
    if prune is not None and not callable(prune):
        raise TypeError(
            f"race: prune is a {type(prune).__name__}, expected a rule, such as"
            ' SuccessiveHalving("loss")'
        )
    plan = plan_of("race", keys, grid, points)
    pair, stop = as_trainable(trainable, keep), _with_plain_numbers(stop)
    members = Members(pair, plan, stop, keep, every, epochs)
    members.check_monitor("prune", getattr(prune, "monitor", None))
    groups = _Groups(members, width)
    progress = progress and is_first()
    with _opened(folder, members, prune) as saved:
        if saved is not None and _read(saved) and progress:
            print(f"race: goes on from epoch {members.at} of {folder}", file=sys.stderr)
        said = counter("epoch", epochs, members.at, progress)
        with Interrupts() as interrupts, said as say:
            while members.running.any() and members.at < epochs and not _ended(interrupts):
                _prune(members, groups, prune)
                _rung(members, groups, epochs, saved, interrupts)
                _write(saved)
                say(members.at, f"{members.running.sum()} of {members.plan.members} runs go on")
        return _population(members, groups, epochs)


def _with_plain_numbers(stop: Any) -> Any:
    """The rule with numbers of Python's, which have a hash."""
    if stop is None:
        return None
    if not isinstance(stop, EarlyStopping):
        raise TypeError(f"race: stop is {stop!r}, expected fnn.EarlyStopping(...)")
    numbers = {name: number_of(value) for name, value in stop._asdict().items()}
    return stop._replace(**{name: v for name, v in numbers.items() if v is not None})


@contextmanager
def _opened(
    folder: str | Path | None, members: Members, prune: Prune | None
) -> Iterator[RaceFolder | None]:
    if folder is None:
        yield None
        return
    with ExitStack() as held:
        lock = run_lock("race", folder) if is_first() else nullcontext()
        together("race", lambda: held.enter_context(lock))
        yield RaceFolder(folder, members, prune)


def _read(saved: RaceFolder) -> bool:
    """Whether there was a race in the folder; then it is where it was saved, on every process."""
    found = together("race", saved.read)
    check_same("race", folder=saved.members.epochs)
    return found


def _write(saved: RaceFolder | None) -> None:
    if saved is not None and is_first():
        saved.write()


def _ended(interrupts: Interrupts) -> bool:
    """Whether a signal was seen, by any process."""
    return bool(everyone([interrupts.seen]).any())


# --- between two rungs, and a rung --------------------------------------------------------------


def _prune(members: Members, groups: "_Groups", prune: Prune | None) -> None:
    """Ask the rule, once at each rung, and take out the points that it drops."""
    at = members.at
    if prune is None or at == members.judged or at % members.every:
        return
    points = len(members.plan.points)
    going = np.asarray(prune(members.for_rules(at)))
    if going.shape != (points,) or going.dtype != bool:
        raise ValueError(
            f"race: prune returned {going.dtype}{list(going.shape)}, expected bool[{points}], one"
            " for each point"
        )
    members.drop(~going)
    members.judged = at
    groups.leave(members)


def _rung(
    members: Members,
    groups: "_Groups",
    epochs: int,
    saved: RaceFolder | None,
    interrupts: Interrupts,
) -> None:
    """Train all who go on until the end of the rung, or until a signal comes."""
    end = min((members.at // members.every + 1) * members.every, epochs)
    before = time.monotonic()
    for kind, numbers in groups.of_all(members, members.running & (members.epochs < end)):
        if _ended(interrupts):
            break
        groups.train(members, kind, numbers, end)
        if time.monotonic() - before > SAVE_SECONDS:
            _write(saved)
            before = time.monotonic()
    groups.leave(members)


class _Groups:
    """Members of one program by the group: a number of members that is always the same."""

    def __init__(self, members: Members, width: int | None):
        self.width = None if width is None else as_count("race", "width", width)
        devices, most = jax.devices(), max(len(kind.program.members) for kind in members.kinds)
        each = ONE_AFTER_ANOTHER if devices[0].platform == "cpu" else SIDE_BY_SIDE
        each = min(each, -(-most // len(devices)))
        each = max(each, self.width or 1)
        # A device takes places in a row. Members are dealt to the devices in turn, so that those
        # of a group that is not full are on all devices.
        self.order = np.arange(each * len(devices)).reshape(each, -1).T.ravel()

    def of_all(self, members: Members, chosen: np.ndarray) -> Iterator[tuple[Kind, list[int]]]:
        """The chosen members, by the group."""
        yield from ((kind, numbers) for kind in members.kinds for numbers in self.of(kind, chosen))

    def of(self, kind: Kind, chosen: np.ndarray) -> Iterator[list[int]]:
        """The chosen members of the program, by the group."""
        numbers, size = [n for n in kind.program.members if chosen[n]], len(self.order)
        yield from (numbers[i : i + size] for i in range(0, len(numbers), size))

    def train(self, members: Members, kind: Kind, numbers: list[int], end: int) -> None:
        """Train these members until the epoch `end`."""
        new = [number for number in numbers if number not in members.arrays]
        if new:
            started = self._swept(members, kind.functions.start, new, self._values(kind, new))
            members.arrays |= dict(zip(new, started, strict=True))
        given = self._values(kind, numbers) | _stacked(members.arrays, numbers)
        given[TO_RUN] = np.array(end - members.epochs[numbers], np.int32)
        for number, came in zip(
            numbers, self._swept(members, kind.functions.rung, numbers, given), strict=True
        ):
            members.note(number, came)

    def leave(self, members: Members) -> None:
        """Take out those who are not running, and keep what is kept of them."""
        for kind in members.kinds:
            for number, kept in self.kept(members, kind, ~members.running).items():
                members.kept[number] = kept
                del members.arrays[number]

    def kept(self, members: Members, kind: Kind, chosen: np.ndarray) -> dict[int, Arrays]:
        """What is kept of the chosen members that have not left, by their numbers."""
        held = [n for n in kind.program.members if chosen[n] and n in members.arrays]
        if members.keep is None:
            return {number: {} for number in held}
        kept: dict[int, Arrays] = {}
        for numbers in self.of(kind, np.isin(np.arange(len(chosen)), held)):
            given = _stacked(members.arrays, numbers)
            rows = self._swept(members, kind.functions.kept, numbers, given)
            kept |= dict(zip(numbers, rows, strict=True))
        return kept

    def _values(self, kind: Kind, numbers: list[int]) -> Arrays:
        return kind.program.rows(np.searchsorted(kind.program.members, numbers))

    def _swept(
        self,
        members: Members,
        run: Callable[..., Any],
        numbers: list[int],
        given: Arrays,
    ) -> list[Any]:
        """What run(key, **given) gives for each member. A place without one runs no epoch."""
        rank = np.minimum(self.order, len(numbers) - 1)
        keys = members.plan.keys[np.array(numbers)[rank] // len(members.plan.points)]
        paired = {name: values[rank] for name, values in given.items()}
        if TO_RUN in paired:
            paired[TO_RUN] = np.where(self.order < len(numbers), paired[TO_RUN], 0)
        results = fetch(sweep_with("race", run, keys, None, self.width, paired=paired))
        at = np.argsort(self.order)[: len(numbers)]
        return [jax.tree.map(lambda a, i=i: a[i], results) for i in at]


def _stacked(arrays: dict[int, Arrays], numbers: list[int]) -> Arrays:
    names = arrays[numbers[0]]
    return {name: np.stack([arrays[number][name] for number in numbers]) for name in names}


# --- the result ---------------------------------------------------------------------------------


def _population(members: Members, groups: _Groups, epochs: int) -> Population:
    plan = members.plan
    values: dict[str, Any] = {
        name: np.where(members.dropped, np.array(np.nan, a.dtype), a)
        for name, a in members.at_chosen().items()
    }
    values |= {"history": members.history, "epochs": members.epochs}
    if members.stop is not None:
        values["best_epoch"] = members.best_epoch
    if members.keep is not None:
        values |= _all_kept(members, groups)
    values = jax.tree.map(lambda a: a.reshape(*plan.shape, *a.shape[1:]), values)
    done = (~members.running | (members.epochs >= epochs)).reshape(plan.shape)
    members.arrays.clear()  # `replay` needs none, and the population holds the members
    members.kept.clear()
    return Population(values, plan.named_axes, plan.points, done, partial(_again, members))


def _all_kept(members: Members, groups: _Groups) -> dict[str, Any]:
    """What is kept of all members, [members, ...]; NaN or 0 of those that never ran."""
    like = members.kinds[0].functions
    kept = dict(members.kept)
    for kind in members.kinds:
        kept |= groups.kept(members, kind, members.running)
    leaves = []
    for name, shape in like.keeps.items():
        nothing = np.nan if jnp.issubdtype(shape.dtype, jnp.inexact) else 0
        leaf = np.full((members.plan.members, *shape.shape), nothing, shape.dtype)
        for number, arrays in kept.items():
            leaf[number] = arrays[name]
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(like.kept_like), leaves)


def _again(members: Members, number: int) -> dict[str, Any]:
    """One member alone, for as many epochs as it had, with its whole states."""
    kind = next(k for k in members.kinds if number in k.program.members)
    at = np.searchsorted(kind.program.members, number)
    numbers = {name: values[at] for name, values in kind.program.columns.items()}
    epochs, most = int(members.epochs[number]), max(int(members.epochs.max()), 1)
    key = members.plan.keys[members.plan.key_of(number)]
    progress, means = kind.functions.alone(most)(key, numbers, np.int32(epochs))
    history = {name: np.asarray(values)[:epochs] for name, values in means.items()}
    chosen = epochs - 1 if members.stop is None else int(progress.best.epoch)
    values = {name: values[chosen] if chosen >= 0 else np.nan for name, values in history.items()}
    values |= {"history": history, "epochs": int(progress.epochs)}
    if members.stop is not None:
        values["best_epoch"] = chosen
    return values | jax.device_get(kept_of(None, progress))
