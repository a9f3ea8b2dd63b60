"""Equal layers as one scanned layer: compile time that does not grow with depth.

If a hundred layers are written one after another, XLA compiles a hundred layers. If their
parameters are stacked by `jax.vmap` over the keys, `jax.lax.scan` runs them as one layer, and XLA
compiles one. `jax.checkpoint` saves memory: it computes the activations again in the backward pass
instead of storing them.

python examples/deep.py [--quick]
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

import fnn

WIDTH = 32
KEY = jax.random.key(0)


def layer(params, x):
    return x + fnn.relu(fnn.dense(params, x))  # the residual is a plain addition


def init(depth):
    keys = jax.random.split(KEY, depth)
    return jax.vmap(lambda key: fnn.dense_init(key, WIDTH, WIDTH))(keys)  # leaves [depth, ...]


def unrolled(params, x):
    for i in range(len(params["w"])):
        x = layer(jax.tree.map(lambda leaf, i=i: leaf[i], params), x)
    return x


def scanned(params, x, layer=layer):
    return jax.lax.scan(lambda x, params: (layer(params, x), None), x, params)[0]


FORMS = {
    "unrolled": unrolled,
    "scanned": scanned,
    "rematerialised": partial(scanned, layer=jax.checkpoint(layer)),
}


def main(quick: bool = False) -> None:
    """Compile a training step of each form at each depth."""
    x = jnp.ones((256, WIDTH))
    table = Table(caption="one step of adam; batch 256, width 32")
    for column in ("depth", "", "compile, s", "temporary memory, MB"):
        table.add_column(column, justify="left" if column == "" else "right")
    for depth in (4, 16) if quick else (8, 32, 128):
        for name, apply in FORMS.items():
            step = fnn.make_train_step(lambda p, b, k, f=apply: f(p, b) ** 2, fnn.adam(1e-3))
            ts = step.init(init(depth))
            started = time.perf_counter()
            program = jax.jit(step).lower(ts, x, KEY).compile()
            seconds = time.perf_counter() - started
            sizes = program.memory_analysis()
            memory = f"{sizes.temp_size_in_bytes / 1e6:.1f}" if sizes else "unknown"
            table.add_row(f"{depth}", name, f"{seconds:.2f}", memory)
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
