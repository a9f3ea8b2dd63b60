"""Metrics that are not a mean over rows: counts for each row, and functions of their sums.

    def count(batch):
        x, labels = batch
        return class_counts(apply(params, x), labels)

    macro = f1(fnn.evaluate(count, data, 256, reduce="sum"), average="macro")

Counts are bools for each row. So `evaluate` sums them in int32, exactly and on the device, for data
of up to 2^31 - 1 rows, the most that fnn takes. The functions of the sums are pure. So data of any
size has each metric a batch at a time:

| metric | terms, summed over rows | function of the sums |
|---|---|---|
| precision, recall, F1 | `class_counts` `binary_counts` `confusion` | `precision`, `recall`, `f1` |
| area under the ROC curve | `auc_terms` | `auc_from_sums`, with its error |
| calibration error (ECE) | `calibration_terms` | `calibration_error_from_sums` |
| RMSE, mean absolute error | `error_terms` | `rmse`, `mae` |
| R2 | `r2_terms` (means) | `r2` |

`brier_score`, `top_k_accuracy` and `binary_accuracy` are one number a row: their mean is
`evaluate`'s. `auc` and `calibration_error` take all rows at once.
"""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import AnyArray, as_array, as_count, as_ids, fits, safe_sqrt, wide, wide_dtype
from fnn.nn._calibration import (
    brier_score,
    calibration_error,
    calibration_error_from_sums,
    calibration_terms,
)
from fnn.nn._losses import check_same_shape, class_of, real
from fnn.nn._metric_rows import counted, numbers, yes_or_no
from fnn.nn._ranking import auc, auc_from_sums, auc_terms

__all__ = [
    "auc",
    "auc_from_sums",
    "auc_terms",
    "binary_accuracy",
    "binary_counts",
    "brier_score",
    "calibration_error",
    "calibration_error_from_sums",
    "calibration_terms",
    "class_counts",
    "confusion",
    "error_terms",
    "f1",
    "mae",
    "perplexity",
    "precision",
    "r2",
    "r2_terms",
    "recall",
    "rmse",
    "top_k_accuracy",
]

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
    tied_before = (logits == own) & (numbers(classes) < labels[..., None])
    before = jnp.sum((logits > own) | tied_before, axis=-1)
    known = (labels >= 0) & (labels < classes) & ~jnp.isnan(logits).any(-1)
    right = (known & (before < k)).astype(jnp.float32)
    return right if unknown is None else jnp.where(unknown, jnp.nan, right)


def binary_accuracy(logits: AnyArray, labels: AnyArray) -> Array:
    """[...], [...] -> float32 [...]: 1 where logit > 0 and label say the same.

    `labels` are bools, 0 and 1, or probabilities, which say yes above 1/2. It is for one yes or no
    a row, and for several labels a row, [..., labels]. A NaN logit is never right.
    """
    present, answered, known = yes_or_no("binary_accuracy", logits, labels)
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
    present, answered, _ = yes_or_no("binary_counts", logits, labels)
    kept = counted("binary_counts", mask, present.shape)
    present, answered = present & kept, answered & kept
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


def r2_terms(predictions: AnyArray, targets: AnyArray, center: ArrayLike) -> dict[str, Array]:
    """[...], [...] -> {"residual", "total", "offset"} of [...], whose means `r2` takes.

    They are (target - prediction)^2, (target - center)^2 and target - center. `center` is one
    number, or one for each output, near the targets' mean; it need not be the mean. Without it,
    targets near 1e4 would have squares near 1e8, and float32 would have no digits for their spread.
    """
    predictions = real("r2_terms", "predictions", predictions)
    targets = real("r2_terms", "targets", targets)
    check_same_shape("r2_terms", "predictions", predictions, "targets", targets)
    if not fits(jnp.shape(center), targets.shape):
        raise ValueError(
            f"r2_terms: center has shape {jnp.shape(center)}, expected one number, or one for each"
            f" output of targets {targets.shape}"
        )
    predictions, targets = _widest(predictions, targets)
    offset = targets - jnp.asarray(center, targets.dtype)
    residual = targets - predictions
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


def error_terms(
    predictions: AnyArray, targets: AnyArray, mask: AnyArray | None = None
) -> dict[str, Array]:
    """[...], [...] -> {"square", "absolute", "count"} of [...], whose sums `rmse` and `mae` take.

    They are (prediction - target)^2, |prediction - target| and 1, in float32 at least. Where
    `mask`, [...], is 0, all three are 0, NaN or not.
    """
    predictions = real("error_terms", "predictions", predictions)
    targets = real("error_terms", "targets", targets)
    check_same_shape("error_terms", "predictions", predictions, "targets", targets)
    kept = counted("error_terms", mask, targets.shape)
    predictions, targets = _widest(predictions, targets)
    error = jnp.where(kept, predictions - targets, 0)
    return {"square": error**2, "absolute": jnp.abs(error), "count": kept}


def rmse(sums: dict[str, Array]) -> Array:
    """Sums over rows of `error_terms`, [...] -> [...]: the root of the mean square, in the units.

    Each output has its own. The mean of the RMSEs of batches is another, smaller number. NaN if no
    row counts. The derivative at 0 is 0.
    """
    return safe_sqrt(_per_count(sums, "square"))


def mae(sums: dict[str, Array]) -> Array:
    """Sums over rows of `error_terms`, [...] -> [...]: the mean absolute error of each output."""
    return _per_count(sums, "absolute")


def perplexity(mean_loss: ArrayLike) -> Array:
    """A mean cross entropy in nats -> exp of it: as unsure as among so many equal classes.

    Take the mean over all tokens first: a mean of perplexities is another, larger number.
    """
    return jnp.exp(wide(mean_loss))


def _widest(predictions: AnyArray, targets: AnyArray) -> tuple[Array, Array]:
    """Both in the wider of their dtypes, float32 at least."""
    dtype = max(map(wide_dtype, (predictions, targets)), key=lambda dtype: dtype.itemsize)
    return jnp.asarray(predictions, dtype), jnp.asarray(targets, dtype)


def _per_count(sums: dict[str, Array], name: str) -> Array:
    return sums[name] / sums["count"].astype(sums[name].dtype)


def _one_hots(
    name: str, logits: AnyArray, labels: AnyArray, mask: AnyArray | None
) -> tuple[Array, Array]:
    labels, _ = class_of(name, logits, labels)
    logits = jnp.asarray(logits)
    kept = counted(name, mask, labels.shape)
    answerable = kept & ~jnp.isnan(logits).any(-1)

    def one_hot(index: Array, valid: Array) -> Array:
        return (index[..., None] == numbers(logits.shape[-1])) & valid[..., None]

    return one_hot(labels, kept), one_hot(as_ids(logits.argmax(-1)), answerable)


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
