"""One gradient step: a pair of pure functions, `init` and `update`.

The randomness of step s is ``fold_in(key, s)``, so that a run which goes on from a saved state
draws what it would have drawn.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from fnn._base import (
    Data,
    Metrics,
    Params,
    Seen,
    State,
    check_at_least_1,
    check_range,
    global_norm,
    next_count,
    paths,
    safe_divide,
)
from fnn.optim import Optimizer, apply_updates, check_optimizer, moving, scale_to_norm
from fnn.training._gradient import Gradient, gradient_of, loss_of, value_of
from fnn.training._nonfinite import (
    FirstBad,
    NonFinitePolicy,
    check_policy,
    look,
    no_bad,
    which_is_bad,
)
from fnn.training._state import LossScale, TrainState, check_train_state

Update = Callable[..., tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """A training step: ``init(params, state=()) -> ts``, ``update(ts, batch, key, mask=None)``.

    Calling the step is `update`, which returns (ts, metrics). `policy` is what it does with a
    step that is not finite. Make your own for a step that `make_train_step` cannot make.
    """

    init: Callable[..., TrainState]
    update: Update
    policy: NonFinitePolicy = "skip"

    def __call__(
        self, ts: TrainState, batch: Data, key: Array, mask: Array | None = None
    ) -> tuple[TrainState, Metrics]:
        """The same as `update`."""
        return self.update(ts, batch, key, mask)


class Way(NamedTuple):
    """How a step finds the gradient of a batch, and its mean loss."""

    gradient: Callable[..., Gradient]
    value: Callable[..., Array]


WHOLE = Way(gradient_of, value_of)


@dataclasses.dataclass(frozen=True, eq=False)
class ByGradient:
    """The update of `make_train_step`: of another gradient it makes another update.

    It is in `Step.update`, so a step that somebody wrapped has lost it.
    """

    function: Callable[..., tuple[TrainState, Metrics]]
    way: Way = WHOLE

    def __call__(
        self, ts: TrainState, batch: Data, key: Array, mask: Array | None = None
    ) -> tuple[TrainState, Metrics]:
        return self.function(self.way, ts, batch, key, mask)


def with_update(step: Step | Update, update: Update) -> Any:
    """The step with another `update`; of a plain function, the update alone."""
    return dataclasses.replace(step, update=update) if isinstance(step, Step) else update


def make_train_step(
    loss_fn: Callable[..., Any],
    optimizer: Optimizer,
    *,
    clip_norm: ArrayLike | None = None,
    nonfinite: NonFinitePolicy = "skip",
    accumulate: int = 1,
    compute_dtype: DTypeLike | None = None,
    loss_scale: float | None = None,
    aux: bool = False,
    update_ratio: bool = False,
) -> Step:
    """-> step, a pair: init(params, state=()) -> ts, update(ts, batch, key) -> (ts, metrics).

    The loss is loss_fn(params, batch, key) -> losses. If the model has state, as with batch norm,
    give it to `init`; the loss then is loss_fn(params, state, batch, key) -> (losses, state).
    Losses are [batch, ...], and the step descends their mean. `update` also takes a mask, [batch]:
    rows where it is 0 do not count, other rows are weighed by it. A loss function with an argument
    `mask` is given it, None if all rows count. A scalar loss is taken as it is, a `Weighted` one
    is weighed by its own weights, as by tokens.

    `optimizer`: fnn's or Optax's. Transformations that want ``value``, ``grad`` and ``value_fn``,
    as Optax's `reduce_on_plateau`, `polyak_sgd` and `lbfgs` do, are given them.
    `clip_norm`: gradients whose global norm exceeds it are scaled to it. Leaves under
    `fnn.freeze` are not in the norm.
    `accumulate` k: the batch goes through in k parts. Their gradients are added up in float32;
    clipping and the update come once, after the last part.
    `compute_dtype`: the loss sees params and batch in this type. Stored parameters keep theirs.
    `loss_scale`: where a dynamic loss scale starts, for float16.
    `aux`: the loss function returns one thing more, last, a dict of metrics. Those of [batch, ...]
    are averaged as the losses are. They become float32, float64 ones stay.
    `nonfinite` says what happens to a step whose loss or gradient is not finite:

    - "skip": nothing changes but the step counter.
    - "stop": the same, and no later step changes anything.
    - "raise": the same as "stop", and `train` raises NonFiniteError.
    - "ignore": the step is taken.

    A gradient so large that its square overflows, 1.8e19 in float32, counts as not finite if the
    optimizer keeps moments: they could not hold it. The first such step stays in ``ts.first_bad``.
    New parameters that are not finite though the gradient is, as after a rate of 1e38, are found
    by the next step and not undone.

    Metrics are scalars: "loss"; "grad_norm", before clipping; "learning_rate", where the state of
    the optimizer holds it; "update_ratio" if asked for, norm(update) / norm(params); "nonfinite",
    -1 or an index into the names that `check_finite` knows.
    """
    _check_options(optimizer, clip_norm, nonfinite, accumulate, loss_scale)
    loss = loss_of(loss_fn, aux, compute_dtype)
    always = nonfinite == "ignore" and loss_scale is None
    move = _move_by(optimizer, clip_norm, update_ratio)

    def init(params: Params, state: State = ()) -> TrainState:
        scale = () if loss_scale is None else new_loss_scale(loss_scale)
        return first_state(params, state, optimizer.init(params), no_bad(nonfinite), scale)

    def update(
        way: Way, ts: TrainState, batch: Data, key: Array, mask: Array | None
    ) -> tuple[TrainState, Metrics]:
        check_made_here(ts, optimizer, loss_scale is not None)
        given = batch, jax.random.fold_in(key, ts.step), mask
        found = way.gradient(loss, accumulate, ts, *given)
        counted = moving(found.grads, ts.opt_state)
        looked = look(counted, ts.params)
        finite = jnp.isfinite(found.loss) & _fits(looked, clip_norm, ts.opt_state)
        first_bad = ts.first_bad.under(nonfinite)
        goes = True if always else finite & ~first_bad.ends()
        value_fn = partial(way.value, loss, ts, *given)
        new, ratio = move(goes, ts, found, looked.norm, value_fn)
        rates = _learning_rates(new.opt_state)
        bad = which_is_bad(finite, looked, counted, ts.params, batch, found.loss, rates)
        bad, scale, scales = next_loss_scale(ts.loss_scale, finite, bad)
        first_bad = first_bad.noted(ts.step, bad)
        new = new._replace(step=next_count(ts.step), first_bad=first_bad, loss_scale=scale)
        metrics = {"loss": found.loss, "grad_norm": looked.norm} | ratio | rates | scales
        return new, joined(metrics | {"nonfinite": bad}, found.aux)

    return Step(init, ByGradient(update), nonfinite)


def _check_options(
    optimizer: Any, clip_norm: Any, nonfinite: str, accumulate: Any, loss_scale: Any
) -> None:
    name = "make_train_step"
    check_optimizer(name, optimizer)
    check_policy(name, nonfinite)
    check_at_least_1(name, accumulate=accumulate)
    check_range(name, "clip_norm", clip_norm, 0, none=True)
    most = LARGEST_SCALE
    check_range(name, "loss_scale", loss_scale, SMALLEST_SCALE, upto=most, none=True)


def first_state(
    params: Params, state: State, opt_state: Any, first_bad: FirstBad, loss_scale: Any
) -> TrainState:
    """The train state before the first step."""
    return TrainState(params, state, opt_state, jnp.zeros((), jnp.int32), first_bad, loss_scale)


Moved = tuple[TrainState, Metrics]  # its params, state and opt_state moved; the update ratio


def _move_by(optimizer: Optimizer, clip_norm: ArrayLike | None, update_ratio: bool) -> Any:
    """move(goes, ts, found, norm, value_fn) -> `Moved`; ts as it was where `goes` is False."""
    inside = optax.with_extra_args_support(optimizer)

    def ratio(updates: Params, params: Params) -> Metrics:
        if not update_ratio:
            return {}
        return {"update_ratio": safe_divide(global_norm(updates), global_norm(params))}

    def no_ratio(params: Params) -> Metrics:
        like = jax.eval_shape(ratio, params, params)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def move(
        goes: Array | bool,
        ts: TrainState,
        found: Gradient,
        norm: Array,
        value_fn: Callable[[Params], Array],
    ) -> Moved:
        def go() -> Moved:
            grads = found.grads
            grads = grads if clip_norm is None else scale_to_norm(grads, norm, clip_norm)
            wanted = {"value": found.loss, "grad": grads, "value_fn": value_fn}
            updates, opt_state = inside.update(grads, ts.opt_state, ts.params, **wanted)
            params = apply_updates(ts.params, updates)
            moved = ts._replace(params=params, state=found.state, opt_state=opt_state)
            return moved, ratio(updates, ts.params)

        def stay() -> Moved:
            return ts, no_ratio(ts.params)

        def branch(goes: Array) -> Moved:
            return lax.cond(goes, go, stay)

        def choose(goes: Array) -> Moved:
            return jax.tree.map(lambda new, old: jnp.where(goes, new, old), go(), stay())

        if goes is True:
            return go()
        # A branch copies nothing. But a GPU's host has to wait for `goes`, which costs more.
        return lax.platform_dependent(goes, cuda=choose, rocm=choose, default=branch)

    return move


def _fits(looked: Seen, clip_norm: ArrayLike | None, opt_state: Any) -> Array:
    """Whether gradients of this norm are finite, and so are their squares, if a state keeps them.

    One gradient of 1e20 would make Adam's second moment inf, and its parameter would never move
    again.
    """
    keeps = any(
        jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        for path, leaf in paths(opt_state).items()
        if "hyperparams/" not in path and path.split("/")[-1] != "last_rate"
    )
    if not keeps:
        return looked.is_finite
    clipped = False if clip_norm is None else jnp.isfinite(jnp.square(clip_norm))
    return looked.square_is_finite | (looked.is_finite & clipped)


def joined(metrics: Metrics, more: Metrics) -> Metrics:
    """Both; ValueError if a metric of the loss function has the name of one of the step's."""
    twice = sorted(metrics.keys() & more.keys())
    if twice:
        raise ValueError(
            f"make_train_step: aux has {twice}, which the step's own metrics have: {list(metrics)}"
        )
    return metrics | more


