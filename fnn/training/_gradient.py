"""The gradient of a batch's mean loss: masked, scaled, in parts, in another precision."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from fnn._base import (
    AnyArray,
    Data,
    Metrics,
    Params,
    State,
    number_of,
    paths,
    weighted_sum,
    wide,
    wide_dtype,
)
from fnn.training._programs import traced
from fnn.training._state import LossScale, TrainState


class Weighted(NamedTuple):
    """Losses [batch, ...] and their weights, alike: a loss function may return this.

    The step then descends sum(weight * loss) / sum(weight) over the whole batch, also where it is
    accumulated in parts: with weights that are 1 for real tokens, the mean over tokens.
    """

    losses: Array
    weights: AnyArray


class Gradient(NamedTuple):
    """What one batch gives: the gradient, the mean loss, the model's next state, more metrics."""

    grads: Params
    loss: Array
    state: State
    aux: Metrics


class LossFn(NamedTuple):
    """The user's loss function, and how it is called."""

    call: Callable[..., Any]
    aux: bool
    compute_dtype: DTypeLike | None
    takes_mask: bool

    def mean(
        self,
        params: Params,
        state: State,
        batch: Data,
        key: Array,
        mask: Array | None,
        scale: ArrayLike = 1.0,
    ) -> tuple[Array, tuple[Array, Array | None, State, Metrics]]:
        """-> (scale * loss, (loss, its weight, the next state, aux)), each mean over the rows."""
        if self.compute_dtype is not None:
            params, batch = (_cast(tree, self.compute_dtype) for tree in (params, batch))
        given = (params, batch, key) if has_no_state(state) else (params, state, batch, key)
        named: dict[str, Any] = {"mask": mask} if self.takes_mask else {}
        returned = traced("make_train_step", "loss_fn", self.call, *given, **named)
        losses, new, aux = self._parts(returned, state)
        loss, weight = _masked_mean(losses, mask)
        aux = {name: _aux_mean(name, values, mask) for name, values in aux.items()}
        return loss * jnp.asarray(scale, loss.dtype), (loss, weight, new, aux)

    def _parts(self, returned: Any, state: State) -> tuple[Any, State, dict[str, Array]]:
        """(losses, state, aux) of what the loss function returned."""
        names = ["losses"] + ["state"] * (not has_no_state(state)) + ["aux"] * self.aux
        plain = len(names) == 1
        is_tuple = isinstance(returned, tuple) and not isinstance(returned, Weighted)
        if is_tuple == plain or (is_tuple and len(returned) != len(names)):
            came = f"a tuple of {len(returned)}" if is_tuple else _kind(returned)
            expected = "losses alone" if plain else f"({', '.join(names)})"
            raise ValueError(
                f"make_train_step: loss_fn returned {came}, expected {expected}; metrics beside"
                " the loss want aux=True, and a model with state wants step.init(params, state)"
            )
        found = dict(zip(names, (returned,) if plain else returned, strict=True))
        if "state" in found:
            _check_state(state, found["state"])
        aux = found.get("aux", {})
        if not isinstance(aux, dict):
            raise ValueError(
                f"make_train_step: aux is a {type(aux).__name__}, expected a dict of metrics"
            )
        return found["losses"], found.get("state", state), aux


def loss_of(loss_fn: Any, aux: bool, compute_dtype: DTypeLike | None) -> LossFn:
    """The loss function with how it is called: with a mask, if it has an argument of that name."""
    if not callable(loss_fn):
        raise TypeError(
            f"make_train_step: loss_fn is a {type(loss_fn).__name__}, expected a function"
        )
    if compute_dtype is not None and not _is_floating(compute_dtype):
        raise TypeError(
            f"make_train_step: compute_dtype is {compute_dtype!r}, expected floating point, such as"
            " 'bfloat16', or None"
        )
    try:
        takes_mask = "mask" in inspect.signature(loss_fn).parameters
    except (TypeError, ValueError):  # a callable that does not say
        takes_mask = False
    return LossFn(loss_fn, aux, compute_dtype, takes_mask)


def _is_floating(dtype: Any) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def gradient_of(
    loss: LossFn, accumulate: int, ts: TrainState, batch: Data, key: Array, mask: Array | None
) -> Gradient:
    """The gradient of the batch's mean loss, of `accumulate` parts together."""
    return unscaled(scaled_gradient(loss, accumulate, ts, batch, key, mask)[0], ts.loss_scale)


