"""The rules that ``fnn compare`` knows, and their Optax twins.

RULES                                   {name: Rule}
rule_of("adam"), rule_of("my_rule.py"), rule_of("package.module:name") -> Rule
rules_of(["adam", ...])                 several, each name once

`_rule.py` has what a rule is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optax
from jax.typing import ArrayLike

from fnn import optim
from fnn.compare._rule import SAME_RULE, Make, Rule, first_of, function_in, function_of, home_of
from fnn.compare._words import WHO, hint
from fnn.optim import Optimizer, Rate, optax_wrappers

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


def _row(
    make: Make,
    twin_name: str | None = None,
    twin: Make | None = None,
    same_below: float = SAME_RULE,
    contains: Mapping[str, Mapping[str, float]] | None = None,
) -> Rule:
    """A rule of fnn. The twin is by default the one of this name in `fnn.optax_wrappers`."""
    name = make.__name__
    if twin_name and twin is None:
        twin = getattr(optax_wrappers, name)
    return Rule(name, make, "fnn", twin, twin_name, same_below, contains or {})


_ROWS = (
    _row(optim.sgd, "optax.sgd"),
    _row(optim.momentum, "optax.sgd", contains={"sgd": {"decay": 0.0}}),
    _row(optim.nesterov, "optax.sgd", contains={"sgd": {"decay": 0.0}}),
    _row(optim.adagrad, "optax.adagrad"),
    _row(optim.rmsprop, "optax.rmsprop"),
    _row(optim.adadelta, "optax.adadelta"),
    _row(optim.rprop),  # Optax's, in 0.2.8, takes each step one update later
    # With an eps as large as this, the square root hardly counts (Choi et al. 2019).
    _row(optim.adam, "optax.adam", contains={"momentum": {"eps": 1.0}}),
    _row(amsgrad, "optax.amsgrad", _amsgrad_by_optax),
    _row(optim.adamax, "optax.adamax"),
    _row(optim.radam, "optax.radam"),
    _row(optim.adabelief, "optax.adabelief"),
    _row(optim.adamw, "optax.adamw", contains={"adam": {"weight_decay": 0.0}}),
    _row(optim.nadam, "optax.nadam"),
    _row(optim.nadamw, "optax.nadamw", contains={"nadam": {"weight_decay": 0.0}}),
    _row(cautious_adamw),
    _row(
        optim.ademamix,
        "optax.contrib.ademamix",
        contains={"adam": {"alpha": 0.0}, "adamw": {"alpha": 0.0, "weight_decay": 1e-4}},
    ),
    _row(optim.lion, "optax.lion"),
    # Optax's Adafactor computes its decay, 1 - t^-0.8, in float32 whatever the parameters are.
    _row(optim.adafactor, "optax.adafactor", same_below=1e-6),
    _row(optim.lamb, "optax.lamb"),
    _row(optim.lars, "optax.lars"),
    _row(muon, "optax.contrib.muon", _muon_by_optax),
    _row(optim.soap),
    _row(optim.prodigy, "optax.contrib.prodigy", _prodigy_by_optax),
    _row(optim.schedule_free_sgd, "optax.contrib.schedule_free_sgd"),
    _row(optim.schedule_free_adamw, "optax.contrib.schedule_free_adamw"),
)
RULES = {rule.name: rule for rule in _ROWS}


def rule_of(which: str | Make | Rule) -> Rule:
    """The rule of that name, of a file (``my_rule.py``, ``my_rule.py:name``) or of ``module:name``.

    A function ``(learning_rate, **hyperparameters) -> optimizer`` is taken as it is. ValueError,
    one sentence, if there is no such rule, or if it cannot be called with a learning rate.
    """
    if isinstance(which, Rule):
        return which
    if callable(which):
        return _own(which, home_of(which))
    if which in RULES:
        return RULES[which]
    where, colon, name = which.partition(":")
    if where.endswith(".py"):
        return _own(function_in(Path(where), name), where)
    if colon:
        return _own(function_of(where, name), where)
    raise ValueError(
        f"{WHO}: unknown rule {which!r}, expected a Python file or some of:"
        f" {', '.join(RULES)}{hint(which, RULES)}"
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


def _own(make: Any, where: str) -> Rule:
    name = getattr(make, "__name__", type(make).__name__)
    for known in RULES.values():
        if make is known.make:
            return known
    if name in RULES or not name.isidentifier():
        taken = "a name that fnn's own rule has" if name in RULES else "no name"
        raise ValueError(f"{WHO}: the rule {name} of {where} has {taken}, expected another one")
    first = first_of(make)
    if "learning_rate" not in first:
        raise ValueError(
            f"{WHO}: {name} of {where} takes {first or 'nothing'} first, expected a function"
            " (learning_rate, **hyperparameters) -> optimizer"
        )
    return Rule(name, make, by=where)
