"""Overfitting: learning 100 digits by heart, and the cures for it.

python examples/08_overfitting.py [--quick]      writes out/08_overfitting.png

Too many weights for too few rows: the training loss goes to 0 while the loss on rows that the
network has not seen falls, turns, and rises. Penalties on the weights (L1, L2), dropout and images
moved about at random work against it; stopping early takes the best there was on the way. All
cures are one function of four numbers, so all of them, from every seed, are one sweep. Not every
cure helps everywhere: that is for the validation rows to say, and here they do not want dropout.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from matplotlib.figure import Figure

import fnn
from fnn.plots import COLOURS

CURES = {  # strengths of L1 and L2, dropout's rate, and how far images move in pixels
    "no cure": (0, 0, 0, 0),
    "L1": (3e-4, 0, 0, 0),
    "L2": (0, 1e-3, 0, 0),
    "dropout": (0, 0, 0.3, 0),
    "augmentation": (0, 0, 0, 0.25),
    "L1 + augmentation": (3e-4, 0, 0, 0.25),
}
STRENGTHS = jnp.array(list(CURES.values()), float)


def loss_fn(params, batch, key, l1, l2, rate, pixels):
    x, labels = batch
    shift_key, dropout_key = fnn.split(key)
    images = fnn.augment.shift(shift_key, x.reshape(-1, 8, 8, 1), pixels)
    logits = fnn.mlp(params, images.reshape(x.shape), key=dropout_key, rate=rate)
    return fnn.cross_entropy(logits, labels) + fnn.params.elastic_net(params, l1=l1, l2=l2)


def scores(params, rows):
    x, labels = rows
    logits = fnn.mlp(params, x)  # no key: no dropout, and nothing moves
    return fnn.cross_entropy(logits, labels).mean(), fnn.accuracy(logits, labels).mean()


def run(key, cure, *, data, epochs):
    """Train and look at the validation rows after each epoch, and keep the best parameters."""
    init_key, fit_key = jax.random.split(key)
    strengths = STRENGTHS[cure]
    optimizer = fnn.adam(3e-3)
    step = fnn.make_train_step(lambda *args: loss_fn(*args, *strengths), optimizer)
    params = fnn.mlp_init(init_key, (64, 128, 128, 10), w_init=fnn.kaiming_normal)

    def epoch(carry, _):
        ts, best, lowest = carry
        ts, _ = fnn.fit(step, ts, data.train, fit_key, epochs=1, batch_size=20)
        loss, _ = scores(ts.params, data.valid)
        train_loss, _ = scores(ts.params, data.train)
        best = jax.tree.map(lambda new, old: jnp.where(loss < lowest, new, old), ts.params, best)
        history = {"loss": loss, "train_loss": train_loss}
        return (ts, best, jnp.minimum(loss, lowest)), history

    start = (fnn.train_init(params, optimizer), params, jnp.inf)
    (ts, best, _), history = jax.lax.scan(epoch, start, length=epochs)
    return history, scores(ts.params, data.test), scores(best, data.test)


def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Train with every cure from several seeds; draw the losses side by side."""
    epochs, seeds = (10, 1) if quick else (150, 5)
    digits = fnn.datasets.digits()
    data = digits._replace(train=fnn.data.take(digits.train, jnp.arange(100)))
    keys = jax.random.split(jax.random.key(0), seeds)
    cures = {"cure": jnp.arange(len(CURES))}
    history, last, best = fnn.sweep(partial(run, data=data, epochs=epochs), keys, cures)
    loss = history["loss"].mean(0)
    figure = Figure(figsize=(10.5, 4.4), layout="constrained", dpi=110)
    by_epoch, by_cure = figure.subplots(1, 2)
    print("                    validation loss         test accuracy")
    print("                    lowest   epoch    end   end     stopped early")
    for i, (cure, colour) in enumerate(zip(CURES, COLOURS, strict=False)):
        ends = f"{100 * last[1][:, i].mean():.1f} %  {100 * best[1][:, i].mean():.1f} %"
        print(f"{cure:20}{loss[i].min():6.3f}{loss[i].argmin() + 1:8}{loss[i, -1]:7.3f}   {ends}")
        by_epoch.plot(range(1, epochs + 1), loss[i], color=colour, label=cure)
        for x, scored, marker in ((i - 0.12, last, "o"), (i + 0.12, best, "D")):
            look = {"color": colour, "alpha": 0.6, "markersize": 5}
            by_cure.plot([x] * seeds, scored[0][:, i], marker, **look)
    look = {"color": COLOURS[0], "ls": ":", "label": "no cure, training rows"}
    by_epoch.plot(range(1, epochs + 1), history["train_loss"].mean(0)[0], **look)
    by_epoch.set(xlabel="epoch", ylabel="loss (nats)", ylim=(0, 0.8))
    by_epoch.set_title("Loss on the validation rows")
    by_epoch.legend(frameon=False, fontsize=9)
    by_cure.plot([], [], "o", color="0.4", label=f"after {epochs} epochs")
    by_cure.plot([], [], "D", color="0.4", label="stopped early")
    by_cure.set_xticks(range(len(CURES)), [cure.replace(" + ", " +\n") for cure in CURES])
    by_cure.tick_params("x", labelsize=8)
    by_cure.set(ylabel="loss (nats)", title=f"Loss on the test rows ({seeds} seeds)")
    by_cure.legend(frameon=False)
    for axes in (by_epoch, by_cure):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "08_overfitting.png")
    print(f"drawn in {out / '08_overfitting.png'}")


if __name__ == "__main__":
    tyro.cli(main)
