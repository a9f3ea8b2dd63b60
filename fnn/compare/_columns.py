"""The columns of a comparison's tables, for the terminal, the page, Markdown and LaTeX."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple

from fnn.compare._reading import (
    NONE,
    Document,
    Rule,
    Score,
    against_best,
    median_steps,
    on_rows,
    ranked,
    score_of,
    validation,
    verdict,
)


class Cell(NamedTuple):
    """What is shown, what it is sorted by (None: last), and how it looks."""

    text: str
    key: float | str | None = None
    look: Literal["", "good", "bad", "note"] = ""


class Column(NamedTuple):
    """A heading, a sentence about it, and a cell for each of `ranked(document)`."""

    heading: str
    about: str
    cells: list[Cell]

    @property
    def is_number(self) -> bool:
        """Whether it is sorted as numbers."""
        return not any(isinstance(cell.key, str) for cell in self.cells)


Against = dict[str, dict[str, Any]]  # of each rule, its comparison with the best


def results(document: Document) -> list[Column]:
    """The columns of the answer: point, score, what separates a rule from the best."""
    score, against = score_of(document), against_best(document)
    where = on_rows(document, "test")
    return _filled(document, [
        ("rule", "the update rule", _name),
        (score.heading, f"{score.name}{where}: mean and 95 % interval", partial(_final, score)),
        ("behind the best", "how far the mean is behind that of the best rule, paired by seed and"
         " row, and its 95 % interval, which is of this difference alone: it may leave out 0 where"
         " the verdict, corrected for all pairs, is not separable",
         partial(_behind, score, against)),
        ("p, Holm", "p value of that difference, corrected by Holm over all pairs of rules",
         partial(_p_value, against)),
        ("verdict", "by the rule for better, which was fixed before the run",
         partial(_verdict, against)),
        ("chosen at", "the point that validates best; the learning rate comes first, and * marks"
         " the edge of a range", _point),
        ("by Optax", f"{score.name} of its Optax twin at the same point, with the same seeds",
         partial(_by_optax, score)),
    ])  # fmt: skip


def details(document: Document) -> list[Column]:
    """The other columns: steps to the target, twins, noise, and what a step costs."""
    score, target = score_of(document), document["settings"].get("target")
    twin, cost = partial(_number, "twin_final"), partial(_number, "cost")
    return _filled(document, [
        ("rule", "the update rule", _name),
        ("steps to target", "median over seeds of the steps until the"
         f" {validation(document)}{score.name} is {score.said(target)}",
         partial(_steps, target)),
        ("one bit apart", "largest difference of test scores if the learning rate is one bit"
         " larger", partial(_one_bit, score)),
        ("twins apart", "largest difference of a final parameter between the rule and its Optax"
         " twin", partial(twin, "apart", ".1g")),
        ("updates apart", "difference of the twins' updates in float64, given the same gradients,"
         " relative to their size", partial(twin, "update_difference", ".1g")),
        ("due to", "what sets the twins apart: nothing, rounding, or different rules", _due_to),
        ("update, µs", "time of one update on this machine",
         partial(cost, "update_microseconds", ",.1f")),
        ("bytes", "bytes that one compiled update reads and writes",
         partial(cost, "bytes", ",.0f")),
        ("flops", "arithmetic operations of one compiled update", partial(cost, "flops", ",.0f")),
        ("kernels", "kernels of the compiled update", partial(cost, "kernels", ",.0f")),
        ("compile, s", "seconds to compile the rule's program",
         partial(cost, "compile_seconds", ".1f")),
        ("run, s", "seconds to run all trials and final seeds",
         partial(cost, "run_seconds", ".1f")),
    ])  # fmt: skip


def two_lines(heading: str) -> tuple[str, str]:
    """The heading's last word, or its unit, goes to the second line."""
    first, _, last = heading.rpartition(" ")
    return first.rstrip(","), last


def _filled(
    document: Document, columns: Iterable[tuple[str, str, Callable[[Rule], Cell]]]
) -> list[Column]:
    """The columns that have something to show; the first stays."""
    rules = ranked(document)
    made = [Column(heading, about, list(map(cell, rules))) for heading, about, cell in columns]
    return made[:1] + [column for column in made[1:] if any(cell.text for cell in column.cells)]


# --- the cell of a rule -------------------------------------------------------------------------


def _name(rule: Rule) -> Cell:
    return Cell(rule["name"], rule["name"])


def _final(score: Score, rule: Rule) -> Cell:
    final = rule["final"]
    return Cell(score.interval(final["mean"], final["low"], final["high"]), final["mean"])


def _behind(score: Score, against: Against, rule: Rule) -> Cell:
    c = against.get(rule["name"])
    if c is None:
        return Cell("", 0.0)
    ends = (c["low"], c["high"])[:: score.sign]
    mean, low, high = (None if v is None else score.sign * v for v in (c["difference"], *ends))
    return Cell(score.interval(mean, low, high, sign=True), mean)


def _p_value(against: Against, rule: Rule) -> Cell:
    c = against.get(rule["name"])
    if c is None:
        return Cell("")
    p = c["p_corrected"]
    if p is None:
        return Cell(NONE)
    return Cell("<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}", p)


def _verdict(against: Against, rule: Rule) -> Cell:
    said = verdict(against.get(rule["name"]))
    return Cell(said, said, "bad" if said == "worse" else "good" if said == "best" else "")


def _point(rule: Rule) -> Cell:
    point, edges = rule["final"]["point"], rule.get("edges") or []
    text = ", ".join(
        ("*" if name in edges else "") + (f"{v:g}" if name == "learning_rate" else f"{name} {v:g}")
        for name, v in point.items()
    )
    return Cell(text, next(iter(point.values()), None), "note" if edges else "")


def _by_optax(score: Score, rule: Rule) -> Cell:
    final = rule.get("twin_final")
    return Cell(score.text(final["mean"]), final["mean"]) if final else Cell("")


def _steps(target: float | None, rule: Rule) -> Cell:
    steps = rule.get("steps_to_target") or []
    if target is None or not steps:
        return Cell("")
    reached, median = sum(s is not None for s in steps), median_steps(rule)
    some = "" if reached == len(steps) else f" ({reached} of {len(steps)})"
    return Cell(("not reached" if median is None else f"{median:,.0f}") + some, median)


def _one_bit(score: Score, rule: Rule) -> Cell:
    one = (rule.get("one_bit") or {}).get("test") or []
    pairs = zip(one, rule["final"]["test"], strict=False)
    apart = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    return Cell(score.text(max(apart)), max(apart)) if apart else Cell("")


def _due_to(rule: Rule) -> Cell:
    cause = (rule.get("twin_final") or {}).get("apart_by") or ""
    return Cell(cause, cause, "bad" if cause == "rules" else "")


def _number(where: str, name: str, spec: str, rule: Rule) -> Cell:
    value = (rule.get(where) or {}).get(name)
    return Cell("" if value is None else f"{value:{spec}}", value)
