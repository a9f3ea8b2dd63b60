"""The README's program, complete: train one classifier on digits, then many at once.

python examples/mlp_digits.py [--quick]
"""

import jax
import jax.numpy as jnp
import tyro

import fnn

data = fnn.datasets.digits()


def init(key):
    k1, k2 = jax.random.split(key)
    return {"hidden": fnn.dense_init(k1, 64, 128), "logits": fnn.dense_init(k2, 128, 10)}


def apply(params, x, *, key=None):
    x = fnn.relu(fnn.dense(params["hidden"], x))
    return fnn.dense(params["logits"], fnn.dropout(key, x, rate=0.5))


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(apply(params, x, key=key), labels)


def accuracy(params, rows):
    return fnn.evaluate(lambda batch: fnn.accuracy(apply(params, batch[0]), batch[1]), rows, 512)


def main(quick: bool = False) -> None:
    """Train one network and print its losses; train 24 at once and print accuracies by rate."""
    epochs = 3 if quick else 30

    def run(key, learning_rate):
        init_key, fit_key = jax.random.split(key)
        step = fnn.make_train_step(loss_fn, fnn.adam(learning_rate), clip_norm=1.0)
        ts = step.init(init(init_key))
        ts, history = fnn.fit(step, ts, data.train, fit_key, epochs=epochs, batch_size=64)
        return ts, history, accuracy(ts.params, data.valid), accuracy(ts.params, data.test)

    ts, history, _, test = jax.jit(run)(jax.random.key(0), 3e-3)
    fnn.check_finite(history, ts.params)
    for epoch in range(0, epochs, max(1, epochs // 6)):
        print(f"epoch {epoch:2}: training loss {history['loss'][epoch].mean():.3f}")
    print(f"{fnn.params.count(ts.params):,} parameters, test accuracy {100 * test:.1f} %\n")

    rates = jnp.array([1e-3, 3e-3, 1e-2])
    keys = jax.random.split(jax.random.key(1), 8)
    _, _, valid, test = fnn.sweep(run, keys, {"learning_rate": rates})
    for i, rate in enumerate(rates):
        print(
            f"rate {rate:g}: 8 seeds, validation {100 * valid[:, i].mean():.1f} %,"
            f" test {100 * test[:, i].min():.1f} to {100 * test[:, i].max():.1f} %"
        )


if __name__ == "__main__":
    tyro.cli(main)
