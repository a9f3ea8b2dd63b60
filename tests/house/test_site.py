"""How the site is made of the files: chapters, links, notebooks; and what it does in a browser."""

import ast
import importlib
import json
import time
from pathlib import Path

import pytest

from tests.browser import Page

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    """-> a module of scripts/, which import each other."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module


CHAPTERS = sorted(ROOT.glob("examples/[0-9]*.py"))


@pytest.mark.parametrize("file", CHAPTERS, ids=lambda file: file.stem)
def test_a_chapter_explains_its_code(file, script):
    chapter = script("docs_chapters").read(file)
    whole = ast.parse(file.read_text(encoding="utf-8"))
    pieces = ast.parse("\n\n".join(piece.code for piece in chapter.pieces))
    assert ast.dump(pieces) == ast.dump(ast.Module(whole.body[1:], [])), "code is lost on the page"
    assert sum(bool(piece.words) for piece in chapter.pieces) >= 4
    assert all(piece.code for piece in chapter.pieces), "words without code"
    assert "$" in "".join(piece.words for piece in chapter.pieces), "no formula"


def test_code_among_words_is_an_error(tmp_path, script):
    file = tmp_path / "example.py"
    file.write_text('"""Title.\n\nAbout."""\n\n# %% [markdown]\n# words\nx = 1\n')
    with pytest.raises(ValueError, match=r"before a line `# %%`: x = 1"):
        script("docs_chapters").read(file)


@pytest.mark.parametrize(
    ("file", "link", "expected"),
    [
        ("README.md", "docs/how-to/resume-a-run.md#x", "how-to/resume-a-run.md#x"),
        ("README.md", "docs/images/a.png", "images/a.png"),
        ("README.md", "examples/README.md", "course/index.md"),
        ("README.md", "LICENSE", "https://github.com/fnn-project/fnn/blob/main/LICENSE"),
        ("examples/README.md", "01_neuron.py", "01_neuron.md"),
        ("examples/README.md", "parts/", "https://github.com/fnn-project/fnn/tree/main/examples/parts"),
        ("docs/how-to/resume-a-run.md", "../../examples/resume.py", "../course/resume.md"),
        ("docs/how-to/resume-a-run.md", "../../README.md#limits", "../index.md#limits"),
        ("docs/start.md", "nowhere.md", "nowhere.md"),
        ("docs/start.md", "#install", "#install"),
        ("docs/start.md", "https://jax.dev/a.md", "https://jax.dev/a.md"),
    ],
)  # fmt: skip
def test_links_of_a_file_are_rewritten_for_its_page(file, link, expected, script):
    relink = script("docs_pages").relink
    assert relink(f'a [b]({link}), <img src="{link}">', file) == (
        f'a [b]({expected}), <img src="{expected}">'
    )
    code = f"```python\na[0]({link})\n```"
    assert relink(code, file) == code


def test_docstrings_become_markdown(script):
    pytest.importorskip("griffe")
    markdown = script("docs_docstrings").markdown
    assert markdown("[*a] -> [b]: x * w.") == r"\[\*a] -> \[b]: x \* w."
    assert markdown("One.\n`a`: b\nc.\n`d`: e.") == "One.\n\n- `a`: b\n  c.\n- `d`: e."
    assert markdown("Two:\n  - a\n  - b") == "Two:\n\n- a\n- b"


@pytest.mark.parametrize("file", CHAPTERS, ids=lambda file: file.stem)
def test_a_notebook_is_its_chapter(file, script):
    pytest.importorskip("jupytext")
    notebooks = script("make_notebooks")
    cells = json.loads(notebooks.text(file))["cells"]
    assert notebooks.text(file) == notebooks.text(file)
    assert "pip install" in "".join(cells[1]["source"])
    assert "main(quick=True)" in "".join(cells[-1]["source"])
    code = ["".join(c["source"]) for c in cells[2:-1] if c["cell_type"] == "code"]
    whole = ast.parse(file.read_text(encoding="utf-8")).body[1:-1]
    assert ast.dump(ast.parse("\n\n".join(code))) == ast.dump(ast.Module(whole, []))


def test_the_check_of_the_site_finds_faults(tmp_path, script, monkeypatch):
    check = script("docs_check")
    monkeypatch.setattr(check, "SITE", tmp_path)
    monkeypatch.setattr(check, "FOUND_BY", {"word": "a.html", "other": "a.html"})
    (tmp_path / "search").mkdir()
    index = {"docs": [{"location": "a.html#b", "text": "a word"}]}
    (tmp_path / "search" / "search_index.json").write_text(json.dumps(index))
    page = """<script src="https://cdn.org/x.js"></script><a href="b.html">b</a><a href="#c">c</a>
    <a href="#d" id="d">d</a><a href="https://e.org">e</a><pre>$f$</pre>"""
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "e.html").write_text("<code>$f$</code> <mi>\\\\nosuch</mi>")
    (tmp_path / "f.html").write_text("$g$")
    assert sorted(check.faults()) == [
        "a.html: #c: no such anchor",
        "a.html: b.html leads nowhere",
        "a.html: loads https://cdn.org/x.js",
        "e.html: a formula that is not rendered",
        "f.html: a formula that is not rendered",
        "search: other is on [], expected a.html",
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if not (ROOT / "site" / "index.html").exists():
        pytest.skip("the site is not built: make docs")
    page = Page(tmp_path_factory.mktemp("browser"))
    yield page
    page.close()


def visit(page, name, width=1440, scheme="light"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.call("Emulation.setDeviceMetricsOverride", **size)
    page.media(scheme=scheme)
    page.call("Page.navigate", url=(ROOT / "site" / name).as_uri())
    page.wait(f"document.readyState == 'complete' && location.pathname.endsWith({name!r})")


@pytest.mark.slow
def test_the_site_works_from_a_disk(site):
    """Search, formulas and colours, with no request that leaves the disk and no error."""
    visit(site, "course/03_backpropagation.html", scheme="dark")
    assert site.run("document.body.dataset.mdColorScheme") == "slate"
    assert site.run("document.querySelectorAll('math').length") > 5
    assert site.run("document.querySelector('math mfrac').getBoundingClientRect().height") > 20
    assert site.run("getComputedStyle(document.querySelector('.beside')).display") == "grid"
    typed = """(() => {
        const query = document.querySelector('[data-md-component=search-query]')
        query.focus()
        query.value = 'wandb'
        query.dispatchEvent(new Event('input', {bubbles: true}))
        query.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true}))
    })()"""
    site.run(typed)
    found = site.wait("document.querySelector('.md-search-result__link')?.getAttribute('href')")
    assert "how-to/log-to-weights-and-biases-or-mlflow.html" in found
    assert not site.errors
    assert [url for url in site.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.slow
def test_no_page_scrolls_sideways_on_a_telephone(site):
    pages = "index start course/04_optimizers_race how-to/index how-to/alternate-two-optimizers"
    for name in [*pages.split(), "api/nn", "coming-from", "benchmarks", "dialects"]:
        visit(site, f"{name}.html", width=390)
        time.sleep(0.2)  # after the last layout
        assert site.run("document.documentElement.scrollWidth") <= 390, name
