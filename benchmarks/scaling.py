"""Claim: what a step on many devices sends and holds is what theory says, up to 256 devices.

Compiles a training step for 16 to 256 chips of a TPU v5e or 8 to 64 H100, on a machine that has
neither, in three layouts: `fnn.data_parallel`, and `fnn.training.sharded` fully sharded and tensor
parallel over 8 devices. Counts each device's collectives, their bytes, and its memory. A formula
for each of these stands beside the count. From the formulas and published peak figures follows the
time of a step on 1 to 10,000 devices: an estimate, nothing is run.

    python benchmarks/scaling.py                        # the tables, from scaling.json
    pip install "jax[cuda13]" "jax[tpu]"                # the compilers, 4.5 GB and 0.3 GB
    python benchmarks/scaling.py --compile cuda         # compiles, and keeps counts in scaling.json
    python benchmarks/scaling.py --compile tpu

Work: 784-512-512-10 at 64 rows a device, and one transformer block of width 256 with embeddings at
8 rows of 128 tokens a device; float32, Adam, clip_norm. Device: any.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

if __name__ == "__main__":
    import kernels  # noqa: F401  # before JAX: it sets what the compilers need

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fnn

KEPT = Path(__file__).with_name("scaling.json")
P = PartitionSpec
MODEL = 8  # devices of the axis "model"
SMALL = 1024  # numbers below which `sharded` leaves a leaf whole
Layout = Literal["data parallel", "fully sharded", "tensor parallel"]
LAYOUTS: tuple[Layout, ...] = ("data parallel", "fully sharded", "tensor parallel")
SIZES = {"cuda": (8, 64), "tpu": (16, 256)}
TOPOLOGIES = {("cuda", 8): "1x1x8", ("cuda", 64): "1x8x8"} | {
    ("tpu", d): f"v5e:{math.isqrt(d)}x{math.isqrt(d)}" for d in (16, 256)
}


# --- the nets -------------------------------------------------------------------------------------


class Net(NamedTuple):
    """A net, a batch of one device, and how it is split."""

    init: Callable[[], Any]
    loss_fn: Callable[..., Any]
    batch: Callable[[int], Any]  # rows -> shapes
    rows: int  # a device
    rules: dict[str, PartitionSpec]
    activations: int  # all-reduces of activations when tensor parallel
    width: int  # numbers of an activation, a row


def mlp_loss(params: Any, batch: Any, key: Any) -> Any:
    return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])


def mlp_batch(rows: int) -> Any:
    return jax.ShapeDtypeStruct((rows, 784), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.int32)


TIME, DIM, HEADS, VOCABULARY = 128, 256, 8, 512


def block_init() -> Any:
    return {
        "tokens": {"w": jnp.zeros((VOCABULARY, DIM))},
        "positions": {"w": jnp.zeros((TIME, DIM))},
        "block": fnn.transformer_block_init(jax.random.key(0), DIM, HEADS),
    }


def block_loss(params: Any, batch: Any, key: Any) -> Any:
    x = params["tokens"]["w"][batch[0]] + params["positions"]["w"]
    x = fnn.transformer_block(params["block"], x, causal=True)
    return fnn.cross_entropy(x @ params["tokens"]["w"].T, batch[1])


def block_batch(rows: int) -> Any:
    return (jax.ShapeDtypeStruct((rows, TIME), jnp.int32),) * 2


INTO, OUT_OF = ("query", "key", "value", "layer_0"), ("output", "layer_1")
NETS = {
    "MLP": Net(
        lambda: fnn.mlp_init(jax.random.key(0), (784, 512, 512, 10)),
        mlp_loss,
        mlp_batch,
        64,
        {"layer_0/w": P(None, "model"), "layer_0/b": P("model"), "layer_1/w": P("model")},
        1,
        512,
    ),
    "transformer": Net(
        block_init,
        block_loss,
        block_batch,
        8,
        {f"**/{name}/w": P(None, "model") for name in INTO}
        | {f"**/{name}/b": P("model") for name in INTO}
        | {f"**/{name}/w": P("model") for name in OUT_OF},
        4,
        TIME * DIM,
    ),
}


# --- what theory says -----------------------------------------------------------------------------


class Traffic(NamedTuple):
    """Of one step, on one device: bytes of the arrays that are gathered or reduced, and held."""

    gathered: int  # all-gather: what each device has afterwards
    scattered: int  # reduce-scatter: what each device gives
    reduced: int  # all-reduce
    held: int  # parameters, two moments, and the rows of the batch


def leaves(net: Net) -> dict[str, int]:
    """{path: numbers}."""
    shapes = jax.tree_util.tree_leaves_with_path(jax.eval_shape(net.init))
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): math.prod(leaf.shape)
        for keys, leaf in shapes
    }


def theory(net: Net, layout: str, devices: int, scatters: bool = True) -> Traffic:
    """float32; `scatters`: whether the compiler makes a reduce-scatter of all-reduce and cut."""
    sizes = leaves(net)
    batch = sum(4 * math.prod(x.shape) for x in jax.tree.leaves(net.batch(net.rows)))
    whole = 4 * sum(sizes.values())
    if layout == "data parallel":
        return Traffic(0, 0, whole, 3 * whole + batch)
    if layout == "fully sharded":
        large = 4 * sum(size for size in sizes.values() if size >= SMALL)
        held = 3 * (large // devices + whole - large) + batch
        if scatters:
            return Traffic(large, large, whole - large, held)
        return Traffic(large, 0, whole, held)
    split = 4 * sum(n for path, n in sizes.items() if any(_ends(p, path) for p in net.rules))
    here = whole - split + split // MODEL
    activations = 4 * net.activations * MODEL * net.rows * net.width
    gradients = here if devices > MODEL else 0
    return Traffic(0, 0, gradients + activations, 3 * here + MODEL * batch)


def _ends(pattern: str, path: str) -> bool:
    return f"/{path}".endswith("/" + pattern.removeprefix("**/"))


# --- what is compiled -----------------------------------------------------------------------------


def compiled(platform: str, net: Net, layout: Layout, devices: int) -> Any:
    """The step, compiled for devices that are not here."""
    step = fnn.make_train_step(net.loss_fn, fnn.adam(1e-3), clip_norm=1.0)
    there = _devices(platform, devices)
    if layout == "data parallel":
        split: Any = fnn.data_parallel(step, list(there))
    elif layout == "fully sharded":
        split = fnn.training.sharded(step, mesh=Mesh(np.array(there), ("data",)))
    else:
        mesh = Mesh(np.array(there).reshape(-1, MODEL), ("data", "model"))
        split = fnn.training.sharded(step, net.rules, mesh)
    whole = NamedSharding(split.mesh, P())
    params = _on(whole, jax.eval_shape(net.init))
    ts = _on(whole, jax.eval_shape(step.init, params))
    if layout != "data parallel":
        where = jax.jit(split.init).lower(params).compile().output_shardings
        ts = jax.tree.map(lambda x, at: _on(at, x), ts, where)
    batch = _on(
        NamedSharding(split.mesh, P(split.mesh.axis_names[0])), net.batch(net.rows * devices)
    )
    key = _on(whole, jax.eval_shape(lambda: jax.random.key(0)))
    return jax.jit(split.update, donate_argnums=0).lower(ts, batch, key).compile()


def _on(sharding: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _devices(platform: str, devices: int) -> Any:
    from jax.experimental import topologies

    jax.devices()  # the CPU's, so that the plugin looks for no device of its own
    topology = TOPOLOGIES[platform, devices]
    if platform == "tpu":
        return topologies.get_topology_desc(topology, "tpu").devices
    target = KEPT.with_name("h100.txtpb").read_text()
    described = topologies.get_topology_desc(
        platform="cuda", target_config=target, topology=topology
    )
    return described.devices


class Counts(NamedTuple):
    """Of one device's program. Collectives of integers or of single numbers are counted apart."""

    gathers: int
    gathered: int  # bytes
    scatters: int
    scattered: int
    reduces: int
    reduced: int
    permutes: int  # rings in which a TPU scatters a product's parts while it is made; bytes unknown
    flags: int  # the others: what is not finite, the parts of the norm
    arguments: int  # bytes: the train state, the batch, the key
    temporary: int


