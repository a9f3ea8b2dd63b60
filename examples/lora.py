"""Fine-tuning by LoRA: adapters of low rank on the dense layers that a path pattern chooses.

The weights w [in, out] of a pretrained net stay as they are. An adapter adds to w a product of rank
r, down [in, r] times up [r, out], and only down and up are trained (Hu et al. 2021). In the end
the product is merged into w, so the net is as fast as before and needs no code for adapters.

The net is pretrained on digits. The new task is the same digits lying on their side, of which there
are 100. Beside LoRA: the pretrained net as it is, and the fine-tuning of all weights.

python examples/lora.py [--quick]
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import fnn

DIGITS = fnn.datasets.digits()
SIZES = (64, 128, 128, 10)
RATES = jnp.array([1e-3, 3e-3, 1e-2, 3e-2])


def lora_init(key, params, patterns, rank):
    """{path: {"down": [in, rank], "up": [rank, out]}} for each weight [in, out] that matches.

    `up` is zero, so at first the net is the pretrained net.
    """
    weights = {path: w for path, w in fnn.params.paths(params).items() if w.ndim == 2}
    chosen = [p for p in weights if any(fnn.params.path_matches(each, p) for each in patterns)]
    if not chosen:
        raise ValueError(f"lora_init: {patterns} match no dense weight of {list(weights)}")
    keys = dict(zip(chosen, jax.random.split(key, len(chosen)), strict=True))

    def adapter(path, rows, columns):
        down = fnn.glorot_uniform(keys[path], (rows, rank))
        return {"down": down, "up": jnp.zeros((rank, columns))}

    return {path: adapter(path, *weights[path].shape) for path in chosen}


def merge(params, adapters, scale=1.0):
    """params with w + scale down @ up for each adapter: plain params again."""

    def merged(keys, w):
        adapter = adapters.get(fnn.params.path_of(keys))
        return w if adapter is None else w + scale * adapter["down"] @ adapter["up"]

    return jax.tree_util.tree_map_with_path(merged, params)


def apart(params, adapters, x):
    """The net with its adapters beside it, layer by layer: what `merge` must be equal to."""
    for name in params:
        adapter = adapters.get(f"{name}/w")
        y = fnn.dense(params[name], x)
        y = y if adapter is None else y + x @ adapter["down"] @ adapter["up"]
        x = y if name == list(params)[-1] else fnn.relu(y)
    return x


def on_its_side(rows):
    x, labels = rows
    return jnp.rot90(x.reshape(-1, 8, 8), axes=(1, 2)).reshape(x.shape), labels


def accuracy(params, rows):
    return fnn.accuracy(fnn.mlp(params, rows[0]), rows[1]).mean()


def train(net_of, trained, rows, key, learning_rate, epochs):
    """The params that `net_of` makes of what is trained."""

    def loss_fn(trained, batch, key):
        return fnn.cross_entropy(fnn.mlp(net_of(trained), batch[0]), batch[1])

    step = fnn.make_train_step(loss_fn, fnn.adam(learning_rate), clip_norm=1.0)
    ts, _ = fnn.fit(step, step.init(trained), rows, key, epochs=epochs, batch_size=50)
    return ts.params


def best_rate(net_of, init, rows, tested, seeds, epochs):
    """(rate, what was trained from the first seed, mean accuracy on each of `tested`).

    The rate is the one with the best mean accuracy on the first of them, the validation rows.
    """

    def run(key, learning_rate):
        trained = train(net_of, init(key), rows, key, learning_rate, epochs)
        net = net_of(trained)
        return trained, jnp.stack([accuracy(net, each) for each in tested])

    keys = jax.random.split(jax.random.key(1), seeds)
    trained, accuracies = fnn.sweep(run, keys, {"learning_rate": RATES})
    mean = accuracies.mean(0)  # [rates, tested]
    best = int(mean[:, 0].argmax())
    return RATES[best], jax.tree.map(lambda leaf: leaf[0, best], trained), mean[best]


def main(quick: bool = False) -> None:
    """Pretrain, fine-tune in four ways at the rate that is best on validation rows, and compare."""
    epochs, seeds = (5, 2) if quick else (60, 8)
    new, valid, test = map(on_its_side, (DIGITS.train, DIGITS.valid, DIGITS.test))
    few = jax.tree.map(lambda a: a[:100], new)
    key = jax.random.key(0)
    start = fnn.mlp_init(key, SIZES)
    pretrained = jax.jit(lambda: train(lambda p: p, start, DIGITS.train, key, 3e-3, 10))()
    before = [f"{100 * accuracy(pretrained, rows):.1f} %" for rows in (test, DIGITS.test)]

    def adapters(rank):
        return lambda key: lora_init(key, pretrained, ["layer_*/w"], rank=rank)

    ways: dict[str, Any] = {"all weights": (lambda params: params, lambda key: pretrained)}
    for rank in (1, 4, 16):
        ways[f"LoRA, rank {rank}"] = partial(merge, pretrained), adapters(rank)

    table = Table(caption=f"100 digits on their side, {epochs} epochs, means of {seeds} seeds")
    for column in ("fine-tuned", "numbers trained", "rate", "test rows, on their side", "upright"):
        table.add_column(column, justify="left" if column == "fine-tuned" else "right")
    table.add_row("nothing", "0", "", *before)
    trained = {}
    tested = valid, test, DIGITS.test
    for name, (net_of, init) in ways.items():
        rate, trained, means = best_rate(net_of, init, few, tested, seeds, epochs)
        cells = (f"{100 * mean:.1f} %" for mean in means[1:])
        table.add_row(name, f"{fnn.params.count(trained):,}", f"{rate:g}", *cells)
    Console().print(table)

    merged = fnn.mlp(merge(pretrained, trained), test[0])
    beside = apart(pretrained, trained, test[0])
    difference = np.abs(merged - beside).max() / np.abs(beside).max()
    print(f"outputs with the adapters merged and beside the weights: equal to {difference:.0e}")


if __name__ == "__main__":
    tyro.cli(main)
