"""A smoke test of a whole net: can it learn one batch by heart?"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fnn._base import Data, as_count, check_key, check_range, paths
from fnn.training import Step, TrainState, names_of_bad, step_gradient


class Overfit(NamedTuple):
    """What `overfit_one_batch` found."""

    fell: bool  # whether the loss fell by (1 - to) times its start, or more
    first: float  # the loss before the first step
    last: float  # the loss after the last step
    losses: np.ndarray  # [steps + 1]
    hints: tuple[str, ...]  # what to look at if it did not fall

    def __repr__(self) -> str:
        """One line, without the losses."""
        hints = "".join(f"; {hint}" for hint in self.hints)
        return f"Overfit(fell={self.fell}, loss {self.first:.4g} -> {self.last:.4g}{hints})"


def overfit_one_batch(
    step: Step, ts: TrainState, batch: Data, key: Array, *, steps: int = 200, to: float = 0.1
) -> Overfit:
    """-> `Overfit`: train `steps` steps on this one batch, and see whether the loss falls.

    For the tests of a net. A right net, loss and optimizer learn a small batch by heart::

        found = fnn.diagnostics.overfit_one_batch(step, ts, (x[:16], labels[:16]), key)
        assert found.fell, found

    `fell` is True if the loss after the last step is at most `to` times the loss before the first.
    A loss that starts below 0 has to fall by (1 - to) times its size. Give another `to` for a loss
    whose minimum is not 0. If the loss did not fall, `hints` name:

    - the first step that was not finite, and what in it;
    - the leaves whose gradient is 0 or not finite, before the first step and after the last: an
      unused layer, a dead ReLU, a detached value;
    - the leaves that have a gradient and did not move: frozen, or a rate of 0;
    - a loss that rose, or that still falls.

    A step of your own, or a wrapped one, tells no gradients: leaves that did not move are named.
    Dropout keeps a loss up: leave it out, or raise `to`. One compiled program; `ts` stays yours.
    """
    steps = as_count("overfit_one_batch", "steps", steps)
    check_range("overfit_one_batch", "to", to, 0)
    check_key("overfit_one_batch", key)
    end, losses, gradients = jax.jit(partial(_trained, step, steps))(ts, batch, key)
    losses = np.asarray(losses, np.float64)
    first, last = float(losses[0]), float(losses[-1])
    goal = to * first if first >= 0 else first + (1 - to) * first  # to * first would be a rise
    fell = bool(last <= goal)  # False for NaN
    hints = () if fell else _hints(ts, end, batch, losses, jax.device_get(gradients))
    return Overfit(fell, first, last, losses, tuple(hints))


def _trained(
    step: Step, steps: int, ts: TrainState, batch: Data, key: Array
) -> tuple[TrainState, Array, Any]:
    """The last state, the loss before each step and after the last, what gradients were and are."""

    def one(ts: TrainState, _: None) -> tuple[TrainState, Array]:
        ts, metrics = step(ts, batch, key)
        if "loss" not in metrics:
            raise ValueError(
                f"overfit_one_batch: the metrics of step are {sorted(metrics)}, expected a loss"
            )
        return ts, metrics["loss"]

    end, losses = lax.scan(one, ts, length=steps)
    last = step(end, batch, key)[1]["loss"]
    sizes = {when: _sizes(step, at, batch, key) for when, at in (("first", ts), ("last", end))}
    return end, jnp.append(losses, last), sizes


def _sizes(step: Step, ts: TrainState, batch: Data, key: Array) -> dict[str, Array]:
    """{path: largest absolute value of the gradient}; NaN stays NaN."""
    grads = step_gradient(step, ts, batch, key)
    return {path: jnp.abs(leaf).max(initial=0) for path, leaf in paths(grads).items()}


def _hints(
    ts: TrainState, end: TrainState, batch: Data, losses: np.ndarray, sizes: dict[str, Any]
) -> list[str]:
    hints = []
    if end.first_bad.found():
        names, what = names_of_bad(ts.params, batch), int(end.first_bad.what)
        which = names[what] if what < len(names) else "the input"
        hints.append(f"step {int(end.first_bad.step)}: {which} is not finite")
    for when, at in (("before the first step", "first"), ("after the last step", "last")):
        found = sizes[at]
        hints += _named(f"not finite {when}", [p for p, s in found.items() if not np.isfinite(s)])
        hints += _named(f"0 {when}", [p for p, s in found.items() if s == 0])
    still = _unmoved(ts.params, end.params)
    still = [path for path in still if sizes["first"].get(path, 1) != 0]
    if still and not end.first_bad.found():
        hints.append(f"did not move: {', '.join(still)}; frozen, or a learning rate of 0?")
    if losses[-1] > losses[0]:
        hints.append("the loss rose: is the learning rate too large, or the sign wrong?")
    elif losses[-1] < (half := losses[len(losses) // 2]) - 0.1 * abs(half):
        hints.append("the loss still falls: more steps, or a larger learning rate?")
    return hints


def _named(what: str, leaves: list[str]) -> list[str]:
    return [f"the gradient is {what}: {', '.join(leaves)}"] if leaves else []


def _unmoved(before: Any, after: Any) -> list[str]:
    pairs = zip(paths(before).items(), jax.tree.leaves(after), strict=True)
    return [path for (path, a), b in pairs if np.array_equal(a, b, equal_nan=True)]
