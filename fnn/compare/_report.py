"""A comparison as a table, as sentences, as Markdown and as LaTeX. Each reads only the document."""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

Document = dict[str, Any]
Rule = dict[str, Any]  # an entry of document["rules"]

NONE = "\u2013"  # a dash, where a number is not finite or was not measured
PROTOCOL = (
    "Each rule's point was chosen on the validation rows. The test rows were scored with {seeds}"
    " that took no part in the choice. Intervals are 95 % and cover seeds and the {rows:,} test"
    " rows."
)
PROTOCOL_WITHOUT_ROWS = (
    "Each rule's point was chosen by the search. The results are of {seeds} that took no part in"
    " the choice. Intervals are 95 % and cover seeds."
)


# --- what a document says, read in one place ----------------------------------------------------


class Score(NamedTuple):
    """How a problem's score is written: 0.9876 is "98.8" if the unit is "%"."""

    name: str
    unit: str
    better: Literal["higher", "lower"]
    decimals: int = 1  # of a percentage

    @property
    def factor(self) -> float:
        """What a number of the document is multiplied by before it is shown."""
        return 100 if self.unit == "%" else 1

    @property
    def heading(self) -> str:
        """The score's name and unit, for a column or an axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def after(self) -> str:
        """The unit, as it follows a number in a sentence."""
        return f" {self.unit}" if self.unit else ""

    def text(self, value: float | None, *, sign: bool = False) -> str:
        """The number, in the unit; a dash if there is none."""
        if value is None:
            return NONE
        plus = "+z" if sign else "z"  # no minus before 0
        if self.unit == "%":
            return f"{self.factor * value:{plus}.{self.decimals}f}"
        return f"{value:{plus}.4g}"

    def interval(
        self, mean: float | None, low: float | None, high: float | None, *, sign: bool = False
    ) -> str:
        """`mean [low, high]`; the mean alone if there is no interval."""
        if mean is None or low is None or high is None:
            return self.text(mean, sign=sign)
        mean_, low_, high_ = (self.text(v, sign=sign) for v in (mean, low, high))
        return f"{mean_} [{low_}, {high_}]"


def score_of(document: Document) -> Score:
    """How the problem's score is written: with the decimals that its intervals warrant."""
    problem = document["problem"]
    ends = [(r["final"]["low"], r["final"]["high"]) for r in ranked(document)]
    widths = [high - low for low, high in ends if low is not None and high is not None]
    decimals = 2 if widths and min(widths) < 0.004 else 1
    return Score(problem["score"], problem.get("unit") or "", problem["better"], decimals)


def ranked(document: Document) -> list[Rule]:
    """The rules that have a final result, by their mean on the test rows, the best first."""
    worst = -math.inf

    def key(rule: Rule) -> float:
        mean = rule["final"]["mean"]
        if mean is None:
            return worst
        return mean if document["problem"]["better"] == "higher" else -mean

    return sorted((r for r in document["rules"] if r.get("final")), key=key, reverse=True)


def against_best(document: Document) -> dict[str, dict[str, Any]]:
    """{name: comparison of the best with it}, without the best."""
    return {c["b"]: c for c in document.get("comparisons") or []}


def verdict(comparison: dict[str, Any] | None) -> str:
    """What a rule is beside the best: "best" itself, "not separable", "worse" or "better"."""
    if comparison is None:
        return "best"
    return {"better": "worse", "worse": "better"}.get(comparison["verdict"], "not separable")


def point_text(point: dict[str, float]) -> str:
    """`learning_rate 0.01, b2 0.99`."""
    return ", ".join(f"{name} {value:g}" for name, value in point.items())


def median_steps(rule: Rule) -> float | None:
    """The median over seeds of the steps to the target; None if half of them did not reach it."""
    steps = rule.get("steps_to_target") or []
    median = statistics.median([math.inf if s is None else s for s in steps]) if steps else math.inf
    return median if math.isfinite(median) else None


def floor_of(document: Document) -> float:
    """The larger of the noise floors; 0 if none was measured."""
    known = (document.get("noise_floor") or {}).values()
    return max((v for v in known if v is not None), default=0.0)


