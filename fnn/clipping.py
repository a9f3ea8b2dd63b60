"""Clipping of gradients: by value, by leaf, by the norm of them all, by the size of a unit.

Under the limit a gradient passes bit for bit. One that is not finite becomes 0, so that nothing of
it reaches the moments, or with "pass" stays as it came; scaling it would spread it.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn.lifting import Optimizer, check_range
from fnn.params import global_norm
from fnn.precision import wide
from fnn.transforms import stateless
from fnn.types import Params

NonFinite = Literal["zero", "pass"]


def clip_by_value(limit: ArrayLike, *, nonfinite: NonFinite = "zero") -> Optimizer:
    """g <- g clipped to [-limit, limit], element by element; inf is clipped, NaN is not finite."""
    check_range("clip_by_value", "limit", limit, 0)
    _check_nonfinite("clip_by_value", nonfinite)

    def clip(g: ArrayLike) -> Array:
        g = jnp.asarray(g)
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

    Pascanu et al. 2013. The state keeps the norm before clipping, {"norm": []}, for the log.
    Gradients whose norm is not finite become zero, or with `nonfinite` "pass" stay as they came.
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

    A unit is what one output sees: a column of [in, out], a filter of [*size, in, out], and of
    one axis or none the whole leaf.
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
        if params is None:
            raise ValueError("adaptive_clip: update(grads, state) came without params")
        return jax.tree.map(clip, updates, params), state

    return stateless(update)


def scale_to_norm(
    grads: Params, norm: Array, max_norm: ArrayLike, nonfinite: NonFinite = "pass"
) -> Params:
    """The gradients, whose norm is `norm`, scaled to `max_norm` if it exceeds that."""
    finite = jnp.isfinite(norm)
    too_long = (norm > max_norm) & finite
    scale = jnp.where(too_long, max_norm / jnp.where(too_long, norm, 1), 1)

    def clip(g: ArrayLike) -> Array:
        g = jnp.asarray(g)
        clipped = (wide(g) * scale.astype(wide(g).dtype)).astype(g.dtype)
        return jnp.where(finite, clipped, 0) if nonfinite == "zero" else clipped

    return jax.tree.map(clip, grads)


def _check_nonfinite(name: str, nonfinite: str) -> None:
    if nonfinite not in ("zero", "pass"):
        raise ValueError(f"{name}: nonfinite is {nonfinite!r}, expected 'zero' or 'pass'")
