"""One member of a comparison: a rule at a point, from initial params to scores."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn import optim
from fnn._base import Params
from fnn.compare._member import score_rows, train_member
from fnn.compare._plan import Plan
from fnn.compare._problem import Parts
from fnn.compare._rule import Make
from fnn.compare._tuning import RESERVED, Point
from fnn.optim import Optimizer
from fnn.training import TrainState


def at_point(make: Make, steps: int, point: Mapping[str, Any]) -> Optimizer:
    """The rule at a point; the reserved names shape its rate and clip its gradient."""
    own = {name: value for name, value in point.items() if name not in RESERVED}
    shape = {n: v for n, v in point.items() if n in ("warmup", "final", "stable")}
    rate = jnp.asarray(point["learning_rate"])
    optimizer = make(scheduled(rate, steps, **shape) if shape else rate, **own)
    if "clip_norm" not in point:
        return optimizer
    return optim.chain(optim.clip_by_global_norm(point["clip_norm"]), optimizer)


def scheduled(
    peak: Array,
    steps: int,
    warmup: ArrayLike = 0.0,
    final: ArrayLike | None = None,
    stable: ArrayLike | None = None,
) -> Callable[[Array], Array]:
    """rate(updates done): up to `peak` over `warmup`, level until `stable`, down to `final`.

    All lengths are fractions of `steps`. Update t from 0 has peak (t + 1) / W in the first
    W = warmup steps; from D = max(warmup, stable) steps on peak (1 - (1 - final) s), with
    s = (t - D) / (steps - D), so that `final` is reached when the run ends. Without `final` a rate
    that has `stable` decays to 0, and any other stays at its peak.
    """
    if final is None:
        final = 1.0 if stable is None else 0.0

    def rate(count: Array) -> Array:
        t, rise, last, begin = (
            jnp.asarray(value, peak.dtype) for value in (count, warmup, final, stable or 0.0)
        )
        begin = jnp.maximum(rise, begin) * steps
        up = jnp.minimum((t + 1) / jnp.maximum(rise * steps, 1), 1)
        down = jnp.clip((t - begin) / jnp.maximum(steps - begin, 1), 0, 1)
        return peak * up * (1 - (1 - last) * down)

    return rate


def evaluated(ts: TrainState) -> Params:
    """The parameters that a rule is judged by: schedule-free rules have others than they train."""
    params = optim.eval_params(ts.opt_state, ts.params)

    def is_free(node: Any) -> bool:
        return isinstance(node, optax.contrib.ScheduleFreeState)

    for state in filter(is_free, jax.tree.leaves(ts.opt_state, is_leaf=is_free)):
        params = optax.contrib.schedule_free_eval_params(state, params)  # pyright: ignore[reportArgumentType]
    return params


def member(plan: Plan, make: Make, parts: Parts, key: Array, **point: Array) -> dict[str, Any]:
    """One run from initial params to scores, as one pure function of its key and its point."""
    problem, score = plan.problem, plan.problem.score

    def mean_scores(ts: TrainState, part: Any) -> dict[str, Array]:
        rows = score_rows(problem, evaluated(ts), part)
        return {"score": jnp.mean(rows[score]), "loss": jnp.mean(rows["loss"])}

    ts, history = train_member(
        problem,
        at_point(make, plan.steps, point),
        key,
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        order=plan.order,
        train=parts.train,
        validate=lambda ts: mean_scores(ts, parts.valid),
    )
    params = evaluated(ts)
    test = score_rows(problem, params, parts.test)
    return {
        "valid": history["val_score"][-1],
        "valid_loss": history["val_loss"][-1],
        "test_rows": test[score].astype(jnp.float32),
        "test_loss": jnp.mean(test["loss"]),
        "loss_by_epoch": history["loss"].mean(1),
        "valid_by_epoch": history["val_score"],
        "skipped": (history["nonfinite"] >= 0).sum(),
        "params": params,
    }


BRANCH = {"trial": 0, "fresh": 1}
Kind = Literal["trial", "fresh"]


def key_of(kind: Kind, seed: int) -> Array:
    """The key of a seed; fresh seeds are on another branch than those of the search."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), BRANCH[kind]), seed)


def as_float32(point: Point) -> dict[str, np.float32]:
    """The numbers that a program gets."""
    return {name: np.float32(value) for name, value in point.items()}


def one_bit_more(point: Point) -> Point:
    """The same point with the next larger learning rate in float32."""
    rate = np.nextafter(np.float32(point["learning_rate"]), np.float32(np.inf))
    return point | {"learning_rate": float(rate)}


def alone(plan: Plan, make: Make, key: Array, point: Point) -> dict[str, Any]:
    """A member by itself: the same bits as in a piece, on a CPU."""

    @jax.jit
    def run(parts: Parts, key: Array, point: dict[str, Array]) -> dict[str, Any]:
        return member(plan, make, parts, key, **point)

    given = {name: jnp.asarray(value) for name, value in as_float32(point).items()}
    return jax.device_get(run(plan.parts, key, given))


def digest_of(params: Params) -> bytes:
    """sha256 of every bit of the parameters."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.digest()
