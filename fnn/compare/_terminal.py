"""What is printed: the table of a comparison, lines, and what failed."""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fnn._base import console
from fnn.compare._columns import Cell, details, results, two_lines
from fnn.compare._reading import Document, ranked, score_of
from fnn.compare._words import WHO

LOOKS = {"good": "green", "bad": "red", "note": "yellow"}


def table(document: Document) -> Table:
    """A row for each rule, the best first, for the terminal; it fits 80 columns."""
    score = score_of(document).heading
    columns = {c.heading: c for c in details(document) + results(document)}
    wanted = ["rule", "chosen at", score, "p, Holm", "by Optax", "due to", "update, µs"]
    if any(len(rule["final"]["point"]) > 1 for rule in ranked(document)):
        wanted = [name for name in wanted if name not in ("by Optax", "due to")]
    shown = [columns[name] for name in wanted if name in columns]
    out = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for column in shown:
        right = column.is_number and column.heading != "chosen at"
        heading = Text("\n".join(two_lines(column.heading)))
        out.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for row in zip(*(column.cells for column in shown), strict=True):
        out.add_row(*(_on_screen(cell) for cell in row))
    return out


def _on_screen(cell: Cell) -> Text:
    """The cell in its colour; each part of a point in a line of its own."""
    interval = "[" in cell.text
    text = cell.text if interval else cell.text.replace(", ", "\n")
    return Text(text, style=LOOKS.get(cell.look, ""))


def printed(*parts: Any) -> str:
    """Text and tables as the terminal shows them."""
    screen = console()
    with screen.capture() as captured:
        for part in parts:
            screen.print(part, markup=False, highlight=False)
    return captured.get()


def say(text: str) -> list[str]:
    """Print text in the characters that stdout has. Returns what failed; not a pipe that closed."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for sign, plain in {"\N{EN DASH}": "-", "\N{MICRO SIGN}": "u"}.items():
        if sign.encode(encoding, "ignore") == b"":
            text = text.replace(sign, plain)
    text = text.encode(encoding, "replace").decode(encoding)
    try:
        print(text, end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again
        if not isinstance(error, BrokenPipeError):
            return [f"the table could not be printed: {error.strerror or error}"]
    return []


def complain(failed: Iterable[str]) -> None:
    """Print sentences to stderr."""
    for what in failed:
        print(f"{WHO}: {what}", file=sys.stderr)


def said(text: str, failed: Sequence[str] = ()) -> int:
    """Print text, and what failed to stderr; the exit code."""
    wrong = [*failed, *say(text)]
    complain(wrong)
    return int(bool(wrong))
