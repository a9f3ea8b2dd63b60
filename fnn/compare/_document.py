"""The document of a comparison: everything that was measured, as JSON.

Its fields, version 2; numbers that are not finite are None:

    schema, version, command            "fnn.compare", 2, the command that makes it again
    versions, device                    of fnn, jax, ...; platform, kind, count
    settings                            problem, rules, tune, how, trials, trial_seeds, seeds,
                                        epochs, batch_size, order, target
    problem                             name, about, score, better, unit, fingerprint, steps,
                                        optimum, rows of training, validation, test (or None)
    rule_for_better                     fixed before the run
    rules[]: name, formula, by, twin    what the rule is
      trials[]                          point; valid, valid_loss, skipped, digest [trial_seeds]
      best, edges                       index of the chosen trial; names at an edge of their range
      final                             point, seeds; test, valid, test_loss, skipped, digest
                                        [seeds]; mean, low, high; loss_by_epoch and
                                        valid_by_epoch [seeds][epochs]
      twin_final                        the same of the Optax twin; apart, update_difference,
                                        apart_by "nothing", "rounding" or "rules"
      one_bit                           test [seeds] at a learning rate one bit larger
      expected_best                     [trials], on validation rows; a diverged trial counts as
                                        the worst finite one of all rules; None if all diverged
      steps_to_target                   [seeds], None where it was not reached
      cost                              compile_seconds, run_seconds, update_microseconds, bytes,
                                        flops, kernels
    comparisons[]                       the best rule against each other one
    noise_floor, inclusion[], findings[], interrupted

A digest is the first 16 hexadecimal digits of the sha256 of the final parameters.
"""

import json
import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fnn.compare import _statistics as statistics
from fnn.compare._intervals import two_level_interval
from fnn.compare._plan import Plan
from fnn.compare._protocol import Result
from fnn.compare._reading import Document
from fnn.compare._rule import Rule, contained
from fnn.compare._tuning import edge
from fnn.compare._words import WHO
from fnn.data import rows_of

SCHEMA, VERSION = "fnn.compare", 2
FIELDS = "command", "versions", "device", "settings", "problem", "rule_for_better", "rules"
LIBRARIES = ("fnn", "jax", "jaxlib", "optax", "numpy")


def document_of(
    plan: Plan, results: Sequence[Result], *, command: str, interrupted: bool = False
) -> Document:
    """The document of what is done, without `findings`, which are read from it."""
    better = plan.problem.better
    scores = {result.rule.name: result.final["test_rows"] for result in results}
    compared = statistics.compare_all(scores, better) if scores else []
    inner = {r.rule.name: contained(r.rule, plan.axes[r.rule.name]) for r in results}
    worst = _worst(plan, results)
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "command": command,
        "versions": {name: metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "device": _device(),
        "settings": settings_of(plan),
        "problem": _problem(plan),
        "rule_for_better": statistics.RULE_FOR_BETTER,
        "rules": [_rule(plan, result, worst) for result in results],
        "comparisons": [c._asdict() for c in compared],
        "noise_floor": _noise_floor(results),
        "inclusion": [i._asdict() for i in statistics.inclusion(inner, scores, better)],
        "findings": [],
        "interrupted": interrupted,
    }
    return plain(document)


def _device() -> dict[str, Any]:
    device = jax.devices()[0]
    kind = device.device_kind
    return {"platform": device.platform, "kind": kind, "count": jax.device_count()}


def _problem(plan: Plan) -> dict[str, Any]:
    problem = plan.problem
    rows = [None if part is None else rows_of(WHO, part) for part in plan.parts]
    return {
        "name": problem.name,
        "about": problem.about,
        "score": problem.score,
        "better": problem.better,
        "unit": "%" if problem.score == "accuracy" else "",
        "fingerprint": plan.fingerprint,
        "rows": None if None in rows else rows,
        "steps": plan.steps,
        "optimum": problem.optimum,
    }


def settings_of(plan: Plan) -> dict[str, Any]:
    """The settings, as JSON has them."""
    marks = plan.marks()
    names = ("tune", "how", "trials", "trial_seeds", "seeds", "epochs", "batch_size", "order")
    return {
        "problem": plan.source,
        "rules": [source_of(rule) for rule in plan.rules],
        **{name: marks[name] for name in names},
        "target": plan.target,
    } | ({} if plan.hidden is None else {"hidden": list(plan.hidden)})


def source_of(rule: Rule) -> str:
    """What the rule is called on the command line."""
    if rule.by == "fnn":
        return rule.name
    return f"{rule.by}:{rule.name}"


def command_of(plan: Plan) -> str:
    """The command that makes the comparison again."""
    said = settings_of(plan)
    words = ["fnn", "compare", "--problem", said["problem"], "--rules", *said["rules"]]
    words += ["--tune", *said["tune"], "--how", said["how"], "--trials", said["trials"]]
    for name in ("trial_seeds", "seeds", "epochs", "batch_size", "order"):
        words += [f"--{name.replace('_', '-')}", said[name]]
    if plan.asked_target is not None:
        words += ["--target", f"{plan.asked_target:g}"]
    if plan.hidden is not None:
        words += ["--hidden", *plan.hidden]
    return shlex.join(map(str, words))


