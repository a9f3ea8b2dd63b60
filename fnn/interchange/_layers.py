"""The layers in a tree of parameters, known by the names and axes of their arrays."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fnn._base import Params, nested, path_matches, paths

ATTENTION = {"query", "key", "value", "output"}
BLOCK = {"attention_norm", "attention", "mlp_norm", "mlp"}
CELLS = {1: "rnn", 3: "gru", 4: "lstm"}  # by the number of gates
# What the arrays of a layer cannot tell, and the user says in `kinds`.
COULD_BE = {
    "matrix": ("dense", "embed", "parameter"),
    "conv": ("conv", "conv_transpose", "depthwise"),
    "lstm": ("lstm", "optimized_lstm"),
    "norm": ("norm", "rms_norm"),
}


class Layer(NamedTuple):
    """A layer: its path, its kind, its arrays by their paths inside of it, what it could be."""

    path: str
    kind: str
    leaves: dict[str, Any]
    could_be: tuple[str, ...] = ()


def layers_of(tree: Params, kinds: Mapping[str, str]) -> list[Layer]:
    """Every layer of the tree, in its order. `kinds` has what the user says: {pattern: kind}.

    An array that is in no known layer is a layer by itself, of the kind "array".
    """
    return list(_walk("", nested(paths(tree)), kinds))


def _walk(path: str, node: Any, kinds: Mapping[str, str]) -> Iterator[Layer]:
    if not isinstance(node, dict):
        yield Layer(path, "array", {"": node})
        return
    kind = _kind(node)
    if kind is not None:
        could_be = COULD_BE.get(kind, ())
        leaves = {} if kind == "block" else _flat(node)
        yield Layer(path, _said(path, could_be, kinds) or kind, leaves, could_be)
    if kind in ("block", None):
        for name, child in node.items():
            yield from _walk(f"{path}/{name}" if path else name, child, kinds)


def _said(path: str, could_be: Sequence[str], kinds: Mapping[str, str]) -> str | None:
    """The kind of the first pattern that matches the path, among those that the layer could be."""
    said = (kind for pattern, kind in kinds.items() if path_matches(pattern, path))
    return next((kind for kind in said if kind in could_be), None)


def _kind(node: Mapping[str, Any]) -> str | None:
    names = set(node)
    if names == BLOCK:
        return "block"
    if names == ATTENTION and all(_axes(node[name], "w") == 3 for name in names):
        return "attention"
    if names == {"input", "hidden"}:
        return _cell(node["input"], node["hidden"])
    if any(isinstance(child, dict) for child in node.values()):
        return None
    if names in ({"scale"}, {"scale", "offset"}, {"mean", "var"}):
        vectors = all(_axes(node, name) == 1 for name in names)
        return ("norm" if "scale" in names else "statistics") if vectors else None
    return _linear(node) if names in ({"w"}, {"w", "b"}) else None


def _linear(node: Mapping[str, Any]) -> str | None:
    axes, of_b = (_axes(node, name) for name in ("w", "b"))
    if of_b not in (1, None):
        return None
    if axes == 2:
        return "matrix" if of_b is None else "dense"
    return "conv" if axes in (3, 4, 5) else None


def _cell(inputs: Any, hidden: Any) -> str | None:
    """The cell. None for two dense layers that are called input and hidden."""
    if _axes(inputs, "w") != 2 or _axes(hidden, "w") != 2:
        return None
    units, sums = hidden["w"].shape
    name = CELLS.get(sums // units) if units and sums % units == 0 else None
    biased = "b" in hidden
    if name == "gru":
        return name if biased and hidden["b"].shape == (units,) else None
    # A plain cell without any bias cannot be told from dense layers.
    return None if biased or (name == "rnn" and "b" not in inputs) else name


def _axes(node: Any, name: str) -> int | None:
    leaf = node.get(name) if isinstance(node, dict) else None
    return None if leaf is None or isinstance(leaf, dict) else np.ndim(leaf)


def _flat(node: Mapping[str, Any]) -> dict[str, Any]:
    return {path: leaf for name, child in node.items() for path, leaf in _under(name, child)}


def _under(name: str, child: Any) -> list[tuple[str, Any]]:
    if not isinstance(child, dict):
        return [(name, child)]
    return [(f"{name}/{path}", leaf) for path, leaf in _flat(child).items()]
