"""What MkDocs calls while it builds the site: pages from elsewhere, formulas, links to names."""

import html
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import docs_interface
import docs_pages
import latex2mathml.converter
import make_notebooks
import ziamath
from docs_chapters import CHAPTERS, EXAMPLES, ROOT
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
NAME = re.compile(r"<code>(fnn(?:\.\w+)+)(\(\))?</code>(?!</a>)")
ANCHORS: dict[str, str] = {}
PLAYGROUND = ROOT / "out" / "playground.html"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the groups of the navigation."""
    ANCHORS.update(docs_interface.anchors())
    others = [f for f in EXAMPLES if f not in CHAPTERS]
    course = [{docs_pages.short_title(f): f"course/{f.stem}.md"} for f in CHAPTERS]
    more = [{docs_pages.short_title(f): f"course/{f.stem}.md"} for f in others]
    questions = docs_pages.how_to_titles()
    how_to = [{group: [{t: page} for page, t in of.items()]} for group, of in questions.items()]
    wings = [{f"fnn.{Path(page).stem}": page} for page in docs_interface.pages()]
    groups = {"Course": [*course, {"One topic each": more}], "How do I": how_to, "Interface": wings}
    for item in config.nav or []:
        ((title, inside),) = item.items()
        if title in groups:
            item[title] = [inside[0], *groups[title]]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/, the notebooks, and a font for formulas."""
    texts = {page: (ROOT / path).read_text("utf-8") for path, page in docs_pages.ELSEWHERE.items()}
    texts |= {f"course/{f.stem}.md": docs_pages.example_page(f) for f in EXAMPLES}
    texts |= docs_interface.pages()
    texts |= {f"notebooks/{f.stem}.ipynb": make_notebooks.text(f) for f in CHAPTERS}
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    font = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
    files.append(File.generated(config, "fonts/math.ttf", abs_src_path=str(font)))
    files.append(File.generated(config, "playground.html", abs_src_path=str(PLAYGROUND)))
    return files


def on_page_markdown(markdown: str, page: Page, **rest: object) -> str:
    """Rewrite the links, and what a page has on the site alone."""
    uri = page.file.src_uri
    if uri in ("index.md", "start.md", "coming-from.md"):  # the only page of its group
        page.meta["hide"] = ["navigation", "toc"] if uri == "coming-from.md" else ["navigation"]
    path = docs_pages.file_of(uri)
    if uri.startswith("how-to/") and "\n## " not in markdown:
        page.meta["hide"] = ["toc"]  # code has its place
    if uri.startswith("how-to/") and uri != "how-to/index.md":
        markdown = docs_pages.how_to_page(markdown)
    if uri == "coming-from.md":
        markdown = docs_pages.side_by_side(markdown)
    if uri == "course/index.md":
        markdown = markdown.replace("`out/playground.html`", "[this page](../playground.html)")
    written = uri.startswith("api/") or path.endswith(".py")
    return markdown if written else docs_pages.relink(markdown, path)


def on_page_content(content: str, page: Page, **rest: object) -> str:
    """Formulas as MathML, which needs no script; `fnn.name` as a link to its docstring."""
    content = FORMULA.sub(_mathml, content)
    before = re.split(r"(<pre.*?</pre>|<h\d.*?</h\d>|<a .*?</a>)", content, flags=re.DOTALL)
    before[::2] = [NAME.sub(lambda m: _linked(m, page), part) for part in before[::2]]
    return "".join(before)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    return latex2mathml.converter.convert(html.unescape(found[2]).strip(), display=display)


def _linked(found: re.Match[str], page: Page) -> str:
    if found[1] not in ANCHORS:
        return found[0]
    target, _, anchor = ANCHORS[found[1]].partition("#")
    link = docs_pages.relative(target.replace(".md", ".html"), page.file.dest_uri)
    return f'<a href="{link}#{anchor}">{found[0]}</a>'
