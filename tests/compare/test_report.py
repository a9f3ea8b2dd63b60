"""The table, the findings, Markdown, LaTeX and the charts' data, from a made-up document."""

import copy
import io
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from fnn.compare._plot import as_png, as_svg, charts, score_axis, styles
from fnn.compare._report import (
    Score,
    against_best,
    as_markdown,
    as_tex,
    details,
    findings,
    median_steps,
    ranked,
    results,
    score_of,
    table,
    verdict,
)
from tests.comparison_document import RULES, comparison

EVIL = (
    "<script>window.broken = 1</script>",
    "a|b \\| c",
    "_x_ *y* `z` [l](http://no.where)",
    "# 1. $x^2$ %{y} {z} ~ & \"q\" 'r'",
    "\\input{/etc/passwd} % ^ \n\n second line",
)


def evil():
    """Every text that a user may choose is hostile."""
    document = comparison(rules=EVIL, seeds=3, epochs=3)
    document["problem"] |= {"name": EVIL[0], "about": EVIL[2], "score": EVIL[3]}
    document["command"] = f"fnn compare '{EVIL[1]}'\n```\n<b>"
    document["rule_for_better"] = EVIL[4]
    for rule, text in zip(document["rules"], EVIL, strict=True):
        rule |= {"formula": f"```\n{text}\n</script>", "by": text, "twin": text}
    return document


def nothing_known():
    """Whatever may be None is None, or is missing."""
    document = comparison(rules=("sgd", "adam"), seeds=2, epochs=2)
    sgd, adam = document["rules"]
    for name in ("mean", "low", "high"):
        sgd["final"][name] = None
    for name in ("test", "valid", "test_loss", "skipped"):
        sgd["final"][name] = [None, None]
    for name in ("loss_by_epoch", "valid_by_epoch"):
        sgd["final"][name] = [[None, None], [None, None]]
    for trial in sgd["trials"]:
        trial |= {"valid": [None] * 3, "valid_loss": [None] * 3}
    for name in ("one_bit", "cost", "expected_best", "steps_to_target", "twin_final"):
        sgd[name] = None
        del adam[name]
    document["comparisons"][0] |= dict.fromkeys(("difference", "low", "high", "p", "p_corrected"))
    document |= {"noise_floor": {"twins": None, "one_bit": None}, "inclusion": []}
    document["settings"]["target"] = None
    return document


def interrupted():
    document = comparison(rules=("sgd", "adam", "adamw"), seeds=2, epochs=2)
    document["rules"][1] |= {"final": None, "twin_final": None, "one_bit": None}
    del document["rules"][2]
    document |= {"interrupted": True, "comparisons": [], "noise_floor": {}, "inclusion": []}
    return document


def nothing_done():
    document = interrupted()
    document["rules"] = []
    return document


def deterministic():
    """No rows: a test function, whose score is better low; one run of each rule."""
    document = comparison(rules=("sgd", "adam"), seeds=1, epochs=4, trial_seeds=1)
    document["problem"] |= {"name": "rosenbrock", "score": "distance", "better": "lower"}
    document["problem"] |= {"unit": "", "rows": None, "optimum": 0.0}
    document["settings"]["target"] = 0.5
    for rule in document["rules"]:
        rule["final"] |= {"low": None, "high": None}
    return document


def many_rules():
    return comparison(rules=[f"rule_number_{i}" for i in range(25)], seeds=2, epochs=500)


def sobol():
    document = comparison(second={"b2": (0.9, 0.99, 0.999)}, seeds=2, epochs=2)
    document["settings"] |= {
        "how": "sobol",
        "tune": ["learning_rate=0.001..1:log", "b2=0.9..0.9999:log1m"],
    }
    return document


ODD = evil, nothing_known, interrupted, nothing_done, deterministic, many_rules, sobol


# --- the table ----------------------------------------------------------------------------------


def printed(document, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(document))
    return console.export_text()


