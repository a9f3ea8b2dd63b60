"""Metrics beyond a mean: counts for each row, and what their sums say.

    def count(batch):
        x, labels = batch
        return class_counts(apply(params, x), labels)

    macro = f1(fnn.evaluate(count, data, 256, reduce="sum"), average="macro")

Counts are bools for each row, so that `evaluate` sums them in integers, exactly and on the
device; the functions of the sums are pure and take what it gives.
"""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn.losses import _check_labels_shape, _check_same_shape
from fnn.precision import wide
from fnn.types import AnyArray

Average = Literal["macro", "micro"]
Counts = Any  # a confusion matrix [..., classes, classes], or what `class_counts` gives


def top_k_accuracy(logits: AnyArray, labels: AnyArray, k: int) -> Array:
    """[..., classes], int [...] or probabilities [..., classes] -> float32 [...]: 1 where right.

    Right is a label among the k largest logits. Of tied logits the first ones are taken, so that
    k=1 is `fnn.accuracy`. NaN logits are never right, nor is a label outside [0, classes).
    """
    labels = _class_of("top_k_accuracy", logits, labels)
    classes = logits.shape[-1]
    if not 1 <= k <= classes:
        raise ValueError(f"top_k_accuracy: k is {k}, expected 1 to {classes}, the classes")
    own = jnp.take_along_axis(jnp.asarray(logits), labels.clip(0, classes - 1)[..., None], axis=-1)
    tied_before = (logits == own) & (jnp.arange(classes, dtype=labels.dtype) < labels[..., None])
    before = jnp.sum((logits > own) | tied_before, axis=-1)
    known = (labels >= 0) & (labels < classes) & ~jnp.isnan(logits).any(-1)
    return (known & (before < k)).astype(jnp.float32)


def confusion(logits: AnyArray, labels: AnyArray, mask: ArrayLike | None = None) -> Array:
    """[..., classes], labels as in `fnn.accuracy` -> bool [..., label, answer]: a row's one cell.

    Summed over rows it is the confusion matrix of int32. A row is in no cell where `mask`, [...],
    is 0, its label is outside [0, classes), or a logit is NaN: that answer is no class. To have
    it counted as missed take `class_counts`, and also where classes are many: `evaluate` may
    hold batch * classes^2 integers here, batch * classes there.
    """
    present, answered = _one_hots("confusion", logits, labels, mask)
    return present[..., :, None] & answered[..., None, :]


def class_counts(
    logits: AnyArray, labels: AnyArray, mask: ArrayLike | None = None
) -> dict[str, Array]:
    """[..., classes], labels as in `fnn.accuracy` -> bools [..., classes], by what they count.

    "correct", "answered" and "present": whether the class is the answer and the label, the
    answer, the label. A row with a NaN logit answers nothing, so its label is missed; rows where
    `mask`, [...], is 0 count nowhere, and a label outside [0, classes) is no class's.
    """
    present, answered = _one_hots("class_counts", logits, labels, mask)
    return {"correct": present & answered, "answered": answered, "present": present}


def precision(
    counts: Counts, *, average: Average | None = None, zero_division: float = 0.0
) -> Array:
    """Summed counts -> [classes]: correct / answered; with `average` one number.

    "macro" is the mean over all classes, "micro" the ratio of the sums over them. 0 / 0, here of
    a class that is never answered, is `zero_division`; a macro mean passes over it if it is NaN.
    """
    correct, answered, _ = _sums("precision", counts, average)
    return _ratio(correct, answered, average, zero_division)


def recall(counts: Counts, *, average: Average | None = None, zero_division: float = 0.0) -> Array:
    """Summed counts -> [classes]: correct / present, else as `precision`.

    0 / 0 is a class that is never present.
    """
    correct, _, present = _sums("recall", counts, average)
    return _ratio(correct, present, average, zero_division)


