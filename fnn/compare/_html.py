"""A comparison as one HTML file that opens offline: words, tables and charts.

The charts are Plotly's, if the package `plotly` is there, which carries plotly.js; otherwise they
are pictures by matplotlib. The page asks no network for anything: it has everything in itself, and
a Content-Security-Policy that forbids the rest. Names and paths are the user's text; every one of
them is escaped, and scripts run only if their SHA-256 is in the policy.
"""

import base64
import hashlib
import html
import json
import math
import shlex
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import PurePath
from typing import Any

from fnn.compare._plot import (
    MARKED,
    Chart,
    Line,
    Style,
    as_svg,
    charts,
    score_axis,
    styles,
    values_of,
    x_places,
)
from fnn.compare._report import (
    NOISE,
    NONE,
    Column,
    Document,
    Rule,
    Score,
    details,
    findings_of,
    floor_of,
    point_text,
    protocol,
    ranked,
    results,
    score_of,
    settings_of,
)

SHOWN = 10  # rules that are drawn at first, the best
ROWS = 30  # of a table of a chart's numbers
DASHES = "solid", "dash", "dot", "dashdot"
SYMBOLS = "circle", "triangle-up", "square", "diamond", "triangle-down", "cross", "x"


def as_html(
    document: Document,
    others: Sequence[Document] = (),
    file: str | PurePath = "comparison.json",
    *,
    plotly: bool | None = None,
) -> bytes:
    """The page. `plotly`: whether the charts are Plotly's; None: if it is installed.

    `others` are comparisons on other problems, for the performance profile. `file` is what the
    document's own file is called in the commands that the page shows.
    """
    library = _plotly_js() if plotly is not False else None
    if plotly and library is None:
        raise ModuleNotFoundError("as_html: plotly is not installed: pip install 'fnn[report]'")
    drawn = charts(document, others)
    scripts = [_file("_page.js")]
    if library is not None and drawn:
        scripts.insert(0, library)
    data = ""
    if library is not None:
        specs = [_spec(document, chart) for chart in drawn]
        data = f'<script type="application/json" id="charts-data">{_json(specs)}</script>'
    title = f"fnn compare: {document['problem']['name']}"
    body = [
        _head(document),
        _tables(document),
        _charts(document, drawn, live=library is not None),
        _noise(document),
        _rules(document, file),
        _again(document),
        data,
    ]
    return "\n".join([
        "<!doctype html>",
        '<html lang="en">',
        '<head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{_e(title)}</title>",
        f"<style>{_file('_page.css')}</style></head>",
        "<body>",
        *body,
        *(f"<script>{script}</script>" for script in scripts),
        "</body></html>\n",
    ]).encode()  # fmt: skip


def _plotly_js() -> str | None:
    try:
        from plotly.offline import get_plotlyjs  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return get_plotlyjs().replace("\r", "").replace("</script", r"<\/script")


def _file(name: str) -> str:
    return resources.files("fnn.compare").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: list[str]) -> str:
    """Nothing is loaded; only these scripts run."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> str:
    """JSON that no parser of HTML takes for a tag."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _e(text: Any) -> str:
    return html.escape(str(text))


# --- the parts of the page ----------------------------------------------------------------------


PARTS = {
    "answer": "Answer",
    "table": "Table",
    "charts": "Charts",
    "noise": "Noise floor",
    "rules": "Rules",
    "again": "Run it again",
}


def _head(document: Document) -> str:
    problem, (answer, *others) = document["problem"], findings_of(document)
    links = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in PARTS.items())
    lines = "".join(f"<li>{_e(line)}</li>" for line in others)
    return f"""<header>
<h1>Comparison of optimizers on {_e(problem["name"])}</h1>
<p class="quiet">{_e(problem.get("about") or "")}</p>
<nav aria-label="Parts of this page"><ul>{links}</ul></nav>
</header>
<main>
<section id="answer" aria-label="Answer">
<p class="answer">{_e(answer)}</p>
<ul>{lines}</ul>
<p class="quiet">{_e(protocol(document))} {_e(document["rule_for_better"])}</p>
</section>"""


