"""The charts of a comparison for Plotly: traces and layouts, which `_page.js` draws."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from fnn.compare._axes import Axis, x_places, y_axis
from fnn.compare._charts import MARKED, Chart, Line, Style, Values, styles, values_of
from fnn.compare._reading import Document, Score, floor_of, ranked, score_of, y_of

DASHES = "solid", "dash", "dot", "dashdot"
SYMBOLS = "circle", "triangle-up", "square", "diamond", "triangle-down", "cross", "x"
LAYOUT = {
    "margin": {"l": 56, "r": 12, "t": 8, "b": 44},
    "showlegend": False,
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"size": 12, "family": "system-ui, 'DejaVu Sans', sans-serif"},
    "hoverlabel": {"namelength": -1},
}

Json = dict[str, Any]


def spec(document: Document, chart: Chart) -> Json:
    """A chart: its traces, its layout, and its y axis on a log and on a linear scale."""
    log, linear = log_and_linear(document, chart)
    scores = chart.kind == "scores"
    return {
        "id": chart.id,
        "x": _x_label(chart),
        "traces": _score_traces(document, chart) if scores else _traces(document, chart),
        "layout": _layout(document, chart),
        "log": log,
        "linear": linear,
        "unified": chart.kind == "line",
    }


def height(chart: Chart) -> int:
    """Of the chart, in pixels."""
    return 90 + 30 * len(chart.lines) if chart.kind == "scores" else 340


def log_and_linear(document: Document, chart: Chart) -> tuple[Json, Json]:
    """The y axis on its log and on its linear scale; the same twice if there is no choice."""
    if chart.kind == "scores":
        return {}, {}  # its y axis has names
    axis = y_axis(document, chart)
    if axis.reverse:
        kinds = {"log": axis.ticks, "linear": axis.linear_ticks}
        log, linear = (
            {"type": kind, "autorange": "reversed", **_ticks(ticks or [])}
            for kind, ticks in kinds.items()
        )
        return log, linear
    linear = {"type": "linear", "autorange": True, "tickvals": None}
    places = [p for v in values_of(chart) if (p := axis.place(v)) is not None]
    if chart.kind == "steps" or min(places, default=0) <= 0:
        return linear, linear
    return {"type": "log", "autorange": True, **_decades(places)}, linear


# --- layouts ------------------------------------------------------------------------------------


def _layout(document: Document, chart: Chart) -> Json:
    x = {
        "title": {"text": _text(chart.x), "standoff": 8},
        "zeroline": False,
        "unifiedhovertitle": {"text": _text(_x_label(chart)).replace("%", "") + " %{x}"},
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": True,
    }
    y = {
        "title": {"text": _text(chart.y), "standoff": 6},
        "automargin": True,
        "zeroline": False,
        "showline": True,
    }
    layout = LAYOUT | {"height": height(chart)}
    if chart.kind != "scores":
        return layout | {"xaxis": x | _x_scale(chart), "yaxis": y}
    names = [line.rule for line in chart.lines]
    y |= _ticks([(line.y[0] or 0.0, _text(line.rule)) for line in chart.lines])
    y |= {"range": [len(names) - 0.4, -0.6], "showgrid": False}
    if chart.x_scale == "log":
        x |= {"type": "log", **_decades([v for line in chart.lines for v in line.x])}
    return layout | {"xaxis": x, "yaxis": y, "shapes": _floor_shapes(document, chart)}


def _text(text: str) -> str:
    """Text for Plotly, which reads some tags and entities."""
    return escape(text, quote=False).replace("%{", "%\u200b{")  # no template


def _x_label(chart: Chart) -> str:
    return f"1 - {chart.x}" if chart.x_scale == "log1m" else chart.x


def _x_scale(chart: Chart) -> Json:
    xs = sorted({x for line in chart.lines for x in x_places(chart, line.x)})
    log, reverse = chart.x_scale != "linear", chart.x_scale == "log1m"
    text = (lambda x: f"{1 - x:.6g}") if reverse else "{:g}".format
    if len(xs) <= 9 and chart.kind == "line":
        ticks = _ticks([(x, text(x)) for x in xs])
    else:
        ticks = _decades(xs, text) if log and xs else {}
    side = {"autorange": "reversed"} if reverse else {}
    return {"type": "log" if log else "linear", **side, **ticks}


def _ticks(ticks: Sequence[tuple[float, str]]) -> Json:
    return {"tickvals": [at for at, _ in ticks], "ticktext": [text for _, text in ticks]}


def _decades(values: Sequence[float], text: Callable[[float], str] = "{:g}".format) -> Json:
    """Ticks of a log axis, each with its whole number: 1, 2, 5, 10, or only the powers of 10."""
    if max(values) < 10 * min(values):
        return {"tickvals": None}  # Plotly's own are better
    low, high = (math.floor(math.log10(v)) for v in (min(values), max(values)))
    digits = (1, 2, 5) if high - low <= 3 else (1,)
    at = [float(f"{d}e{power}") for power in range(low, high + 1) for d in digits]
    return _ticks([(v, text(v)) for v in at])


def _floor_shapes(document: Document, chart: Chart) -> list[Json]:
    """The noise floor around the best mean: scores in it are as near as two runs of one rule."""
    floor, factor, best = floor_of(document), score_of(document).factor, chart.lines[0].x[0]
    whole = {"y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
    line = {"color": "#808080", "width": 1, "dash": "dot"}
    shapes = [{"type": "line", "x0": factor * best, "x1": factor * best, "line": line, **whole}]
    if floor and chart.x_scale == "linear":
        ends = {"x0": factor * (best - floor), "x1": factor * (best + floor)}
        grey = {"line": {"width": 0}, "fillcolor": "rgba(128,128,128,0.16)"}
        shapes.append({"type": "rect", **ends, **grey, **whole})
    return shapes


# --- lines --------------------------------------------------------------------------------------


def _traces(document: Document, chart: Chart) -> list[Json]:
    """Of each rule the range over seeds, and the line upon it."""
    score, axis, looks = y_of(document, chart.y_score), y_axis(document, chart), styles(document)
    traces = []
    for line in chart.lines:
        style = looks[line.rule]
        drawn = line._replace(x=x_places(chart, line.x))
        band = {} if chart.kind == "dots" else _band(drawn, axis, style)
        traces += [*([band] if band else []), _line(chart, drawn, axis, style, score)]
    return traces


def _line(chart: Chart, line: Line, axis: Axis, style: Style, score: Score) -> Json:
    said = [_said(score, line, i) for i in range(len(line.x))]
    modes = {"dots": "markers", "steps": "lines"}
    few = "lines+markers" if len(line.x) <= MARKED else "lines"
    shape = "hv" if chart.kind == "steps" else "linear"
    dash = {"width": 2, "dash": DASHES[style.dash], "shape": shape}
    return {
        "type": "scatter",
        "mode": modes.get(chart.kind, few),
        "x": line.x,
        "y": _places(axis, line.y),
        "line": {"color": style.colour, **dash},
        **_hover(line.rule, said),
        **_marker(style, 7),
    }


def _places(axis: Axis, values: Values) -> Values:
    return [None if (p := axis.place(v)) is None else float(f"{p:.6g}") for v in values]


def _hover(rule: str, said: list[str]) -> Json:
    """What is said of each point, by the mouse and by the arrow keys."""
    return {
        "name": _text(rule),
        "customdata": [_text(text) for text in said],
        "hovertemplate": "%{customdata}",
        "meta": {"rule": rule, "role": "line", "said": said},
    }


def _marker(style: Style, size: int) -> Json:
    return {"marker": {"color": style.colour, "symbol": SYMBOLS[style.marker], "size": size}}


def _said(score: Score, line: Line, i: int) -> str:
    """A point in words: its value, the range over seeds, and its note."""
    text = score.said(line.y[i])
    if line.low and line.high and line.low[i] is not None and line.low[i] != line.high[i]:
        text += f" ({score.text(line.low[i])} to {score.text(line.high[i])})"
    if line.notes and "," in line.notes[i]:
        text += f" at {line.notes[i]}"
    return text


def _band(line: Line, axis: Axis, style: Style) -> Json:
    """The range over seeds: a closed shape for each stretch without a gap; {} if there is none."""
    xs: Values = []
    ys: Values = []
    for part in _stretches(line):
        x, low, high = zip(*part, strict=True)
        gap = [None] if xs else []
        xs += [*gap, *x, *reversed(x)]
        ys += [*gap, *_places(axis, list(low)), *_places(axis, [*reversed(high)])]
    red, green, blue = (int(style.colour[i : i + 2], 16) for i in (1, 3, 5))
    band = {
        "type": "scatter",
        "mode": "lines",
        "x": xs,
        "y": ys,
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},0.13)",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "meta": {"rule": line.rule, "role": "range"},
    }
    return band if xs else {}


def _stretches(line: Line) -> list[list[tuple[float, float, float]]]:
    """(x, low, high) of neighbours that have a range, two points or more."""
    parts: list[list[tuple[float, float, float]]] = [[]]
    for x, low, high in zip(line.x, line.low or [], line.high or [], strict=False):
        if low is None or high is None:
            parts.append([])
        else:
            parts[-1].append((x, low, high))
    return [part for part in parts if len(part) > 1]


# --- the scores ---------------------------------------------------------------------------------


def _score_traces(document: Document, chart: Chart) -> list[Json]:
    """Of each rule a small mark for each seed, and the mean with its interval."""
    score, looks = score_of(document), styles(document)
    tests = {rule["name"]: rule["final"]["test"] for rule in ranked(document)}
    traces = []
    for line in chart.lines:
        seeds = [score.factor * v for v in tests[line.rule] if v is not None]
        traces += [_seeds(line, seeds, looks[line.rule]), _mean(line, looks[line.rule], score)]
    return traces


def _seeds(line: Line, seeds: list[float], style: Style) -> Json:
    marker = {"symbol": "line-ns-open", "size": 9, "color": style.colour, "opacity": 0.55}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": seeds,
        "y": line.y * len(seeds),
        "marker": marker,
        "hoverinfo": "skip",
        "meta": {"rule": line.rule, "role": "range"},
    }


def _mean(line: Line, style: Style, score: Score) -> Json:
    (mean,), (low,), (high,) = line.x, line.low or [None], line.high or [None]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [score.factor * mean],
        "y": line.y,
        **_hover(line.rule, [score.interval(mean, low, high) + score.after]),
        **_marker(style, 10),
    }
    if low is None or high is None:
        return trace
    ends = {"array": [score.factor * (high - mean)], "arrayminus": [score.factor * (mean - low)]}
    look = {"color": style.colour, "thickness": 2.2, "width": 0}
    return trace | {"error_x": {"type": "data", "symmetric": False, **ends, **look}}
