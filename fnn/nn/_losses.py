"""Losses and accuracy, one number per example: predictions first, no reduction.

``make_train_step`` takes the mean; in other code, take the mean yourself. Half precision is
computed in float32 and returned in the dtype of the predictions. Values and gradients are stable
at logits of +-1e4 and beyond.

Each loss takes a `mask` of the shape of its losses, such as ``labels != -100``. Where it is False,
or 0, loss and gradient are 0, whatever the prediction and the label are, NaN too. The mean over the
others is ``fnn.training.weighted_mean(losses, mask)``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from fnn._base import AnyArray, as_array, as_count, as_ids, check_range, fits, number_of, wide


def squared_error(
    predictions: AnyArray, targets: AnyArray, *, mask: AnyArray | None = None
) -> Array:
    """[...], [...] -> [...]: (prediction - target)^2, without a half.

    `mask` is as in `binary_cross_entropy`.
    """
    difference = _difference("squared_error", predictions, targets, mask)
    return (difference**2).astype(jnp.result_type(predictions))


def absolute_error(
    predictions: AnyArray, targets: AnyArray, *, mask: AnyArray | None = None
) -> Array:
    """[...], [...] -> [...]: |prediction - target|, with derivative 0 at 0.

    `mask` is as in `binary_cross_entropy`.
    """
    difference = _difference("absolute_error", predictions, targets, mask)
    # jnp.abs alone has derivative 1 at 0.
    return jnp.where(difference == 0, 0, jnp.abs(difference)).astype(jnp.result_type(predictions))


def huber(
    predictions: AnyArray,
    targets: AnyArray,
    delta: ArrayLike = 1.0,
    *,
    mask: AnyArray | None = None,
) -> Array:
    """[...], [...] -> [...]: d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2).

    Huber 1964; `delta` is in the units of the targets, `mask` as in `binary_cross_entropy`.
    """
    distance = jnp.abs(_difference("huber", predictions, targets, mask))
    _check_factor("huber", "delta", delta, distance.shape, above=True)
    near = ~(distance > jnp.asarray(delta, distance.dtype))  # NaN is near, so its gradient is NaN
    # Each formula is 0 where the other one holds: then its derivative is 0 and not 0 * inf.
    inner = jnp.where(near, distance, 0)
    slope = jnp.where(near, 0, jnp.asarray(delta, distance.dtype))
    losses = jnp.where(near, 0.5 * inner * inner, slope * (distance - 0.5 * slope))
    return losses.astype(jnp.result_type(predictions))


def binary_cross_entropy(
    logits: AnyArray,
    labels: AnyArray,
    *,
    pos_weight: ArrayLike | None = None,
    mask: AnyArray | None = None,
) -> Array:
    """[...], [...] -> [...]: -w y log s(x) - (1 - y) log s(-x), in nats, s the sigmoid.

    `labels` are bools, 0 and 1, or probabilities between 0 and 1. An integer label other than 0
    and 1 gives NaN as value and as gradient.
    `pos_weight` is w, one number, or one for each of the last axis, >= 0; 1 without it. Rows
    without a label / rows with it makes both weigh the same.
    Where `mask`, [...], is False, loss and gradient are 0, whatever stands there.
    """
    name = "binary_cross_entropy"
    x, labels = _floats(name, "logits", logits), real(name, "labels", labels)
    check_same_shape(name, "logits", x, "labels", labels)
    _check_factor(name, "pos_weight", 1.0 if pos_weight is None else pos_weight, x.shape)
    mask, x, labels = _counted(name, mask, x.shape, x, labels)
    x, known = wide(x), None
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labels = as_ids(labels)
        known = (labels == 0) | (labels == 1)
    y = jnp.asarray(labels, x.dtype)
    positive = _surprise(jax.nn.log_sigmoid(x), y)
    if pos_weight is not None:
        positive = positive * jnp.broadcast_to(jnp.asarray(pos_weight, x.dtype), x.shape)
    losses = positive + _surprise(jax.nn.log_sigmoid(-x), 1 - y)
    if known is not None:
        losses = losses + _nan_unless(known, x[..., None])
    return _ignored(mask, losses).astype(jnp.result_type(logits))


def cross_entropy(
    logits: AnyArray,
    labels: AnyArray,
    *,
    label_smoothing: ArrayLike = 0.0,
    mask: AnyArray | None = None,
) -> Array:
    """[..., classes], int [...] or probabilities [..., classes] -> [...], in nats.

    The loss is -sum_i q_i log softmax(logits)_i. q is (1 - label_smoothing) times the labels'
    distribution plus label_smoothing times the uniform distribution (Szegedy et al. 2016). An
    integer label outside [0, classes) gives NaN as value and as gradient; `check_labels` finds such
    labels beforehand. Where the gradient of a loss is 0, as where `jnp.where` or a weight of 0
    takes it out, that of such a label is 0 too. Where `mask`, [...], is False, as by
    ``labels != -100``, loss and gradient are 0, whatever the logits and the label are.
    """
    name = "cross_entropy"
    check_range(name, "label_smoothing", label_smoothing, 0, upto=1)
    x, labels = _floats(name, "logits", logits), real(name, "labels", labels)
    check_labels_shape(name, x, labels)
    classes = x.shape[-1]
    mask, x, labels = _counted(name, mask, x.shape[:-1], x, labels)
    x, known = wide(x), None
    log_p = jax.nn.log_softmax(x)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labels = as_ids(labels)
        known = (labels >= 0) & (labels < classes)
        # Not by a gather: its gradient is a scatter, which nothing fuses with.
        is_label = lax.broadcasted_iota(labels.dtype, log_p.shape, x.ndim - 1) == labels[..., None]
        losses = -jnp.where(is_label, log_p, 0).sum(-1)
    else:
        losses = _surprise(log_p, jnp.asarray(labels, log_p.dtype)).sum(-1)
    if number_of(label_smoothing) != 0:
        smoothing = jnp.asarray(label_smoothing, log_p.dtype)
        uniform = jnp.full_like(log_p, 1 / classes)
        losses = _surprise(-losses, 1 - smoothing) + smoothing * _surprise(log_p, uniform).sum(-1)
    if known is not None:
        losses = losses + _nan_unless(known, x)
    return _ignored(mask, losses).astype(jnp.result_type(logits))


def accuracy(logits: AnyArray, labels: AnyArray) -> Array:
    """[..., classes], int [...] or probabilities [..., classes] -> float32 [...]: 1 where right.

    The answer is the class of the largest logit; of tied logits the first. A row with a NaN logit
    is never right, nor is one whose label is outside [0, classes). Probabilities that do not sum to
    1, as several labels a row do, give NaN, or ValueError outside a compiled program; for those
    there is `fnn.nn.metrics.binary_accuracy`.
    """
    labels, unknown = class_of("accuracy", logits, labels)
    logits = jnp.asarray(logits)
    right = (as_ids(logits.argmax(-1)) == labels) & ~jnp.isnan(logits).any(-1)
    right = right.astype(jnp.float32)
    return right if unknown is None else jnp.where(unknown, jnp.nan, right)


def check_labels(labels: ArrayLike, classes: int) -> None:
    """Raise ValueError naming the first of `labels`, int [...], outside [0, classes).

    Call it once per data set, outside jit: a compiled program cannot raise errors about values.
    """
    classes = as_count("check_labels", "classes", classes)
    if isinstance(labels, Tracer):
        raise TypeError("check_labels: labels are traced, expected an array; call it outside jit")
    values = np.asarray(labels)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"check_labels: labels are {values.dtype}, expected integers")
    bad = np.argwhere((values < 0) | (values >= classes))
    if len(bad):
        row = tuple(bad[0].tolist())
        place = row[0] if len(row) == 1 else row
        raise ValueError(
            f"check_labels: row {place} has label {values[row]}, expected 0 to {classes - 1}"
            f" ({len(bad)} of {values.size} labels are out of range)"
        )


def _surprise(log_p: Array, q: Array) -> Array:
    """-q log p; 0 where q is 0, even if log p is -inf."""
    never = (q == 0) & jnp.isinf(log_p)
    return -q * jnp.where(never, 0, log_p)


@jax.custom_jvp
def _nan_unless(known: Array, x: Array) -> Array:
    """bool [...], [..., n] -> [...]: 0 where known, else NaN, with NaN as the gradient of x.

    A gradient that arrives as 0 goes on as 0: a loss that is ignored moves nothing.
    """
    # 0 / 0, computed only where something is unknown: jax_debug_nans would stop at a constant NaN.
    one = known.astype(x.dtype)
    return one / one - one


@_nan_unless.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Any, Array]) -> tuple[Array, Array]:
    (known, x), change = primals, tangents[1].sum(-1)
    # A product that is NaN unless `change` is 0, from the left and, for the gradient, from the
    # right: huge * huge is inf, and inf * 0 is NaN. A factor of NaN would not do: 0 * NaN is NaN.
    # The barrier keeps XLA from multiplying the factors beforehand.
    huge = jnp.where(known, 0, jnp.finfo(x.dtype).max).astype(x.dtype)
    for factor in (huge, huge, jnp.zeros_like(huge), huge, huge):
        change = change * lax.optimization_barrier(factor)
    return _nan_unless(known, x), change


def _counted(name: str, mask: Any, shape: tuple[int, ...], *arrays: Any) -> tuple[Any, ...]:
    """(mask as bools, the arrays, 0 where it is False); without a mask, what came."""
    if mask is None:
        return None, *arrays
    mask = jnp.asarray(as_array(name, "mask", mask)).astype(bool)
    if mask.shape != shape:
        raise ValueError(f"{name}: mask has shape {mask.shape}, expected {shape}")
    # Before the loss is computed, because a gradient of 0 times a derivative of NaN is NaN.
    each = (mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)) for a in arrays)
    return mask, *(jnp.where(m, a, jnp.zeros_like(a)) for m, a in zip(each, arrays, strict=True))


def _ignored(mask: AnyArray | None, losses: Array) -> Array:
    return losses if mask is None else jnp.where(mask, losses, 0)


def _difference(name: str, predictions: AnyArray, targets: AnyArray, mask: Any) -> Array:
    x, targets = _floats(name, "predictions", predictions), real(name, "targets", targets)
    check_same_shape(name, "predictions", x, "targets", targets)
    x = wide(x)
    mask, difference = _counted(name, mask, x.shape, x - jnp.asarray(targets, x.dtype))
    return difference


def _floats(name: str, argument: str, x: Any) -> AnyArray:
    """x; TypeError unless it is an array of floats."""
    x = as_array(name, argument, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: {argument} are {x.dtype}, expected floating point")
    return x


def _check_factor(
    name: str, argument: str, value: Any, shape: tuple[int, ...], *, above: bool = False
) -> None:
    """`check_range` from 0 of a number; of an array, that the losses keep their shape."""
    if not hasattr(value, "shape") or value.ndim == 0:
        check_range(name, argument, value, 0, above=above)
    elif not fits(value.shape, shape):
        raise ValueError(
            f"{name}: {argument} has shape {value.shape}, expected one number, or an array that"
            f" broadcasts to {shape}"
        )


# --- used by the metrics ------------------------------------------------------------------------


def real(name: str, argument: str, x: Any) -> AnyArray:
    """x; TypeError unless it is an array of real numbers or bools."""
    x = as_array(name, argument, x)
    if jnp.iscomplexobj(x):
        raise TypeError(f"{name}: {argument} are {x.dtype}, expected real numbers")
    return x


def check_same_shape(name: str, first: str, a: AnyArray, second: str, b: AnyArray) -> None:
    """Raise ValueError unless a and b have the same shape."""
    # Broadcasting [n] against [n, 1] would silently compare every row with every other.
    if a.shape != b.shape:
        raise ValueError(
            f"{name}: {first} have shape {a.shape}, but {second} have shape {b.shape};"
            " expected the same shape"
        )


def check_labels_shape(name: str, logits: AnyArray, labels: AnyArray) -> None:
    """Raise ValueError unless labels are int [...] or probabilities [..., classes], classes > 1."""
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    expected = logits.shape[:-1] if integer else logits.shape
    if logits.ndim == 0 or labels.shape != expected:
        kind = "integer labels" if integer else "probabilities"
        classes = not integer and labels.shape == logits.shape[:-1]
        also = f", or integer labels of shape {labels.shape}: labels.astype(int)" if classes else ""
        raise ValueError(
            f"{name}: labels have shape {labels.shape} ({labels.dtype}), but logits of shape"
            f" {logits.shape} expect {kind} of shape {expected}{also}"
        )
    if logits.shape[-1] == 1:
        ways = "binary_cross_entropy, or metrics.binary_accuracy and metrics.binary_counts,"
        raise ValueError(
            f"{name}: logits have shape {logits.shape}, with 1 class, which is always the answer;"
            f" one logit for yes or no wants {ways} of logits[..., 0]"
        )


def class_of(name: str, logits: Any, labels: Any) -> tuple[Array, Array | None]:
    """(the class of each row, -1 if it has none; bool, where probabilities do not sum to 1)."""
    logits, labels = _floats(name, "logits", logits), real(name, "labels", labels)
    check_labels_shape(name, logits, labels)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return as_ids(labels), None
    total = wide(labels).sum(-1)
    # A row of zeros is what one_hot makes of a label out of range.
    one, none = jnp.abs(total - 1) < 0.01, total == 0
    unknown = ~(one | none)
    if not isinstance(unknown, Tracer) and unknown.any():
        raise ValueError(
            f"{name}: labels {labels.shape} ({labels.dtype}) have rows that sum to"
            f" {float(total[unknown][0]):.3g}, expected probabilities that sum to 1; for several"
            " labels a row there are metrics.binary_accuracy and metrics.binary_counts"
        )
    return jnp.where(one, as_ids(jnp.asarray(labels).argmax(-1)), -1), unknown
