"""A comparison as a table to read and as JSON to keep."""

import dataclasses
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

import fnn
from fnn.compare import Comparison, Race, Side


def mean_and_interval(values: np.ndarray) -> tuple[float, float]:
    """The mean and half the width of its 95 % interval (Student's t); NaN of one value alone."""
    from scipy import stats  # slow to import

    n = len(values)
    if n < 2:
        return float(np.mean(values)), float("nan")
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return float(np.mean(values)), float(half)


def table(comparison: Comparison) -> Table:
    """One row an optimizer, the better ones first.

    Accuracy on the test rows at the best rate, mean and 95 % interval over seeds; the largest
    difference between the twins' final parameters; seconds to compile + to train.
    """
    out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    out.add_column("\noptimizer", no_wrap=True)
    out.add_column("best\nrate", justify="right", no_wrap=True)
    out.add_column("accuracy, %\nby hand", justify="right", no_wrap=True)
    out.add_column("\nby Optax", justify="right", no_wrap=True)
    out.add_column("\napart", justify="right", no_wrap=True)
    out.add_column("\ndue to", no_wrap=True)
    out.add_column("seconds\nby hand", justify="right", no_wrap=True)
    out.add_column("\nby Optax", justify="right", no_wrap=True)
    for race in ranked(comparison):
        rate = f"{comparison.settings.rates[race.best]:g}"
        out.add_row(
            race.name,
            Text(f"*{rate}", style="yellow") if on_edge(comparison, race) else rate,
            _accuracy(race.fnn, race.best),
            _accuracy(race.optax, race.best),
            f"{race.difference[:, race.best].max():.1g}",
            Text(race.apart_by, style="red" if race.apart_by == "more" else "green"),
            _seconds(race.fnn),
            _seconds(race.optax),
        )
    return out


def findings(comparison: Comparison) -> list[str]:
    """What the table says, in sentences."""
    settings, (best, *others) = comparison.settings, ranked(comparison)
    mean, half = mean_and_interval(best.fnn.test_accuracy[:, best.best])
    rate = settings.rates[best.best]
    lines = [f"Best on the test rows: {best.name} at {rate:g}, {_percent(mean, half)} %."]
    if others and settings.seeds > 1:
        level = [r.name for r in others if not _separable(best, r)]
        if level:
            lines.append(f"Not separable from it by {settings.seeds} seeds: {', '.join(level)}.")
    for race in ranked(comparison):
        if on_edge(comparison, race):
            lines.append(
                f"* {race.name} is best at {settings.rates[race.best]:g}, the edge of the grid:"
                " a rate beyond it may be better."
            )
    for cause, meaning in _CAUSES.items():
        names = [race.name for race in comparison.races if race.apart_by == cause]
        if names:
            lines.append(f"{', '.join(names)}: {meaning}.")
    return lines


_CAUSES = {
    "nothing": "the twins end in the same parameters, bit for bit",
    "rounding": "the twins end apart by rounding, as one more bit in the learning rate also would",
    "more": "the twins end further apart than rounding explains",
}


def ranked(comparison: Comparison) -> list[Race]:
    """The races by test accuracy at the best rate, the better ones first."""
    return sorted(comparison.races, key=lambda r: -r.fnn.test_accuracy[:, r.best].mean())


def on_edge(comparison: Comparison, race: Race) -> bool:
    """Whether the best rate is the smallest or largest of the grid."""
    return race.best in (0, len(comparison.settings.rates) - 1)


def write_json(comparison: Comparison, path: Path) -> None:
    """Every number: settings, versions, device, and of each side everything but the parameters.

    Arrays are nested lists, [seeds, rates, ...]; the loss of each step is given at the best rate,
    [seeds, steps], elsewhere the mean of each epoch, [seeds, rates, epochs].
    """
    device = jax.devices()[0]
    document = {
        "settings": dataclasses.asdict(comparison.settings),
        "versions": {"fnn": fnn.__version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "optimizers": {
            race.name: {
                "best_rate": comparison.settings.rates[race.best],
                "best_rate_on_edge": on_edge(comparison, race),
                "largest_difference": _numbers(race.difference),
                "largest_difference_by_rounding": _numbers(race.rounding),
                "apart_by": race.apart_by,
                "fnn": _side(race.fnn, race.best, comparison.settings.epochs),
                "optax": _side(race.optax, race.best, comparison.settings.epochs),
            }
            for race in comparison.races
        },
    }
    path.write_text(json.dumps(document, indent=1))


def _side(side: Side, best: int, epochs: int) -> dict[str, Any]:
    seeds, rates, steps = side.loss.shape
    by_epoch = side.loss.reshape(seeds, rates, epochs, steps // epochs).mean(-1)
    accuracy, half = mean_and_interval(side.test_accuracy[:, best])
    return {
        "test_accuracy_at_best": accuracy,
        "test_accuracy_at_best_95": _numbers(np.asarray(half)),
        "valid_accuracy": _numbers(side.valid_accuracy),
        "valid_loss": _numbers(side.valid_loss),
        "test_accuracy": _numbers(side.test_accuracy),
        "skipped_steps": side.skipped_steps.tolist(),
        "loss_by_epoch": _numbers(by_epoch),
        "loss_by_step_at_best": _numbers(side.loss[:, best]),
        "compile_seconds": side.compile_seconds,
        "run_seconds": side.run_seconds,
    }


def _numbers(array: np.ndarray) -> Any:
    """Nested lists of six digits; None for what is not finite, since JSON has no word for it."""

    def number(value: float) -> float | None:
        return float(f"{value:.6g}") if np.isfinite(value) else None

    def nested(values: Any) -> Any:
        return [nested(v) for v in values] if isinstance(values, list) else number(values)

    return nested(array.tolist())


def _separable(a: Race, b: Race) -> bool:
    """Whether the 95 % interval of the difference, seed by seed, leaves out 0."""
    differences = a.fnn.test_accuracy[:, a.best] - b.fnn.test_accuracy[:, b.best]
    mean, half = mean_and_interval(differences)
    return abs(mean) > half


def _accuracy(side: Side, rate: int) -> str:
    return _percent(*mean_and_interval(side.test_accuracy[:, rate]))


def _percent(mean: float, half: float) -> str:
    return f"{100 * mean:.1f}" if np.isnan(half) else f"{100 * mean:.1f} ± {100 * half:.1f}"


def _seconds(side: Side) -> str:
    return f"{side.compile_seconds:.1f}+{side.run_seconds:.1f}"
