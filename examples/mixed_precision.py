"""Half precision: computed in it, stored in it, and the cost in loss, accuracy and memory.

float16 needs a loss scale, bfloat16 does not. The parameters are stored:

- in float32, and only the computation is in half precision;
- in bfloat16;
- in bfloat16, beside float32 copies;
- in bfloat16, and updates are rounded at random.

On a CPU half precision saves memory and no time.

python examples/mixed_precision.py [--quick]
"""

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

import fnn

DIGITS = fnn.datasets.digits()
RATE = 1e-3


def loss_fn(params, batch, key):
    x, labels = batch
    x = x.astype(jax.tree.leaves(params)[0].dtype)
    return fnn.cross_entropy(fnn.mlp(params, x), labels)


def accuracy(params):
    def right(batch):
        x = batch[0].astype(jax.tree.leaves(params)[0].dtype)
        return fnn.accuracy(fnn.mlp(params, x), batch[1])

    return fnn.evaluate(right, DIGITS.test, 512)


WAYS = {  # stored dtype, computed dtype, optimizer, initial loss scale
    "float32": (jnp.float32, None, fnn.adam(RATE), None),
    "bfloat16 computed": (jnp.float32, jnp.bfloat16, fnn.adam(RATE), None),
    "float16 computed, loss scaled": (jnp.float32, jnp.float16, fnn.adam(RATE), 2.0**15),
    "bfloat16 stored": (jnp.bfloat16, None, fnn.adam(RATE), None),
    "bfloat16 stored, float32 copies": (
        jnp.bfloat16,
        None,
        fnn.keep_precision(fnn.adam(RATE), "master"),
        None,
    ),
    "bfloat16 stored, rounded at random": (
        jnp.bfloat16,
        None,
        fnn.keep_precision(fnn.adam(RATE), "stochastic", key=jax.random.key(2)),
        None,
    ),
}


def main(quick: bool = False) -> None:
    """Train the same net in each way, and compare."""
    epochs = 3 if quick else 40
    table = Table()
    for column in ("", "last loss", "test accuracy, %", "bytes of state a parameter"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, (stored, computed, optimizer, scale) in list(WAYS.items())[:: 2 if quick else 1]:
        step = fnn.make_train_step(loss_fn, optimizer, compute_dtype=computed, loss_scale=scale)
        params = fnn.mlp_init(jax.random.key(0), (64, 128, 10), dtype=stored)
        ts = step.init(params)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((ts.params, ts.opt_state)))

        @jax.jit
        def run(ts, step=step):
            ts, history = fnn.fit(
                step, ts, DIGITS.train, jax.random.key(1), epochs=epochs, batch_size=64
            )
            return history["loss"][-1].mean(), accuracy(ts.params)

        loss, right = run(ts)
        bytes_each = f"{size / fnn.params.count(params):.1f}"
        table.add_row(name, f"{loss:.4f}", f"{100 * right:.1f}", bytes_each)
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
