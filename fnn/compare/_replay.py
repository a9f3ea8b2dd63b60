"""A member of a comparison again: `replay_member`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from fnn.compare._plan import Plan, Settings, plan_of
from fnn.compare._reading import Document, Rule, has_rows, on_rows
from fnn.compare._run import Kind, alone, digest_of, key_of
from fnn.compare._tuning import Point, point_text
from fnn.compare._words import WHO


def plan_again(document: Document) -> Plan:
    """The plan that a document was made by. ValueError if the problem is not the same any more."""
    plan = plan_of(Settings(**document["settings"]))
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
    plan, entry = plan_again(document), _entry(document, name)
    chosen = _chosen(plan, entry, point, kind, seed)
    rule = next(rule for rule in plan.rules if rule.name == entry["name"])
    trial = entry["trials"][chosen]
    out = alone(plan, rule.make, key_of(kind, seed), trial["point"])
    valid, test = float(out["valid"]), float(out["test_rows"].mean(dtype="float64"))
    scores = f"{plan.problem.score} {valid:.6g}{on_rows(document, 'validation')}"
    if kind == "fresh" and has_rows(document):  # without rows the two are the same
        scores += f", {test:.6g}{on_rows(document, 'test')}"
    which = "seed" if kind == "fresh" else "trial_seed"
    digest = digest_of(out["params"]).hex()[:16]
    was = (entry["final"] if kind == "fresh" else trial)["digest"][seed]
    return [
        f"{rule.name} at {point_text(trial['point'])}, {which}={seed}: {scores}.",
        f"The final parameters are the same, bit for bit (sha256 {digest}...)."
        if digest == was
        else f"The final parameters are not the same: sha256 {digest}... where the comparison has"
        f" {was}...{_other(document)}",
    ]


def _chosen(plan: Plan, entry: Rule, point: Point, kind: Kind, seed: int) -> int:
    """Index of the trial that is meant. Only the best point has fresh seeds."""
    name, best = entry["name"], entry["best"]
    points = [trial["point"] for trial in entry["trials"]]
    chosen = best if kind == "fresh" and not point else _matching(name, points, point)
    seeds = plan.seeds if kind == "fresh" else plan.trial_seeds
    if not 0 <= seed < seeds:
        raise ValueError(f"{WHO}: --replay: seed is {seed}, expected 0 to {seeds - 1}")
    if kind == "fresh" and chosen != best:
        raise ValueError(
            f"{WHO}: --replay: {name} has fresh seeds at {point_text(points[best])} only;"
            f" trial_seed={seed} is a run of the search"
        )
    return chosen


def _entry(document: Document, name: str) -> Rule:
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
