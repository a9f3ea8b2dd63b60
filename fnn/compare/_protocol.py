"""The protocol: search, choice, fresh seeds, twins, noise floor, the cost of an update.

Every rule gets the same trials. Its point is chosen on the validation rows, by the mean over the
trial seeds. The point is then trained again from fresh seeds, which took no part in the choice, and
these runs are reported on the test rows. All rules share seeds: initial weights and order of
batches. The same is done once more with a learning rate that is one bit larger, and by the rule's
Optax twin; so much is noise.

All of this is made of pieces: a number of members, each a key and a point, trained by one compiled
program. A rule is compiled once, its twin once; other threads compile while this one trains. Each
piece is kept when it is done.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base import Params
from fnn.compare._cost import cost_of, update_program
from fnn.compare._plan import Plan
from fnn.compare._problem import Parts
from fnn.compare._rules import Make, Rule
from fnn.compare._run import Kind, as_float32, at_point, digest_of, key_of, member, one_bit_more
from fnn.compare._statistics import best_trial
from fnn.compare._store import Piece, Store
from fnn.compare._tuning import Point
from fnn.compare._twins import largest_difference, update_difference
from fnn.training import sweep

SECONDS = 60.0  # that a piece may take, roughly
FLOPS_A_SECOND = {"cpu": 2e10}  # of a core, roughly; of another device:
FLOPS_OF_ACCELERATOR = 2e12
MOST_MEMBERS = 64  # of a piece

Progress = Callable[[int, int, str], None]  # progress(pieces done, of, what is done now)


Member = tuple[Kind, int, Point]


class Compiled(NamedTuple):
    """A program and the seconds that compiling it took."""

    program: Any
    seconds: float


class Work(NamedTuple):
    """Members of a rule, trained piece by piece by one program of `size` members."""

    rule: Rule
    make: Make
    name: str  # of its pieces: search_0, search_1, ...
    members: list[Member]
    size: int

    @property
    def who(self) -> str:
        """The rule, and who wrote it."""
        by = "by hand" if self.make is self.rule.make else "by Optax"
        return f"{self.rule.name} {by}"

    @property
    def pieces(self) -> list[tuple[str, int]]:
        """(place in the store, first member) of each piece."""
        firsts = range(0, len(self.members), self.size)
        return [(f"{self.rule.name}/{self.name}_{i}", first) for i, first in enumerate(firsts)]


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
                chunk, future = work.members[first : first + work.size], self.program(work)
                if not future.done():
                    self.say(f"{work.who}: compiling")
                program, seconds = future.result()
                self.say(f"{work.who}: training {len(chunk)} networks")
                start, n = time.perf_counter(), len(chunk)
                piece = keep(first, trained(self.plan, program, chunk, work.size))
                took = time.perf_counter() - start
                piece |= {
                    "run_seconds": np.full(n, took / n),
                    "compile_seconds": np.full(n, seconds),
                }
                self.store.put(place, mark, piece)
            self.say(work.who, 1)
            found.append(piece)
        return _joined(found)

    def rule(self, rule: Rule) -> "Result":
        """Search, choose, and train from fresh seeds, by hand and by Optax."""
        seeds = self.plan.seeds

        def keep_final(first: int, piece: Piece) -> Piece:
            wanted = max(0, seeds - first)  # for the twins; none of a rate one bit larger
            return piece | {"params": {n: leaf[:wanted] for n, leaf in piece["params"].items()}}

        def keep_twin(first: int, piece: Piece) -> Piece:
            params, n = piece.pop("params"), len(piece["valid"])
            ours = {name: leaf[first : first + n] for name, leaf in own["params"].items()}
            return piece | {"apart": largest_difference(ours, params)}

        search = self.run(self.search(rule), lambda _, piece: _of_search(piece))
        best = self.best(rule, search)
        final = self.run(self.final(rule, best), keep_final)
        own, one_bit = (
            jax.tree.map(lambda leaf: leaf[part], final)  # noqa: B023
            for part in (slice(seeds), slice(seeds, None))
        )
        result = Result(rule, best, search, own, one_bit, None)
        work = self.twin(rule, best)
        if work is None:
            return result
        theirs = self.run(work, keep_twin)
        if theirs["apart"].max() > 0 and self.measured(rule, f"updates_{best}") is None:
            given = self.plan, rule.make, work.make, self.plan.points[rule.name][best]
            self.updates[rule.name] = self.submit(update_difference, *given)
        return result._replace(twin=theirs)

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

    def finished(self, results: Sequence["Result"]) -> Iterator["Result"]:
        """The results with the twins side by side and the cost of an update.

        The cost is measured last, when nothing else runs.
        """
        programs = {
            r.rule.name: self.submit(update_program, self.plan, r.rule)
            for r in results
            if self.measured(r.rule, "cost") is None
        }
        made = []
        for result in results:
            rule, twin, apart = result.rule, result.twin, None
            if twin is not None:
                same = twin["apart"].max() == 0
                apart = self.measure(
                    rule,
                    "same" if same else f"updates_{result.best}",
                    "both side by side, in float64",
                    lambda: {"apart": np.float64(0 if same else self.updates[rule.name].result())},  # noqa: B023
                )["apart"]
            made.append(result._replace(updates=None if apart is None else float(apart)))
        for program in programs.values():
            program.result()
        for result in made:
            rule = result.rule
            cost = self.measure(
                rule,
                "cost",
                "cost of an update",
                lambda: cost_of(*programs[rule.name].result()),  # noqa: B023
            )
            yield result._replace(cost={name: float(value) for name, value in cost.items()})


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


def _of_search(piece: Piece) -> Piece:
    """What is kept of a search: nothing of the test rows."""
    return {name: piece[name] for name in ("valid", "valid_loss", "skipped", "digest")}


def _joined(pieces: Sequence[Piece]) -> Piece:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)


@contextmanager
def bench(plan: Plan, store: Store, tell: Progress) -> Iterator[Bench]:
    """A bench whose threads end with it."""
    workers = max(1, min(4, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(workers, "fnn-compare")
    try:
        yield Bench(plan, store, pool, tell)
    finally:
        pool.shutdown(cancel_futures=True)


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


def mark_of(plan: Plan, rule: Rule, size: int) -> str:
    """What a rule's pieces were made of: its update as a program, its points, the settings."""
    names = [axis.name for axis in plan.axes[rule.name]]
    shapes = dict.fromkeys(names, jax.ShapeDtypeStruct((), np.float32))

    def update(params: Params, point: dict[str, Array]) -> Any:
        optimizer = at_point(rule.make, plan.steps, point)
        return optimizer.update(params, optimizer.init(params), params)

    program = jax.make_jaxpr(update)(plan.params, shapes)
    text = re.sub(r" at 0x[0-9a-f]+", "", str(program))
    parts = [text, repr(plan.points[rule.name]), repr(plan.marks()), str(size)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def piece_size(plan: Plan, *work: int) -> int:
    """Members of a piece: as many as take about a minute, and with few places left empty.

    `work` are numbers of members that pieces of this size are made of.
    """
    devices = len(jax.devices())
    most = min(MOST_MEMBERS // devices, int(SECONDS / max(_seconds_of_a_member(plan), 1e-9)))
    sizes = [devices * n for n in range(1, max(1, most) + 1)]

    def places(size: int) -> int:
        return sum(-(-members // size) * size for members in work)

    least = min(map(places, sizes))
    return max(size for size in sizes if places(size) <= 1.1 * least)


def _seconds_of_a_member(plan: Plan) -> float:
    problem, key = plan.problem, jax.random.key(0)
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((plan.batch_size, *a.shape[1:]), a.dtype), plan.parts.train
    )

    def loss(params: Params, batch: Any) -> Array:
        return jnp.mean(problem.loss(params, batch, key))

    cost = jax.jit(jax.grad(loss)).lower(plan.params, batch).cost_analysis() or {}
    platform = jax.devices()[0].platform
    speed = FLOPS_A_SECOND.get(platform, FLOPS_OF_ACCELERATOR)
    return cost.get("flops", 0.0) * plan.steps / speed


def compiled(plan: Plan, make: Make, names: Sequence[str], size: int) -> Compiled:
    """The program of a piece: (parts, keys [size], {name: [size]}) -> leaves [size, ...]."""

    def piece(parts: Parts, keys: Array, points: dict[str, Array]) -> dict[str, Any]:
        run = partial(member, plan, make, parts)
        return sweep(run, keys, paired=points)

    start = time.perf_counter()
    keys = jax.random.split(jax.random.key(0), size)
    points = {name: jnp.zeros(size) for name in names}
    program = jax.jit(piece).lower(plan.parts, keys, points).compile()
    return Compiled(program, time.perf_counter() - start)


def trained(plan: Plan, program: Any, members: Sequence[Member], size: int) -> Piece:
    """The results of the members, leaves [members, ...]; empty places are the last one again."""
    filled = [*members, *[members[-1]] * (size - len(members))]
    keys = jnp.stack([key_of(kind, seed) for kind, seed, _ in filled])
    numbers = [as_float32(point) for *_, point in filled]
    points = {name: jnp.asarray([point[name] for point in numbers]) for name in numbers[0]}
    out = jax.device_get(program(plan.parts, keys, points))
    leaves = [leaf[: len(members)] for leaf in jax.tree.leaves(out.pop("params"))]
    digests = [digest_of([leaf[i] for leaf in leaves]) for i in range(len(members))]
    return {name: leaf[: len(members)] for name, leaf in out.items()} | {
        "params": {f"{i:04}": leaf for i, leaf in enumerate(leaves)},
        "digest": np.stack([np.frombuffer(digest, np.uint8) for digest in digests]),
    }
