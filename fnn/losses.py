"""Losses and accuracy, one number per example: predictions first, no reduction.

``make_train_step`` takes the mean; take your own elsewhere. Half precision is computed in
float32 and given back in the dtype of the predictions. Each is stable, value and gradient, at
logits of +-1e4 and beyond.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fnn.precision import wide
from fnn.types import AnyArray


def squared_error(predictions: AnyArray, targets: AnyArray) -> Array:
    """[...], [...] -> [...]: (prediction - target)^2, without a half."""
    difference = _difference("squared_error", predictions, targets)
    return (difference**2).astype(predictions.dtype)


def absolute_error(predictions: AnyArray, targets: AnyArray) -> Array:
    """[...], [...] -> [...]: |prediction - target|, with derivative 0 at 0."""
    difference = _difference("absolute_error", predictions, targets)
    # jnp.abs alone has derivative 1 at 0.
    return jnp.where(difference == 0, 0, jnp.abs(difference)).astype(predictions.dtype)


def huber(predictions: AnyArray, targets: AnyArray, delta: float = 1.0) -> Array:
    """[...], [...] -> [...]: d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2).

    Huber 1964; `delta` is in the units of the targets.
    """
    if isinstance(delta, (int, float)) and not delta > 0:
        raise ValueError(f"huber: delta is {delta}, expected a number > 0")
    distance = jnp.abs(_difference("huber", predictions, targets))
    limit = jnp.asarray(delta, distance.dtype)
    inner = jnp.minimum(distance, limit)  # squares nothing large, so nothing overflows
    return (0.5 * inner**2 + limit * (distance - inner)).astype(predictions.dtype)


def binary_cross_entropy(logits: AnyArray, labels: AnyArray) -> Array:
    """[...], [...] -> [...]: -y log s(x) - (1 - y) log s(-x), in nats, s the sigmoid.

    `labels` are bools, 0 and 1, or probabilities between.
    """
    _check_float("binary_cross_entropy", "logits", logits)
    _check_same_shape("binary_cross_entropy", "logits", logits, "labels", labels)
    x = wide(logits)
    y = jnp.asarray(labels, x.dtype)
    losses = _surprise(jax.nn.log_sigmoid(x), y) + _surprise(jax.nn.log_sigmoid(-x), 1 - y)
    return losses.astype(logits.dtype)


def cross_entropy(logits: AnyArray, labels: AnyArray, *, label_smoothing: float = 0.0) -> Array:
    """[..., classes], int [...] or probabilities [..., classes] -> [...], in nats.

    -sum_i q_i log softmax(logits)_i, where q is the labels' distribution, mixed with
    `label_smoothing` of the uniform one (Szegedy et al. 2016). An integer label outside
    [0, classes) gives NaN, value and gradient; `check_labels` finds it beforehand.
    """
    _check_float("cross_entropy", "logits", logits)
    _check_fraction("cross_entropy", "label_smoothing", label_smoothing)
    _check_labels_shape(logits, labels)
    labels = jnp.asarray(labels)
    classes = logits.shape[-1]
    log_p = jax.nn.log_softmax(wide(logits))
    if jnp.issubdtype(labels.dtype, jnp.integer):
        known = (labels >= 0) & (labels < classes)
        index = jnp.where(known, labels, 0)[..., None]
        losses = -jnp.take_along_axis(log_p, index, axis=-1)[..., 0]
        # Multiplied in, not selected, so that the gradient is NaN as well; and 0 / 0, not a NaN
        # that is there anyway, at which jax_debug_nans would stop.
        one = known.astype(losses.dtype)
        losses = losses * (one / one)
    else:
        losses = _surprise(log_p, labels.astype(log_p.dtype)).sum(-1)
    if not (isinstance(label_smoothing, (int, float)) and label_smoothing == 0):
        smoothing = jnp.asarray(label_smoothing, log_p.dtype)
        uniform = jnp.full_like(log_p, 1 / classes)
        losses = (1 - smoothing) * losses + smoothing * _surprise(log_p, uniform).sum(-1)
    return losses.astype(logits.dtype)


def accuracy(logits: AnyArray, labels: AnyArray) -> Array:
    """[..., classes], int [...] or probabilities [..., classes] -> float32 [...]: 1 where right.

    Of tied logits the first counts as the answer. NaN logits are never right.
    """
    _check_labels_shape(logits, labels, "accuracy")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        labels = labels.argmax(-1)
    right = (logits.argmax(-1) == labels) & ~jnp.isnan(logits).any(-1)
    return right.astype(jnp.float32)


def check_labels(labels: ArrayLike, classes: int) -> None:
    """Raise ValueError naming the first of `labels`, int [...], outside [0, classes).

    On the host, once per data set: inside a compiled program values cannot raise.
    """
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
    """-q log p, and 0 where q is 0 even of what is impossible."""
    never = (q == 0) & jnp.isinf(log_p)
    return -q * jnp.where(never, 0, log_p)


def _difference(name: str, predictions: AnyArray, targets: AnyArray) -> Array:
    _check_float(name, "predictions", predictions)
    _check_same_shape(name, "predictions", predictions, "targets", targets)
    predictions = wide(predictions)
    return predictions - targets.astype(predictions.dtype)


def _check_float(name: str, argument: str, x: AnyArray) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: {argument} are {x.dtype}, expected floating point")


def _check_fraction(name: str, argument: str, value: float) -> None:
    if isinstance(value, (int, float)) and not 0 <= value <= 1:
        raise ValueError(f"{name}: {argument} is {value}, expected a number from 0 to 1")


def _check_same_shape(name: str, first: str, a: AnyArray, second: str, b: AnyArray) -> None:
    # Broadcasting [n] against [n, 1] would silently compare every row with every other.
    if a.shape != b.shape:
        raise ValueError(
            f"{name}: {first} have shape {a.shape}, but {second} have shape {b.shape};"
            " expected the same shape"
        )


def _check_labels_shape(logits: AnyArray, labels: AnyArray, name: str = "cross_entropy") -> None:
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    expected = logits.shape[:-1] if integer else logits.shape
    if logits.ndim == 0 or labels.shape != expected:
        kind = "integer labels" if integer else "probabilities"
        raise ValueError(
            f"{name}: labels have shape {labels.shape} ({labels.dtype}), but logits of shape"
            f" {logits.shape} expect {kind} of shape {expected}"
        )
