"""The charts of a comparison: their data, and their pictures by matplotlib.

`charts` reads the document. The page draws the same charts with Plotly, in `_html.py`.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from fnn.compare._report import (
    Document,
    Rule,
    Score,
    floor_of,
    has_rows,
    median_steps,
    point_text,
    ranked,
    score_of,
    validation,
)
from fnn.compare._statistics import performance_profile
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
    interval of x, and of `twin` the mean of the Optax twin.
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


def _has_number(line: Line) -> bool:
    return any(y is not None for y in line.y)


def _scores(document: Document, rules: list[Rule]) -> Chart:
    score, seeds = score_of(document), document["settings"]["seeds"]
    where = "on the test rows" if has_rows(document) else "at the end"
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
    title = f"{score.name[:1].upper()}{score.name[1:]} {where}"
    scale = "log" if far else "linear"
    return Chart("scores", title, about, score.heading, "", "scores", lines, x_scale=scale)


def _sensitivity(document: Document, rules: list[Rule]) -> list[Chart]:
    """Validation score against each tuned hyperparameter."""
    grid = document["settings"].get("how", "grid") == "grid"
    values: dict[str, set[float]] = {}
    for rule in rules:
        for trial in rule["trials"]:
            for name, value in trial["point"].items():
                values.setdefault(name, set()).add(value)
    vary = [name for name in values if len(values[name]) > 1] or list(values)[:1]
    scales: dict[str, Scale] = {name: _scale(document, name, values[name]) for name in vary}
    return [_along(document, rules, name, grid, scales[name]) for name in vary]


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


def _along(document: Document, rules: list[Rule], name: str, grid: bool, scale: Scale) -> Chart:
    """The trials along one hyperparameter; of a grid, the best at each value."""
    score = score_of(document)
    sign = 1 if score.better == "higher" else -1
    lines = []
    for rule in rules:
        points = [_of_trial(t, name) for t in rule["trials"] if name in t["point"]]
        # The best first among those at one value; what is not finite last
        points.sort(key=lambda p: (p[0], p[1] is None, -sign * (p[1] or 0)))
        if grid:
            points = [p for i, p in enumerate(points) if i == 0 or p[0] != points[i - 1][0]]
        if points:
            lines.append(Line(rule["name"], *map(list, zip(*points, strict=True))))
    several = any(len(t["point"]) > 1 for r in rules for t in r["trials"])
    n = document["settings"].get("trial_seeds", 1)
    about = f"Mean and range of the {n} seeds of the search." if n > 1 else "One seed each."
    if several and grid:
        about += " At each value, the best of the other hyperparameters."
    if not grid:
        about += " Each mark is a trial."
    if any(y is None for line in lines for y in line.y):
        about += " A gap: a run that was not finite."
    label = name.replace("_", " ")
    return Chart(
        "at-" + re.sub(r"\W+", "-", name),
        f"Sensitivity to {label}",
        about,
        label,
        f"{validation(document)}{score.heading}",
        "line" if grid else "dots",
        lines,
        x_scale=scale,
        y_score=True,
    )


def _of_trial(
    trial: dict[str, Any], name: str
) -> tuple[float, float | None, float | None, float | None, str]:
    """-> (x, mean, lowest and highest of the seeds, the point in words); None: not finite."""
    known = [v for v in trial["valid"] if v is not None]
    at, text = trial["point"][name], point_text(trial["point"])
    if not known or len(known) < len(trial["valid"]):
        return at, None, None, None, text
    return at, math.fsum(known) / len(known), min(known), max(known), text


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
    name = f"{validation(document)}{score.name}"
    title = name[:1].upper() + name[1:]
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
    goal = f"{score.name} {score.text(target)}{score.after}"
    where = " on the validation rows" if has_rows(document) else ""
    about = f"The share of the seeds that have reached {goal}{where}."
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


# --- the axis of a score ------------------------------------------------------------------------


class Axis(NamedTuple):
    """An axis of scores: plotted is `place(value)`, on a log or a linear scale.

    Of percentages that are better high, the error 1 - score is plotted, downwards: on its log
    scale 90, 99 and 99.9 % are evenly spaced. `ticks` are (place, label).
    """

    place: Callable[[float | None], float | None]
    reverse: bool
    log: bool
    ticks: list[tuple[float, str]] | None
    linear_ticks: list[tuple[float, str]] | None


_LOG_TICKS = (10.0, 50.0, 80.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.8, 99.9, 99.95, 99.98, 99.99)


def score_axis(score: Score, values: Sequence[float]) -> Axis:
    """The axis for these values."""
    if score.unit == "%" and score.better == "higher" and all(0 <= v <= 1 for v in values):
        errors = [1 - v for v in values if v < 1]
        least = min(errors, default=0.01) / 2

        def place(value: float | None) -> float | None:
            return None if value is None else max(1 - value, least)

        ends = 100 * min(values, default=0), 100 * max(values, default=1)
        even = _even_ticks(*ends)
        inside = [t for t in _LOG_TICKS if ends[0] <= t <= ends[1]]
        log, linear = (
            [(round(1 - t / 100, 10), f"{t:g}") for t in ticks]
            for ticks in (_LOG_TICKS if len(inside) > 2 else [t for t in even if t < 100], even)
        )
        return Axis(place, True, True, log, linear)
    positive = bool(values) and min(values) > 0
    far = positive and max(values) >= FAR * min(values)

    def scaled(value: float | None) -> float | None:
        return None if value is None else score.factor * value

    return Axis(scaled, False, far, None, None)


def _even_ticks(low: float, high: float) -> list[float]:
    """About five round percentages from below `low` to above `high`."""
    rough = max(high - low, 1e-3) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(d for d in (1, 2, 5, 10) if d * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(n * step, 10) for n in range(first, last + 1) if 0 <= n * step <= 100]


def x_places(chart: Chart, x: Sequence[float]) -> list[float]:
    """What is drawn for x: 1 - x on the scale log1m."""
    return [float(f"{1 - v:.6g}") for v in x] if chart.x_scale == "log1m" else list(x)


def values_of(chart: Chart) -> list[float]:
    """All numbers on the y axis."""
    columns = [c for line in chart.lines for c in (line.y, line.low or [], line.high or [])]
    return [v for column in columns for v in column if v is not None]


# --- pictures by matplotlib ---------------------------------------------------------------------

_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (5, 1.5, 1.2, 1.5)))


def as_png(document: Document, others: Sequence[Document] = ()) -> bytes:
    """A PNG: scores, sensitivity to the first hyperparameter, training loss, trials.

    With `others`, comparisons on other problems, the performance profile too.
    """
    shown = {chart.id: chart for chart in charts(document, others)}
    first = next((name for name in shown if name.startswith("at-")), "")
    wanted = "scores", first, "loss", "trials", "profile"
    panels = [shown[name] for name in wanted if name in shown]
    return _picture(document, panels, "png")


def as_svg(document: Document, chart: Chart) -> str:
    """One chart as an <svg> element, whose text and axes have the colour of the text around it."""
    svg = _picture(document, [chart], "svg").decode()
    svg = svg[svg.index("<svg") :]
    # A document has one of each id; several pictures share it.
    for name in sorted(set(re.findall(r'\bid="([^"]+)"', svg)), key=len, reverse=True):
        for before, after in (('id="', '"'), ("#", '"'), ("#", ")")):
            svg = svg.replace(before + name + after, f"{before}{chart.id}-{name}{after}")
    return svg.replace(_INK, "currentColor")


_INK = "#123457"  # stands for the colour of text until the picture is made


def _picture(document: Document, panels: list[Chart], kind: Literal["png", "svg"]) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ink = _INK if kind == "svg" else "black"
    looks: Any = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), ink),
        **dict.fromkeys(("xtick.color", "ytick.color"), ink),
        "svg.hashsalt": "fnn",  # the same picture is the same bytes
        "text.parse_math": False,  # names are not formulas
    }
    with mpl.rc_context(looks):
        columns = min(2, len(panels)) or 1
        rows = math.ceil(len(panels) / columns) or 1
        n = len(ranked(document))
        height = max(3.6, 1.4 + 0.24 * n)
        size = (5.6 * columns + 1.4, height * rows) if kind == "png" else (7.2, height)
        figure = Figure(figsize=size, layout="constrained", dpi=150)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        looks_of = styles(document)
        for ax, chart in zip(axes, panels, strict=False):
            (_draw_scores if chart.kind == "scores" else _draw)(document, chart, ax, looks_of)
            if kind == "png":  # the page has the titles as text
                ax.set_title(chart.title, fontsize=11)
            ax.grid(alpha=0.3, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        handles = {}
        for ax in axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        if handles:
            figure.legend(
                list(handles.values()),
                list(handles),
                loc="outside right upper",
                frameon=False,
                fontsize=9,
            )
        file = io.BytesIO()
        figure.savefig(
            file,
            format=kind,
            transparent=kind == "svg",
            metadata={"Date": None} if kind == "svg" else None,
        )
    return file.getvalue()


def _look(style: Style) -> dict[str, Any]:
    return {"color": style.colour, "linestyle": _DASHES[style.dash], "linewidth": 1.6}


def _draw(document: Document, chart: Chart, ax: Any, looks: dict[str, Style]) -> None:
    axis = score_axis(score_of(document), values_of(chart)) if chart.y_score else None
    place = axis.place if axis else lambda value: value

    def placed(values: Values) -> list[float]:
        return [math.nan if (p := place(v)) is None else p for v in values]

    for line in chart.lines:
        style = looks[line.rule]
        y = placed(line.y)
        look = _look(style)
        if chart.kind == "steps":
            look["drawstyle"] = "steps-post"
        if chart.kind == "dots":
            look["linestyle"] = ""
        few = chart.kind == "dots" or (chart.kind == "line" and len(line.x) <= MARKED)
        marker = MARKERS[style.marker] if few else None
        x = x_places(chart, line.x)
        ax.plot(x, y, marker=marker, markersize=4, label=line.rule, **look)
        if line.low and line.high and chart.kind == "line":
            ax.fill_between(
                x, placed(line.low), placed(line.high), color=style.colour, alpha=0.09, lw=0
            )
    ax.set(xlabel=chart.x, ylabel=chart.y)
    if chart.x in ("epoch", "number of trials"):
        ax.xaxis.get_major_locator().set_params(integer=True)
    if chart.x_scale != "linear":
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    if chart.x_scale == "log1m":
        ax.xaxis.set_major_formatter(lambda x, _: f"{1 - x:.6g}")
        ax.invert_xaxis()
    if axis.log if axis else chart.y_log:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
    if axis and axis.ticks:
        low, high = ax.get_ylim()
        inside = [(at, text) for at, text in axis.ticks if low <= at <= high]
        ax.minorticks_off()
        ax.set_yticks([at for at, _ in inside], [text for _, text in inside])
        ax.set_ylim(high, low)


def _draw_scores(document: Document, chart: Chart, ax: Any, looks: dict[str, Style]) -> None:
    score, rules = score_of(document), {r["name"]: r for r in ranked(document)}
    unit = score.factor
    for line in chart.lines:
        style, (mean,), (place,) = looks[line.rule], line.x, line.y
        seeds = [unit * v for v in rules[line.rule]["final"]["test"] if v is not None]
        ax.plot(seeds, [place] * len(seeds), "|", color=style.colour, alpha=0.45, markersize=7)
        low, high = (line.low or [None])[0], (line.high or [None])[0]
        if low is not None and high is not None:
            ax.plot([unit * low, unit * high], [place, place], color=style.colour, linewidth=1.8)
        ax.plot([unit * mean], [place], MARKERS[style.marker], color=style.colour, markersize=6)
    best = chart.lines[0].x[0]
    ax.axvline(unit * best, color="0.5", linewidth=0.8, linestyle=":")
    floor = floor_of(document)
    if chart.x_scale == "log":
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    elif floor:
        ax.axvspan(unit * (best - floor), unit * (best + floor), color="0.5", alpha=0.15, lw=0)
    names = [line.rule for line in chart.lines]
    ax.set_yticks([line.y[0] for line in chart.lines], names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set(xlabel=chart.x)
