"""Claim: on an H100 fnn's safe step has no conditional, and few kernels more than plain Optax.

A small net on a GPU is bound by launches, so the number of kernels is its time. This file compiles
for an H100 or a TPU v5e, on a machine that has neither, and counts in the compiled program:

- kernels of a step, the innermost loop of the run, products and copies included
- launches of an epoch beside its steps: the shuffle, mostly
- conditionals, for each of which a GPU's host waits
- megabytes that the kernels of a step read and write, and temporary memory
- collectives of a step, and the megabytes that each device gives to them: `fnn.data_parallel` is
  compiled for 8 H100 and for 16 v5e chips

Counts are exact for one version of the compiler; autotuning is off, because it needs the device.
No time is known. The compilers are not among fnn's dependencies (4.5 GB and 0.3 GB):

    pip install "jax[cuda13]" "jax[tpu]"
    python benchmarks/kernels.py                 # prints what kernels.json should be compared with
    python benchmarks/kernels.py --platform tpu
    python benchmarks/kernels.py --write         # and keeps the counts in kernels.json

Device: any; nothing is run.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import Array, lax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from rich.console import Console
from rich.table import Table

import fnn

HERE = Path(__file__).parent
KEY = jax.random.key(0)
Platform = Literal["cuda", "tpu"]


# --- compiling for what is not here ---------------------------------------------------------------


def devices(platform: Platform, many: bool = False) -> Any:
    """One H100 or the chips of a v5e host; 8 H100 or 16 v5e chips, if `many`."""
    jax.devices()  # the CPU's, so that the plugin looks for no device of its own
    if platform == "tpu":
        return topologies.get_topology_desc("v5e:4x4" if many else "v5e:2x2", "tpu").devices
    described = topologies.get_topology_desc(
        platform="cuda",
        target_config=(HERE / "h100.txtpb").read_text(),
        topology="1x1x8" if many else "1x1x1",
    )
    return described.devices


def compiled(sharding: Sharding, fn: Callable[..., Any], *args: Any) -> Any:
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=sharding), args
    )
    return jax.jit(fn).lower(*shapes).compile()


# --- counting -------------------------------------------------------------------------------------

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Loop(NamedTuple):
    """What one turn of a loop is made of, without the loops inside it. A program is one turn."""

    trips: int
    kernels: int
    conditionals: int
    bytes: int
    collectives: int
    sent: int  # bytes
    inner: list["Loop"]


class Counts(NamedTuple):
    """A row of the table."""

    kernels: int  # of a step
    launches: int  # of an epoch, beside those of its steps
    conditionals: int
    megabytes: float  # moved by a step
    temporary_mb: float
    collectives: int
    collective_mb: float


def computations(text: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
    """{computation: [(shape, operation, line)]}, and the name of the first that runs."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    name = entry = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*{$|(ENTRY )?%?([\w.\-]+) {$", line)
        if head and not line.startswith(" "):
            name = head[2] or head[4]
            found[name] = []
            entry = name if line.startswith("ENTRY") else entry
        body = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(", line)
        if body and name:
            found[name].append((body[1], body[2], line))
    return found, entry


def size(shape: str) -> int:
    total = 0
    for dtype, axes in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        total += SIZES.get(dtype, 4) * math.prod(int(n) for n in axes.split(",") if n)
    return total


def loops(text: str) -> Loop:
    found, entry = computations(text)
    shapes = {
        re.match(r"\s+(?:ROOT )?%?([\w.\-]+) =", line)[1]: shape  # type: ignore[index]
        for lines in found.values()
        for shape, _, line in lines
    }

    def called(line: str, *kinds: str) -> Iterator[str]:
        for kind in kinds:
            for names in re.findall(rf"{kind}={{?([%\w.\-, ]+)}}?", line):
                yield from (name.strip().lstrip("%") for name in names.split(","))

    def count(name: str, trips: int) -> Loop:
        kernels = conditionals = moved = collectives = sent = 0
        inner: list[Loop] = []
        for shape, operation, line in found.get(name, []):
            if operation == "while":
                known = re.search(r"known_trip_count\D*(\d+)", line)
                body = next(called(line, "body"))
                inner.append(count(body, int(known[1]) if known else 1))
            elif operation == "conditional":
                conditionals += 1
                inner += [
                    count(branch, 1)
                    for branch in called(
                        line, "branch_computations", "true_computation", "false_computation"
                    )
                ]
            elif operation == "call" or (operation == "async-start" and "calls=" in line):
                part = count(next(called(line, "to_apply", "calls")), 1)
                kernels += part.kernels
                moved += part.bytes
                inner += part.inner
            elif operation not in FREE and not operation.endswith("-done"):
                kernels += 1
                operands = re.findall(r"%([\w.\-]+)", line.split("(", 1)[1].split("), ")[0])
                moved += size(shape) + sum(size(shapes.get(name, "")) for name in operands)
                if operation.startswith(COLLECTIVES):
                    collectives += 1
                    sent += size(shape)
        return Loop(trips, kernels, conditionals, moved, collectives, sent, inner)

    return count(entry, 1)


def counts(program: Any, depth: int) -> Counts:
    """`depth` is the number of loops around a step: 2 in a run, 0 in a step alone."""
    loop = loops(program.as_text())
    for _ in range(depth - 1):
        loop = max(loop.inner, key=lambda inner: inner.trips * total(inner).kernels)
    step = max(loop.inner, key=lambda i: i.kernels) if depth else loop
    beside = [inner for inner in loop.inner if inner is not step]
    launches = loop.kernels + sum(i.trips * total(i).kernels for i in beside) if depth else 0
    whole, memory = total(step), program.memory_analysis()
    return Counts(
        whole.kernels,
        launches,
        whole.conditionals,
        round(step.bytes / 1e6, 2),
        round(memory.temp_size_in_bytes / 1e6, 2),
        whole.collectives,
        round(whole.sent / 1e6, 4),
    )


def total(loop: Loop) -> Loop:
    """With what its inner loops launch, each turn counted."""
    kernels, conditionals, moved, collectives, sent = loop[1:6]
    for inner in loop.inner:
        whole = total(inner)
        kernels += inner.trips * whole.kernels
        conditionals += inner.trips * whole.conditionals
        moved += inner.trips * whole.bytes
        collectives += inner.trips * whole.collectives
        sent += inner.trips * whole.sent
    return Loop(loop.trips, kernels, conditionals, moved, collectives, sent, [])


# --- the programs ---------------------------------------------------------------------------------

DATA = jax.tree.map(jnp.asarray, fnn.datasets.digits().train)
ROWS, BATCH, EPOCHS = len(DATA[1]), 64, 30
PARAMS = fnn.mlp_init(KEY, (64, 128, 128, 10))


def mlp_loss(params: Any, batch: Any, key: Array) -> Array:
    return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])


