"""Weights in and out of safetensors files, in the layout of any of the libraries."""

from pathlib import Path
from typing import Any

from fnn._base import Params, State, paths, write_whole
from fnn.checkpoint import load
from fnn.interchange._equinox import EQUINOX
from fnn.interchange._keras import KERAS
from fnn.interchange._linen import LINEN
from fnn.interchange._names import Kinds, Names
from fnn.interchange._nnx import NNX
from fnn.interchange._rules import Library
from fnn.interchange._torch import TORCH
from fnn.interchange._values import read, write

LIBRARIES = {"torch": TORCH, "linen": LINEN, "nnx": NNX, "equinox": EQUINOX, "keras": KERAS}


def load_safetensors(
    path: str | Path,
    params: Params,
    names: Names = None,
    *,
    layout: str = "torch",
    state: State | None = None,
    kinds: Kinds = None,
) -> Any:
    """A safetensors file -> params with its values; (params, state) if `state` is given.

    `layout` is the library whose weights are in the file: "torch", "linen", "nnx", "equinox" or
    "keras". The other arguments and the errors are those of `from_torch`; names are those of the
    file. A file in fnn's own layout is read by ``fnn.checkpoint.load``.
    """
    library = _library("load_safetensors", layout)
    arrays, _ = load(path)
    return read("load_safetensors", library, paths(arrays), params, names, state, kinds)


def save_safetensors(
    path: str | Path,
    params: Params,
    names: Names = None,
    *,
    layout: str = "torch",
    state: State | None = None,
    kinds: Kinds = None,
) -> None:
    """params -> a safetensors file, the inverse of `load_safetensors`, with the same arguments.

    The file is replaced as a whole. Its metadata say {"format": "pt"} for the layout "torch".
    """
    from safetensors.numpy import save

    library = _library("save_safetensors", layout)
    values, statistics = write("save_safetensors", library, params, names, state, kinds)
    notes = {"format": "pt"} if layout == "torch" else {}
    write_whole(path, save(values | statistics, notes))


def _library(function: str, layout: str) -> Library:
    if layout not in LIBRARIES:
        raise ValueError(f"{function}: layout is {layout!r}, expected one of {list(LIBRARIES)}")
    return LIBRARIES[layout]
