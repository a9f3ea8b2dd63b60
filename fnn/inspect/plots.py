"""Pictures of runs and nets, by matplotlib, which is loaded when a picture is drawn.

Each function draws on `ax`, or on a new figure if `ax` is None, and returns the Axes, which you may
change. pyplot is not used: no window opens, and there is no global state.

    figure, (left, right) = plots.subplots(1, 2)
    plots.learning_curves({"training": history["loss"]}, left)
    plots.confusion_matrix(counts, right)
    plots.save(figure, "out/run.png")
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class _FoundRate(Protocol):
    """The fields of what `fnn.search.lr_find` returns that are drawn."""

    @property
    def rates(self) -> ArrayLike: ...
    @property
    def losses(self) -> ArrayLike: ...
    @property
    def median(self) -> ArrayLike: ...
    @property
    def diverged(self) -> ArrayLike: ...
    @property
    def suggestion(self) -> float | None: ...


# The colours of Okabe & Ito, which colour-blind readers can tell apart; without yellow, with black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")  # a shape for each class, for print without colour


def subplots(
    rows: int = 1, columns: int = 1, *, width: float = 4.4, height: float = 3.6
) -> "tuple[Figure, list[Axes]]":
    """A Figure and its rows * columns Axes, row by row; `width`, `height` of one Axes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained", dpi=100)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in panels:
        ax.set_prop_cycle(color=COLOURS)  # for lines that the user draws
    return figure, panels


def save(drawn: "Figure | Axes", path: str | os.PathLike[str]) -> None:
    """Write the Figure, or the Figure of the Axes, to a file, in the format of its suffix."""
    from matplotlib.figure import Figure

    figure = drawn if isinstance(drawn, Figure) else cast(Figure, drawn.get_figure(root=True))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def learning_curves(
    curves: Mapping[str, ArrayLike], ax: "Axes | None" = None, *, ylabel: str = "loss (nats)"
) -> "Axes":
    """{name: [epochs] or [epochs, steps]} -> Axes: a line each against the epoch, from 1.

    If there are steps, as in the history of `fit`, the mean of each epoch is drawn.
    """
    ax = _axes(ax)
    for name, curve in _named("learning_curves: curves", curves).items():
        y = _checked(f"learning_curves: {name!r}", curve, (1, 2), "[epochs] or [epochs, steps]")
        y = y.mean(1) if y.ndim == 2 else y
        ax.plot(np.arange(1, len(y) + 1), y, color=_next_colour(ax), label=name)
    ax.set(xlabel="epoch", ylabel=ylabel)
    return _finished(ax)


def lr_find(found: _FoundRate, ax: "Axes | None" = None, *, ylabel: str = "loss (nats)") -> "Axes":
    """What `fnn.search.lr_find` found -> Axes: the loss at each rate, and the rate suggested.

    A thin line for each seed, a thick line for the median, and a dashed line at the suggestion. The
    rates at which a seed diverged are shaded. Losses far above those at the lowest rate are cut
    off. The scales are logarithmic; that of the losses is linear if a loss is 0 or less.
    """
    ax = _axes(ax)
    rates = _checked("lr_find: rates", found.rates, (1,), "[rates]")
    losses = _checked("lr_find: losses", found.losses, (2,), "[seeds, rates]", last=len(rates))
    losses = np.where(np.isfinite(losses), losses, np.nan)
    colour = _next_colour(ax)
    for each in losses:
        ax.plot(rates, each, color=colour, linewidth=0.8, alpha=0.4)
    median = np.where(np.isfinite(found.median), found.median, np.nan)
    label = f"median of {len(losses)} seeds" if len(losses) > 1 else "loss"
    ax.plot(rates, median, color=colour, linewidth=2, label=label)
    step = np.sqrt(rates[1:] / rates[:-1])
    left, right = rates / np.append(step[:1], step), rates * np.append(step, step[-1:])
    for i in np.flatnonzero(np.asarray(found.diverged).any(0)):
        ax.axvspan(left[i], right[i], color="0.93", linewidth=0, zorder=0)
    if found.suggestion is not None:
        label = f"suggestion: {found.suggestion:.3g}"
        ax.axvline(found.suggestion, color=_of(COLOURS, 1), linestyle="--", label=label)
    _cut(ax, losses)
    ax.set(xlabel="learning rate", ylabel=ylabel, xscale="log", xlim=(left[0], right[-1]))
    return _finished(ax)


