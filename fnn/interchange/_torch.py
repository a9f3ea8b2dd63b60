"""PyTorch: weights [out, in], channels first in kernels, gates i f g o and r z n."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fnn._base import Params, State
from fnn.interchange._names import Kinds, Names
from fnn.interchange._rules import (
    Leaves,
    Library,
    Rule,
    channels_first,
    merging,
    moved,
    padded,
    parted,
    rows,
    same,
    summed,
    turned,
)
from fnn.interchange._values import Arrays, read, write

QKV = ("query", "key", "value")


def from_torch(
    state_dict: Mapping[str, Any],
    params: Params,
    names: Names = None,
    *,
    state: State | None = None,
    kinds: Kinds = None,
) -> Any:
    """A state_dict of PyTorch -> params with its values; (params, state) if `state` is given.

    Arguments:
      - state_dict: {name: tensor or NumPy array}. PyTorch need not be installed.
      - params, state: what `init` makes, or its shapes, from ``jax.eval_shape``. The values get
        these shapes and dtypes. The running statistics of batch norm are in `state`.
      - names: {path here: name there}, such as {"hidden": "net.0", "blocks/0": "layers.0"}. The
        longest path that leads to a layer counts, and the rest of the path is kept. A path that
        `names` leaves out has the same name there, with dots. "" is the whole tree. A star stands
        for the name of the array: the second layer of an LSTM is "lstm.*_l1", its backward
        direction is "lstm.*_l0_reverse", an LSTMCell is "cell.*".
      - kinds: {pattern: kind}, for what the arrays cannot tell. A matrix w without b is "dense",
        "embed" or "parameter", and must be said. A kernel is "conv", or is said to be
        "conv_transpose". Patterns are those of ``fnn.params.matching``; the first that fits counts.

    The layers are dense, embed, conv, conv_transpose, batch, layer, group and RMS norm, rnn, lstm,
    gru, attention with as many heads of keys as of queries, and transformer_block for
    TransformerEncoderLayer(norm_first=True, activation="gelu", batch_first=True).

    What is not the same there:
      - The cells have two biases, which are added up here. `to_torch` writes the sum and zeros.
      - Arrays of whole numbers, such as num_batches_tracked, are left out.
      - Training updates the running variance by n / (n - 1) times the batch's variance, and
        momentum is 1 - momentum. Inference is the same.
      - eps is 1e-5, as here, except for RMSNorm: the machine epsilon by default.

    Raises ValueError with a table of all arrays that are missing, left over or of another shape.
    To take a part of a net, leave the other names out of state_dict.
    """
    return read("from_torch", TORCH, _checked(state_dict), params, names, state, kinds)


def to_torch(
    params: Params,
    names: Names = None,
    *,
    state: State | None = None,
    kinds: Kinds = None,
) -> Arrays:
    """params -> {name: NumPy array}, the inverse of `from_torch`, with the same arguments.

    ``module.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})`` takes it. The
    dtypes are those of params. PyTorch takes no bfloat16 from NumPy: make it float32 before.
    num_batches_tracked, which only momentum=None reads, is 0.
    """
    arrays, statistics = write("to_torch", TORCH, params, names, state, kinds)
    starts = [n.removesuffix("running_mean") for n in statistics if n.endswith("running_mean")]
    counters = {f"{start}num_batches_tracked": np.array(0) for start in starts}
    return arrays | statistics | counters


def _checked(state_dict: Any) -> Mapping[str, Any]:
    if not isinstance(state_dict, Mapping):
        came = type(state_dict).__name__
        raise TypeError(f"from_torch: state_dict is of type {came}, expected module.state_dict()")
    return state_dict


def _conv_transpose(ndim: int) -> list[int]:
    """The axes of [in, out, *size] in [*size, in, out]."""
    return [ndim - 2, ndim - 1, *range(ndim - 2)]


def _biases(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return b, np.zeros_like(b)


_CELL = (
    turned("input/w", "weight_ih"),
    turned("hidden/w", "weight_hh"),
    Rule(("input/b",), ("bias_ih", "bias_hh"), lambda a, b: (summed(a, b),), _biases),
)
_GRU = ("input/b", "hidden/b"), ("bias_ih", "bias_hh")


def _attention(leaves: Leaves) -> list[Rule]:
    """Query, key and value are one matrix there if they have the same features."""
    if len({leaves[f"{name}/w"].shape[1] for name in QKV}) > 1:
        raise ValueError("has fewer heads of keys than of queries, for which PyTorch has no layer")
    ours = tuple(f"{name}/w" for name in QKV)
    dims = [leaves[name].shape[0] for name in ours]
    apart = tuple(f"{name[0]}_proj_weight" for name in QKV)
    theirs = apart if len(set(dims)) > 1 else ("in_proj_weight",)

    def into(*parts: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(part.T for part in (np.split(parts[0], 3) if len(theirs) == 1 else parts))

    def out(*ws: np.ndarray) -> tuple[np.ndarray, ...]:
        parts = tuple(map(rows, ws))
        return parts if len(theirs) > 1 else (np.concatenate(parts),)

    biases = Rule(
        tuple(f"{name}/b" for name in QKV),
        ("in_proj_bias",),
        lambda b: tuple(np.split(b, 3)),
        lambda *bs: (np.concatenate([b.reshape(-1) for b in bs]),),
    )
    return [Rule(ours, theirs, into, out), biases, *merging("output", "out_proj.")]


TORCH = Library(
    separator=".",
    kinds={
        "dense": (turned("w", "weight"), same("b", "bias")),
        "embed": (same("w", "weight"),),
        "parameter": (same("w", ""),),
        "conv": (moved("w", "weight", channels_first), same("b", "bias")),
        "conv_transpose": (moved("w", "weight", _conv_transpose), same("b", "bias")),
        "norm": (same("scale", "weight"), same("offset", "bias")),
        "statistics": (same("mean", "running_mean"), same("var", "running_var")),
        "rnn": _CELL,
        "lstm": _CELL,
        "gru": (*_CELL[:2], Rule(*_GRU, parted, lambda b, n: (b, padded(n)))),
        "attention": _attention,
    },
    block={
        "attention_norm": "norm1",
        "attention": "self_attn",
        "mlp_norm": "norm2",
        "mlp/layer_0": "linear1",
        "mlp/layer_1": "linear2",
    },
    suffix=dict.fromkeys(("rnn", "lstm", "gru"), "_l0"),
)
