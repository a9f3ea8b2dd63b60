"""The tables of the page."""

from collections.abc import Mapping, Sequence
from html import escape

from fnn.compare._charts import Chart
from fnn.compare._columns import Cell, Column, details, results
from fnn.compare._findings import NOISE
from fnn.compare._reading import Document, ranked, score_of, y_of

ROWS = 30  # of a table of a chart's numbers


def tables_of(document: Document) -> str:
    """The two tables that a heading sorts."""
    if not ranked(document):
        return "<p>No rule has a result yet.</p>"
    parts = ['<p class="quiet">A heading sorts its column.</p>']
    parts += _table_with_notes(results(document), "Results")
    costs = _table_with_notes(details(document), "Steps, twins and cost")
    if costs:
        parts += ["<h3>Steps, twins and cost</h3>", *costs]
    return "\n".join(parts)


def _table_with_notes(columns: Sequence[Column], label: str) -> list[str]:
    if len(columns) < 2:
        return []
    notes = "".join(f"<li>{escape(f'{c.heading}: {c.about}')}.</li>" for c in columns[1:])
    summary = "<summary>What the columns are</summary>"
    return [_table(columns, label), f"<details>{summary}<ul>{notes}</ul></details>"]


def _table(columns: Sequence[Column], label: str) -> str:
    heads = "".join(_heading(column, i) for i, column in enumerate(columns))
    rows = [
        "".join(_cell(*of, i) for i, of in enumerate(zip(columns, cells, strict=True)))
        for cells in zip(*(column.cells for column in columns), strict=True)
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return scrolled(
        f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table>',
        label,
    )


def _heading(column: Column, i: int) -> str:
    number = column.is_number
    # Scores: the largest first. Everything else: the smallest, or A, first.
    first = "descending" if column.heading.endswith("%") else "ascending"
    text = "" if number or not i else ' class="text"'
    return (
        f'<th scope="col" data-kind="{"number" if number else "text"}" data-first="{first}"{text}>'
        f'<button type="button" title="{escape(column.about)}">{escape(column.heading)}</button>'
        "</th>"
    )


def _cell(column: Column, cell: Cell, i: int) -> str:
    key = "" if cell.key is None else f' data-key="{escape(str(cell.key))}"'
    looks = " ".join(filter(None, [cell.look, "" if column.is_number else "text"]))
    look = f' class="{looks}"' if looks else ""
    text = escape(cell.text)
    if i:
        return f"<td{key}{look}>{text}</td>"
    return f'<th scope="row"{key}{look}>{text.replace("_", "_<wbr>")}</th>'


def scrolled(table: str, label: str) -> str:
    """A table that a narrow window scrolls, by keyboard too."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'
    )


def plain_table(rows: Mapping[str, str], label: str, look: str = "") -> str:
    """A row for each pair of words."""
    td = f'<td class="{look}">' if look else "<td>"
    return _plain(
        [f'<th scope="row">{escape(k)}</th>{td}{escape(v)}</td>' for k, v in rows.items()], label
    )


def _plain(rows: Sequence[str], label: str) -> str:
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return scrolled(f'<table class="plain"><tbody>{body}</tbody></table>', label)


def noise_of(document: Document) -> str:
    """The noise floors."""
    score, floor = score_of(document), document.get("noise_floor") or {}
    rows = {
        what: score.said(floor[name]) for name, what in NOISE.items() if floor.get(name) is not None
    }
    return plain_table(rows, "Noise floor") if rows else "<p>It was not measured.</p>"


def inclusion_of(document: Document) -> str:
    """Which rules contain others, and whether they lose to them; nothing if none does."""
    score, pairs = score_of(document), document.get("inclusion") or []
    rows = [
        f'<th scope="row">{escape(p["rule"])} contains {escape(p["contains"])}</th>'
        f"<td>{escape(score.said(p.get('difference'), sign=True))}</td>"
        + ('<td class="text good">holds</td>' if p["holds"] else '<td class="text bad">fails</td>')
        for p in pairs
    ]
    if not rows:
        return ""
    return (
        '<h3>Inclusion</h3><p class="quiet">A rule that contains another must not lose to it; if it'
        f" does, its search found too little.</p>{_plain(rows, 'Inclusion')}"
    )


def numbers_of(document: Document, chart: Chart) -> str:
    """The numbers of a chart of lines, as a table that opens; a column for each rule."""
    if chart.kind != "line":
        return ""
    score, lines = y_of(document, chart.y_score), [line for line in chart.lines if line.x]
    xs = sorted({x for line in lines for x in line.x})
    every = -(-len(xs) // ROWS)
    kept = [x for i, x in enumerate(xs) if i % every == 0 or i == len(xs) - 1]
    known = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    names = [chart.x, *(line.rule for line in lines)]
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = "\n".join(
        f'<tr><th scope="row">{x:g}</th>'
        + "".join(f"<td>{escape(score.text(of.get(x)))}</td>" for of in known)
        + "</tr>"
        for x in kept
    )
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    shown = scrolled(table, f"{chart.title}: numbers")
    return f"<details><summary>Numbers</summary>{shown}</details>"
