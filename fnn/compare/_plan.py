"""The settings of a comparison, checked, and the points that every rule gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from fnn._base import as_count, number_of
from fnn.compare._member import Order, steps_of
from fnn.compare._problem import Parts, Problem, fingerprint
from fnn.compare._problems import problem_of
from fnn.compare._problems_digits import digits_problem
from fnn.compare._rule import Make, Rule, check_rule
from fnn.compare._rules import rules_of
from fnn.compare._tuning import (
    RESERVED,
    Axis,
    How,
    Point,
    check_names,
    check_taken,
    parse_axis,
    points,
)
from fnn.compare._words import WHO
from fnn.data import rows_of

# As many as a first comparison has time for: 90 s on two cores, compiling included.
DEFAULT = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
DEFAULT += ("schedule_free_adamw",)
SOBOL_TRIALS = 16


@dataclass(frozen=True)
class Settings:
    """The settings of a comparison, as `compare_optimizers` and the command take them.

    `hidden` are sizes of the hidden layers of the problem digits. `plan_of` checks all of them.
    """

    rules: Sequence[str | Make | Rule] | Mapping[str, Make] = DEFAULT
    problem: str | Problem = "digits"
    tune: Sequence[str] = ()
    how: How | None = None
    trials: int | None = None
    trial_seeds: int = 3
    seeds: int = 10
    epochs: int | None = None
    batch_size: int | None = None
    order: Order = "new"
    target: float | None = None
    hidden: Sequence[int] | None = None


@dataclass(frozen=True)
class Plan:
    """Checked settings: rules and problem as objects, and the points of every rule."""

    problem: Problem
    rules: tuple[Rule, ...]
    axes: dict[str, tuple[Axis, ...]]  # of each rule
    points: dict[str, list[Point]]
    how: How
    trial_seeds: int
    seeds: int
    epochs: int
    batch_size: int
    order: Order
    target: float | None
    tune: tuple[str, ...]
    source: str  # what the problem is called on the command line
    hidden: tuple[int, ...] | None
    asked_target: float | None  # the target, if it is not the problem's own

    @cached_property
    def parts(self) -> Parts:
        """The rows, as arrays of the program; the splits of a problem without rows are None."""
        return self.problem.data()

    @cached_property
    def steps(self) -> int:
        """Steps of a run."""
        return steps_of(self.problem, self.epochs, self.batch_size)

    @cached_property
    def params(self) -> Any:
        """Shapes of the parameters."""
        return jax.eval_shape(self.problem.init, jax.random.key(0))

    @property
    def trials(self) -> int:
        """Points that each rule gets."""
        return len(next(iter(self.points.values())))

    @cached_property
    def fingerprint(self) -> str:
        """What tells the problem from another."""
        return fingerprint(self.problem)

    def marks(self) -> dict[str, Any]:
        """What pieces of one comparison have in common, whatever its rules."""
        device = jax.devices()[0]
        names = "how", "trials", "trial_seeds", "seeds", "epochs", "batch_size", "order"
        return {
            "problem": self.problem.name,
            "tune": list(self.tune),
            **{name: getattr(self, name) for name in names},
            "fingerprint": self.fingerprint,
            "jax": jax.__version__,
            "device": f"{device.platform} {device.device_kind}",
        }


def plan_of(settings: Settings) -> Plan:
    """Check all settings; ValueError or TypeError, one sentence."""
    rules = rules_of(settings.rules)
    for name in ("trial_seeds", "seeds"):
        as_count(WHO, name, getattr(settings, name))
    problem, source, hidden = _problem_of(settings)
    if settings.order not in ("new", "same"):
        raise ValueError(f"{WHO}: order is {settings.order!r}, expected 'new' or 'same'")
    if settings.how not in ("grid", "sobol", None):
        raise ValueError(f"{WHO}: how is {settings.how!r}, expected 'grid' or 'sobol'")
    target, (epochs, batch_size) = _target_of(settings, problem), _budget_of(settings, problem)
    axes, how = _axes_of(settings, rules, problem)
    plan = Plan(
        problem,
        rules,
        axes,
        _points_of(axes, rules, how, settings.trials),
        how,
        settings.trial_seeds,
        settings.seeds,
        epochs,
        batch_size,
        settings.order,
        target,
        tune=tuple(_listed(axes, rules)),
        source=source,
        hidden=hidden,
        asked_target=settings.target,
    )
    for rule in rules:
        if rule.by != "fnn":
            check_rule(rule, [axis.name for axis in axes[rule.name]], plan.params)
    return plan


def _problem_of(settings: Settings) -> tuple[Problem, str, tuple[int, ...] | None]:
    """The problem, what it is called on the command line, and the sizes that came for it."""
    given = settings.problem
    problem = given if isinstance(given, Problem) else problem_of(given)
    source = given.name if isinstance(given, Problem) else given
    if settings.hidden is None:
        return problem, source, None
    if source != "digits":
        raise ValueError(f"{WHO}: hidden sizes came with the problem {source}, expected digits")
    hidden = tuple(as_count(WHO, "a size in hidden", size) for size in settings.hidden)
    return digits_problem(hidden), source, hidden


def _target_of(settings: Settings, problem: Problem) -> float | None:
    target = problem.target if settings.target is None else settings.target
    if target is not None and (number_of(target) is None or not np.isfinite(target)):
        raise ValueError(f"{WHO}: target is {target!r}, expected a number")
    return target


def _budget_of(settings: Settings, problem: Problem) -> tuple[int, int]:
    """Epochs and batch size."""
    epochs = problem.epochs if settings.epochs is None else settings.epochs
    batch_size = problem.batch_size if settings.batch_size is None else settings.batch_size
    epochs, batch_size = as_count(WHO, "epochs", epochs), as_count(WHO, "batch_size", batch_size)
    train = problem.data().train
    if train is not None and batch_size > (rows := rows_of(WHO, train)):
        raise ValueError(f"{WHO}: batch_size {batch_size} exceeds the {rows} training rows")
    return epochs, batch_size


def _axes_of(
    settings: Settings, rules: Sequence[Rule], problem: Problem
) -> tuple[dict[str, tuple[Axis, ...]], How]:
    """The axes of each rule, the learning rate first unless it is tuned by name."""
    given = [_owned(part, rules) for text in settings.tune for part in text.split()]
    ranges = any(not axis.values for _, axis in given)
    how = settings.how or ("sobol" if ranges else "grid")
    rates = problem.rates
    default = Axis("learning_rate", values=tuple(rates))
    if how == "sobol" and len(rates) > 1:
        default = Axis("learning_rate", min(rates), max(rates), "log")
    axes: dict[str, tuple[Axis, ...]] = {}
    for rule in rules:
        own = [axis for owner, axis in given if owner in ("", rule.name)]
        check_names(own)
        if not rule.takes_any:
            _check_taken(own, rule, rules)
        if all(axis.name != "learning_rate" for axis in own):
            own.insert(0, default)
        axes[rule.name] = tuple(own)
    return axes, how


def _owned(text: str, rules: Sequence[Rule]) -> tuple[str, Axis]:
    """``adam.b2=0.9,0.99`` -> "adam", axis; without a rule's name "", axis."""
    owner, dot, _ = text.partition("=")[0].rpartition(".")
    names = [rule.name for rule in rules]
    if dot and owner not in names:
        raise ValueError(
            f"{WHO}: --tune {text}: {owner!r} is no rule of this comparison, expected one of:"
            f" {', '.join(names)}"
        )
    return owner, parse_axis(text[len(owner) + len(dot) :])


