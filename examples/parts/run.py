"""A search over hidden sizes and learning rates, any part of it by any process.

python examples/parts/run.py [--folder FOLDER] [--part I --parts N] [--quick]

Without --parts it runs everything. With --part 2 --parts 4 it runs the third of four shares. All
parts may run at the same time, on any machines that share the folder; each can be killed and
started again. The process that finds all parts done prints the best point. slurm.sh, loop.sh and
on_ray.py start the parts.
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import tyro

import fnn
from fnn.search import population, read_population

DATA = fnn.datasets.digits()


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x, key=key, rate=0.2), labels)


def run(key, learning_rate, hidden, epochs):
    """-> accuracy on the validation rows of one network, and its losses."""
    init_key, fit_key = jax.random.split(key)
    step = fnn.make_train_step(loss_fn, fnn.adam(learning_rate))
    ts = step.init(fnn.mlp_init(init_key, (64, *hidden, 10)))
    ts, history = fnn.fit(step, ts, DATA.train, fit_key, epochs=epochs, batch_size=64)
    x, labels = DATA.valid
    right = fnn.accuracy(fnn.mlp(ts.params, x), labels)
    return {"valid_accuracy": right.mean(), "history": history}


def last_numbers(result):
    return {
        "valid_accuracy": result["valid_accuracy"],
        "loss": result["history"]["loss"][-1].mean(),
    }


def search(folder, part, parts, quick=False):
    """Run one part. What is done in the folder is not done again."""
    grid = {
        "hidden": [(32,)] if quick else [(64,), (128,), (128, 64)],
        "learning_rate": np.geomspace(1e-3, 1e-1, 4 if quick else 8),
    }
    keys = jax.random.split(jax.random.key(0), 2 if quick else 8)
    one = partial(run, epochs=2 if quick else 20)
    return population(one, keys, grid, keep=last_numbers, folder=folder, part=(part, parts))


def main(
    folder: Path = Path("out/parts"), part: int = 0, parts: int = 1, quick: bool = False
) -> None:
    """Run one part of the search; say what is missing, or the best point."""
    fnn.use_all_cores()
    search(folder, part, parts, quick)
    found = read_population(folder)
    print(found)
    if not found.missing:
        best = found.best("valid_accuracy")
        print(f"{best.point}: {best.mean:.3f}, 95 % interval {best.low:.3f} to {best.high:.3f}")


if __name__ == "__main__":
    tyro.cli(main)
