"""A made-up document of a comparison (schema `fnn.compare`, version 2), for what renders one."""

import json

import numpy as np

RULES = {  # name: (best rate, best accuracy, formula)
    "sgd": (0.3, 0.965, "params - learning_rate * g"),
    "momentum": (0.1, 0.982, "m = momentum * m + g\nparams - learning_rate * m"),
    "rmsprop": (0.003, 0.981, "v = decay * v + (1 - decay) * g**2\nparams - rate * g / sqrt(v)"),
    "adam": (0.01, 0.986, "m = b1 * m + (1 - b1) * g\nv = b2 * v + (1 - b2) * g**2"),
    "adamw": (0.01, 0.985, "as adam, and - learning_rate * weight_decay * params"),
    "muon": (0.03, 0.988, "m = momentum * m + g\nparams - learning_rate * newton_schulz(m)"),
    "schedule_free_adamw": (0.01, 0.984, "y = (1 - b1) * z + b1 * x\ngradients at y"),
    "my_rule": (0.003, 0.975, "params - learning_rate * sign(g)"),
}
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def comparison(
    rules=tuple(RULES), rates=RATES, seeds=10, epochs=30, trial_seeds=3, second=None, target=0.95
):
    """A document as `json.loads` gives it.

    second: {name: values} is a second tuned hyperparameter, with a grid of both.
    """
    rng = np.random.default_rng(0)
    axes = {"learning_rate": rates} | (second or {})
    points = [{}]
    for name, values in axes.items():
        points = [p | {name: v} for p in points for v in values]
    made = [_rule(name, points, rng, seeds, epochs, trial_seeds, target) for name in rules]
    best = max(made, key=lambda rule: rule["final"]["mean"])
    document = {
        "schema": "fnn.compare",
        "version": 2,
        "command": f"fnn compare --problem digits --rules {' '.join(rules)} --seeds {seeds}",
        "versions": {"fnn": "0.9.0", "jax": "0.10.2", "jaxlib": "0.10.2", "optax": "0.2.6"}
        | {"numpy": "2.3.0", "python": "3.11.7"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 2},
        "settings": {
            "problem": "digits",
            "rules": list(rules),
            "tune": [f"{k}={','.join(f'{v:g}' for v in values)}" for k, values in axes.items()],
            "how": "grid",
            "trials": len(points),
            "trial_seeds": trial_seeds,
            "seeds": seeds,
            "epochs": epochs,
            "batch_size": 64,
            "order": "new",
            "target": target,
        },
        "problem": {
            "name": "digits",
            "about": "1,797 handwritten digits of 8 x 8 pixels; a perceptron of 2 x 128 units.",
            "score": "accuracy",
            "better": "higher",
            "unit": "%",
            "fingerprint": "sha256:" + 64 * "0",
            "rows": [1077, 360, 360],
            "optimum": None,
            "steps": 17 * epochs,
        },
        "rule_for_better": "A rule is better than another if its mean test score is better and"
        " the p value of the difference, corrected by Holm over all pairs, is at most 0.05.",
        "rules": made,
        "comparisons": [_comparison(best, rule) for rule in made if rule is not best],
        "noise_floor": {"twins": 0.0041, "one_bit": 0.0057},
        "inclusion": [
            {"rule": "momentum", "contains": "sgd", "holds": True, "difference": 0.017},
            {"rule": "adamw", "contains": "adam", "holds": False, "difference": -0.001},
        ],
        "findings": [],
        "interrupted": False,
    }
    return json.loads(json.dumps(document, allow_nan=False))


