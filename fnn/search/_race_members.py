"""The members of a race on the host: how far each is, what it measured, and its arrays."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.search._points import Plan
from fnn.search._programs import Program, programs_of
from fnn.search._trainable import Functions, Keep, Trainable, functions_of, said_shapes
from fnn.training import EarlyStopping

Arrays = dict[str, np.ndarray]


class Kind(NamedTuple):
    """The members that one program trains, and their functions."""

    program: Program
    functions: Functions


class Members:
    """All members of a race, by their numbers. What can be known before it starts is checked."""

    def __init__(
        self,
        pair: Trainable,
        plan: Plan,
        stop: EarlyStopping | None,
        keep: Keep | None,
        every: int,
        epochs: int,
    ):
        self.pair, self.plan, self.stop, self.keep, self.every = pair, plan, stop, keep, every
        self.kinds = [self._kind(program) for program in programs_of("race", plan)]
        self.metrics = self.kinds[0].functions.metrics
        self._check_alike()
        self.check_monitor("stop", None if stop is None else stop.monitor)
        n = plan.members
        self.epochs = np.zeros(n, np.int32)  # run so far
        self.best_epoch = np.full(n, -1, np.int32)
        self.stopped, self.dropped = np.zeros(n, bool), np.zeros(n, bool)
        self.history: Arrays = {}  # of each metric [n, columns], NaN where no epoch was run
        self.widen(epochs)
        self.judged = 0  # the last epoch at which a rule was asked
        self.arrays: dict[int, Arrays] = {}  # of the members that may go on
        self.kept: dict[int, Arrays] = {}  # of those that may not

    def _kind(self, program: Program) -> Kind:
        key = jax.eval_shape(lambda keys: keys[0], self.plan.keys)
        numbers = {
            name: jax.ShapeDtypeStruct(values.shape[1:], values.dtype)
            for name, values in program.columns.items()
        }
        given = program.static, self.stop, self.keep, self.every
        return Kind(program, functions_of(self.pair, *given, key, numbers))

    def _check_alike(self) -> None:
        """An error unless all programs measure and keep the same."""
        first = self.kinds[0]
        for kind in self.kinds[1:]:
            for what, does in (("metrics", "measure"), ("kept_like", "keep")):
                one, other = (getattr(k.functions, what) for k in (first, kind))
                if one != other:
                    raise ValueError(
                        f"race: the runs of {kind.program.static} {does} {said_shapes(other)},"
                        f" expected {said_shapes(one)}, as those of {first.program.static}"
                    )

    def check_monitor(self, whose: str, monitor: str | None) -> None:
        """An error unless it is a metric."""
        if monitor is not None and monitor not in self.metrics:
            names = ", ".join(self.metrics)
            raise ValueError(f"race: {whose} has the monitor {monitor!r}, expected one of {names}")

    def widen(self, columns: int) -> None:
        """Have at least this many epochs in the history."""
        for name, dtype in self.metrics.items():
            old = self.history.get(name, np.zeros((self.plan.members, 0), dtype))
            new = np.full((len(old), max(columns, old.shape[1])), np.nan, dtype)
            new[:, : old.shape[1]] = old
            self.history[name] = new

    @property
    def running(self) -> np.ndarray:
        """bool [members], which may go on."""
        return ~self.stopped & ~self.dropped

    @property
    def at(self) -> int:
        """The epochs that all who may go on have run; if there is none, the most of all."""
        running = self.running
        return int(self.epochs[running].min() if running.any() else self.epochs.max())

    def note(self, number: int, came: Any) -> None:
        """What a rung gave for this member."""
        before, now = self.epochs[number], int(came["epochs"])
        for name, values in came["means"].items():
            self.history[name][number, before:now] = values[: now - before]
        self.epochs[number] = now
        self.stopped[number] = came["stopped"]
        self.best_epoch[number] = came["best_epoch"]
        self.arrays[number] = came["arrays"]

    def drop(self, points: np.ndarray) -> None:
        """Drop these points, bool [points], unless nobody would be left."""
        dropped = np.tile(points, len(self.plan.keys))
        if (~self.dropped & ~dropped).any():
            self.dropped |= dropped

    def chosen(self) -> np.ndarray:
        """Of each member the epoch that counts: its best with `stop`, else its last; -1 if none."""
        return self.epochs - 1 if self.stop is None else self.best_epoch

    def at_chosen(self) -> Arrays:
        """Of each metric [members], at the epoch that counts; NaN if there is none."""
        chosen = self.chosen()[:, None]
        found = {}
        for name, values in self.history.items():
            there = np.take_along_axis(values, np.maximum(chosen, 0), axis=1)
            found[name] = np.where(chosen >= 0, there, np.nan)[:, 0].astype(values.dtype)
        return found

    def for_rules(self, at: int) -> Arrays:
        """The history until epoch `at` as a rule reads it, [n keys, points, at]."""
        after = self.stopped[:, None] & (np.arange(at) >= self.chosen()[:, None])
        final, shape = self.at_chosen(), (len(self.plan.keys), len(self.plan.points), at)
        read = {}
        for name, values in self.history.items():
            values = np.where(after, final[name][:, None], values[:, :at])
            read[name] = np.where(self.dropped[:, None], np.nan, values).reshape(shape)
        return read
