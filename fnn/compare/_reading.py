"""What the document of a comparison says, read in one place: by tables, sentences and charts."""

import math
from typing import Any, NamedTuple

from fnn.compare import _statistics as statistics
from fnn.compare._statistics import SIGN, Better
from fnn.compare._words import counted

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


class Score(NamedTuple):
    """How a problem's score is written: 0.9876 is "98.8" if the unit is "%"."""

    name: str
    unit: str
    better: Better
    decimals: int = 1  # of a percentage

    @property
    def factor(self) -> float:
        """What a number of the document is multiplied by before it is shown."""
        return 100 if self.unit == "%" else 1

    @property
    def sign(self) -> int:
        """1 if higher is better, else -1."""
        return SIGN[self.better]

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

    def said(self, value: float | None, *, sign: bool = False) -> str:
        """The number and its unit."""
        return self.text(value, sign=sign) + self.after

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


def y_of(document: Document, is_score: bool) -> Score:
    """How the numbers of a chart are written: as scores, or as plain numbers."""
    return score_of(document) if is_score else Score("", "", "lower")


def ranked(document: Document) -> list[Rule]:
    """The rules that have a final result, by their mean on the test rows, the best first."""
    sign = SIGN[document["problem"]["better"]]

    def key(rule: Rule) -> float:
        mean = rule["final"]["mean"]
        return -math.inf if mean is None else sign * mean

    return sorted((r for r in document["rules"] if r.get("final")), key=key, reverse=True)


def against_best(document: Document) -> dict[str, dict[str, Any]]:
    """{name: comparison of the best with it}, without the best."""
    return {c["b"]: c for c in document.get("comparisons") or []}


def verdict(comparison: dict[str, Any] | None) -> str:
    """What a rule is beside the best: "best" itself, "not separable", "worse" or "better"."""
    if comparison is None:
        return "best"
    return {"better": "worse", "worse": "better"}.get(comparison["verdict"], "not separable")


def point_in_words(point: dict[str, float]) -> str:
    """`learning_rate 0.01, b2 0.99`."""
    return ", ".join(f"{name} {value:g}" for name, value in point.items())


def median_steps(rule: Rule) -> float | None:
    """The median over seeds of the steps to the target; None if half of them did not reach it."""
    median = statistics.median_steps(rule.get("steps_to_target") or [])
    return median if math.isfinite(median) else None


def floor_of(document: Document) -> float:
    """The larger of the noise floors; 0 if none was measured."""
    known = (document.get("noise_floor") or {}).values()
    return max((v for v in known if v is not None), default=0.0)


def protocol(document: Document) -> str:
    """How the scores were made, in sentences."""
    seeds = counted(document["settings"]["seeds"], "fresh seed")
    if not has_rows(document):
        return PROTOCOL_WITHOUT_ROWS.format(seeds=seeds)
    return PROTOCOL.format(seeds=seeds, rows=document["problem"]["rows"][-1])


def has_rows(document: Document) -> bool:
    """Whether the problem has training, validation and test rows; a test function has none."""
    return bool(document["problem"].get("rows"))


def on_rows(document: Document, part: str) -> str:
    """` on the test rows`; nothing if there are no rows."""
    return f" on the {part} rows" if has_rows(document) else ""


def validation(document: Document) -> str:
    """What precedes a score of the search: "validation ", or nothing if there are no rows."""
    return "validation " if has_rows(document) else ""


def settings_as_text(document: Document) -> dict[str, str]:
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


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
