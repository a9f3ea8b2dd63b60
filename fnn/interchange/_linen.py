"""Flax Linen: our layouts, but the gates of a cell are layers of their own."""

from collections.abc import Mapping
from typing import Any

from fnn._base import Params, State
from fnn.interchange._names import Kinds, Names
from fnn.interchange._rules import Library, Rule, mirrored, projections, same, side_by_side
from fnn.interchange._values import Arrays, read, weights_in, write

COLLECTIONS = ("params", "batch_stats")


def from_linen(
    variables: Mapping[str, Any],
    params: Params,
    names: Names = None,
    *,
    state: State | None = None,
    kinds: Kinds = None,
) -> Any:
    """Variables of Flax Linen -> params with their values; (params, state) if `state` is given.

    `variables` are what ``module.init`` makes: {"params": ..., "batch_stats": ...}. Other
    collections are left out. The other arguments and the errors are those of `from_torch`. Names
    have slashes and no collection: {"hidden": "Dense_0", "block/attention": "encoder/attn"}. The
    parts of a transformer block have their names here unless `names` has others, because Linen has
    no such block.

    What is not the same there:
      - The carry of an LSTM is (c, h), not (h, c).
      - eps is 1e-6 in LayerNorm, GroupNorm and RMSNorm, here 1e-5. `transformer_block` has 1e-5.
      - momentum of BatchNorm is 0.99 by default, here 0.9.
      - ConvTranspose mirrors its kernel, which is done here; transpose_kernel=True is not known.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        came = sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise TypeError(f"from_linen: variables is {came}, expected {{'params': ...}} from init")
    source = {
        path: x
        for collection in COLLECTIONS
        for path, x in weights_in(variables.get(collection, {})).items()
    }
    return read("from_linen", LINEN, source, params, names, state, kinds)


def to_linen(
    params: Params,
    names: Names = None,
    *,
    state: State | None = None,
    kinds: Kinds = None,
) -> dict[str, Any]:
    """params -> {"params": ..., "batch_stats": ...} of NumPy arrays, for ``module.apply``.

    The inverse of `from_linen`, with the same arguments. Without `state` there is no "batch_stats".
    """
    both = write("to_linen", LINEN, params, names, state, kinds)
    trees = {key: _nested(flat) for key, flat in zip(COLLECTIONS, both, strict=True)}
    return trees if state is not None else {"params": trees["params"]}


def _nested(flat: Arrays) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, array in sorted(flat.items()):  # so "a" comes before "a/kernel"
        *outer, last = path.split("/")
        branch = tree
        for name in outer:
            branch = branch.setdefault(name, {})
            if not isinstance(branch, dict):
                raise ValueError(f"to_linen: {path!r} would be inside of another array, {name!r}")
        branch[last] = array
    return tree


def _gates(ours: str, theirs: str, gates: str, array: str) -> Rule:
    """One gate is one array: the names are those of the layers there, such as ii, if, ig, io."""
    return side_by_side(ours, [f"{theirs}{gate}/{array}" for gate in gates])


LAYERS = {
    "dense": (same("w", "kernel"), same("b", "bias")),
    "embed": (same("w", "embedding"),),
    "parameter": (same("w", ""),),
    "conv": (same("w", "kernel"), same("b", "bias")),
    "conv_transpose": (mirrored(same("w", "kernel")), same("b", "bias")),
    "norm": (same("scale", "scale"), same("offset", "bias")),
    "statistics": (same("mean", "mean"), same("var", "var")),
    "attention": projections("out"),
}

LINEN = Library(
    separator="/",
    kinds={
        **LAYERS,
        "rnn": (
            same("input/w", "i/kernel"),
            same("input/b", "i/bias"),
            same("hidden/w", "h/kernel"),
        ),
        "lstm": (
            _gates("input/w", "i", "ifgo", "kernel"),
            _gates("hidden/w", "h", "ifgo", "kernel"),
            _gates("input/b", "h", "ifgo", "bias"),
        ),
        "gru": (
            _gates("input/w", "i", "rzn", "kernel"),
            _gates("input/b", "i", "rzn", "bias"),
            _gates("hidden/w", "h", "rzn", "kernel"),
            same("hidden/b", "hn/bias"),
        ),
    },
)
