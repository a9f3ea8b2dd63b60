"""A neuron: a weighted sum, a bias, a squashing function. Trained, it is logistic regression.

python examples/01_neuron.py [--quick]      writes out/01_neuron.png

The neuron computes the probability that a point is of class 1: sigmoid(x @ w + b). It is undecided
where x @ w + b is 0: on a straight line. Gradient descent finds the weights of logistic regression.
Newton's method finds the same weights in a few steps of linear algebra. Without the bias the line
must pass through (0, 0). Seen from there, one of the two clouds lies behind the other, so no such
line separates them.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import fnn

# %% [markdown]
# ## The neuron
#
# It weighs its inputs, adds a bias, and squashes the sum into a probability:
#
# $$p = \sigma(x \cdot w + b), \qquad \sigma(z) = \frac{1}{1 + e^{-z}}$$
#
# The sum $z = x \cdot w + b$ is called the logit. `fnn.dense` computes it for all rows at once.


# %%
def neuron(params, x):
    """[..., 2] -> [...]: the logit, whose sigmoid is the probability of class 1."""
    return fnn.dense(params, x)[..., 0]


# %% [markdown]
# ## The loss
#
# For a label $y$ of 0 or 1 the loss is the surprise at the right answer, in nats:
#
# $$\ell = -y \log p - (1 - y) \log(1 - p)$$
#
# The function takes logits, not probabilities: then nothing overflows. It returns one loss a row;
# the step takes their mean.


# %%
def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.binary_cross_entropy(neuron(params, x), labels)


# %% [markdown]
# ## Gradient descent
#
# The gradient of the mean loss is simple, the mean of what was wrong times what came in:
#
# $$\frac{\partial \ell}{\partial w} = \frac{1}{n} \sum_i (p_i - y_i) \, x_i$$
#
# JAX computes it from `loss_fn`. Nesterov's rule goes down along it, with momentum.


# %%
def train(key, data, *, bias, epochs):
    """One training run. Each batch holds all rows, so an epoch is one step."""
    step = fnn.make_train_step(loss_fn, fnn.nesterov(0.2))
    ts = step.init(fnn.dense_init(key, 2, 1, bias=bias))
    return fnn.fit(step, ts, data, key, epochs=epochs, batch_size=len(data[1]))


# %% [markdown]
# ## Newton's method, as a check
#
# The loss is convex, so there is one minimum. Newton's method divides the gradient by the
# curvature, the Hessian $H = X^T \mathrm{diag}(p (1 - p)) X$:
#
# $$w \leftarrow w - H^{-1} X^T (p - y)$$


# %%
def newton(x, labels, steps=10):
    """Logistic regression in NumPy: w1, w2 and b where the gradient of the mean loss is 0."""
    x = np.concatenate([np.float64(x), np.ones((len(x), 1))], axis=1)  # b is the weight of 1
    w = np.zeros(3)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (p - labels)
        curvature = (x.T * (p * (1 - p))) @ x
        w -= np.linalg.solve(curvature, gradient)
    return w


# %% [markdown]
# ## With and without a bias
#
# The neuron is undecided where $x \cdot w + b = 0$. Without $b$ this line passes through (0, 0),
# and both clouds lie on one side of that point.


# %%
def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Train one neuron with a bias and one without; draw the line where each is undecided."""
    data_key, run_key = jax.random.split(jax.random.key(0))
    x, labels = fnn.data.clusters(data_key, 200, classes=2, noise=1.5)
    x = x + jnp.array([5.0, 0.0])
    run = jax.jit(train, static_argnames=("bias", "epochs"))

    figure, panels = fnn.plots.subplots(1, 3, width=4)
    curves = {}
    for ax, (name, bias) in zip(panels, {"with": True, "without": False}.items(), strict=False):
        ts, history = run(run_key, (x, labels), bias=bias, epochs=300 if quick else 3000)
        right = 100 * jnp.mean((neuron(ts.params, x) > 0) == (labels == 1))
        numbers = [*ts.params["w"].ravel(), *ts.params.get("b", [])]
        print(f"{name:>7} a bias: {right:.1f} % right, w and b", *(f"{v:.4f}" for v in numbers))
        fnn.plots.decision_boundary(partial(neuron, ts.params), x, labels, ax)
        ax.plot(0, 0, "k+", markersize=10)
        ax.set(title=f"{name} a bias: {right:.0f} % right")
        curves[f"{name} a bias"] = history["loss"]
    print("Newton's method:             w and b", *(f"{v:.4f}" for v in newton(x, labels)))

    w = newton(x, labels)
    best = fnn.binary_cross_entropy(x @ jnp.array(w[:2], x.dtype) + float(w[2]), labels).mean()
    fnn.plots.learning_curves(curves, panels[2])
    panels[2].axhline(float(best), color="0.4", linestyle=":", label="Newton's method")
    panels[2].set(title="gradient descent, 1 step an epoch", xscale="log")
    panels[2].legend(frameon=False, loc="upper right")
    fnn.plots.save(figure, out / "01_neuron.png")
    print(f"drawn in {out / '01_neuron.png'}")


if __name__ == "__main__":
    tyro.cli(main)
