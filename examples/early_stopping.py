"""Early stopping inside the program: of thirty networks, each stops at its own epoch.

`fit_until` is a pure function, so `sweep` runs it at every learning rate from every seed as one
program. `fnn.train`, which shows its progress, stops at the same epoch with the same parameters.

python examples/early_stopping.py [--quick]
"""

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

import fnn

DIGITS = fnn.datasets.digits()
FEW = jax.tree.map(lambda a: a[:200], DIGITS.train)  # few rows, so that the network overfits
STOP = fnn.EarlyStopping("val_loss", patience=8, min_delta=1e-3)


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x), labels)


def validate(ts, rows):
    def metrics(batch):
        logits = fnn.mlp(ts.params, batch[0])
        right = fnn.accuracy(logits, batch[1])
        return {"loss": fnn.cross_entropy(logits, batch[1]), "accuracy": right}

    return fnn.evaluate(metrics, rows, 512)


def start(key, learning_rate):
    step = fnn.make_train_step(loss_fn, fnn.adam(learning_rate))
    return step, step.init(fnn.mlp_init(key, (64, 64, 10)))


def main(quick: bool = False) -> None:
    """Sweep with early stopping, then repeat one of the runs with `train`."""
    most = 20 if quick else 200
    rates = jnp.array([1e-4, 1e-3, 3e-3, 1e-2, 3e-2])

    def run(key, learning_rate):
        step, ts = start(key, learning_rate)
        progress, _ = fnn.fit_until(
            step, ts, FEW, key, STOP,
            epochs=most, batch_size=50, validate=validate, validation=DIGITS.valid,
        )  # fmt: skip
        last = validate(progress.last, DIGITS.valid)["loss"]
        return progress.epochs, progress.best.epoch, progress.best.value, last

    seeds = 2 if quick else 6
    keys = jax.random.split(jax.random.key(0), seeds)
    epochs, best, best_loss, last_loss = fnn.sweep(run, keys, {"learning_rate": rates})
    table = Table(caption=f"{seeds} seeds a rate; at most {most} epochs")
    for column in ("rate", "stopped after", "best epoch", "loss there", "loss at the end"):
        table.add_column(column, justify="right")
    for i, rate in enumerate(rates):
        cells = [f"{n[:, i].min()} to {n[:, i].max()}" for n in (epochs, best)]
        cells += [f"{loss[:, i].mean():.3f}" for loss in (best_loss, last_loss)]
        table.add_row(f"{rate:g}", *cells)
    Console().print(table)

    step, ts = start(keys[0], rates[3])
    watched = fnn.train(
        step, ts, FEW, keys[0], stop=STOP,
        epochs=most, batch_size=50, validate=validate, validation=DIGITS.valid, progress=False,
    )  # fmt: skip
    print(f"the first seed at {rates[3]:g}, watched: {watched.epochs} epochs,", end=" ")
    print(f"result.stopped is {watched.stopped!r};")
    print(f"in the sweep: {epochs[0, 3]} epochs")


if __name__ == "__main__":
    tyro.cli(main)
