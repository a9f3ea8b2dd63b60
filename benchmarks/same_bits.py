"""The cost of the same bits: `data_parallel(step, shares=8)` against what it replaces.

python benchmarks/same_bits.py [--rounds ROUNDS] [--width WIDTH] [--rows ROWS]

Prints the time of an epoch on one device and on all, with and without shares, interleaved; and what
the devices exchange in a step, counted in the compiled program: collectives, and bytes a device.
"""

import re
from collections import Counter
from functools import partial

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from timing import interleaved, machine, show

import fnn

jax.config.update("jax_num_cpu_devices", 8)
KEY = jax.random.key
BATCH, SHARES = 256, 8
BITS = {"f32": 32, "s32": 32, "u32": 32, "pred": 8, "f64": 64, "bf16": 16}


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x, key=key, rate=0.2), labels)


def exchanged(step, ts, batch) -> tuple[Counter[str], int]:
    """How many collectives of each kind a step has, and the bytes of their results."""
    text = jax.jit(step.update).lower(ts, batch, KEY(0)).compile().as_text() or ""
    kinds: Counter[str] = Counter()
    size = 0
    named = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    for shape, kind in re.findall(rf"= (\(.*?\)|\S+) ({named})(?:-start)?\(", text):
        kinds[kind] += 1
        for dtype, axes in re.findall(r"(\w+)\[([\d,]*)\]", shape):
            size += BITS[dtype] // 8 * int(np.prod([int(n) for n in axes.split(",") if n]))
    return kinds, size


def main(rounds: int = 9, width: int = 256, rows: int = 8192) -> None:
    """Print both tables."""
    step = fnn.make_train_step(loss_fn, fnn.adam(1e-3), clip_norm=1.0)
    first = fnn.mlp_init(KEY(0), (64, width, width, 10))
    x = np.random.default_rng(0).normal(size=(rows, 64)).astype(np.float32)
    data = x, (x[:, :10].argmax(-1)).astype(np.int32)
    devices = jax.devices()
    steps = {
        "one device": step,
        f"one device, {SHARES} shares": fnn.data_parallel(step, devices[:1], shares=SHARES),
        f"{len(devices)} devices": fnn.data_parallel(step),
        f"{len(devices)} devices, {SHARES} shares": fnn.data_parallel(step, shares=SHARES),
    }

    def work(step):
        ts = step.init(first)
        fit = partial(fnn.fit, step, epochs=1, batch_size=BATCH)
        run = jax.jit(lambda ts, data: fit(ts, data, KEY(1)))
        return lambda: jax.block_until_ready(run(ts, data))

    print(machine())
    gradient = 4 * fnn.params.count(first)
    print(f"{gradient / 4:,.0f} parameters; a gradient has {gradient:,} bytes\n")
    works = {name: work(step) for name, step in steps.items()}
    title = f"An epoch of {rows:,} rows, batches of {BATCH}"
    show(title, interleaved(works, rounds), "one device")
    table = Table(title="What a step exchanges", title_justify="left")
    for column in ("", "collectives", "bytes of their results", "gradients"):
        table.add_column(column)
    batch = data[0][:BATCH], data[1][:BATCH]
    for name, step in steps.items():
        kinds, size = exchanged(step, step.init(first), batch)
        told = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "none"
        table.add_row(name, told, f"{size:,}", f"{size / gradient:.2f}")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