def counts(program: Any, data_devices: int) -> Counts:
    found = list(_collectives(program.as_text(), data_devices))
    number = Counter(kind for kind, _ in found)
    full = {kind: sum(size for other, size in found if other == kind) for kind in number}
    memory = program.memory_analysis()
    return Counts(
        gathers=number["gather"],
        gathered=full.get("gather", 0),
        scatters=number["scatter"],
        scattered=full.get("scatter", 0),
        reduces=number["reduce"],
        reduced=full.get("reduce", 0),
        permutes=number["permute"],
        flags=number["flags"],
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
    )


LINE = r"= (\(.*\)|\S+) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"


def _collectives(text: str, data_devices: int) -> Iterator[tuple[str, int]]:
    """(kind, bytes of the whole arrays). A TPU's program may name one several times, in parts."""
    seen = set()
    for shape, kind, start, rest in re.findall(LINE + r"(-start)?\((.*)", text):
        channel = re.search(r"channel_id=(\d+)", rest)
        if channel and channel[1] in seen:
            continue
        seen.add(channel and channel[1])
        arrays = [
            (dtype, math.prod(int(n) for n in axes.split(",") if n))
            for dtype, axes in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
        ]
        if kind == "collective-permute":
            yield "permute", 0
            continue
        if any(dtype != "f32" for dtype, _ in arrays) or all(size == 1 for _, size in arrays):
            yield "flags", 0
            continue
        full = 4 * sum(size for _, size in arrays if size > 1)
        if start and kind != "all-reduce":  # operands and results: parts and whole arrays
            full = full * data_devices // (data_devices + 1)
        elif kind == "reduce-scatter":
            full *= data_devices
        yield kind.split("-")[1], full


