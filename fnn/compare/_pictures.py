"""Pictures of the charts, by matplotlib."""

import io
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from fnn.compare._axes import Axis, x_places, y_axis
from fnn.compare._charts import MARKED, Chart, Line, Style, Values, charts, styles
from fnn.compare._reading import Document, floor_of, ranked, score_of
from fnn.inspect.plots import MARKERS

_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (5, 1.5, 1.2, 1.5)))
_INK = "#123457"  # stands for the colour of text until the picture is made


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


def _picture(document: Document, panels: list[Chart], kind: Literal["png", "svg"]) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_settings(_INK if kind == "svg" else "black")):
        columns = min(2, len(panels)) or 1
        rows = math.ceil(len(panels) / columns) or 1
        height = max(3.6, 1.4 + 0.24 * len(ranked(document)))
        size = (5.6 * columns + 1.4, height * rows) if kind == "png" else (7.2, height)
        figure = Figure(figsize=size, layout="constrained", dpi=150)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, chart in zip(axes, panels, strict=False):
            (_draw_scores if chart.kind == "scores" else _draw)(document, chart, ax)
            if kind == "png":  # the page has the titles as text
                ax.set_title(chart.title, fontsize=11)
            ax.grid(alpha=0.3, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        _legend(figure, axes)
        if kind == "png":
            return png_of(figure)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return file.getvalue()


def png_of(figure: Any) -> bytes:
    """The figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file)
    return file.getvalue()


def _settings(ink: str) -> Any:
    names = "text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"
    return {
        **dict.fromkeys(names, ink),
        "svg.hashsalt": "fnn",  # the same picture is the same bytes
        "text.parse_math": False,  # names are not formulas
    }


def _legend(figure: Any, axes: list[Any]) -> None:
    """One legend for all, each rule once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        place = {"loc": "outside right upper", "frameon": False, "fontsize": 9}
        figure.legend(list(handles.values()), list(handles), **place)


def _draw(document: Document, chart: Chart, ax: Any) -> None:
    looks, axis = styles(document), y_axis(document, chart)
    for line in chart.lines:
        _draw_line(chart, line, looks[line.rule], axis, ax)
    ax.set(xlabel=chart.x, ylabel=chart.y)
    _scale_x(chart, ax)
    if axis.log:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
    if axis.ticks:
        low, high = ax.get_ylim()
        inside = [(at, text) for at, text in axis.ticks if low <= at <= high]
        ax.minorticks_off()
        ax.set_yticks([at for at, _ in inside], [text for _, text in inside])
        ax.set_ylim(high, low)


def _draw_line(chart: Chart, line: Line, style: Style, axis: Axis, ax: Any) -> None:
    """The line or the points of a rule, and the range over seeds."""

    def placed(values: Values) -> list[float]:
        return [math.nan if (p := axis.place(v)) is None else p for v in values]

    look: dict[str, Any] = {"color": style.colour, "linestyle": _DASHES[style.dash]}
    if chart.kind == "steps":
        look["drawstyle"] = "steps-post"
    if chart.kind == "dots":
        look["linestyle"] = ""
    few = chart.kind == "dots" or (chart.kind == "line" and len(line.x) <= MARKED)
    look |= {"marker": MARKERS[style.marker] if few else None, "markersize": 4, "linewidth": 1.6}
    x = x_places(chart, line.x)
    ax.plot(x, placed(line.y), label=line.rule, **look)
    if line.low and line.high and chart.kind == "line":
        ends = placed(line.low), placed(line.high)
        ax.fill_between(x, *ends, color=style.colour, alpha=0.09, lw=0)


def _scale_x(chart: Chart, ax: Any) -> None:
    if chart.x in ("epoch", "number of trials"):
        ax.xaxis.get_major_locator().set_params(integer=True)
    if chart.x_scale != "linear":
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    if chart.x_scale == "log1m":
        ax.xaxis.set_major_formatter(lambda x, _: f"{1 - x:.6g}")
        ax.invert_xaxis()


def _draw_scores(document: Document, chart: Chart, ax: Any) -> None:
    score, rules = score_of(document), {r["name"]: r for r in ranked(document)}
    unit, looks = score.factor, styles(document)
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
