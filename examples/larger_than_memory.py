"""Training on files that are read one batch at a time, and resuming a stopped run.

python examples/larger_than_memory.py [--quick]      if Grain is installed, with Grain too
"""

import importlib.util
import tempfile
from pathlib import Path

import jax
import numpy as np
import tyro

import fnn
from fnn.training import stream

SHARDS, BATCH = 8, 64
KEY = jax.random.key(0)


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x, key=key, rate=0.2), labels)


STEP = fnn.make_train_step(loss_fn, fnn.adam(3e-3))


def write_shards(folder, copies):
    """Write digits with noise, `copies` times as many, as several pairs of files: x and labels."""
    x, labels = fnn.datasets.digits().train
    for i in range(SHARDS):
        rng = np.random.default_rng(i)
        rows = rng.integers(0, len(x), copies * len(x) // SHARDS)
        noisy = x[rows] + rng.normal(0, 0.1, (len(rows), 64)).astype(np.float32)
        np.save(folder / f"x_{i}.npy", noisy)
        np.save(folder / f"labels_{i}.npy", labels[rows])


def shards_of(folder):
    """The files as memory maps: rows are read from disk when they are indexed."""
    names = [(folder / f"x_{i}.npy", folder / f"labels_{i}.npy") for i in range(SHARDS)]
    return [tuple(np.load(name, mmap_mode="r") for name in pair) for pair in names]


def batches(shards, start=0):
    """Endless batches, from batch number `start`. Each epoch shuffles the shards and their rows.

    A batch depends on its number alone, so the batches can start at any number.
    """
    ends = np.cumsum([-(-len(labels) // BATCH) for _, labels in shards])
    for epoch in range(start // ends[-1], 1 << 30):
        rng, place = np.random.default_rng(epoch), epoch * ends[-1]
        for x, labels in (shards[i] for i in rng.permutation(len(shards))):
            order = rng.permutation(len(labels))
            for i in range(0, len(order), BATCH):
                if place >= start:
                    rows = np.sort(order[i : i + BATCH])  # read in the order of the file
                    yield x[rows], labels[rows]
                place += 1


def fresh():
    return STEP.init(fnn.mlp_init(KEY, (64, 128, 10)))


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def with_numpy(shards, steps):
    """Train a whole run; train a second run that stops halfway and resumes from its train state."""
    whole, history = fnn.train_on_batches(STEP, fresh(), batches(shards), KEY, steps=steps)
    for i in range(0, steps, max(1, steps // 5)):
        print(f"step {i:5}: loss {history['loss'][i]:.3f}")
    half, _ = fnn.train_on_batches(STEP, fresh(), batches(shards), KEY, steps=steps // 2)
    rest = batches(shards, start=int(half.step))
    ts, _ = fnn.train_on_batches(STEP, half, rest, KEY, steps=steps - steps // 2, batch_size=BATCH)
    print(f"stopped at step {steps // 2} and gone on: the same bits, {equal(whole, ts)}\n")
    return whole


def with_grain(shards, steps):
    """The same with Grain, whose iterators have a position; the position is plain text."""
    import grain  # pyright: ignore[reportMissingImports]

    class Rows:
        """Rows by their number, counted over all files."""

        starts = np.cumsum([0, *(len(labels) for _, labels in shards)])

        def __len__(self):
            return int(self.starts[-1])

        def __getitem__(self, row):
            shard = np.searchsorted(self.starts, row, side="right") - 1
            x, labels = shards[shard]
            return x[row - self.starts[shard]], labels[row - self.starts[shard]]

    def iterator():
        rows = grain.MapDataset.source(Rows()).seed(0).shuffle().repeat()
        return iter(rows.batch(BATCH, drop_remainder=True).to_iter_dataset())

    whole, _ = fnn.train_on_batches(STEP, fresh(), iterator(), KEY, steps=steps)
    first, second = iterator(), iterator()
    half, _ = fnn.train_on_batches(STEP, fresh(), first, KEY, steps=steps // 2)
    saved = stream.get_position(first)  # store it in the checkpoint, beside the train state
    stream.set_position(second, saved)
    ts, _ = fnn.train_on_batches(STEP, half, second, KEY, steps=steps - steps // 2)
    print(f"Grain, stopped at {saved} and gone on: the same bits, {equal(whole, ts)}")


def main(quick: bool = False) -> None:
    """Write files, train on them one batch at a time, stop and resume, and test."""
    steps = 60 if quick else 1500
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, copies=4 if quick else 100)
        shards = shards_of(folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        at_once = (2 + 1) * BATCH * (64 + 1) * 4
        print(f"{size / 1e6:.1f} MB in {2 * SHARDS} files, {at_once / 1e6:.2f} MB read ahead\n")
        ts = with_numpy(shards, steps)
        if importlib.util.find_spec("grain"):
            with_grain(shards, steps)
        else:
            print("Grain is not installed: pip install 'fnn[grain]'")
    x, labels = fnn.datasets.digits().test
    right = fnn.accuracy(fnn.mlp(ts.params, x), labels).mean()
    print(f"\ntest accuracy {100 * right:.1f} %")


if __name__ == "__main__":
    tyro.cli(main)
