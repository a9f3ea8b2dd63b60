"""Augmentation that moves images: mirroring, cropping, shifting and rotating."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from fnn._base import AnyArray, as_array, as_count, check_range, wide, wide_dtype
from fnn.data.augment._draws import as_images, draw_each, per_image

Direction = Literal["horizontal", "vertical"]


def flip(
    key: Array | None, x: AnyArray, *, rate: ArrayLike = 0.5, direction: Direction = "horizontal"
) -> AnyArray:
    """[batch, height, width, channels] -> the same: each image mirrored with probability `rate`.

    `direction` is "horizontal" (left and right change places) or "vertical" (top and bottom).
    """
    x = as_images("flip", x)
    check_range("flip", "rate", rate, 0, upto=1)
    if direction not in ("horizontal", "vertical"):
        raise ValueError(f"flip: direction is {direction!r}, expected 'horizontal' or 'vertical'")
    if key is None:
        return x
    flips = draw_each(
        "flip", key, x, lambda key: jax.random.bernoulli(key, jnp.asarray(rate, float))
    )
    mirrored = jnp.flip(x, axis=2 if direction == "horizontal" else 1)
    return jnp.where(per_image(flips, x), mirrored, x)


def crop(
    key: Array | None, x: AnyArray, padding: int, *, size: tuple[int, int] | None = None
) -> AnyArray:
    """[batch, height, width, channels] -> [batch, *size, channels], a window drawn at random.

    The images are first padded with `padding` zeros on each side. Without `size` the window is as
    large as the image, so each image moves by up to `padding` whole pixels. Without a key the
    window is the middle.
    """
    x = as_images("crop", x)
    images = x.shape[1:3]
    padding = as_count("crop", "padding", padding, 0)
    if size is not None and np.shape(size) != (2,):
        raise ValueError(f"crop: size is {size}, expected (height, width)")
    height, width = images if size is None else (as_count("crop", "size", side) for side in size)
    last = [images[0] + 2 * padding - height, images[1] + 2 * padding - width]
    if min(last) < 0:
        most = tuple(side + 2 * padding for side in images)
        raise ValueError(
            f"crop: padding is {padding} and size is {(height, width)}, expected at most {most}"
        )
    if key is None and (height, width) == images:
        return x
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    if key is None:
        top, left = last[0] // 2, last[1] // 2
        return padded[:, top : top + height, left : left + width]
    bounds = jnp.array(last) + 1
    corners = draw_each("crop", key, x, lambda key: jax.random.randint(key, (2,), 0, bounds))

    def window(image: Array, corner: Array) -> Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, image.shape[-1]))

    return jax.vmap(window)(padded, corners)


def shift(key: Array | None, x: AnyArray, limit: ArrayLike) -> AnyArray:
    """[batch, height, width, channels] -> the same, moved by up to `limit` pixels either way.

    The offsets down and right are uniform on [-limit, limit]. Values between pixels are bilinear.
    `crop` moves by whole pixels.
    """
    x = as_images("shift", x)
    check_range("shift", "limit", limit, 0)
    if key is None:
        return x
    offsets = draw_each("shift", key, x, lambda key: _symmetric(key, (2,), limit, wide_dtype(x)))
    return shift_by(x, offsets)


def shift_by(x: AnyArray, offsets: AnyArray) -> AnyArray:
    """[batch, height, width, channels], [batch, 2] -> the same, moved by so many pixels.

    An offset is (down, right). Whole offsets are exact, others are bilinear.
    """
    x = as_images("shift_by", x)
    offsets = _each("shift_by", "offsets", offsets, (x.shape[0], 2))
    along = jax.vmap(_shift_first_axis)
    moved = along(wide(x), offsets[:, 0])
    return along(moved.swapaxes(1, 2), offsets[:, 1]).swapaxes(1, 2).astype(x.dtype)


def rotate(key: Array | None, x: AnyArray, limit: ArrayLike) -> AnyArray:
    """[batch, height, width, channels] -> the same, turned by an angle on [-limit, limit] degrees.

    The angles are uniform, the centre is the middle of the image, values are bilinear.
    """
    x = as_images("rotate", x)
    check_range("rotate", "limit", limit, 0)
    if key is None:
        return x
    degrees = draw_each("rotate", key, x, lambda key: _symmetric(key, (), limit, wide_dtype(x)))
    return rotate_by(x, degrees)


def rotate_by(x: AnyArray, degrees: AnyArray) -> AnyArray:
    """[batch, height, width, channels], [batch] -> the same, turned anticlockwise, bilinear.

    Multiples of 90 degrees are exact: a square image then becomes its ``numpy.rot90``.
    """
    from jax.scipy.ndimage import map_coordinates  # `import jax` does not load it

    x = as_images("rotate_by", x)
    degrees = _each("rotate_by", "degrees", degrees, (x.shape[0],))

    def turn(image: Array, degrees: Array) -> Array:
        cos, sin = _cos_sin(degrees.astype(image.dtype))
        (down, right), middle = _centred_grid(image)
        source = [cos * down + sin * right + middle[0], cos * right - sin * down + middle[1]]
        return jax.vmap(lambda channel: map_coordinates(channel, source, 1), -1, -1)(image)

    return jax.vmap(turn)(wide(x), degrees).astype(x.dtype)


def _shift_first_axis(image: Array, offset: Array) -> Array:
    """y[i] = image[i - offset], linear between two pixels."""
    n = image.shape[0]
    offset = jnp.clip(offset.astype(image.dtype), -n - 1, n)
    whole = jnp.floor(offset)
    part = offset - whole
    padded = jnp.pad(image, ((n + 1, n + 1), *[(0, 0)] * (image.ndim - 1)))
    pixels = lax.dynamic_slice_in_dim(padded, n - whole.astype(jnp.int32), n + 1)
    return (1 - part) * pixels[1:] + part * pixels[:-1]


def _cos_sin(degrees: Array) -> tuple[Array, Array]:
    """Degrees -> cosine, sine; exact at multiples of 90 degrees."""
    turns = jnp.round(degrees * (1 / 90))
    rest = (degrees - 90 * turns) * (jnp.pi / 180)
    cos, sin = jnp.cos(rest), jnp.sin(rest)
    quarter = [turns % 4 == k for k in range(3)]
    return jnp.select(quarter, [cos, -sin, -cos], sin), jnp.select(quarter, [sin, cos, -sin], -cos)


def _centred_grid(image: Array) -> tuple[tuple[Array, Array], tuple[float, float]]:
    """(rows below the middle, columns right of the middle) of each pixel, and the middle."""
    middle = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    down = jnp.arange(image.shape[0], dtype=image.dtype)[:, None] - middle[0]
    right = jnp.arange(image.shape[1], dtype=image.dtype)[None, :] - middle[1]
    return (down, right), middle


def _symmetric(key: Array, shape: tuple[int, ...], limit: ArrayLike, dtype: Any) -> Array:
    return jnp.asarray(limit, dtype) * jax.random.uniform(key, shape, dtype, -1, 1)


def _each(name: str, argument: str, values: AnyArray, expected: tuple[int, ...]) -> Array:
    """The values as floats; ValueError unless there is one for each image."""
    values = as_array(name, argument, values)
    if values.shape != expected:
        raise ValueError(f"{name}: {argument} have shape {values.shape}, expected {expected}")
    return wide(values)