def _tables(document: Document) -> str:
    out = ['<section id="table"><h2>Table</h2>']
    if not ranked(document):
        return out[0] + "<p>No rule has a result yet.</p></section>"
    out.append('<p class="quiet">A heading sorts its column.</p>')
    for columns, label in (
        (results(document), "Results"),
        (details(document), "Steps, twins and cost"),
    ):
        if len(columns) > 1:
            if label != "Results":
                out.append(f"<h3>{label}</h3>")
            out.append(_table(columns, label))
            notes = "".join(f"<li>{_e(c.heading)}: {_e(c.about)}.</li>" for c in columns[1:])
            summary = "<summary>What the columns are</summary>"
            out.append(f"<details>{summary}<ul>{notes}</ul></details>")
    return "\n".join([*out, "</section>"])


def _table(columns: list[Column], label: str) -> str:
    heads = []
    for i, column in enumerate(columns):
        number = column.is_number
        kind = "number" if number else "text"
        # Scores: the largest first. Everything else: the smallest, or A, first.
        first = "descending" if column.heading.endswith("%") else "ascending"
        text = "" if number or not i else ' class="text"'
        heads.append(
            f'<th scope="col" data-kind="{kind}" data-first="{first}"{text}>'
            f'<button type="button" title="{_e(column.about)}">{_e(column.heading)}</button></th>'
        )
    rows = []
    for cells in zip(*(column.cells for column in columns), strict=True):
        row = []
        for i, (column, cell) in enumerate(zip(columns, cells, strict=True)):
            key = "" if cell.key is None else f' data-key="{_e(cell.key)}"'
            looks = " ".join(filter(None, [cell.look, "" if column.is_number else "text"]))
            look = f' class="{looks}"' if looks else ""
            tag = "th" if i == 0 else "td"
            scope = ' scope="row"' if i == 0 else ""
            text = _e(cell.text) if i else _e(cell.text).replace("_", "_<wbr>")
            row.append(f"<{tag}{scope}{key}{look}>{text}</{tag}>")
        rows.append("<tr>" + "".join(row) + "</tr>")
    return _scrolled(
        f'<table class="sortable"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table>",
        label,
    )