def _rule(name, points, rng, seeds, epochs, trial_seeds, target):
    rate, accuracy, formula = RULES.get(name, (0.01, 0.97, "params - learning_rate * g"))

    def score(point, n):
        lost = abs(np.log10(point["learning_rate"] / rate)) ** 2.2
        lost += 0.15 * abs(np.log10(1 - point.get("b2", 0.999)) + 3)
        error = 1 - (accuracy - 0.02)
        return np.clip(1 - error * np.exp(1.3 * lost + rng.normal(0, 0.2, n)), 0.05, 1)

    trials = []
    for point in points:
        valid = score(point, trial_seeds)
        diverged = name == "sgd" and point["learning_rate"] >= 1
        trials.append({
            "point": point,
            "valid": [None] * trial_seeds if diverged else valid.round(4).tolist(),
            "valid_loss": [None] * trial_seeds if diverged else (4 * (1 - valid)).tolist(),
            "skipped": [12 if diverged else 0] * trial_seeds,
        })  # fmt: skip
    means = [np.mean([v or 0 for v in trial["valid"]]) for trial in trials]
    best = int(np.argmax(means))
    test = np.clip(accuracy + rng.normal(0, 0.004, seeds), 0, 1).round(4)
    epoch = np.arange(1, epochs + 1)
    loss = 2.3 * np.exp(-epoch / (3 + 40 * (1 - accuracy))) + 30 * (1 - accuracy) ** 2
    loss = loss * np.exp(rng.normal(0, 0.08, (seeds, epochs)))
    by_epoch = np.clip(accuracy - 0.01 - 0.85 * np.exp(-epoch / 3.3), 0, 1)
    by_epoch = np.clip(by_epoch + rng.normal(0, 0.003, (seeds, epochs)), 0, 1)
    reached = [np.flatnonzero(curve >= target) for curve in by_epoch]
    steps = [17 * int(at[0] + 1) if len(at) else None for at in reached]
    edge = points[best]["learning_rate"] in (min(RATES), max(RATES))
    own = name in ("my_rule",) or name not in RULES
    ordered = np.sort(means)
    return {
        "name": name,
        "formula": formula,
        "by": "my_rule.py" if own else "fnn",
        "twin": None if own else f"optax.{name}",
        "trials": trials,
        "best": best,
        "edges": ["learning_rate"] if edge or name == "sgd" else [],
        "final": {
            "point": points[best],
            "seeds": list(range(seeds)),
            "test": test.tolist(),
            "valid": (test - 0.01).tolist(),
            "test_loss": (4 * (1 - test)).tolist(),
            "mean": float(test.mean()),
            "low": float(test.mean() - 0.009),
            "high": float(test.mean() + 0.008),
            "loss_by_epoch": loss.tolist(),
            "valid_by_epoch": by_epoch.tolist(),
            "skipped": [0] * seeds,
        },
        "twin_final": None
        if own
        else {
            "test": (test + rng.normal(0, 0.001, seeds)).tolist(),
            "mean": float(test.mean() + 0.0003),
            "low": float(test.mean() - 0.0085),
            "high": float(test.mean() + 0.0083),
            "apart": 0.0 if name == "sgd" else 0.031,
            "update_difference": 0.0 if name == "sgd" else 0.1 if name == "muon" else 3e-15,
            "apart_by": {"sgd": "nothing", "muon": "rules"}.get(name, "rounding"),
        },
        "one_bit": {"test": (test + rng.normal(0, 0.002, seeds)).tolist()},
        "expected_best": [_expected_best(ordered, k) for k in range(1, len(points) + 1)],
        "steps_to_target": steps,
        "cost": {
            "compile_seconds": 1.4,
            "run_seconds": 2.7,
            "update_microseconds": 31.5,
            "bytes": 104_448,
            "flops": 210_000,
            "kernels": 6,
        },
    }


def _expected_best(ordered, k):
    """The mean of the largest of k trials drawn without replacement."""
    from math import comb

    n = len(ordered)
    return sum(comb(i, k - 1) * value for i, value in enumerate(ordered)) / comb(n, k)


def _comparison(best, other):
    difference = best["final"]["mean"] - other["final"]["mean"]
    apart = difference > 0.004
    return {
        "a": best["name"],
        "b": other["name"],
        "difference": difference,
        "low": difference - 0.004,
        "high": difference + 0.004,
        "p": 0.0004 if apart else 0.21,
        "p_corrected": 0.0028 if apart else 0.42,
        "verdict": "better" if apart else "not separable",
    }