def protocol(document: Document) -> str:
    """How the scores were made, in sentences."""
    seeds = _count(document["settings"]["seeds"], "fresh seed")
    if not has_rows(document):
        return PROTOCOL_WITHOUT_ROWS.format(seeds=seeds)
    return PROTOCOL.format(seeds=seeds, rows=document["problem"]["rows"][-1])


def has_rows(document: Document) -> bool:
    """Whether the problem has training, validation and test rows; a test function has none."""
    return bool(document["problem"].get("rows"))


def validation(document: Document) -> str:
    """What precedes a score of the search: "validation ", or nothing if there are no rows."""
    return "validation " if has_rows(document) else ""


# --- the table ----------------------------------------------------------------------------------


class Cell(NamedTuple):
    """What is shown, what it is sorted by (None: last), and how it looks."""

    text: str
    key: float | str | None = None
    look: Literal["", "good", "bad", "note"] = ""


class Column(NamedTuple):
    """A heading, a sentence about it, and a cell for each of `ranked(document)`."""

    heading: str
    about: str
    cells: list[Cell]

    @property
    def is_number(self) -> bool:
        """Whether it is sorted as numbers."""
        return not any(isinstance(cell.key, str) for cell in self.cells)


def results(document: Document) -> list[Column]:
    """The columns of the answer: point, score, what separates a rule from the best."""
    score, others, rules = score_of(document), against_best(document), ranked(document)
    forward = 1 if score.better == "higher" else -1

    def behind(rule: Rule) -> Cell:
        c = others.get(rule["name"])
        if c is None:
            return Cell("", 0.0)
        ends = (c["low"], c["high"]) if score.better == "higher" else (c["high"], c["low"])
        mean, low, high = (_times(forward, v) for v in (c["difference"], *ends))
        return Cell(score.interval(mean, low, high, sign=True), mean)

    def p(rule: Rule) -> Cell:
        c = others.get(rule["name"])
        value = None if c is None else c["p_corrected"]
        return Cell("" if c is None else _p(value), value)

    def judged(rule: Rule) -> Cell:
        said = verdict(others.get(rule["name"]))
        return Cell(said, said, "bad" if said == "worse" else "good" if said == "best" else "")

    def at(rule: Rule) -> Cell:
        point, edges = rule["final"]["point"], rule.get("edges") or []
        text = ", ".join(
            ("*" if name in edges else "")
            + (f"{v:g}" if name == "learning_rate" else f"{name} {v:g}")
            for name, v in point.items()
        )
        return Cell(text, next(iter(point.values()), None), "note" if edges else "")

    def twin(rule: Rule) -> Cell:
        final = rule.get("twin_final") or {}
        return Cell(score.text(final["mean"]) if final else "", final.get("mean"))

    def final(rule: Rule) -> Cell:
        final = rule["final"]
        return Cell(score.interval(final["mean"], final["low"], final["high"]), final["mean"])

    where = " on the test rows" if has_rows(document) else ""
    return _filled(rules, [
        ("rule", "the update rule", lambda r: Cell(r["name"], r["name"])),
        (score.heading, f"{score.name}{where}: mean and 95 % interval", final),
        ("behind the best", "how far the mean is behind that of the best rule, paired by seed and"
         " row, and its 95 % interval, which is of this difference alone: it may leave out 0 where"
         " the verdict, corrected for all pairs, is not separable", behind),
        ("p, Holm", "p value of that difference, corrected by Holm over all pairs of rules", p),
        ("verdict", "by the rule for better, which was fixed before the run", judged),
        ("chosen at", "the point that validates best; the learning rate comes first, and * marks"
         " the edge of a range", at),
        ("by Optax", f"{score.name} of its Optax twin at the same point, with the same seeds",
         twin),
    ])  # fmt: skip


