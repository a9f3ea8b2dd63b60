"""A comparison as Markdown, for a README or an issue. It reads only the document."""

import re
from collections.abc import Sequence

from fnn.compare._columns import Cell, Column, details, results
from fnn.compare._findings import findings_of
from fnn.compare._reading import Document, protocol, settings_as_text


def as_markdown(document: Document) -> bytes:
    """The findings, the tables and the settings, for a README or an issue."""
    answer, *others = findings_of(document)
    problem = document["problem"]
    parts = [
        f"# Comparison of optimizers on {_line(problem['name'])}",
        _line(problem.get("about") or ""),
        f"**{_line(answer)}**",
        "\n".join(f"- {_line(line)}" for line in others),
        f"{_line(protocol(document))} {_line(document['rule_for_better'])}",
    ]
    for columns in (results(document), details(document)):
        if len(columns) > 1 and columns[0].cells:
            parts += [_table(columns), "\n".join(_notes(columns))]
    parts += ["## Settings", _table(_settings(document))]
    parts += ["The same comparison again:", _code(document["command"])]
    parts.append("## Rules")
    for rule in document["rules"]:
        parts += [f"### {_line(rule['name'])}", _line(f"By {rule['by']}.")]
        parts.append(_code(rule["formula"]))
    return ("\n\n".join(filter(None, parts)) + "\n").encode()


def _settings(document: Document) -> list[Column]:
    names, values = zip(*settings_as_text(document).items(), strict=True)
    return [
        Column("setting", "", [Cell(name, name) for name in names]),
        Column("value", "", [Cell(value, value) for value in values]),
    ]


def _line(text: str) -> str:
    """Text that Markdown shows as it is: one line, with the characters that it reads escaped."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", line)
    # What would begin a heading or an item of a list.
    return re.sub(r"^(#{0,5}|[-+=]*|\d+)([#.)=+-])(?=\s|$)", r"\1\\\2", line)


def _code(text: str) -> str:
    """A block of code, whose fence is longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _table(columns: Sequence[Column]) -> str:
    rules = [":--" if i == 0 or not c.is_number else "--:" for i, c in enumerate(columns)]
    lines = [[_line(c.heading) for c in columns], rules]
    lines += [[_line(c.text) for c in row] for row in zip(*(c.cells for c in columns), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _notes(columns: Sequence[Column]) -> list[str]:
    return [f"- {_line(c.heading)}: {_line(c.about)}." for c in columns[1:]]