def _check_taken(axes: Sequence[Axis], rule: Rule, rules: Sequence[Rule]) -> None:
    """ValueError if the rule does not take a tuned name; it says so if another rule does."""
    try:
        check_taken(axes, rule.name, rule.takes)
    except ValueError as error:
        names = [axis.name for axis in axes if axis.name not in (*RESERVED, *rule.takes)]
        others = [r.name for r in rules if names[0] in r.takes]
        if not others:
            raise
        raise ValueError(
            f"{error}; {others[0]}.{names[0]}=... tunes it for {others[0]} only"
        ) from None


def _listed(axes: Mapping[str, Sequence[Axis]], rules: Sequence[Rule]) -> list[str]:
    """The axes as they are given to ``--tune``."""
    first = axes[rules[0].name]
    shared = [axis for axis in first if all(axis in axes[rule.name] for rule in rules)]
    own = [
        f"{rule.name}.{axis}" for rule in rules for axis in axes[rule.name] if axis not in shared
    ]
    return [*map(str, shared), *own]


def _points_of(
    axes: Mapping[str, Sequence[Axis]], rules: Sequence[Rule], how: How, trials: int | None
) -> dict[str, list[Point]]:
    """The same number of points for each rule."""
    if how == "sobol" and trials is None:
        trials = SOBOL_TRIALS
    try:
        made = {rule.name: points(axes[rule.name], trials, how) for rule in rules}
    except (ValueError, TypeError) as error:
        raise type(error)(f"{WHO}: {error}".replace("points: ", "")) from None
    first, *others = made
    for name in others:
        if len(made[name]) != len(made[first]):
            raise ValueError(
                f"{WHO}: a grid of {first} has {len(made[first])} points and one of {name}"
                f" {len(made[name])}, expected the same number of trials for every rule, as"
                " --how sobol gives"
            )
    return made
