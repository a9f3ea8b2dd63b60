"""The page: what a headless Chromium makes of it."""

import importlib.util
import re

import pytest

from fnn.compare._charts import charts
from fnn.compare._html import as_html
from fnn.compare._reading import ranked
from tests.browser import Page
from tests.compare.odd_documents import evil_in_html
from tests.comparison_document import comparison

needs_plotly = pytest.mark.skipif(
    importlib.util.find_spec("plotly") is None, reason="plotly is not installed"
)


pages = {
    "usual": lambda: as_html(comparison()),
    "two": lambda: as_html(comparison(second={"b2": (0.9, 0.99, 0.999)}, seeds=3)),
    "evil": lambda: as_html(evil_in_html()),
    "pictures": lambda: as_html(comparison(), plotly=False),
    "profile": lambda: as_html(comparison(), [comparison(rules=("adam", "sgd", "muon"))]),
    "many": lambda: as_html(comparison(rules=[f"rule_number_{i}" for i in range(25)], seeds=3)),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """page(name, **how): the page of that name, open in the one browser of this module."""
    browser = Page(tmp_path_factory.mktemp("profile"))
    folder = tmp_path_factory.mktemp("pages")

    def opened(name, **how):
        file = folder / f"{name}.html"
        if not file.exists():
            file.write_bytes(pages[name]())
        browser.errors.clear()
        browser.requests.clear()
        browser.open(file, **how)
        return browser

    yield opened
    browser.close()


slow = pytest.mark.slow  # each starts or drives a browser


def is_quiet(page):
    """No error on the console, and no request but for the page itself and what is in it."""
    assert page.errors == []
    asked = [url for url in page.requests if not url.startswith("data:")]
    assert len(asked) == 1
    assert asked[0].startswith("file://")


# Of each chart: the number of lines with length and of markers, drawn and visible.
MARKS = """Object.fromEntries([...document.querySelectorAll('.chart.live')].map(div => [div.id, [
    [...div.querySelectorAll('.scatterlayer path.js-line')].filter(p => p.getTotalLength() > 1),
    [...div.querySelectorAll('.scatterlayer .points path')].filter(p => p.getBBox().width > 1),
].map(found => found.filter(p => p.getBoundingClientRect().width > 0).length)]))"""


@slow
@needs_plotly
@pytest.mark.parametrize("name", ["usual", "two", "evil", "profile", "many"])
def test_every_chart_has_drawn_marks(page, name):
    opened = page(name)
    marks = opened.run(MARKS)
    expected = {
        "usual": 6,
        "two": 7,
        "evil": 5,
        "profile": 7,
        "many": 6,
    }  # in 3 epochs no target is reached
    assert len(marks) == expected[name]
    rules = {"usual": 8, "two": 8, "evil": 3, "profile": 8, "many": 10}[
        name
    ]  # of many, ten at first
    for chart, (lines, points) in marks.items():
        if chart == "scores":
            assert points >= rules
        elif chart not in ("target", "profile"):  # a rule may not be in it
            assert lines >= rules, chart
        else:
            assert lines >= 3
    is_quiet(opened)
    assert opened.run("window.broken") is None


@slow
def test_pictures_are_drawn(page):
    opened = page("pictures")
    drawn = "[...document.querySelectorAll('.chart svg path')].filter(p => p.getBBox().width > 20)"
    assert opened.run(f"{drawn}.length") > 6 * 8
    is_quiet(opened)


FIRST = (
    "[...document.querySelectorAll('table.sortable tbody')[0].rows].map(r => r.cells[0].innerText)"
)
SORTED = "document.querySelector('th[aria-sort]').innerText.trim()"


@slow
@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_sorting(page, by):
    opened = page("pictures")
    ranking = [rule["name"] for rule in ranked(comparison())]
    assert opened.run(FIRST) == ranking

    def press(column, key="Enter"):
        button = f"document.querySelectorAll('table.sortable')[0].querySelectorAll('th button')[{column}]"
        if by == "mouse":
            opened.run(f"{button}.click()")
        else:
            opened.run(f"{button}.focus()")
            opened.press(key)

    press(0)
    assert opened.run(FIRST) == sorted(ranking)
    assert (
        opened.run("document.querySelector('th[aria-sort]').getAttribute('aria-sort')")
        == "ascending"
    )
    press(0, " ")
    assert opened.run(FIRST) == sorted(ranking, reverse=True)
    press(1)
    assert opened.run(FIRST) == ranking  # the largest first
    assert opened.run(SORTED).startswith("accuracy")
    press(1)
    assert opened.run(FIRST) == ranking[::-1]
    press(6)  # by Optax: my_rule has no twin
    assert opened.run(FIRST)[-1] == "my_rule"
    press(6)
    assert opened.run(FIRST)[-1] == "my_rule"  # what is not there stays last
    is_quiet(opened)


@slow
@needs_plotly
def test_toggles(page):
    opened = page("usual")
    box = "document.querySelector('input[data-rule=adam]')"
    before = opened.run(MARKS)
    opened.run(f"{box}.focus()")
    opened.press(" ")
    assert not opened.run(f"{box}.checked")
    after = opened.run(MARKS)
    for chart in before:
        assert sum(after[chart]) < sum(before[chart]), chart
    opened.press(" ")
    assert opened.run(MARKS) == before
    opened.run("document.getElementById('ranges').click()")
    assert opened.run(MARKS)["scores"][1] == 8  # the seeds' marks are gone
    for choose, shown in ((0, 0), (5, 5), (8, 8)):
        opened.run(f"document.querySelector('button[data-choose=\"{choose}\"]').click()")
        assert opened.run(MARKS)["loss"][0] == shown
    is_quiet(opened)


@slow
@needs_plotly
def test_the_scale_can_be_changed(page):
    opened = page("usual")
    for chart in ("loss", "valid", "at-learning_rate", "trials"):
        div = f"document.getElementById('{chart}')"
        box = f"{div}.closest('figure').querySelector('input.log')"
        kinds = [opened.run(f"{div}._fullLayout.yaxis.type")]
        before = opened.run(f"{div}.querySelector('path.js-line').getAttribute('d')")
        for _ in range(2):
            opened.run(f"{box}.click()")
            kinds.append(opened.run(f"{div}._fullLayout.yaxis.type"))
        assert kinds == ["log", "linear", "log"], chart
        assert opened.run(f"{div}.querySelector('path.js-line').getAttribute('d')") == before
    is_quiet(opened)


@slow
@needs_plotly
def test_hover_and_arrow_keys(page):
    opened = page("usual")
    div = "document.getElementById('loss')"
    x, y = opened.run(
        f"(() => {{ {div}.scrollIntoView(); const r = {div}.getBoundingClientRect();"
        " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    opened.point(x, y)
    opened.point(x + 2, y)
    hovered = f"[...{div}.querySelectorAll('.hoverlayer text')].map(t => t.textContent).join()"
    opened.wait(f"{hovered}.includes('muon')")
    assert re.search(r"epoch \d+,muon : \d", opened.run(hovered))
    opened.run(f"{div}.focus()")
    for _ in range(3):
        opened.press("ArrowRight")
    opened.press("ArrowLeft")
    said = opened.run(f"{div}.closest('figure').querySelector('[role=status]').textContent")
    curves = [rule["final"]["loss_by_epoch"] for rule in ranked(comparison())]
    middle = sorted(curve[1] for curve in curves[0])[4:6]
    assert said.startswith(f"epoch 2: muon {sum(middle) / 2:.4g} (")
    is_quiet(opened)


@slow
def test_the_command_is_copied(page):
    opened = page("pictures")
    opened.call(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    opened.run("document.querySelector('button.copy').focus()")
    opened.press("Enter")
    opened.wait("document.querySelector('button.copy').textContent == 'Copied'")
    assert opened.run("navigator.clipboard.readText()") == comparison()["command"]


@slow
@pytest.mark.parametrize("name", [pytest.param("usual", marks=needs_plotly), "pictures"])
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_no_window_scrolls_sideways(page, name, width):
    opened = page(name, width=width)
    assert opened.run("document.documentElement.scrollWidth") <= width
    wide = """[...document.querySelectorAll('p, li, h1, h2, figure, fieldset, nav')]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"""
    assert opened.run(wide) == 0
    is_quiet(opened)


CONTRAST = """(() => {
    const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => {
        v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
        return .2126 * r + .7152 * g + .0722 * b; };
    const page = light(getComputedStyle(document.body).backgroundColor);
    const of = (e, name) => { const l = light(getComputedStyle(e)[name]);
        return (Math.max(l, page) + .05) / (Math.min(l, page) + .05); };
    const least = (selector, name) =>
        Math.min(...[...document.querySelectorAll(selector)].map(e => of(e, name)));
    return [page, least('p, li, td, th, a, h1, summary, figcaption', 'color'),
        least('.live .xtick text, .live .ytick text, .live .infolayer text', 'fill'),
        least('.live .scatterlayer .lines path', 'stroke')];
})()"""


@slow
@needs_plotly
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_light_and_dark(page, scheme):
    opened = page("usual", scheme=scheme)
    background, text, ticks, lines = opened.run(CONTRAST)
    assert (background > 0.9) == (scheme == "light")
    assert text >= 4.5  # WCAG AA
    assert ticks >= 4.5
    assert lines >= 2  # before the dark page brightens them
    is_quiet(opened)


@slow
@needs_plotly
def test_a_change_of_scheme_needs_no_reload(page):
    opened = page("usual", scheme="light")
    opened.media(scheme="dark")
    _, text, ticks, _ = opened.run(CONTRAST)
    assert min(text, ticks) >= 4.5


@slow
@needs_plotly
def test_paper(page, tmp_path):
    opened = page("usual", scheme="dark")
    opened.media(media="print", scheme="dark")
    background, text, ticks, _ = opened.run(CONTRAST)
    assert background > 0.9  # white, whatever the screen is
    assert min(text, ticks) >= 4.5
    opened.media(scheme="dark")
    opened.run("dispatchEvent(new Event('beforeprint'))")
    assert (
        opened.run("document.querySelector('.live .main-svg').getBoundingClientRect().width") == 660
    )
    opened.run("dispatchEvent(new Event('afterprint'))")
    opened.wait("document.querySelector('.live .main-svg').getBoundingClientRect().width < 600")
    opened.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    is_quiet(opened)


@slow
@needs_plotly
def test_everything_is_reached_by_tab(page):
    opened = page("usual")
    stops = []
    for _ in range(400):
        opened.press("Tab")
        at = opened.run(
            "(() => { const e = document.activeElement; return e === document.body ? null :"
            " [e.tagName, e.className, e.id, e.dataset.rule || ''].join('|'); })()"
        )
        if at is None or (len(stops) > 5 and at == stops[0]):
            break
        stops.append(at)
    text = "\n".join(stops)
    for chart in charts(comparison()):
        assert f"|{chart.id}|" in text
    for rule in comparison()["rules"]:
        assert f"INPUT|||{rule['name']}" in text
    for expected in (
        "A||",
        "BUTTON|copy|",
        "DIV|scroll|",
        "SUMMARY||",
        "INPUT|log|",
        "INPUT||ranges|",
    ):
        assert expected in text