def details(document: Document) -> list[Column]:
    """The other columns: steps to the target, twins, noise, and what a step costs."""
    score, rules = score_of(document), ranked(document)
    target = document["settings"].get("target")

    def steps(rule: Rule) -> Cell:
        all_steps = rule.get("steps_to_target") or []
        if target is None or not all_steps:
            return Cell("")
        reached, median = sum(s is not None for s in all_steps), median_steps(rule)
        some = "" if reached == len(all_steps) else f" ({reached} of {len(all_steps)})"
        return Cell(("not reached" if median is None else f"{median:,.0f}") + some, median)

    def of_twin(name: str, spec: str) -> Callable[[Rule], Cell]:
        def cell(rule: Rule) -> Cell:
            value = (rule.get("twin_final") or {}).get(name)
            return Cell("" if value is None else f"{value:{spec}}", value)

        return cell

    def due(rule: Rule) -> Cell:
        cause = (rule.get("twin_final") or {}).get("apart_by")
        return Cell(cause or "", cause or "", "bad" if cause == "rules" else "")

    def bit(rule: Rule) -> Cell:
        one = (rule.get("one_bit") or {}).get("test") or []
        pairs = zip(one, rule["final"]["test"], strict=False)
        apart = [abs(a - b) for a, b in pairs if a is not None and b is not None]
        return Cell(score.text(max(apart)), max(apart)) if apart else Cell("")

    def cost(name: str, spec: str) -> Callable[[Rule], Cell]:
        def cell(rule: Rule) -> Cell:
            value = (rule.get("cost") or {}).get(name)
            return Cell("" if value is None else f"{value:{spec}}", value)

        return cell

    return _filled(rules, [
        ("rule", "the update rule", lambda r: Cell(r["name"], r["name"])),
        ("steps to target", "median over seeds of the steps until the"
         f" {validation(document)}{score.name} is {score.text(target)}{score.after}", steps),
        ("one bit apart", "largest difference of test scores if the learning rate is one bit"
         " larger", bit),
        ("twins apart", "largest difference of a final parameter between the rule and its Optax"
         " twin", of_twin("apart", ".1g")),
        ("updates apart", "difference of the twins' updates in float64, given the same gradients,"
         " relative to their size", of_twin("update_difference", ".1g")),
        ("due to", "what sets the twins apart: nothing, rounding, or different rules", due),
        ("update, µs", "time of one update on this machine", cost("update_microseconds", ",.1f")),
        ("bytes", "bytes that one compiled update reads and writes", cost("bytes", ",.0f")),
        ("flops", "arithmetic operations of one compiled update", cost("flops", ",.0f")),
        ("kernels", "kernels of the compiled update", cost("kernels", ",.0f")),
        ("compile, s", "seconds to compile the rule's program", cost("compile_seconds", ".1f")),
        ("run, s", "seconds to run all trials and final seeds", cost("run_seconds", ".1f")),
    ])  # fmt: skip


def _filled(
    rules: list[Rule], columns: Iterable[tuple[str, str, Callable[[Rule], Cell]]]
) -> list[Column]:
    """The columns that have something to show; the first stays."""
    made = [Column(heading, about, list(map(cell, rules))) for heading, about, cell in columns]
    return made[:1] + [column for column in made[1:] if any(cell.text for cell in column.cells)]


LOOKS = {"good": "green", "bad": "red", "note": "yellow"}


def table(document: Document) -> Table:
    """A row for each rule, the best first, for the terminal; it fits 80 columns."""
    score = score_of(document).heading
    columns = {c.heading: c for c in details(document) + results(document)}
    wanted = ["rule", "chosen at", score, "p, Holm", "by Optax", "due to", "update, µs"]
    if any(len(rule["final"]["point"]) > 1 for rule in ranked(document)):
        wanted = [name for name in wanted if name not in ("by Optax", "due to")]
    shown = [columns[name] for name in wanted if name in columns]
    out = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for column in shown:
        right = column.is_number and column.heading != "chosen at"
        heading = Text("\n".join(_two_lines(column.heading)))
        out.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for row in zip(*(column.cells for column in shown), strict=True):
        out.add_row(*(_on_screen(cell) for cell in row))
    return out


def _two_lines(heading: str) -> tuple[str, str]:
    """The heading's last word, or its unit, goes to the second line."""
    first, _, last = heading.rpartition(" ")
    return first.rstrip(","), last


