"""Hidden layers bend the boundary: what a network can tell apart with and without them.

python examples/02_hidden_layers.py [--quick]      writes out/02_hidden_layers.png

Without a hidden layer the boundary between two classes is a straight line, however long the
network trains. A straight line is enough for the clusters. Rings and spirals need a curved
boundary: with two hidden layers the same training finds a curved boundary. Accuracies are
measured on fresh points.
"""

from functools import partial
from pathlib import Path

import jax
import tyro

import fnn

# %% [markdown]
# ## Three sets of points
#
# Three classes each. The classes of the clusters can be told apart by straight lines; those of the
# rings and of the spirals cannot.

# %%
DATA = {"clusters": fnn.data.clusters, "rings": fnn.data.rings, "spirals": fnn.data.spirals}
HIDDEN = {"no hidden layer": (), "two hidden layers": (32, 32)}


# %% [markdown]
# ## The network
#
# A layer is an affine map and then an activation function, here tanh:
#
# $$h_1 = \tanh(x W_1 + b_1), \quad h_2 = \tanh(h_1 W_2 + b_2)$$
#
# $$z = h_2 W_3 + b_3$$
#
# Without the activation the three maps would be one affine map, and the boundary a line. `fnn.mlp`
# takes any number of layers; with no hidden layer it is $z = x W + b$.


# %%
def network(params, x):
    """[..., 2] -> [..., 3]: a logit for each class."""
    return fnn.mlp(params, x, activation=fnn.tanh)


# %% [markdown]
# ## The loss
#
# Softmax makes probabilities of the logits, and cross-entropy is the surprise at the right class
# $c$:
#
# $$\ell = -\log \frac{e^{z_c}}{\sum_k e^{z_k}}$$


# %%
def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(network(params, x), labels)


# %% [markdown]
# ## A run is a function
#
# From a key and rows to parameters. `hidden` shapes the program, so each size is compiled once.


# %%
def train(key, data, *, hidden, epochs):
    """One training run: from a key and rows to trained parameters."""
    step = fnn.make_train_step(loss_fn, fnn.adam(0.01))
    ts = step.init(fnn.mlp_init(key, (2, *hidden, 3)))
    return fnn.fit(step, ts, data, key, epochs=epochs, batch_size=50)[0].params


# %% [markdown]
# ## What each network makes of each set
#
# Accuracy is measured on 2,000 points that no network has seen.


# %%
def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Train two networks on three sets of points, and draw the class that each chooses where."""
    train_key, test_key, run_key = jax.random.split(jax.random.key(0), 3)
    run = jax.jit(train, static_argnames=("hidden", "epochs"))
    figure, panels = fnn.plots.subplots(2, 3, width=3.8)
    axes = iter(panels)
    for title, hidden in HIDDEN.items():
        for name, points in DATA.items():
            rows = points(train_key, 300, classes=3)
            params = run(run_key, rows, hidden=hidden, epochs=30 if quick else 300)
            x, labels = points(test_key, 2000, classes=3)
            right = 100 * fnn.accuracy(network(params, x), labels).mean()
            print(f"{name:8}  {title:17}  {right:5.1f} % of fresh points right")
            ax = fnn.plots.decision_boundary(partial(network, params), *rows, ax=next(axes))
            ax.set(title=f"{name}, {title}: {right:.0f} %", xticks=[], yticks=[])
    fnn.plots.save(figure, out / "02_hidden_layers.png")
    print(f"drawn in {out / '02_hidden_layers.png'}")


if __name__ == "__main__":
    tyro.cli(main)
