"""Augmentation that mixes the examples of a batch and their labels."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import AnyArray, as_array, as_count, as_ids, check_range, wide, wide_dtype
from fnn.data.augment._draws import as_batch, as_images, boxes, draw_each, middle, per_image


def mixup(
    key: Array | None,
    x: AnyArray,
    labels: AnyArray,
    *,
    classes: int | None = None,
    alpha: ArrayLike = 0.2,
) -> tuple[AnyArray, Array]:
    """[batch, ...], labels -> (x, [batch, classes]): each example mixed with another of the batch.

    Zhang et al. 2018: lambda x_i + (1 - lambda) x_j, and the same mean of the probabilities.

    - lambda is drawn from Beta(alpha, alpha) for each example; the paper draws one for the batch.
    - j is uniform on the other rows, so only j depends on the size of the batch.
    - Labels are int [batch] together with `classes`, or probabilities [batch, classes]. An int
      label outside 0 ... classes - 1 makes its row of probabilities NaN.
    - Without a key x stays as it is, and the probabilities are those of the labels.
    """
    x = as_batch("mixup", x)
    own = _probabilities("mixup", labels, classes, x)
    check_range("mixup", "alpha", alpha, 0, above=True)
    if key is None:
        return x, own
    keep, partner = _shares_and_partners("mixup", key, x, alpha)
    weight = per_image(keep, x)
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

    Yun et al. 2019. A box is pasted from another example of the batch. The box has sqrt(1 - lambda)
    of the height and the width, lambda from Beta(alpha, alpha). Its middle is uniform on the image;
    only the part inside the image is pasted. The other label's weight is the share of the pixels
    that are pasted. Labels, j and no key are as in `mixup`.
    """
    x = as_images("cutmix", x)
    own = _probabilities("cutmix", labels, classes, x)
    check_range("cutmix", "alpha", alpha, 0, above=True)
    if key is None:
        return x, own
    keep, partner = _shares_and_partners("cutmix", key, x, alpha)
    sides = jnp.sqrt(1 - keep)[:, None] * jnp.array(x.shape[1:3], keep.dtype)
    middles = draw_each("cutmix", key, x, lambda key: middle(jax.random.split(key, 3)[2], x))
    inside, area = boxes(x, middles, jnp.round(sides).astype(jnp.int32))
    share = area.astype(own.dtype) * (1 / max(1, x.shape[1] * x.shape[2]))
    return jnp.where(inside, x[partner], x), _mix_labels(own, own[partner], share)


def _shares_and_partners(
    name: str, key: Array, x: AnyArray, alpha: ArrayLike
) -> tuple[Array, Array]:
    """Draws from Beta(alpha, alpha), [batch]; the number of another row for each row, [batch]."""
    rows, dtype = x.shape[0], wide_dtype(x)
    # Beyond these ends a draw is 0, 1 or 1 / 2, and the logarithms of gamma draws are not finite.
    alpha = jnp.clip(jnp.asarray(alpha, dtype), 1e-30, 1e30)

    def draw(key: Array) -> tuple[Array, Array]:
        first, second, _ = jax.random.split(key, 3)  # the third key is for the middle in `cutmix`
        # a / (a + b) of two gamma draws, computed from their logarithms: small draws underflow.
        a, b = jax.random.loggamma(first, alpha, (2,), dtype)
        return jax.nn.sigmoid(a - b), jax.random.randint(second, (), 1, max(rows, 2))

    keep, step = draw_each(name, key, x, draw)
    return keep, (jnp.arange(rows) + step) % max(rows, 1)


def _probabilities(name: str, labels: AnyArray, classes: int | None, x: AnyArray) -> Array:
    """Labels as probabilities [batch, classes], in float32 at least."""
    labels, dtype = as_array(name, "labels", labels), wide_dtype(x)
    classes = None if classes is None else as_count(name, "classes", classes)
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
        return jnp.asarray(labels, dtype)
    labels, classes = as_ids(labels), classes or 0
    known = (labels >= 0) & (labels < classes)
    return jnp.where(known[:, None], jax.nn.one_hot(labels, classes, dtype=dtype), jnp.nan)


def _mix_labels(own: Array, other: Array, share: Array) -> Array:
    return (1 - share)[:, None] * own + share[:, None] * other
