"""Equinox: PyTorch's weights [out, in], other biases, running statistics in a State."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from fnn._base import Params, State, path_of
from fnn.interchange._names import Kinds, Names
from fnn.interchange._nnx import replaced
from fnn.interchange._rules import (
    Leaves,
    Library,
    Rule,
    channels_first,
    merging,
    mirrored,
    moved,
    projection,
    same,
    turned,
)
from fnn.interchange._values import Arrays, cast, check_places, read, weights_in, write

STEPS = 1_000_000  # a counter from which momentum^counter is 0


def from_equinox(
    model: Any,
    params: Params,
    names: Names = None,
    *,
    state: State | None = None,
    kinds: Kinds = None,
) -> Any:
    """A model of Equinox -> params with its values; (params, state) if `state` is given.

    `model` is a module, or the pair (module, State) that ``eqx.nn.make_with_state`` makes, if it
    has batch norm. The other arguments and the errors are those of `from_torch`. Names have
    slashes, such as {"mlp/layer_0": "mlp/layers/0"}. The parts of a transformer block have their
    names here unless `names` has others.

    What is not the same there:
      - MultiheadAttention has no biases by default, and attention without "b" has none either.
      - RMSNorm has a bias by default: it is the "offset" here, which `rms_norm` takes.
      - The batch norm with mode="batch" stores means that are divided by 1 - momentum^counter.
        `from_equinox` divides. `to_equinox` writes a counter of a million.
      - momentum of BatchNorm is 0.99 by default, here 0.9.
      - Modules take one row without a batch axis, and channels are first.
    """
    module, memory = _parted(model)
    source = weights_in(module) | _statistics(module, memory)
    return read("from_equinox", EQUINOX, source, params, names, state, kinds)


def to_equinox(
    params: Params,
    model: Any,
    names: Names = None,
    *,
    state: State | None = None,
    kinds: Kinds = None,
) -> Any:
    """params, a model of Equinox -> the model with the values of params; its pair, if it is one.

    The inverse of `from_equinox`, with the same arguments.
    """
    module, memory = _parted(model)
    values, statistics = write("to_equinox", EQUINOX, params, names, state, kinds)
    places = weights_in(module) | _statistics(module, memory)
    check_places("to_equinox", values | statistics, places)
    module = replaced("to_equinox", module, values)
    return module if memory is None else (module, _remembered(module, memory, statistics))


def _parted(model: Any) -> tuple[Any, Any]:
    """(module, State), or (module, None)."""
    if isinstance(model, tuple) and len(model) == 2 and hasattr(model[1], "substate"):
        return model
    return model, None


def _is_batch_norm(node: Any) -> bool:
    return hasattr(node, "batch_state_index") and hasattr(node, "ema_state_index")


def _batch_norms(module: Any, memory: Any) -> Iterator[tuple[str, Any]]:
    found = jax.tree_util.tree_leaves_with_path(module, is_leaf=_is_batch_norm)
    norms = ((path_of(keys), node) for keys, node in found if _is_batch_norm(node))
    return norms if memory is not None else iter(())


def _statistics(module: Any, memory: Any) -> dict[str, Any]:
    """{path/mean, path/var: array} of every batch norm."""
    values: dict[str, Any] = {}
    for path, norm in _batch_norms(module, memory):
        if norm.mode == "ema":
            mean, var = memory.get(norm.ema_state_index)
        else:
            counter = memory.get(norm.batch_counter)
            share = jnp.where(counter == 0, 1, 1 - norm.momentum**counter)
            mean, var = (a / share for a in memory.get(norm.batch_state_index))
        start = f"{path}/" if path else ""
        values |= {f"{start}mean": mean, f"{start}var": var}
    return values


def _remembered(module: Any, memory: Any, statistics: Arrays) -> Any:
    """A new State with these statistics; Equinox makes a State useless when it is set."""
    memory = jax.tree.map(lambda x: x, memory)
    for path, norm in _batch_norms(module, memory):
        start = f"{path}/" if path else ""
        index = norm.ema_state_index if norm.mode == "ema" else norm.batch_state_index
        old = memory.get(index)
        names = (f"{start}{name}" for name in ("mean", "var"))
        new = tuple(
            jnp.asarray(cast("to_equinox", name, statistics[name], b.dtype))
            for name, b in zip(names, old, strict=True)
        )
        memory = memory.set(index, new)
        if norm.mode == "ema":
            first = memory.get(norm.ema_first_time_index)
            memory = memory.set(norm.ema_first_time_index, jnp.zeros_like(first))
        else:
            counter = memory.get(norm.batch_counter)
            memory = memory.set(norm.batch_counter, counter * 0 + STEPS)
    return memory


def _conv(leaves: Leaves) -> list[Rule]:
    """The bias has an axis for each spatial axis there."""
    ones = [1] * (leaves["w"].ndim - 2)
    w = moved("w", "weight", channels_first)
    return [w, Rule(("b",), ("bias",), out=lambda b: (b.reshape(-1, *ones),))]


def _conv_transpose(leaves: Leaves) -> list[Rule]:
    w, b = _conv(leaves)
    return [mirrored(w), b]


_CELL = (
    turned("input/w", "weight_ih"),
    turned("hidden/w", "weight_hh"),
    same("input/b", "bias"),
)

EQUINOX = Library(
    separator="/",
    kinds={
        "dense": (turned("w", "weight"), same("b", "bias")),
        "embed": (same("w", "weight"),),
        "parameter": (same("w", ""),),
        "conv": _conv,
        "conv_transpose": _conv_transpose,
        "norm": (same("scale", "weight"), same("offset", "bias")),
        "statistics": (same("mean", "mean"), same("var", "var")),
        "lstm": _CELL,
        "gru": (*_CELL, same("hidden/b", "bias_n")),
        "attention": (
            *projection("query", "query_proj/"),
            *projection("key", "key_proj/"),
            *projection("value", "value_proj/"),
            *merging("output", "output_proj/"),
        ),
    },
)
