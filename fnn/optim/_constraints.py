"""Constraints on parameters, kept after each update: transformations at the end of a chain."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import Params, check_mask, check_range, global_norm, resolve_mask, wide
from fnn.optim._clipping import scale_to_norm
from fnn.optim._lifting import Optimizer, check_params
from fnn.optim._transforms import stateless


def max_norm(limit: ArrayLike, mask: Any = None) -> Optimizer:
    """p + u is projected to norm(unit) <= limit: each unit's weights, after the update.

    Srivastava et al. 2014 (section 5.1); Keras's MaxNorm. It stands last, as in
    ``fnn.chain(fnn.adam(1e-3), fnn.optim.max_norm(3.0))``, because it needs the whole update. A
    unit is the weights of one output: a column of [in, out], a filter of [*size, in, out]. A leaf
    with one axis or none is one unit.

    `mask` as in `adamw`: None is all except biases and norm scales. The update of a unit within the
    limit is returned bit for bit. After ``apply_updates`` the norm is at most `limit`, up to
    rounding in the parameters' dtype. A unit that is not finite is not scaled.
    """
    check_range("max_norm", "limit", limit, 0)
    check_mask(mask, "max_norm: mask")

    def project(u: ArrayLike, p: ArrayLike, constrained: Any) -> Array:
        u, p = jnp.asarray(u), jnp.asarray(p)
        if u.ndim < 2:
            return of_unit(u, p, constrained)
        return jax.vmap(of_column, (-1, -1, None), -1)(u, p, constrained)

    def of_column(u: Array, p: Array, constrained: Any) -> Array:
        return of_unit(u.ravel(), p.ravel(), constrained).reshape(u.shape)

    def of_unit(u: Array, p: Array, constrained: Any) -> Array:
        new = wide(p) + jnp.asarray(u, wide(p).dtype)
        norm = global_norm(new)
        # inf less inf would be NaN
        inside = ~((norm > limit) & (norm < jnp.inf)) | ~jnp.asarray(constrained, bool)
        projected = scale_to_norm(new, norm, limit) - wide(p)
        dtype = max(u.dtype, p.dtype, key=lambda d: d.itemsize)
        return jnp.where(inside, u.astype(dtype), projected.astype(dtype))

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        check_params("max_norm", params)
        masks = resolve_mask(mask, params, "max_norm: mask")
        return jax.tree.map(project, updates, params, masks), state

    return stateless(update)
