"""The rules that ``fnn compare`` knows, their Optax twins, and a rule of one's own from a file.

RULES                                   {name: Rule}
rule_of("adam"), rule_of("my_rule.py"), rule_of("package.module:name") -> Rule
"""

import difflib
import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import optax
from jax.typing import ArrayLike

from fnn import optim
from fnn.compare._problem import WHO, module_from, said_by
from fnn.compare._tuning import RESERVED, Axis
from fnn.optim import Optimizer, Rate, optax_wrappers

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


# --- rules that are an option of another, or a chain --------------------------------------------


def amsgrad(
    learning_rate: Rate, b1: ArrayLike = 0.9, b2: ArrayLike = 0.999, eps: ArrayLike = 1e-8
) -> Optimizer:
    """Reddi et al. 2018: Adam that divides by the largest nu_hat so far.

    p <- p - rate mu_hat / (sqrt(nu_max) + eps), nu_max <- max(nu_max, nu_hat); mu_hat and nu_hat
    are Adam's. ``adam(amsgrad="corrected")``.
    """
    return optim.adam(learning_rate, b1, b2, eps, amsgrad="corrected")


def cautious_adamw(
    learning_rate: Rate,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 1e-4,
    min_mean: ArrayLike = 1e-3,
) -> Optimizer:
    """Liang et al. 2024: AdamW that takes only the entries of a step that go against the gradient.

    u is Adam's step; u <- u k / max(mean(k), min_mean), k = 1 where u g < 0, else 0;
    p <- p + u - rate weight_decay p. ``chain(cautious(adam(rate)), decay_weights(rate, 1e-4))``.
    """
    inner = optim.cautious(optim.adam(learning_rate, b1, b2, eps), min_mean)
    return optim.chain(inner, optim.decay_weights(learning_rate, weight_decay))


def muon(
    learning_rate: Rate,
    decay: ArrayLike = 0.95,
    weight_decay: ArrayLike = 0.0,
    eps: ArrayLike = 0.0,
) -> Optimizer:
    """Jordan et al. 2024: momentum whose singular values are made about 1; Adam for the rest.

    For a matrix p [in, out]: mu <- decay mu + (1 - decay) g; u = decay mu + (1 - decay) g;
    p <- p - rate (sqrt(max(1, out / in)) orthogonalize(u) + weight_decay p). What is no matrix
    moves by Adam at the same rate.
    """
    others = optim.adam(learning_rate)
    return optim.muon(learning_rate, decay, others=others, weight_decay=weight_decay, eps=eps)


def _muon_by_optax(
    learning_rate: optax.ScalarOrSchedule,
    decay: ArrayLike = 0.95,
    weight_decay: ArrayLike = 0.0,
    eps: ArrayLike = 0.0,
) -> Optimizer:
    others = optax.adam(learning_rate)
    decayed: Any = weight_decay
    return optax_wrappers.muon(learning_rate, decay, others=others, weight_decay=decayed, eps=eps)


def _prodigy_by_optax(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    d0: ArrayLike = 1e-6,
    d_coef: ArrayLike = 1.0,
) -> Optimizer:
    # Without weight_decay: Optax decays everything, fnn leaves biases alone.
    return optax_wrappers.prodigy(learning_rate, b1, b2, eps, d0=d0, d_coef=d_coef)


def _amsgrad_by_optax(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
) -> Optimizer:
    return optax.amsgrad(learning_rate, b1, b2, eps)


# --- all of them --------------------------------------------------------------------------------

_WITHOUT_DECAY = {"weight_decay": 0.0}
_CONTAINS: dict[str, dict[str, dict[str, float]]] = {
    "momentum": {"sgd": {"decay": 0.0}},
    "nesterov": {"sgd": {"decay": 0.0}},
    # With an eps as large as this, the square root hardly counts (Choi et al. 2019).
    "adam": {"momentum": {"eps": 1.0}},
    "adamw": {"adam": _WITHOUT_DECAY},
    "nadamw": {"nadam": _WITHOUT_DECAY},
    "ademamix": {"adam": {"alpha": 0.0}, "adamw": {"alpha": 0.0, "weight_decay": 1e-4}},
}
_ADAMS = ("adam", "adamw", "nadam", "nadamw")
_TWINS: dict[str, tuple[Make, str]] = {
    "momentum": (optax_wrappers.momentum, "optax.sgd"),
    "nesterov": (optax_wrappers.nesterov, "optax.sgd"),
    "amsgrad": (_amsgrad_by_optax, "optax.amsgrad"),
    "muon": (_muon_by_optax, "optax.contrib.muon"),
    "prodigy": (_prodigy_by_optax, "optax.contrib.prodigy"),
    "ademamix": (optax_wrappers.ademamix, "optax.contrib.ademamix"),
    "schedule_free_sgd": (optax_wrappers.schedule_free_sgd, "optax.contrib.schedule_free_sgd"),
    "schedule_free_adamw": (
        optax_wrappers.schedule_free_adamw,
        "optax.contrib.schedule_free_adamw",
    ),
    **{
        name: (getattr(optax_wrappers, name), f"optax.{name}")
        for name in (*("sgd", "adagrad", "rmsprop"), *_ADAMS, "lion", "adafactor")
    },
}


