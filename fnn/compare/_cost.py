"""What an update costs: its time on this machine, bytes, flops and kernels of its program."""

import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn import optim
from fnn._base import Params
from fnn.compare._plan import Plan
from fnn.compare._rule import Rule
from fnn.compare._run import as_float32, at_point
from fnn.optim import Optimizer


def update_program(plan: Plan, rule: Rule) -> tuple[Any, tuple[Any, ...]]:
    """-> (program, arguments) of one update: (grads, state, params, point) -> params, state."""
    point = {n: jnp.asarray(v) for n, v in as_float32(plan.points[rule.name][0]).items()}

    def optimizer(point: dict[str, Array]) -> Optimizer:
        return at_point(rule.make, plan.steps, point)

    def update(grads: Params, state: Any, params: Params, point: dict[str, Array]) -> Any:
        updates, state = optimizer(point).update(grads, state, params)
        return optim.apply_updates(params, updates), state

    params = jax.jit(plan.problem.init)(jax.random.key(0))
    state = jax.jit(lambda params, point: optimizer(point).init(params))(params, point)
    grads = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)
    program = jax.jit(update).lower(grads, state, params, point).compile()
    return program, (grads, state, params, point)


def cost_of(program: Any, arguments: tuple[Any, ...]) -> dict[str, np.ndarray]:
    """Microseconds of a call, the least of five rounds; bytes, flops and kernels of the program."""
    grads, state, params, point = arguments
    rounds = []
    for _ in range(5):
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < 0.01:
            params, state = program(grads, state, params, point)
            jax.block_until_ready(params)
            calls += 1
        rounds.append((time.perf_counter() - start) / calls)
    counted = program.cost_analysis() or {}
    cost = {
        "update_microseconds": 1e6 * min(rounds),
        "bytes": counted.get("bytes accessed", np.nan),
        "flops": counted.get("flops", np.nan),
        "kernels": kernels_of(program.as_text()),
    }
    return {name: np.asarray(value, np.float64) for name, value in cost.items()}


# Of a compiled program's operations, those that compute and move nothing
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}


def kernels_of(text: str) -> int:
    """The kernels of a compiled program: the operations of its entry, those of calls included."""
    computations: dict[str, list[tuple[str, str]]] = {}
    name = entry = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+)\b.*{$", line)
        if head:
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        body = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([\w\-]+)\(", line)
        if body and name:
            computations[name].append((body[1], line))

    def count(name: str) -> int:
        total = 0
        for operation, line in computations.get(name, []):
            called = re.findall(r"(?:to_apply|body)=%?([\w.\-]+)", line)
            if operation in ("call", "while") and called:
                total += sum(map(count, called))
            elif operation not in FREE:
                total += 1
        return total

    return count(entry)
