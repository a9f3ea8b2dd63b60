"""One gradient step, a pure function of the train state, a batch and a key.

The randomness of step s is ``fold_in(key, s)``, so that a run which goes on from a saved state
draws what it would have drawn.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from fnn.clipping import scale_to_norm
from fnn.lifting import Optimizer, safe_divide
from fnn.params import global_norm, leaf_maxima, paths
from fnn.precision import wide, wide_dtype
from fnn.transforms import apply_updates
from fnn.types import Data, Metrics, Params, State

NonFinitePolicy = Literal["skip", "stop", "raise", "ignore"]


class LossScale(NamedTuple):
    """What float16 gradients need: the loss is multiplied by `scale` and the gradient divided."""

    scale: Array
    good: Array  # steps in a row that were finite


class TrainState(NamedTuple):
    """All that changes while training."""

    params: Params
    state: State  # () without batch norm
    opt_state: Any
    step: Array  # int32, the number of steps done
    first_bad: Array  # int32 [2]: the first step that was not finite and what, or -1, -1
    loss_scale: Any = ()  # a LossScale, or () without


Step = Callable[..., tuple[TrainState, Metrics]]


def train_init(
    params: Params, optimizer: Optimizer, state: State = (), *, loss_scale: float | None = None
) -> TrainState:
    """The train state before the first step; `loss_scale` is where a dynamic one starts."""
    zero = jnp.zeros((), jnp.int32)
    scale = () if loss_scale is None else LossScale(jnp.asarray(loss_scale, jnp.float32), zero)
    none = jnp.full(2, -1, jnp.int32)
    return TrainState(params, state, optimizer.init(params), jnp.zeros_like(zero), none, scale)


def make_train_step(
    loss_fn: Any,
    optimizer: Optimizer,
    *,
    has_state: bool = False,
    clip_norm: ArrayLike | None = None,
    nonfinite: NonFinitePolicy = "skip",
    accumulate: int = 1,
    compute_dtype: DTypeLike | None = None,
    update_ratio: bool = False,
) -> Step:
    """step(ts, batch, key, mask=None) -> (ts, metrics): one gradient step.

    loss_fn(params, batch, key) -> losses; with `has_state`, loss_fn(params, state, batch, key)
    -> (losses, state). Losses are [batch, ...], and the step descends their mean, over the rows
    where `mask`, [batch], is not 0, weighted by it; a scalar is taken as it is.

    Gradients whose global norm exceeds `clip_norm` are scaled to it. `optimizer` is fnn's or
    Optax's. With `accumulate` k the batch goes through in k parts and their gradients are added
    up in float32; clipping and update come once, after. With `compute_dtype` the loss sees params
    and batch in that type, while what is stored and updated keeps its own.

    A step whose loss or gradient is not finite, by `nonfinite`: "skip" changes nothing but the
    step counter, "stop" nor does any later step, "raise" is "stop" and `train` raises, "ignore"
    takes it. The first one stays in ``ts.first_bad``. New parameters that are not finite though
    the gradient is, as after a rate of inf, are found too, but not undone: that would cost a copy
    of them a step.

    Metrics are scalars: "loss", "grad_norm" before clipping, "learning_rate" where the
    optimizer's state tells it (fnn's, ``optax.inject_hyperparams``), "update_ratio" if asked for,
    norm(update) / norm(params), and "nonfinite": -1, or which of `names_of_bad` it was.
    """
    if nonfinite not in get_args(NonFinitePolicy):
        expected = ", ".join(map(repr, get_args(NonFinitePolicy)))
        raise ValueError(f"make_train_step: nonfinite is {nonfinite!r}, expected one of {expected}")
    if accumulate < 1:
        raise ValueError(f"make_train_step: accumulate is {accumulate}, expected at least 1")

    mean_loss = _mean_loss(loss_fn, has_state, compute_dtype)

    def step(
        ts: TrainState, batch: Data, key: Array, mask: Array | None = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, ts.step)
        scaling = isinstance(ts.loss_scale, LossScale)
        scale: Any = ts.loss_scale.scale if scaling else 1.0
        grads, loss, state = _gradients(mean_loss, accumulate, ts, batch, key, mask, scale)
        if scaling:  # in float32, where what the scale has saved from vanishing does not vanish
            grads = jax.tree.map(lambda g: wide(g) * jnp.asarray(1 / scale, wide(g).dtype), grads)

        norm = global_norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        goes = good & ~((ts.first_bad[0] >= 0) & (nonfinite in ("stop", "raise")))

        def go() -> tuple[Params, State, Any, Metrics]:
            clipped = grads if clip_norm is None else scale_to_norm(grads, norm, clip_norm)
            updates, opt_state = optimizer.update(clipped, ts.opt_state, ts.params)
            return apply_updates(ts.params, updates), state, opt_state, ratio(updates)

        def stay() -> tuple[Params, State, Any, Metrics]:
            return ts.params, ts.state, ts.opt_state, ratio(jax.tree.map(jnp.zeros_like, ts.params))

        def ratio(updates: Params) -> Metrics:
            if not update_ratio:
                return {}
            return {"update_ratio": safe_divide(global_norm(updates), global_norm(ts.params))}

        # A branch, not a choice element by element: that would hold old and new at once.
        always = nonfinite == "ignore" and not scaling
        params, state, opt_state, ratios = go() if always else lax.cond(goes, go, stay)
        rates = _learning_rates(opt_state)
        bad = _which_is_bad(loss, grads, rates, params, batch)
        metrics = {"loss": loss, "grad_norm": norm} | ratios | rates
        new_scale = ts.loss_scale
        if scaling:
            # An overflow that a smaller scale will mend is nobody's fault.
            bad = jnp.where(~good & (scale > SMALLEST_SCALE), -1, bad)
            new_scale = _next_scale(ts.loss_scale, good)
            metrics["loss_scale"] = scale
        is_first = (ts.first_bad[0] < 0) & (bad >= 0)
        first_bad = jnp.where(is_first, jnp.stack([ts.step, bad]), ts.first_bad)
        new = TrainState(params, state, opt_state, ts.step + 1, first_bad, new_scale)
        return new, metrics | {"nonfinite": bad}

    setattr(step, "nonfinite", nonfinite)  # noqa: B010, for `train`, which raises
    return step


def policy(step: Step) -> str:
    """What the step does when something is not finite."""
    return getattr(step, "nonfinite", "skip")


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


# --- what is not finite -----------------------------------------------------------------------


def names_of_bad(params: Params, data: Data = None) -> list[str]:
    """What each value of the metric "nonfinite" from 0 stands for."""
    leaves = list(paths(params))
    return [
        *(f"the gradient of {leaf}" for leaf in leaves),
        "the loss",
        "the learning rate",
        *(f"the new value of {leaf}" for leaf in leaves),
        *(f"the input {leaf}".rstrip() for leaf in paths(data)),
    ]


def _which_is_bad(loss: Array, grads: Params, rates: Metrics, params: Params, batch: Data) -> Array:
    """The index in `names_of_bad` of what was not finite first, causes before effects, or -1."""
    n = len(jax.tree.leaves(params))
    loss_is_bad = ~jnp.isfinite(loss)
    inputs = [loss_is_bad & ~_all_finite(leaf) for leaf in jax.tree.leaves(batch)]
    bad = jnp.concatenate(
        [
            jnp.stack([*inputs, loss_is_bad]),
            ~jnp.isfinite(leaf_maxima(grads)),
            ~_all_finite(rates)[None],
            ~jnp.isfinite(leaf_maxima(params)),
        ]
    )
    codes = np.arange(2 * n + 2 + len(inputs), dtype=np.int32)
    grads_, (loss_, rate_), params_, inputs_ = np.split(codes, [n, n + 2, 2 * n + 2])
    in_order = np.concatenate([inputs_, [loss_], grads_, [rate_], params_])
    return jnp.where(bad.any(), jnp.asarray(in_order)[jnp.argmax(bad)], -1)


def _all_finite(tree: Any) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    finite = [jnp.isfinite(leaf).all() for leaf in leaves]
    return jnp.stack(finite).all() if finite else jnp.ones((), bool)


def _learning_rates(opt_state: Any) -> Metrics:
    """What the state says of the rate; of several groups, each under its own name."""
    leaves = paths(opt_state).items()
    found = {path: leaf for path, leaf in leaves if path.split("/")[-1] == "learning_rate"}
    # Injected into one of fnn's rules the rate is there twice.
    injected = {path: leaf for path, leaf in found.items() if "hyperparams/" in path}
    found = injected or found
    return {"learning_rate": next(iter(found.values()))} if len(found) == 1 else found


# --- the mean, and the large batch in parts ---------------------------------------------------


def _mean_loss(loss_fn: Any, has_state: bool, compute_dtype: DTypeLike | None) -> Any:
    """mean_loss(params, state, batch, key, mask, scale) -> (scale * loss, (loss, state))."""

    def mean_loss(
        params: Params, state: State, batch: Data, key: Array, mask: Array | None, scale: ArrayLike
    ) -> tuple[Array, tuple[Array, State]]:
        if compute_dtype is not None:
            params, batch = _cast(params, compute_dtype), _cast(batch, compute_dtype)
        if has_state:
            losses, new = loss_fn(params, state, batch, key)
            _check_state(state, new)
            state = new
        else:
            losses = loss_fn(params, batch, key)
        loss = _masked_mean(losses, mask)
        return loss * jnp.asarray(scale, loss.dtype), (loss, state)

    return mean_loss


def _gradients(
    mean_loss: Any,
    accumulate: int,
    ts: TrainState,
    batch: Data,
    key: Array,
    mask: Array | None,
    scale: ArrayLike,
) -> tuple[Params, Array, State]:
    """Gradient, of the scaled loss, and the loss itself; the state after this batch."""
    differentiate = partial(jax.grad(mean_loss, has_aux=True), ts.params)
    if accumulate == 1:
        grads, (loss, state) = differentiate(ts.state, batch, key, mask, scale)
        return grads, loss, state
    parts = _parts(batch, accumulate), _parts(mask, accumulate)
    return _accumulated(differentiate, ts, *parts, key, scale)


def _masked_mean(losses: Array, mask: Array | None) -> Array:
    losses = wide(losses)
    if mask is None:
        return jnp.mean(losses)
    if losses.shape[:1] != mask.shape:
        raise ValueError(
            f"make_train_step: loss_fn returned shape {losses.shape}, but {mask.shape[0]} rows are"
            f" masked; expected one loss per row, [{mask.shape[0]}, ...], or fit(tail='drop')"
        )
    per_row = jnp.mean(losses.reshape(losses.shape[0], -1), axis=1)
    weights = mask.astype(per_row.dtype)
    # Selected, not multiplied: a padded row may be anything, NaN too.
    total = jnp.sum(jnp.where(mask.astype(bool), per_row * weights, 0))
    return total / _or_1(jnp.sum(weights))


def _parts(tree: Data, number: int) -> Data:
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
) -> tuple[Params, Array, State]:
    """Gradient and loss of all parts together, each weighed by its rows' weights; the state."""

    def add(carry: Any, part: Any) -> tuple[Any, None]:
        total, total_weight, state, i = carry
        batch, mask = part
        grads, (loss, state) = differentiate(state, batch, jax.random.fold_in(key, i), mask, scale)
        weight = jnp.ones(()) if mask is None else jnp.sum(wide(mask))
        new = jax.tree.map(lambda t, x: t + wide(x) * weight.astype(t.dtype), total, (grads, loss))
        return (new, total_weight + weight.astype(total_weight.dtype), state, i + 1), None

    example = jax.tree.map(lambda leaf: leaf[0], (batches, masks))
    _, (loss, _) = jax.eval_shape(differentiate, ts.state, example[0], key, example[1], scale)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide_dtype(x)), (ts.params, loss))
    start = (zeros, jnp.zeros((), loss.dtype), ts.state, jnp.zeros((), jnp.int32))
    ((grads, loss), weight, state, _), _ = lax.scan(add, start, (batches, masks))
    mean = jax.tree.map(lambda t: t * (1 / _or_1(weight)).astype(t.dtype), (grads, loss))
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), mean[0], ts.params)
    return grads, mean[1], state


def _or_1(total: Array) -> Array:
    return jnp.where(total > 0, total, 1)


# --- half precision ---------------------------------------------------------------------------

SMALLEST_SCALE, LARGEST_SCALE, DOUBLE_AFTER = 1.0, 2.0**24, 2000


def _next_scale(loss_scale: LossScale, good: Array) -> LossScale:
    """Half of it after a step that was not finite, twice after 2,000 in a row that were."""
    count = jnp.where(good, loss_scale.good + 1, 0)
    doubles = count >= DOUBLE_AFTER
    factor = jnp.where(good, jnp.where(doubles, 2.0, 1.0), 0.5)
    scale = jnp.clip(loss_scale.scale * factor, SMALLEST_SCALE, LARGEST_SCALE)
    return LossScale(scale, jnp.where(doubles, 0, count))


def _cast(tree: Any, dtype: DTypeLike) -> Any:
    def cast(leaf: ArrayLike) -> Array:
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)