def check_made_here(ts: TrainState, optimizer: Optimizer, scaled: bool) -> None:
    """Raise unless `ts` is a train state of this step: not of another optimizer or parameters."""
    check_train_state("step.update", ts)
    expected = {path: leaf.shape for path, leaf in _state_of(optimizer, ts.params).items()}
    came = {path: jnp.shape(leaf) for path, leaf in paths(ts.opt_state).items()}
    odd = [path for path in expected | came if expected.get(path) != came.get(path)]
    if odd:
        raise ValueError(
            f"make_train_step: ts is not of this step: {odd[0]!r} of the optimizer's state has"
            f" {_shape(came.get(odd[0]))}, but with this optimizer and these parameters it has"
            f" {_shape(expected.get(odd[0]))}; make ts by step.init(params)"
        )
    if scaled != isinstance(ts.loss_scale, LossScale):
        has, takes = ("no", "one") if scaled else ("a", "none")
        raise ValueError(
            f"make_train_step: ts has {has} loss scale, but this step takes {takes};"
            " make ts by step.init(params)"
        )


def _state_of(optimizer: Optimizer, params: Params) -> dict[str, Any]:
    return paths(jax.eval_shape(optimizer.init, params))


def _shape(shape: tuple[int, ...] | None) -> str:
    return "no such entry" if shape is None else f"shape {shape}"


