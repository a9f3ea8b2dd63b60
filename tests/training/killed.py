"""For `test_train.py`: a run that is killed with SIGKILL at random, and goes on, until it is done.

``python -m tests.training.killed FOLDER KILLS`` exits with 1 if the end is not, bit for bit, that
of a run that nobody killed. Its processes are forked from one that has imported everything and
started no backend, and share compiled programs: six lives in seconds.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import numpy as np

import fnn

EPOCHS = 300
SECONDS_OF_AN_EPOCH = 0.002  # at least: a life is some epochs, most of whose time is a save


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child


def run(folder: Path, **options):
    """A run with dropout and validation, an epoch at a time."""
    # Imported in the child: it makes arrays, and arrays start the backend.
    from tests.nets import KEY, LABELS, X, linear_dropout_loss_fn, linear_init, linear_loss_fn

    def validate(ts, data):
        loss = fnn.evaluate(lambda batch: linear_loss_fn(ts.params, batch, None), data, 10)
        return {"loss": loss}

    fnn.training._train.CHUNK_SECONDS = 0.0
    step = fnn.make_train_step(linear_dropout_loss_fn, fnn.adamw(0.01), clip_norm=1.0)
    train, valid = (X[:80], LABELS[:80]), (X[80:], LABELS[80:])
    options = {
        "epochs": EPOCHS,
        "batch_size": 16,
        "validate": validate,
        "progress": False,
    } | options
    ts = step.init(linear_init())
    return fnn.train(step, ts, train, KEY, validation=valid, checkpoint=folder, **options)


def killed_once(folder: Path, rng: random.Random) -> None:
    """One life: killed a random moment after its first epoch."""
    reads, writes = os.pipe()

    def log(epoch: int, metrics: dict[str, float]) -> None:
        os.write(writes, b".")
        time.sleep(SECONDS_OF_AN_EPOCH)

    def live() -> None:
        run(folder, checkpoint_seconds=0.0, log=log)

    child = forked(live)
    os.close(writes)
    assert os.read(reads, 1), "the run did not begin, or had ended before"
    os.close(reads)
    time.sleep(rng.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def compare(killed: Path, whole: Path) -> None:
    ends = []
    for folder in (killed, whole):
        result = run(folder)
        assert result.epochs == EPOCHS
        ends.append(({"last": result.last, "best": result.best}, result.history))
    chex.assert_trees_all_equal(ends[0][0], ends[1][0])
    for name, values in ends[1][1].items():
        np.testing.assert_array_equal(ends[0][1][name], values)


def main(folder: Path, kills: int) -> None:
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    rng = random.Random(0)
    _, status = os.waitpid(forked(lambda: run(folder / "whole", checkpoint_seconds=1e9)), 0)
    assert status == 0
    for _ in range(kills):
        killed_once(folder / "killed", rng)
    _, status = os.waitpid(forked(lambda: compare(folder / "killed", folder / "whole")), 0)
    assert status == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