def plain(params: Any, data: Any) -> Any:
    """What a careful user writes: two scans over Optax's Adam, the history of the loss."""
    optimizer = optax.adam(1e-3)

    def step(carry: Any, rows: Array) -> Any:
        params, state = carry
        batch = fnn.data.take(data, rows)
        loss, grads = jax.value_and_grad(lambda p: mlp_loss(p, batch, KEY).mean())(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    def epoch(carry: Any, number: Array) -> Any:
        order = jax.random.permutation(jax.random.fold_in(KEY, number), ROWS)
        return lax.scan(step, carry, order[: ROWS // BATCH * BATCH].reshape(-1, BATCH))

    return lax.scan(epoch, (params, optimizer.init(params)), jnp.arange(EPOCHS))


def run(split_over: Any = None, **options: Any) -> tuple[Callable[..., Any], Any]:
    step = fnn.make_train_step(mlp_loss, fnn.adam(1e-3), **options)
    taken = step if split_over is None else fnn.data_parallel(step, split_over)

    def fit(ts: Any, data: Any) -> Any:
        return fnn.fit(taken, ts, data, KEY, epochs=EPOCHS, batch_size=BATCH)

    return fit, step.init(PARAMS)


def members(tree: Any, number: int) -> Any:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *jnp.shape(x))), tree)


