"""fnn's and Optax's optimizers combined in four ways, on digits.

python examples/with_optax.py [--quick]
"""

import jax
import optax
import tyro

import fnn

data = fnn.datasets.digits()


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x), labels)


def main(quick: bool = False) -> None:
    """Train with each optimizer, and print the test accuracy."""
    epochs = 2 if quick else 20
    steps = epochs * 17
    ways = {
        "fnn's Adam": fnn.adam(3e-3),
        "Optax's Lion in fnn's training": optax.lion(3e-4),
        "fnn's Adam under Optax's schedule": fnn.adam(
            optax.schedules.warmup_cosine_decay_schedule(0.0, 1e-2, steps // 10, steps)
        ),
        "fnn's Adam inside Optax's combinators": optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.apply_if_finite(fnn.adam(3e-3), max_consecutive_errors=5),
        ),
        "Optax's clipping in fnn's chain": fnn.chain(
            optax.adaptive_grad_clip(0.1), fnn.momentum(0.1)
        ),
    }
    for name, optimizer in ways.items():

        @jax.jit
        def run(key, optimizer=optimizer):
            init_key, fit_key = jax.random.split(key)
            step = fnn.make_train_step(loss_fn, optimizer)
            ts = step.init(fnn.mlp_init(init_key, (64, 128, 10)))
            ts, _ = fnn.fit(step, ts, data.train, fit_key, epochs=epochs, batch_size=64)
            x, labels = data.test
            return fnn.accuracy(fnn.mlp(ts.params, x), labels).mean()

        print(f"{name:45} {100 * run(jax.random.key(0)):.1f} %")


if __name__ == "__main__":
    tyro.cli(main)
