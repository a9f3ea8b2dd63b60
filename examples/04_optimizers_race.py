"""The race of the optimizers: each one written by hand, each at the rate that suits it best.

python examples/04_optimizers_race.py [--quick]      writes out/04_optimizers_race.png

A rule is a few lines, from gradient to step, and all have one interface. So a race is fair by
construction: the same initial weights, the same batches in the same order, and every rule its own
choice among the same learning rates, by the loss on validation rows. One sweep trains a rule at
every rate from every seed, as one program. How fast is told by the epochs to a loss of 0.1.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

import fnn
from fnn.plots import COLOURS

RULES = {
    "sgd": fnn.sgd,
    "momentum": fnn.momentum,
    "nesterov": fnn.nesterov,
    "adagrad": fnn.adagrad,
    "rmsprop": fnn.rmsprop,
    "adam": fnn.adam,
    "adamw": partial(fnn.adamw, weight_decay=0.01),
    "nadam": fnn.nadam,
    "lion": fnn.lion,
    "adafactor": fnn.adafactor,
    "muon": lambda rate: fnn.muon(rate, others=fnn.adam(rate)),  # for matrices; biases by Adam
}
RATES = 10 ** jnp.arange(-4, 0.5, 0.5)  # 0.0001 to 1, two to a factor of ten
LOSS = 0.1  # nats; as if each right answer were given a probability of 90 %

data = fnn.datasets.digits()


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x), labels)


def train(rule, epochs, key, learning_rate):
    """One run: the loss on the validation rows after every epoch, the test accuracy at the end."""
    init_key, fit_key = jax.random.split(key)
    optimizer = rule(learning_rate)
    step = fnn.make_train_step(loss_fn, optimizer)
    ts = fnn.train_init(fnn.mlp_init(init_key, (64, 32, 10), w_init=fnn.kaiming_normal), optimizer)

    def epoch(ts, _):
        ts, _ = fnn.fit(step, ts, data.train, fit_key, epochs=1, batch_size=64)
        return ts, loss_fn(ts.params, data.valid, None).mean()

    ts, losses = jax.lax.scan(epoch, ts, length=epochs)
    x, labels = data.test
    return losses, fnn.accuracy(fnn.mlp(ts.params, x), labels).mean()


def best_rate(losses):
    """[seeds, rates, epochs] -> the index of the rate whose runs end lowest, and none in NaN."""
    last = np.asarray(losses[:, :, -5:]).mean((0, 2))
    return int(np.nanargmin(np.where(np.isfinite(last), last, np.nan)))


def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Race every rule and draw the loss by epoch at its best rate, and by rate at the end."""
    epochs, seeds = (5, 1) if quick else (30, 3)
    rates = RATES[4:7] if quick else RATES
    rules = dict(list(RULES.items())[1:6:4]) if quick else RULES
    keys = jax.random.split(jax.random.key(0), seeds)
    figure = Figure(figsize=(10.5, 4.6), layout="constrained", dpi=110)
    by_epoch, by_rate = figure.subplots(1, 2, sharey=True)
    print(f"rule       best rate  epochs to {LOSS}    loss   test accuracy")
    for i, (name, rule) in enumerate(rules.items()):
        runs = fnn.sweep(partial(train, rule, epochs), keys, {"learning_rate": rates})
        losses, accuracy = jax.device_get(runs)
        best = best_rate(losses)
        curve = np.median(losses[:, best], axis=0)
        there = next((e + 1 for e in range(epochs) if curve[e] <= LOSS), "never")
        score = f"{there:>14}{curve[-1]:8.3f}{100 * accuracy[:, best].mean():14.1f} %"
        print(f"{name:10}{rates[best]:10.4f}{score}")
        look = {"color": COLOURS[i % 7], "ls": "-" if i < 7 else "--", "lw": 1.7, "label": name}
        by_epoch.plot(range(1, epochs + 1), curve, **look)
        by_rate.plot(rates, np.median(losses[:, :, -1], axis=0), marker="o", markersize=3, **look)
    by_epoch.set(xlabel="epoch", ylabel="validation loss (nats)", title="Each at its best rate")
    by_rate.set(xlabel="learning rate", xscale="log", title=f"After {epochs} epochs, by rate")
    for axes in (by_epoch, by_rate):
        axes.set(yscale="log", ylim=(0.04, 4))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*by_rate.get_legend_handles_labels(), loc="outside right center", frameon=False)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "04_optimizers_race.png")
    print(f"drawn in {out / '04_optimizers_race.png'}")


if __name__ == "__main__":
    tyro.cli(main)