def _scrolled(table: str, label: str) -> str:
    """A table that a narrow window scrolls, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{_e(label)}">{table}</div>'


def _charts(document: Document, drawn: list[Chart], live: bool) -> str:
    out = ['<section id="charts"><h2>Charts</h2>']
    if not drawn:
        return out[0] + "<p>There is nothing to draw.</p></section>"
    if live:
        out.append(_toggles(document))
        out.append("<noscript><p>The charts need JavaScript; the tables do not.</p></noscript>")
    else:
        out.append(
            '<p class="quiet">These are pictures. With <code>pip install "fnn[report]"</code> the'
            " charts show their numbers under the mouse, and rules can be hidden.</p>"
        )
    out.append('<div class="charts">')
    out += [_figure(document, chart, live) for chart in drawn]
    return "\n".join([*out, "</div>", "</section>"])


def _toggles(document: Document) -> str:
    looks = styles(document)
    labels = []
    for i, rule in enumerate(ranked(document)):
        name, style = rule["name"], looks[rule["name"]]
        checked = " checked" if i < SHOWN else ""
        labels.append(
            f'<label><input type="checkbox" data-rule="{_e(name)}"{checked}>'
            f"{_swatch(style)}{_e(name)}</label>"
        )
    n = len(labels)
    five = '<button type="button" data-choose="5">Best five</button>' if n > 5 else ""
    return (
        f'<fieldset class="rules-shown"><legend>Rules in the charts, the best first</legend>'
        f'{"".join(labels)}<div class="buttons">'
        f'<button type="button" data-choose="{n}">All</button>{five}'
        '<button type="button" data-choose="0">None</button>'
        '<label><input type="checkbox" id="ranges" checked>ranges of seeds</label></div></fieldset>'
        '<p class="quiet">Point at a chart for its numbers, or focus it and press the arrow keys.'
        " Drag to enlarge, double-click to go back.</p>"
    )


def _swatch(style: Style) -> str:
    dashes = ("", "7 3", "2 2.5", "7 2 2 2")[style.dash]
    return (
        '<svg width="30" height="10" aria-hidden="true"><line x1="1" y1="5" x2="29" y2="5"'
        f' stroke="{style.colour}" stroke-width="2.5" stroke-dasharray="{dashes}"/></svg>'
    )


def _figure(document: Document, chart: Chart, live: bool) -> str:
    log = ""
    if live and _log_and_linear(document, chart)[0] != _log_and_linear(document, chart)[1]:
        spread = "spread near 100 %" if chart.y_score and score_of(document).unit == "%" else "log"
        checked = " checked" if _starts_log(document, chart) else ""
        log = f'<label><input type="checkbox" class="log"{checked}> {spread}</label>'
    if live:
        label = f"{chart.title}. {chart.about}"
        height = _height(chart)
        shown = (
            f'<div class="chart" id="{chart.id}" tabindex="0" role="img" aria-label="{_e(label)}"'
            f' style="height:{height}px"></div>{_numbers(document, chart)}'
            '<p class="said" role="status"></p>'
        )
    else:
        shown = (
            f'<div class="chart" role="img" aria-label="{_e(chart.title)}">'
            f"{as_svg(document, chart)}</div>{_numbers(document, chart)}"
        )
    return (
        f'<figure><div class="head"><h3>{_e(chart.title)}</h3>{log}</div>'
        f"<figcaption>{_e(chart.about)}</figcaption>{shown}</figure>"
    )


def _numbers(document: Document, chart: Chart) -> str:
    """The numbers of a chart of lines, as a table that opens; a column for each rule."""
    if chart.kind != "line":
        return ""
    score = score_of(document)
    xs = sorted({x for line in chart.lines for x in line.x})
    every = -(-len(xs) // ROWS)
    kept = [x for i, x in enumerate(xs) if i % every == 0 or i == len(xs) - 1]
    lines = [line for line in chart.lines if line.x]
    known = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    heads = "".join(f'<th scope="col">{_e(line.rule)}</th>' for line in lines)

    def text(value: float | None) -> str:
        return _shown(score if chart.y_score else None, value)

    rows = "\n".join(
        f'<tr><th scope="row">{x:g}</th>'
        + "".join(f"<td>{_e(text(of.get(x)))}</td>" for of in known)
        + "</tr>"
        for x in kept
    )
    table = (
        f'<table><thead><tr><th scope="col">{_e(chart.x)}</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    caption = f"{chart.title}: numbers"
    return f"<details><summary>Numbers</summary>{_scrolled(table, caption)}</details>"


def _shown(score: Score | None, value: float | None) -> str:
    if score is not None:
        return score.text(value)
    return NONE if value is None else f"{value:.4g}"


PLAIN = '<table class="plain"><tbody>{}</tbody></table>'


def _noise(document: Document) -> str:
    score, floor = score_of(document), document.get("noise_floor") or {}
    rows = "".join(
        f'<tr><th scope="row">{_e(what)}</th>'
        f"<td>{_e(score.text(floor[name]))}{_e(score.after)}</td></tr>"
        for name, what in NOISE.items()
        if floor.get(name) is not None
    )
    table = PLAIN.format(rows) if rows else "<p>It was not measured.</p>"
    pairs = document.get("inclusion") or []
    checks = "".join(
        f"<tr><th scope='row'>{_e(p['rule'])} contains {_e(p['contains'])}</th>"
        f"<td>{_e(score.text(p.get('difference'), sign=True))}{_e(score.after)}</td>"
        f"<td class='text {'good' if p['holds'] else 'bad'}'>{'holds' if p['holds'] else 'fails'}"
        "</td></tr>"
        for p in pairs
    )
    inclusion = (
        "<h3>Inclusion</h3><p class='quiet'>A rule that contains another must not lose to it; if it"
        " does, its search found too little.</p>" + _scrolled(PLAIN.format(checks), "Inclusion")
        if pairs
        else ""
    )
    return (
        '<section id="noise"><h2>Noise floor</h2><p class="quiet">How far apart the scores of two'
        f" single runs are that should be the same: the 95th percentile of the difference of"
        f" {_e(score.name)}.</p>{_scrolled(table, 'Noise floor')}{inclusion}</section>"
    )


def _rules(document: Document, file: str | PurePath) -> str:
    out = ['<section id="rules"><h2>Rules</h2><div class="rules">']
    for rule in document["rules"]:
        twin = f", compared with {rule['twin']}" if rule.get("twin") else ""
        chosen = ""
        if rule.get("final"):
            point = point_text(rule["final"]["point"])
            chosen = f'<p class="quiet">Chosen: {_e(point)}. One of its runs again:</p>'
            chosen += f'<pre class="command">{_e(replay(rule, file))}</pre>'
        out.append(
            f"<details open><summary>{_e(rule['name'])}</summary>"
            f'<p class="quiet">By {_e(rule["by"])}{_e(twin)}.</p>'
            f"<pre>{_e(rule['formula'])}</pre>{chosen}</details>"
        )
    return "\n".join([*out, "</div></section>"])


def replay(rule: Rule, file: str | PurePath = "comparison.json") -> str:
    """The command that trains the first final run of a rule again."""
    point = rule["final"]["point"]
    alone = list(point) == ["learning_rate"]
    values = [v if alone else f"{name}={v}" for name, v in point.items()]
    seeds = rule["final"].get("seeds") or [0]
    words = ["fnn", "compare", "--replay", file, rule["name"], *values]
    return shlex.join(map(str, [*words, f"seed={seeds[0]}"]))


def _again(document: Document) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_e(name)}</th><td class="wrap">{_e(value)}</td></tr>'
        for name, value in settings_of(document).items()
    )
    return f"""<section id="again"><h2>Run it again</h2>
