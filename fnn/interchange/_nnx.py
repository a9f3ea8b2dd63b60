"""Flax NNX: Linen's layouts, with other cells."""

from typing import Any

import jax
import numpy as np

from fnn._base import Params, State, path_of
from fnn.interchange._linen import LAYERS
from fnn.interchange._names import Kinds, Names
from fnn.interchange._rules import Leaves, Library, Rule, same, side_by_side
from fnn.interchange._values import cast, check_places, read, weights_in, write


def from_nnx(
    model: Any,
    params: Params,
    names: Names = None,
    *,
    state: State | None = None,
    kinds: Kinds = None,
) -> Any:
    """``nnx.state(model)`` -> params with its values; (params, state) if `state` is given.

    A state as a plain dict, or the model itself, will do too. Counters and random keys are left
    out. The other arguments and the errors are those of `from_torch`; names have slashes, such as
    {"hidden": "layers/0"}. The parts of a transformer block have their names here unless `names`
    has others.

    What is not the same there:
      - An LSTMCell is "lstm". An OptimizedLSTMCell must be said: kinds={"lstm": "optimized_lstm"}.
      - The GRUCell adds no bias to the hidden product of n. This bias is zero here; if it is not
        zero, `to_nnx` refuses.
      - What `from_linen` says of the carry, of eps, of momentum and of ConvTranspose.
    """
    return read("from_nnx", NNX, weights_in(model), params, names, state, kinds)


def to_nnx(
    params: Params,
    model: Any,
    names: Names = None,
    *,
    state: State | None = None,
    kinds: Kinds = None,
) -> Any:
    """params, ``nnx.state(model)`` -> a state with the values of params, for ``nnx.update``.

    The inverse of `from_nnx`, with the same arguments. Of a model a new model is made. Counters and
    random keys stay as they are.
    """
    both = write("to_nnx", NNX, params, names, state, kinds)
    values = both[0] | both[1]
    check_places("to_nnx", values, weights_in(model))
    return replaced("to_nnx", model, values)


def replaced(function: str, tree: Any, values: dict[str, np.ndarray]) -> Any:
    """The tree with these values at their paths, in the dtypes of the tree."""

    def leaf(keys: Any, old: Any) -> Any:
        new = values.get(path := path_of(keys))
        return old if new is None else jax.numpy.asarray(cast(function, path, new, old.dtype))

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _joined(bias: str) -> tuple[Rule, ...]:
    """The gates lie side by side; `bias` is the layer that has it."""
    return (
        same("input/w", "dense_i/kernel"),
        same("hidden/w", "dense_h/kernel"),
        same("input/b", f"{bias}/bias"),
    )


def _gru(leaves: Leaves) -> list[Rule]:
    n = leaves["hidden/b"].shape

    def out(b: np.ndarray) -> tuple[()]:
        if b.any():
            raise ValueError("is not zero, but the GRUCell of NNX has no such bias")
        return ()

    return [*_joined("dense_i"), Rule(("hidden/b",), (), lambda: (np.zeros(n),), out)]


NNX = Library(
    separator="/",
    kinds={
        **LAYERS,
        "rnn": _joined("dense_i"),
        "lstm": (
            side_by_side("input/w", [f"{name}/kernel" for name in ("ii", "if_", "ig", "io")]),
            side_by_side("hidden/w", [f"h{gate}/kernel" for gate in "ifgo"]),
            side_by_side("input/b", [f"h{gate}/bias" for gate in "ifgo"]),
        ),
        "optimized_lstm": _joined("dense_h"),
        "gru": _gru,
    },
)
