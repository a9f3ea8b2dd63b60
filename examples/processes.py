"""One run on the devices of several processes, each of which reads its own share of the rows.

python examples/processes.py [--quick]                                  one process
python examples/processes.py --local 2 [--quick]                        two on this machine
srun --ntasks 8 python examples/processes.py                            under SLURM, found by JAX
python examples/processes.py --address host0:1234 --count 2 --index 0   by hand, on each machine

If Grain is installed, it shuffles and reads the rows.
"""

import importlib.util
import itertools
import socket
import subprocess
import sys

import jax
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fnn

BATCH = 64  # rows of a step, of all processes together


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x, key=key, rate=0.2), labels)


STEP = fnn.make_train_step(loss_fn, fnn.adam(3e-3))


def with_numpy(x, labels, rows):
    """Endless batches of this process's share: every epoch deals all rows anew to the processes."""
    index, count = jax.process_index(), jax.process_count()
    for epoch in itertools.count():
        mine = np.random.default_rng(epoch).permutation(len(x))[index::count]
        for i in range(0, len(x) // count - rows + 1, rows):
            yield x[mine[i : i + rows]], labels[mine[i : i + rows]]


def with_grain(x, labels, rows):
    """The same by Grain: shuffled as a whole, and then every count-th row from the index on."""
    import grain  # pyright: ignore[reportMissingImports]

    class Rows:
        def __len__(self):
            return len(x)

        def __getitem__(self, row):
            return x[row], labels[row]

    shuffled = grain.MapDataset.source(Rows()).seed(0).shuffle()
    mine = shuffled[jax.process_index() :: jax.process_count()].repeat()
    return iter(mine.batch(rows, drop_remainder=True).to_iter_dataset())


def run(quick):
    """Train; every process ends with the same parameters, and process 0 says how good they are."""
    steps, pieces = (30, 2) if quick else (200, 5)
    x, labels = fnn.datasets.digits().train
    source = with_grain if importlib.util.find_spec("grain") else with_numpy
    batches = source(x, labels, BATCH // jax.process_count())
    # `train_on_batches` puts the rows of each process on its devices: together they are the batch.
    sharding = NamedSharding(Mesh(jax.devices(), ("batch",)), PartitionSpec("batch"))
    key = jax.random.key(0)
    ts = STEP.init(fnn.mlp_init(key, (64, 128, 10)))
    for _ in range(pieces):  # a signal to any process ends all of them between two pieces
        ts, history = fnn.train_on_batches(STEP, ts, batches, key, steps=steps, sharding=sharding)
        if not history:
            break
        if jax.process_index() == 0:
            print(f"step {int(ts.step)}: loss {history['loss'].mean():.3f}")
    # NumPy arrays, on every process: what follows is the work of this process alone.
    params = fnn.training.fetch(ts.params)
    if jax.process_index() == 0:
        x, labels = fnn.datasets.digits().test
        right = fnn.accuracy(fnn.mlp(params, x), labels).mean()
        print(f"processes: {jax.process_count()}, test accuracy {100 * right:.1f} %")


def start_local(count, options):
    """This script, `count` times."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    own = [sys.executable, __file__, *options, "--address", address, "--count", str(count)]
    started = [subprocess.Popen([*own, "--index", str(index)]) for index in range(count)]
    sys.exit(max(process.wait() for process in started))


def main(
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
    local: int = 0,
    quick: bool = False,
) -> None:
    """Train digits on the devices of all processes."""
    if local:
        start_local(local, ["--quick"] if quick else [])
    fnn.training.start_processes(address, count, index)
    run(quick)


if __name__ == "__main__":
    tyro.cli(main)