<pre class="command" id="command">{_e(document["command"])}</pre>
<button type="button" class="copy" data-of="command">Copy</button>
<h3>Settings</h3>
{_scrolled(PLAIN.format(rows), "Settings")}
<p class="quiet">Every number is in comparison.json, in the folder of this page.</p>
</section>
</main>"""


# --- charts for Plotly --------------------------------------------------------------------------


def _t(text: str) -> str:
    """Text for Plotly, which reads some tags and entities."""
    return html.escape(text, quote=False).replace("%{", "%\u200b{")  # no template


def _height(chart: Chart) -> int:
    return 90 + 30 * len(chart.lines) if chart.kind == "scores" else 340


def _spec(document: Document, chart: Chart) -> dict[str, Any]:
    """What `_page.js` draws: traces, a layout, and the y axis in its two scales."""
    looks = styles(document)
    layout: dict[str, Any] = {
        "margin": {"l": 56, "r": 12, "t": 8, "b": 44},
        "height": _height(chart),
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 12, "family": "system-ui, 'DejaVu Sans', sans-serif"},
        "hoverlabel": {"namelength": -1},
        "xaxis": {"title": {"text": _t(chart.x), "standoff": 8}, "zeroline": False},
        "yaxis": {"title": {"text": _t(chart.y), "standoff": 6}, "automargin": True},
    }
    layout["yaxis"]["zeroline"] = False
    label = f"1 - {chart.x}" if chart.x_scale == "log1m" else chart.x
    layout["xaxis"]["unifiedhovertitle"] = {"text": _t(label).replace("%", "") + " %{x}"}
    layout["xaxis"] |= {"showline": True, "ticks": "outside", "ticklen": 4, "automargin": True}
    layout["yaxis"] |= {"showline": True}
    if chart.kind == "scores":
        traces = _score_traces(document, chart, looks)
        names = [line.rule for line in chart.lines]
        layout["yaxis"] |= {
            "tickvals": [line.y[0] for line in chart.lines],
            "ticktext": [_t(name) for name in names],
            "range": [len(names) - 0.4, -0.6],
            "showgrid": False,
        }
        layout["shapes"] = _floor_shapes(document, chart)
        if chart.x_scale == "log":
            known = [v for line in chart.lines for v in line.x]
            layout["xaxis"] |= {"type": "log", **_decades(known)}
    else:
        traces = [t for line in chart.lines for t in _traces(document, chart, line, looks)]
        layout["xaxis"] |= _x_scale(chart)
    log, linear = _log_and_linear(document, chart)
    return {
        "id": chart.id,
        "x": label,
        "traces": traces,
        "layout": layout,
        "log": log,
        "linear": linear,
        "unified": chart.kind == "line",
    }


def _x_scale(chart: Chart) -> dict[str, Any]:
    xs = sorted({x for line in chart.lines for x in x_places(chart, line.x)})
    text = "{:g}".format if chart.x_scale != "log1m" else lambda x: f"{1 - x:.6g}"
    log = chart.x_scale != "linear"
    if len(xs) <= 9 and chart.kind == "line":
        ticks = _ticks([(x, text(x)) for x in xs])
    else:
        ticks = _decades(xs, text) if log and xs else {}
    side = {"autorange": "reversed"} if chart.x_scale == "log1m" else {}
    return {"type": "log" if log else "linear", **side, **ticks}


def _traces(
    document: Document, chart: Chart, line: Line, looks: dict[str, Style]
) -> list[dict[str, Any]]:
    """The range over seeds, and the line upon it."""
    score = score_of(document) if chart.y_score else None
    style = looks[line.rule]
    axis = score_axis(score, values_of(chart)) if score else None
    place = axis.place if axis else lambda value: value

    def number(value: float | None) -> float | None:
        placed = place(value)
        return None if placed is None else float(f"{placed:.6g}")

    said = [_said(score, line, i) for i in range(len(line.x))]
    few = len(line.x) <= MARKED or chart.kind == "dots"
    mode = {"dots": "markers", "steps": "lines"}.get(
        chart.kind, "lines+markers" if few else "lines"
    )
    main = {
        "type": "scatter",
        "name": _t(line.rule),
        "mode": mode,
        "x": x_places(chart, line.x),
        "y": [number(y) for y in line.y],
        "line": {
            "color": style.colour,
            "width": 2,
            "dash": DASHES[style.dash],
            "shape": "hv" if chart.kind == "steps" else "linear",
        },
        "marker": {"color": style.colour, "symbol": SYMBOLS[style.marker], "size": 7},
        "customdata": [_t(text) for text in said],
        "hovertemplate": "%{customdata}",
        "meta": {"rule": line.rule, "role": "line", "said": said},
    }
    band = _band(line._replace(x=x_places(chart, line.x)), number)
    if not band[0] or chart.kind == "dots":
        return [main]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": band[0],
            "y": band[1],
            "fill": "toself",
            "fillcolor": _faint(style.colour),
            "line": {"width": 0},
            "hoverinfo": "skip",
            "meta": {"rule": line.rule, "role": "range"},
        },
        main,
    ]


def _said(score: Score | None, line: Line, i: int) -> str:
    """A point in words: its value, the range over seeds, and its note."""
    unit = score.after if score else ""
    text = _shown(score, line.y[i]) + unit
    if line.low and line.high and line.low[i] is not None and line.low[i] != line.high[i]:
        text += f" ({_shown(score, line.low[i])} to {_shown(score, line.high[i])})"
    if line.notes and "," in line.notes[i]:
        text += f" at {line.notes[i]}"
    return text


def _band(line: Line, number: Any) -> tuple[list[Any], list[Any]]:
    """The outline of the range over seeds: a closed shape for each stretch without a gap."""
    xs: list[Any] = []
    ys: list[Any] = []
    part: list[tuple[float, float | None, float | None]] = []

    def close() -> None:
        if len(part) > 1:
            if xs:
                xs.append(None)
                ys.append(None)
            xs.extend([x for x, _, _ in part] + [x for x, _, _ in reversed(part)])
            ys.extend([number(a) for _, a, _ in part] + [number(b) for _, _, b in reversed(part)])
        part.clear()

    for x, low, high in zip(line.x, line.low or [], line.high or [], strict=False):
        if low is None or high is None:
            close()
        else:
            part.append((x, low, high))
    close()
    return xs, ys


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"


def _score_traces(
    document: Document, chart: Chart, looks: dict[str, Style]
) -> list[dict[str, Any]]:
    score, rules = score_of(document), {r["name"]: r for r in ranked(document)}
    traces = []
    for line in chart.lines:
        style, rule, (mean,), (place,) = looks[line.rule], rules[line.rule], line.x, line.y
        final, unit = rule["final"], score.factor
        low, high = final["low"], final["high"]
        seeds = [unit * v for v in final["test"] if v is not None]
        said = score.interval(mean, low, high) + score.after
        traces.append({
            "type": "scatter",
            "mode": "markers",
            "x": seeds,
            "y": [place] * len(seeds),
            "marker": {"symbol": "line-ns-open", "size": 9, "color": style.colour, "opacity": 0.55},
            "hoverinfo": "skip",
            "meta": {"rule": line.rule, "role": "range"},
        })  # fmt: skip
        main = {
            "type": "scatter",
            "mode": "markers",
            "name": _t(line.rule),
            "x": [unit * mean],
            "y": [place],
            "marker": {"symbol": SYMBOLS[style.marker], "size": 10, "color": style.colour},
            "customdata": [_t(said)],
            "hovertemplate": "%{customdata}",
            "meta": {"rule": line.rule, "role": "line", "said": [said]},
        }
        if low is not None and high is not None:
            main["error_x"] = {
                "type": "data",
                "symmetric": False,
                "array": [unit * (high - mean)],
                "arrayminus": [unit * (mean - low)],
                "color": style.colour,
                "thickness": 2.2,
                "width": 0,
            }
        traces.append(main)
    return traces


def _floor_shapes(document: Document, chart: Chart) -> list[dict[str, Any]]:
    """The noise floor around the best mean: scores in it are as near as two runs of one rule."""
    floor = floor_of(document)
    unit, best = score_of(document).factor, chart.lines[0].x[0]
    shapes = [{
        "type": "line", "x0": unit * best, "x1": unit * best, "y0": 0, "y1": 1, "yref": "paper",
        "line": {"color": "#808080", "width": 1, "dash": "dot"}, "layer": "below",
    }]  # fmt: skip
    if floor and chart.x_scale == "linear":
        shapes.append({
            "type": "rect", "x0": unit * (best - floor), "x1": unit * (best + floor),
            "y0": 0, "y1": 1, "yref": "paper", "line": {"width": 0},
            "fillcolor": "rgba(128,128,128,0.16)", "layer": "below",
        })  # fmt: skip
    return shapes


def _starts_log(document: Document, chart: Chart) -> bool:
    if chart.y_score:
        return score_axis(score_of(document), values_of(chart)).log
    return chart.y_log


def _log_and_linear(document: Document, chart: Chart) -> tuple[dict[str, Any], dict[str, Any]]:
    """The y axis on its log and on its linear scale; the same twice if there is no choice."""
    if chart.kind == "scores":
        return {}, {}  # its y axis has names
    linear: dict[str, Any] = {"type": "linear", "autorange": True, "tickvals": None}
    values = [score_of(document).factor * v if chart.y_score else v for v in values_of(chart)]
    axis = score_axis(score_of(document), values_of(chart)) if chart.y_score else None
    if axis and axis.reverse:
        return _reversed("log", axis.ticks), _reversed("linear", axis.linear_ticks)
    if chart.kind == "steps" or min(values, default=0) <= 0:
        return linear, linear
    return {"type": "log", "autorange": True, **_decades(values)}, linear


def _reversed(kind: str, ticks: list[tuple[float, str]] | None) -> dict[str, Any]:
    axis: dict[str, Any] = {"type": kind, "autorange": "reversed"}
    return axis | _ticks(ticks or [])


def _ticks(ticks: Sequence[tuple[float, str]]) -> dict[str, Any]:
    return {"tickvals": [at for at, _ in ticks], "ticktext": [text for _, text in ticks]}


def _decades(
    values: Sequence[float], text: Callable[[float], str] = "{:g}".format
) -> dict[str, Any]:
    """Ticks of a log axis, each with its whole number: 1, 2, 5, 10, or only the powers of 10."""
    if max(values) < 10 * min(values):
        return {"tickvals": None}  # Plotly's own are better
    low, high = (math.floor(math.log10(v)) for v in (min(values), max(values)))
    digits = (1, 2, 5) if high - low <= 3 else (1,)
    at = [float(f"{d}e{power}") for power in range(low, high + 1) for d in digits]
    return _ticks([(v, text(v)) for v in at])
