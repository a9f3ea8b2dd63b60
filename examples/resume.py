"""A run that is killed and resumed ends bit for bit like an uninterrupted run.

Another process trains with a checkpoint after every chunk of epochs. It is killed by SIGKILL in the
middle of its run. The same call in this process resumes from its last checkpoint.

python examples/resume.py [--quick]
"""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import tyro

import fnn

DIGITS = fnn.datasets.digits()


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x, key=key, rate=0.3), labels)


def validate(ts, rows):
    def metrics(batch):
        logits = fnn.mlp(ts.params, batch[0])
        right = fnn.accuracy(logits, batch[1])
        return {"loss": fnn.cross_entropy(logits, batch[1]), "accuracy": right}

    return fnn.evaluate(metrics, rows, 512)


def run(folder, epochs, log=None):
    step = fnn.make_train_step(loss_fn, fnn.averaged(fnn.adamw(1e-3), 0.99), clip_norm=1.0)
    ts = step.init(fnn.mlp_init(jax.random.key(0), (64, 128, 10)))
    return fnn.train(
        step,
        ts,
        DIGITS.train,
        jax.random.key(1),
        epochs=epochs,
        batch_size=64,
        validate=validate,
        validation=DIGITS.valid,
        checkpoint=folder,
        checkpoint_seconds=0.0,
        log=log,
        progress=False,
    )


def killed(folder: Path, epochs: int) -> None:
    """Train in another process, and kill it when its first checkpoint exists."""
    program = f"from resume import *; run({str(folder)!r}, {epochs})"
    child = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parent)
    while child.poll() is None and not list(folder.glob("step_*.safetensors")):
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()


def main(quick: bool = False) -> None:
    """Kill a run, resume it, and compare it with an uninterrupted run."""
    epochs = 40 if quick else 400
    with tempfile.TemporaryDirectory() as folder:
        killed(Path(folder), epochs)
        left = sorted(path.name for path in Path(folder).glob("*.safetensors"))
        print(f"killed; it left {', '.join(left)}")
        resumed = run(folder, epochs)
    whole = run(None, epochs)
    assert resumed.best is not None
    ends = [(result.last, result.best, result.history) for result in (resumed, whole)]
    pairs = zip(*map(jax.tree.leaves, ends), strict=True)
    print(f"went on to epoch {resumed.epochs}; best epoch {int(resumed.best.epoch)}")
    print("parameters, moments, average, best, history: an uninterrupted run's, bit for bit:")
    print(all(np.array_equal(a, b) for a, b in pairs))


if __name__ == "__main__":
    tyro.cli(main)
