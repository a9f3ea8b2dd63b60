"""The picture of a comparison."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fnn.compare import Comparison, Race, Side
from fnn.plots import COLOURS
from fnn.report import ranked

TICKS = (10, 20, 50, 80, 90, 95, 98, 99)  # per cent; the interesting ones are close to 100


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Test accuracy against learning rate, and loss against step at the best rate, as PNG."""
    settings = comparison.settings
    figure = Figure(figsize=(11, 4.8), layout="constrained", dpi=150)
    by_rate, by_step = figure.subplots(1, 2)
    colours = {race.name: COLOURS[i % len(COLOURS)] for i, race in enumerate(comparison.races)}
    for race in ranked(comparison):
        for side, style in ((race.fnn, "-"), (race.optax, "--")):
            look = {"color": colours[race.name], "linestyle": style, "linewidth": 1.6}
            _accuracy(by_rate, settings.rates, side, look)
            _loss(by_step, race, side, look, settings.epochs)
        by_rate.plot([], [], color=colours[race.name], label=race.name)
    by_rate.set(xscale="log", xlabel="learning rate", ylabel="test accuracy (%)")
    by_rate.set_yscale("logit")
    by_rate.set_yticks(np.array(TICKS) / 100, [str(tick) for tick in TICKS])
    by_rate.minorticks_off()
    by_rate.set_ylim(0.06, 0.995)
    by_rate.set_title(f"Accuracy by learning rate\n(mean and range of {settings.seeds} seeds)")
    by_step.set(yscale="log", xlabel="step", ylabel="training loss (nats)")
    by_step.set_title("Loss at each one's best rate\n(median of seeds, smoothed over an epoch)")
    for axes in (by_rate, by_step):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    by_rate.plot([], [], color="0.4", linestyle="-", label="by hand")
    by_rate.plot([], [], color="0.4", linestyle="--", label="by Optax")
    figure.legend(*by_rate.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path)


def _accuracy(axes: Any, rates: Any, side: Side, look: dict[str, Any]) -> None:
    """The mean over seeds with their range behind it, on a logit axis, which has no 0 and 1."""
    y = np.clip(side.test_accuracy, 0.005, 0.999)
    marker = "o" if len(rates) == 1 else ""
    axes.plot(rates, y.mean(0), marker=marker, **look)
    axes.fill_between(rates, y.min(0), y.max(0), color=look["color"], alpha=0.08, linewidth=0)


def _loss(axes: Any, race: Race, side: Side, look: dict[str, Any], epochs: int) -> None:
    loss = np.median(side.loss[:, race.best], axis=0)
    window = len(loss) // epochs
    smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
    axes.plot(np.arange(window, len(loss) + 1), smooth, **look)
