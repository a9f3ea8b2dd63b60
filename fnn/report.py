"""A comparison as a table to read and as JSON to keep."""

import dataclasses
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table
from rich.text import Text

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
    """One row an optimizer, the better ones first."""
    out = Table(title="Optimizers on handwritten digits, by hand and by Optax", title_style="bold")
    out.add_column("optimizer")
    out.add_column("best rate", justify="right")
    out.add_column("test accuracy\nby hand", justify="right")
    out.add_column("test accuracy\nby Optax", justify="right")
    out.add_column("largest\ndifference", justify="right")
    out.add_column("of it\nrounding", justify="right")
    out.add_column("the twins are")
    out.add_column("by hand\ncompile + run", justify="right")
    out.add_column("by Optax\ncompile + run", justify="right")
    for race in ranked(comparison):
        rate = f"{comparison.settings.rates[race.best]:g}"
        out.add_row(
            race.name,
            Text(f"{rate} *", style="yellow") if on_edge(comparison, race) else rate,
            _accuracy(race.fnn, race.best),
            _accuracy(race.optax, race.best),
            f"{race.difference[:, race.best].max():.1g}",
            f"{race.rounding[:, race.best].max():.1g}",
            Text(race.verdict, style="red" if race.verdict == "different" else "green"),
            _seconds(race.fnn),
            _seconds(race.optax),
        )
    return out


def findings(comparison: Comparison) -> list[str]:
    """What the table says, in sentences."""
    settings, (best, *others) = comparison.settings, ranked(comparison)
    mean, half = mean_and_interval(best.fnn.test_accuracy[:, best.best])
    rate = settings.rates[best.best]
    lines = [f"Best on the test rows: {best.name} at {rate:g}, {_percent(mean, half)}."]
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
    for verdict in ("identical", "same to rounding", "different"):
        names = [race.name for race in comparison.races if race.verdict == verdict]
        if names:
            lines.append(f"{_VERDICTS[verdict]}: {', '.join(names)}.")
    return lines


_VERDICTS = {
    "identical": "Twins identical to the last bit of every parameter",
    "same to rounding": (
        "Twins that differ no more than ten times what a change of the rate in its last bit does"
    ),
    "different": "Twins that differ by more than rounding",
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
        "versions": {name: metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
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
                "twins": race.verdict,
                "fnn": _side(race.fnn, race.best, comparison.settings.epochs),
                "optax": _side(race.optax, race.best, comparison.settings.epochs),
            }
            for race in comparison.races
        },
    }
    path.write_text(json.dumps(document, indent=1))


_PACKAGES = ("fnn", "jax", "jaxlib", "optax", "numpy")


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
    """Nested lists of six digits; what is not finite becomes None, since JSON has no word for it."""

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
    return f"{100 * mean:.1f} %" if np.isnan(half) else f"{100 * mean:.1f} ± {100 * half:.1f} %"


def _seconds(side: Side) -> str:
    return f"{side.compile_seconds:.1f} + {side.run_seconds:.1f} s"
