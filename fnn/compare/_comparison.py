"""A comparison from Python: `compare_optimizers`, and a member of it again: `replay_member`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from fnn._base import write_whole
from fnn.compare._document import Document, as_json, command_of, document_of
from fnn.compare._member import Order
from fnn.compare._plan import DEFAULT, Plan, Settings, plan_of
from fnn.compare._problem import WHO, Problem
from fnn.compare._protocol import Progress, Result, results
from fnn.compare._rules import Make, Rule
from fnn.compare._run import Kind, alone, digest_of, key_of
from fnn.compare._store import kept
from fnn.compare._tuning import How, Point, point_text

PIECES = "pieces"  # the folder of pieces, beside comparison.json


def compare_optimizers(
    rules: Sequence[str | Make | Rule] | Mapping[str, Make] = DEFAULT,
    problem: str | Problem = "digits",
    *,
    tune: Sequence[str] = (),
    how: How | None = None,
    trials: int | None = None,
    trial_seeds: int = 3,
    seeds: int = 10,
    epochs: int | None = None,
    batch_size: int | None = None,
    order: Order = "new",
    target: float | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Document:
    """Search, choose and compare optimizers on a problem -> the document, as in comparison.json.

    - `rules`: names of `RULES`, files (``my_rule.py``), or functions
      ``(learning_rate, **hyperparameters) -> optimizer``, by fnn, by Optax or one's own; or
      {name: function}.
    - `problem`: a name of `PROBLEMS`, a file, or a `Problem`.
    - `tune`: ``["b2=0.9,0.99,0.999"]``; ``"adam.b2=0.9,0.99"`` is for that rule only. The learning
      rate is always tuned, by default over the problem's rates. Ranges, ``"b1=0.8..0.99:log1m"``,
      take Sobol points (`how`). `trials` is the number of points, the same for each rule.
    - Each point is run from `trial_seeds`, the chosen one from fresh `seeds`.
    - `epochs`, `batch_size` and `target` (of the score) are by default the problem's. `order` of
      the batches is "new" in each epoch, or the "same".
    - `out`: pieces are kept in ``out/pieces`` as they come; a call with the same settings goes on
      there. None: in memory.
    - ``progress(done, total, text)`` is called before and after each piece of work.

    The document is a dict that JSON can hold; "findings" are its results as sentences. Its fields
    are listed at the top of ``fnn/compare/_document.py``.
    """
    settings = Settings(
        rules, problem, tune, how, trials, trial_seeds, seeds, epochs, batch_size, order, target
    )
    plan = plan_of(settings)
    folder = None if out is None else Path(out) / PIECES
    done: list[Result] = []
    with kept(folder, plan.marks()) as store:
        for done in results(plan, store, progress or (lambda done, total, text: None)):  # noqa: B007
            pass
        store.finish()
    return documented(plan, done)


def documented(plan: Plan, done: Sequence[Result], interrupted: bool = False) -> Document:
    """The document with its findings."""
    from fnn.compare._report import findings  # slow to import

    document = document_of(plan, done, command=command_of(plan), interrupted=interrupted)
    document["findings"] = findings(document)
    return document


def write_report(
    document: Document, out: str | Path, others: Sequence[Document] = ()
) -> list[Path]:
    """Write comparison.json, .png, .md, .tex and report.html to a folder -> the files.

    `others` are comparisons of the same rules on other problems, for the performance profile.
    """
    made = [Path(out) / name for name in RENDERS]
    for path, render in zip(made, RENDERS.values(), strict=True):
        write_whole(path, render(document, others, made[0]))
    return made


Others = Sequence[Document]


# Each imports what it needs when it is called: all of it is slow to import.


def _as_png(document: Document, others: Others, _: Path) -> bytes:
    from fnn.compare._plot import as_png

    return as_png(document, others)


def _as_markdown(document: Document, *_: Any) -> bytes:
    from fnn.compare._report import as_markdown

    return as_markdown(document)


def _as_tex(document: Document, *_: Any) -> bytes:
    from fnn.compare._report import as_tex

    return as_tex(document)


def _as_html(document: Document, others: Others, file: Path) -> bytes:
    from fnn.compare._html import as_html

    return as_html(document, others, file)


# render(document, others, the file that the document is in)
RENDERS: dict[str, Callable[[Document, Others, Path], bytes]] = {
    "comparison.json": lambda document, *_: as_json(document),
    "comparison.png": _as_png,
    "comparison.md": _as_markdown,
    "comparison.tex": _as_tex,
    "report.html": _as_html,
}


# --- a member again -----------------------------------------------------------------------------


def plan_again(document: Document) -> Plan:
    """The plan that a document was made by. ValueError if the problem is not the same any more."""
    settings = dict(document["settings"])
    plan = plan_of(Settings(**settings))
    if plan.fingerprint != document["problem"]["fingerprint"]:
        raise ValueError(
            f"{WHO}: the problem {plan.problem.name} is not the one of the comparison: its data,"
            " its initial parameters or its loss have changed, or another version of jax writes"
            " its loss differently"
        )
    return plan


def replay_member(document: Document, name: str, point: Point, kind: Kind, seed: int) -> list[str]:
    """Train one member of a comparison alone -> sentences: its scores, and whether it is the same.

    The bits are compared by the digest of the final parameters that the document has.
    """
    plan = plan_again(document)
    entry = _entry(document, name)
    name = entry["name"]
    trials = [trial["point"] for trial in entry["trials"]]
    fresh = kind == "fresh" and not point  # only the chosen point has fresh seeds
    chosen = entry["best"] if fresh else _matching(name, trials, point)
    seeds = plan.seeds if kind == "fresh" else plan.trial_seeds
    if not 0 <= seed < seeds:
        raise ValueError(f"{WHO}: --replay: seed is {seed}, expected 0 to {seeds - 1}")
    full = trials[chosen]
    if kind == "fresh" and chosen != entry["best"]:
        raise ValueError(
            f"{WHO}: --replay: {name} has fresh seeds at {point_text(trials[entry['best']])} only;"
            f" trial_seed={seed} is a run of the search"
        )
    rule = next(rule for rule in plan.rules if rule.name == name)
    out = alone(plan, rule.make, key_of(kind, seed), full)
    was = entry["final"] if kind == "fresh" else entry["trials"][chosen]
    digest = digest_of(out["params"]).hex()[:16]
    same = digest == was["digest"][seed]
    score = plan.problem.score
    where = f"{name} at {point_text(full)}, {'seed' if kind == 'fresh' else 'trial_seed'}={seed}"
    said = [f"{where}: {score} {float(out['valid']):.6g} on the validation rows"]
    if kind == "fresh":
        said[0] += f", {float(out['test_rows'].mean(dtype='float64')):.6g} on the test rows"
    said[0] += "."
    if same:
        said.append(f"The final parameters are the same, bit for bit (sha256 {digest}...).")
    else:
        said.append(
            f"The final parameters are not the same: sha256 {digest}... where the comparison has"
            f" {was['digest'][seed]}...{_other(document)}"
        )
    return said


def _entry(document: Document, name: str) -> dict[str, Any]:
    rules = document["rules"]
    found = [entry for entry in rules if entry["name"] == name] or [
        entry for entry in rules if name in (entry["by"], f"{entry['by']}:{entry['name']}")
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(entry["name"] for entry in document["rules"])
    raise ValueError(
        f"{WHO}: --replay: no rule {name!r} in the comparison, expected one of: {names}"
    )


def _matching(name: str, trials: Sequence[Point], point: Point) -> int:
    """Index of the one trial that has these values, or whose values are printed as these are."""

    def fitting(text: Callable[[float], Any]) -> list[int]:
        def fits(trial: Point) -> bool:
            return all(n in trial and text(trial[n]) == text(v) for n, v in point.items())

        return [i for i, trial in enumerate(trials) if fits(trial)]

    found = fitting(float) or fitting("{:g}".format)
    if len(found) == 1:
        return found[0]
    came = point_text(point) or "no value"
    if found:
        raise ValueError(
            f"{WHO}: --replay: {came} fits {len(found)} trials of {name}, expected the values of"
            f" one, as {point_text(trials[found[0]])}"
        )
    shown = "; ".join(point_text(trial) for trial in trials[:8])
    more = "" if len(trials) <= 8 else f" and {len(trials) - 8} others"
    raise ValueError(f"{WHO}: --replay: {name} has no trial at {came}, expected {shown}{more}")


def _other(document: Document) -> str:
    """What else is different between then and now, as the end of a sentence."""
    device, versions = document["device"], document["versions"]
    now = jax.devices()[0]
    said = []
    if (device["platform"], device["kind"]) != (now.platform, now.device_kind):
        said.append(f"it ran on {device['kind']} ({device['platform']})")
    if versions["jax"] != jax.__version__:
        said.append(f"by jax {versions['jax']}")
    if now.platform != "cpu":
        said.append("members that run side by side round in another order than one alone")
    return "; " + ", ".join(said) + "." if said else "."
