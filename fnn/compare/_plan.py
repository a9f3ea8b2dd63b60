"""The settings of a comparison, checked, and the points that every rule gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from fnn._base import as_count, number_of
from fnn.compare._member import STEPS, Order, steps_of
from fnn.compare._problem import WHO, Parts, Problem, fingerprint
from fnn.compare._problems import digits_problem, problem_of
from fnn.compare._rules import Make, Rule, check_rule, rules_of
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

# As many as a first comparison has time for: 90 s on two cores, compiling included.
DEFAULT = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
DEFAULT += ("schedule_free_adamw",)
SOBOL_TRIALS = 16


@dataclass(frozen=True)
class Settings:
    """The settings of a comparison. Settings that cannot be run raise a one-line error.

    - `rules`: names of rules, files (``my_rule.py``), ``module:name``, or functions
      ``(learning_rate, **hyperparameters) -> optimizer``; or {name: function}.
    - `problem`: a name, a file, or a `Problem`.
    - `tune`: axes, as ``learning_rate=0.001..1:log`` or ``b2=0.9,0.99,0.999``; with a rule's name
      before it, ``adam.b2=0.9,0.99``, for that rule only. The learning rate is always tuned, by
      default over the rates of the problem.
    - `how`: "grid" or "sobol"; by default "sobol" if an axis is a range. `trials`: how many points
      each rule gets; by default all points of a grid, and 16 of Sobol's.
    - `trial_seeds`: runs at each point; `seeds`: fresh runs at the chosen point.
    - `order` of the batches: "new" in each epoch, or the "same".
    - `epochs`, `batch_size`, `target`: by default the problem's.
    - `hidden`: sizes of the hidden layers of the problem digits.
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
        return {
            "problem": self.problem.name,
            "tune": list(self.tune),
            "how": self.how,
            "trials": self.trials,
            "trial_seeds": self.trial_seeds,
            "seeds": self.seeds,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "order": self.order,
            "fingerprint": self.fingerprint,
            "jax": jax.__version__,
            "device": f"{device.platform} {device.device_kind}",
        }


def plan_of(settings: Settings) -> Plan:
    """Check all settings; ValueError or TypeError, one sentence."""
    rules = rules_of(settings.rules)
    for name in ("trial_seeds", "seeds"):
        as_count(WHO, name, getattr(settings, name))
    problem = settings.problem
    source = problem.name if isinstance(problem, Problem) else problem
    problem = problem if isinstance(problem, Problem) else problem_of(problem)
    hidden = None
    if settings.hidden is not None:
        if source != "digits":
            raise ValueError(f"{WHO}: hidden sizes came with the problem {source}, expected digits")
        hidden = tuple(as_count(WHO, "a size in hidden", size) for size in settings.hidden)
        problem = digits_problem(hidden)
    if settings.order not in ("new", "same"):
        raise ValueError(f"{WHO}: order is {settings.order!r}, expected 'new' or 'same'")
    if settings.how not in ("grid", "sobol", None):
        raise ValueError(f"{WHO}: how is {settings.how!r}, expected 'grid' or 'sobol'")
    target = problem.target if settings.target is None else settings.target
    if target is not None and (number_of(target) is None or not np.isfinite(target)):
        raise ValueError(f"{WHO}: target is {target!r}, expected a number")
    budget = [
        as_count(WHO, name, getattr(problem if given is None else settings, name))
        for name, given in (("epochs", settings.epochs), ("batch_size", settings.batch_size))
    ]
    epochs, batch_size = budget
    train = problem.data().train
    rows = STEPS if train is None else len(jax.tree.leaves(train)[0])
    if train is not None and batch_size > rows:
        raise ValueError(f"{WHO}: batch_size {batch_size} exceeds the {rows} training rows")
    texts = tuple(part for text in settings.tune for part in text.split())
    axes, how = _axes_of(texts, rules, problem, settings.how)
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


def _axes_of(
    texts: Sequence[str], rules: Sequence[Rule], problem: Problem, how: How | None
) -> tuple[dict[str, tuple[Axis, ...]], How]:
    """The axes of each rule, the learning rate first unless it is tuned by name."""
    names = {rule.name for rule in rules}
    given: list[tuple[str, Axis]] = []  # ("" for every rule, axis)
    for text in texts:
        owner, dot, _ = text.partition("=")[0].rpartition(".")
        if dot and owner not in names:
            raise ValueError(
                f"{WHO}: --tune {text}: {owner!r} is no rule of this comparison, expected one of:"
                f" {', '.join(rule.name for rule in rules)}"
            )
        given.append((owner, parse_axis(text[len(owner) + len(dot) :])))
    if how is None:
        how = "sobol" if any(not axis.values for _, axis in given) else "grid"
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
