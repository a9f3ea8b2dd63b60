"""Augmentation that moves images: mirrored, cut out of a larger one, shifted, turned."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from fnn.augment.draws import as_images, draw_each, per_image
from fnn.lifting import check_range
from fnn.precision import wide, wide_dtype
from fnn.types import AnyArray

Direction = Literal["horizontal", "vertical"]


def flip(
    key: Array | None, x: AnyArray, *, rate: ArrayLike = 0.5, direction: Direction = "horizontal"
) -> AnyArray:
    """[batch, height, width, channels] -> the same: each image mirrored with probability `rate`.

    "horizontal" swaps left and right, "vertical" top and bottom.
    """
    x = as_images("flip", x)
    if isinstance(rate, (int, float)) and not 0 <= rate <= 1:
        raise ValueError(f"flip: rate is {rate}, expected a number from 0 to 1")
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

    The images are first padded with `padding` zeros on each side. Without `size` it is theirs, so
    that each moves by up to `padding` whole pixels. No key takes the window in the middle.
    """
    x = as_images("crop", x)
    images = x.shape[1:3]
    height, width = images if size is None else size
    last = [images[0] + 2 * padding - height, images[1] + 2 * padding - width]
    if padding < 0 or min(last) < 0:
        most = tuple(side + 2 * padding for side in images)
        raise ValueError(
            f"crop: padding is {padding} and size {(height, width)}, expected padding >= 0 and a"
            f" size of at most {most}"
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

    Both ways uniform on [-limit, limit], and bilinear between pixels; `crop` moves by whole ones.
    """
    x = as_images("shift", x)
    check_range("shift", "limit", limit, 0)
    if key is None:
        return x
    offsets = draw_each("shift", key, x, lambda key: _symmetric(key, (2,), limit, wide_dtype(x)))
    return shift_by(x, offsets)


def shift_by(x: AnyArray, offsets: Array) -> AnyArray:
    """[batch, height, width, channels], [batch, 2] -> the same, moved by so many pixels.

    Each offset is (down, right). Whole pixels move exactly, the rest is bilinear.
    """
    x = as_images("shift_by", x)
    _check_each("shift_by", "offsets", offsets, (x.shape[0], 2))
    along = jax.vmap(_shift_first_axis)
    moved = along(wide(x), offsets[:, 0])
    return along(moved.swapaxes(1, 2), offsets[:, 1]).swapaxes(1, 2).astype(x.dtype)


def rotate(key: Array | None, x: AnyArray, limit: ArrayLike) -> AnyArray:
    """[batch, height, width, channels] -> the same, turned by an angle on [-limit, limit] degrees.

    Uniform angles, around the middle of the image, bilinear.
    """
    x = as_images("rotate", x)
    check_range("rotate", "limit", limit, 0)
    if key is None:
        return x
    degrees = draw_each("rotate", key, x, lambda key: _symmetric(key, (), limit, wide_dtype(x)))
    return rotate_by(x, degrees)


def rotate_by(x: AnyArray, degrees: Array) -> AnyArray:
    """[batch, height, width, channels], [batch] -> the same, turned anticlockwise, bilinear.

    Exact at multiples of 90 degrees, where a square image is ``numpy.rot90`` of itself.
    """
    from jax.scipy.ndimage import map_coordinates  # which import jax does not load

    x = as_images("rotate_by", x)
    _check_each("rotate_by", "degrees", degrees, (x.shape[0],))

    def turn(image: Array, degrees: Array) -> Array:
        cos, sin = _cos_sin(degrees.astype(image.dtype))
        (down, right), middle = _centred_grid(image)
        source = [cos * down + sin * right + middle[0], cos * right - sin * down + middle[1]]
        return jax.vmap(lambda channel: map_coordinates(channel, source, 1), -1, -1)(image)

    return jax.vmap(turn)(wide(x), degrees).astype(x.dtype)


def _shift_first_axis(image: Array, offset: Array) -> Array:
    """y[i] = image[i - offset], between neighbours linear."""
    n = image.shape[0]
    offset = jnp.clip(offset.astype(image.dtype), -n - 1, n)
    whole = jnp.floor(offset)
    part = offset - whole
    padded = jnp.pad(image, ((n + 1, n + 1), *[(0, 0)] * (image.ndim - 1)))
    pixels = lax.dynamic_slice_in_dim(padded, n - whole.astype(jnp.int32), n + 1)
    return (1 - part) * pixels[1:] + part * pixels[:-1]


def _cos_sin(degrees: Array) -> tuple[Array, Array]:
    """Cosine and sine, exact at multiples of 90 degrees."""
    turns = jnp.round(degrees * (1 / 90))
    rest = (degrees - 90 * turns) * (jnp.pi / 180)
    cos, sin = jnp.cos(rest), jnp.sin(rest)
    quarter = [turns % 4 == k for k in range(3)]
    return jnp.select(quarter, [cos, -sin, -cos], sin), jnp.select(quarter, [sin, cos, -sin], -cos)


def _centred_grid(image: Array) -> tuple[tuple[Array, Array], tuple[float, float]]:
    """How far each pixel is down and right of the middle, and where that is."""
    middle = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    down = jnp.arange(image.shape[0], dtype=image.dtype)[:, None] - middle[0]
    right = jnp.arange(image.shape[1], dtype=image.dtype)[None, :] - middle[1]
    return (down, right), middle


def _symmetric(key: Array, shape: tuple[int, ...], limit: ArrayLike, dtype: Any) -> Array:
    return jnp.asarray(limit, dtype) * jax.random.uniform(key, shape, dtype, -1, 1)


def _check_each(name: str, argument: str, values: Array, expected: tuple[int, ...]) -> None:
    if values.shape != expected:
        raise ValueError(f"{name}: {argument} have shape {values.shape}, expected {expected}")