@pytest.mark.parametrize("second", [None, {"weight_decay": (0.0001, 0.1)}])
def test_the_table_fits_80_columns(second):
    document = comparison(second=second)
    text = printed(document)
    assert "…" not in text
    names = [
        line.split()[0]
        for line in text.splitlines()
        if line.split()[:1] and line.split()[0] in RULES
    ]
    assert names == [rule["name"] for rule in ranked(document)]
    for rule in document["rules"]:
        mean = rule["final"]["mean"]
        assert re.search(rf"{rule['name']} .*{100 * mean:.1f} \[", text)
    if second:
        assert "weight_decay 0.0001" in text


def test_the_ranking_follows_what_is_better():
    document = comparison()
    means = [rule["final"]["mean"] for rule in ranked(document)]
    assert means == sorted(means, reverse=True)
    document["problem"]["better"] = "lower"
    assert [rule["final"]["mean"] for rule in ranked(document)] == means[::-1]


def test_an_interval_that_is_not_corrected_says_so():
    (behind,) = (c for c in results(comparison()) if c.heading == "behind the best")
    assert "it may leave out 0 where the verdict, corrected for all pairs, is not" in behind.about


def test_columns():
    document = comparison()
    columns = {c.heading: c for c in results(document) + details(document)}
    order = [rule["name"] for rule in ranked(document)]
    assert [cell.text for cell in columns["rule"].cells] == order
    best, worst = ranked(document)[0], ranked(document)[-1]
    assert worst["name"] == "sgd"
    assert columns["chosen at"].cells[-1].text == "*0.3"  # at the edge
    assert columns["verdict"].cells[0].text == "best"
    assert columns["verdict"].cells[-1].text == "worse"
    assert columns["p, Holm"].cells[-1].text == "0.003"
    difference = 100 * (best["final"]["mean"] - worst["final"]["mean"])
    assert columns["behind the best"].cells[-1].text.startswith(f"+{difference:.1f} [")
    bit = np.abs(np.subtract(best["one_bit"]["test"], best["final"]["test"])).max()
    assert columns["one bit apart"].cells[0].key == pytest.approx(bit)
    assert columns["by Optax"].cells[order.index("my_rule")].text == ""  # it has no twin
    assert columns["bytes"].cells[0].text == "104,448"


def test_behind_is_positive_also_where_less_is_better():
    document = comparison()
    document["problem"] |= {"better": "lower", "unit": ""}
    best = ranked(document)[0]["name"]
    document["comparisons"] = [
        {"a": best, "b": "adam", "difference": -0.02, "low": -0.03, "high": -0.01}
        | {"p": 0.01, "p_corrected": 0.0004, "verdict": "better"}
    ]
    columns = {c.heading: c.cells for c in results(document)}
    at = [rule["name"] for rule in ranked(document)].index("adam")
    assert columns["behind the best"][at].text == "+0.02 [+0.01, +0.03]"
    assert columns["p, Holm"][at].text == "<0.001"


def test_a_column_without_a_number_is_left_out():
    document = comparison(rules=("my_rule",))
    document["settings"]["target"] = None
    headings = [c.heading for c in results(document) + details(document)]
    assert not {"by Optax", "twins apart", "due to", "steps to target"} & set(headings)
    assert "update, µs" in headings


def test_verdicts():
    assert verdict(None) == "best"
    assert verdict({"verdict": "better"}) == "worse"  # the best is better than it
    assert verdict({"verdict": "worse"}) == "better"
    assert verdict({"verdict": "not separable"}) == "not separable"
    assert "muon" not in against_best(comparison())


def test_decimals_follow_the_interval():
    document = comparison()
    assert score_of(document).text(0.98765) == "98.8"
    final = document["rules"][0]["final"]
    final["low"], final["high"] = final["mean"] - 1e-3, final["mean"] + 1e-3
    assert score_of(document).text(0.98765) == "98.77"
    assert Score("loss", "", "lower").text(0.0123456) == "0.01235"
    assert Score("accuracy", "%", "higher").text(-1e-5, sign=True) == "+0.0"  # not -0.0
    assert Score("accuracy", "%", "higher").text(None) == "\u2013"


