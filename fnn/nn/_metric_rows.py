"""Which rows count, and what binary labels and logits say: shared by the metrics."""

import jax.numpy as jnp
from jax import Array

from fnn._base import AnyArray, as_array, as_ids, wide
from fnn.nn._losses import check_same_shape, real


def yes_or_no(name: str, logits: AnyArray, labels: AnyArray) -> tuple[Array, Array, Array]:
    """(present, answered, known): bools of the logits' shape."""
    logits, labels = real(name, "logits", logits), real(name, "labels", labels)
    check_same_shape(name, "logits", logits, "labels", labels)
    yes, x = wide(labels) > 0.5, wide(logits)
    return yes, x > 0, ~jnp.isnan(x)


def counted(name: str, mask: AnyArray | None, shape: tuple[int, ...]) -> Array:
    """The mask as bools of this shape; all True if there is none."""
    if mask is None:
        return jnp.ones(shape, bool)
    kept = jnp.asarray(as_array(name, "mask", mask)).astype(bool)
    if kept.shape != shape:
        raise ValueError(f"{name}: mask has shape {kept.shape}, expected {shape}")
    return kept


def numbers(classes: int) -> Array:
    """0, 1, ... classes - 1."""
    return as_ids(jnp.arange(classes))
