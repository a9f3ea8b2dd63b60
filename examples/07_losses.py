"""The loss decides what is learnt: outliers, and answers that are confidently wrong.

python examples/07_losses.py [--quick]      writes out/07_losses.png

Left: a line is fitted to points with outliers. The squared error weighs an outlier by the square of
its distance, so the line bends towards it. The absolute error and Huber's weigh it by its distance,
so the line hardly moves.
Middle: the gradient of a classifier by the logit of the right class. Where the classifier is
confidently wrong, the gradient of the squared error of the probability vanishes, and the gradient
of cross-entropy is largest.
Right: a neuron starts confidently wrong. With cross-entropy it learns at once; with the squared
error it learns nothing for a long time.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import fnn

# %% [markdown]
# ## Losses of a line
#
# With the error $d = \hat y - y$:
#
# | loss | formula | slope |
# |---|---|---|
# | squared | $d^2$ | $2 d$ |
# | absolute | $\left\lvert d \right\rvert$ | $\mathrm{sign}(d)$ |
# | Huber | $d^2 / 2$; beyond 1: $\left\lvert d \right\rvert - 1/2$ | $d$, cut at $\pm 1$ |
#
# The slope is the pull of a point on the line. An outlier that is 20 away pulls 40 times as
# strongly as a point that is 0.5 away under the squared error, and twice as strongly under Huber's.

# %%
LINES = {
    "squared error": fnn.squared_error,
    "absolute error": fnn.absolute_error,
    "Huber, delta 1": fnn.huber,
}


# %% [markdown]
# ## Losses of a classifier
#
# With $p = \sigma(z)$ and the label 1, the gradients by the logit are
#
# $$\frac{\partial}{\partial z} (1 - p)^2 = -2 (1 - p) \, p (1 - p)$$
#
# $$\frac{\partial}{\partial z} (-\log p) = -(1 - p)$$
#
# Where the classifier is confidently wrong, $p$ is almost 0. So the first gradient is almost 0,
# and the second almost $-1$.


# %%
def squared_error_of_probability(logits, labels):
    return fnn.squared_error(fnn.sigmoid(logits), labels)


CLASSIFIERS = {
    "cross-entropy": fnn.binary_cross_entropy,
    "squared error": squared_error_of_probability,
}


# %% [markdown]
# ## Points with outliers


# %%
def points_on_a_line(key, rows):
    """x [rows], y [rows]: y = 2 x + 1 + noise of deviation 0.5; outliers are 15 to 25 too high.

    Every sixth point is an outlier where x > 0.
    """
    x_key, noise_key, far_key = jax.random.split(key, 3)
    x = jnp.sort(jax.random.uniform(x_key, (rows,), minval=-3, maxval=3))
    far = jnp.where(jnp.arange(rows) % 6 == 5, jax.random.uniform(far_key, (rows,)) * 10 + 15, 0)
    far = jnp.where(x > 0, far, 0)  # on one side only, so that they change the slope too
    return x, 2 * x + 1 + 0.5 * jax.random.normal(noise_key, (rows,)) + far


# %% [markdown]
# ## One training run
#
# `fnn.diagnostics.observe` adds the parameters of each step to the history.


# %%
def predict(params, x):
    """[...] -> [...]: w x + b."""
    return fnn.dense(params, x[..., None])[..., 0]


def train(params, data, *, loss, optimizer, epochs):
    """One training run -> (ts, history); the history holds the params of each step too.

    Each batch holds all rows, so an epoch is one step.
    """

    def loss_fn(params, batch, key):
        x, targets = batch
        return loss(predict(params, x), targets)

    step = fnn.make_train_step(loss_fn, optimizer)
    seen = fnn.diagnostics.observe(step, lambda ts, new, batch: {"params": ts.params})
    key = jax.random.key(0)
    return fnn.fit(seen, seen.init(params), data, key, epochs=epochs, batch_size=len(data[0]))


# %% [markdown]
# ## The drawing: three lines, two gradients, two recoveries


# %%
def draw_lines(ax, data, epochs):
    """Fit a line to the points by each loss; print and draw the lines."""
    ax.plot(*data, "o", color="0.6", markersize=4)
    ax.plot(data[0], 2 * data[0] + 1, ":", color="black", label="y = 2 x + 1, without outliers")
    rate = fnn.schedules.cosine(fnn.schedules.Run(epochs, rows=1, batch_size=1), 0.02)
    for (name, loss), style in zip(LINES.items(), ("-", "-", "--"), strict=True):
        start = {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
        run = jax.jit(partial(train, loss=loss, optimizer=fnn.momentum(rate), epochs=epochs))
        params = run(start, data)[0].params
        w, b = params["w"].item(), params["b"].item()
        print(f"{name:15} y = {w:.2f} x + {b:.2f}      (the points without outliers: 2 x + 1)")
        ax.plot(data[0], predict(params, data[0]), style, linewidth=2, label=name)
    ax.set(xlabel="x", ylabel="y", title="a line through outliers")


def draw_gradients(ax):
    """Draw |d loss / d logit| of a row of class 1 against its logit."""
    logits = jnp.linspace(-10, 10, 401)
    for name, loss in CLASSIFIERS.items():
        slope = jax.vmap(jax.grad(loss))(logits, jnp.ones(401))
        ax.plot(logits, jnp.abs(slope), linewidth=2, label=name)
        at = int(np.abs(logits + 8).argmin())
        print(f"{name:15} gradient {abs(slope[at]):.1e} at a logit of -8, where 1 is right")
    ax.set(
        xlabel="logit of the right class",
        ylabel="|gradient| by the logit",
        xticks=range(-10, 11, 5),
    )
    ax.set(title="gradient: wrong on the left, right on the right")


def draw_recovery(ax, data, epochs):
    """Train from weights that are confidently wrong on every row."""
    x, labels = data
    for name, loss in CLASSIFIERS.items():
        start = {"w": jnp.full((1, 1), -4.0), "b": jnp.zeros(1)}
        run = jax.jit(partial(train, loss=loss, optimizer=fnn.sgd(0.1), epochs=epochs))
        _, history = run(start, data)
        logits = jax.vmap(predict, (0, None))(jax.tree.map(lambda p: p[:, 0], history["params"]), x)
        right = 100 * jnp.mean((logits > 0) == (labels == 1), axis=1)
        steps = int((right >= 99).argmax()) if right.max() >= 99 else f"more than {epochs}"
        print(f"{name:15} from confidently wrong to 99 % right: {steps} steps")
        p = fnn.sigmoid(jnp.where(labels == 1, logits, -logits)).mean(1)
        ax.plot(1 + np.arange(epochs), p, linewidth=2, label=name)
    ax.set(xlabel="step", xscale="log", ylabel="mean probability of the right class")
    ax.set(title="learning, from confidently wrong")


# %% [markdown]
# ## All three panels


# %%
def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Fit lines by three losses, classify by two losses, and draw the results."""
    line_key, cloud_key = jax.random.split(jax.random.key(0))
    figure, (left, middle, right) = fnn.plots.subplots(1, 3)
    draw_lines(left, points_on_a_line(line_key, 60), 300 if quick else 2000)
    draw_gradients(middle)
    x, labels = fnn.data.clusters(cloud_key, 200, classes=2, noise=0.5)
    draw_recovery(right, (-x[:, 0], labels.astype(x.dtype)), 100 if quick else 10_000)
    for ax in (left, middle, right):
        ax.legend(frameon=False)
        ax.grid(alpha=0.25)
    fnn.plots.save(figure, out / "07_losses.png")
    print(f"drawn in {out / '07_losses.png'}")


if __name__ == "__main__":
    tyro.cli(main)