def scaled_gradient(
    loss: LossFn, accumulate: int, ts: TrainState, batch: Data, key: Array, mask: Array | None
) -> tuple[Gradient, Array | None]:
    """-> (the gradient of loss scale x mean loss, the weight of the mean: None counts as 1)."""
    batch = batch if mask is None else _without_bad_numbers(batch, mask)
    scale: Any = ts.loss_scale.scale if isinstance(ts.loss_scale, LossScale) else 1.0
    differentiate = partial(jax.grad(loss.mean, has_aux=True), ts.params)
    if accumulate == 1:
        grads, (value, weight, state, aux) = differentiate(ts.state, batch, key, mask, scale)
        return Gradient(grads, value, state, aux), weight
    parts = _cut(batch, accumulate), _cut(mask, accumulate)
    return _accumulated(differentiate, ts, *parts, key, scale)


def unscaled(found: Gradient, loss_scale: LossScale | tuple[()]) -> Gradient:
    """The gradient as the direction of ascent, divided by the loss scale."""
    found = found._replace(grads=jax.tree.map(_ascent, found.grads))
    if not isinstance(loss_scale, LossScale):
        return found
    # Divided in float32, where a small gradient does not vanish again.
    scale = loss_scale.scale
    grads = jax.tree.map(lambda g: wide(g) * jnp.asarray(1 / scale, wide(g).dtype), found.grads)
    return found._replace(grads=grads)


def value_of(
    loss: LossFn, ts: TrainState, batch: Data, key: Array, mask: Array | None, params: Params
) -> Array:
    """The batch's mean loss with these parameters."""
    return loss.mean(params, ts.state, batch, key, mask)[0]


def _ascent(grad: Array) -> Array:
    """The direction of ascent: of a complex parameter the conjugate of what ``jax.grad`` gives."""
    return jnp.conj(grad) if jnp.iscomplexobj(grad) else grad


def _without_bad_numbers(batch: Data, mask: Array) -> Data:
    """The batch, with 0 for what is not finite in rows that do not count.

    The gradient of such a row is 0, but 0 times NaN in the products of a net is NaN.
    """

    def clean(leaf: Array) -> Array:
        if leaf.shape[:1] != mask.shape or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        counts = jnp.asarray(mask).astype(bool).reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(counts | jnp.isfinite(leaf), leaf, 0)

    return jax.tree.map(clean, batch)


def has_no_state(state: State) -> bool:
    """Whether a train state's `state` is (), that of a model without any."""
    return isinstance(state, tuple) and not state


def _masked_mean(losses: Any, mask: Array | None) -> tuple[Array, Array | None]:
    """The mean of losses [batch, ...], and the sum of their weights; None counts as 1."""
    if isinstance(losses, Weighted):
        return _mean_of_weighted(losses, mask)
    losses = _checked_losses(losses)
    if mask is None:
        return jnp.mean(losses), None
    _check_rows(losses, mask)
    per_row = jnp.mean(losses.reshape(losses.shape[0], -1), axis=1)
    weights = mask.astype(per_row.dtype)
    total = jnp.sum(weights)
    return weighted_sum(per_row, weights) / _or_1(total), total


def _checked_losses(losses: Any) -> Array:
    """The losses in their wide dtype; TypeError unless they are real numbers."""
    if number_of(losses) is None and not isinstance(losses, (Array, np.ndarray)):
        raise TypeError(
            f"make_train_step: loss_fn returned {_kind(losses)}, expected losses, [batch, ...]"
        )
    if jnp.iscomplexobj(losses):
        raise TypeError("make_train_step: loss_fn returned complex losses, expected real numbers")
    return wide(losses)


def _kind(returned: Any) -> str:
    return "an array" if isinstance(returned, Array) else f"a {type(returned).__name__}"


def _mean_of_weighted(losses: Weighted, mask: Array | None) -> tuple[Array, Array]:
    values = _checked_losses(losses.losses)
    weights = jnp.asarray(losses.weights, values.dtype)
    if weights.shape != values.shape or not values.ndim:
        raise ValueError(
            f"make_train_step: loss_fn returned Weighted losses of shape {values.shape} with"
            f" weights of shape {weights.shape}, expected [batch, ...] of both"
        )
    if mask is not None:
        _check_rows(values, mask)
        rows = mask.astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
        weights = weights * rows
    total = jnp.sum(weights)
    return weighted_sum(values.ravel(), weights.ravel()) / _or_1(total), total