def conv_step(split_over: Any = None, **options: Any) -> tuple[Callable[..., Any], Any, Any]:
    k1, k2, k3, k4 = jax.random.split(KEY, 4)
    norms = [fnn.batch_norm_init(n) for n in (32, 64)]
    params = {
        "conv": [fnn.conv_init(k1, 1, 32, (3, 3)), fnn.conv_init(k2, 32, 64, (3, 3))],
        "norm": [p for p, _ in norms],
        "dense": [fnn.dense_init(k3, 7 * 7 * 64, 128), fnn.dense_init(k4, 128, 10)],
    }

    def loss_fn(params: Any, state: Any, batch: Any, key: Array) -> Any:
        x, new = batch[0], []
        for conv, norm, old in zip(params["conv"], params["norm"], state, strict=True):
            x, s = fnn.batch_norm(norm, old, fnn.conv(conv, x), train=True)
            x = fnn.max_pool(fnn.relu(x), (2, 2))
            new.append(s)
        x = fnn.relu(fnn.dense(params["dense"][0], x.reshape(len(x), -1)))
        return fnn.cross_entropy(fnn.dense(params["dense"][1], x), batch[1]), new

    step = fnn.make_train_step(loss_fn, fnn.adam(1e-3), **options)
    taken = step if split_over is None else fnn.data_parallel(step, split_over)
    batch = jnp.zeros((128, 28, 28, 1)), jnp.zeros(128, jnp.int32)
    return taken.update, step.init(params, [s for _, s in norms]), batch


def lstm_step() -> tuple[Callable[..., Any], Any, Any]:
    k1, k2, k3 = jax.random.split(KEY, 3)
    params = {
        "embed": fnn.embed_init(k1, 65, 64),
        "lstm": fnn.lstm_init(k2, 64, 128),
        "out": fnn.dense_init(k3, 128, 65),
    }

    def loss_fn(params: Any, batch: Any, key: Array) -> Array:
        _, x = fnn.lstm(params["lstm"], fnn.embed(params["embed"], batch[0]))
        return fnn.cross_entropy(fnn.dense(params["out"], x), batch[1])

    step = fnn.make_train_step(loss_fn, fnn.adam(1e-3))
    ids = jnp.zeros((32, 64), jnp.int32)
    return step.update, step.init(params), (ids, ids)


def plain_block(params: Any, x: Array) -> Array:
    """fnn's causal transformer block, written by jax.nn."""

    def norm(p: Any, x: Array) -> Array:
        return jax.nn.standardize(x, epsilon=1e-5) * p["scale"] + p["offset"]

    def dense(p: Any, x: Array) -> Array:
        return x @ p["w"] + p["b"]

    def heads(p: Any, x: Array) -> Array:
        return jnp.einsum("btd,dhe->bthe", x, p["w"]) + p["b"]

    a, mlp = params["attention"], params["mlp"]
    h = norm(params["attention_norm"], x)
    q, k, v = (heads(a[name], h) for name in ("query", "key", "value"))
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    x = x + jnp.einsum("bthe,hed->btd", y, a["output"]["w"]) + a["output"]["b"]
    h = dense(mlp["layer_0"], norm(params["mlp_norm"], x))
    return x + dense(mlp["layer_1"], jax.nn.gelu(h, approximate=False))


def block_steps() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """A step on one transformer block with nothing around it: by Optax and jax.nn, and by fnn."""
    params, x = fnn.transformer_block_init(KEY, 128, 4), jnp.zeros((32, 64, 128))
    optimizer = optax.adam(1e-3)

    def plain(params: Any, state: Any, x: Array) -> Any:
        def mean(params: Any) -> Array:
            return jnp.square(plain_block(params, x)).mean()

        loss, grads = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    def loss_fn(params: Any, x: Array, key: Array) -> Array:
        return jnp.square(fnn.transformer_block(params, x, causal=True)).mean(-1)

    step = fnn.make_train_step(loss_fn, fnn.adam(1e-3))
    return (plain, params, optimizer.init(params), x), (step.update, step.init(params), x, KEY)


