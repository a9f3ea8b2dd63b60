"""How large should a network be? Cross-validation chooses the width; then weights are pruned.

python examples/09_designing_a_network.py [--quick]      writes out/09_designing_a_network.png

Three questions about the digits:

- Are the classes separable by planes, or is a hidden layer needed?
- How wide should the hidden layer be? All widths are validated on the same folds, and each row is
  validated once. Images are standardized with the mean and deviation of the training folds.
  Accuracy keeps rising a little with the width, so the best width is not the answer. The smallest
  width within one standard error of the best is taken (Breiman et al. 1984).
- How many of the weights matter? Weights are pruned during training, the smallest first. An L2
  penalty makes unneeded weights small. Its strength is chosen on the validation rows, with a tenth
  of the weights left. Then the test rows are used once: a tenth of the weights is as accurate as
  all weights, within the differences between seeds.

The width is a number in the program: units beyond the width are set to 0. So all widths, folds and
seeds are one program.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import fnn
from fnn import plots, pruning
from fnn.inspect.plots import COLOURS

# %% [markdown]
# ## What is tried

# %%
WIDTHS = (8, 16, 32, 64, 128, 256, 512)  # the program computes the last width for all
SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)
PENALTIES = (0.0, 3e-4, 1e-3, 3e-3)
BATCH = 32

data = fnn.datasets.digits()


# %% [markdown]
# ## A width that is a number
#
# All networks have 512 hidden units, and those beyond the width are set to 0:
#
# $$z = \left(h \odot [\,i < \mathrm{width}\,]\right) W_2 + b_2$$
#
# Units that are 0 have no gradient, so the rest trains as a network of that width. The last
# layer's weights begin as if it had `width` inputs.


# %%
def init(key, width):
    k1, k2 = jax.random.split(key)
    hidden = fnn.dense_init(k1, 64, WIDTHS[-1], w_init=fnn.kaiming_normal)
    logits = fnn.dense_init(k2, WIDTHS[-1], 10, w_init=fnn.kaiming_normal)
    logits["w"] *= jnp.sqrt(WIDTHS[-1] / width)  # the initial weights of a layer of `width` inputs
    return {"hidden": hidden, "logits": logits}


def apply(params, x, width):
    x = fnn.relu(fnn.dense(params["hidden"], x))
    return fnn.dense(params["logits"], jnp.where(jnp.arange(WIDTHS[-1]) < width, x, 0))


# %% [markdown]
# ## One training run


# %%
def trained(params, apply, optimizer, rows, key, epochs, weights=None, penalty=0.0):
    def loss_fn(params, batch, key):
        x, labels = batch
        return fnn.cross_entropy(apply(params, x), labels) + penalty * fnn.params.l2(params)

    step = fnn.make_train_step(loss_fn, optimizer)
    ts = step.init(params)
    ts, _ = fnn.fit(step, ts, rows, key, epochs=epochs, batch_size=BATCH, weights=weights)
    return ts.params


# %% [markdown]
# ## Cross-validation
#
# The rows are cut into five folds. Each fold is validated once, by a network that was trained on
# the four others. A part has weights of its rows, 0 for those of other parts, so all folds are one
# program too. Standardizing uses the training folds alone; else the validation rows would be seen.


# %%
def linear(key, train, valid, *, epochs):
    """No hidden layer -> (accuracy on the training folds, accuracy on the validation fold)."""
    standardize = fnn.training.standardizer(train.data[0], train.weights)
    params = fnn.dense_init(key, 64, 10)
    rows = (standardize(train.data[0]), train.data[1])
    params = trained(params, fnn.dense, fnn.adam(3e-3), rows, key, epochs, train.weights)

    def right(part):
        x, labels = part.data
        hits = fnn.accuracy(fnn.dense(params, standardize(x)), labels)
        return fnn.training.weighted_mean(hits, part.weights)

    return right(train), right(valid)


def hidden(key, train, valid, width, *, epochs):
    """One hidden layer -> accuracy on the validation fold."""
    init_key, fit_key = jax.random.split(key)
    standardize = fnn.training.standardizer(train.data[0], train.weights)
    forward = partial(apply, width=width)
    rows = (standardize(train.data[0]), train.data[1])
    params = init(init_key, width)
    params = trained(params, forward, fnn.adam(3e-3), rows, fit_key, epochs, train.weights)
    x, labels = valid.data
    hits = fnn.accuracy(forward(params, standardize(x)), labels)
    return fnn.training.weighted_mean(hits, valid.weights)


# %% [markdown]
# ## Pruning
#
# The share of weights that are set to 0 grows from 0 to $s$ in the first half of the run (Zhu &
# Gupta 2017), always the smallest weights:
#
# $$s_t = s \left(1 - \left(1 - \frac{t}{T}\right)^3\right)$$


# %%
def prune(key, penalty, sparsity, *, width, epochs):
    """-> (validation accuracy, test accuracy, share of zeros), pruned in the first half."""
    init_key, fit_key = jax.random.split(key)
    standardize = fnn.training.standardizer(data.train[0])
    steps = epochs * -(-len(data.train[0]) // BATCH)
    schedule = pruning.cubic_sparsity(sparsity, steps // 2)
    optimizer = pruning.gradually_pruned(fnn.adam(3e-3), schedule, every=20)
    params = fnn.mlp_init(init_key, (64, width, 10), w_init=fnn.kaiming_normal)
    rows = (standardize(data.train[0]), data.train[1])
    params = trained(params, fnn.mlp, optimizer, rows, fit_key, epochs, penalty=penalty)
    valid, test = (
        fnn.accuracy(fnn.mlp(params, standardize(x)), labels).mean()
        for x, labels in (data.valid, data.test)
    )
    return valid, test, pruning.sparsity(params)


# %% [markdown]
# ## The standard error
#
# $\mathrm{se} = \mathrm{sd} / \sqrt{n}$. The smallest width whose mean is at least $\mathrm{best}
# - \mathrm{se}(\mathrm{best})$ is taken.


# %%
def error(values):
    """[n, ...] -> [...], the standard error of the mean."""
    return (
        values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.zeros_like(values[0])
    )


# %% [markdown]
# ## The three questions


# %%
def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Answer the three questions, and draw the last two answers."""
    fnn.use_all_cores()  # each core trains its share of the runs
    epochs, count, seeds = (3, 2, 1) if quick else (30, 5, 4)
    rows = len(data.train[0])
    folds = fnn.k_folds(jax.random.key(0), rows, count, labels=data.train[1])
    keys = jax.random.split(jax.random.key(1), seeds)
    seen, unseen = fnn.cross_validate(partial(linear, epochs=4 * epochs), keys, data.train, folds)
    print(f"no hidden layer: {100 * seen.mean():.1f} % right of the rows trained on,", end=" ")
    print(f"{100 * unseen.mean():.1f} % of the others, in {count} folds")

    run = partial(hidden, epochs=epochs)
    grid = {"width": jnp.array(WIDTHS, float)}
    scores = 100 * np.asarray(fnn.cross_validate(run, keys, data.train, folds, grid)).mean(0)
    mean, spread = scores.mean(0), error(scores)  # over folds
    for row in zip(WIDTHS, mean, spread, strict=True):
        print("{:4} hidden units: {:.1f} +- {:.1f} % of the others".format(*row))
    enough = mean.max() - spread[mean.argmax()]
    taken = (mean >= enough).argmax()  # the first width is the smallest
    width = WIDTHS[taken]

    run = partial(prune, width=width, epochs=2 * epochs)
    grid = {"penalty": jnp.array(PENALTIES), "sparsity": jnp.array(SPARSITIES)}
    valid, test, zeros = map(np.asarray, fnn.sweep(run, keys, grid))
    tenth = SPARSITIES.index(0.9)
    valid = 100 * valid[:, :, tenth]
    for row in zip(PENALTIES, valid.mean(0), error(valid), strict=True):
        print("penalty {:g}, a tenth left: {:.2f} +- {:.2f} % of validation rows".format(*row))
    chosen = valid.mean(0).argmax()
    test, zeros = 100 * test[:, chosen], zeros[0, chosen]  # test rows of the chosen penalty only
    lost = test[:, :1] - test
    print(f"{width} units, penalty {PENALTIES[chosen]:g}, on the test rows:")
    for row in zip(100 * zeros, test.mean(0), lost.mean(0), error(lost), strict=True):
        print("{:3.0f} % of weights pruned: {:.2f} %, lost {:.2f} +- {:.2f} points".format(*row))

    figure, (by_width, by_sparsity) = plots.subplots(1, 2, width=5.5, height=4.2)
    dots = {"color": COLOURS[5], "alpha": 0.6, "markersize": 4}
    line = {"color": COLOURS[0], "capsize": 3}
    mark = {"color": COLOURS[1], "markersize": 9, "zorder": 3}
    by_width.plot(WIDTHS, scores.T, "o", **dots)
    by_width.errorbar(WIDTHS, mean, spread, label="mean of folds, standard error", **line)
    by_width.axhline(100 * unseen.mean(), color=COLOURS[2], ls="--", label="no hidden layer")
    by_width.axhline(enough, color="0.4", ls=":", label="best less its standard error")
    by_width.plot(width, mean[taken], "D", label=f"taken: {width}", **mark)
    by_width.set_xscale("log", base=2)
    by_width.set_xticks(WIDTHS, list(map(str, WIDTHS)))
    by_width.set(xlabel="hidden units", ylabel="accuracy on rows left out (%)")
    weights = (64 + 10) * width * (1 - zeros)
    by_sparsity.plot(weights, test.T, "o", **dots)
    label = f"mean of {seeds} seeds, standard error"
    by_sparsity.errorbar(weights, test.mean(0), error(test), label=label, **line)
    by_sparsity.plot(weights[tenth], test.mean(0)[tenth], "D", label="a tenth left", **mark)
    by_sparsity.set_xscale("log")
    by_sparsity.set_xticks(weights, [f"{count:,.0f}" for count in weights])
    by_sparsity.minorticks_off()
    by_sparsity.set(xlabel="weights left", ylabel="accuracy on test rows (%)")
    for axes in (by_width, by_sparsity):
        axes.legend(frameon=False, loc="lower right")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    plots.save(figure, out / "09_designing_a_network.png")
    print(f"drawn in {out / '09_designing_a_network.png'}")


if __name__ == "__main__":
    tyro.cli(main)
