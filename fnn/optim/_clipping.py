"""Clipping of gradients: by value, by leaf, by the global norm, by the norm of each unit.

A gradient under the limit is returned bit for bit. A gradient that is not finite becomes 0, so it
does not reach the optimizer's moments; with `nonfinite` "pass" it is returned unchanged. It is
never scaled, since that would spread NaN to finite entries.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn._base import Params, check_range, global_norm, safe_divide, scaled, wide
from fnn.optim._lifting import Optimizer, check_params
from fnn.optim._transforms import stateless

NonFinite = Literal["zero", "pass"]
_SMALL = 2.0**-100


def clip_by_value(limit: ArrayLike, *, nonfinite: NonFinite = "zero") -> Optimizer:
    """g <- g clipped to [-limit, limit], element by element. Only NaN counts as not finite.

    A complex gradient has no order and is a TypeError; the other clips take it.
    """
    check_range("clip_by_value", "limit", limit, 0)
    _check_nonfinite("clip_by_value", nonfinite)

    def clip(g: ArrayLike) -> Array:
        g = jnp.asarray(g)
        if jnp.iscomplexobj(g):
            raise TypeError(
                f"clip_by_value: a gradient is {g.dtype}, expected real numbers; clip_by_norm and"
                " clip_by_global_norm take complex ones"
            )
        bound = jnp.asarray(limit, g.dtype)
        clipped = jnp.clip(g, -bound, bound)
        return jnp.where(jnp.isnan(g), 0, clipped) if nonfinite == "zero" else clipped

    return stateless(lambda updates, state, params=None: (jax.tree.map(clip, updates), state))


def clip_by_norm(max_norm: ArrayLike, *, nonfinite: NonFinite = "zero") -> Optimizer:
    """Each leaf by itself: g <- g max_norm / norm(g) where its norm exceeds max_norm."""
    check_range("clip_by_norm", "max_norm", max_norm, 0)
    _check_nonfinite("clip_by_norm", nonfinite)

    def clip(g: ArrayLike) -> Array:
        return scale_to_norm(g, global_norm(g), max_norm, nonfinite)

    return stateless(lambda updates, state, params=None: (jax.tree.map(clip, updates), state))


def clip_by_global_norm(max_norm: ArrayLike, *, nonfinite: NonFinite = "zero") -> Optimizer:
    """g <- g max_norm / norm where the norm of the whole tree exceeds max_norm, else g itself.

    Pascanu et al. 2013. The state is {"norm": []}, the norm before clipping, for the log. If the
    norm is not finite, all gradients become 0, or with `nonfinite` "pass" are unchanged.
    """
    check_range("clip_by_global_norm", "max_norm", max_norm, 0)
    _check_nonfinite("clip_by_global_norm", nonfinite)

    def init(params: Params) -> dict[str, Array]:
        return {"norm": jnp.zeros_like(global_norm(params))}

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        norm = global_norm(updates)
        return scale_to_norm(updates, norm, max_norm, nonfinite), {"norm": norm}

    return optax.with_extra_args_support(Optimizer(init, update))


def adaptive_clip(
    limit: ArrayLike = 0.01, eps: ArrayLike = 1e-3, *, nonfinite: NonFinite = "zero"
) -> Optimizer:
    """Brock et al. 2021 (AGC): each unit's gradient to at most limit max(norm(unit), eps).

    A unit is the weights of one output: a column of [in, out], a filter of [*size, in, out]. A
    leaf with one axis or none is one unit.
    """
    check_range("adaptive_clip", "limit", limit, 0)
    check_range("adaptive_clip", "eps", eps, 0)
    _check_nonfinite("adaptive_clip", nonfinite)

    def clip(g: ArrayLike, p: ArrayLike) -> Array:
        g, p = jnp.asarray(g), jnp.asarray(p)
        if g.ndim < 2:
            max_norm = limit * jnp.maximum(global_norm(p), eps)
            return scale_to_norm(g, global_norm(g), max_norm, nonfinite)
        return jax.vmap(clip_unit, -1, -1)(g, p)

    def clip_unit(g: Array, p: Array) -> Array:
        return clip(g.ravel(), p.ravel()).reshape(g.shape)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        check_params("adaptive_clip", params)
        return jax.tree.map(clip, updates, params), state

    return stateless(update)


def scale_to_norm(
    grads: Params, norm: Array, max_norm: ArrayLike, nonfinite: NonFinite = "pass"
) -> Params:
    """Gradients with the norm `norm`, scaled to `max_norm` if the norm exceeds it."""
    limit, finite = jnp.asarray(max_norm, norm.dtype), jnp.isfinite(norm)
    too_long = (norm > limit) & finite
    # On a CPU a ratio like 1e-38 is 0, so a small one is two factors.
    small = too_long & (norm > 1) & (safe_divide(limit, norm) < _SMALL)
    first = jnp.where(small, _SMALL, 1).astype(norm.dtype)
    second = jnp.where(too_long, safe_divide(limit, jnp.where(too_long, norm * first, 1)), 1)

    def clip(g: ArrayLike) -> Array:
        g = jnp.asarray(g)
        clipped = scaled(scaled(wide(g), first), second).astype(g.dtype)
        return jnp.where(finite, clipped, 0) if nonfinite == "zero" else clipped

    return jax.tree.map(clip, grads)


def _check_nonfinite(name: str, nonfinite: str) -> None:
    if nonfinite not in ("zero", "pass"):
        raise ValueError(f"{name}: nonfinite is {nonfinite!r}, expected 'zero' or 'pass'")
