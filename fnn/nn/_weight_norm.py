"""Weight norm: a layer's weights as a length and a direction (Salimans & Kingma 2016)."""

import jax.numpy as jnp
from jax import Array, lax

from fnn._base import (
    Params,
    abs_square,
    check_floating,
    real_dtype,
    safe_divide,
    safe_sqrt,
    wide,
)
from fnn.nn._dense import check_params


def weight_norm_init(params: Params) -> Params:
    """{"w": [..., out], ...} of a layer -> {"v": w, "g": [out], ...}, which `weight_norm` takes.

    g is the norm of each unit: w over all axes but the last, a column of a dense layer's [in, out],
    a filter of a conv's [*size, in, out]. So `weight_norm` gives w again, up to rounding. All other
    parameters, as "b", stay.
    """
    check_params("weight_norm_init", params, "w")
    w = params["w"]
    check_floating("weight_norm_init", w)
    _check_axes("weight_norm_init", "w", w)
    _check_free("weight_norm_init", params, "v", "g")
    largest, unit = _scaled(w)
    g = (largest * _norm(unit)).reshape(-1).astype(real_dtype(w.dtype))
    return {name: leaf for name, leaf in params.items() if name != "w"} | {"v": w, "g": g}


def weight_norm(params: Params) -> Params:
    """{"v": [..., out], "g": [out], ...} -> {"w": g v / norm(v), ...}: the layer's own parameters.

    As in ``fnn.dense(weight_norm(params), x)``, with params from `weight_norm_init`. The norm is
    that of each unit, over all axes but the last. w does not depend on the length of v, and its
    gradient by v is orthogonal to v. Where v is 0, w and its derivatives are 0. Half precision is
    computed in float32; w has the dtype of v.

    Weight decay would shrink the length of v, which changes only the size of v's steps: to decay
    w, decay g.
    """
    check_params("weight_norm", params, "v", "g", optional=())
    v, g = params["v"], params["g"]
    check_floating("weight_norm", v)
    _check_axes("weight_norm", "v", v)
    _check_free("weight_norm", params, "w")
    if g.shape != v.shape[-1:]:
        raise ValueError(
            f"weight_norm: g has shape {g.shape}, but v of shape {v.shape} expects {v.shape[-1:]}"
        )
    _, unit = _scaled(v)
    w = g.astype(unit.dtype) * safe_divide(unit, jnp.broadcast_to(_norm(unit), unit.shape))
    others = {name: leaf for name, leaf in params.items() if name not in ("v", "g")}
    return others | {"w": w.astype(v.dtype)}


def _scaled(v: Array) -> tuple[Array, Array]:
    """(the largest |v| of each unit, v divided by it), so that no square overflows or vanishes."""
    values = wide(v)
    over = tuple(range(values.ndim - 1))
    largest = lax.stop_gradient(jnp.max(jnp.abs(values), over, keepdims=True, initial=0))
    return largest, safe_divide(values, jnp.broadcast_to(largest, values.shape))


def _norm(unit: Array) -> Array:
    over = tuple(range(unit.ndim - 1))
    return safe_sqrt(jnp.sum(abs_square(unit), over, keepdims=True))


def _check_axes(name: str, what: str, w: Array) -> None:
    if w.ndim < 2:
        raise ValueError(f"{name}: {what} has shape {w.shape}, expected [..., in, out]")


def _check_free(name: str, params: Params, *made: str) -> None:
    for leaf in made:
        if leaf in params:
            raise ValueError(f"{name}: params has {leaf!r}, expected none: it would be replaced")
