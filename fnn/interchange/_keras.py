"""Keras: our layouts, with the GRU's gates z r n."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fnn._base import Params, State
from fnn.interchange._names import Kinds, Names
from fnn.interchange._rules import (
    Library,
    Rule,
    exchanged,
    moved,
    padded,
    parted,
    projections,
    same,
)
from fnn.interchange._values import Arrays, read, write

RESET = "reset_after=False is another function"


def from_keras(
    weights: Any,
    params: Params,
    names: Names = None,
    *,
    state: State | None = None,
    kinds: Kinds = None,
) -> Any:
    """Weights of Keras 3 -> params with their values; (params, state) if `state` is given.

    `weights` are the model, ``model.weights``, or {path: array}; ``model.get_weights()`` has no
    names. The other arguments and the errors are those of `from_torch`. Names are Keras's paths,
    such as {"hidden": "sequential/dense", "lstm": "lstm/lstm_cell"}; {"": "sequential"} is for all.

    `kinds` has two kinds more: a convolution may be "depthwise" (DepthwiseConv2D, with a
    depth_multiplier of 1), and a scale without offset is that of LayerNormalization(center=False)
    unless it is "rms_norm".

    What is not the same there:
      - eps is 1e-3 in every normalisation, here 1e-5. `transformer_block` has 1e-5.
      - momentum of BatchNormalization is 0.99 by default, here 0.9.
      - GRU(reset_after=False) is another function. Its bias has one row, and it is refused.
      - unit_forget_bias concerns only the initial bias of an LSTM, which is in the weights.
    """
    source = _named("from_keras", weights)
    return read("from_keras", KERAS, source, params, names, state, kinds)


def to_keras(
    params: Params,
    names: Names = None,
    *,
    state: State | None = None,
    kinds: Kinds = None,
) -> Arrays:
    """params -> {path: NumPy array}, the inverse of `from_keras`, with the same arguments.

    ``for w in model.weights: w.assign(arrays[w.path])`` takes it.
    """
    arrays, statistics = write("to_keras", KERAS, params, names, state, kinds)
    return arrays | statistics


def _named(function: str, weights: Any) -> Mapping[str, Any]:
    if isinstance(weights, Mapping):
        return weights
    named: dict[str, Any] = {}
    each = getattr(weights, "weights", weights)
    if not isinstance(each, Iterable):
        came = type(each).__name__
        raise TypeError(f"{function}: weights is a {came}, expected model.weights, or a dict")
    for weight in each:
        if not hasattr(weight, "path"):
            came = type(weight).__name__
            raise TypeError(f"{function}: weights has a {came}, expected model.weights, or a dict")
        if weight.path in named:
            raise ValueError(f"{function}: two weights have the path {weight.path!r}")
        named[weight.path] = weight.value  # the tensor of the backend
    return named


def _swapped(w: np.ndarray) -> tuple[np.ndarray]:
    """The gates r z n as z r n, and back."""
    r, z, n = np.split(w, 3, -1)
    return (np.concatenate([z, r, n], -1),)


def _biases_in(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return parted(*(_swapped(row)[0] for row in b))


def _biases_out(b: np.ndarray, n: np.ndarray) -> tuple[np.ndarray]:
    return (np.stack([_swapped(b)[0], padded(n)]),)


_CELL = (
    same("input/w", "kernel"),
    same("hidden/w", "recurrent_kernel"),
    same("input/b", "bias"),
)

KERAS = Library(
    separator="/",
    kinds={
        "dense": (same("w", "kernel"), same("b", "bias")),
        "embed": (same("w", "embeddings"),),
        "parameter": (same("w", ""),),
        "conv": (same("w", "kernel"), same("b", "bias")),
        "conv_transpose": (moved("w", "kernel", exchanged), same("b", "bias")),
        "depthwise": (moved("w", "kernel", exchanged), same("b", "bias")),
        "norm": (same("scale", "gamma"), same("offset", "beta")),
        "rms_norm": (same("scale", "scale"),),
        "statistics": (same("mean", "moving_mean"), same("var", "moving_variance")),
        "rnn": _CELL,
        "lstm": _CELL,
        "gru": (
            Rule(("input/w",), ("kernel",), _swapped, _swapped),
            Rule(("hidden/w",), ("recurrent_kernel",), _swapped, _swapped),
            Rule(("input/b", "hidden/b"), ("bias",), _biases_in, _biases_out, RESET),
        ),
        "attention": projections("attention_output"),
    },
)
