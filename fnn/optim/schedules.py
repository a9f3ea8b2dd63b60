"""Learning-rate schedules, by Optax, with lengths in steps, epochs or a fraction of the run.

A schedule is a function of the number of updates done; every optimizer here and in Optax takes
one. ``Run(epochs, rows, batch_size)`` is the length of the run. A length within it is an int
(steps), ``Epochs(2)``, or a float from 0.0 to 1.0 (a fraction of the run)::

    run = fnn.schedules.Run(epochs=10, rows=1077, batch_size=64)
    fnn.adam(fnn.schedules.warmup_cosine(run, 3e-3, warmup=0.1))

The first update uses schedule(0), so the first update of a warm-up from 0 changes nothing. Peak
rates may be traced; lengths may not. A part that is rounded to 0 steps is left out. The history of
`fit` has the rate of every step. A rate that falls when the loss stalls is no function of the step:
`fnn.optim.reduce_on_plateau`.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.typing import ArrayLike

from fnn._base import as_count, as_ids, check_range, number_of
from fnn.optim._lifting import Schedule


class Epochs(NamedTuple):
    """A length in epochs."""

    number: float


Length = int | float | Epochs
MOST = 2.0**31  # epochs; a step counter has 31 bits


class Run(NamedTuple):
    """The length of a run of `fit`; the last, smaller batch is a step, as with tail="pad"."""

    epochs: int
    rows: int
    batch_size: int

    def steps(self, length: Length = 1.0) -> int:
        """A length in steps, rounded; by default that of the whole run."""
        epochs, rows, batch_size = (as_count("Run", *item) for item in self._asdict().items())
        per_epoch = -(-rows // batch_size)
        if isinstance(length, Epochs):
            check_range("Epochs", "number", length.number, 0, MOST)
            return round(float(length.number) * per_epoch)
        number = number_of(length)
        if isinstance(number, int):
            return as_count("Run.steps", "length", number, 0)
        if number is None or not 0 <= number <= 1:
            raise ValueError(
                f"Run.steps: length {length} is no fraction of the run, expected 0.0 to 1.0,"
                " an int of steps or Epochs(number)"
            )
        return round(number * epochs * per_epoch)


def constant(rate: ArrayLike) -> Schedule:
    """The same rate always."""
    check_range("constant", "rate", rate, 0)
    return _plain(optax.schedules.constant_schedule(rate))  # pyright: ignore[reportArgumentType]


def linear(run: Run, start: ArrayLike, end: ArrayLike = 0.0, *, length: Length = 1.0) -> Schedule:
    """From `start` to `end` in a straight line over `length`, then `end`."""
    _check_rates("linear", start=start, end=end)
    ramp = run.steps(length)
    if ramp == 0:  # Optax would stay at the start
        return constant(end)
    return _plain(optax.schedules.linear_schedule(start, end, ramp))


def cosine(run: Run, peak: ArrayLike, end: ArrayLike = 0.0) -> Schedule:
    """From `peak` to `end` along half a cosine over the run (Loshchilov & Hutter 2017)."""
    return warmup_cosine(run, peak, warmup=0, end=end)


def warmup_cosine(
    run: Run, peak: ArrayLike, *, warmup: Length, start: ArrayLike = 0.0, end: ArrayLike = 0.0
) -> Schedule:
    """From `start` to `peak` in a straight line over `warmup`, then `cosine` to the run's end."""
    _check_rates("warmup_cosine", peak=peak, start=start, end=end)
    rise = run.steps(warmup)
    line = _between(optax.schedules.linear_schedule(0.0, 1.0, max(1, rise)), start, peak)
    return _then(rise, line, _between(_half_cosine(run.steps() - rise), end, peak))


def steps(run: Run, start: ArrayLike, *, factor: ArrayLike, at: Sequence[Length]) -> Schedule:
    """`start`, multiplied by `factor` at each of the lengths `at`."""
    _check_rates("steps", start=start, factor=factor)
    places = jnp.asarray([run.steps(length) for length in at], jnp.int32)

    def schedule(count: Array) -> Array:
        passed = jnp.sum(_as_count(count)[..., None] >= places, axis=-1)
        return jnp.asarray(start, float) * jnp.asarray(factor, float) ** passed

    return schedule


def one_cycle(run: Run, peak: ArrayLike, *, warmup: Length = 0.3) -> Schedule:
    """Smith & Topin 2018: from peak / 25 up over `warmup`, down to peak / 250,000 by the end.

    Up and down along half a cosine, as in PyTorch and Optax.
    """
    _check_rates("one_cycle", peak=peak)
    rise = run.steps(warmup)
    first, last = (jnp.asarray(peak, float) * (1 / divisor) for divisor in (25, 250_000))
    up = _between(_half_cosine(rise), peak, first)
    return _then(rise, up, _between(_half_cosine(run.steps() - rise), last, peak))


