"""The same bits on any number of devices and processes: the last line is a digest of the run.

A network with batch norm, dropout and clipping is trained on all devices that there are. The last
batch of an epoch is not full. Compare

JAX_NUM_CPU_DEVICES=1 python examples/same_bits.py
JAX_NUM_CPU_DEVICES=8 python examples/same_bits.py

and two processes of four devices each, started beside each other:

JAX_NUM_CPU_DEVICES=4 python examples/same_bits.py --address localhost:1234 --count 2 --index 0
JAX_NUM_CPU_DEVICES=4 python examples/same_bits.py --address localhost:1234 --count 2 --index 1

python examples/same_bits.py [--quick] [--address HOST:PORT --count COUNT --index INDEX]
"""

import hashlib
import os

import jax
import numpy as np
import tyro

import fnn

# XLA cuts large sums on a CPU by the number of threads. This is the same number everywhere.
os.environ.setdefault("NPROC", "8")

DIGITS = fnn.datasets.digits()
SHARES = 8


def init(key):
    first, last = jax.random.split(key)
    norm, state = fnn.batch_norm_init(64)
    hidden, logits = fnn.dense_init(first, 64, 64), fnn.dense_init(last, 64, 10)
    return {"hidden": hidden, "norm": norm, "logits": logits}, state


def loss_fn(params, state, batch, key):
    x, labels = batch
    h = fnn.dense(params["hidden"], x)
    h, state = fnn.batch_norm(params["norm"], state, h, train=True)
    h = fnn.dropout(key, fnn.relu(h), rate=0.3)
    return fnn.cross_entropy(fnn.dense(params["logits"], h), labels), state


def train(epochs: int) -> fnn.training.Result:
    step = fnn.make_train_step(loss_fn, fnn.adamw(3e-3), clip_norm=1.0)
    step = fnn.data_parallel(step, shares=SHARES)
    ts = step.init(*init(jax.random.key(0)))
    options = {"epochs": epochs, "batch_size": 100, "progress": False}  # 77 rows are left over
    return fnn.train(step, ts, DIGITS.train, jax.random.key(1), **options)


def digest(tree) -> str:
    """The sha256 of all numbers, the first 16 of its digits."""
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def main(
    quick: bool = False, address: str | None = None, count: int | None = None, index: int = 0
) -> None:
    """Train on all devices of all processes; print the number of devices and the digest."""
    if address is not None:
        fnn.training.start_processes(address, count, index)
    result = train(epochs=2 if quick else 20)
    if jax.process_index() == 0:
        print(f"loss of the last step {result.history['loss'][-1, -1]:.4f}")
        print(f"devices {jax.device_count()} digest {digest((result.last, result.history))}")


if __name__ == "__main__":
    tyro.cli(main)
