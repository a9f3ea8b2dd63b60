"""A straight stack of layers as one value, in the manner of stax, on top of plain functions.

Here a layer is a pair: init(key, in_dim) -> (params, out_dim), and apply(params, x, key) -> y.
fnn itself does not use this style. The example shows that it takes few lines.

python examples/sequential.py [--quick]
"""

import jax
import tyro

import fnn


def dense(out_dim, **options):
    def init(key, in_dim):
        return fnn.dense_init(key, in_dim, out_dim, **options), out_dim

    return init, lambda params, x, key: fnn.dense(params, x)


def elementwise(fn):
    return lambda key, in_dim: ({}, in_dim), lambda params, x, key: fn(x)


def dropout(rate):
    return lambda key, in_dim: ({}, in_dim), lambda params, x, key: fnn.dropout(key, x, rate)


def sequential(*layers):
    inits, applies = zip(*layers, strict=True)
    names = [f"layer_{i:0{len(str(len(layers) - 1))}}" for i in range(len(layers))]

    def init(key, in_dim):
        params = {}
        for name, init, k in zip(names, inits, jax.random.split(key, len(names)), strict=True):
            params[name], in_dim = init(k, in_dim)
        return params, in_dim

    def apply(params, x, key=None):
        for name, apply, k in zip(names, applies, fnn.split(key, len(names)), strict=True):
            x = apply(params[name], x, k)
        return x

    return init, apply


def main(quick: bool = False) -> None:
    """Train a stack of layers on digits, and print its test accuracy."""
    init, apply = sequential(
        dense(128, w_init=fnn.kaiming_normal), elementwise(fnn.relu), dropout(0.2), dense(10)
    )
    data = fnn.datasets.digits()

    def loss_fn(params, batch, key):
        return fnn.cross_entropy(apply(params, batch[0], key), batch[1])

    @jax.jit
    def run(key):
        params, _ = init(key, 64)
        step = fnn.make_train_step(loss_fn, fnn.nesterov(0.1))
        ts = step.init(params)
        return fnn.fit(step, ts, data.train, key, epochs=2 if quick else 20, batch_size=64)

    ts, _ = run(jax.random.key(0))
    x, labels = data.test
    print(f"test accuracy {100 * fnn.accuracy(apply(ts.params, x), labels).mean():.1f} %")


if __name__ == "__main__":
    tyro.cli(main)
