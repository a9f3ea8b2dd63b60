"""How good probabilities are: the calibration error and the Brier score."""

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from fnn._base import AnyArray, as_array, as_count, as_ids, wide
from fnn.nn._losses import class_of
from fnn.nn._metric_rows import counted, numbers


def calibration_terms(
    probabilities: AnyArray, labels: AnyArray, mask: AnyArray | None = None, *, bins: int = 15
) -> dict[str, Array]:
    """[..., classes], labels as in `fnn.accuracy` -> dict of [..., bins], for data in batches.

    A row stands in the bin of its confidence, which is its largest probability. Bin i is
    (i / bins, (i + 1) / bins], and 0 is in the first. In its bin a row has

      - "answers": 1,
      - "confidence": its confidence,
      - "right": 1 if its label is the class of the largest probability.

    All else is 0. Rows where `mask`, [...], is 0 are in no bin. Sums over rows draw a reliability
    diagram: confidence and right, each divided by answers. The calibration error is
    `calibration_error_from_sums` of them.
    """
    return _in_bins("calibration_terms", probabilities, labels, mask, bins)


def calibration_error(
    probabilities: AnyArray, labels: AnyArray, mask: AnyArray | None = None, *, bins: int = 15
) -> Array:
    """[..., classes], labels as in `fnn.accuracy` -> the expected calibration error, 0 to 1.

    The sum over bins of |share right - mean confidence|, weighted by the share of the rows that are
    in the bin (Guo et al. 2017). The bins have equal widths, as in `calibration_terms`, which is
    for data in batches. It is NaN if no row counts, or if a row that counts has a NaN.

    The error depends on the bins, and it is above 0 by chance in a small sample: compare only
    errors of the same rows and bins. `brier_score` has no bins.
    """
    terms = _in_bins("calibration_error", probabilities, labels, mask, bins)
    over = tuple(range(terms["answers"].ndim - 1))
    # The difference is summed: it is small where two sums would be large.
    gap = (terms["confidence"] - terms["right"]).sum(over)
    return jnp.abs(gap).sum() / terms["answers"].sum()


def calibration_error_from_sums(sums: dict[str, Array]) -> Array:
    """Sums over rows of `calibration_terms`, [..., bins] -> [...]: the calibration error.

    `calibration_error` of all rows, up to the rounding of sums in float32, about 1e-6 for a million
    rows. NaN if no row counts.
    """
    gap = jnp.abs(sums["confidence"] - sums["right"])
    return gap.sum(-1) / sums["answers"].sum(-1)


def brier_score(probabilities: AnyArray, labels: AnyArray, mask: AnyArray | None = None) -> Array:
    """[..., classes], int [...] or probabilities [..., classes] -> [...]: sum_i (p_i - q_i)^2.

    0 to 2 for each row, q the label's distribution (Brier 1950). For two classes it is twice
    (p_1 - q_1)^2, which some call the Brier score. It is least in the mean if the probabilities are
    the true ones. A label outside [0, classes) gives NaN; where `mask`, [...], is 0, it is 0.
    """
    p = _probabilities("brier_score", probabilities, mask)
    classes, _ = class_of("brier_score", probabilities, labels)
    labels = jnp.asarray(labels)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        q = (classes[..., None] == numbers(p.shape[-1])).astype(p.dtype)
        known = (classes >= 0) & (classes < p.shape[-1])
    else:
        q, known = labels.astype(p.dtype), jnp.bool_(True)
    scores = jnp.where(known, jnp.sum((p - q) ** 2, axis=-1), jnp.nan)
    return jnp.where(counted("brier_score", mask, scores.shape), scores, 0)


def _in_bins(
    name: str, probabilities: AnyArray, labels: AnyArray, mask: AnyArray | None, bins: int
) -> dict[str, Array]:
    bins = as_count(name, "bins", bins)
    p = _probabilities(name, probabilities, mask)
    labels, _ = class_of(name, probabilities, labels)
    # XLA's maximum of NaN on a CPU is -inf.
    confidence = jnp.where(jnp.isnan(p).any(-1), jnp.nan, p.max(-1))
    right = as_ids(p.argmax(-1)) == labels
    place = jnp.clip(jnp.ceil(jnp.nan_to_num(confidence) * bins) - 1, 0, bins - 1)
    inside = as_ids(place.astype(jnp.int32))[..., None] == numbers(bins)
    inside &= counted(name, mask, labels.shape)[..., None]

    def there(values: Array) -> Array:
        return jnp.where(inside, values.astype(p.dtype)[..., None], 0)

    terms = {"answers": jnp.ones_like(confidence), "confidence": confidence, "right": right}
    return {term: there(values) for term, values in terms.items()}


def _probabilities(name: str, probabilities: AnyArray, mask: AnyArray | None) -> Array:
    """The probabilities, float32 at least. Rows that are none, as logits, are an error, or NaN."""
    p = as_array(name, "probabilities", probabilities)
    if not jnp.issubdtype(p.dtype, jnp.floating) or p.ndim == 0 or p.shape[-1] < 2:
        raise ValueError(
            f"{name}: probabilities are {p.dtype}{list(p.shape)}, expected floating point,"
            " [..., classes]; one probability of yes, p, is jnp.stack([1 - p, p], -1)"
        )
    p = wide(p)
    total = p.sum(-1)
    wrong = (jnp.abs(total - 1) > 0.01) | (p < 0).any(-1)
    wrong &= counted(name, mask, total.shape)
    if not isinstance(wrong, Tracer) and wrong.any():
        raise ValueError(
            f"{name}: probabilities have a row with the sum {float(total[wrong][0]):.3g} and the"
            f" least value {float(p[wrong][0].min()):.3g}, expected the sum 1 and values >= 0, as"
            " fnn.softmax makes of logits"
        )
    return jnp.where(wrong[..., None], jnp.nan, p)