def _aux_mean(name: str, values: Any, mask: Array | None) -> Array:
    """A metric [batch, ...] as the mean over its rows; a scalar as it is."""
    what = f"make_train_step: aux[{name!r}]"
    dtype = getattr(values, "dtype", None)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    is_real = dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in kinds)
    if number_of(values) is None and not is_real:
        came = _kind(values) if dtype is None else f"an array of {dtype}"
        raise TypeError(f"{what} is {came}, expected real numbers, a scalar or [batch, ...]")
    values = wide(values)
    if not values.ndim:
        return values
    if mask is not None and values.shape[:1] != mask.shape:
        raise ValueError(
            f"{what} has shape {values.shape}, but {mask.shape[0]} rows are masked; expected a"
            f" scalar or [{mask.shape[0]}, ...]"
        )
    return _masked_mean(values, mask)[0]


def _check_rows(losses: Array, mask: Array) -> None:
    if losses.shape[:1] != mask.shape:
        raise ValueError(
            f"make_train_step: loss_fn returned shape {losses.shape}, but {mask.shape[0]} rows are"
            f" masked; expected one loss per row, [{mask.shape[0]}, ...], or fit(tail='drop')"
        )


def _cut(tree: Data, number: int) -> Data:
    """[batch, ...] -> [number, batch / number, ...], leaf by leaf."""

    def cut(leaf: Array) -> Array:
        if leaf.shape[0] % number:
            raise ValueError(
                f"make_train_step: a batch of {leaf.shape[0]} rows cannot be accumulated in"
                f" {number} parts of one size"
            )
        return leaf.reshape(number, -1, *leaf.shape[1:])

    return jax.tree.map(cut, tree)


def _accumulated(
    differentiate: Any, ts: TrainState, batches: Data, masks: Any, key: Array, scale: ArrayLike
) -> tuple[Gradient, Array]:
    """The gradient of all parts together, each weighed by the weights of its losses; their sum."""

    def add(carry: Any, part: Any) -> tuple[Any, None]:
        total, total_weight, state, i = carry
        batch, mask = part
        part_key = jax.random.fold_in(key, i)
        grads, (loss, weight, state, aux) = differentiate(state, batch, part_key, mask, scale)
        weight = jnp.ones(()) if weight is None else weight
        found = grads, loss, aux
        new = jax.tree.map(lambda t, x: t + wide(x) * weight.astype(t.dtype), total, found)
        return (new, total_weight + weight.astype(total_weight.dtype), state, i + 1), None

    example = jax.tree.map(lambda leaf: leaf[0], (batches, masks))
    _, (loss, _, _, aux) = jax.eval_shape(
        differentiate, ts.state, example[0], key, example[1], scale
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide_dtype(x)), (ts.params, loss, aux))
    start = (zeros, jnp.zeros((), loss.dtype), ts.state, jnp.zeros((), jnp.int32))
    (totals, weight, state, _), _ = lax.scan(add, start, (batches, masks))
    return mean_of_parts(totals, weight, ts.params, state), weight


def mean_of_parts(totals: Any, weight: Array, params: Params, state: State) -> Gradient:
    """The gradient, from the sums of weight x (grads, loss, aux) and the sum of the weights."""
    grads, loss, aux = jax.tree.map(lambda t: t * (1 / _or_1(weight)).astype(t.dtype), totals)
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
    return Gradient(grads, loss, state, aux)


def _or_1(total: Array) -> Array:
    return jnp.where(total > 0, total, 1)


def _check_state(old: State, new: State) -> None:
    shapes = [
        {path: f"{x.dtype}{list(x.shape)}" for path, x in paths(s).items()} for s in (old, new)
    ]
    expected, came = shapes
    odd = [path for path in expected | came if expected.get(path) != came.get(path)]
    if odd:
        raise ValueError(
            f"make_train_step: loss_fn returned a state whose {odd[0]!r} is {came.get(odd[0])},"
            f" expected {expected.get(odd[0])} as in ts.state"
        )


def _cast(tree: Any, dtype: DTypeLike) -> Any:
    def cast(leaf: ArrayLike) -> Array:
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)
