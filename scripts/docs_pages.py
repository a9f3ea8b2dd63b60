"""The pages of the site that are written from files elsewhere, and the links between all pages.

Every text has one source: README.md, CHANGELOG.md and others lie outside docs/, the examples are
Python, the interface is in docstrings. Here they become pages; docs_hooks.py hands them to MkDocs.
"""

import os
import posixpath
import re
from pathlib import Path

from docs_chapters import CHAPTERS, EXAMPLES, ROOT, Chapter, Piece, read, without_call

REPOSITORY = "https://github.com/fnn-project/fnn"
COLAB = "https://colab.research.google.com/github/fnn-project/fnn/blob/notebooks"
ELSEWHERE = {  # file: its page
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "course/index.md",
    **{f"examples/{f.name}": f"course/{f.stem}.md" for f in EXAMPLES},
}
LINK = re.compile(r'(\]\(|(?:src|href)=")([^)"\s]+)')
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LISTED = re.compile(r"(?m)^- .*\]\(([a-z0-9-]+\.md)\)")
FIRST_LINES = "docs/how-to/index.md"  # what each how-to page begins from


def page_of(path: str) -> str | None:
    """The page of a file of the repository, None if it has none."""
    if path in ELSEWHERE or not path.startswith("docs/"):
        return ELSEWHERE.get(path)
    return path.removeprefix("docs/")


def file_of(page: str) -> str:
    """The file of the repository that a page is written from."""
    written = {page: path for path, page in ELSEWHERE.items()}
    return written.get(page, f"docs/{page}")


def relink(text: str, path: str) -> str:
    """The Markdown of the file `path`, with links for the site; code is left as it is."""
    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(lambda m: m[1] + _target(m[2], path), part) for part in parts[::2]]
    return "".join(parts)


def _target(link: str, path: str) -> str:
    where, _, anchor = link.partition("#")
    if not where or "://" in link or link.startswith("mailto:"):
        return link
    file = posixpath.normpath(posixpath.join(posixpath.dirname(path), where))
    anchor = anchor and f"#{anchor}"
    if page := page_of(file):
        return posixpath.relpath(page, posixpath.dirname(page_of(path) or "") or ".") + anchor
    if not (ROOT / file).exists():
        return link  # MkDocs says that it leads nowhere
    kind = "tree" if (ROOT / file).is_dir() else "blob"
    return f"{REPOSITORY}/{kind}/main/{file}{anchor}"


# --- examples -----------------------------------------------------------------------------------


def example_page(file: Path) -> str:
    """The page of an example: title, links, figure, words, and the code beside its explanation."""
    chapter = read(file)
    pieces = "\n\n".join(_beside(piece) for piece in chapter.pieces)
    head = f"# {_title(chapter)}\n\n{_links(file)}\n\n{chapter.about}\n\n{_figure(file)}"
    return f"---\nhide: [toc]\n---\n\n{head}\n\n{pieces}\n"


def _title(chapter: Chapter) -> str:
    number = re.match(r"\d\d", chapter.name)
    return f"{int(number[0])}. {chapter.title}" if number else chapter.title


def short_title(file: Path) -> str:
    """The title in the navigation: what stands before the colon."""
    title = re.split(r"[:,]", _title(read(file)))[0]
    return title if file in CHAPTERS else file.name


def _links(file: Path) -> str:
    source = f"[`examples/{file.name}`]({REPOSITORY}/blob/main/examples/{file.name})"
    if file not in CHAPTERS:
        return f"{source} · `python examples/{file.name}`\n{{ .links }}"
    colab = f"[Open in Colab]({COLAB}/{file.stem}.ipynb)"
    notebook = f'<a href="../notebooks/{file.stem}.ipynb" download>Notebook</a>'
    return f"{colab} · {notebook} · {source} · `python examples/{file.name} --quick`\n{{ .links }}"


def _figure(file: Path) -> str:
    """The figure of a full run, and the result that the course's table gives."""
    if not (ROOT / "docs" / "images" / f"{file.stem}.png").exists():
        return ""
    table = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| \[{file.name}\].*$", table, re.MULTILINE)
    cells = row[0].split(" | ") if row else []
    result = f"\n\n**Result of a full run:** {cells[2]}." if len(cells) > 2 else ""
    return f"![{read(file).title}](../images/{file.stem}.png){result}"


def _beside(piece: Piece) -> str:
    code = without_call(piece.code)
    block = f"```python\n{code}\n```" if code else ""
    if not piece.words:
        return block
    if re.match(r"#+ (The drawing|Drawing)", piece.words):
        title, _, words = piece.words.lstrip("# ").partition("\n")
        return f'<details markdown="1"><summary>{title}</summary>\n{words}\n\n{block}\n\n</details>'
    return (
        '<div class="beside" markdown="1">\n<div class="words" markdown="1">\n\n'
        f'{piece.words}\n\n</div>\n<div markdown="1">\n\n{block}\n\n</div>\n</div>'
    )


# --- pages in docs/ that become more on the site ------------------------------------------------


def first_lines() -> str:
    """The code that each how-to page begins from."""
    found = re.search(r"^```python\n.*?^```$", (ROOT / FIRST_LINES).read_text(), re.M | re.S)
    assert found, f"{FIRST_LINES} has no Python block"
    return found[0]


def how_to_page(text: str) -> str:
    """With the lines that the page begins from, folded, before its first block of Python."""
    fold = (
        '<details class="first-lines" markdown="1"><summary>The first lines of each page: imports,'
        f" data, a net, its loss</summary>\n\n{first_lines()}\n\n</details>\n\n"
    )
    return text.replace("```python", f"{fold}```python", 1)


def side_by_side(text: str) -> str:
    """Each library's program beside that of fnn, the first of the page."""
    head, *sections = re.split(r"(?m)^(?=## )", text)
    blocks = FENCE.findall("".join([head, *sections]))
    ours = next(block for block in blocks if block.startswith("```python"))
    return head + "".join(_pair(s, ours) if s.startswith("## From ") else s for s in sections)


def _pair(section: str, ours: str) -> str:
    name = section.splitlines()[0].removeprefix("## From ")
    sides = "".join(
        f'<div markdown="1">\n\n**{who}**\n\n{code}\n\n</div>\n'
        for who, code in ((name, "\\g<1>"), ("fnn", ours.replace("\\", r"\\")))
    )
    pair = f'<div class="pair" markdown="1">\n{sides}</div>'
    return re.sub(r"(?ms)(^```python\n.*?^```$)", pair, section, count=1)


def how_to_titles() -> dict[str, dict[str, str]]:
    """{group: {page: title}}, as docs/how-to/index.md lists them."""
    _, *groups = re.split(r"(?m)^## ", (ROOT / FIRST_LINES).read_text(encoding="utf-8"))
    return {group.partition("\n")[0]: dict(map(_titled, LISTED.findall(group))) for group in groups}


def _titled(name: str) -> tuple[str, str]:
    text = (ROOT / "docs" / "how-to" / name).read_text(encoding="utf-8")
    return f"how-to/{name}", text.partition("\n")[0].removeprefix("# ")


def relative(target: str, page: str) -> str:
    """The link from one page to another, both with the site's root as their folder."""
    return os.path.relpath(target, os.path.dirname(page) or ".").replace(os.sep, "/")
