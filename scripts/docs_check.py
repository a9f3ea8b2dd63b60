"""What a strict build does not see: whether site/ works without a network, whole and readable.

python scripts/docs_check.py      after `mkdocs build`
"""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

SITE = Path(__file__).parents[1] / "site"
MARKS = re.compile(r"\{ ?[.#:]|::(?:\s|$)")  # Markdown and reStructuredText that was not understood
FOUND_BY = {  # words that a search must find: the page where they stand
    "hypergradients": "how-to/index.html",
    "wandb": "how-to/log-to-weights-and-biases-or-mlflow.html",
    "vanish": "course/05_vanishing_gradients.html",
}
LOADS = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}


class Read(HTMLParser):
    """Of one page: what it loads, where it leads, its anchors, its text outside code."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads, self.links, self.ids, self.text = [], [], set(), []
        self._code = 0
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        given = dict(attrs)
        self.ids |= {given.get("id"), given.get("name")}
        self._code += tag in ("pre", "code", "script", "style")
        target = given.get(LOADS.get(tag, ""))
        if target and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(target)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])

    def handle_endtag(self, tag: str) -> None:
        """Note the end of a tag."""
        self._code -= tag in ("pre", "code", "script", "style")

    def handle_data(self, data: str) -> None:
        """Note text."""
        if not self._code:
            self.text.append(data)


def faults() -> list[str]:
    """All that is wrong with the site, one line each."""
    pages = {page: Read(page) for page in SITE.rglob("*.html")}
    found = [f"{page.relative_to(SITE)}: {f}" for page in pages for f in _of_page(page, pages)]
    return found + _of_search() + _of_formulas(pages) + _of_marks(pages)


def _of_page(page: Path, pages: dict[Path, Read]) -> list[str]:
    read, found = pages[page], []
    found += [f"loads {link}" for link in read.loads if "://" in link or link.startswith("//")]
    for link in {*read.links, *read.loads}:
        where, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:|//|\?", link) or page.name == "404.html":
            continue
        target = (page.parent / where.partition("?")[0]).resolve() if where else page
        if not target.exists():
            found.append(f"{link} leads nowhere")
        elif anchor and target in pages and anchor not in pages[target].ids:
            found.append(f"{link}: no such anchor")
    return found


def _of_search() -> list[str]:
    index = json.loads((SITE / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = []
    for word, page in FOUND_BY.items():
        hits = {d["location"].partition("#")[0] for d in index["docs"] if word in d["text"]}
        if page not in hits:
            found.append(f"search: {word} is on {sorted(hits)}, expected {page}")
    return found


def _of_formulas(pages: dict[Path, Read]) -> list[str]:
    left = re.compile(r"\$[^$\n]+\$|\\[a-z]{2,}")
    names = [page for page, read in pages.items() if left.search("".join(read.text))]
    return [f"{page.relative_to(SITE)}: a formula that is not rendered" for page in names]


def _of_marks(pages: dict[Path, Read]) -> list[str]:
    found = {page: MARKS.search("".join(read.text)) for page, read in pages.items()}
    return [f"{page.relative_to(SITE)}: shows {m[0]!r}" for page, m in found.items() if m]


if __name__ == "__main__":
    wrong = faults()
    pages = len(list(SITE.rglob("*.html")))
    print(*wrong or [f"{SITE.name}: {pages} pages, no fault; open site/index.html"], sep="\n")
    sys.exit(bool(wrong))