def _known(name: str, make: Make) -> Rule:
    twin, twin_name = _TWINS.get(name, (None, None))
    # Optax's Adafactor computes its decay, 1 - t^-0.8, in float32 whatever the parameters are.
    same = 1e-6 if name == "adafactor" else SAME_RULE
    return Rule(name, make, "fnn", twin, twin_name, same, _CONTAINS.get(name, {}))


RULES = {
    name: _known(name, make)
    for name, make in {
        "sgd": optim.sgd,
        "momentum": optim.momentum,
        "nesterov": optim.nesterov,
        "adagrad": optim.adagrad,
        "rmsprop": optim.rmsprop,
        "adam": optim.adam,
        "amsgrad": amsgrad,
        "adamw": optim.adamw,
        "nadam": optim.nadam,
        "nadamw": optim.nadamw,
        "cautious_adamw": cautious_adamw,
        "ademamix": optim.ademamix,
        "lion": optim.lion,
        "adafactor": optim.adafactor,
        "muon": muon,
        "soap": optim.soap,
        "prodigy": optim.prodigy,
        "schedule_free_sgd": optim.schedule_free_sgd,
        "schedule_free_adamw": optim.schedule_free_adamw,
    }.items()
}


def rule_of(which: str | Make | Rule) -> Rule:
    """The rule of that name, of a file (``my_rule.py``, ``my_rule.py:name``) or of ``module:name``.

    A function ``(learning_rate, **hyperparameters) -> optimizer`` is taken as it is. ValueError,
    one sentence, if there is no such rule, or if it cannot be called with a learning rate.
    """
    if isinstance(which, Rule):
        return which
    if callable(which):
        return _own(which, _home_of(which))
    if which in RULES:
        return RULES[which]
    where, colon, name = which.partition(":")
    if where.endswith(".py"):
        return _own(_function_in(Path(where), name), where)
    if colon:
        return _own(_function_of(where, name), where)
    close = difflib.get_close_matches(which, RULES, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(
        f"{WHO}: unknown rule {which!r}, expected a Python file or some of:"
        f" {', '.join(RULES)}{hint}"
    )


def rules_of(which: Sequence[str | Make | Rule] | Mapping[str, Make]) -> tuple[Rule, ...]:
    """The rules, at least one, each name once; a mapping gives functions names of their own."""
    if not which:
        raise ValueError(f"{WHO}: rules is empty, expected some of: {', '.join(RULES)}")
    if isinstance(which, Mapping):
        for name in which:  # each rule has a folder of this name
            if name in ("", ".", "..") or set(name) & set("/\\\0"):
                raise ValueError(
                    f"{WHO}: rules has the name {name!r}, expected one without slashes"
                )
        return tuple(Rule(name, make, by="python") for name, make in which.items())
    rules = tuple(map(rule_of, which))
    names = [rule.name for rule in rules]
    if len(set(names)) < len(names):
        raise ValueError(f"{WHO}: a rule is named twice: {', '.join(names)}")
    return rules


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
    missing = [n for n, p in inspect.signature(rule.make).parameters.items() if _needed(p)]
    for name in missing[1:]:
        if name not in own:
            raise ValueError(
                f"{WHO}: {rule.name} takes {name}, which has no default; expected"
                f" --tune {name}=value, or a default"
            )

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


def _needed(parameter: inspect.Parameter) -> bool:
    several = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    return parameter.default is parameter.empty and not several


# --- one's own ----------------------------------------------------------------------------------


def _own(make: Any, where: str) -> Rule:
    name = getattr(make, "__name__", type(make).__name__)
    for known in RULES.values():
        if make is known.make:
            return known
    if name in RULES or not name.isidentifier():
        taken = "a name that fnn's own rule has" if name in RULES else "no name"
        raise ValueError(f"{WHO}: the rule {name} of {where} has {taken}, expected another one")
    if "learning_rate" not in _first(make):
        raise ValueError(
            f"{WHO}: {name} of {where} takes {_first(make) or 'nothing'} first, expected a function"
            " (learning_rate, **hyperparameters) -> optimizer"
        )
    return Rule(name, make, by=where)


def _home_of(make: Any) -> str:
    """Where the command line finds a function: its module; of a program that is run, the file."""
    module = getattr(make, "__module__", None) or "python"
    if module != "__main__":
        return module
    try:
        return os.path.relpath(inspect.getsourcefile(make) or module)
    except TypeError:  # typed into an interpreter, or an object
        return module


def _first(make: Any) -> str:
    """The name of a function's first parameter; "" if it has none, or is no function."""
    try:
        return next(iter(inspect.signature(make).parameters), "")
    except (TypeError, ValueError):
        return ""


def _function_in(path: Path, name: str) -> Any:
    module = module_from(path)
    if name:
        return _attribute(module, str(path), name)
    own = {
        name: value
        for name, value in vars(module).items()
        if callable(value)
        and getattr(value, "__module__", "") == module.__name__
        and not name.startswith("_")
        and _first(value) == "learning_rate"
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


def _function_of(where: str, name: str) -> Any:
    try:
        module = importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{WHO}: {where} does not import: {said_by(error)}") from error
    return _attribute(module, where, name)


def _attribute(module: Any, where: str, name: str) -> Any:
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{WHO}: {where} does not define {name!r}{hint}")
    return getattr(module, name)
