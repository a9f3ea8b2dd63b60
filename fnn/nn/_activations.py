"""Activation functions, [...] -> [...], and a table of their properties.

The functions are those of ``jax.nn``. The table gives for each its formula, its range, its main
property, and the initializer for the weights of the layer before it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from jax import Array
from jax.nn import leaky_relu, relu, sigmoid, softmax, tanh

from fnn.nn._initializers import Initializer, gain, glorot_uniform, kaiming_normal

__all__ = ["ACTIVATIONS", "Activation", "leaky_relu", "relu", "sigmoid", "softmax", "tanh"]


class Activation(NamedTuple):
    """One row of the table: function, formula, range, main property, initializer."""

    fn: Callable[[Array], Array]
    formula: str
    range: str
    property: str
    w_init: Initializer


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Activation(
        sigmoid,
        "1 / (1 + exp(-x))",
        "(0, 1)",
        "a probability; saturates on both sides; its slope is at most 1/4, so gradients vanish",
        partial(glorot_uniform, gain=gain("sigmoid")),
    ),
    "tanh": Activation(
        tanh,
        "(exp(x) - exp(-x)) / (exp(x) + exp(-x))",
        "(-1, 1)",
        "a sigmoid centred on zero with slope 1 there; still saturates",
        partial(glorot_uniform, gain=gain("tanh")),
    ),
    "relu": Activation(
        relu,
        "max(x, 0)",
        "[0, inf)",
        "never saturates for x > 0; a unit that is negative for every input is dead",
        partial(kaiming_normal, gain=gain("relu")),
    ),
    "leaky_relu": Activation(
        leaky_relu,
        "x if x > 0 else slope * x",
        "(-inf, inf)",
        "relu with a small slope (negative_slope, 0.01) below zero, so that no unit dies",
        partial(kaiming_normal, gain=gain("leaky_relu")),
    ),
    "softmax": Activation(
        softmax,
        "exp(x_i) / sum_j exp(x_j)",
        "(0, 1), summing to 1",
        "a distribution over classes; unchanged by adding a constant to every logit",
        partial(glorot_uniform, gain=gain("softmax")),
    ),
}