def _cut(ax: "Axes", losses: np.ndarray) -> None:
    """The limits of the losses [seeds, rates], NaN where there is none."""
    drawn = losses[np.isfinite(losses)]
    if not drawn.size:
        return
    start = losses[:, 0][np.isfinite(losses[:, 0])]
    low, high = drawn.min(), start.max() if start.size else drawn.max()
    if low > 0:
        ax.set_yscale("log")
        gain = max(high / low, 1.05)
        ax.set_ylim(low / gain**0.1, high * gain**0.3)
    elif high > low:
        ax.set_ylim(low - 0.1 * (high - low), high + 0.3 * (high - low))


def decision_boundary(
    predict: Callable[[Array], ArrayLike],
    x: ArrayLike,
    labels: ArrayLike,
    ax: "Axes | None" = None,
    *,
    resolution: int = 200,
) -> "Axes":
    """Rows x [n, 2], labels int [n] -> Axes: the rows, and the predicted class around them.

    predict(points [m, 2]) -> logits [m, classes], or [m] for class 1 against class 0. The colour is
    that of the most likely class; it is stronger where the class is more likely. On a black line
    two classes are equally likely.
    """
    ax = _axes(ax)
    rows = _checked("decision_boundary: x", x, (2,), "[rows, 2]", last=2)
    classes = _checked("decision_boundary: labels", labels, (1,), "[rows]", first=len(rows))
    low, high = _wider(rows.min(0), rows.max(0))
    across, up = (np.linspace(a, b, resolution) for a, b in zip(low, high, strict=True))
    points = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
    logits = predict(jnp.asarray(points, jnp.asarray(x).dtype))
    p = _probabilities(np.asarray(logits), len(points))
    p = p.reshape(resolution, resolution, -1)
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    ax.imshow(_shades(p), origin="lower", extent=extent, aspect="auto", interpolation="bilinear")
    for c in range(p.shape[-1] if p.shape[-1] > 2 else 1):  # two classes share one line
        lead = p[..., c] - np.delete(p, c, -1).max(-1)
        if lead.min() < 0 < lead.max():
            ax.contour(across, up, lead, levels=[0], colors="black", linewidths=1.2)
    for i, c in enumerate(np.unique(classes).astype(int)):
        own, look = rows[classes == c], {"color": _of(COLOURS, c), "marker": _of(MARKERS, i)}
        ax.scatter(*own.T, s=18, edgecolors="white", linewidths=0.5, label=f"class {c}", **look)
    ax.set(xlabel="$x_1$", ylabel="$x_2$", xlim=extent[:2], ylim=extent[2:])
    return ax


def activation(
    fn: Callable[[Array], Array],
    ax: "Axes | None" = None,
    *,
    name: str = "",
    limits: tuple[float, float] = (-4, 4),
) -> "Axes":
    """fn, [...] -> [...] element by element -> Axes: its values, and its derivative dashed."""
    ax = _axes(ax)
    x = jnp.linspace(*limits, 401)
    y, slope = jax.jvp(fn, (x,), (jnp.ones_like(x),))
    if y.shape != x.shape:
        raise ValueError(f"activation: fn makes {y.shape} of {x.shape}, expected the same shape")
    for values, style, label in ((y, "-", "value"), (slope, "--", "derivative")):
        ax.plot(x, values, style, color=_next_colour(ax), label=label)
    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.set(title=name, xlabel="x", ylabel="f(x), f '(x)")
    return _finished(ax)