def f1(counts: Counts, *, average: Average | None = None, zero_division: float = 0.0) -> Array:
    """Summed counts -> [classes]: 2 correct / (answered + present), else as `precision`.

    The harmonic mean of precision and recall; 0 / 0 is a class neither answered nor present.
    """
    correct, answered, present = _sums("f1", counts, average)
    return _ratio(2 * correct, answered + present, average, zero_division)


def r2_terms(predictions: AnyArray, targets: AnyArray, center: ArrayLike) -> dict[str, Array]:
    """[...], [...] -> {"residual", "total", "offset"} of [...], whose means `r2` takes.

    (target - prediction)^2, (target - center)^2 and target - center. `center` is any number, or
    one an output, near the targets' mean, which need not be it: squares about 0 of targets
    around 1e4 would leave float32 no digits for their spread.
    """
    _check_same_shape("r2_terms", "predictions", predictions, "targets", targets)
    targets = wide(targets)
    offset = targets - jnp.asarray(center, targets.dtype)
    residual = targets - jnp.asarray(predictions, targets.dtype)
    return {"residual": residual**2, "total": offset**2, "offset": offset}


def r2(terms: dict[str, Array]) -> Array:
    """Means over rows of `r2_terms` -> 1 - residual sum of squares / total sum of squares.

    About the targets' mean, of each output by itself. NaN where the targets do not vary as far
    as their type can tell, at that distance from `center`.
    """
    total, offset = terms["total"], terms["offset"]
    variance = total - offset**2
    varies = variance > 16 * jnp.finfo(total.dtype).eps * total
    return jnp.where(varies, 1 - terms["residual"] / jnp.where(varies, variance, 1), jnp.nan)


def perplexity(mean_loss: ArrayLike) -> Array:
    """A mean cross entropy in nats -> exp of it: as unsure as among so many equal classes.

    The mean is to be over all tokens first; a mean of perplexities is another, larger number.
    """
    return jnp.exp(wide(mean_loss))


def _class_of(name: str, logits: AnyArray, labels: AnyArray) -> Array:
    _check_labels_shape(logits, labels, name)
    labels = jnp.asarray(labels)
    return labels if jnp.issubdtype(labels.dtype, jnp.integer) else labels.argmax(-1)


def _one_hots(
    name: str, logits: AnyArray, labels: AnyArray, mask: ArrayLike | None
) -> tuple[Array, Array]:
    labels = _class_of(name, logits, labels)
    answers, answerable = logits.argmax(-1), ~jnp.isnan(logits).any(-1)
    counted = jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
    if counted.shape != labels.shape:
        raise ValueError(f"{name}: mask has shape {counted.shape}, expected {labels.shape}")

    def one_hot(index: Array, valid: Array) -> Array:
        classes = jnp.arange(logits.shape[-1], dtype=index.dtype)
        return (index[..., None] == classes) & valid[..., None]

    return one_hot(labels, counted), one_hot(answers, counted & answerable)


def _sums(name: str, counts: Counts, average: Average | None) -> tuple[Array, Array, Array]:
    """Correct, answered, present: of each class, or over all of them."""
    if average not in (None, "macro", "micro"):
        raise ValueError(f"{name}: average is {average!r}, expected None, 'macro' or 'micro'")
    if isinstance(counts, dict):
        sums = counts["correct"], counts["answered"], counts["present"]
    else:
        if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2]:
            raise ValueError(
                f"{name}: counts have shape {counts.shape}, expected [classes, classes]"
            )
        sums = jnp.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-2), counts.sum(-1)
    correct, answered, present = (s.sum(-1) if average == "micro" else s for s in sums)
    return correct, answered, present


def _ratio(
    numerator: Array, denominator: Array, average: Average | None, zero_division: float
) -> Array:
    dtype = jnp.result_type(float)
    known = denominator > 0
    ratio = numerator.astype(dtype) / jnp.where(known, denominator, 1).astype(dtype)
    ratio = jnp.where(known, ratio, jnp.asarray(zero_division, dtype))
    return jnp.nanmean(ratio, axis=-1) if average == "macro" else ratio