def leaves(number: int, side: int) -> Any:
    return {f"{i}": jnp.zeros((side, side)) for i in range(number)}


def update_of(optimizer: Any, params: Any) -> tuple[Any, ...]:
    return optimizer.update, params, optimizer.init(params), params


def programs() -> dict[str, tuple[int, tuple[Any, ...]]]:
    """{name: (loops around a step, (function, *arguments))}."""
    fit, ts = run()
    plain_step, block_step = block_steps()
    half, _ = run(compute_dtype="bfloat16")
    some = leaves(305, 16)
    conv, conv_ts, images = conv_step()
    lstm, lstm_ts, text = lstm_step()
    return {
        "MLP: a plain scan over Optax": (2, (plain, PARAMS, DATA)),
        "MLP: fit": (2, (fit, ts, DATA)),
        "MLP: fit, nonfinite='ignore'": (2, (*run(nonfinite="ignore"), DATA)),
        "MLP: fit, clip_norm and update_ratio": (
            2,
            (*run(clip_norm=1.0, update_ratio=True), DATA),
        ),
        "1,024 MLPs: plain": (2, (jax.vmap(plain, (0, None)), members(PARAMS, 1024), DATA)),
        "1,024 MLPs: fit": (2, (jax.vmap(fit, (0, None)), members(ts, 1024), DATA)),
        "1,024 MLPs: fit in bfloat16": (2, (jax.vmap(half, (0, None)), members(ts, 1024), DATA)),
        "conv net with batch norm, a step": (0, (conv, conv_ts, images, KEY)),
        "LSTM, a step": (0, (lstm, lstm_ts, text, KEY)),
        "transformer block, a step: Optax and jax.nn": (0, plain_step),
        "transformer block, a step: fnn": (0, block_step),
        "Adam, 305 arrays: Optax": (0, update_of(optax.adam(1e-3), some)),
        "Adam, 305 arrays: fnn": (0, update_of(fnn.adam(1e-3), some)),
    }


def split_programs(over: Any) -> dict[str, tuple[int, tuple[Any, ...]]]:
    """As `programs`, each split over these devices.

    Theory has one all-reduce of a step: of the gradients and the loss, a number for each parameter
    and one. Batch norm has three for each layer: the mean, the variance about it, and their
    gradient, each of which needs the one before.
    """
    conv, conv_ts, images = conv_step(over, clip_norm=1.0)
    return {
        "many devices, MLP: fit, clip_norm": (2, (*run(over, clip_norm=1.0), DATA)),
        "many devices, conv net with batch norm, a step, clip_norm": (
            0,
            (conv, conv_ts, images, KEY),
        ),
    }


def measured(platform: Platform, wanted: Callable[[str], bool]) -> dict[str, Counts]:
    """The counts of the programs whose names are wanted."""
    over = devices(platform, many=True)
    one = SingleDeviceSharding(devices(platform)[0])
    all_of_them = NamedSharding(Mesh(np.array(over), ("batch",)), PartitionSpec())
    return {
        name: counts(compiled(sharding, *program), depth)
        for sharding, rows in ((one, programs()), (all_of_them, split_programs(over)))
        for name, (depth, program) in rows.items()
        if wanted(name)
    }


def main(platform: Platform = "cuda", only: str = "", write: bool = False) -> None:
    """Compile the programs for `platform` and print their counts; `write` keeps them.

    `only`: programs whose names contain it; the counts of the others stay.
    """
    rows = measured(platform, lambda name: only in name)
    table = Table(title=f"{platform}, jax {metadata.version('jax')}", title_justify="left")
    table.add_column("")
    for column in Counts._fields:
        table.add_column(column.replace("_", " "), justify="right")
    for name, row in rows.items():
        table.add_row(name, *(str(value) for value in row))
    Console(width=150).print(table)
    if write:
        path = HERE / "kernels.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        before = kept.get(platform, {}) if only else {}
        kept[platform] = (
            before
            | {"jax": metadata.version("jax")}
            | {name: row._asdict() for name, row in rows.items()}
        )
        path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
