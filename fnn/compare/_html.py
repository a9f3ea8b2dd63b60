"""A comparison as one HTML file that opens offline: words, tables and charts.

`_page.html` is the page, `_page.css` its looks, `_page.js` what moves; here its blanks are filled.
The charts are Plotly's, if the package `plotly` is there, which carries plotly.js; otherwise they
are pictures by matplotlib. The page asks no network for anything: it has everything in itself, and
a Content-Security-Policy that forbids the rest. Names and paths are the user's text; every one of
them is escaped, and scripts run only if their SHA-256 is in the policy.
"""

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import PurePath
from string import Template
from typing import Any

from fnn.compare._charts import Chart, charts
from fnn.compare._findings import findings_of
from fnn.compare._html_charts import charts_of
from fnn.compare._html_tables import inclusion_of, noise_of, plain_table, tables_of
from fnn.compare._plotly import spec
from fnn.compare._reading import (
    Document,
    Rule,
    point_in_words,
    protocol,
    score_of,
    settings_as_text,
)


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
    scripts = [library] if library and drawn else []
    scripts.append(_file("_page.js"))
    blanks = _words(document, file) | {
        "policy": _policy(scripts),
        "style": _file("_page.css"),
        "tables": tables_of(document),
        "charts": charts_of(document, drawn, live=library is not None),
        "noise": noise_of(document) + inclusion_of(document),
        "settings": plain_table(settings_as_text(document), "Settings", "wrap"),
        "data": "" if library is None else _data(document, drawn),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    return Template(_file("_page.html")).substitute(blanks).encode()


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


def _data(document: Document, drawn: Sequence[Chart]) -> str:
    specs = _json([spec(document, chart) for chart in drawn])
    return f'<script type="application/json" id="charts-data">{specs}</script>'


def _json(value: Any) -> str:
    """JSON that no parser of HTML takes for a tag."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# --- words --------------------------------------------------------------------------------------


def _words(document: Document, file: str | PurePath) -> dict[str, str]:
    problem, (answer, *others) = document["problem"], findings_of(document)
    return {
        "problem": escape(problem["name"]),
        "about": escape(problem.get("about") or ""),
        "answer": escape(answer),
        "findings": "".join(f"<li>{escape(line)}</li>" for line in others),
        "protocol": escape(f"{protocol(document)} {document['rule_for_better']}"),
        "score": escape(score_of(document).name),
        "rules": "\n".join(_rule(rule, file) for rule in document["rules"]),
        "command": escape(document["command"]),
    }


def _rule(rule: Rule, file: str | PurePath) -> str:
    """The formula of a rule, and the command that makes one of its runs again."""
    twin = f", compared with {rule['twin']}" if rule.get("twin") else ""
    formula = rule["formula"].replace("``", "")  # a docstring's marks of code
    chosen = ""
    if rule.get("final"):
        point = escape(point_in_words(rule["final"]["point"]))
        chosen = f'<p class="quiet">Chosen: {point}. One of its runs again:</p>'
        chosen += f'<pre class="command">{escape(replay(rule, file))}</pre>'
    return (
        f"<details open><summary>{escape(rule['name'])}</summary>"
        f'<p class="quiet">By {escape(rule["by"] + twin)}.</p>'
        f"<pre>{escape(formula)}</pre>{chosen}</details>"
    )


def replay(rule: Rule, file: str | PurePath = "comparison.json") -> str:
    """The command that trains the first final run of a rule again."""
    point = rule["final"]["point"]
    alone = list(point) == ["learning_rate"]
    values = [v if alone else f"{name}={v}" for name, v in point.items()]
    seeds = rule["final"].get("seeds") or [0]
    words = ["fnn", "compare", "--replay", file, rule["name"], *values]
    return shlex.join(map(str, [*words, f"seed={seeds[0]}"]))
