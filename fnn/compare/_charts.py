"""The charts of a comparison as data: `charts` reads the document.

`_pictures.py` draws them with matplotlib, `_plotly.py` for the page.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from fnn.compare._reading import (
    Document,
    Rule,
    floor_of,
    has_rows,
    median_steps,
    on_rows,
    point_in_words,
    ranked,
    score_of,
    validation,
)
from fnn.compare._statistics import performance_profile
from fnn.compare._words import capital
from fnn.inspect.plots import COLOURS, MARKERS

POINTS = 400  # of a line; longer curves are thinned
FAR = 20  # the ratio of the ends from which a log scale is drawn
MARKED = 12  # points of a line that are marked; more would hide it
Values = list[float | None]
Scale = Literal["linear", "log", "log1m"]


class Style(NamedTuple):
    """How a rule is drawn in every chart."""

    colour: str
    dash: int  # 0 solid, 1 dashes, 2 dots, 3 both
    marker: int


class Line(NamedTuple):
    """A rule's line or points. `low` and `high` are the range over seeds."""

    rule: str
    x: list[float]
    y: Values
    low: Values | None = None
    high: Values | None = None
    notes: Sequence[str] = ()  # one for each point


class Chart(NamedTuple):
    """A chart: "line" through the points, "steps" between them, "dots", or the "scores".

    Of "scores", x is the mean score and y the place of the rule; `low` and `high` are the 95 %
    interval of x.
    """

    id: str
    title: str
    about: str
    x: str
    y: str
    kind: Literal["line", "steps", "dots", "scores"]
    lines: list[Line]
    x_scale: Scale = "linear"  # log1m: of 1 - x, which is drawn
    y_score: bool = False  # whether y is the problem's score
    y_log: bool = False  # at first; the page can change it