def _worst(plan: Plan, results: Sequence[Result]) -> float | None:
    """The worst finite score of a trial of any rule: what a diverged trial counts as."""
    means = np.concatenate([_of_trials(plan, result) for result in results] or [np.zeros(0)])
    finite = means[np.isfinite(means)]
    if not finite.size:
        return None
    return float(finite.min() if plan.problem.better == "higher" else finite.max())


def _of_trials(plan: Plan, result: Result) -> np.ndarray:
    """The validation score of each trial, the mean over its seeds."""
    return result.search["valid"].reshape(plan.trials, plan.trial_seeds).mean(1)


def _rule(plan: Plan, result: Result, worst: float | None) -> dict[str, Any]:
    rule, best, twin = result.rule, result.best, result.twin
    trials, better = _of_trials(plan, result), plan.problem.better
    finite = np.isfinite(trials)
    worst = worst if finite.any() else None  # a rule that always diverges has no best
    edges = edge(plan.axes[rule.name], plan.points[rule.name][best], plan.how)
    return {
        "name": rule.name,
        "formula": rule.formula,
        "by": rule.by,
        "twin": None if twin is None else rule.twin_name,
        "trials": _trials(plan, result),
        "best": best,
        "edges": edges if finite[best] else [],
        "final": _final(plan, result),
        "twin_final": None if twin is None else _twin(twin, result.updates, rule.same_below),
        "one_bit": {"test": _means(result.one_bit)},
        "expected_best": statistics.expected_best_after(trials, better, worst),
        "steps_to_target": _steps(plan, result.final),
        "cost": _cost(result),
    }


def _trials(plan: Plan, result: Result) -> list[dict[str, Any]]:
    shape = plan.trials, plan.trial_seeds
    names = "valid", "valid_loss", "skipped"
    search = {name: result.search[name].reshape(shape) for name in names}
    digests = np.reshape(_digests(result.search["digest"]), shape)
    return [
        {"point": point}
        | {name: values[i] for name, values in search.items()}
        | {"digest": digests[i].tolist()}
        for i, point in enumerate(plan.points[result.rule.name])
    ]


def _final(plan: Plan, result: Result) -> dict[str, Any]:
    point, final = plan.points[result.rule.name][result.best], result.final
    names = "valid", "test_loss", "loss_by_epoch", "valid_by_epoch", "skipped"
    return (
        {"point": point, "seeds": list(range(plan.seeds))}
        | _scores(final)
        | {name: final[name] for name in names}
        | {"digest": _digests(final["digest"])}
    )


def _steps(plan: Plan, final: Mapping[str, Any]) -> np.ndarray | None:
    """Of each seed, the steps to the target."""
    if plan.target is None:
        return None
    a_point = plan.steps // plan.epochs
    curves = final["valid_by_epoch"]
    return statistics.steps_to_target(curves, plan.target, plan.problem.better, a_point)


def _cost(result: Result) -> dict[str, float]:
    pieces = result.search, result.final
    return {
        "run_seconds": sum(piece["run_seconds"].sum() for piece in pieces),
        "compile_seconds": max(piece["compile_seconds"].max() for piece in pieces),
    } | (result.cost or {})


def _scores(piece: Mapping[str, Any]) -> dict[str, Any]:
    return {"test": _means(piece)} | two_level_interval(piece["test_rows"])._asdict()


def _twin(twin: Mapping[str, Any], updates: float | None, same: float) -> dict[str, Any]:
    apart = float(twin["apart"].max())
    cause = None if updates is None else "rounding" if updates <= same else "rules"
    return _scores(twin) | {
        "apart": apart,
        "update_difference": updates,
        "apart_by": "nothing" if apart == 0 else cause,
    }


def _means(piece: Mapping[str, Any]) -> np.ndarray:
    """The test score of each member."""
    return piece["test_rows"].mean(1, dtype=np.float64)


def _digests(digests: np.ndarray) -> list[str]:
    return [bytes(digest).hex()[:16] for digest in digests]


def _noise_floor(results: Sequence[Result]) -> dict[str, float]:
    twins = [(_means(r.final), _means(r.twin)) for r in results if r.twin is not None]
    one_bit = [(_means(r.final), _means(r.one_bit)) for r in results]
    return {
        "twins": statistics.noise_floor(twins),
        "one_bit": statistics.noise_floor(one_bit),
    }


# --- as JSON ------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Dicts, lists, text, and Python's numbers; None for inf and NaN, which JSON does not have.

    Single precision keeps the digits that tell it apart.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        short = value.dtype == np.float32
        numbers = plain([float(str(x)) for x in value.ravel()] if short else value.ravel().tolist())
        return np.array(numbers, object).reshape(value.shape).tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def as_json(document: Document) -> bytes:
    """The file comparison.json."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()


def read_document(path: Path) -> Document:
    """The document in a file; ValueError, one sentence, if it is none of this version."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{WHO}: {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{WHO}: {path} is no comparison: {error}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{WHO}: {path} is no comparison, expected a file of fnn compare")
    if document.get("version") != VERSION:
        raise ValueError(
            f"{WHO}: {path} has version {document.get('version')}, expected {VERSION}; it was"
            f" written by fnn {document.get('versions', {}).get('fnn')}"
        )
    if missing := [name for name in FIELDS if name not in document]:
        raise ValueError(f"{WHO}: {path} is no whole comparison: {', '.join(missing)} is missing")
    return document
