"""Small sets drawn from a key: ``name(key, rows) -> (x [rows, 2], labels int [rows])``.

The classes have equally many rows, or one row more or less. `noise` is the standard deviation of
the normal noise that is added to every coordinate.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import as_count, check_key, check_range


def spirals(
    key: Array, rows: int, *, classes: int = 2, turns: ArrayLike = 1.0, noise: ArrayLike = 0.1
) -> tuple[Array, Array]:
    """Interleaved arms: class c at angle 2 pi (turns r + c / classes), r from 0.1 to 1.

    The radius is 3 r.
    """
    classes = as_count("spirals", "classes", classes)
    labels, noise_xy, radius_key = _labels_and_noise("spirals", key, rows, classes, noise)
    radius = jax.random.uniform(radius_key, labels.shape, minval=0.1)
    angle = 2 * jnp.pi * (jnp.asarray(turns) * radius + labels / classes)
    return 3 * radius[:, None] * _on_circle(angle) + noise_xy, labels


def rings(
    key: Array, rows: int, *, classes: int = 2, noise: ArrayLike = 0.1
) -> tuple[Array, Array]:
    """Concentric circles: class c at radius c + 1."""
    labels, noise_xy, angle_key = _labels_and_noise("rings", key, rows, classes, noise)
    angle = jax.random.uniform(angle_key, labels.shape, maxval=2 * jnp.pi)
    return (labels + 1).astype(noise_xy.dtype)[:, None] * _on_circle(angle) + noise_xy, labels


def clusters(
    key: Array, rows: int, *, classes: int = 3, noise: ArrayLike = 0.5
) -> tuple[Array, Array]:
    """Normal clouds of deviation `noise`; their centres lie evenly on a circle of radius 2."""
    classes = as_count("clusters", "classes", classes)
    labels, noise_xy, _ = _labels_and_noise("clusters", key, rows, classes, noise)
    return 2 * _on_circle(2 * jnp.pi * (labels / classes)) + noise_xy, labels


def xor(key: Array, rows: int, *, noise: ArrayLike = 0.1) -> tuple[Array, Array]:
    """Uniform on [-1, 1]^2 before the noise: class 1 where the signs of the coordinates differ."""
    _, noise_xy, point_key = _labels_and_noise("xor", key, rows, 2, noise)
    x = jax.random.uniform(point_key, noise_xy.shape, minval=-1)
    labels = ((x[:, 0] > 0) != (x[:, 1] > 0)).astype(jnp.int32)
    return x + noise_xy, labels


def moons(key: Array, rows: int, *, noise: ArrayLike = 0.1) -> tuple[Array, Array]:
    """Two interleaved half circles of radius 1; class 1 is the lower half circle."""
    labels, noise_xy, angle_key = _labels_and_noise("moons", key, rows, 2, noise)
    angle = jax.random.uniform(angle_key, labels.shape, maxval=jnp.pi)
    upper = _on_circle(angle)
    lower = jnp.array([1.0, 0.5]) - upper
    return jnp.where(labels[:, None] == 1, lower, upper) + noise_xy, labels


def _labels_and_noise(
    name: str, key: Array, rows: int, classes: int, noise: ArrayLike
) -> tuple[Array, Array, Array]:
    """Labels, the noise [rows, 2], and a key for the rest."""
    check_key(name, key)
    rows, classes = as_count(name, "rows", rows), as_count(name, "classes", classes)
    check_range(name, "noise", noise, 0)
    noise_key, rest = jax.random.split(key)
    labels = jnp.arange(rows, dtype=jnp.int32) % classes
    return labels, jnp.asarray(noise) * jax.random.normal(noise_key, (rows, 2)), rest


def _on_circle(angle: Array) -> Array:
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