def test_median_steps():
    assert median_steps({"steps_to_target": [30, 10, 20]}) == 20
    assert median_steps({"steps_to_target": [10, None, 20]}) == 20
    assert median_steps({"steps_to_target": [10, None, None]}) is None
    assert median_steps({"steps_to_target": []}) is None


# --- the findings -------------------------------------------------------------------------------


def test_findings():
    document = comparison()
    best = ranked(document)[0]
    assert best["name"] == "muon"
    answer, *others = findings(document)
    mean, low, high = (f"{100 * best['final'][key]:.1f}" for key in ("mean", "low", "high"))
    rate = best["final"]["point"]["learning_rate"]
    near = [c["b"] for c in document["comparisons"] if c["verdict"] == "not separable"]
    order = [r["name"] for r in ranked(document)]
    named = ", ".join(sorted(near, key=order.index))
    assert near
    assert answer == (
        f"Best on the test rows: muon at learning_rate {rate:g}, accuracy {mean} % (95 % interval"
        f" {low} to {high}). Not separable from it by 10 seeds: {named}."
    )
    text = "\n".join(others)
    assert re.search(r"Worse than it, corrected for all pairs of rules: .*sgd\.", text)
    assert "* sgd is best at learning_rate 0.3, the edge of its range" in text
    assert "adamw contains adam and loses to it by 0.1 %: its search found too little." in text
    assert "momentum contains sgd" not in text  # it does not lose
    assert "0.6 % if the learning rate is one bit larger and 0.4 % between a rule and its" in text
    assert "sgd: the twins end in the same parameters, bit for bit." in text
    assert "muon: the twins are different rules." in text
    assert "their updates differ by 1.0e-01 of their size" in text
    assert re.search(r"Fewest steps to accuracy 95.0 % on the validation rows: .*, \d+ \(", text)


def test_a_target_that_nobody_reaches_is_said():
    document = comparison()
    for rule in document["rules"]:
        rule["steps_to_target"] = [None] * 10
    assert (
        "No rule reached accuracy 95.0 % on the validation rows with half of its seeds."
        in findings(document)
    )


def test_the_number_of_trials_may_decide():
    document = comparison(rules=("adam", "sgd"))
    adam, sgd = document["rules"]
    adam["expected_best"], sgd["expected_best"] = [0.3, 0.9, 0.99], [0.5, 0.8, 0.9]
    assert (
        "The answer depends on the number of trials: on the validation rows sgd is ahead after 1"
        " trial, adam after 3."
    ) in findings(document)
    document["noise_floor"]["one_bit"] = 0.15
    assert not any("number of trials" in line for line in findings(document))  # it may be noise
    document["noise_floor"]["one_bit"] = 0.0
    document["problem"]["better"] = "lower"
    assert any("adam is ahead after 1 trial, sgd after 3" in line for line in findings(document))


def test_what_is_not_done_is_said():
    assert "Interrupted: 1 of 3 rules are done." in findings(interrupted())
    assert findings(nothing_done())[0] == "No rule has a result yet."
    both = nothing_known()
    both["rules"][1]["final"]["mean"] = None
    assert findings(both)[0] == "No rule ended with a finite score."


def test_runs_without_a_finite_score_are_said():
    document = comparison()
    document["rules"][0]["final"]["test"][:2] = [None, None]
    assert "sgd: 2 of 10 final runs ended without a finite score." in findings(document)
    assert sum("finite score" in line for line in findings(document)) == 1


def test_skipped_steps_are_said():
    document = comparison()
    document["rules"][0]["final"]["skipped"] = [3, 0, 1] + [0] * 7
    assert any(line.startswith("sgd: 2 of 10 final runs had steps") for line in findings(document))


