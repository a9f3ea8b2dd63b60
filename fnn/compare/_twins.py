"""Whether two rules are the same: their updates side by side, in float64.

Training amplifies rounding, so the final parameters of two right rules can lie far apart, and no
bound on that distance tells a right rule from a wrong one. Twins that end apart are therefore
compared side by side: both get the same gradients, in float64, and each update is compared.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fnn import optim
from fnn._base import Params, global_norm
from fnn.compare._plan import Plan
from fnn.compare._rule import Make
from fnn.compare._run import at_point, key_of
from fnn.compare._tuning import Point
from fnn.data import rows_of

MOST_STEPS = 1000  # of two rules side by side


def largest_difference(a: Params, b: Params) -> np.ndarray:
    """max |a - b| over two trees of leaves [members, ...]: [members]."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return np.max([abs(x - y).reshape(len(x), -1).max(-1) for x, y in pairs], axis=0)


def update_difference(plan: Plan, hand: Make, twin: Make, point: Point) -> float:
    """How far the updates of two rules are apart, given the same gradients and parameters.

    The first fresh seed's network is trained by `hand` in float64, for at most `MOST_STEPS` steps,
    in batches of rows in a random order. In each step both compute an update; this is the largest
    norm(hand - twin) / norm(twin). Nothing is amplified here: the twin's updates move nothing.
    Rounding is 1e-14, so what is larger is another formula.
    """
    problem, steps = plan.problem, min(plan.steps, MOST_STEPS)
    order = None if plan.parts.train is None else _rows_of(plan, steps)

    def run(train: Any, order: Any, key: Array, point: dict[str, Array]) -> Array:
        a, b = (at_point(make, plan.steps, point) for make in (hand, twin))
        init_key, step_key = jax.random.split(key)
        params = _wide(problem.init(init_key))

        def loss(params: Params, rows: Any, key: Array) -> Array:
            batch = None if rows is None else jax.tree.map(lambda leaf: leaf[rows], train)
            return jnp.mean(problem.loss(params, batch, key))

        def step(carry: Any, given: Any) -> tuple[Any, None]:
            params, of_a, of_b, largest = carry
            grads = jax.grad(loss)(params, *given)
            ours, of_a = a.update(grads, of_a, params)
            twins, of_b = b.update(grads, of_b, params)
            size = jnp.maximum(global_norm(twins), jnp.finfo(float).tiny)
            apart = global_norm(jax.tree.map(jnp.subtract, ours, twins)) / size
            largest = jnp.maximum(largest, apart)  # NaN stays NaN
            return (optim.apply_updates(params, ours), of_a, of_b, largest), None

        start = params, a.init(params), b.init(params), jnp.zeros((), float)
        keys = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(jnp.arange(steps))
        carry, _ = lax.scan(step, start, (order, keys))
        return carry[-1]

    with jax.enable_x64(True):
        train = jax.tree.map(jnp.asarray, _wide(plan.parts.train))
        given = train, order, key_of("fresh", 0), {n: jnp.float64(v) for n, v in point.items()}
        # It runs once: what a better program would save is less than what compiling it takes.
        quick: Any = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
        program = jax.jit(run).lower(*given).compile(compiler_options=quick)
        return float(program(*given))


def _rows_of(plan: Plan, steps: int) -> np.ndarray:
    """The rows of each step, [steps, batch]: every epoch in another order, whole batches only."""
    rows, rng = rows_of("fnn compare", plan.parts.train), np.random.default_rng(0)
    a_epoch = rows // plan.batch_size
    orders = [
        rng.permutation(rows)[: a_epoch * plan.batch_size].reshape(a_epoch, -1)
        for _ in range(-(-steps // a_epoch))
    ]
    return np.concatenate(orders)[:steps].astype(np.int32)


def _wide(tree: Any) -> Any:
    """Floating point as float64."""

    def one(leaf: Any) -> Any:
        return leaf.astype(np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)
