"""Augmentation: ``name(key, x, ...) -> x`` for batches [batch, height, width, channels].

Each example is drawn by itself, and no key leaves x as it is. Example i draws from
``fold_in(key, i)``, so what it gets does not depend on the batch around it; where a batch is cut
in pieces, give keys [batch], ``fnn.row_keys(key, numbers)``, in place of the key. Several in a
row need a key each, from ``fnn.split``. All are meant for the inside of the compiled program, in
the loss function, where each step draws anew.

Images are floating point; half precision is interpolated and mixed in float32. What comes from
outside an image is 0.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from fnn.layers import check_key, is_one_key, row_keys
from fnn.lifting import check_range
from fnn.precision import wide, wide_dtype
from fnn.types import AnyArray

Direction = Literal["horizontal", "vertical"]


# --- moving -----------------------------------------------------------------------------------


def flip(
    key: Array | None, x: AnyArray, *, rate: ArrayLike = 0.5, direction: Direction = "horizontal"
) -> AnyArray:
    """[batch, height, width, channels] -> the same: each image mirrored with probability `rate`.

    "horizontal" swaps left and right, "vertical" top and bottom.
    """
    x = _images("flip", x)
    if isinstance(rate, (int, float)) and not 0 <= rate <= 1:
        raise ValueError(f"flip: rate is {rate}, expected a number from 0 to 1")
    if direction not in ("horizontal", "vertical"):
        raise ValueError(f"flip: direction is {direction!r}, expected 'horizontal' or 'vertical'")
    if key is None:
        return x
    flips = _draw("flip", key, x, lambda key: jax.random.bernoulli(key, jnp.asarray(rate, float)))
    mirrored = jnp.flip(x, axis=2 if direction == "horizontal" else 1)
    return jnp.where(_per_image(flips, x), mirrored, x)


def crop(
    key: Array | None, x: AnyArray, padding: int, *, size: tuple[int, int] | None = None
) -> AnyArray:
    """[batch, height, width, channels] -> [batch, *size, channels], a window drawn at random.

    The images are first padded with `padding` zeros on each side. Without `size` it is theirs, so
    that each moves by up to `padding` whole pixels. No key takes the window in the middle.
    """
    x = _images("crop", x)
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
    corners = _draw("crop", key, x, lambda key: jax.random.randint(key, (2,), 0, bounds))

    def window(image: Array, corner: Array) -> Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, image.shape[-1]))

    return jax.vmap(window)(padded, corners)


def shift(key: Array | None, x: AnyArray, limit: ArrayLike) -> AnyArray:
    """[batch, height, width, channels] -> the same, moved by up to `limit` pixels either way.

    Both ways uniform on [-limit, limit], and bilinear between pixels; `crop` moves by whole ones.
    """
    x = _images("shift", x)
    check_range("shift", "limit", limit, 0)
    if key is None:
        return x
    offsets = _draw("shift", key, x, lambda key: _symmetric(key, (2,), limit, wide_dtype(x)))
    return shift_by(x, offsets)


def shift_by(x: AnyArray, offsets: Array) -> AnyArray:
    """[batch, height, width, channels], [batch, 2] -> the same, moved by so many pixels.

    Each offset is (down, right). Whole pixels move exactly, the rest is bilinear.
    """
    x = _images("shift_by", x)
    _check_each("shift_by", "offsets", offsets, (x.shape[0], 2))
    along = jax.vmap(_shift_first_axis)
    moved = along(wide(x), offsets[:, 0])
    return along(moved.swapaxes(1, 2), offsets[:, 1]).swapaxes(1, 2).astype(x.dtype)


def rotate(key: Array | None, x: AnyArray, limit: ArrayLike) -> AnyArray:
    """[batch, height, width, channels] -> the same, turned by an angle on [-limit, limit] degrees.

    Uniform angles, around the middle of the image, bilinear.
    """
    x = _images("rotate", x)
    check_range("rotate", "limit", limit, 0)
    if key is None:
        return x
    degrees = _draw("rotate", key, x, lambda key: _symmetric(key, (), limit, wide_dtype(x)))
    return rotate_by(x, degrees)


def rotate_by(x: AnyArray, degrees: Array) -> AnyArray:
    """[batch, height, width, channels], [batch] -> the same, turned anticlockwise, bilinear.

    Exact at multiples of 90 degrees, where a square image is ``numpy.rot90`` of itself.
    """
    from jax.scipy.ndimage import map_coordinates  # which import jax does not load

    x = _images("rotate_by", x)
    _check_each("rotate_by", "degrees", degrees, (x.shape[0],))

    def turn(image: Array, degrees: Array) -> Array:
        cos, sin = _cos_sin(degrees.astype(image.dtype))
        (down, right), middle = _centred_grid(image)
        source = [cos * down + sin * right + middle[0], cos * right - sin * down + middle[1]]
        return jax.vmap(lambda channel: map_coordinates(channel, source, 1), -1, -1)(image)

    return jax.vmap(turn)(wide(x), degrees).astype(x.dtype)


# --- covering ---------------------------------------------------------------------------------


def noise(key: Array | None, x: AnyArray, deviation: ArrayLike) -> AnyArray:
    """[batch, ...] -> the same plus normal noise of this standard deviation, in the units of x."""
    x = _batch("noise", x)
    check_range("noise", "deviation", deviation, 0)
    if key is None:
        return x
    dtype = wide_dtype(x)
    drawn = _draw("noise", key, x, lambda key: jax.random.normal(key, x.shape[1:], dtype))
    return (wide(x) + jnp.asarray(deviation, dtype) * drawn).astype(x.dtype)


def cutout(key: Array | None, x: AnyArray, size: int | Array) -> AnyArray:
    """[batch, height, width, channels] -> the same with a square of `size` pixels set to 0.

    DeVries & Taylor 2017: the middle is uniform on the image, the square cut off at its edge.
    """
    x = _images("cutout", x)
    check_range("cutout", "size", size, 0)
    if key is None:
        return x
    sizes = jnp.broadcast_to(jnp.asarray(size, jnp.int32), 2)
    inside, _ = _boxes(x, _draw("cutout", key, x, lambda key: _middle(key, x)), sizes)
    return jnp.where(inside, 0, x)


# --- mixing -----------------------------------------------------------------------------------


def mixup(
    key: Array | None,
    x: AnyArray,
    labels: AnyArray,
    *,
    classes: int | None = None,
    alpha: ArrayLike = 0.2,
) -> tuple[AnyArray, Array]:
    """[batch, ...], labels -> (x, [batch, classes]): each example mixed with another of the batch.

    Zhang et al. 2018: lambda x_i + (1 - lambda) x_j, and the same of the labels' probabilities,
    lambda from Beta(alpha, alpha) for each example, where the paper draws one for the batch. j is
    uniform on the other rows, so it alone depends on the batch. Labels are int [batch] together
    with `classes`, or probabilities [batch, classes]; an int outside gives NaN. No key
    leaves x as it is, and gives the labels' own probabilities.
    """
    x = _batch("mixup", x)
    own = _probabilities("mixup", labels, classes, x)
    _check_alpha("mixup", alpha)
    if key is None:
        return x, own
    keep, partner = _shares_and_partners("mixup", key, x, alpha)
    weight = _per_image(keep, x)
    mixed = weight * wide(x) + (1 - weight) * wide(x[partner])
    return mixed.astype(x.dtype), _mix_labels(own, own[partner], 1 - keep)


def cutmix(
    key: Array | None,
    x: AnyArray,
    labels: AnyArray,
    *,
    classes: int | None = None,
    alpha: ArrayLike = 1.0,
) -> tuple[AnyArray, Array]:
    """[batch, height, width, channels], labels -> (x, [batch, classes]): a patch of another's.

    Yun et al. 2019: a box of sqrt(1 - lambda) of the sides, lambda from Beta(alpha, alpha), its
    middle uniform on the image, its part inside the image pasted from another example of the
    batch. The other's labels count by the share of the pixels pasted. The rest as in `mixup`.
    """
    x = _images("cutmix", x)
    own = _probabilities("cutmix", labels, classes, x)
    _check_alpha("cutmix", alpha)
    if key is None:
        return x, own
    keep, partner = _shares_and_partners("cutmix", key, x, alpha)
    sides = jnp.sqrt(1 - keep)[:, None] * jnp.array(x.shape[1:3], keep.dtype)
    middles = _draw("cutmix", key, x, lambda key: _middle(jax.random.split(key, 3)[2], x))
    inside, area = _boxes(x, middles, jnp.round(sides).astype(jnp.int32))
    share = area.astype(own.dtype) * (1 / (x.shape[1] * x.shape[2]))
    return jnp.where(inside, x[partner], x), _mix_labels(own, own[partner], share)


# --- draws ------------------------------------------------------------------------------------


def _draw(name: str, key: Array, x: AnyArray, draw: Callable[[Array], Any]) -> Any:
    """draw(key) for each example, [batch, ...]."""
    check_key(name, key, x.shape[0])
    keys: Any = row_keys(key, x.shape[0]) if is_one_key(key) else key
    return jax.vmap(draw)(keys)


def _symmetric(key: Array, shape: tuple[int, ...], limit: ArrayLike, dtype: Any) -> Array:
    return jnp.asarray(limit, dtype) * jax.random.uniform(key, shape, dtype, -1, 1)


def _middle(key: Array, x: AnyArray) -> Array:
    return jax.random.randint(key, (2,), 0, jnp.array(x.shape[1:3]), jnp.int32)


def _shares_and_partners(
    name: str, key: Array, x: AnyArray, alpha: ArrayLike
) -> tuple[Array, Array]:
    """Beta(alpha, alpha), [batch], and the number of another row for each, [batch]."""
    rows, dtype = x.shape[0], wide_dtype(x)
    alpha = jnp.asarray(alpha, dtype)

    def draw(key: Array) -> tuple[Array, Array]:
        first, second, _ = jax.random.split(key, 3)  # the third is cutmix's
        # a / (a + b) of two gamma draws; of their logarithms, since small ones vanish.
        a, b = jax.random.loggamma(first, alpha, (2,), dtype)
        return jax.nn.sigmoid(a - b), jax.random.randint(second, (), 1, max(rows, 2))

    keep, step = _draw(name, key, x, draw)
    return keep, (jnp.arange(rows) + step) % max(rows, 1)


# --- geometry ---------------------------------------------------------------------------------


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


def _boxes(x: AnyArray, middles: Array, sizes: Array) -> tuple[Array, Array]:
    """Bools [batch, height, width, 1], True inside boxes of int sizes, and how many, [batch]."""
    limits = jnp.array(x.shape[1:3], jnp.int32)
    first = middles - sizes // 2
    low, high = jnp.clip(first, 0, limits), jnp.clip(first + sizes, 0, limits)

    def between(axis: int) -> Array:
        i = jnp.arange(x.shape[1 + axis], dtype=jnp.int32)
        return (i >= low[:, axis, None]) & (i < high[:, axis, None])

    inside = between(0)[:, :, None, None] & between(1)[:, None, :, None]
    return inside, jnp.prod(high - low, axis=1)


def _per_image(values: Array, x: AnyArray) -> Array:
    return values.reshape(-1, *[1] * (x.ndim - 1))


# --- labels -----------------------------------------------------------------------------------


def _probabilities(name: str, labels: AnyArray, classes: int | None, x: AnyArray) -> Array:
    """Labels as probabilities [batch, classes], in float32 at least."""
    labels, dtype = jnp.asarray(labels), wide_dtype(x)
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    if integer and classes is None:
        raise ValueError(f"{name}: labels are {labels.dtype}, expected `classes` with them")
    expected = 1 if integer else 2
    if (
        labels.ndim != expected
        or labels.shape[0] != x.shape[0]
        or (not integer and classes not in (None, labels.shape[1]))
    ):
        rows, width = x.shape[0], "classes" if classes is None else classes
        raise ValueError(
            f"{name}: labels have shape {labels.shape} ({labels.dtype}),"
            f" expected int [{rows}] or probabilities [{rows}, {width}]"
        )
    if not integer:
        return labels.astype(dtype)
    known = (labels >= 0) & (labels < (classes or 0))
    return jnp.where(known[:, None], jax.nn.one_hot(labels, classes or 0, dtype=dtype), jnp.nan)


def _mix_labels(own: Array, other: Array, share: Array) -> Array:
    return (1 - share)[:, None] * own + share[:, None] * other


# --- checks -----------------------------------------------------------------------------------


def _images(name: str, x: AnyArray) -> Array:
    if x.ndim != 4:
        raise ValueError(
            f"{name}: x has shape {x.shape}, expected [batch, height, width, channels]"
        )
    return _batch(name, x)


def _batch(name: str, x: AnyArray) -> Array:
    if x.ndim == 0:
        raise ValueError(f"{name}: x has shape (), expected [batch, ...]")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name}: x is {x.dtype}, expected floating point; scale it first,"
            " as in x.astype('float32') / 255 for images"
        )
    return jnp.asarray(x)


def _check_each(name: str, argument: str, values: Array, expected: tuple[int, ...]) -> None:
    if values.shape != expected:
        raise ValueError(f"{name}: {argument} have shape {values.shape}, expected {expected}")


def _check_alpha(name: str, alpha: ArrayLike) -> None:
    if isinstance(alpha, (int, float)) and not alpha > 0:
        raise ValueError(f"{name}: alpha is {alpha}, expected a number > 0")