def gradient_flow(
    norms: Mapping[str, ArrayLike], ax: "Axes | None" = None, *, label: str | None = None
) -> "Axes":
    """{layer: norm [...]} as of `diagnostics.gradient_norms` -> Axes: norms against layers, log.

    If a layer has several norms, as in a history, their median and their range are drawn. To
    compare, call it again with the same `ax`. `label` is for the legend.
    """
    ax = _axes(ax)
    values = [
        _checked(f"gradient_flow: {name!r}", norm, None, "[...]").ravel()
        for name, norm in _named("gradient_flow: norms", norms).items()
    ]
    colour, places = _next_colour(ax), np.arange(len(values))
    ax.plot(places, [np.median(v) for v in values], "o-", color=colour, label=label)
    low, high = [v.min() for v in values], [v.max() for v in values]
    ax.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.set(xlabel="layer, from the input on", ylabel="gradient norm", yscale="log")
    ax.set_xticks(places, list(norms), rotation=45 if len(norms) > 4 else 0)
    return _finished(ax)


def filters(w: ArrayLike, ax: "Axes | None" = None, *, columns: int = 8) -> "Axes":
    """A convolution's w [height, width, 1 or 3, out] -> Axes: its kernels side by side.

    With 1 channel, blue is negative and red is positive. With 3 channels they are red, green and
    blue, and 0 is grey.
    """
    ax = _axes(ax)
    kernels = np.moveaxis(_checked("filters: w", w, (4,), "[height, width, 1 or 3, out]"), -1, 0)
    height, width, channels = kernels.shape[1:]
    if channels not in (1, 3):
        raise ValueError(f"filters: w has {channels} input channels (axis 2), expected 1 or 3")
    limit = float(np.abs(kernels).max()) or 1.0
    n, columns = len(kernels), min(columns, len(kernels))
    edges: Any = [(0, -n % columns), (1, 1), (1, 1), (0, 0)]
    kernels = np.pad(kernels, edges)
    grid = kernels.reshape(-1, columns, height + 2, width + 2, channels).swapaxes(1, 2)
    picture = grid.reshape(-1, columns * (width + 2), channels)
    if channels == 3:
        ax.imshow(picture / (2 * limit) + 0.5)
    else:
        drawn = ax.imshow(picture[..., 0], cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.figure.colorbar(drawn, ax=ax, label="weight")
    ax.set(xticks=[], yticks=[], xlabel=f"{n} kernels of {height} x {width}")
    return ax


def confusion_matrix(
    counts: ArrayLike, ax: "Axes | None" = None, *, names: Sequence[str] | None = None
) -> "Axes":
    """Counts [label, answer], sums of `metrics.confusion` -> Axes: shaded by share of the row."""
    ax = _axes(ax)
    cells = _checked("confusion_matrix: counts", counts, (2,), "[classes, classes]")
    names = [str(i) for i in range(len(cells))] if names is None else names
    if cells.shape != (len(names),) * 2:
        raise ValueError(
            f"confusion_matrix: counts have shape {cells.shape}, expected [classes, classes]"
            f" for {len(names)} names"
        )
    share = 100 * cells / np.maximum(cells.sum(1, keepdims=True), 1)
    drawn = ax.imshow(share, cmap="Blues", vmin=0, vmax=100)
    ax.figure.colorbar(drawn, ax=ax, label="share of the label's rows (%)")
    for (i, j), count in np.ndenumerate(cells):
        colour = "white" if share[i, j] > 50 else "black"
        ax.text(j, i, f"{count:.0f}", ha="center", va="center", color=colour, fontsize="small")
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="answer", ylabel="label")
    return ax


