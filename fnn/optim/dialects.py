"""Whose Adagrad is this? The arguments that make each rule a paper's or a library's.

``fnn.rmsprop(0.01, **fnn.dialects.torch["rmsprop"])`` is PyTorch's RMSprop with its defaults. The
learning rate is a separate argument, since not every library has a default for it. Each row is
tested against the library, or against numbers that the library computed. `table` writes the rows
as Markdown.

Checked: Optax 0.2.8, PyTorch 2.13.0, Keras 3.15.1, in float64. `authors` is the code that a rule
was published with: mlcommons/algorithmic-efficiency (NAdamW), KellerJordan/Muon and
MoonshotAI/Moonlight, facebookresearch/schedule_free 1.4.1, apple/ml-ademamix (PyTorch),
kyleliang919/C-Optim (C-AdamW), konstmish/prodigy 1.1.2, nikhilvyas/SOAP.
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
    "adadelta": {"decay": 0.95, "eps": 1e-6},
    "adamax": {"b1": 0.9, "b2": 0.999, "eps": 0.0},
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
    "nadamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-4, "mask": True},
    "adadelta": {"decay": 0.9, "eps": 1e-6},
    "adamax": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "radam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "threshold": 5.0},
    "adabelief": {"b1": 0.9, "b2": 0.999, "eps": 1e-16, "eps_root": 1e-16},
    "lars": {"weight_decay": 0.0, "mask": True, "decay": 0.9, "trust": 1e-3, "eps": 0.0},
    "lamb": {"b1": 0.9, "b2": 0.999, "eps": 1e-6, "weight_decay": 0.0, "mask": True},
    "lion": {"b1": 0.9, "b2": 0.99, "weight_decay": 1e-3, "mask": True},
    "adafactor": {"decay": 0.8, "eps": 1e-30, "clip": 1.0},
    "muon": {"decay": 0.95, "correct": True, "eps": 1e-8, "weight_decay": 0.0},
    "schedule_free_sgd": {"b1": 0.9, "weight_decay": 0.0, "mask": True},
    "schedule_free_adamw": {
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "mask": True,
    },
    "ademamix": {
        "b1": 0.9,
        "b2": 0.999,
        "b3": 0.9999,
        "alpha": 5.0,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "mask": True,
    },
    "prodigy": {
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "d0": 1e-6,
        "weight_decay": 0.0,
        "mask": True,
    },
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
    "nadamw": {
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "mask": True,
        "momentum_decay": 4e-3,
    },
    "adadelta": {"decay": 0.9, "eps": 1e-6},
    "adamax": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "radam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_hat": True},
    "rprop": {"shrink": 0.5, "grow": 1.2, "smallest": 1e-6, "largest": 50.0},
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
    "adadelta": {"decay": 0.95, "eps": 1e-7},
    "adamax": {"b1": 0.9, "b2": 0.999, "eps": 1e-7, "eps_inside": False},
    "lamb": {"b1": 0.9, "b2": 0.999, "eps": 1e-7},
    "lion": {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "mask": True},
    "muon": {"decay": 0.95, "accumulate": True, "eps": 1e-7, "scale": 0.2, "weight_decay": 4e-3},
}

authors: Dialect = {
    "nadamw": {
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "mask": True,
        "algoperf": True,
    },
    "muon": {"decay": 0.95, "eps": 1e-7, "weight_decay": 0.0},
    "muon_moonlight": {
        "decay": 0.95,
        "accumulate": True,
        "eps": 1e-7,
        "scale": 0.2,
        "weight_decay": 0.1,
    },
    "schedule_free_sgd": {"b1": 0.9, "weight_decay": 0.0, "mask": True},
    "schedule_free_adamw": {
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "mask": True,
    },
    "ademamix": {
        "b1": 0.9,
        "b2": 0.999,
        "b3": 0.9999,
        "alpha": 2.0,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "mask": True,
    },
    "cautious": {"min_mean": 1e-3},
    "prodigy": {
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "d0": 1e-6,
        "weight_decay": 0.0,
        "mask": True,
        "correct": False,
    },
    "soap": {
        "b1": 0.95,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.01,
        "mask": True,
        "precondition_frequency": 10,
    },
}

LIBRARIES = {"paper": paper, "optax": optax, "torch": torch, "keras": keras, "authors": authors}

# Rows whose name is not the name of the function that they call.
FUNCTIONS = {
    "nesterov": "momentum",
    "rmsprop_centered": "rmsprop",
    "rmsprop_momentum": "rmsprop",
    "amsgrad": "adam",
    "muon_moonlight": "muon",
}


def table() -> str:
    """The dialects as a Markdown table: one row a rule, with its arguments in ``fnn.optim``."""
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
