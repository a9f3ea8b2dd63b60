"""DeepOBS's table of `quadratic_deep`: three rules, and what the order of batches does to them.

The protocol is DeepOBS's: 36 learning rates, log-spaced from 1e-5 to 100, one seed each; the rate
with the lowest final test loss again with ten seeds. The seeds here are fresh ones. Everything is
done twice: with one order of batches for the whole run, and with a new order in each epoch.

The published numbers are the last entries of "test_losses" in the logs that are in the repository
of DeepOBS (fsschneider/DeepOBS, baselines/quadratic_deep, February 2019): those of the ten seeds
that could be had.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich import box
from rich.table import Table

from fnn.compare._document import plain
from fnn.compare._intervals import Interval, two_level_interval
from fnn.compare._member import Order, score_rows, train_member
from fnn.compare._pictures import png_of
from fnn.compare._problems import PROBLEMS
from fnn.compare._statistics import holm
from fnn.compare._terminal import printed
from fnn.inspect.plots import COLOURS
from fnn.optim import Optimizer, adam, momentum, sgd
from fnn.training import Run, sweep

RATES = np.logspace(-5, 2, 36)
SEEDS = 10
PIECE = 2 * SEEDS  # members of one program
DASHES: dict[Order, str] = {"same": "-", "new": "--"}
ORDERS: dict[Order, str] = {
    "same": "one order for all epochs",
    "new": "a new order each epoch",
}


class Published(NamedTuple):
    """A cell: the best learning rate, and the final test loss of each seed."""

    rate: float
    losses: Mapping[int, float]


class Rule(NamedTuple):
    """A rule of the table."""

    name: str
    make: Callable[[Array], Optimizer]
    published: Published


RULES = (
    Rule("SGD", sgd, Published(
        0.015848931925, {46: 87.51817, 48: 87.16471, 50: 87.59066, 51: 87.49415}
    )),
    Rule("Momentum 0.99", lambda rate: momentum(rate, 0.99), Published(
        0.0025118864315, {44: 87.02500, 49: 87.07139, 50: 87.06754}
    )),
    Rule("Adam", adam, Published(
        0.039810717055, {44: 87.06753, 46: 87.12283, 47: 87.12172, 49: 87.12174}
    )),
)  # fmt: skip
PIECES = len(ORDERS) * len(RULES)
AGREES = (
    "A cell agrees if the published seeds and ours, at the published rate, may have the same mean:"
    " Welch's t-test, p > 0.05 after Holm's correction over the six cells."
)


class Cell(NamedTuple):
    """One rule with one order of batches."""

    order: Order
    rule: Rule
    by_rate: np.ndarray  # [36], final test loss of one seed
    at_published: np.ndarray  # [10], at the published rate
    at_best: np.ndarray  # [10], at the best of the 36 rates
    p: float  # Welch's; `cells` corrects it

    @property
    def best(self) -> float:
        """The rate with the lowest final test loss."""
        return float(RATES[np.nanargmin(self.by_rate)])

    @property
    def apart(self) -> Interval:
        """Ours minus published, at the published rate, and Welch's 95 % interval."""
        ours, theirs = self.at_published, list(self.rule.published.losses.values())
        low, high = _welch(ours, theirs).confidence_interval(0.95)
        return Interval(float(np.mean(ours) - np.mean(theirs)), float(low), float(high))

    @property
    def agrees(self) -> bool:
        """As `AGREES` says."""
        return self.p > 0.05


def final_loss(make: Callable[[Array], Optimizer], order: Order, epochs: int = 100) -> Run:
    """-> run(key, learning_rate) -> the mean loss of the test rows at the end."""
    problem = PROBLEMS["quadratic_deep"]

    def run(key: Array, learning_rate: Array) -> Array:
        ts, _ = train_member(
            problem, make(learning_rate), key, epochs=epochs, batch_size=128, order=order
        )
        return score_rows(problem, ts.params, problem.data().test)["loss"].mean()

    return run


