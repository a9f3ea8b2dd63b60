"""The data set on which adaptive methods must fail and plain ones must not: Wilson et al. 2017.

Section 3.3 of "The marginal value of adaptive gradient methods in machine learning" builds a linear
regression of labels -1 and 1. Feature 1 is the label; features 2 and 3 are 1; the others belong to
one row each: one of them is 1 where the label is 1, five where it is -1. Claims, for the full
gradient from 0 and any rate that converges:

- gradient descent and its momentum forms end in the solution of least norm, which classifies every
  new row rightly;
- AdaGrad, RMSprop and Adam end in a multiple of sign(X^T y), which calls every new row 1: their
  accuracy is the share of the label 1.

Each run draws its own rows. Beyond the paper: Lion, AdaGrad as Optax and TensorFlow start it, and
what is left of the claims in batches of 10.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich import box
from rich.table import Table

from fnn._base import Data, Params
from fnn.compare._document import plain
from fnn.compare._member import train_member
from fnn.compare._pictures import png_of
from fnn.compare._problem import Parts, Problem, loss_as_scores
from fnn.compare._terminal import printed
from fnn.inspect.plots import COLOURS
from fnn.optim import Optimizer, adagrad, adam, lion, momentum, nesterov, rmsprop, sgd
from fnn.training import Run, sweep

ROWS, TEST, SHARE = 50, 1000, 0.7  # share of the label 1
EPOCHS, SEEDS = 3000, 10
BATCHES = {"full batch": ROWS, "batches of 10": 10}


class Rule(NamedTuple):
    """A rule, its rate, and what is claimed: "all right", "all called 1"."""

    name: str
    make: Callable[[Array], Optimizer]
    rate: float
    claim: str
    in_paper: bool = True


RIGHT, ONES = "all right", "all called 1"
RULES = (
    Rule("SGD", sgd, 0.2, RIGHT),
    Rule("Momentum", momentum, 0.02, RIGHT),
    Rule("Nesterov", nesterov, 0.02, RIGHT),
    Rule("AdaGrad", lambda rate: adagrad(rate, initial_accumulator=0.0), 0.1, ONES),
    Rule("RMSprop", rmsprop, 1e-3, ONES),
    Rule("Adam", adam, 1e-3, ONES),
    Rule("AdaGrad from 0.1", adagrad, 0.1, ONES, in_paper=False),
    Rule("Lion", lion, 1e-4, ONES, in_paper=False),
)
PIECES = len(BATCHES) * len(RULES)
AGREES = (
    "A cell agrees if every one of the ten runs classifies the new rows exactly as claimed, and its"
    " training loss is below 0.01."
)


def features(labels: Array) -> Array:
    """Labels -1 and 1, [rows] -> x [rows, 3 + 5 rows]."""
    rows = labels.shape[0]
    common = jnp.stack([labels, jnp.ones_like(labels), jnp.ones_like(labels)], axis=1)
    used = jnp.where(labels[:, None] > 0, jnp.arange(5) < 1, True).astype(labels.dtype)
    own = jnp.eye(rows, dtype=labels.dtype)[:, :, None] * used[:, None, :]
    return jnp.concatenate([common, own.reshape(rows, 5 * rows)], axis=1)


def _loss(params: Params, batch: Data, _: Array) -> Array:
    x, y = batch
    return 0.5 * (x @ params["w"] - y) ** 2


PROBLEM = Problem(
    name="wilson",
    data=lambda: Parts(None, None, None),
    init=lambda key: {"w": jnp.zeros(3 + 5 * ROWS)},
    loss=_loss,
    scores=loss_as_scores(_loss),
)


def labels_of(key: Array, rows: int) -> Array:
    """Labels -1 and 1; `SHARE` of them are 1, on average."""
    return jnp.where(jax.random.bernoulli(key, SHARE, (rows,)), 1.0, -1.0).astype(jnp.float32)


def one_run(rule: Rule, batch_size: int, epochs: int = EPOCHS) -> Run:
    """-> run(key, learning_rate) -> training loss, accuracy on new rows, their share of 1."""

    def run(key: Array, learning_rate: Array) -> dict[str, Array]:
        train_key, test_key, fit_key = jax.random.split(key, 3)
        y = labels_of(train_key, ROWS)
        x = features(y)
        ts, _ = train_member(
            PROBLEM,
            rule.make(learning_rate),
            fit_key,
            epochs=epochs,
            batch_size=batch_size,
            train=(x, y),
        )
        new = labels_of(test_key, TEST)
        w = ts.params["w"]
        answers = jnp.sign(w[0] * new + w[1] + w[2])  # no run has seen the other features
        return {
            "loss": jnp.mean(_loss(ts.params, (x, y), key)),
            "accuracy": jnp.mean(answers == new),
            "share": jnp.mean(new > 0),
        }

    return run


class Cell(NamedTuple):
    """One rule with batches of one size: arrays [seeds]."""

    rule: Rule
    batches: str
    found: Mapping[str, np.ndarray]

    @property
    def as_claimed(self) -> np.ndarray:
        """Bool [seeds]."""
        found = self.found
        claimed = 1.0 if self.rule.claim == RIGHT else found["share"]
        return (found["accuracy"] == claimed) & (found["loss"] < 0.01)


def run(tell: Callable[[str], None], epochs: int = EPOCHS) -> tuple[str, dict[str, Any], bytes]:
    """The whole table -> what is printed, every number, the picture."""
    keys, cells = jax.random.split(jax.random.key(0), SEEDS), []
    for batches, batch_size in BATCHES.items():
        for rule in RULES:
            tell(f"{rule.name}, {batches}: {SEEDS} runs")
            rates = {"learning_rate": np.full(SEEDS, rule.rate, np.float32)}
            found = sweep(one_run(rule, batch_size, epochs), keys, paired=rates)
            cells.append(Cell(rule, batches, jax.device_get(found)))
    return as_text(cells), as_numbers(cells), as_png(cells)


def as_text(cells: list[Cell]) -> str:
    """The table, and its result in sentences."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("\nrule", no_wrap=True)
    table.add_column("new rows,\nclaimed", no_wrap=True)
    for batches in BATCHES:
        table.add_column(f"{batches}\naccuracy", justify="right", no_wrap=True)
        table.add_column("\nas claimed", justify="right", no_wrap=True)
    for rule in RULES:
        row = [rule.name + ("" if rule.in_paper else " *"), rule.claim]
        for cell in cells:
            if cell.rule is rule:
                row += [
                    f"{100 * cell.found['accuracy'].mean():.1f} %",
                    f"{cell.as_claimed.sum()} of {len(cell.as_claimed)}",
                ]
        table.add_row(*row)
    share = np.mean(cells[0].found["share"])
    lines = [f"* not in the paper. {100 * share:.1f} % of the new rows have the label 1."]
    for batches in BATCHES:
        mine = [cell for cell in cells if cell.batches == batches and cell.rule.in_paper]
        agree = [cell.as_claimed.all() for cell in mine]
        lines.append(f"{batches.capitalize()}: {sum(agree)} of {len(agree)} claims hold.")
    return printed(AGREES, table, *lines)


