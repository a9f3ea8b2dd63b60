"""What shapes a program of an estimator, and the numbers that it computes with."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fnn import optim
from fnn._base import as_count, check_range
from fnn.nn import relu, sigmoid, tanh


def identity(x: Array) -> Array:
    """[...] -> [...]: x."""
    return x


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": identity,
    "logistic": sigmoid,
    "relu": relu,
    "tanh": tanh,
}
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    name: getattr(optim, name)
    for name in (
        "adafactor",
        "adagrad",
        "adam",
        "adamw",
        "lion",
        "momentum",
        "nadam",
        "nesterov",
        "rmsprop",
        "sgd",
    )
}
LARGEST_BATCH = 200  # of batch_size="auto", as in scikit-learn


class Function(NamedTuple):
    """A function and what is bound to it. Equal ones have one program, unlike two partials."""

    call: Callable[..., Any]
    args: tuple[Hashable, ...] = ()
    named: tuple[tuple[str, Hashable], ...] = ()

    def __call__(self, x: Any) -> Any:
        return self.call(*self.args, x, **dict(self.named))


class Plan(NamedTuple):
    """What shapes a program. Hashable: equal plans share one compiled program."""

    regression: bool
    sizes: tuple[int, ...]  # (features, *hidden, outputs)
    activation: Function
    optimizer: Function  # learning rate -> optimizer
    batch_size: int
    epochs: int
    validates: bool


class Numbers(NamedTuple):
    """What a program computes with: other numbers compile nothing."""

    learning_rate: ArrayLike
    alpha: ArrayLike
    tol: ArrayLike
    patience: ArrayLike


def floating() -> np.dtype:
    """The dtype that JAX computes in: float32, or float64 with jax_enable_x64."""
    return np.dtype(jnp.result_type(float))


def function_of(who: str, argument: str, value: Any, known: dict[str, Any]) -> Function:
    """The function that an argument names, or is."""
    found = known.get(value) if isinstance(value, str) else value
    if not callable(found):
        names = ", ".join(map(repr, known))
        raise ValueError(
            f"{who}: {argument} is {value!r:.60}, expected a function or one of {names}"
        )
    if not isinstance(found, partial):
        return Function(found)
    # clone() copies a partial, and a copy is not equal to the partial; its parts are.
    made = Function(found.func, found.args, tuple(sorted(found.keywords.items())))
    try:
        hash(made)
    except TypeError:
        return Function(found)
    return made


def hidden_sizes(who: str, sizes: int | Sequence[int]) -> tuple[int, ...]:
    """The widths of the hidden layers; one number is one layer."""
    each = sizes if np.ndim(sizes) else [sizes]
    return tuple(as_count(who, "hidden_layer_sizes", size) for size in each)  # pyright: ignore


def batch_rows(who: str, batch_size: Any, rows: int) -> int:
    """The rows of a batch, never more than there are."""
    if isinstance(batch_size, str) and batch_size == "auto":
        return min(LARGEST_BATCH, rows)
    return min(as_count(who, "batch_size", batch_size), rows)


def numbers_of(
    who: str, learning_rate: Any, alpha: Any, tol: Any, n_iter_no_change: Any
) -> Numbers:
    """The numbers, checked, as arrays of the dtype that JAX computes in."""
    check_range(who, "learning_rate", learning_rate, 0, above=True)
    check_range(who, "alpha", alpha, 0)
    check_range(who, "tol", tol, 0)
    rate, alpha, tol = (np.asarray(number, floating()) for number in (learning_rate, alpha, tol))
    patience = as_count(who, "n_iter_no_change", n_iter_no_change)
    return Numbers(rate, alpha, tol, np.int32(min(patience, np.iinfo(np.int32).max)))
