"""The gradient that a step descends, for a look at it."""

from dataclasses import replace
from typing import Any

from jax import Array

from fnn._base import Data, Params
from fnn.training._gradient import Gradient
from fnn.training._state import TrainState
from fnn.training._step import ByGradient, Step


def step_gradient(
    step: Step, ts: TrainState, batch: Data, key: Array, mask: Array | None = None
) -> Params | None:
    """The gradient that ``step(ts, batch, key, mask)`` computes, before clipping.

    None for a step that `make_train_step` did not make, or that a wrapper has changed. Pure: jit
    it. What of the step is not needed, XLA leaves out.
    """
    update = step.update
    if not isinstance(update, ByGradient):
        return None
    found: list[Params] = []

    def gradient(*given: Any) -> Gradient:
        result = update.way.gradient(*given)
        found.append(result.grads)
        return result

    seen = replace(update, way=update.way._replace(gradient=gradient))
    seen(ts, batch, key, mask)
    return found[0]