def _learning_rates(opt_state: Any) -> Metrics:
    """The learning rate that the state holds; if there are several, each under its own path."""
    leaves = [(path.rpartition("/"), leaf) for path, leaf in paths(opt_state).items()]
    # Optax's inject_hyperparams has it under its own name, fnn's rules record it as the last rate.
    injected, recorded = (
        {f"{above}{slash}learning_rate": leaf for (above, slash, last), leaf in leaves if last == n}
        for n in ("learning_rate", "last_rate")
    )
    found = injected or recorded
    return {"learning_rate": next(iter(found.values()))} if len(found) == 1 else found


# --- half precision ---------------------------------------------------------------------------

SMALLEST_SCALE, LARGEST_SCALE, DOUBLE_AFTER = 1.0, 2.0**24, 2000


def new_loss_scale(start: float) -> LossScale:
    """A dynamic loss scale before the first step."""
    return LossScale(jnp.asarray(start, jnp.float32), jnp.zeros((), jnp.int32))


def next_loss_scale(
    loss_scale: LossScale | tuple[()], finite: Array, bad: Array
) -> tuple[Array, LossScale | tuple[()], Metrics]:
    """-> (bad, the next scale, metrics): half after an overflow, twice after 2,000 good steps."""
    if not isinstance(loss_scale, LossScale):
        return bad, loss_scale, {}
    # An overflow that a smaller scale will mend is nobody's fault.
    bad = jnp.where(~finite & (loss_scale.scale > SMALLEST_SCALE), -1, bad)
    count = jnp.where(finite, loss_scale.good + 1, 0)
    doubles = count >= DOUBLE_AFTER
    factor = jnp.where(finite, jnp.where(doubles, 2.0, 1.0), 0.5)
    scale = jnp.clip(loss_scale.scale * factor, SMALLEST_SCALE, LARGEST_SCALE)
    new = LossScale(scale, jnp.where(doubles, 0, count))
    return bad, new, {"loss_scale": loss_scale.scale}