# --- time, as an estimate -------------------------------------------------------------------------


class Device(NamedTuple):
    """Published peak figures, and two assumptions: latencies."""

    name: str
    flops: float  # bfloat16, dense
    memory: float  # bytes a second
    capacity: float  # bytes
    near: int  # devices that the fast links join
    link: float  # bytes a second that a device sends over the fast links
    far: float  # bytes a second, a device, between such groups
    near_latency: float  # seconds a step of a ring: assumed
    far_latency: float


# NVIDIA, "H100 Tensor Core GPU" data sheet, SXM: 989 TFLOP/s, 3.35 TB/s, 80 GB, NVLink 900 GB/s in
# both directions; a DGX H100 has an adapter of 400 Gb/s for each GPU. Google Cloud, "TPU v5e": 197
# TFLOP/s, 819 GB/s, 16 GB, 1,600 Gb/s between chips, a torus of 256 chips, 6.4 Tb/s from a pod to
# the data center.
H100 = Device("H100", 989e12, 3.35e12, 80e9, 8, 450e9, 50e9, 2e-6, 10e-6)
V5E = Device("v5e", 197e12, 819e9, 16e9, 256, 200e9, 6.4e12 / 8 / 256, 1e-6, 20e-6)


def ring(sent: float, devices: int, link: float, latency: float) -> float:
    """Seconds of an all-reduce: 2 (d - 1) / d of the bytes, in 2 (d - 1) steps."""
    steps = 2 * (devices - 1)
    return steps / devices * sent / link + steps * latency


def all_reduce(device: Device, sent: float, devices: int) -> float:
    """Among near devices by rings, along two axes if there are more than 8; then between groups."""
    near = min(devices, device.near)
    sides = (math.isqrt(near), math.isqrt(near)) if near > 8 else (near, 1)
    seconds = ring(sent, near, device.link, 0) if near > 1 else 0.0
    seconds += sum(2 * (side - 1) * device.near_latency for side in sides)
    groups = math.ceil(devices / device.near)
    return seconds + ring(sent / near, groups, device.far, device.far_latency)


class Estimate(NamedTuple):
    """Seconds of one step, not overlapped; and the share of them that is computing."""

    compute: float
    memory: float
    reduce: float

    @property
    def efficiency(self) -> float:
        busy = max(self.compute, self.memory)
        return busy / (busy + self.reduce)


def estimate(device: Device, params: float, tokens: float, devices: int) -> Estimate:
    """Data parallel; `tokens` are a device's rows, or rows times time. bfloat16 products.

    Compute: 6 flops a parameter and token. Memory: Adam reads and writes 7 arrays, the products
    read the parameters 3 times.
    """
    compute = 6 * params * tokens / device.flops
    memory = (7 + 3) * 4 * params / device.memory
    return Estimate(compute, memory, all_reduce(device, 4 * params, devices))


