"""Why deep networks did not train: gradients that vanish or explode on their way back.

python examples/05_vanishing_gradients.py [--quick]      writes out/05_vanishing_gradients.png

On its way back through a layer, a gradient is multiplied by the weights and by the slope of the
activation. If each layer shrinks it by a fifth, a hundred-thousandth is left after 50 layers.
Here the norm of the gradient is measured in each layer, before any training, in networks of 50
layers on digits. The initial weights decide whether gradients vanish. With batch norm they do not
decide, and no gradient vanishes, though gradients grow after relu. The last panel shows what
clipping is for: it trains the same network from the same weights with and without clipping.
"""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from matplotlib.figure import Figure

import fnn

# %% [markdown]
# ## Beginnings
#
# Backwards through one layer, $h_{l+1} = \phi(h_l W_l)$, a gradient $\delta$ becomes
#
# $$\delta_l = \left(\delta_{l+1} \odot \phi'(z_l)\right) W_l^T$$
#
# If the weights have variance $s^2$ and $n$ units feed each unit, its squared norm changes by
# about $n \, s^2 \, \mathbb{E}[\phi'(z)^2]$. After 50 layers this factor is raised to the 50th
# power. Xavier takes $s^2 = 2 / (n_{in} + n_{out})$, which keeps the norm where $\phi' = 1$.
# Kaiming takes $s^2 = 2 / n_{in}$, because relu's slope is 0 for half of the inputs.

# %%
WIDTH = 32
BEGINNINGS = {  # colour, initializer of the weights, whether each layer has batch norm
    "normal, deviation 1": ("#D55E00", jax.nn.initializers.normal(1.0), False),
    "normal, deviation 0.01": ("#E69F00", jax.nn.initializers.normal(0.01), False),
    "Xavier": ("#0072B2", fnn.nn.glorot_normal, False),
    "Kaiming": ("#009E73", fnn.kaiming_normal, False),
    "Xavier and batch norm": ("#000000", fnn.nn.glorot_normal, True),
}
ACTIVATIONS = {"sigmoid": fnn.sigmoid, "tanh": fnn.tanh, "relu": fnn.relu}

data = fnn.datasets.digits()


# %% [markdown]
# ## Fifty equal layers
#
# They are one layer whose parameters have a first axis of 50, and `jax.lax.scan` goes through it.
# So the program is as small as that of one layer.


# %%
def init(key, depth, w_init):
    """All hidden layers have the same shapes, so they are one tree with leaves [depth, ...]."""
    k1, k2, k3 = jax.random.split(key, 3)
    layers = jax.vmap(lambda key: fnn.dense_init(key, WIDTH, WIDTH, w_init=w_init))
    return {
        "first": fnn.dense_init(k1, 64, WIDTH),
        "hidden": layers(jax.random.split(k2, depth)),
        "logits": fnn.dense_init(k3, WIDTH, 10),
    }


def apply(params, x, activation, normed):
    norm, state = fnn.batch_norm_init(WIDTH)

    def layer(x, params):
        x = fnn.dense(params, x)
        if normed:
            x, _ = fnn.batch_norm(norm, state, x, train=True)
        return activation(x), None

    x, _ = jax.lax.scan(layer, fnn.dense(params["first"], x), params["hidden"])
    return fnn.dense(params["logits"], x)


def loss_fn(params, batch, key, activation=fnn.relu, normed=False):
    x, labels = batch
    return fnn.cross_entropy(apply(params, x, activation, normed), labels)


# %% [markdown]
# ## The gradient of each layer
#
# The norm of a layer's gradient is the root of the sum of squares of all its entries.


# %%
@partial(jax.jit, static_argnums=(1, 2))
def gradient_by_layer(params, activation, normed):
    """[depth]: the norm of the loss's gradient in each hidden layer, from the input on."""
    batch = fnn.data.take(data.train, jnp.arange(256))

    def mean_loss(params):
        return loss_fn(params, batch, None, activation, normed).mean()

    return jax.vmap(fnn.params.global_norm)(jax.grad(mean_loss)(params)["hidden"])


# %% [markdown]
# ## Clipping
#
# A gradient $g$ that is longer than a limit $c$ is shortened to it; its direction stays:
#
# $$g \leftarrow g \cdot \min\left(1, \frac{c}{\|g\|}\right)$$


# %%
def train(key, clip_norm, *, depth, epochs):
    """One training run -> history."""
    init_key, fit_key = jax.random.split(key)
    step = fnn.make_train_step(loss_fn, fnn.sgd(0.1), clip_norm=clip_norm)
    ts = step.init(init(init_key, depth, fnn.kaiming_normal))
    return fnn.fit(step, ts, data.train, fit_key, epochs=epochs, batch_size=64)[1]


# %% [markdown]
# ## Measure, and train
#
# The limits of clipping, 0.5 and infinity, are numbers in one program.


# %%
def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Measure and draw the gradients of each network; train one with and without clipping."""
    depth, epochs, seeds = (20, 2, 1) if quick else (50, 30, 4)
    chosen = dict(list(ACTIVATIONS.items())[-1 if quick else 0 :])
    beginnings = dict(list(BEGINNINGS.items())[:: 2 if quick else 1])
    figure = Figure(figsize=(12, 4.6), layout="constrained", dpi=110)
    *panels, clipping = figure.subplots(1, len(chosen) + 1)
    print(f"gradient norm, layer 1 over layer {depth}")
    for axes, (name, activation) in zip(panels, chosen.items(), strict=True):
        for beginning, (colour, w_init, normed) in beginnings.items():
            params = jax.jit(init, static_argnums=(1, 2))(jax.random.key(0), depth, w_init)
            norms = gradient_by_layer(params, activation, normed)
            print(f"{name:8} {beginning:23} {norms[0]:9.1e} / {norms[-1]:7.1e}")
            axes.plot(range(1, depth + 1), norms, color=colour, label=beginning)
        axes.set(title=name, yscale="log", xlabel="layer, from the input", ylim=(1e-30, 1e36))
    panels[0].set_ylabel("norm of the gradient")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower left", ncols=5, frameon=False)

    limits = jnp.array([0.5, math.inf])
    run = partial(train, depth=depth, epochs=epochs)
    history = fnn.sweep(run, jax.random.split(jax.random.key(1), seeds), {"clip_norm": limits})
    for i, (label, colour) in enumerate({"clipped": "#0072B2", "not clipped": "#D55E00"}.items()):
        loss, largest = history["loss"][:, i].mean(-1), history["grad_norm"][:, i].max()
        print(f"{label:12} largest norm {largest:4.1f}, losses at the end {loss[:, -1]}")
        clipping.plot(range(1, epochs + 1), loss.T, color=colour)
        clipping.plot([], color=colour, label=label)
    clipping.set(title=f"relu, Kaiming: {seeds} seeds", xlabel="epoch")
    clipping.set_ylabel("training loss (nats)")
    clipping.legend(frameon=False)
    for axes in (*panels, clipping):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "05_vanishing_gradients.png")
    print(f"drawn in {out / '05_vanishing_gradients.png'}")


if __name__ == "__main__":
    tyro.cli(main)
