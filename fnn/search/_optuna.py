"""Points that an Optuna study proposes, run by `population`."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from fnn._base import as_count, paths
from fnn.search._points import (
    Point,
    Range,
    Static,
    bare_value,
    check_distinct_keys,
    plan_of,
    shapes_program,
    to_choose,
)
from fnn.search._population import Population
from fnn.search._programs import Run, alone, check_names, outlines_of, programs_of
from fnn.search._sweeping import population
from fnn.training import side_by_side

WHO = "run_study"


def run_study(
    study: Any,
    run: Run,
    keys: Array,
    space: Mapping[str, Any],
    *,
    batch: int,
    rounds: int,
    value: str,
    keep: Callable[[Any], Any] | None = None,
    width: int | None = None,
    progress: bool = True,
) -> Population:
    """An Optuna study proposes points, a batch at a time -> `Population`, [n, rounds * batch, ...].

    Each round asks the study for `batch` points, runs each of them with each of keys [n] as one
    `population`, and tells the study the means of `value` over the keys. All points get the same
    keys, so they are compared on the same seeds.

    - `study`: of any sampler and storage. Its direction says whether less or more is better. The
      sampler must know that a batch is proposed at once: Optuna 5's default does; in Optuna 4 use
      ``TPESampler(multivariate=True, constant_liar=True)``. Several processes can work on one
      study that is stored in a journal or a database.
    - `space`: as for `sample`: ``{"learning_rate": Range(1e-4, 1, "log"), "hidden": [(64,),
      (128,)], "batch_size": Static(32, 64)}``. A range is a float in the study; on the scale
      "log1m" it is the float ``1 - name`` on a log scale. Values to choose from are categories.
      Tuples and functions among them are stored as text.
    - `value`: the path of a scalar that the run returns, as "loss" or "valid/loss", or "value" if
      it returns nothing else.
    - `keep`, `width`, `progress`: as those of `population`.

    A program is compiled once, not once a round. A trial has the user attributes "values", a number
    for each key, and "point", the hyperparameters. A mean that is not finite is told as the worst,
    inf or -inf, so that the sampler learns where runs diverge. Ctrl-C and SIGTERM end it after the
    present piece; trials that are not done get the state FAIL.

    The population has the points in the order of their trials, whose numbers are the axis "point".
    So ``best(value)`` has the interval over the keys, and `replay` has a whole run again.

    Errors, before a point is asked for: those of `population`; ValueError if the run returns no
    such scalar, if the study has several directions, or if two choices read alike;
    ModuleNotFoundError without Optuna (``pip install 'fnn[search]'``).
    """
    direction = _direction_of(study)
    batch, rounds = as_count(WHO, "batch", batch), as_count(WHO, "rounds", rounds)
    if not isinstance(space, Mapping) or not space:
        raise TypeError(
            f"{WHO}: space is {space!r:.60}, expected a dict such as"
            ' {"learning_rate": Range(1e-4, 1, "log")}'
        )
    asked = {name: _asked(name, to_choose(WHO, name, v)) for name, v in space.items()}
    has_static = _check(run, keys, {n: a.first for n, a in asked.items()}, value, keep)
    distributions = {a.name: a.distribution for a in asked.values()}
    width = None if width is None else as_count(WHO, "width", width)
    if has_static and (width or side_by_side(jax.devices()[0])):
        # How many points a program has differs from round to round, but each has all keys. Groups
        # no larger than the runs of one point have one width whatever that number is.
        most = -(-keys.shape[0] // jax.device_count())
        width = min(width or most, most)
    found: list[Population] = []
    numbers: list[int] = []
    points: list[Point] = []
    for _ in range(rounds):
        trials = [study.ask(distributions) for _ in range(batch)]
        new = [{n: a.value(t.params[a.name]) for n, a in asked.items()} for t in trials]
        try:
            results = population(run, keys, points=new, keep=keep, width=width, progress=progress)
            _check_shapes([*found, results])
        except BaseException:
            for trial in trials:
                study.tell(trial, state=_failed())
            raise
        _tell(study, direction, trials, new, results, value)
        found.append(results)
        numbers += [trial.number for trial in trials]
        points += new
        if results.missing:  # a signal came
            break
    return _joined(run, keys, found, numbers, points)


# --- the study --------------------------------------------------------------------------------


def _optuna() -> Any:
    try:
        import optuna  # pyright: ignore[reportMissingImports]  # slow to import
    except ImportError as error:
        raise ModuleNotFoundError(f"{WHO}: Optuna is missing: pip install 'fnn[search]'") from error
    return optuna


def _failed() -> Any:
    return _optuna().trial.TrialState.FAIL


def _direction_of(study: Any) -> str:
    """ "minimize" or "maximize"."""
    if not isinstance(study, _optuna().Study):
        raise TypeError(
            f"{WHO}: study is a {type(study).__name__}, expected one of optuna.create_study()"
        )
    if len(study.directions) != 1:
        raise ValueError(f"{WHO}: the study has {len(study.directions)} directions, expected 1")
    return study.direction.name.lower()


class _Asked(NamedTuple):
    """How the study is asked for the value of one name."""

    name: str  # in the study
    distribution: Any
    first: Any  # a value
    value: Callable[[Any], Any]  # of what the study proposes


def _asked(name: str, choice: Range | list[Any]) -> _Asked:
    of = _optuna().distributions
    if isinstance(choice, Range):
        low, high = float(choice.low), float(choice.high)
        if choice.scale == "log1m":
            distribution = of.FloatDistribution(1 - high, 1 - low, log=True)
            return _Asked(
                f"1 - {name}", distribution, low, lambda rest: min(max(1 - rest, low), high)
            )
        distribution = of.FloatDistribution(low, high, log=choice.scale == "log")
        return _Asked(name, distribution, low, float)
    choice = _of_one_kind(choice)
    texts = {_text(value): value for value in choice}
    if len(texts) < len(choice):
        raise ValueError(
            f"{WHO}: {name} has the values {[_text(value) for value in choice]} in the study,"
            " expected different ones"
        )
    return _Asked(name, of.CategoricalDistribution([*texts]), choice[0], texts.__getitem__)


def _of_one_kind(choice: list[Any]) -> list[Any]:
    """All of them static, or all numbers of one dtype, so that no round has another program."""
    if any(map(shapes_program, choice)):
        return [Static(bare_value(value)) for value in choice]
    if len({np.shape(value) for value in choice}) > 1:
        return choice  # which `population` refuses
    return list(np.stack([np.asarray(value) for value in choice]))


def _text(value: Any) -> Any:
    """What the study stores of a choice: None, a bool, a number or a word as it is, else a text."""
    value = bare_value(value)
    if isinstance(value, np.generic | np.ndarray | Array) and value.ndim == 0:
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__qualname__", "") or re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _tell(
    study: Any,
    direction: str,
    trials: Sequence[Any],
    new: Sequence[Point],
    found: Population,
    value: str,
) -> None:
    """The means over the keys; FAIL where a run is missing."""
    worst = math.inf if direction == "minimize" else -math.inf
    values = {path or "value": leaf for path, leaf in paths(found.values).items()}[value]
    values = np.asarray(values, np.float64)
    for at, (trial, point) in enumerate(zip(trials, new, strict=True)):
        trial.set_user_attr("point", {name: _text(v) for name, v in point.items()})
        if not found.done[:, at].all():
            study.tell(trial, state=_failed())
            continue
        trial.set_user_attr("values", values[:, at].tolist())
        mean = float(values[:, at].mean())
        study.tell(trial, mean if math.isfinite(mean) else worst)


# --- the population ---------------------------------------------------------------------------


def _check(run: Run, keys: Array, point: Point, value: str, keep: Any) -> bool:
    """What can be known before a point is asked for -> whether values shape the program."""
    if not (keep is None or callable(keep)):
        raise TypeError(f"{WHO}: keep is a {type(keep).__name__}, expected a function")
    check_distinct_keys(WHO, keys)
    check_names(WHO, run, list(point))
    plan = plan_of(WHO, keys, None, [point])
    leaves = outlines_of(WHO, plan, run, keep, programs_of(WHO, plan))[0].leaves
    scalars = [p or "value" for p, a in leaves.items() if a.shape == () and a.dtype.kind != "c"]
    if value not in scalars:
        raise ValueError(f"{WHO}: {value!r} is no scalar of the run, expected one of {scalars}")
    return bool(plan.static)


def _check_shapes(found: Sequence[Population]) -> None:
    """An error unless the last round returned what the first did."""
    first, last = (
        {path: (a.shape[2:], a.dtype) for path, a in paths(each.values).items()}
        for each in (found[0], found[-1])
    )
    odd = [path for path in {**first, **last} if first.get(path) != last.get(path)]
    if odd:
        raise ValueError(
            f"{WHO}: {odd[0]} of the run has another shape in this round than in the first,"
            " expected the same shapes: keep what has them, as by keep=lambda result: ..."
        )


def _joined(
    run: Run, keys: Array, found: Sequence[Population], numbers: list[int], points: list[Point]
) -> Population:
    """The rounds one after another on the axis "point"."""
    plan = plan_of(WHO, keys, None, points)
    return Population(
        jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *(f.values for f in found)),
        {"key": list(range(keys.shape[0])), "point": numbers},
        plan.points,
        np.concatenate([f.done for f in found], axis=1),
        partial(alone, plan, run, programs_of(WHO, plan)),
    )
