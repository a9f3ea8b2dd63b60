"""What a rule is, the checks that it can be run, and a rule of one's own from a file."""

import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from fnn import optim
from fnn.compare._problem import module_from
from fnn.compare._tuning import RESERVED, Axis
from fnn.compare._words import WHO, hint, said_by
from fnn.optim import Optimizer

SAME_RULE = 1e-10
Make = Callable[..., Optimizer]  # make(learning_rate, **hyperparameters)


@dataclass(frozen=True)
class Rule:
    """An update rule: ``make(learning_rate, **hyperparameters) -> optimizer``.

    - `by`: "fnn", or where one's own rule comes from.
    - `twin`: the same rule by Optax, with the same arguments; `twin_name` is what Optax calls it.
    - `same_below`: how far the updates of the twins may be apart in float64, relative to their
      size. Right rules agree to 1e-14, wrong ones differ by 1e-6 or more.
    - `contains`: {rule: the values of hyperparameters that make this rule that one}.
    """

    name: str
    make: Make
    by: str = "fnn"
    twin: Make | None = None
    twin_name: str | None = None
    same_below: float = SAME_RULE
    contains: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @cached_property
    def takes(self) -> tuple[str, ...]:
        """The hyperparameters that can be tuned: numbers that the program computes with."""
        return _numbers_of(self.make)

    @property
    def takes_any(self) -> bool:
        """Whether it has a ``**hyperparameters`` of its own: it may take any name."""
        kinds = {p.kind for p in inspect.signature(self.make).parameters.values()}
        return inspect.Parameter.VAR_KEYWORD in kinds

    def twin_for(self, names: Sequence[str]) -> Make | None:
        """The twin, if it takes the hyperparameters of these names."""
        own = [name for name in names if name not in RESERVED]
        return self.twin if self.twin and set(own) <= {*_numbers_of(self.twin)} else None

    @property
    def formula(self) -> str:
        """What the docstring says first: the definition and where it is from."""
        parts = (inspect.getdoc(self.make) or "").split("\n\n")
        return "\n\n".join([parts[0], *(p for p in parts[1:2] if not p.startswith("- "))])


def _numbers_of(make: Make) -> tuple[str, ...]:
    """Parameters of a rule that are numbers, without learning_rate.

    A default that is a float says so, or an annotation; ``n: int = 5`` shapes the program.
    """

    def is_number(parameter: inspect.Parameter) -> bool:
        default, said = parameter.default, parameter.annotation
        said = said.__name__ if isinstance(said, type) else str(said)
        if isinstance(default, bool) or said in ("int", "bool"):
            return False
        if isinstance(default, (int, float)):
            return True
        named = any(word in said for word in ("float", "ArrayLike", "Rate", "Scalar"))
        return default in (None, inspect.Parameter.empty) and named and "DType" not in said

    parameters = list(inspect.signature(make).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return tuple(p.name for p in named if is_number(p) or p.default is p.empty)


def contained(rule: Rule, axes: Sequence[Axis]) -> list[str]:
    """The rules that are points of this rule's search: every value that it needs is in an axis."""
    by_name = {axis.name: axis for axis in axes}

    def has(name: str, value: float) -> bool:
        axis = by_name.get(name)
        if axis is None:
            return False
        return value in axis.values if axis.values else axis.low <= value <= axis.high

    def reached(values: Mapping[str, float]) -> bool:
        return all(has(name, value) for name, value in values.items())

    return [other for other, values in rule.contains.items() if reached(values)]


def check_rule(rule: Rule, names: Sequence[str], params: Any) -> None:
    """Trace one update of `params`, with the tuned `names`: ValueError, one sentence, if it fails.

    Nothing is computed. The rules of fnn are known to work on arrays of floating point.
    """
    own = [name for name in names if name not in RESERVED]
    _check_all_given(rule, own)

    def update(params: Any, rate: Any, hyper: dict[str, Any]) -> Any:
        optimizer = rule.make(rate, **hyper)
        optim.check_optimizer(f"{WHO}: {rule.name}", optimizer)
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        return optim.apply_updates(params, updates)

    try:
        moved = jax.eval_shape(update, params, 1e-3, dict.fromkeys(own, 0.5))
    except (Exception, SystemExit) as error:
        raise ValueError(f"{WHO}: {rule.name} ({rule.by}) fails: {said_by(error)}") from error
    shapes = [jax.tree.map(lambda a: (a.shape, a.dtype), tree) for tree in (params, moved)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{WHO}: {rule.name} ({rule.by}) returns updates of other shapes or dtypes than params"
        )


def _check_all_given(rule: Rule, names: Sequence[str]) -> None:
    """ValueError if a parameter without a default, other than the rate, is not among the names."""
    for parameter in list(inspect.signature(rule.make).parameters.values())[1:]:
        several = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        needed = parameter.default is parameter.empty and not several
        if needed and parameter.name not in names:
            raise ValueError(
                f"{WHO}: {rule.name} takes {parameter.name}, which has no default; expected"
                f" --tune {parameter.name}=value, or a default"
            )


# --- one's own ----------------------------------------------------------------------------------


def home_of(make: Any) -> str:
    """Where the command line finds a function: its module; of a program that is run, the file."""
    module = getattr(make, "__module__", None) or "python"
    if module != "__main__":
        return module
    try:
        return os.path.relpath(inspect.getsourcefile(make) or module)
    except TypeError:  # typed into an interpreter, or an object
        return module


def first_of(make: Any) -> str:
    """The name of a function's first parameter; "" if it has none, or is no function."""
    try:
        return next(iter(inspect.signature(make).parameters), "")
    except (TypeError, ValueError):
        return ""


def function_in(path: Path, name: str) -> Any:
    """The rule of this name in a file; without a name the only one, or that named as the file."""
    module = module_from(path)
    if name:
        return _attribute(module, str(path), name)
    own = {
        name: value
        for name, value in vars(module).items()
        if callable(value)
        and getattr(value, "__module__", "") == module.__name__
        and not name.startswith("_")
        and first_of(value) == "learning_rate"
    }
    if path.stem in own or len(own) == 1:
        return own.get(path.stem) or next(iter(own.values()))
    if own:
        raise ValueError(
            f"{WHO}: {path} defines several rules; choose one, as in {path}:{next(iter(own))}"
            f" ({', '.join(own)})"
        )
    raise ValueError(
        f"{WHO}: {path} does not define a rule, a function (learning_rate, **hyperparameters)"
        " -> optimizer"
    )


def function_of(where: str, name: str) -> Any:
    """The rule of this name in a module."""
    try:
        module = importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{WHO}: {where} does not import: {said_by(error)}") from error
    return _attribute(module, where, name)


def _attribute(module: Any, where: str, name: str) -> Any:
    if not hasattr(module, name):
        raise ValueError(f"{WHO}: {where} does not define {name!r}{hint(name, vars(module))}")
    return getattr(module, name)