def styles(document: Document) -> dict[str, Style]:
    """{rule: its style}, by the order in the document, so that sorting does not change it."""
    colours = (*COLOURS[:-1], "#808080")  # not black, which a dark page hides
    n = len(colours)
    return {
        rule["name"]: Style(colours[i % n], i // n % 4, (i + i // n) % len(MARKERS))
        for i, rule in enumerate(document["rules"])
    }


def charts(document: Document, others: Sequence[Document] = ()) -> list[Chart]:
    """The charts that the document has numbers for.

    `others` are comparisons on other problems: with them there is a performance profile.
    """
    rules = ranked(document)
    if not rules:
        return []
    made: list[Chart | None] = [_scores(document, rules), *_sensitivity(document, rules)]
    made += [*_curves(document, rules), _trials(document, rules), _target(document, rules)]
    made.append(_profile([document, *others], rules))
    return [chart for chart in made if chart and any(_has_number(line) for line in chart.lines)]


def values_of(chart: Chart) -> list[float]:
    """All numbers on the y axis."""
    columns = [c for line in chart.lines for c in (line.y, line.low or [], line.high or [])]
    return [v for column in columns for v in column if v is not None]


def _has_number(line: Line) -> bool:
    return any(y is not None for y in line.y)


def _scores(document: Document, rules: list[Rule]) -> Chart:
    score, seeds = score_of(document), document["settings"]["seeds"]
    lines = [
        Line(r["name"], [r["final"]["mean"]], [float(i)], [r["final"]["low"]], [r["final"]["high"]])
        for i, r in enumerate(rules)
        if r["final"]["mean"] is not None
    ]
    about = f"Mean and 95 % interval over {seeds} fresh seeds; a small mark for each seed."
    if seeds == 1:
        about = "One fresh seed of each rule."
    means = [line.x[0] for line in lines]
    far = score.unit != "%" and means and min(means) > 0 and max(means) >= FAR * min(means)
    if floor_of(document) and not far:
        about += " The grey band around the best mean is the noise floor of a single run."
    title = capital(score.name) + (on_rows(document, "test") or " at the end")
    scale = "log" if far else "linear"
    return Chart("scores", title, about, score.heading, "", "scores", lines, x_scale=scale)


# --- scores along a hyperparameter --------------------------------------------------------------


def _sensitivity(document: Document, rules: list[Rule]) -> list[Chart]:
    """Validation score against each tuned hyperparameter."""
    values: dict[str, set[float]] = {}
    for rule in rules:
        for trial in rule["trials"]:
            for name, value in trial["point"].items():
                values.setdefault(name, set()).add(value)
    vary = [name for name in values if len(values[name]) > 1] or list(values)[:1]
    return [_along(document, rules, name, _scale(document, name, values[name])) for name in vary]


def _scale(document: Document, name: str, values: set[float]) -> Scale:
    """The scale of the search; of a list of values, the one that fits them."""
    for text in document["settings"].get("tune") or []:
        if text.partition("=")[0].split(".")[-1] == name:  # or of one rule: adam.b2=...
            if text.endswith(":log1m"):
                return "log1m"
            if text.endswith(":log"):
                return "log"
    low, high = min(values), max(values)
    if low > 0 and high >= FAR * low:
        return "log"
    if 0.5 <= low < high < 1 and 1 - low >= FAR * (1 - high):
        return "log1m"
    return "linear"


def _along(document: Document, rules: list[Rule], name: str, scale: Scale) -> Chart:
    """The trials along one hyperparameter; of a grid, the best at each value."""
    score, grid = score_of(document), document["settings"].get("how", "grid") == "grid"
    lines = []
    for rule in rules:
        points = [_of_trial(t, name) for t in rule["trials"] if name in t["point"]]
        # The best first among those at one value; what is not finite last
        points.sort(key=lambda p: (p[0], p[1] is None, -score.sign * (p[1] or 0)))
        if grid:
            points = [p for i, p in enumerate(points) if i == 0 or p[0] != points[i - 1][0]]
        if points:
            lines.append(Line(rule["name"], *map(list, zip(*points, strict=True))))
    label = name.replace("_", " ")
    return Chart(
        "at-" + re.sub(r"\W+", "-", name),
        f"Sensitivity to {label}",
        _about_trials(document, rules, lines, grid),
        label,
        f"{validation(document)}{score.heading}",
        "line" if grid else "dots",
        lines,
        x_scale=scale,
        y_score=True,
    )


def _about_trials(document: Document, rules: list[Rule], lines: list[Line], grid: bool) -> str:
    several = any(len(t["point"]) > 1 for r in rules for t in r["trials"])
    n = document["settings"].get("trial_seeds", 1)
    about = f"Mean and range of the {n} seeds of the search." if n > 1 else "One seed each."
    if several and grid:
        about += " At each value, the best of the other hyperparameters."
    if not grid:
        about += " Each mark is a trial."
    if any(y is None for line in lines for y in line.y):
        about += " A gap: a run that was not finite."
    return about


def _of_trial(
    trial: dict[str, Any], name: str
) -> tuple[float, float | None, float | None, float | None, str]:
    """-> (x, mean, lowest and highest of the seeds, the point in words); None: not finite."""
    known = [v for v in trial["valid"] if v is not None]
    at, text = trial["point"][name], point_in_words(trial["point"])
    if not known or len(known) < len(trial["valid"]):
        return at, None, None, None, text
    return at, math.fsum(known) / len(known), min(known), max(known), text


# --- scores along a run, and over the search ----------------------------------------------------


def _curves(document: Document, rules: list[Rule]) -> list[Chart]:
    score = score_of(document)
    about = "Median and range of the seeds, at the chosen point."
    if document["settings"]["seeds"] == 1:
        about = "At the chosen point."
    higher = score.better == "higher"
    losses = [_curve(r["name"], r["final"].get("loss_by_epoch"), False) for r in rules]
    scores = [_curve(r["name"], r["final"].get("valid_by_epoch"), higher) for r in rules]
    lowest = [y for line in losses for y in (line.low or []) if y is not None]
    log = bool(lowest) and min(lowest) > 0
    label = "training loss" if has_rows(document) else "loss"
    title = capital(f"{validation(document)}{score.name}")
    heading = f"{validation(document)}{score.heading}"
    return [
        Chart("loss", label.capitalize(), about, "epoch", label, "line", losses, y_log=log),
        Chart("valid", title, about, "epoch", heading, "line", scores, y_score=True),
    ]


def _curve(name: str, curves: list[Values] | None, higher: bool) -> Line:
    """The median over seeds, where what is not finite counts as worst; and the range."""
    if not curves or not curves[0]:
        return Line(name, [], [])
    epochs = len(curves[0])
    every = math.ceil(epochs / POINTS)
    shown = [*range(0, epochs - 1, every), epochs - 1]
    y: Values = []
    low: Values = []
    high: Values = []
    for epoch in shown:
        values = [curve[epoch] for curve in curves]
        known = sorted((v for v in values if v is not None), reverse=higher)
        ordered: Values = [*known, *[None] * (len(values) - len(known))]
        a, b = ordered[(len(values) - 1) // 2], ordered[len(values) // 2]
        y.append(None if a is None or b is None else (a + b) / 2)
        whole = len(known) == len(values)
        low.append(min(known) if whole else None)
        high.append(max(known) if whole else None)
    return Line(name, [epoch + 1.0 for epoch in shown], y, low, high)


def _trials(document: Document, rules: list[Rule]) -> Chart:
    score = score_of(document)
    lines = [
        Line(r["name"], [k + 1.0 for k in range(len(best))], list(best))
        for r in rules
        if (best := r.get("expected_best") or [])
    ]
    about = (
        f"The {validation(document)}{score.name} to expect of the best of k trials, drawn at random"
        " from those that were run."
    )
    title, heading = "Expected best after k trials", f"{validation(document)}{score.heading}"
    return Chart("trials", title, about, "number of trials", heading, "line", lines, y_score=True)


def _target(document: Document, rules: list[Rule]) -> Chart | None:
    """The share of seeds at the target, by step: a performance profile over seeds."""
    target, score = document["settings"].get("target"), score_of(document)
    if target is None:
        return None
    total, lines = document["problem"].get("steps") or 0, []
    for rule in rules:
        steps = rule.get("steps_to_target") or []
        at = sorted(s for s in steps if s is not None)
        if steps and at:
            x = [0.0, *map(float, at), float(max(total, at[-1]))]
            y: Values = [0.0, *[(i + 1) / len(steps) for i in range(len(at))], len(at) / len(steps)]
            lines.append(Line(rule["name"], x, y))
    goal = f"{score.name} {score.said(target)}"
    about = f"The share of the seeds that have reached {goal}{on_rows(document, 'validation')}."
    return Chart("target", f"Steps to {goal}", about, "step", "share of seeds", "steps", lines)


def _profile(documents: list[Document], rules: list[Rule]) -> Chart | None:
    """The performance profile over problems, of the rules that all documents have."""
    documents = [d for d in documents if d["settings"].get("target") is not None]
    steps = {
        f"{i}": {r["name"]: median_steps(r) for r in ranked(document)}
        for i, document in enumerate(documents)
    }
    names = [r["name"] for r in rules if all(r["name"] in of_rules for of_rules in steps.values())]
    if len(steps) < 2 or not names:
        return None
    same = {i: {name: of_rules[name] for name in names} for i, of_rules in steps.items()}
    tau, rho = performance_profile(same)
    x = [*tau.tolist(), 1.1 * float(tau[-1])]  # so that the last step is seen
    lines = [Line(name, x, [*rho[name].tolist(), float(rho[name][-1])]) for name in names]
    problems = ", ".join(d["problem"]["name"] for d in documents)
    about = (
        f"The share of the problems ({problems}) whose target a rule reaches with at most this many"
        " times the steps of the quickest rule there; median over seeds."
    )
    label = "times the steps of the quickest"
    title = f"Performance profile over {len(steps)} problems"
    return Chart("profile", title, about, label, "share of problems", "steps", lines, x_scale="log")
