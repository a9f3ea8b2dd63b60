"""Whose Adagrad is this? The arguments under which each rule is a paper's or a library's.

``fnn.rmsprop(0.01, **fnn.dialects.torch["rmsprop"])`` is PyTorch's RMSprop as it comes. The
learning rate is given apart, since some libraries have a default for it and some have none. Each
row is tested against the library, or against what it computed; `table` writes it for people.

Checked: Optax 0.2.8, PyTorch 2.13.0, Keras 3.15.1, in float64.
"""

from collections.abc import Mapping
from typing import Any

Dialect = Mapping[str, Mapping[str, Any]]

paper: Dialect = {
    "sgd": {},
    "momentum": {"decay": 0.9, "rate_inside": True},
    "nesterov": {"decay": 0.9, "nesterov": True, "rate_inside": True},
    "adagrad": {"initial_accumulator": 0.0, "eps": 1e-8, "eps_inside": False},
    "rmsprop": {"decay": 0.9, "eps": 0.0},
    "rmsprop_centered": {
        "decay": 0.95,
        "eps": 1e-4,
        "centered": True,
        "momentum": 0.9,
    },
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "amsgrad": {"b1": 0.9, "b2": 0.999, "eps": 0.0, "amsgrad": "raw", "correct": False},
}

optax: Dialect = {
    "sgd": {},
    "momentum": {"decay": 0.9},
    "nesterov": {"decay": 0.9, "nesterov": True},
    "adagrad": {"initial_accumulator": 0.1, "eps": 1e-7},
    "rmsprop": {"decay": 0.9, "eps": 1e-8},
    "rmsprop_centered": {"decay": 0.9, "eps": 1e-8, "centered": True},
    "rmsprop_momentum": {"decay": 0.9, "eps": 1e-8, "momentum": 0.9},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "amsgrad": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "amsgrad": "corrected"},
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-4, "mask": True},
    "nadam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "lion": {"b1": 0.9, "b2": 0.99, "weight_decay": 1e-3, "mask": True},
    "adafactor": {"decay": 0.8, "eps": 1e-30, "clip": 1.0},
}

torch: Dialect = {
    "sgd": {},
    "momentum": {"decay": 0.9, "dampen_first": False},
    "nesterov": {"decay": 0.9, "nesterov": True},
    "adagrad": {"initial_accumulator": 0.0, "eps": 1e-10, "eps_inside": False},
    "rmsprop": {"decay": 0.99, "eps": 1e-8, "eps_inside": False},
    "rmsprop_centered": {"decay": 0.99, "eps": 1e-8, "eps_inside": False, "centered": True},
    "rmsprop_momentum": {
        "decay": 0.99,
        "eps": 1e-8,
        "eps_inside": False,
        "momentum": 0.9,
        "rate_inside": False,
    },
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "amsgrad": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "amsgrad": "raw"},
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2, "mask": True},
    "nadam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "momentum_decay": 4e-3},
    "muon": {"decay": 0.95, "weight_decay": 0.1},
}

keras: Dialect = {
    "sgd": {},
    "momentum": {"decay": 0.9, "rate_inside": True},
    "nesterov": {"decay": 0.9, "nesterov": True, "rate_inside": True},
    "adagrad": {"initial_accumulator": 0.1, "eps": 1e-7},
    "rmsprop": {"decay": 0.9, "eps": 1e-7},
    "rmsprop_centered": {"decay": 0.9, "eps": 1e-7, "centered": True},
    "rmsprop_momentum": {"decay": 0.9, "eps": 1e-7, "momentum": 0.9},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-7, "eps_hat": True},
    "amsgrad": {"b1": 0.9, "b2": 0.999, "eps": 1e-7, "eps_hat": True, "amsgrad": "raw"},
    "adamw": {
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-7,
        "eps_hat": True,
        "weight_decay": 4e-3,
        "mask": True,
    },
    "nadam": {"b1": 0.9, "b2": 0.999, "eps": 1e-7, "momentum_decay": 1.0},
    "lion": {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "mask": True},
}

LIBRARIES = {"paper": paper, "optax": optax, "torch": torch, "keras": keras}

# A row of the tables above is a way to call this function.
FUNCTIONS = {
    "nesterov": "momentum",
    "rmsprop_centered": "rmsprop",
    "rmsprop_momentum": "rmsprop",
    "amsgrad": "adam",
}


def table() -> str:
    """The dialects as a Markdown table: one row a rule, the arguments of ``fnn.<function>``."""
    rules = list(dict.fromkeys(rule for dialect in LIBRARIES.values() for rule in dialect))
    lines = [f"| rule | {' | '.join(LIBRARIES)} |", "|---" * (len(LIBRARIES) + 1) + "|"]
    for rule in rules:
        cells = [_cell(dialect[rule]) if rule in dialect else "" for dialect in LIBRARIES.values()]
        name = FUNCTIONS.get(rule, rule)
        title = f"`{rule}`" if name == rule else f"`{rule}`, by `{name}`"
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(arguments: Mapping[str, Any]) -> str:
    return "<br>".join(f"`{key}={value!r}`" for key, value in arguments.items()) or "as it is"