def as_numbers(cells: list[Cell]) -> dict[str, Any]:
    """Every number, for JSON."""
    return plain({
        "agrees_if": AGREES,
        "cells": [
            {
                "rule": cell.rule.name,
                "in_paper": cell.rule.in_paper,
                "rate": cell.rule.rate,
                "claim": cell.rule.claim,
                "batches": cell.batches,
                "as_claimed": cell.as_claimed,
            }
            | {name: np.float64(values) for name, values in cell.found.items()}
            for cell in cells
        ],
    })  # fmt: skip


def as_png(cells: list[Cell]) -> bytes:
    """Accuracy on new rows of each run, by rule; both sizes of batches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained", dpi=110)
    axes = figure.subplots()
    for i, batches in enumerate(BATCHES):
        for place, rule in enumerate(RULES):
            (cell,) = (c for c in cells if c.rule is rule and c.batches == batches)
            x = place + 0.24 * (i - 0.5) + np.linspace(-0.08, 0.08, SEEDS)
            label = batches if place == 0 else None
            axes.plot(
                x, 100 * cell.found["accuracy"], "o", color=COLOURS[i], label=label, alpha=0.6
            )
    axes.axhline(100 * SHARE, color="0.6", linewidth=0.8, linestyle=":")
    axes.set(xticks=range(len(RULES)), xticklabels=[rule.name for rule in RULES], ylim=(50, 102))
    axes.set(ylabel="accuracy on new rows (%)", title="Ten runs of each rule")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left")
    return png_of(figure)
