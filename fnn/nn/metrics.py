"""Metrics that are not a mean over rows: counts for each row, and functions of their sums.

    def count(batch):
        x, labels = batch
        return class_counts(apply(params, x), labels)

    macro = f1(fnn.evaluate(count, data, 256, reduce="sum"), average="macro")

Counts are bools for each row. So `evaluate` sums them in int32, exactly and on the device, for data
of up to 2^31 - 1 rows, the most that fnn takes. The functions of the sums are pure.
"""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from fnn._base import AnyArray, as_array, as_count, as_ids, fits, wide
from fnn.nn._losses import check_same_shape, class_of

Average = Literal["macro", "micro"]
Counts = Any  # a confusion matrix [..., classes, classes], or the sums of `class_counts`


def top_k_accuracy(logits: AnyArray, labels: AnyArray, k: int) -> Array:
    """[..., classes], int [...] or probabilities [..., classes] -> float32 [...]: 1 where right.

    A row is right if its label is among the k largest logits. Of tied logits the first come first,
    so k=1 is `fnn.accuracy`. A row with a NaN logit or with a label outside [0, classes) is never
    right.
    """
    labels, unknown = class_of("top_k_accuracy", logits, labels)
    logits, classes = jnp.asarray(logits), logits.shape[-1]
    k = as_count("top_k_accuracy", "k", k)
    if k > classes:
        raise ValueError(f"top_k_accuracy: k is {k}, expected 1 to {classes}, the classes")
    own = jnp.take_along_axis(logits, labels.clip(0, classes - 1)[..., None], axis=-1)
    tied_before = (logits == own) & (_numbers(classes) < labels[..., None])
    before = jnp.sum((logits > own) | tied_before, axis=-1)
    known = (labels >= 0) & (labels < classes) & ~jnp.isnan(logits).any(-1)
    right = (known & (before < k)).astype(jnp.float32)
    return right if unknown is None else jnp.where(unknown, jnp.nan, right)


def binary_accuracy(logits: AnyArray, labels: AnyArray) -> Array:
    """[...], [...] -> float32 [...]: 1 where logit > 0 and label say the same.

    `labels` are bools, 0 and 1, or probabilities, which say yes above 1/2. It is for one yes or no
    a row, and for several labels a row, [..., labels]. A NaN logit is never right.
    """
    present, answered, known = _yes_or_no("binary_accuracy", logits, labels)
    return (known & (present == answered)).astype(jnp.float32)


def confusion(logits: AnyArray, labels: AnyArray, mask: AnyArray | None = None) -> Array:
    """[..., classes], labels as in `fnn.accuracy` -> bool [..., label, answer]: a row's one cell.

    The sum over rows is the confusion matrix, int32. A row is in no cell if
      - `mask`, [...], is 0 for it,
      - its label is outside [0, classes), or
      - one of its logits is NaN, so that it has no answer.

    `class_counts` counts a row without an answer as missed. Use it also if there are many classes:
    `evaluate` may hold batch * classes^2 integers with `confusion`, batch * classes with
    `class_counts`.
    """
    present, answered = _one_hots("confusion", logits, labels, mask)
    return present[..., :, None] & answered[..., None, :]


def class_counts(
    logits: AnyArray, labels: AnyArray, mask: AnyArray | None = None
) -> dict[str, Array]:
    """[..., classes], labels as in `fnn.accuracy` -> {"correct", "answered", "present"} of bools.

    Each is [..., classes]. For a row and a class:
      - "answered": the class is the answer, that of the largest logit.
      - "present": the class is the label.
      - "correct": both.

    A row with a NaN logit has no answer, so its label is missed. A label outside [0, classes) is
    not present. Rows where `mask`, [...], is 0 count nowhere.
    """
    present, answered = _one_hots("class_counts", logits, labels, mask)
    return {"correct": present & answered, "answered": answered, "present": present}


