"""Backpropagation by hand: the chain rule written out, step by step, against jax.grad.

python examples/03_backpropagation.py [--quick]      writes out/03_backpropagation.png

A network 64-32-10 learns digits twice:

- in NumPy: forward, loss, backward, step, with every derivative written down;
- by fnn, where jax.grad does the backward pass.

Both losses fall in the same way. At every step the two gradients are equal except for rounding.
"""

from pathlib import Path

import jax
import numpy as np
import tyro

import fnn

# %% [markdown]
# ## Forward
#
# $$z = x W_1 + b_1, \qquad h = \tanh z$$
#
# $$p = \mathrm{softmax}(h W_2 + b_2)$$
#
# The largest logit is subtracted before the exponential. This changes no probability, and nothing
# overflows.

# %%
RATE = 0.5


def forward(params, x):
    """-> the hidden layer's output [rows, 32] and the probabilities [rows, 10]."""
    h = np.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    logits = h @ params["logits"]["w"] + params["logits"]["b"]
    e = np.exp(logits - logits.max(1, keepdims=True))
    return h, e / e.sum(1, keepdims=True)


def loss(p, labels):
    """The mean over rows of -log(probability of the right class)."""
    return -np.mean(np.log(p[np.arange(len(labels)), labels]))


# %% [markdown]
# ## Backward
#
# The chain rule, from the loss to the input. Softmax and logarithm together have the derivative $p
# - y$, where $y$ is 1 at the right class and 0 elsewhere:
#
# $$\delta_2 = \frac{p - y}{n}, \qquad \delta_1 = (\delta_2 W_2^T) \odot (1 - h^2)$$
#
# The gradient of each matrix is its input times what comes back to its output:
#
# $$\frac{\partial \ell}{\partial W_2} = h^T \delta_2, \qquad
# \frac{\partial \ell}{\partial W_1} = x^T \delta_1$$
#
# The gradients of the biases are the sums of $\delta_2$ and $\delta_1$ over the rows.


# %%
def backward(params, x, labels, h, p):
    """The derivative of the loss by each parameter, from the last layer to the first."""
    target = np.eye(10, dtype=p.dtype)[labels]
    d_logits = (p - target) / len(x)  # derivative of softmax and logarithm together
    d_h = d_logits @ params["logits"]["w"].T  # logits = h @ w + b
    d_z = d_h * (1 - h**2)  # h = tanh(z), and tanh' = 1 - tanh^2
    return {
        "hidden": {"w": x.T @ d_z, "b": d_z.sum(0)},  # z = x @ w + b
        "logits": {"w": h.T @ d_logits, "b": d_logits.sum(0)},
    }


# %% [markdown]
# ## Step
#
# Gradient descent takes every parameter a little down its gradient: $w \leftarrow w - \eta \,
# \partial \ell / \partial w$.


# %%
def train_by_hand(params, data, steps):
    """-> losses [steps], and the params and grads of each step, leaves [steps, ...]."""
    x, labels = data
    losses, visited, grads = [], [], []
    for _ in range(steps):
        h, p = forward(params, x)
        grad = backward(params, x, labels, h, p)
        losses.append(loss(p, labels))
        visited.append(params)
        grads.append(grad)
        params = jax.tree.map(lambda w, d: w - RATE * d, params, grad)
    return losses, *(jax.tree.map(lambda *a: np.stack(a), *trees) for trees in (visited, grads))


# %% [markdown]
# ## The same by fnn
#
# Only the forward pass is written. JAX derives the backward pass from it: each operation knows its
# own derivative, and `jax.grad` chains them from the last to the first.


# %%
def network(params, x):
    return fnn.dense(params["logits"], fnn.tanh(fnn.dense(params["hidden"], x)))


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(network(params, x), labels)


def train(params, data, epochs):
    """The same run by fnn. Each batch holds all rows, so an epoch is one step."""
    step = fnn.make_train_step(loss_fn, fnn.sgd(RATE))
    ts = step.init(params)
    return fnn.fit(step, ts, data, jax.random.key(0), epochs=epochs, batch_size=len(data[1]))


# %% [markdown]
# ## How far apart are the gradients?
#
# They are computed in different orders, so they agree to rounding: about 1e-7 in float32 and 1e-16
# in float64 for a single operation, more for a sum of many.


# %%
def furthest(ours, theirs):
    """[steps]: the largest difference between two trees, divided by the largest gradient."""
    flat = [
        np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(tree)], 1)
        for tree in (ours, theirs)
    ]
    return np.abs(flat[0] - flat[1]).max(1) / np.abs(flat[1]).max(1)


# %% [markdown]
# ## Both runs


# %%
def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Train by hand and by fnn, in float32 and float64, and compare the gradients of each step."""
    jax.config.update("jax_enable_x64", True)
    steps = 20 if quick else 300
    figure, (left, right) = fnn.plots.subplots(1, 2, width=4.8)
    x, labels = fnn.datasets.digits().train
    k1, k2 = jax.random.split(jax.random.key(0))
    drawn = {"hidden": fnn.dense_init(k1, 64, 32), "logits": fnn.dense_init(k2, 32, 10)}
    for dtype in (np.float32, np.float64):
        params = jax.tree.map(lambda w, dtype=dtype: np.asarray(w, dtype), drawn)
        data = x.astype(dtype), labels
        losses, visited, grads = train_by_hand(params, data, steps)
        history = jax.jit(train, static_argnums=2)(params, data, steps)[1]
        grad = jax.grad(lambda params, data=data: loss_fn(params, data, None).mean())
        apart = furthest(grads, jax.jit(lambda visited, f=grad: jax.lax.map(f, visited))(visited))

        by_fnn = history["loss"][:, 0]
        print(
            f"{dtype.__name__}: loss {losses[0]:.3f} to {losses[-1]:.3f} by hand, {by_fnn[-1]:.3f}"
            f" by fnn; gradients differ by {apart.max():.0e} of the largest, at most"
        )
        right.semilogy(1 + np.arange(steps), apart, label=dtype.__name__)
    left.plot(1 + np.arange(steps), losses, color="#E69F00", linewidth=5, label="by hand")
    left.plot(1 + np.arange(steps), by_fnn, color="black", linestyle="--", label="by fnn, jax.grad")
    left.set(xlabel="step", ylabel="training loss (nats)", title="The same loss")
    right.set(xlabel="step", ylabel="largest difference / largest gradient")
    right.set(title="The same gradients, but for rounding", ylim=(1e-17, 1e-4))
    for ax in (left, right):
        ax.legend(frameon=False)
        ax.grid(alpha=0.25)
    fnn.plots.save(figure, out / "03_backpropagation.png")
    print(f"drawn in {out / '03_backpropagation.png'}")


if __name__ == "__main__":
    tyro.cli(main)