def _on_screen(cell: Cell) -> Text:
    """The cell in its colour; each part of a point in a line of its own."""
    interval = "[" in cell.text
    text = cell.text if interval else cell.text.replace(", ", "\n")
    return Text(text, style=LOOKS.get(cell.look, ""))


# --- the findings -------------------------------------------------------------------------------


def findings(document: Document) -> list[str]:
    """The results as sentences, the answer first."""
    rules = ranked(document)
    lines = _answer(document, rules) if rules else ["No rule has a result yet."]
    if document.get("interrupted"):
        done, total = len(rules), len(document["settings"]["rules"])
        lines.append(f"Interrupted: {done} of {_count(total, 'rule')} are done.")
    if rules:
        lines += [*_search(document, rules), *_speed(document, rules), *_noise(document, rules)]
    return lines


def findings_of(document: Document) -> list[str]:
    """The findings that the document holds; made from its numbers if it holds none."""
    return document.get("findings") or findings(document)


def _answer(document: Document, rules: list[Rule]) -> list[str]:
    score, (best, *others), compared = score_of(document), rules, against_best(document)
    final = best["final"]
    if final["mean"] is None:
        return ["No rule ended with a finite score."]
    said = f"{score.name} {score.text(final['mean'])}{score.after}"
    if final["low"] is not None and final["high"] is not None:
        span = f"{score.text(final['low'])} to {score.text(final['high'])}"
        said += f" (95 % interval {span})"
    where = " on the test rows" if has_rows(document) else ""
    lines = [f"Best{where}: {best['name']} at {point_text(final['point'])}, {said}."]
    for judged, sentence in (
        ("not separable", "Not separable from it by {seeds}: {names}."),
        ("worse", "Worse than it, {corrected}: {names}."),
        ("better", "Better than it by the paired test, though their mean is not: {names}."),
    ):
        names = [
            r["name"]
            for r in others
            if r["name"] in compared and verdict(compared[r["name"]]) == judged
        ]
        if names:
            several = len(compared) > 1
            corrected = "corrected for all pairs of rules" if several else "by the rule for better"
            seeds = _count(document["settings"]["seeds"], "seed")
            named = ", ".join(names)
            line = sentence.format(seeds=seeds, corrected=corrected, names=named)
            if judged == "not separable":
                lines[0] += f" {line}"  # without it the answer would say too much
            else:
                lines.append(line)
    return lines


def _search(document: Document, rules: list[Rule]) -> list[str]:
    """The edges of ranges, rules that lose to what they contain, and few trials."""
    lines = []
    for rule in rules:
        for name in rule.get("edges") or []:
            value = rule["final"]["point"][name]
            lines.append(
                f"* {rule['name']} is best at {name} {value:g}, the edge of its range: a value"
                " beyond it may be better."
            )
    score = score_of(document)
    for pair in document.get("inclusion") or []:
        if not pair["holds"]:
            by = ""
            if pair.get("difference") is not None:
                by = f" by {score.text(abs(pair['difference']))}{score.after}"
            lines.append(
                f"{pair['rule']} contains {pair['contains']} and loses to it{by}: its search"
                " found too little."
            )
    lead = _first_and_last(document, rules)
    if lead:
        n = len(rules[0]["expected_best"])
        where = " on the validation rows" if has_rows(document) else ""
        lines.append(
            f"The answer depends on the number of trials:{where} {lead[0]} is"
            f" ahead after 1 trial, {lead[1]} after {n}."
        )
    for rule in rules:
        test = rule["final"]["test"]
        if None in test:
            lines.append(
                f"{rule['name']}: {test.count(None)} of {len(test)} final runs ended without a"
                " finite score."
            )
        skipped = sum(bool(s) for s in rule["final"].get("skipped") or [])
        if skipped:
            of = len(rule["final"]["skipped"])
            lines.append(
                f"{rule['name']}: {skipped} of {of} final runs had steps that were not finite;"
                " steps with such a loss or gradient were skipped."
            )
    return lines


