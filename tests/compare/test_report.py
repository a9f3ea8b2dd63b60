"""The table, the findings, Markdown and LaTeX, from a made-up document."""

import copy
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from fnn.compare._charts import charts
from fnn.compare._columns import details, results
from fnn.compare._findings import findings
from fnn.compare._latex import as_tex
from fnn.compare._markdown import as_markdown
from fnn.compare._pictures import as_png, as_svg
from fnn.compare._reading import Score, against_best, median_steps, ranked, score_of, verdict
from fnn.compare._terminal import table
from tests.compare.odd_documents import (
    EVIL,
    ODD,
    deterministic,
    evil,
    interrupted,
    nothing_done,
    nothing_known,
)
from tests.comparison_document import RULES, comparison

# --- the table ------------------------------------------------------------------------------------


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


# --- the findings ---------------------------------------------------------------------------------


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


# --- Markdown and LaTeX ---------------------------------------------------------------------------


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
