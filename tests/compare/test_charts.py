"""The charts' data and pictures, from a made-up document."""

import math
import re

import numpy as np
import pytest

from fnn.compare._axes import score_axis
from fnn.compare._charts import charts, styles
from fnn.compare._pictures import as_png, as_svg
from fnn.compare._reading import Score
from tests.compare.odd_documents import many_rules, sobol
from tests.comparison_document import comparison


def chart(document, name):
    (found,) = [c for c in charts(document) if c.id == name]
    return found


def test_charts_of_a_search():
    document = comparison()
    ids = [c.id for c in charts(document)]
    assert ids == ["scores", "at-learning_rate", "loss", "valid", "trials", "target"]
    two = comparison(second={"b2": (0.9, 0.99, 0.999), "b1": (0.9,)})
    ids = [c.id for c in charts(two)]
    assert ids[:3] == ["scores", "at-learning_rate", "at-b2"]
    assert "at-b1" not in ids  # it is the same in every trial


def test_sensitivity():
    document = comparison(rules=("adam", "sgd"), second={"b2": (0.9, 0.99)})
    shown = chart(document, "at-learning_rate")
    assert shown.x_scale == "log"
    for line in shown.lines:
        (rule,) = [r for r in document["rules"] if r["name"] == line.rule]
        for x, y, low, high in zip(line.x, line.y, line.low, line.high, strict=True):
            trials = [t["valid"] for t in rule["trials"] if t["point"]["learning_rate"] == x]
            if None in trials[0]:  # it diverged
                assert y is low is high is None
                continue
            best = max(trials, key=np.mean)
            np.testing.assert_allclose([y, low, high], [np.mean(best), min(best), max(best)])
    assert [y is None for y in shown.lines[-1].y] == [False] * 6 + [True]


def test_the_scale_is_that_of_the_search():
    shown = chart(sobol(), "at-b2")
    assert (shown.x_scale, shown.kind) == ("log1m", "dots")
    assert chart(sobol(), "at-learning_rate").x_scale == "log"
    assert len(shown.lines[0].x) == 21  # each trial
    assert chart(comparison(second={"b2": (0.9, 0.999)}), "at-b2").x_scale == "log1m"
    assert chart(comparison(second={"b1": (0.8, 0.9)}), "at-b1").x_scale == "linear"


def test_curves():
    document = comparison(rules=("adam",), seeds=4, epochs=7)
    (line,) = chart(document, "loss").lines
    values = np.array(document["rules"][0]["final"]["loss_by_epoch"])
    np.testing.assert_allclose(line.y, np.median(values, 0))
    np.testing.assert_allclose(line.low, values.min(0))
    np.testing.assert_allclose(line.high, values.max(0))
    assert line.x == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_that_is_not_finite_counts_as_worst():
    document = comparison(rules=("adam",), seeds=3, epochs=2)
    final = document["rules"][0]["final"]
    final["loss_by_epoch"] = [[1.0, None], [2.0, None], [3.0, 5.0]]
    final["valid_by_epoch"] = [[0.5, None], [0.6, 0.7], [0.7, 0.9]]
    (line,) = chart(document, "loss").lines
    assert line.y == [2.0, None]
    assert line.low == [1.0, None]
    (line,) = chart(document, "valid").lines
    assert line.y == [0.6, 0.7]  # of -inf, 0.7, 0.9


def test_long_curves_are_thinned():
    line = chart(many_rules(), "loss").lines[0]
    assert 200 <= len(line.x) <= 401
    assert (line.x[0], line.x[-1]) == (1, 500)


def test_share_of_seeds_at_the_target():
    document = comparison(rules=("adam",), seeds=4)
    document["rules"][0]["steps_to_target"] = [30, None, 10, 20]
    (line,) = chart(document, "target").lines
    assert line.x == [0, 10, 20, 30, document["problem"]["steps"]]
    assert line.y == [0, 0.25, 0.5, 0.75, 0.75]


def test_performance_profile():
    """Steps 10, 20 and 40, 20, and None, 30: by hand from the definition of Dolan & More."""
    documents = []
    for of_rules in ({"adam": 10, "sgd": 20}, {"adam": 40, "sgd": 20}, {"adam": None, "sgd": 30}):
        documents.append(comparison(rules=("adam", "sgd"), seeds=2, epochs=2))
        for rule in documents[-1]["rules"]:
            rule["steps_to_target"] = [of_rules[rule["name"]]] * 2
    document, *others = documents
    (profile,) = [c for c in charts(document, others) if c.id == "profile"]
    lines = {line.rule: line for line in profile.lines}
    assert lines["adam"].x == pytest.approx([1, 2, 2.2])
    assert lines["adam"].y == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert lines["sgd"].y == pytest.approx([2 / 3, 1, 1])
    assert "profile" not in [c.id for c in charts(document)]
    assert len(as_png(document, others)) > len(as_png(document))


def test_colours_do_not_follow_the_ranking():
    document = comparison()
    before = styles(document)
    document["problem"]["better"] = "lower"
    assert styles(document) == before
    assert len(set(styles(many_rules()).values())) == 25  # no two rules look alike


def test_the_axis_of_percentages():
    axis = score_axis(Score("accuracy", "%", "higher"), [0.5, 0.9995, 1.0])
    places = [math.log10(axis.place(v)) for v in (0.9, 0.99, 0.999)]
    np.testing.assert_allclose(np.diff(places), -1)  # evenly spaced
    assert axis.place(1.0) > 0  # a log axis has no 0
    assert axis.place(None) is None
    for place, label in axis.ticks:
        assert place == pytest.approx(1 - float(label) / 100)
    loss = score_axis(Score("loss", "", "lower"), [0.001, 1.0])
    assert (loss.place(0.5), loss.reverse, loss.log) == (0.5, False, True)


def test_pictures_have_ids_of_their_own():
    document = comparison(rules=("adam", "sgd"))
    svgs = "".join(as_svg(document, c) for c in charts(document))
    ids = re.findall(r'\bid="([^"]+)"', svgs)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"', svgs)) | set(re.findall(r"url\(#([^)]+)\)", svgs))
    assert used
    assert used <= set(ids)
    assert "#123457" not in svgs


def test_the_same_document_is_the_same_picture():
    document = comparison(rules=("adam",))
    assert as_svg(document, charts(document)[0]) == as_svg(document, charts(document)[0])
