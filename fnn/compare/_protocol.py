"""The protocol: search, choice, fresh seeds, twins, noise floor, the cost of an update.

Every rule gets the same trials. Its point is chosen on the validation rows, by the mean over the
trial seeds. The point is then trained again from fresh seeds, which took no part in the choice, and
these runs are reported on the test rows. All rules share seeds: initial weights and order of
batches. The same is done once more with a learning rate that is one bit larger, and by the rule's
Optax twin; so much is noise.

All of this is made of pieces (`_pieces.py`). A rule is compiled once, its twin once; other threads
compile while this one trains. Each piece is kept when it is done.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.compare._cost import cost_of, update_program
from fnn.compare._pieces import Compiled, Member, Work, compiled, mark_of, piece_size, trained
from fnn.compare._plan import Plan
from fnn.compare._rule import Rule
from fnn.compare._run import one_bit_more
from fnn.compare._statistics import best_trial
from fnn.compare._store import Piece, Store
from fnn.compare._twins import largest_difference, update_difference

Progress = Callable[[int, int, str], None]  # progress(pieces done, of, what is done now)


class Result(NamedTuple):
    """What the pieces of a rule hold: leaves [members of the search, ...] and [seeds, ...]."""

    rule: Rule
    best: int
    search: Piece
    final: Piece
    one_bit: Piece
    twin: Piece | None
    updates: float | None = None  # `update_difference`
    cost: dict[str, float] | None = None


def results(plan: Plan, store: Store, tell: Progress) -> Iterator[list[Result]]:
    """The results of the rules that are done, after each rule; the last has everything."""
    with bench(plan, store, tell) as work:
        work.compile_ahead()
        done: list[Result] = []
        for rule in plan.rules:
            done = [*done, work.rule(rule)]
            yield done
        for i, result in enumerate(work.finished(done)):
            done = [*done[:i], result, *done[i + 1 :]]
            yield done


@contextmanager
def bench(plan: Plan, store: Store, tell: Progress) -> "Iterator[Bench]":
    """A bench whose threads end with it."""
    workers = max(1, min(4, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(workers, "fnn-compare")
    try:
        yield Bench(plan, store, pool, tell)
    finally:
        pool.shutdown(cancel_futures=True)


class Bench:
    """The rules of a plan at work: programs compiled ahead, pieces kept in the store."""

    def __init__(self, plan: Plan, store: Store, pool: ThreadPoolExecutor, tell: Progress) -> None:
        self.plan, self.store, self.pool, self.tell = plan, store, pool, tell
        self.size = piece_size(plan, plan.trials * plan.trial_seeds, 2 * plan.seeds)
        self.twin_size = piece_size(plan, plan.seeds)
        self.marks = {rule.name: mark_of(plan, rule, self.size) for rule in plan.rules}
        self.programs: dict[str, Future[Compiled]] = {}
        self.updates: dict[str, Future[float]] = {}
        self.total = sum(map(self.pieces_of, plan.rules))
        self.done = 0
        # A setting of JAX's that belongs to this thread.
        self.promotion = jax.config.jax_numpy_dtype_promotion  # pyright: ignore[reportAttributeAccessIssue]

    # --- what there is to do --------------------------------------------------------------------

    def search(self, rule: Rule) -> Work:
        """Every trial from every trial seed."""
        seeds = range(self.plan.trial_seeds)
        runs: list[Member] = [
            ("trial", s, point) for point in self.plan.points[rule.name] for s in seeds
        ]
        return Work(rule, rule.make, "search", runs, self.size)

    def final(self, rule: Rule, best: int) -> Work:
        """The chosen trial from fresh seeds; then with a rate one bit larger."""
        point, seeds = self.plan.points[rule.name][best], range(self.plan.seeds)
        points = point, one_bit_more(point)
        runs: list[Member] = [("fresh", s, p) for p in points for s in seeds]
        return Work(rule, rule.make, f"final_{best}", runs, self.size)

    def twin(self, rule: Rule, best: int) -> Work | None:
        """The chosen trial by Optax; None if Optax does not have the rule, or what is tuned."""
        make = rule.twin_for([axis.name for axis in self.plan.axes[rule.name]])
        if make is None:
            return None
        point, seeds = self.plan.points[rule.name][best], range(self.plan.seeds)
        runs: list[Member] = [("fresh", s, point) for s in seeds]
        return Work(rule, make, f"twin_{best}", runs, self.twin_size)

    def pieces_of(self, rule: Rule) -> int:
        """How many pieces a rule has: search, fresh seeds, twin, both side by side, cost."""
        works = self.search(rule), self.final(rule, 0), self.twin(rule, 0)
        trained = [len(work.pieces) for work in works if work is not None]
        return sum(trained) + (works[2] is not None) + 1

    # --- the store ------------------------------------------------------------------------------

    def kept(self, work: Work) -> list[Piece] | None:
        """All pieces of this work, if they are all there."""
        pieces = [self.store.get(place, self.marks[work.rule.name]) for place, _ in work.pieces]
        found = [piece for piece in pieces if piece is not None]
        return found if len(found) == len(pieces) else None

    def best(self, rule: Rule, search: Piece) -> int:
        """Index of the trial that validates best."""
        shape = self.plan.trials, self.plan.trial_seeds
        valid, loss = (search[name].reshape(shape) for name in ("valid", "valid_loss"))
        return best_trial(valid, self.plan.problem.better, loss)

    # --- compiling ------------------------------------------------------------------------------

    def submit(self, work: Callable[..., Any], *given: Any) -> Future[Any]:
        """Do it in a thread of the pool, with JAX's settings of this one."""

        def with_settings() -> Any:
            with jax.numpy_dtype_promotion(self.promotion):
                return work(*given)

        return self.pool.submit(with_settings)

    def compile_ahead(self) -> None:
        """Begin to compile what is needed, in the order in which it is."""
        for rule in self.plan.rules:
            pieces = self.kept(self.search(rule))
            if pieces is None:
                self.program(self.search(rule))
            best = 0 if pieces is None else self.best(rule, _joined(pieces))
            for work in (self.final(rule, best), self.twin(rule, best)):
                if work is not None and (pieces is None or self.kept(work) is None):
                    self.program(work)

    def program(self, work: Work) -> Future[Compiled]:
        """The program of this work, perhaps not compiled yet."""
        if work.who not in self.programs:
            names = [axis.name for axis in self.plan.axes[work.rule.name]]
            given = self.plan, work.make, names, work.size
            self.programs[work.who] = self.submit(compiled, *given)
        return self.programs[work.who]

    # --- training -------------------------------------------------------------------------------

    def say(self, doing: str, more: int = 0) -> None:
        """Tell what is done now, after `more` pieces more."""
        self.done += more
        self.tell(self.done, self.total, doing)

    def run(self, work: Work, keep: Callable[[int, Piece], Piece]) -> Piece:
        """The results of all members, leaves [members, ...].

        ``keep(first, piece)`` is what is kept of a piece whose first member is `first`.
        """
        mark, found = self.marks[work.rule.name], []
        for place, first in work.pieces:
            piece = self.store.get(place, mark)
            if piece is None:
                piece = self.train(work, first, keep)
                self.store.put(place, mark, piece)
            self.say(work.who, 1)
            found.append(piece)
        return _joined(found)

    def train(self, work: Work, first: int, keep: Callable[[int, Piece], Piece]) -> Piece:
        """The piece whose first member is `first`, with the seconds that each member took."""
        members, future = work.members[first : first + work.size], self.program(work)
        if not future.done():
            self.say(f"{work.who}: compiling")
        program, seconds = future.result()
        n = len(members)
        self.say(f"{work.who}: training {n} networks")
        start = time.perf_counter()
        piece = keep(first, trained(self.plan, program, members, work.size))
        took = (time.perf_counter() - start) / n
        return piece | {"run_seconds": np.full(n, took), "compile_seconds": np.full(n, seconds)}

    def rule(self, rule: Rule) -> Result:
        """Search, choose, and train from fresh seeds, by hand and by Optax."""
        seeds = self.plan.seeds
        search = self.run(self.search(rule), lambda _, piece: _of_search(piece))
        best = self.best(rule, search)
        both = self.run(self.final(rule, best), lambda first, piece: _of_final(seeds, first, piece))
        final = jax.tree.map(lambda leaf: leaf[:seeds], both)
        one_bit = jax.tree.map(lambda leaf: leaf[seeds:], both)
        work, theirs = self.twin(rule, best), None
        if work is not None:
            ours = final["params"]
            theirs = self.run(work, lambda first, piece: _of_twin(ours, first, piece))
            if theirs["apart"].max() > 0 and self.measured(rule, f"updates_{best}") is None:
                given = self.plan, rule.make, work.make, self.plan.points[rule.name][best]
                self.updates[rule.name] = self.submit(update_difference, *given)
        return Result(rule, best, search, final, one_bit, theirs)

    # --- what is measured when all rules are through --------------------------------------------

    def measured(self, rule: Rule, what: str) -> Piece | None:
        """A measurement that is kept already."""
        return self.store.get(f"{rule.name}/{what}", self.marks[rule.name])

    def measure(self, rule: Rule, what: str, doing: str, make: Callable[[], Piece]) -> Piece:
        """The measurement, kept."""
        self.say(f"{rule.name}: {doing}")
        found = self.measured(rule, what)
        if found is None:
            found = make()
            self.store.put(f"{rule.name}/{what}", self.marks[rule.name], found)
        self.say(f"{rule.name}: {doing}", 1)
        return found

    def finished(self, results: Sequence[Result]) -> Iterator[Result]:
        """The results with the twins side by side and the cost of an update.

        The cost is measured last, when nothing else runs.
        """
        programs = {
            r.rule.name: self.submit(update_program, self.plan, r.rule)
            for r in results
            if self.measured(r.rule, "cost") is None
        }
        made = [result._replace(updates=self.side_by_side(result)) for result in results]
        for program in programs.values():
            program.result()
        for result in made:
            yield result._replace(cost=self.cost(result.rule, programs))

    def side_by_side(self, result: Result) -> float | None:
        """The `update_difference` of a rule and its twin; None without a twin."""
        rule = result.rule
        if result.twin is None:
            return None
        same = result.twin["apart"].max() == 0

        def make() -> Piece:
            return {"apart": np.float64(0 if same else self.updates[rule.name].result())}

        what = "same" if same else f"updates_{result.best}"
        return float(self.measure(rule, what, "both side by side, in float64", make)["apart"])

    def cost(self, rule: Rule, programs: Mapping[str, Future[Any]]) -> dict[str, float]:
        """What an update costs."""

        def make() -> Piece:
            return cost_of(*programs[rule.name].result())

        cost = self.measure(rule, "cost", "cost of an update", make)
        return {name: float(value) for name, value in cost.items()}


def _of_search(piece: Piece) -> Piece:
    """What is kept of a search: nothing of the test rows."""
    return {name: piece[name] for name in ("valid", "valid_loss", "skipped", "digest")}


def _of_final(seeds: int, first: int, piece: Piece) -> Piece:
    """What is kept of final runs: parameters for the twins, none of a rate one bit larger."""
    wanted = max(0, seeds - first)
    return piece | {"params": {n: leaf[:wanted] for n, leaf in piece["params"].items()}}


def _of_twin(ours: Piece, first: int, piece: Piece) -> Piece:
    """What is kept of the twin's runs: how far their parameters are from ours."""
    params, n = piece.pop("params"), len(piece["valid"])
    mine = {name: leaf[first : first + n] for name, leaf in ours.items()}
    return piece | {"apart": largest_difference(mine, params)}


def _joined(pieces: Sequence[Piece]) -> Piece:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)