def cell_of(order: Order, rule: Rule, run: Run) -> Cell:
    """The protocol: 36 rates, then ten seeds. Every piece is the same program."""
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))

    def losses(seeds: np.ndarray, rates: np.ndarray) -> np.ndarray:
        n = len(rates)
        padded = -(-n // PIECE) * PIECE
        seeds, rates = np.resize(seeds, padded), np.resize(rates, padded).astype(np.float32)
        pieces = [slice(i, i + PIECE) for i in range(0, padded, PIECE)]
        points = [(keys(jnp.asarray(seeds[p])), {"learning_rate": rates[p]}) for p in pieces]
        return np.concatenate([sweep(run, k, paired=p) for k, p in points])[:n].astype(np.float64)

    by_rate = losses(np.zeros(len(RATES), np.int32), RATES)
    by_rate = np.where(np.isfinite(by_rate), by_rate, np.nan)
    best, published = RATES[np.nanargmin(by_rate)], rule.published
    fresh = np.tile(np.arange(1, SEEDS + 1, dtype=np.int32), 2)
    ours = losses(fresh, np.repeat([published.rate, best], SEEDS))
    return Cell(order, rule, by_rate, ours[:SEEDS], ours[SEEDS:], _p(published, ours[:SEEDS]))


def _p(published: Published, ours: np.ndarray) -> float:
    return float(_welch(ours, list(published.losses.values())).pvalue)


def _welch(ours: Any, theirs: Any) -> Any:
    """Welch's t-test of the means of ours and theirs."""
    from scipy import stats  # slow to import

    return stats.ttest_ind(ours, theirs, equal_var=False)


def run(tell: Callable[[str], None], epochs: int = 100) -> tuple[str, dict[str, Any], bytes]:
    """The whole table -> what is printed, every number, the picture."""
    cells = []
    for order, said in ORDERS.items():
        for rule in RULES:
            tell(f"{rule.name}, {said}: {len(RATES)} rates, then {SEEDS} seeds")
            cells.append(cell_of(order, rule, final_loss(rule.make, order, epochs)))
    corrected = holm([cell.p for cell in cells])
    cells = [cell._replace(p=float(p)) for cell, p in zip(cells, corrected, strict=True)]
    return as_text(cells), as_numbers(cells), as_png(cells)


def as_text(cells: list[Cell]) -> str:
    """The table, and its result in sentences."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for column in ("\nrule", "batch\norder"):
        table.add_column(column, no_wrap=True)
    for column in ("rate in\nDeepOBS", "our\nbest", "loss in\nDeepOBS", "ours,\nsame rate"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("ours -\nDeepOBS", justify="right", no_wrap=True)
    table.add_column("\nagrees", no_wrap=True)
    table.add_column("ours,\nbest", justify="right", no_wrap=True)
    for cell in sorted(cells, key=lambda cell: [rule.name for rule in RULES].index(cell.rule.name)):
        published, apart = list(cell.rule.published.losses.values()), cell.apart
        table.add_row(
            cell.rule.name,
            cell.order,
            f"{cell.rule.published.rate:.2g}",
            f"{cell.best:.2g}",
            _interval(published),
            _interval(cell.at_published),
            f"{apart.mean:+.2f}±{apart.mean - apart.low:.2f}",
            "yes" if cell.agrees else "no",
            f"{np.mean(cell.at_best):.2f}",
        )
    about = "Final test loss, mean over seeds, and ours minus DeepOBS's; with 95 % intervals."
    return printed(about, AGREES, table, *findings(cells))


def _interval(losses: Any) -> str:
    found = two_level_interval(losses)
    return f"{found.mean:.2f}±{found.mean - found.low:.2f}"


def findings(cells: list[Cell]) -> list[str]:
    """The result in sentences; rules in the order of their losses, the lowest first."""

    def ranked(cells: list[Cell], losses: Callable[[Cell], Any]) -> str:
        return ", ".join(cell.rule.name for cell in sorted(cells, key=lambda c: np.mean(losses(c))))

    lines = []
    for order, said in ORDERS.items():
        mine = [cell for cell in cells if cell.order == order]
        agree = sum(cell.agrees for cell in mine)
        lines.append(
            f"With {said} {agree} of {len(mine)} cells agree."
            f" At DeepOBS's rates: {ranked(mine, lambda cell: cell.at_published)}."
            f" At our best rates: {ranked(mine, lambda cell: cell.at_best)}."
        )
    published = ranked(cells[: len(RULES)], lambda cell: list(cell.rule.published.losses.values()))
    return [f"The lowest loss first, DeepOBS: {published}.", *lines]


def as_numbers(cells: list[Cell]) -> dict[str, Any]:
    """Every number, for JSON; None where a run diverged."""
    return plain({
        "agrees_if": AGREES,
        "rates": RATES,
        "cells": [
            {
                "rule": cell.rule.name,
                "order": cell.order,
                "published_rate": cell.rule.published.rate,
                "published_by_seed": cell.rule.published.losses,
                "loss_by_rate": cell.by_rate,
                "best_rate": cell.best,
                "at_published_rate": cell.at_published,
                "at_best_rate": cell.at_best,
                "ours_minus_published": cell.apart._asdict(),
                "p_corrected": cell.p,
                "agrees": cell.agrees,
            }
            for cell in cells
        ],
    })  # fmt: skip


def as_png(cells: list[Cell]) -> bytes:
    """Left: each seed's final loss, published and with both orders. Right: loss by rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    for place, rule in enumerate(RULES):
        mine = {cell.order: cell for cell in cells if cell.rule.name == rule.name}
        published = np.array(list(rule.published.losses.values()))
        seeds = {"published": published} | {order: mine[order].at_published for order in ORDERS}
        for column, (who, losses) in enumerate(seeds.items()):
            _draw_seeds(left, place + 0.25 * (column - 1), losses, who, labelled=place == 0)
        for order in ORDERS:
            label = rule.name if order == "same" else None
            right.plot(RATES, mine[order].by_rate, DASHES[order], color=COLOURS[place], label=label)
        right.plot(rule.published.rate, published.mean(), "o", color=COLOURS[place])
    _finish(left, right)
    return png_of(figure)


def _draw_seeds(ax: Any, x: float, losses: np.ndarray, who: str, labelled: bool) -> None:
    """A point for each seed, and a line at their mean."""
    names = {"published": "DeepOBS's logs"} | {o: f"ours, {said}" for o, said in ORDERS.items()}
    colours = {"published": "0.35", "same": COLOURS[0], "new": COLOURS[1]}
    look: dict[str, Any] = {"color": colours[who]}
    spread, label = np.linspace(-0.06, 0.06, len(losses)), names[who] if labelled else None
    ax.plot(x + spread, losses, "o", markersize=4, alpha=0.6, label=label, **look)
    ax.plot([x - 0.09, x + 0.09], 2 * [losses.mean()], linewidth=2, **look)


def _finish(left: Any, right: Any) -> None:
    """Axes, legends, and the least loss that there is."""
    optimum = PROBLEMS["quadratic_deep"].optimum
    left.axhline(optimum, color="0.6", linewidth=0.8, linestyle=":")
    left.set(xticks=range(len(RULES)), xticklabels=[rule.name for rule in RULES])
    left.set(ylabel="final test loss", title="Seeds at DeepOBS's rates (line: their mean)")
    left.legend(frameon=False, loc="upper left")
    for order, said in ORDERS.items():
        right.plot([], [], DASHES[order], color="0.4", label=said)
    right.plot([], [], "o", color="0.4", label="DeepOBS")
    right.set(xscale="log", xlabel="learning rate", ylabel="final test loss", ylim=(86, 100))
    right.set(title="One seed at each of 36 rates (a line ends: diverged)", xlim=(1e-5, 10))
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 3}
    right.legend(frameon=False, fontsize=8, **below)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
