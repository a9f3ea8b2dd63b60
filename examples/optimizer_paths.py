"""Six rules on four surfaces: the path of each, and the path of its Optax twin.

python examples/optimizer_paths.py [--quick]      writes out/optimizer_paths.png

The twins differ by rounding alone. After more steps, rmsprop bounces chaotically between the sides
of Beale's narrow valley, and rounding becomes visible. Here it stops before.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import fnn

# These are not the best rates. They show the character of each rule.
RULES = {  # rates on the four SURFACES
    "sgd": (0.006, 0.0012, 0.03, 0.18),
    "momentum": (0.001, 0.0003, 0.01, 0.02),
    "nesterov": (0.001, 0.0003, 0.01, 0.02),
    "adagrad": (0.4, 0.6, 0.2, 0.8),
    "rmsprop": (0.012, 0.015, 0.02, 0.06),
    "adam": (0.1, 0.2, 0.03, 0.3),
}

MARK: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "linestyle": ""}
START = MARK | {"label": "start", "marker": "s", "markersize": 8}
GOAL = MARK | {"label": "minimum or saddle point", "marker": "*", "markersize": 15}
END = MARK | {"label": "end", "marker": "o", "markersize": 9, "markeredgecolor": "white"}
TWIN = {"label": "the same by Optax", "color": "black", "lw": 0.9, "ls": (0, (1, 1.6))}


class Surface(NamedTuple):
    """A function of x and y, the ranges to draw, and the points to mark."""

    height: Callable[[Any, Any], Any]
    x: tuple[float, float]
    y: tuple[float, float]
    start: tuple[float, float]
    goal: tuple[float, float]
    steps: int


def beale(x, y):
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def rosenbrock(x, y):
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def saddle(x, y):
    return x**2 - jnp.minimum(y**2, 4)  # flat outside the picture, so that paths stay finite


def valley(x, y):
    return (x**2 / 10 + 10 * y**2) / 2  # curved 100 times as much across as along


SURFACES = {
    "Beale": Surface(beale, (0, 3.6), (-1.2, 1.8), (1, 1.5), (3, 0.5), 200),
    "Rosenbrock": Surface(rosenbrock, (-1.8, 1.6), (-0.6, 2.6), (-0.5, 2.2), (1, 1), 300),
    "Saddle": Surface(saddle, (-2.1, 1.1), (-1.0, 1.8), (-1.8, 0.01), (0, 0), 80),
    "Long valley": Surface(valley, (-10, 2.5), (-1.7, 1.9), (-9, 1.5), (0, 0), 100),
}


def path(surface: Surface, optimizer: Any, steps: int) -> jax.Array:
    """-> [steps + 1, 2]: the points that a rule visits, the start included, by one scan."""

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda params: surface.height(*params["xy"]))(params)
        updates, state = optimizer.update(grads, state, params)
        return (fnn.apply_updates(params, updates), state), params["xy"]

    params = {"xy": jnp.array(surface.start, float)}
    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps + 1)[1]


def key() -> list[Line2D]:
    """One legend for all panels."""
    looks = [
        {"label": rule, "color": c, "linewidth": 3}
        for rule, c in zip(RULES, fnn.plots.COLOURS, strict=False)
    ]
    looks += [START, GOAL, END | {"color": "0.5"}, TWIN]
    return [Line2D([], [], **look) for look in looks]


def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Run each rule and its twin on each surface, and draw their paths on top of each other."""
    run = jax.jit(path, static_argnums=(0, 1, 2))
    figure = Figure(figsize=(32 / 3, 9.8), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    panels = figure.subplots(2, 2).flat
    print(f"{'surface':12}  {'rule':8}  height at the end  furthest from its twin")
    for i, (axes, (name, surface)) in enumerate(zip(panels, SURFACES.items(), strict=True)):
        steps = surface.steps // 10 if quick else surface.steps
        ours, theirs = {}, {}
        for rule, rates in RULES.items():
            ours[rule] = run(surface, getattr(fnn, rule)(rates[i]), steps)
            theirs[rule] = run(surface, getattr(fnn.optax_wrappers, rule)(rates[i]), steps)
            apart = jnp.linalg.norm(ours[rule] - theirs[rule], axis=-1).max()
            print(f"{name:12}  {rule:8}  {surface.height(*ours[rule][-1]):17.1e}  {apart:22.1e}")
        fnn.plots.loss_surface(surface.height, surface.x, surface.y, axes, paths=ours)
        for twin in theirs.values():
            axes.plot(*twin.T, **TWIN)
        axes.plot(*surface.start, zorder=5, **START)
        axes.plot(*surface.goal, zorder=5, **GOAL)
        axes.set(title=f"{name}, {steps} steps", xticks=[], yticks=[])
        axes.get_legend().remove()
    figure.legend(handles=key(), loc="outside lower center", ncols=5, frameon=False)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "optimizer_paths.png")
    print(f"drawn in {out / 'optimizer_paths.png'}")


if __name__ == "__main__":
    tyro.cli(main)
