"""An example file as what it says and what it does: the one source of its page and its notebook.

A file begins with its docstring. `# %% [markdown]` begins a comment that explains, `# %%` the code
that it explains. A file without such lines is one piece of code.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CHAPTERS = [file for file in EXAMPLES if re.match(r"\d\d_", file.name)]
MARKER = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)
CALL = 'if __name__ == "__main__":'


class Piece(NamedTuple):
    """Words in Markdown, and the code that they explain; either may be empty."""

    words: str
    code: str


class Chapter(NamedTuple):
    """What a file of examples/ holds."""

    name: str  # 01_neuron
    title: str  # the first sentence of the docstring
    about: str  # its paragraphs, without the lines on how to run the file
    pieces: list[Piece]


def read(file: Path) -> Chapter:
    """The pieces of an example file."""
    source = file.read_text(encoding="utf-8")
    first = ast.parse(source).body[0]
    docstring = ast.get_docstring(ast.parse(source)) or ""
    title, _, about = docstring.partition("\n\n")
    paragraphs = [p for p in about.split("\n\n") if not p.startswith("python examples/")]
    rest = "".join(source.splitlines(keepends=True)[first.end_lineno :])
    return Chapter(file.stem, title.strip().rstrip("."), "\n\n".join(paragraphs), _pieces(rest))


def _pieces(source: str) -> list[Piece]:
    found = [Piece("", "")]
    parts = MARKER.split(source)  # code, (kind, text), ...
    for kind, text in [(None, parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]:
        if kind:
            found.append(Piece(_uncommented(text), ""))
        elif found[-1].code:
            found.append(Piece("", text.strip("\n")))
        else:
            found[-1] = found[-1]._replace(code=text.strip("\n"))
    return [piece for piece in found if piece.words or piece.code]


def _uncommented(text: str) -> str:
    lines = text.strip("\n").splitlines()
    wrong = [line for line in lines if not line.startswith("#")]
    if wrong:
        raise ValueError(f"code in a piece of words, before a line `# %%`: {wrong[0]}")
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def without_call(code: str) -> str:
    """The code without the lines that run `main` from the command line."""
    return code.partition(CALL)[0].rstrip("\n")