def _first_and_last(document: Document, rules: list[Rule]) -> tuple[str, str] | None:
    """The rules that are ahead after one trial and after all, if that is more than noise."""
    sign = 1 if document["problem"]["better"] == "higher" else -1
    curves = {r["name"]: r.get("expected_best") or [None] for r in rules}
    ends: list[tuple[str, dict[str, float]]] = []
    for k in (0, -1):
        known = {name: sign * v for name, c in curves.items() if (v := c[k]) is not None}
        if not known:
            return None
        ends.append((max(known, key=known.__getitem__), known))
    (first, after_one), (last, after_all) = ends
    leads = (
        after_one[first] - after_one.get(last, math.inf),
        after_all[last] - after_all.get(first, math.inf),
    )
    return (first, last) if min(leads) > floor_of(document) else None


def _speed(document: Document, rules: list[Rule]) -> list[str]:
    target, score = document["settings"].get("target"), score_of(document)
    steps = {r["name"]: s for r in rules if (s := median_steps(r)) is not None}
    if target is None or not any(r.get("steps_to_target") for r in rules):
        return []
    where = " on the validation rows" if has_rows(document) else ""
    goal = f"{score.name} {score.text(target)}{score.after}{where}"
    if not steps:
        return [f"No rule reached {goal} with half of its seeds."]
    least = min(steps.values())
    first = ", ".join(name for name, s in steps.items() if s == least)
    line = f"Fewest steps to {goal}: {first}, {least:,.0f} (median over seeds)."
    return [line]


def _noise(document: Document, rules: list[Rule]) -> list[str]:
    score, floor = score_of(document), document.get("noise_floor") or {}
    lines = []
    parts = [
        f"{score.text(floor[name])}{score.after} {what}"
        for name, what in NOISE.items()
        if floor.get(name) is not None
    ]
    if parts:
        lines.append(
            f"Noise floor of a single run: {' and '.join(parts)} (95th percentile of the"
            " difference)."
        )
    for cause, meaning in _CAUSES.items():
        apart = {
            r["name"]: twin.get("update_difference")
            for r in rules
            if (twin := r.get("twin_final")) and twin.get("apart_by") == cause
        }
        if apart:
            known = [a for a in apart.values() if a is not None]
            largest = f"{max(known):.1e}" if known else "an unknown part"
            lines.append(f"{', '.join(apart)}: {meaning.format(largest)}.")
    return lines


NOISE = {
    "one_bit": "if the learning rate is one bit larger",
    "twins": "between a rule and its Optax twin",
}
_CAUSES = {
    "nothing": "the twins end in the same parameters, bit for bit",
    "rounding": "the twins end apart by rounding, which training amplifies. In float64, given the"
    " same gradients, their updates agree to {} of their size",
    "rules": "the twins are different rules. In float64, given the same gradients, their updates"
    " differ by {} of their size",
}


# --- Markdown and LaTeX -------------------------------------------------------------------------


def as_markdown(document: Document) -> bytes:
    """The findings, the tables and the settings, for a README or an issue."""
    answer, *others = findings_of(document)
    problem = document["problem"]
    parts = [
        f"# Comparison of optimizers on {_md(problem['name'])}",
        _md(problem.get("about") or ""),
        f"**{_md(answer)}**",
        "\n".join(f"- {_md(line)}" for line in others),
        f"{_md(protocol(document))} {_md(document['rule_for_better'])}",
    ]
    for columns in (results(document), details(document)):
        if len(columns) > 1 and columns[0].cells:
            parts += [_md_table(columns), "\n".join(_md_notes(columns))]
    parts += ["## Settings", _md_table(_pairs(settings_of(document)))]
    parts += ["The same comparison again:", _md_code(document["command"])]
    parts.append("## Rules")
    for rule in document["rules"]:
        parts += [f"### {_md(rule['name'])}", _md(f"By {rule['by']}.")]
        parts.append(_md_code(rule["formula"]))
    return ("\n\n".join(filter(None, parts)) + "\n").encode()


