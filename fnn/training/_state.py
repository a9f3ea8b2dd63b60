"""What changes while training, as one value."""

from typing import Any, NamedTuple

from jax import Array

from fnn._base import Params, State
from fnn.training._nonfinite import FirstBad


class LossScale(NamedTuple):
    """The loss is multiplied by `scale`, the gradient divided by it: float16 needs this."""

    scale: Array
    good: Array  # int32, finite steps in a row


class TrainState(NamedTuple):
    """Everything that changes while training. ``step.init(params)`` makes the first one."""

    params: Params
    state: State  # () if the model has none, as without batch norm
    opt_state: Any
    step: Array  # int32, the number of steps done
    first_bad: FirstBad
    loss_scale: Any = ()  # a LossScale, or () without one


def check_train_state(name: str, ts: Any) -> None:
    """Raise TypeError, in the name of the function that takes it, unless it is a train state."""
    if not (hasattr(ts, "params") and hasattr(ts, "opt_state")):
        raise TypeError(
            f"{name}: ts is a {type(ts).__name__}, expected a train state, as step.init(params)"
            " makes it"
        )
