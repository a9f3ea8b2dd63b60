"""A piece of a comparison: some members, each a key and a point, trained by one compiled program.

Work                                    what is to be trained, piece by piece
piece_size(plan, members, ...)          members of a piece
compiled(plan, make, names, size)       its program
trained(plan, program, members, size)   its results
mark_of(plan, rule, size)               what it was made of, for the store
"""

import hashlib
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base import Params
from fnn.compare._plan import Plan
from fnn.compare._problem import Parts, text_of
from fnn.compare._rule import Make, Rule
from fnn.compare._run import Kind, as_float32, at_point, digest_of, key_of, member
from fnn.compare._store import Piece
from fnn.compare._tuning import Point
from fnn.training import sweep

SECONDS = 60.0  # that a piece may take, roughly
FLOPS_A_SECOND = {"cpu": 2e10}  # of a core, roughly; of another device:
FLOPS_OF_ACCELERATOR = 2e12
MOST_MEMBERS = 64  # of a piece

Member = tuple[Kind, int, Point]  # which seed, at which point


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


def mark_of(plan: Plan, rule: Rule, size: int) -> str:
    """What a rule's pieces were made of: its update as a program, its points, the settings."""
    names = [axis.name for axis in plan.axes[rule.name]]
    shapes = dict.fromkeys(names, jax.ShapeDtypeStruct((), np.float32))

    def update(params: Params, point: dict[str, Array]) -> Any:
        optimizer = at_point(rule.make, plan.steps, point)
        return optimizer.update(params, optimizer.init(params), params)

    program = jax.make_jaxpr(update)(plan.params, shapes)
    parts = [text_of(program), repr(plan.points[rule.name]), repr(plan.marks()), str(size)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