def binary_counts(
    logits: AnyArray, labels: AnyArray, mask: AnyArray | None = None
) -> dict[str, Array]:
    """[...], labels as in `binary_accuracy` -> {"correct", "answered", "present"} of bools, [...].

    The counts of each label by itself, for precision, recall and F1 of rows that have several
    labels, [rows, labels], or one, yes or no, [rows]. "answered": logit > 0; "present": the label
    says yes; "correct": both. Entries where `mask`, [...], is 0 count nowhere.
    """
    present, answered, _ = _yes_or_no("binary_counts", logits, labels)
    counted = _mask("binary_counts", mask, present.shape)
    present, answered = present & counted, answered & counted
    return {"correct": present & answered, "answered": answered, "present": present}


def precision(
    counts: Counts, *, average: Average | None = None, zero_division: float = 0.0
) -> Array:
    """Summed counts -> [classes]: correct / answered; with `average` one number.

    Counts are sums over rows: of `class_counts`, `binary_counts` or `confusion`.

    "macro" is the mean over all classes, "micro" the ratio of the sums over all classes. A class
    that is never answered has 0 / 0, which is `zero_division`; if that is NaN, the macro mean skips
    the class.
    """
    correct, answered, _ = _sums("precision", counts, average)
    return _ratio(correct, answered, average, zero_division)


def recall(counts: Counts, *, average: Average | None = None, zero_division: float = 0.0) -> Array:
    """Summed counts -> [classes]: correct / present, options as in `precision`.

    It is 0 / 0 for a class that is never present.
    """
    correct, _, present = _sums("recall", counts, average)
    return _ratio(correct, present, average, zero_division)


def f1(counts: Counts, *, average: Average | None = None, zero_division: float = 0.0) -> Array:
    """Summed counts -> [classes]: 2 correct / (answered + present), options as in `precision`.

    This is the harmonic mean of precision and recall. It is 0 / 0 for a class that is neither
    answered nor present.
    """
    correct, answered, present = _sums("f1", counts, average)
    return _ratio(2 * correct, answered + present, average, zero_division)


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

        sums = fnn.evaluate(terms, data, 256, reduce="sum")
        abs(sums["confidence"] - sums["right"]).sum() / sums["answers"].sum()
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
        q = (classes[..., None] == _numbers(p.shape[-1])).astype(p.dtype)
        known = (classes >= 0) & (classes < p.shape[-1])
    else:
        q, known = labels.astype(p.dtype), jnp.bool_(True)
    scores = jnp.where(known, jnp.sum((p - q) ** 2, axis=-1), jnp.nan)
    return jnp.where(_mask("brier_score", mask, scores.shape), scores, 0)


def r2_terms(predictions: AnyArray, targets: AnyArray, center: ArrayLike) -> dict[str, Array]:
    """[...], [...] -> {"residual", "total", "offset"} of [...], whose means `r2` takes.

    They are (target - prediction)^2, (target - center)^2 and target - center. `center` is one
    number, or one for each output, near the targets' mean; it need not be the mean. Without it,
    targets near 1e4 would have squares near 1e8, and float32 would have no digits for their spread.
    """
    predictions = as_array("r2_terms", "predictions", predictions)
    targets = as_array("r2_terms", "targets", targets)
    check_same_shape("r2_terms", "predictions", predictions, "targets", targets)
    if not fits(jnp.shape(center), targets.shape):
        raise ValueError(
            f"r2_terms: center has shape {jnp.shape(center)}, expected one number, or one for each"
            f" output of targets {targets.shape}"
        )
    targets = wide(targets)
    offset = targets - jnp.asarray(center, targets.dtype)
    residual = targets - jnp.asarray(predictions, targets.dtype)
    return {"residual": residual**2, "total": offset**2, "offset": offset}


def r2(terms: dict[str, Array]) -> Array:
    """Means over rows of `r2_terms` -> 1 - residual sum of squares / total sum of squares.

    The total is about the targets' mean. Each output has its own r2. It is NaN if the targets do
    not vary, as far as their dtype can tell at that distance from `center`.
    """
    total, offset = terms["total"], terms["offset"]
    variance = total - offset**2
    varies = variance > 16 * jnp.finfo(total.dtype).eps * total
    return jnp.where(varies, 1 - terms["residual"] / jnp.where(varies, variance, 1), jnp.nan)


