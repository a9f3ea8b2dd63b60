r"""A comparison as two tables of LaTeX, for a paper's appendix. It reads only the document."""

import re
from collections.abc import Sequence

from fnn.compare._columns import Column, details, results, two_lines
from fnn.compare._findings import findings_of
from fnn.compare._reading import NONE, Document, protocol, settings_as_text

WIDE = "flops", "compile, s", "run, s"  # columns for which a page has no room


def as_tex(document: Document) -> bytes:
    r"""Two tables. They need `\usepackage{booktabs}`, nothing else."""
    device, on = document["device"], document["problem"]["name"]
    answer = findings_of(document)[0]
    narrow = [column for column in details(document) if column.heading not in WIDE]
    lines = [
        "% Made by: " + " ".join(document["command"].split()),
        "% Versions: " + settings_as_text(document)["versions"],
        r"% Needs \usepackage{booktabs}",
        *_table(
            results(document),
            f"Optimizers on {on}. {answer} {protocol(document)} {document['rule_for_better']}",
            "results",
        ),
        *_table(
            narrow,
            f"Steps, twins and cost on {on}. {device['count']} x {device['kind']}.",
            "details",
        ),
    ]
    return ("\n".join(lines) + "\n").encode()


def _table(columns: Sequence[Column], caption: str, label: str) -> list[str]:
    if len(columns) < 2 or not columns[0].cells:
        return []
    align = "".join("l" if i == 0 or not c.is_number else "r" for i, c in enumerate(columns))
    heads = zip(*(two_lines(c.heading) for c in columns), strict=True)
    body = [
        " & ".join(_tex(c.text) for c in row) + r" \\"
        for row in zip(*(c.cells for c in columns), strict=True)
    ]
    return [
        r"\begin{table}[ht]",
        r"\centering\scriptsize\setlength{\tabcolsep}{2.5pt}",
        rf"\caption{{{_tex(caption)}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}",
        r"\toprule",
        *(" & ".join(map(_tex, head)) + r" \\" for head in heads),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "`": r"\`{}",
    "[": "{[}",  # after \\ it would open an argument
    NONE: "--",
    "µ": r"$\mu$",
    "±": r"$\pm$",
    "\u00d7": r"$\times$",
    **{c: rf"\{c}" for c in "&%$#_"},
}


def _tex(text: str) -> str:
    """Text that LaTeX sets as it is: one line, its own characters escaped."""
    escaped = "".join(_TEX.get(c, c) for c in " ".join(str(text).split()))
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", escaped)  # a minus, not a hyphen
