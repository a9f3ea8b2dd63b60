"""The area under the ROC curve: of one array, and from a histogram of scores in batches.

It is P(score of a positive > score of a negative) + P(equal) / 2, over all pairs of a positive and
a negative row (Hanley & McNeil 1982). It depends on the order of the scores only.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import AnyArray, as_count, as_ids, check_range, number_of, wide
from fnn.nn._losses import check_same_shape, real
from fnn.nn._metric_rows import counted, numbers


class Area(NamedTuple):
    """An area under the ROC curve; the exact one is at most `error` away."""

    auc: Array
    error: Array


def auc(scores: AnyArray, labels: AnyArray, mask: AnyArray | None = None) -> Array:
    """[rows, ...], [rows, ...] -> [...]: the area under the ROC curve, 0 to 1, ties count half.

    A score is any number that is larger for yes: a logit or a probability. A label says yes above
    1/2, as in `binary_accuracy`. More axes are more areas: ``auc(probabilities, one_hot).mean()``
    is the macro mean of one class against the rest. It is exact but for rounding: scores and mean
    are in float32 at least, and scores that are equal there are ties. Rows where `mask`,
    [rows, ...], is 0 do not count. NaN if no positive or no negative row counts, or if the score of
    a row that counts is NaN.
    """
    scores, positive, kept = _checked("auc", scores, labels, mask)
    if scores.ndim == 0:
        raise ValueError("auc: scores have shape (), expected [rows, ...]")
    shape = len(scores), math.prod(scores.shape[1:])
    columns = [x.reshape(shape) for x in (scores, positive & kept, ~positive & kept)]
    areas = jax.vmap(_area, in_axes=1)(*columns)
    return areas.reshape(scores.shape[1:])


def auc_terms(
    scores: AnyArray,
    labels: AnyArray,
    mask: AnyArray | None = None,
    *,
    bins: int = 1000,
    low: ArrayLike = 0.0,
    high: ArrayLike = 1.0,
) -> dict[str, Array]:
    """[...], [...] -> {"positive", "negative": bool [..., bins], "nan": bool [...]}, for batches.

    A row stands in the bin of its score, among the positive or the negative rows. The bins have
    equal widths from `low` to `high`; scores beyond stand in the first or last bin. The area
    depends on the order only, so turn logits to probabilities, or give the logits' range. Scores,
    labels and mask are as in `auc`. A row with a NaN score is in no bin, but in "nan".

        sums = fnn.evaluate(lambda b: auc_terms(apply(b[0]), b[1]), data, 256, reduce="sum")
        auc, error = auc_from_sums(sums)

    `evaluate` may hold 2 batch bins integers.
    """
    bins = as_count("auc_terms", "bins", bins)
    for name, end in (("low", low), ("high", high)):
        check_range("auc_terms", name, end, -math.inf)
    first, last = number_of(low), number_of(high)
    if first is not None and last is not None and not -math.inf < first < last < math.inf:
        raise ValueError(f"auc_terms: low is {low} and high {high}, expected finite, low < high")
    scores, positive, kept = _checked("auc_terms", scores, labels, mask)
    low, high = (jnp.asarray(end, scores.dtype) for end in (low, high))
    is_nan = jnp.isnan(scores)
    # Each operation keeps the order of the scores, rounded or not: so the bins are in order too.
    place = jnp.floor((jnp.where(is_nan, low, scores) - low) * (bins / (high - low)))
    place = as_ids(jnp.clip(place, 0, bins - 1).astype(jnp.int32))
    inside = (place[..., None] == numbers(bins)) & (kept & ~is_nan)[..., None]
    yes = positive[..., None]
    return {"positive": inside & yes, "negative": inside & ~yes, "nan": kept & is_nan}


def auc_from_sums(sums: dict[str, Array]) -> Area:
    """Sums over rows of `auc_terms`, [..., bins] -> (auc [...], error [...]).

    Pairs in different bins are counted exactly; pairs in one bin count half, as ties do. So the
    exact area is at most `error` away, half the share of the pairs that stand in one bin, and
    rounding in float32, less than 1e-5, comes on top. If error is too large, take more bins, or
    scores that spread over them. NaN if no positive or no negative row counts, or if a score was
    NaN.
    """
    positive, negative = (
        jnp.asarray(sums[name], jnp.result_type(float)) for name in ("positive", "negative")
    )
    # Shares first: the number of pairs may be 2^60.
    p, n = (x / x.sum(-1, keepdims=True) for x in (positive, negative))
    below = jnp.cumsum(n, axis=-1) - n
    same = jnp.sum(p * n, -1) / 2
    area = jnp.sum(p * below, -1) + same
    return Area(*(jnp.where(sums["nan"] > 0, jnp.nan, x) for x in (area, same)))


def _area(scores: Array, positive: Array, negative: Array) -> Array:
    """Of [rows]: the mean over positives of the negatives below, ties half, by one sort."""
    order = jnp.argsort(scores)
    scores, positive, negative = scores[order], positive[order], negative[order]
    up_to = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(negative, dtype=jnp.int32)])
    below, through = (
        up_to[jnp.searchsorted(scores, scores, side=side)].astype(scores.dtype)
        for side in ("left", "right")
    )
    share = (below + through) / (2 * up_to[-1].astype(scores.dtype))
    area = jnp.sum(jnp.where(positive, share, 0)) / jnp.sum(positive.astype(share.dtype))
    is_nan = (jnp.isnan(scores) & (positive | negative)).any()
    return jnp.where(is_nan, jnp.nan, area)


def _checked(
    name: str, scores: AnyArray, labels: AnyArray, mask: AnyArray | None
) -> tuple[Array, Array, Array]:
    """(scores, float32 at least; bool, whether the label says yes; bool, whether the row counts)"""
    scores, labels = real(name, "scores", scores), real(name, "labels", labels)
    check_same_shape(name, "scores", scores, "labels", labels)
    return wide(scores), wide(labels) > 0.5, counted(name, mask, scores.shape)
