"""The page: what is in the file. tests/compare/test_page.py opens it in a browser."""

import base64
import hashlib
import importlib.util
import json
import re
from html.parser import HTMLParser

import pytest

from fnn.compare import _html
from fnn.compare._charts import charts
from fnn.compare._columns import details, results
from fnn.compare._findings import findings
from fnn.compare._html import as_html, replay
from fnn.compare._plotly import spec as spec_of
from tests.compare.odd_documents import EVIL_IN_HTML, evil_in_html
from tests.comparison_document import comparison

needs_plotly = pytest.mark.skipif(
    importlib.util.find_spec("plotly") is None, reason="plotly is not installed"
)


class Read(HTMLParser):
    """The tags, the texts and the scripts of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.scripts, self.inside = [], [], [], ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)
        elif not self.inside:
            self.texts.append(data)


@pytest.fixture(scope="module")
def without():
    """The page where plotly is not installed."""
    return as_html(comparison(), plotly=False)


@pytest.fixture(scope="module")
def evil_page():
    """The same of hostile texts."""
    return as_html(evil_in_html(), plotly=False)


def test_the_answer_comes_first(without):
    texts = [text.strip() for text in Read(without).texts]
    answer, *others = findings(comparison())
    assert texts.index(answer) < texts.index(others[0]) < texts.index("A heading sorts its column.")


def test_the_page_has_every_cell_and_formula(without):
    document = comparison()
    texts = set(Read(without).texts)
    for column in results(document) + details(document):
        assert column.heading in texts
        for cell in column.cells:
            whole = cell.text.split("_") if column.heading == "rule" else [cell.text]
            assert texts.issuperset(filter(None, whole)) or len(whole) > 1  # breaks after a _
    for rule in document["rules"]:
        assert rule["formula"] in texts
        assert replay(rule) in texts
    assert document["command"] in texts


def test_without_plotly_the_charts_are_pictures(without):
    read = Read(without)
    assert sum(tag == "svg" for tag, _ in read.tags) == len(charts(comparison()))
    assert "These are pictures." in "".join(read.texts)
    assert len(without) < 10**6
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_plotly_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(_html, "_plotly_js", lambda: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fnn\[report\]'"):
        as_html(comparison(), plotly=True)
    small = comparison(rules=("adam",), epochs=2)
    assert b"These are pictures." in as_html(small)


def loads_nothing(page):
    """Whether no tag asks for another file, and the policy allows no script but those inside."""
    read = Read(page)
    for tag, attrs in read.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        asks = {k: v for k, v in attrs.items() if k in ("src", "href", "xlink:href", "action")}
        assert all(v.startswith("#") for v in asks.values()), (tag, asks)
        assert not any(name.startswith("on") for name in attrs)
    (policy,) = [a["content"] for _, a in read.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    run = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in run]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert len(page) < 6 * 10**6


def test_the_page_loads_nothing(without, evil_page):
    loads_nothing(without)
    loads_nothing(evil_page)


@needs_plotly
def test_the_page_with_plotly_loads_nothing():
    loads_nothing(as_html(comparison()))


def test_names_are_text(evil_page):
    read = Read(evil_page)
    assert sum(tag == "script" for tag, _ in read.tags) == 1
    assert not any(tag in ("img", "b") for tag, _ in read.tags)
    for name in EVIL_IN_HTML:
        assert name in read.texts


def test_data_cannot_end_its_script():
    text = _html._json([*EVIL_IN_HTML, "\u2028"])
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == [*EVIL_IN_HTML, "\u2028"]


@needs_plotly
def test_plotly_knows_every_attribute():
    import plotly.graph_objects as go

    document = comparison(second={"b2": (0.9, 0.99, 0.999)}, epochs=40)
    sobol = comparison(second={"b2": (0.9, 0.99, 0.999)}, epochs=3)
    sobol["settings"]["how"] = "sobol"
    for shown in (document, sobol):
        for chart in charts(shown):
            spec = spec_of(shown, chart)
            for scale in (spec["log"], spec["linear"]):
                layout = spec["layout"] | {"yaxis": spec["layout"]["yaxis"] | scale}
                go.Figure(spec["traces"], layout)  # raises ValueError for what it does not know


def test_replay_is_a_command():
    rule = comparison()["rules"][0]
    assert replay(rule) == "fnn compare --replay comparison.json sgd 0.3 seed=0"
    rule = comparison(second={"b2": (0.999,)})["rules"][0]
    rule["name"] = "my rule.py"
    assert replay(rule).endswith("comparison.json 'my rule.py' learning_rate=0.3 b2=0.999 seed=0")