def perplexity(mean_loss: ArrayLike) -> Array:
    """A mean cross entropy in nats -> exp of it: as unsure as among so many equal classes.

    Take the mean over all tokens first: a mean of perplexities is another, larger number.
    """
    return jnp.exp(wide(mean_loss))


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
    inside = as_ids(place.astype(jnp.int32))[..., None] == _numbers(bins)
    inside &= _mask(name, mask, labels.shape)[..., None]

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
    wrong &= _mask(name, mask, total.shape)
    if not isinstance(wrong, Tracer) and wrong.any():
        raise ValueError(
            f"{name}: probabilities have a row with the sum {float(total[wrong][0]):.3g} and the"
            f" least value {float(p[wrong][0].min()):.3g}, expected the sum 1 and values >= 0, as"
            " fnn.softmax makes of logits"
        )
    return jnp.where(wrong[..., None], jnp.nan, p)


def _one_hots(
    name: str, logits: AnyArray, labels: AnyArray, mask: AnyArray | None
) -> tuple[Array, Array]:
    labels, _ = class_of(name, logits, labels)
    logits = jnp.asarray(logits)
    counted = _mask(name, mask, labels.shape)
    answerable = counted & ~jnp.isnan(logits).any(-1)

    def one_hot(index: Array, valid: Array) -> Array:
        return (index[..., None] == _numbers(logits.shape[-1])) & valid[..., None]

    return one_hot(labels, counted), one_hot(as_ids(logits.argmax(-1)), answerable)


def _yes_or_no(name: str, logits: AnyArray, labels: AnyArray) -> tuple[Array, Array, Array]:
    """(present, answered, known): bools of the logits' shape."""
    logits, labels = as_array(name, "logits", logits), as_array(name, "labels", labels)
    check_same_shape(name, "logits", logits, "labels", labels)
    yes, x = wide(labels) > 0.5, wide(logits)
    return yes, x > 0, ~jnp.isnan(x)


def _mask(name: str, mask: AnyArray | None, shape: tuple[int, ...]) -> Array:
    if mask is None:
        return jnp.ones(shape, bool)
    counted = jnp.asarray(as_array(name, "mask", mask)).astype(bool)
    if counted.shape != shape:
        raise ValueError(f"{name}: mask has shape {counted.shape}, expected {shape}")
    return counted


def _numbers(classes: int) -> Array:
    return as_ids(jnp.arange(classes))


def _sums(name: str, counts: Counts, average: Average | None) -> tuple[Array, Array, Array]:
    """(correct, answered, present): for each class, or summed over the classes for "micro"."""
    if average not in (None, "macro", "micro"):
        raise ValueError(f"{name}: average is {average!r}, expected None, 'macro' or 'micro'")
    if isinstance(counts, dict):
        if not counts.keys() >= {"correct", "answered", "present"}:
            raise ValueError(
                f"{name}: counts have {list(counts)}, expected correct, answered and present"
            )
        sums = counts["correct"], counts["answered"], counts["present"]
    else:
        counts = as_array(name, "counts", counts)
        if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2]:
            raise ValueError(
                f"{name}: counts have shape {counts.shape}, expected [classes, classes]"
            )
        sums = jnp.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-2), counts.sum(-1)
    # Floating before they are added or doubled: int32 would wrap beyond 2^31.
    floats = (jnp.asarray(s, jnp.result_type(float)) for s in sums)
    if average is not None:  # one label, yes or no, is a class of its own
        floats = (jnp.atleast_1d(s) for s in floats)
    correct, answered, present = (s.sum(-1) if average == "micro" else s for s in floats)
    return correct, answered, present


def _ratio(
    numerator: Array, denominator: Array, average: Average | None, zero_division: float
) -> Array:
    known = denominator > 0
    ratio = numerator / jnp.where(known, denominator, 1)
    ratio = jnp.where(known, ratio, jnp.asarray(zero_division, ratio.dtype))
    return jnp.nanmean(ratio, axis=-1) if average == "macro" else ratio
