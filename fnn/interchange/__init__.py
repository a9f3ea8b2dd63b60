"""Weights from and to other libraries, and trained functions for programs without fnn."""

from fnn.interchange._equinox import from_equinox, to_equinox
from fnn.interchange._export import export
from fnn.interchange._keras import from_keras, to_keras
from fnn.interchange._linen import from_linen, to_linen
from fnn.interchange._nnx import from_nnx, to_nnx
from fnn.interchange._safetensors import load_safetensors, save_safetensors
from fnn.interchange._torch import from_torch, to_torch

__all__ = [
    "export",
    "from_equinox",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_torch",
    "load_safetensors",
    "save_safetensors",
    "to_equinox",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_torch",
]
