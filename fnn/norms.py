"""Normalisation layers."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from fnn.precision import wide
from fnn.types import AnyArray, Params


def layer_norm_init(dim: int, *, dtype: DTypeLike = float) -> Params:
    """Parameters of `layer_norm`: {"scale": ones [dim], "offset": zeros [dim]}."""
    return {"scale": jnp.ones(dim, dtype), "offset": jnp.zeros(dim, dtype)}


def layer_norm(params: Params, x: AnyArray, *, eps: float = 1e-5) -> Array:
    """[..., dim] -> [..., dim]: (x - mean) / sqrt(var + eps) * scale + offset over the last axis.

    Ba et al. 2016; the variance is the biased one. Half precision is normalised in float32.
    """
    wide_x = wide(x)
    centred = wide_x - wide_x.mean(-1, keepdims=True)
    var = jnp.square(centred).mean(-1, keepdims=True)
    normal = (centred * jax.lax.rsqrt(var + eps)).astype(x.dtype)
    return normal * params["scale"] + params["offset"]