def tokens_to_hide(device: Device, params: float, devices: int) -> float:
    """Tokens a device from which the products take as long as the all-reduce."""
    return all_reduce(device, 4 * params, devices) * device.flops / (6 * params)


# --- tables ---------------------------------------------------------------------------------------


def kept() -> dict[str, Any]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def _mb(number: float) -> str:
    return f"{number / 1e6:,.2f}"


def programs() -> Iterator[tuple[str, str, str, int, Counts, Traffic]]:
    """(platform, net, layout, devices, what was counted, what theory says)."""
    for platform in SIZES:
        for key, row in kept().get(platform, {}).get("programs", {}).items():
            net, layout, devices = key.split(", ")
            found = Counts(**row)
            said = theory(NETS[net], layout, int(devices), found.scatters > 0)
            yield platform, net, layout, int(devices), found, said


def counted_table() -> list[str]:
    """A row a program: MB of its collectives and the number of these, and MB that it holds."""
    rows = [
        "| net | devices | layout | all-gather | reduce-scatter | all-reduce | permutes"
        " | arguments: counted, theory | temporary |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = {"cuda": "H100", "tpu": "v5e"}
    for platform, net, layout, devices, found, said in programs():
        moved = (
            f"{_mb(size)} in {number}" if number else "-"
            for number, size in zip(found[0:6:2], found[1:6:2], strict=True)
        )
        held = f"{_mb(found.arguments)}, {_mb(said.held)}"
        rows.append(
            f"| {net} | {devices} {names[platform]} | {layout} | {' | '.join(moved)}"
            f" | {found.permutes or '-'} | {held}"
            f" | {_mb(found.temporary)} |"
        )
    return rows


def estimated_table() -> list[str]:
    """Data parallel: milliseconds to compute, for memory and to reduce; the share of computing."""
    rows = [
        "| parameters, tokens a device | devices | H100: compute, memory, all-reduce ms | busy"
        " | v5e: compute, memory, all-reduce ms | busy |",
        "|---|---|---|---|---|---|",
    ]
    for params, tokens in ((0.67e6, 64), (124e6, 8192), (1e9, 8192)):
        for devices in (1, 8, 64, 256, 1024, 10_000):
            cells = [f"{params / 1e6:,.4g} M, {tokens:,}", f"{devices:,}"]
            for device in (H100, V5E):
                found = estimate(device, params, tokens, devices)
                times = ", ".join(f"{1e3 * seconds:.3g}" for seconds in found)
                cells += [times, f"{100 * found.efficiency:.0f} %"]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def hiding_table() -> list[str]:
    """The tokens a device from which the products take as long as the all-reduce."""
    sizes = (8, 64, 256, 1024, 10_000)
    heads = " | ".join(f"{devices:,}" for devices in sizes)
    rows = [f"| parameters, device | {heads} |", "|---|" + "---|" * len(sizes)]
    for params in (0.67e6, 124e6, 1e9):
        for device in (H100, V5E):
            tokens = [tokens_to_hide(device, params, devices) for devices in sizes]
            cells = " | ".join(f"{float(f'{number:.2g}'):,.0f}" for number in tokens)
            rows.append(f"| {params / 1e6:,.4g} M, {device.name} | {cells} |")
    return rows


def main(compile: Literal["cuda", "tpu", ""] = "", only: str = "") -> None:
    """Print the tables; with `compile`, count first. `only`: programs whose names contain it."""
    if compile:
        for devices in SIZES[compile]:
            for name, net in NETS.items():
                for layout in LAYOUTS:
                    key = f"{name}, {layout}, {devices}"
                    if only not in key:
                        continue
                    over = devices // MODEL if layout == "tensor parallel" else devices
                    row = counts(compiled(compile, net, layout, devices), over)
                    print(key, row, flush=True)
                    rows = kept()
                    here = rows.setdefault(compile, {"programs": {}})
                    here["jax"] = jax.__version__
                    here["programs"][key] = row._asdict()
                    KEPT.write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join([*counted_table(), "", *estimated_table(), "", *hiding_table()]))


if __name__ == "__main__":
    tyro.cli(main)
