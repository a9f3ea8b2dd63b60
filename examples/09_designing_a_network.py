"""How large a network? Ask by cross-validation, then take away what it does not need.

python examples/09_designing_a_network.py [--quick]      writes out/09_designing_a_network.png

Three questions, on digits. Are the classes separable by planes, or does it take a hidden layer?
How wide? Every width is validated on the same folds, each row once, with images standardized by
the training fold's own statistics, and the best is taken. How many of its weights matter? They
are pruned while it trains, the smallest first, until a tenth is left, and less.

A width is a number like any other here: units beyond it are multiplied by 0, so that all widths,
folds and seeds are one program.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

import fnn
from fnn import pruning

WIDTHS = (4, 8, 16, 32, 64, 128, 256)  # the last is the width that is computed
SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)
BATCH = 32

data = fnn.datasets.digits()


def init(key, width):
    k1, k2 = jax.random.split(key)
    hidden = fnn.dense_init(k1, 64, WIDTHS[-1], w_init=fnn.kaiming_normal)
    logits = fnn.dense_init(k2, WIDTHS[-1], 10, w_init=fnn.kaiming_normal)
    logits["w"] *= jnp.sqrt(WIDTHS[-1] / width)  # as if there were only so many inputs
    return {"hidden": hidden, "logits": logits}


def apply(params, x, width):
    x = fnn.relu(fnn.dense(params["hidden"], x))
    return fnn.dense(params["logits"], jnp.where(jnp.arange(WIDTHS[-1]) < width, x, 0))


def trained(params, apply, optimizer, rows, key, epochs, weights=None, penalty=0.0):
    def loss_fn(params, batch, key):
        x, labels = batch
        return fnn.cross_entropy(apply(params, x), labels) + penalty * fnn.params.l2(params)

    step = fnn.make_train_step(loss_fn, optimizer)
    ts = fnn.train_init(params, optimizer)
    ts, _ = fnn.fit(step, ts, rows, key, epochs=epochs, batch_size=BATCH, weights=weights)
    return ts.params


def linear(key, train, valid, *, epochs):
    """No hidden layer: the share that is right of the rows trained on, and of the others."""
    standardize = fnn.standardizer(train.data[0], train.weights)
    params = fnn.dense_init(key, 64, 10)
    rows = (standardize(train.data[0]), train.data[1])
    params = trained(params, fnn.dense, fnn.adam(3e-3), rows, key, epochs, train.weights)

    def right(part):
        x, labels = part.data
        hits = fnn.accuracy(fnn.dense(params, standardize(x)), labels)
        return fnn.weighted_mean(hits, part.weights)

    return right(train), right(valid)


def hidden(key, train, valid, width, *, epochs):
    """One hidden layer: the share that is right of the rows it was not trained on."""
    init_key, fit_key = jax.random.split(key)
    standardize = fnn.standardizer(train.data[0], train.weights)
    forward = partial(apply, width=width)
    rows = (standardize(train.data[0]), train.data[1])
    params = init(init_key, width)
    params = trained(params, forward, fnn.adam(3e-3), rows, fit_key, epochs, train.weights)
    x, labels = valid.data
    return fnn.weighted_mean(fnn.accuracy(forward(params, standardize(x)), labels), valid.weights)


def prune(key, sparsity, *, width, epochs):
    """Train on all training rows, pruning for the first half: accuracy elsewhere, share of zeros.

    The penalty makes small what is not needed, so that what is pruned is missed less.
    """
    init_key, fit_key = jax.random.split(key)
    standardize = fnn.standardizer(data.train[0])
    steps = epochs * -(-len(data.train[0]) // BATCH)
    schedule = pruning.cubic_sparsity(sparsity, steps // 2)
    optimizer = pruning.gradually_pruned(fnn.adam(3e-3), schedule, every=20)
    params = fnn.mlp_init(init_key, (64, width, 10), w_init=fnn.kaiming_normal)
    rows = (standardize(data.train[0]), data.train[1])
    params = trained(params, fnn.mlp, optimizer, rows, fit_key, epochs, penalty=1e-3)
    x, labels = jax.tree.map(lambda *parts: np.concatenate(parts), data.valid, data.test)
    hits = fnn.accuracy(fnn.mlp(params, standardize(x)), labels)
    return hits.mean(), pruning.sparsity(params)


def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Answer the three questions, and draw the last two answers."""
    epochs, count, seeds = (3, 2, 1) if quick else (30, 5, 4)
    rows = len(data.train[0])
    folds = fnn.k_folds(jax.random.key(0), rows, count, labels=data.train[1])
    keys = jax.random.split(jax.random.key(1), seeds)
    seen, unseen = fnn.cross_validate(partial(linear, epochs=4 * epochs), keys, data.train, folds)
    print(f"no hidden layer: {100 * seen.mean():.1f} % right of the rows trained on,", end=" ")
    print(f"{100 * unseen.mean():.1f} % of the others, in {count} folds")

    run = partial(hidden, epochs=epochs)
    grid = {"width": jnp.array(WIDTHS, float)}
    scores = np.asarray(fnn.cross_validate(run, keys, data.train, folds, grid))
    for width, score in zip(WIDTHS, scores.mean((0, 1)), strict=True):
        print(f"{width:4} hidden units: {100 * score:.1f} % of the others")
    width = WIDTHS[scores.mean((0, 1)).argmax()]

    run = partial(prune, width=width, epochs=2 * epochs)
    accuracies, zeros = fnn.sweep(run, keys, {"sparsity": jnp.array(SPARSITIES)})
    for sparsity, accuracy in zip(np.asarray(zeros)[0], accuracies.mean(0), strict=True):
        print(f"{width} units, {100 * sparsity:2.0f} % of weights pruned: {100 * accuracy:.1f} %")

    figure = Figure(figsize=(10.5, 4.2), layout="constrained", dpi=110)
    by_width, by_sparsity = figure.subplots(1, 2)
    by_width.plot(WIDTHS, 100 * scores.mean(0).T, "o", color="#56B4E9", alpha=0.6, markersize=4)
    by_width.plot(WIDTHS, 100 * scores.mean((0, 1)), color="#0072B2", label="mean of the folds")
    by_width.axhline(100 * unseen.mean(), color="#D55E00", ls="--", label="no hidden layer")
    by_width.axvline(width, color="0.4", ls=":", label=f"taken: {width}")
    by_width.set_xscale("log", base=2)
    by_width.set_xticks(WIDTHS, list(map(str, WIDTHS)))
    by_width.set(xlabel="hidden units", ylabel="accuracy (%)", title="Validated, each row once")
    by_width.legend(frameon=False, loc="lower right")
    weights = (64 + 10) * width * (1 - np.asarray(zeros)[0])
    by_sparsity.plot(weights, 100 * accuracies.T, "o", color="#56B4E9", alpha=0.6, markersize=4)
    by_sparsity.plot(
        weights, 100 * accuracies.mean(0), color="#0072B2", label=f"mean of {seeds} seeds"
    )
    by_sparsity.axvline(weights[0] / 10, color="0.4", ls=":", label="a tenth of them")
    by_sparsity.set(
        xlabel="weights that are left", ylabel="accuracy on other rows (%)", xscale="log"
    )
    by_sparsity.set_title("Pruned while it trains")
    by_sparsity.legend(frameon=False, loc="lower right")
    for axes in (by_width, by_sparsity):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "09_designing_a_network.png")
    print(f"drawn in {out / '09_designing_a_network.png'}")


if __name__ == "__main__":
    tyro.cli(main)