def test_a_deterministic_problem_speaks_of_no_rows():
    text = "\n".join(findings(deterministic()))
    assert "rows" not in text
    assert text.startswith("Best: ")
    assert "distance" in text


def test_the_findings_of_the_document_are_kept():
    document = comparison()
    document["findings"] = ["The answer of that day.", "Another."]
    assert b"**The answer of that day.**" in as_markdown(document)
    assert b"The answer of that day." in as_tex(document)


@pytest.mark.parametrize("odd", ODD)
def test_odd_documents_can_be_rendered(odd):
    document = odd()
    before = copy.deepcopy(document)
    printed(document)
    assert findings(document)
    assert as_markdown(document)
    assert as_tex(document)
    assert as_png(document).startswith(b"\x89PNG")
    for chart in charts(document)[:2]:
        assert as_svg(document, chart).startswith("<svg")
    assert document == before


# --- Markdown and LaTeX -------------------------------------------------------------------------


def cells(markdown):
    """The rendered text of every cell, heading, paragraph and item, by markdown-it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    texts = [
        "".join(child.content for child in token.children)
        for token in tokens
        if token.type == "inline"
    ]
    return texts, tokens


def test_markdown():
    document = comparison()
    texts, tokens = cells(as_markdown(document).decode())
    assert texts[0] == "Comparison of optimizers on digits"
    assert texts[2] == findings(document)[0]
    assert sum(token.type == "table_open" for token in tokens) == 3
    for column in results(document) + details(document):
        assert column.heading in texts
        for cell in column.cells:
            assert cell.text in texts
    fences = [token.content for token in tokens if token.type == "fence"]
    assert fences[0] == document["command"] + "\n"
    assert fences[1:] == [rule["formula"] + "\n" for rule in document["rules"]]


def test_markdown_shows_what_the_user_wrote():
    document = evil()
    texts, tokens = cells(as_markdown(document).decode())
    for name in EVIL:
        assert " ".join(name.split()) in texts
    kinds = {token.type for token in tokens}
    assert "html_block" not in kinds
    children = {c.type for t in tokens if t.type == "inline" for c in t.children}
    assert children == {"text", "text_special", "strong_open", "strong_close"} & children
    fences = [token.content for token in tokens if token.type == "fence"]
    assert fences == [document["command"] + "\n", *(r["formula"] + "\n" for r in document["rules"])]


def test_latex_escapes_everything():
    text = as_tex(evil()).decode()
    tables = text[text.index("\\begin{table}") :]
    # Without the escapes, the commands that we wrote and their braces, nothing is left to escape.
    tables = re.sub(r"\\(text[a-z]+|`)\{\}|\\symbol\{34\}", "", tables)
    tables = re.sub(r"\\[%&_#$]|\\[{}]", "", tables)
    tables = tables.replace(r"$-$", "").replace(r"$\mu$", "").replace("{[}", "")
    body = [line for line in tables.splitlines() if line.endswith(r"\\")]
    assert len(body) == 2 * (2 + len(EVIL))
    for line in body:
        assert not re.search(r"[\\{}%#$^~<>|_\"]", line.removesuffix(r"\\"))
    assert "\\input" not in tables
    commands = set(re.findall(r"\\([a-z]+)", tables))
    assert commands <= {
        "begin", "end", "centering", "scriptsize", "setlength", "tabcolsep", "caption", "label",
        "toprule", "midrule", "bottomrule",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("odd", [comparison, evil])
def test_latex_compiles(odd, tmp_path):
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex here")
    (tmp_path / "comparison.tex").write_bytes(as_tex(odd()))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\n"
        "\\begin{document}\\input{comparison.tex}\\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:].decode(errors="replace")
    if odd is comparison:
        assert b"Overfull" not in done.stdout


# --- the charts ---------------------------------------------------------------------------------


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