def trapezoid(
    run: Run,
    peak: ArrayLike,
    *,
    warmup: Length,
    decay: Length,
    end: ArrayLike = 0.0,
    shape: Literal["linear", "sqrt"] = "linear",
) -> Schedule:
    """Warm-up, stable, decay (Hu et al. 2024; Haegele et al. 2024): up, level, down to `end`.

    With t updates done of T: peak (t + 1) / W in the first W = `warmup` steps, so that no step is
    lost; then `peak`; in the last D = `decay` steps end + (peak - end) (1 - s), with
    s = (t - T + D) / D. The decay starts from the peak and reaches `end` at t = T. "sqrt" has
    sqrt(s) for s, which falls faster at first. transformers' get_wsd_schedule warms up by t / W and
    decays along a cosine.
    """
    _check_rates("trapezoid", peak=peak, end=end)
    if shape not in ("linear", "sqrt"):
        raise ValueError(f"trapezoid: shape is {shape!r}, expected 'linear' or 'sqrt'")
    total, rise, fall = run.steps(), run.steps(warmup), run.steps(decay)
    if rise + fall > total:
        raise ValueError(
            f"trapezoid: warmup and decay are {rise} and {fall} steps, expected at most the"
            f" {total} steps of the run"
        )

    def down(count: Array) -> Array:
        s = jnp.clip(count / max(1, fall), 0, 1)
        return 1 - (jnp.sqrt(s) if shape == "sqrt" else s)

    first = _between(_rising(rise), 0.0, peak)
    last = _between(down, end, peak) if fall else constant(peak)

    def schedule(count: Array) -> Array:
        count = _as_count(count)
        return jnp.where(count < rise, first(count), last(count - (total - fall)))

    return schedule


def inverse_square_root(
    run: Run, peak: ArrayLike, *, warmup: Length, timescale: Length | None = None
) -> Schedule:
    """Up to `peak` over W = `warmup`, then peak / sqrt(1 + (t - W) / timescale), without an end.

    t = 1 at the first update: peak t / W up to t = W. By default `timescale` is W, so that this is
    Vaswani et al. 2017: peak sqrt(W) min(t^-0.5, t W^-1.5). big_vision has 10,000 steps. Without a
    warm-up a timescale must be given. Only the lengths depend on the run.
    """
    _check_rates("inverse_square_root", peak=peak)
    rise = run.steps(warmup)
    scale = rise if timescale is None else run.steps(timescale)
    if scale == 0:
        came = "None without a warm-up" if timescale is None else "0 steps"
        raise ValueError(f"inverse_square_root: timescale is {came}, expected at least 1 step")

    def falling(count: Array) -> Array:
        return lax.rsqrt(1 + jnp.maximum(count + 1 - rise, 0) / scale)

    up, down = (_between(unit, 0.0, peak) for unit in (_rising(rise), falling))
    return lambda count: jnp.where(_as_count(count) < rise, up(count), down(count))


def _rising(steps: int) -> Schedule:
    """(t + 1) / steps, at most 1."""
    return lambda count: jnp.minimum((count + 1) / max(1, steps), 1)


def _half_cosine(steps: int) -> Schedule:
    """From 1 to 0 along half a cosine."""
    return optax.schedules.cosine_decay_schedule(1.0, max(1, steps))


def _then(steps: int, first: Schedule, second: Schedule) -> Schedule:
    """`first` for so many steps, then `second` from its start."""
    if steps == 0:
        return second

    def schedule(count: Array) -> Array:
        count = _as_count(count)
        return jnp.where(count < steps, first(count), second(count - steps))

    return schedule


def _between(unit: Schedule, low: ArrayLike, high: ArrayLike) -> Schedule:
    """A schedule from 0 to 1, scaled to low and high. Optax's checks fail for traced rates."""

    def schedule(count: Array) -> Array:
        bottom, top = (jnp.asarray(rate, float) for rate in (low, high))
        return bottom + (top - bottom) * jnp.asarray(unit(_as_float(count)), float)

    return schedule


def _check_rates(name: str, **rates: ArrayLike) -> None:
    for argument, rate in rates.items():
        check_range(name, argument, rate, 0)


def _plain(schedule: Schedule) -> Schedule:
    def of(count: Array) -> Array:
        rate = jnp.asarray(schedule(_as_float(count)), float)
        return jnp.broadcast_to(rate, jnp.shape(count))  # Optax's constant has no shape

    return of


def _as_count(count: ArrayLike) -> Array:
    # In whole numbers, which are exact where float32 is not, beyond 2^24. A count of 8 bits or
    # without a sign would wrap when a length is taken from it.
    whole = jnp.issubdtype(jnp.result_type(count), jnp.integer)
    return as_ids(count) if whole else jnp.asarray(count)


def _as_float(count: ArrayLike) -> Array:
    # Optax's schedules divide and multiply the count by floats, which strict promotion forbids.
    return jnp.asarray(count, float)
