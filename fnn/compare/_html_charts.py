"""The charts of the page: their frames, and the row of rules that can be hidden."""

from collections.abc import Sequence
from html import escape

from fnn.compare._axes import y_axis
from fnn.compare._charts import Chart, Style, styles
from fnn.compare._html_tables import numbers_of
from fnn.compare._pictures import as_svg
from fnn.compare._plotly import height, log_and_linear
from fnn.compare._reading import Document, ranked, score_of

SHOWN = 10  # rules that are drawn at first, the best

PICTURES = (
    '<p class="quiet">These are pictures. With <code>pip install "fnn[report]"</code> the'
    " charts show their numbers under the mouse, and rules can be hidden.</p>"
)
HOW_TO = (
    '<p class="quiet">Point at a chart for its numbers, or focus it and press the arrow keys.'
    " Drag to enlarge, double-click to go back.</p>"
    "<noscript><p>The charts need JavaScript; the tables do not.</p></noscript>"
)


def charts_of(document: Document, drawn: Sequence[Chart], live: bool) -> str:
    """All charts; `live` ones are drawn by Plotly when the page opens."""
    if not drawn:
        return "<p>There is nothing to draw.</p>"
    figures = "\n".join(_figure(document, chart, live) for chart in drawn)
    above = _rules_shown(document) + HOW_TO if live else PICTURES
    return f'{above}\n<div class="charts">\n{figures}\n</div>'


def _rules_shown(document: Document) -> str:
    """A box to tick for each rule."""
    looks, names = styles(document), [rule["name"] for rule in ranked(document)]
    boxes = "".join(_box(name, looks[name], i < SHOWN) for i, name in enumerate(names))
    five = {5: "Best five"} if len(names) > 5 else {}
    buttons = {len(names): "All"} | five | {0: "None"}
    choices = "".join(
        f'<button type="button" data-choose="{n}">{text}</button>' for n, text in buttons.items()
    )
    return (
        f'<fieldset class="rules-shown"><legend>Rules in the charts, the best first</legend>{boxes}'
        f'<div class="buttons">{choices}'
        '<label><input type="checkbox" id="ranges" checked>ranges of seeds</label></div></fieldset>'
    )


def _box(name: str, style: Style, checked: bool) -> str:
    dashes = ("", "7 3", "2 2.5", "7 2 2 2")[style.dash]
    return (
        f'<label><input type="checkbox" data-rule="{escape(name)}"{" checked" if checked else ""}>'
        '<svg width="30" height="10" aria-hidden="true"><line x1="1" y1="5" x2="29" y2="5"'
        f' stroke="{style.colour}" stroke-width="2.5" stroke-dasharray="{dashes}"/></svg>'
        f"{escape(name)}</label>"
    )


def _figure(document: Document, chart: Chart, live: bool) -> str:
    title, about = escape(chart.title), escape(chart.about)
    numbers = numbers_of(document, chart)
    if live:
        scale = _choice_of_scale(document, chart)
        shown = (
            f'<div class="chart" id="{chart.id}" tabindex="0" role="img"'
            f' aria-label="{title}. {about}" style="height:{height(chart)}px"></div>{numbers}'
            '<p class="said" role="status"></p>'
        )
    else:
        scale, svg = "", as_svg(document, chart)
        shown = f'<div class="chart" role="img" aria-label="{title}">{svg}</div>{numbers}'
    return (
        f'<figure><div class="head"><h3>{title}</h3>{scale}</div>'
        f"<figcaption>{about}</figcaption>{shown}</figure>"
    )


def _choice_of_scale(document: Document, chart: Chart) -> str:
    """A box that makes the y axis logarithmic; nothing if it has no choice."""
    log, linear = log_and_linear(document, chart)
    if log == linear:
        return ""
    text = "spread near 100 %" if chart.y_score and score_of(document).unit == "%" else "log"
    checked = " checked" if y_axis(document, chart).log else ""
    return f'<label><input type="checkbox" class="log"{checked}> {text}</label>'