def settings_of(document: Document) -> dict[str, str]:
    """Settings, sizes, device and versions, as text."""
    out = {}
    for name, value in document["settings"].items():
        many = isinstance(value, list)
        out[name.replace("_", " ")] = "; ".join(map(str, value)) if many else _said(value)
    problem, device = document["problem"], document["device"]
    if problem.get("rows"):
        out["rows: training, validation, test"] = ", ".join(_said(n) for n in problem["rows"])
    if problem.get("steps") is not None:
        out["steps of a run"] = _said(problem["steps"])
    if problem.get("optimum") is not None:
        out["least loss, known"] = _said(problem["optimum"])
    out["device"] = f"{device['count']} x {device['kind']} ({device['platform']})"
    out["versions"] = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    out["problem's fingerprint"] = str(problem.get("fingerprint"))
    return out


def _pairs(settings: dict[str, str]) -> list[Column]:
    return [
        Column("setting", "", [Cell(name, name) for name in settings]),
        Column("value", "", [Cell(value, value) for value in settings.values()]),
    ]


def _md(text: str) -> str:
    """Text that Markdown shows as it is: one line, with the characters that it reads escaped."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", line)
    # What would begin a heading or an item of a list.
    return re.sub(r"^(#{0,5}|[-+=]*|\d+)([#.)=+-])(?=\s|$)", r"\1\\\2", line)


def _md_code(text: str) -> str:
    """A block of code, whose fence is longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _md_table(columns: Sequence[Column]) -> str:
    rules = [":--" if i == 0 or not c.is_number else "--:" for i, c in enumerate(columns)]
    lines = [[_md(c.heading) for c in columns], rules]
    lines += [[_md(c.text) for c in row] for row in zip(*(c.cells for c in columns), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _md_notes(columns: Sequence[Column]) -> list[str]:
    return [f"- {_md(c.heading)}: {_md(c.about)}." for c in columns[1:]]


def as_tex(document: Document) -> bytes:
    r"""Two tables for a paper's appendix. They need `\usepackage{booktabs}`, nothing else."""
    problem = document["problem"]
    made = [
        f"% {line}"
        for line in (
            "Made by: " + " ".join(document["command"].split()),
            "Versions: " + settings_of(document)["versions"],
            r"Needs \usepackage{booktabs}",
        )
    ]
    answer = findings_of(document)[0]
    captions = (
        f"Optimizers on {problem['name']}. {answer} {protocol(document)}"
        f" {document['rule_for_better']}",
        f"Steps, twins and cost on {problem['name']}."
        f" {document['device']['count']} x {document['device']['kind']}.",
    )
    narrow = [c for c in details(document) if c.heading not in ("flops", "compile, s", "run, s")]
    for columns, caption, label in zip(
        (results(document), narrow), captions, ("results", "details"), strict=True
    ):
        if len(columns) > 1 and columns[0].cells:
            made += _tex_table(columns, caption, label)
    return ("\n".join(made) + "\n").encode()


def _tex_table(columns: Sequence[Column], caption: str, label: str) -> list[str]:
    align = "".join("l" if i == 0 or not c.is_number else "r" for i, c in enumerate(columns))
    heads = zip(*(_two_lines(c.heading) for c in columns), strict=True)
    body = [
        " & ".join(_tex(c.text) for c in row) + r" \\"
        for row in zip(*(c.cells for c in columns), strict=True)
    ]
    return [
        r"\begin{table}[ht]",
        r"\centering\scriptsize\setlength{\tabcolsep}{2.5pt}",
        rf"\caption{{{_tex(caption)}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}",
        r"\toprule",
        *(" & ".join(map(_tex, head)) + r" \\" for head in heads),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "`": r"\`{}",
    "[": "{[}",  # after \\ it would open an argument
    NONE: "--",
    "µ": r"$\mu$",
    "±": r"$\pm$",
    "\u00d7": r"$\times$",
    **{c: rf"\{c}" for c in "&%$#_"},
}


def _tex(text: str) -> str:
    """Text that LaTeX sets as it is: one line, its own characters escaped."""
    escaped = "".join(_TEX.get(c, c) for c in " ".join(str(text).split()))
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", escaped)  # a minus, not a hyphen


# --- numbers as text ----------------------------------------------------------------------------


def _p(p: float | None) -> str:
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
