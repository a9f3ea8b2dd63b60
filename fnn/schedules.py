"""Learning rates that change, by Optax, with lengths in steps, epochs or a part of the run.

A schedule is a function of the number of updates done, as every optimizer here and in Optax takes
it. ``Run(epochs, rows, batch_size)`` knows how long the run is; a length is then an int, of steps,
``Epochs(2)``, or a float up to 1, that part of the run::

    run = fnn.schedules.Run(epochs=10, rows=1077, batch_size=64)
    fnn.adam(fnn.schedules.warmup_cosine(run, 3e-3, warmup=0.1))

The first update uses schedule(0), so a warm-up from 0 begins with an update of nothing. Peak
rates may be traced; lengths may not. The rate of every step is in the history of `fit`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn.lifting import Schedule


class Epochs(NamedTuple):
    """A length in epochs."""

    number: float


Length = int | float | Epochs


class Run(NamedTuple):
    """How long a run of `fit` is; the last batch counts, as with tail="pad"."""

    epochs: int
    rows: int
    batch_size: int

    def steps(self, length: Length = 1.0) -> int:
        """A length in steps, rounded; the whole run's by default."""
        per_epoch = -(-self.rows // self.batch_size)
        if isinstance(length, Epochs):
            steps = round(length.number * per_epoch)
        elif isinstance(length, int):
            steps = length
        elif 0 <= length <= 1:
            steps = round(length * self.epochs * per_epoch)
        else:
            raise ValueError(
                f"Run.steps: length {length} is no part of the run, expected 0.0 to 1.0,"
                " an int of steps or Epochs(number)"
            )
        if steps < 0:
            raise ValueError(f"Run.steps: length {length} is negative")
        return steps


def constant(rate: ArrayLike) -> Schedule:
    """The same rate always."""
    return _plain(optax.schedules.constant_schedule(rate))  # pyright: ignore[reportArgumentType]


def linear(run: Run, start: ArrayLike, end: ArrayLike = 0.0, *, length: Length = 1.0) -> Schedule:
    """From `start` to `end` in a straight line over `length`, then `end`."""
    return _plain(optax.schedules.linear_schedule(start, end, run.steps(length)))


def cosine(run: Run, peak: ArrayLike, end: ArrayLike = 0.0) -> Schedule:
    """From `peak` to `end` along half a cosine over the run (Loshchilov & Hutter 2017)."""
    return warmup_cosine(run, peak, warmup=0, end=end)


def warmup_cosine(
    run: Run, peak: ArrayLike, *, warmup: Length, start: ArrayLike = 0.0, end: ArrayLike = 0.0
) -> Schedule:
    """From `start` to `peak` in a straight line over `warmup`, then `cosine` to the run's end."""
    rise = run.steps(warmup)
    rest = max(1, run.steps() - rise)
    unit = optax.schedules.cosine_decay_schedule(1.0, rest)
    falls = _between(unit, end, peak)
    if rise == 0:
        return falls
    line = _between(optax.schedules.linear_schedule(0.0, 1.0, rise), start, peak)

    def schedule(count: Array) -> Array:
        count = jnp.asarray(count)
        return jnp.where(count < rise, line(count), falls(count - rise))

    return schedule


def steps(run: Run, start: ArrayLike, *, factor: ArrayLike, at: Sequence[Length]) -> Schedule:
    """`start`, multiplied by `factor` at each of the lengths `at`."""
    places = jnp.asarray([run.steps(length) for length in at], jnp.int32)

    def schedule(count: Array) -> Array:
        passed = jnp.sum(jnp.asarray(count)[..., None] >= places, axis=-1)
        return jnp.asarray(start, float) * jnp.asarray(factor, float) ** passed

    return schedule


def one_cycle(run: Run, peak: ArrayLike, *, warmup: Length = 0.3) -> Schedule:
    """Smith & Topin 2018: from peak / 25 up over `warmup`, down to peak / 10,000 by the end.

    Both ways along half a cosine, as PyTorch and Optax have it.
    """
    part = run.steps(warmup) / max(1, run.steps())
    unit = optax.schedules.cosine_onecycle_schedule(run.steps(), 1.0, part)
    return _between(unit, 0.0, peak)


def _between(unit: Schedule, low: ArrayLike, high: ArrayLike) -> Schedule:
    """A schedule from 0 to 1 stretched, so that what is traced never enters Optax's checks."""

    def schedule(count: Array) -> Array:
        bottom, top = (jnp.asarray(rate, float) for rate in (low, high))
        return bottom + (top - bottom) * jnp.asarray(unit(_as_float(count)), float)

    return schedule


def _plain(schedule: Schedule) -> Schedule:
    return lambda count: jnp.asarray(schedule(_as_float(count)), float)


def _as_float(count: ArrayLike) -> Array:
    # Optax's schedules divide and multiply the count by floats, which strict promotion forbids.
    return jnp.asarray(count, float)