def loss_surface(
    loss: Callable[[Any, Any], ArrayLike],
    xlim: tuple[float, float],
    ylim: tuple[float, float],
    ax: "Axes | None" = None,
    *,
    paths: Mapping[str, ArrayLike] | None = None,
) -> "Axes":
    """loss(x, y) -> Axes: its contour lines, and `paths` {name: points [steps, 2]} over them.

    The levels are quantiles of the loss, closer together where the loss is low, which is lighter.
    Where the loss is not finite the plane is white. A dot is the end of a path. Later paths are
    thinner, so that earlier paths stay visible.
    """
    ax = _axes(ax)
    x, y = np.meshgrid(np.linspace(*xlim, 300), np.linspace(*ylim, 300))
    height = np.asarray(loss(x, y))
    if height.shape != x.shape:
        raise ValueError(
            f"loss_surface: loss makes {height.shape} of {x.shape}, expected the same shape"
        )
    finite = height[np.isfinite(height)]
    levels = np.unique(np.quantile(finite, np.linspace(0, 1, 14) ** 2)) if finite.size else []
    shades = np.linspace(1, 0.87, max(len(levels) - 1, 1)).astype(str)
    if len(levels) > 1:
        ax.contourf(x, y, height, levels, colors=shades)
        ax.contour(x, y, height, levels, colors="0.75", linewidths=0.5, linestyles="solid")
    for i, (name, path) in enumerate((paths or {}).items()):
        points = _checked(f"loss_surface: path {name!r}", path, (2,), "[steps, 2]", last=2)
        colour, width = _next_colour(ax), max(1.2, 4.4 - 0.4 * i)
        ax.plot(*points.T, color=colour, linewidth=width, label=name, solid_joinstyle="round")
        ax.scatter(*points[-1], s=80, color=colour, edgecolors="white", zorder=4)
    ax.set(xlim=xlim, ylim=ylim, xlabel="$w_1$", ylabel="$w_2$")
    return _finished(ax, grid=False)


def _axes(ax: "Axes | None") -> "Axes":
    return subplots()[1][0] if ax is None else ax


def _finished(ax: "Axes", *, grid: bool = True) -> "Axes":
    if grid:
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend(frameon=False)
    return ax


def _of(cycle: Sequence[str], i: int) -> str:
    return cycle[i % len(cycle)]


def _next_colour(ax: "Axes") -> str:
    """The next colour of the cycle; lines that the user drew count too."""
    return _of(COLOURS, len(ax.lines))


def _probabilities(logits: np.ndarray, points: int) -> np.ndarray:
    """[points] or [points, classes] -> [points, classes]."""
    if logits.shape == (points,):
        logits = np.stack([np.zeros_like(logits), logits], -1)
    if logits.ndim != 2 or len(logits) != points or logits.shape[1] < 2:
        raise ValueError(
            f"decision_boundary: predict made {logits.shape} of {points} points,"
            f" expected ({points}, classes) or ({points},)"
        )
    p = np.exp(np.float64(logits) - np.float64(logits).max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def _shades(p: np.ndarray) -> np.ndarray:
    """[..., classes] -> [..., 3]: white if all are equally likely, coloured if one is certain."""
    from matplotlib.colors import to_rgb

    classes = p.shape[-1]
    colours = np.array([to_rgb(_of(COLOURS, c)) for c in range(classes)])
    certain = (p.max(-1, keepdims=True) * classes - 1) / (classes - 1)
    bands = np.round(8 * certain) / 8  # steps can be counted, and the file is smaller
    return 1 + 0.45 * bands * (colours[p.argmax(-1)] - 1)


def _wider(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    margin = np.where(high > low, 0.1 * (high - low), 1.0)
    return low - margin, high + margin


def _named(what: str, values: Mapping[str, ArrayLike]) -> Mapping[str, ArrayLike]:
    if not isinstance(values, Mapping):
        raise TypeError(f"{what} are {type(values).__name__}, expected a dict {{name: array}}")
    if not values:
        raise ValueError(f"{what} are empty, expected at least one")
    return values


def _checked(
    what: str,
    values: ArrayLike,
    ndims: Sequence[int] | None,
    expected: str,
    *,
    first: int | None = None,
    last: int | None = None,
) -> np.ndarray:
    """`values` as float64; ValueError if they are empty or have another shape."""
    array = np.asarray(values, np.float64)
    fits = ndims is None or array.ndim in ndims
    fits = fits and first in (None, *array.shape[:1]) and last in (None, *array.shape[-1:])
    if not fits or not array.size:
        rows = f", rows {first}" if first else ""
        raise ValueError(f"{what} has shape {array.shape}, expected {expected}{rows}, not empty")
    return array
