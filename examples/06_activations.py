"""Activation functions, and how a ReLU dies.

python examples/06_activations.py [--quick]      writes out/06_activations.png

Above: four functions with their derivatives. Where a derivative is 0, no gradient passes: sigmoid
and tanh saturate far from 0, and ReLU is 0 below 0. A ReLU unit whose input is negative for every
row is dead: its gradient is 0, so its weights do not change. Below: a network on digits whose
hidden biases all start at the same value. The lower the value, the more ReLUs are dead at the start
and at the end, until the network learns nothing. leaky_relu has a slope below 0, so its units
recover.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

import fnn

# %% [markdown]
# ## Four functions
#
# | function | formula | derivative |
# |---|---|---|
# | sigmoid | $1 / (1 + e^{-z})$ | $\sigma (1 - \sigma)$, at most 1/4 |
# | tanh | $(e^z - e^{-z}) / (e^z + e^{-z})$ | $1 - \tanh^2$, at most 1 |
# | relu | $\max(0, z)$ | 1 above 0, else 0 |
# | leaky relu | $\max(0.1 \, z, z)$ | 1 above 0, else 0.1 |

# %%
ACTIVATIONS = {
    "sigmoid": fnn.sigmoid,
    "tanh": fnn.tanh,
    "relu": fnn.relu,
    "leaky_relu": partial(fnn.nn.leaky_relu, negative_slope=0.1),
}
BIASES = np.array([0, -0.25, -0.5, -0.75, -1, -1.25, -1.5])
data = fnn.datasets.digits()


# %% [markdown]
# ## A bad beginning
#
# Every hidden bias starts at the same value. The lower it is, the fewer rows make $x \cdot w + b$
# positive.


# %%
def init(key, bias):
    params = fnn.mlp_init(key, (64, 64, 64, 10), w_init=fnn.kaiming_normal)
    for hidden in ("layer_0", "layer_1"):
        params[hidden]["b"] += bias
    return params


# %% [markdown]
# ## Count the dead
#
# A unit is dead if it is 0 for every row of the training data. The gradient of its weights is the
# sum of $\delta \, \phi'(z) \, x$ over the rows, and $\phi'(z)$ is 0 in each.
# `fnn.diagnostics.capture` reads the units of each layer without a change to the network.


# %%
def train(key, bias, *, activation, epochs):
    """One run -> (share of dead units before it, and after it, accuracy on the test rows)."""

    def loss_fn(params, batch, key):
        x, labels = batch
        return fnn.cross_entropy(fnn.mlp(params, x, activation=activation), labels)

    def dead(params):
        marked = fnn.diagnostics.capture(partial(fnn.mlp, activation=activation))
        hidden, _ = marked(params, data.train[0])
        return jnp.mean(jnp.stack([stats["dead"] for stats in hidden.values()]))

    init_key, fit_key = jax.random.split(key)
    step = fnn.make_train_step(loss_fn, fnn.momentum(0.02))
    ts = step.init(init(init_key, bias))
    before = dead(ts.params)
    ts, _ = fnn.fit(step, ts, data.train, fit_key, epochs=epochs, batch_size=64)
    logits = fnn.mlp(ts.params, data.test[0], activation=activation)
    return before, dead(ts.params), fnn.accuracy(logits, data.test[1]).mean()


# %% [markdown]
# ## Draw and train
#
# All biases and seeds are one sweep for each activation function.


# %%
def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Draw the functions; train from lower and lower biases, and count the dead units."""
    figure = Figure(figsize=(12.5, 6.2), layout="constrained", dpi=100)
    *panels, share, right = figure.subplot_mosaic("abcd;eeff;eeff").values()
    for ax, (name, fn) in zip(panels, ACTIVATIONS.items(), strict=True):
        fnn.plots.activation(fn, ax, name=name)

    seeds, epochs = (1, 2) if quick else (5, 50)
    keys = jax.random.split(jax.random.key(0), seeds)
    print("hidden bias at the start ", *(f"{bias:6.2f}" for bias in BIASES))
    for name, colour in (("relu", "#0072B2"), ("leaky_relu", "#D55E00")):
        run = partial(train, activation=ACTIVATIONS[name], epochs=epochs)
        results = fnn.sweep(run, keys, {"bias": BIASES})
        before, after, accuracy = (100 * np.asarray(result) for result in results)
        for what, values in (("dead at first", before), ("dead at the end", after)):
            print(f"{name:10} {what}, %", *(f"{v:6.0f}" for v in values.mean(0)))
        print(f"{name:10} test accuracy, % ", *(f"{v:6.1f}" for v in accuracy.mean(0)))
        share.plot(BIASES, before.mean(0), ":", color=colour, label=f"{name}, at the start")
        share.plot(BIASES, after.mean(0), "o-", color=colour, label=f"{name}, trained")
        right.plot(BIASES, accuracy.mean(0), "o-", color=colour, label=name)
        right.plot(BIASES, accuracy.T, "x", color=colour, alpha=0.5)
    share.set(ylabel="dead hidden units (%)", title="units that are 0 for every row")
    right.set(
        ylabel="test accuracy (%)",
        title=f"after {epochs} epochs (crosses: {seeds} seeds, line: mean)",
    )
    for ax in (share, right):
        ax.set(xlabel="hidden biases at the start", ylim=(-4, 104))
        ax.legend(frameon=False)
        ax.grid(alpha=0.25)
    fnn.plots.save(figure, out / "06_activations.png")
    print(f"drawn in {out / '06_activations.png'}")


if __name__ == "__main__":
    tyro.cli(main)
