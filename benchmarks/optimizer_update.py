"""Claim: fnn.adam's update is as fast as optax.adam's, within 10 %, for one large array up to 2,000
tiny arrays. It moves the same bytes in the same kernels, except for one copy of a scalar.

One jitted update and apply, with donated parameters and state, on

- (a) one array of 10 million float32,
- (b) the 161 arrays of ResNet-50,
- (c) 2,000 arrays of 64 elements in 4 shapes;

n = 21 interleaved rounds, 3 compilations. The ideal update reads g, p, m, v and writes p, m, v: 7
arrays. A copy of 3.5 arrays into donated memory moves the same bytes; "of copy" is the time of this
copy divided by the time of the update. Kernels are the instructions of the compiled entry that do
work. "arrays moved" is the compiler's estimate of the moved bytes divided by the bytes of the
parameters; the estimate counts a slice as its whole array. Seconds to compile are shown without a
claim. PyTorch's Adam is timed if PyTorch is installed. The benchmark takes about 6 minutes, nearly
all of them to compile (c).

    python benchmarks/optimizer_update.py

Device: any. 2 CPU cores (AMD EPYC), jax 0.10.2: see benchmarks/README.md.
"""

import importlib
import math
import re
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from timing import interleaved, machine, seconds, show

import fnn

Shapes = list[tuple[int, ...]]
ROUNDS, COMPILATIONS, IDEAL = 21, 3, 7
OPTIMIZERS = {
    "fnn.adam": fnn.adam(1e-3),
    "optax.adam": optax.adam(1e-3),
    "optax.flatten": optax.flatten(optax.adam(1e-3)),
}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


def resnet50() -> Iterator[tuple[int, ...]]:
    def conv(size: int, n_in: int, n_out: int) -> Shapes:
        return [(size, size, n_in, n_out), (n_out,), (n_out,)]  # a convolution and a batch norm

    yield from conv(7, 3, 64)
    n_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from conv(1, n_in, width) + conv(3, width, width) + conv(1, width, 4 * width)
            yield from conv(1, n_in, 4 * width) if block == 0 else []
            n_in = 4 * width
    yield from [(n_in, 1000), (1000,)]


SETS: dict[str, Shapes] = {
    "10M": [(10_000_000,)],
    "ResNet-50": list(resnet50()),
    "2,000 tiny": [(64,), (8, 8), (16, 4), (2, 32)] * 500,
}


def arrays(shapes: Shapes, seed: int) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(s, np.float32)) for s in shapes]


def compiled(optimizer: fnn.Optimizer, shapes: Shapes) -> Any:
    def update(params: Any, state: Any, grads: Any) -> Any:
        # Arguments are in the order of the results, because donation matches them in order.
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    state = jax.eval_shape(optimizer.init, params)
    return jax.jit(update, donate_argnums=(0, 1)).lower(params, state, params).compile()


def updating(program: Any, optimizer: fnn.Optimizer, shapes: Shapes) -> Callable[[], Any]:
    grads, params = arrays(shapes, 0), arrays(shapes, 1)
    held = [params, optimizer.init(params)]

    def work() -> Any:
        held[:] = program(*held, grads)
        return held

    return work


def copying(total: int) -> dict[str, Callable[[], Any]]:
    """A copy, and a scaling in place: each moves as many bytes as the ideal update."""
    half = IDEAL * total // 2
    copy = jax.jit(lambda x, into: jnp.copy(x), donate_argnums=1, keep_unused=True)
    scale = jax.jit(lambda x, by: x * by, donate_argnums=0)
    x, held = jnp.ones(half), {"copy": jnp.ones(half), "scale": jnp.ones(half)}

    def copy_work() -> Any:
        held["copy"] = copy(x, held["copy"])
        return held["copy"]

    def scale_work() -> Any:
        held["scale"] = scale(held["scale"], 1.0)
        return held["scale"]

    return {"copy": copy_work, "scale in place": scale_work}


def torch_adams(shapes: Shapes) -> dict[str, Callable[[], Any]]:
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return {}

    def work(**how: bool) -> Callable[[], Any]:
        params = [torch.randn(s, requires_grad=True) for s in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        step = torch.optim.Adam(params, 1e-3, **how).step
        return lambda: step()

    ways = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    return {f"torch, CPU, {name}": work(**how) for name, how in ways.items()}


def kernels(program: Any) -> dict[str, int]:
    """{kind: number of instructions of this kind in the compiled entry}, if the kind does work."""
    entry = program.as_text().partition("\nENTRY ")[2].partition("\n}")[0]
    found = re.findall(r"^\s+(?:ROOT )?%?\S+ = (?:\(.*?\)|\S+) ([\w-]+)\(", entry, re.MULTILINE)
    kinds = [kind for kind in found if kind not in FREE]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def show_counts(title: str, programs: dict[str, Any], total: int) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("", "arrays moved", "temp MB", "kernels", "of them"):
        table.add_column(column, justify="left" if column in ("", "of them") else "right")
    for name, program in programs.items():
        moved = program.cost_analysis()["bytes accessed"] / (4 * total)
        temporary = program.memory_analysis().temp_size_in_bytes / 1e6
        kinds = kernels(program)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        cells = (f"{moved:.4g}", f"{temporary:.3g}", f"{sum(kinds.values())}", listed)
        table.add_row(name, *cells)
    Console().print(table)


def show_bandwidth(title: str, times: dict[str, list[float]], total: int) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("", "GB/s", "of copy"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, values in times.items():
        speed = IDEAL * 4 * total / statistics.median(values) / 1e9
        ratios = [copy / v for v, copy in zip(values, times["copy"], strict=True)]
        table.add_row(name, f"{speed:.3g}", f"{statistics.median(ratios):.2g}")
    Console().print(table)


def main() -> None:
    print(machine())
    for optimizer in OPTIMIZERS.values():  # loads what a process loads only once
        compiled(optimizer, [(8,)])
    for name, shapes in SETS.items():
        total = sum(map(math.prod, shapes))
        print(f"\n{name}: {total:,} parameters, arrays: {len(shapes):,}\n")
        programs: dict[str, Any] = {}

        def build(which: str, shapes: Shapes = shapes, programs: Any = programs) -> None:
            programs[which] = compiled(OPTIMIZERS[which], shapes)

        rounds = [
            {which: seconds(lambda w=which: build(w)) for which in OPTIMIZERS}
            for _ in range(COMPILATIONS)
        ]
        compiles = {which: [r[which] for r in rounds] for which in OPTIMIZERS}
        works = {w: updating(programs[w], o, shapes) for w, o in OPTIMIZERS.items()}
        times = interleaved(works | copying(total) | torch_adams(shapes), ROUNDS)
        show("update, warm", times, "optax.adam")
        show_bandwidth("ideal bytes a second", times, total)
        show("trace, lower and compile", compiles, "optax.adam")
        show_counts("the compiled program", programs, total)


if __name__ == "__main__":
    main()
