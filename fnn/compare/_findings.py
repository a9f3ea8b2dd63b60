"""The findings of a comparison: its results as sentences, the answer first."""

import math

from fnn.compare._reading import (
    Document,
    Rule,
    against_best,
    floor_of,
    median_steps,
    on_rows,
    point_in_words,
    ranked,
    score_of,
    verdict,
)
from fnn.compare._words import counted

NOISE = {  # what sets two runs apart that should be the same
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
OTHERS = {  # what is said of the rules with a verdict
    "not separable": "Not separable from it by {seeds}: {names}.",
    "worse": "Worse than it, {corrected}: {names}.",
    "better": "Better than it by the paired test, though their mean is not: {names}.",
}


def findings(document: Document) -> list[str]:
    """The results as sentences, the answer first."""
    rules = ranked(document)
    lines = _answer(document, rules) if rules else ["No rule has a result yet."]
    if document.get("interrupted"):
        total = counted(len(document["settings"]["rules"]), "rule")
        lines.append(f"Interrupted: {len(rules)} of {total} are done.")
    if rules:
        lines += [*_edges(rules), *_lost(document), *_trials(document, rules), *_broken(rules)]
        lines += [*_speed(document, rules), *_noise(document), *_twins(rules)]
    return lines


def findings_of(document: Document) -> list[str]:
    """The findings that the document holds; made from its numbers if it holds none."""
    return document.get("findings") or findings(document)


def _answer(document: Document, rules: list[Rule]) -> list[str]:
    score, best = score_of(document), rules[0]
    final = best["final"]
    if final["mean"] is None:
        return ["No rule ended with a finite score."]
    said = f"{score.name} {score.said(final['mean'])}"
    if final["low"] is not None and final["high"] is not None:
        said += f" (95 % interval {score.text(final['low'])} to {score.text(final['high'])})"
    point = point_in_words(final["point"])
    line = f"Best{on_rows(document, 'test')}: {best['name']} at {point}, {said}."
    others = _others(document, rules[1:])
    if "not separable" in others:  # without it the answer would say too much
        line += f" {others.pop('not separable')}"
    return [line, *others.values()]


def _others(document: Document, others: list[Rule]) -> dict[str, str]:
    """A sentence for each verdict that a rule got."""
    compared, lines = against_best(document), {}
    corrected = (
        "corrected for all pairs of rules" if len(compared) > 1 else "by the rule for better"
    )
    seeds = counted(document["settings"]["seeds"], "seed")
    known = [rule["name"] for rule in others if rule["name"] in compared]
    for judged, sentence in OTHERS.items():
        names = ", ".join(name for name in known if verdict(compared[name]) == judged)
        if names:
            lines[judged] = sentence.format(seeds=seeds, corrected=corrected, names=names)
    return lines


def _edges(rules: list[Rule]) -> list[str]:
    return [
        f"* {rule['name']} is best at {name} {rule['final']['point'][name]:g}, the edge of its"
        " range: a value beyond it may be better."
        for rule in rules
        for name in rule.get("edges") or []
    ]


def _lost(document: Document) -> list[str]:
    """The rules that lose to what they contain."""
    score, lines = score_of(document), []
    for pair in document.get("inclusion") or []:
        if not pair["holds"]:
            known, by = pair.get("difference"), ""
            if known is not None:
                by = f" by {score.said(abs(known))}"
            lines.append(
                f"{pair['rule']} contains {pair['contains']} and loses to it{by}: its search"
                " found too little."
            )
    return lines


def _trials(document: Document, rules: list[Rule]) -> list[str]:
    """Whether few trials would have given another answer."""
    lead = _first_and_last(document, rules)
    if lead is None:
        return []
    n = max(len(rule.get("expected_best") or []) for rule in rules)
    return [
        f"The answer depends on the number of trials:{on_rows(document, 'validation')} {lead[0]}"
        f" is ahead after 1 trial, {lead[1]} after {n}."
    ]


def _first_and_last(document: Document, rules: list[Rule]) -> tuple[str, str] | None:
    """The rules that are ahead after one trial and after all, if that is more than noise."""
    sign = score_of(document).sign
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


def _broken(rules: list[Rule]) -> list[str]:
    """Runs without a finite score, and runs with skipped steps."""
    lines = []
    for rule in rules:
        test, skipped = rule["final"]["test"], rule["final"].get("skipped") or []
        if None in test:
            lines.append(
                f"{rule['name']}: {test.count(None)} of {len(test)} final runs ended without a"
                " finite score."
            )
        if any(skipped):
            some = sum(map(bool, skipped))
            lines.append(
                f"{rule['name']}: {some} of {len(skipped)} final runs had steps that were not"
                " finite; steps with such a loss or gradient were skipped."
            )
    return lines


def _speed(document: Document, rules: list[Rule]) -> list[str]:
    target, score = document["settings"].get("target"), score_of(document)
    steps = {r["name"]: s for r in rules if (s := median_steps(r)) is not None}
    if target is None or not any(r.get("steps_to_target") for r in rules):
        return []
    goal = f"{score.name} {score.said(target)}{on_rows(document, 'validation')}"
    if not steps:
        return [f"No rule reached {goal} with half of its seeds."]
    least = min(steps.values())
    first = ", ".join(name for name, s in steps.items() if s == least)
    return [f"Fewest steps to {goal}: {first}, {least:,.0f} (median over seeds)."]


def _noise(document: Document) -> list[str]:
    score, floor = score_of(document), document.get("noise_floor") or {}
    parts = [
        f"{score.said(floor[name])} {what}"
        for name, what in NOISE.items()
        if floor.get(name) is not None
    ]
    said = (
        f"Noise floor of a single run: {' and '.join(parts)} (95th percentile of the difference)."
    )
    return [said] if parts else []


def _twins(rules: list[Rule]) -> list[str]:
    """What sets twins apart."""
    lines = []
    for cause, meaning in _CAUSES.items():
        apart = {
            r["name"]: twin.get("update_difference")
            for r in rules
            if (twin := r.get("twin_final")) and twin.get("apart_by") == cause
        }
        known = [a for a in apart.values() if a is not None]
        largest = f"{max(known):.1e}" if known else "an unknown part"
        if apart:
            lines.append(f"{', '.join(apart)}: {meaning.format(largest)}.")
    return lines
