"""Two spirals: what one hidden layer can bend, and what none cannot.

python examples/spirals.py [--quick]      writes out/spirals.png
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from matplotlib.figure import Figure

import fnn

HIDDEN = {"no hidden layer": (), "one layer of 8": (8,), "two layers of 32": (32, 32)}


def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Train three networks on two spirals and draw where each decides for which."""
    data_key, run_key = jax.random.split(jax.random.key(0))
    data = fnn.data.spirals(data_key, 400)

    def loss_fn(params, batch, key):
        x, labels = batch
        return fnn.cross_entropy(fnn.mlp(params, x, activation=fnn.tanh), labels)

    @jax.jit
    def run(params, key):
        optimizer = fnn.adam(0.01)
        step = fnn.make_train_step(loss_fn, optimizer)
        epochs = 20 if quick else 300
        ts = fnn.train_init(params, optimizer)
        return fnn.fit(step, ts, data, key, epochs=epochs, batch_size=50)

    x, labels = data
    axis = jnp.linspace(-3.6, 3.6, 200)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1)
    figure = Figure(figsize=(11, 3.9), layout="constrained", dpi=150)
    for axes, (name, hidden) in zip(figure.subplots(1, 3), HIDDEN.items(), strict=True):
        ts, _ = run(fnn.mlp_init(run_key, (2, *hidden, 2)), run_key)
        right = fnn.accuracy(fnn.mlp(ts.params, x, activation=fnn.tanh), labels).mean()
        print(f"{name:16}  {100 * right:5.1f} % of the training points right")
        probability = fnn.softmax(fnn.mlp(ts.params, grid, activation=fnn.tanh))[..., 1]
        axes.contourf(axis, axis, probability, levels=20, vmin=0, vmax=1, cmap="RdBu_r", alpha=0.7)
        axes.contour(axis, axis, probability, levels=[0.5], colors="black", linewidths=1)
        axes.scatter(*x.T, c=labels, cmap="RdBu_r", edgecolors="white", linewidths=0.5, s=22)
        axes.set(title=f"{name}: {100 * right:.0f} %", aspect="equal", xticks=[], yticks=[])
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "spirals.png")
    print(f"drawn in {out / 'spirals.png'}")


if __name__ == "__main__":
    tyro.cli(main)
