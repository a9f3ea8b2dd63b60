"""Claim: on 2 cores a sweep of 64 members is at least 1.6 times as fast as 64 programs that run
one after another, and at least 3 times as fast as 64 Python loops.

The 64-128-128-10 net on 1,437 digits, batch 64, 10 epochs of 22 steps, Adam; 8 seeds x 8 learning
rates; n = 5 interleaved rounds, warm. On an accelerator a sweep of 1,024 members (32 x 32) is
timed beside the 64, without loops. On a CPU each core is one JAX device.

    python benchmarks/sweep.py

Device: any. 2 CPU cores (AMD EPYC), jax 0.10.2: see benchmarks/README.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
from timing import interleaved, machine, show

import fnn

EPOCHS, BATCH, STEPS = 10, 64, 22
SIZES = (64, 128, 128, 10)
digits = fnn.datasets.digits()
x, labels = (np.concatenate(parts) for parts in zip(digits.train, digits.valid, strict=True))


def loss_fn(params, batch, key):
    return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])


def step_of(learning_rate):
    return fnn.make_train_step(loss_fn, fnn.adam(learning_rate))


def init(key):
    return step_of(0.0).init(fnn.mlp_init(key, SIZES))


def run(key, learning_rate):
    init_key, fit_key = jax.random.split(key)
    data, step = (x, labels), step_of(learning_rate)
    ts = step.init(fnn.mlp_init(init_key, SIZES))
    return fnn.fit(step, ts, data, fit_key, epochs=EPOCHS, batch_size=BATCH, tail="drop")


def main() -> None:
    fnn.use_all_cores()

    def grid(n):
        return jax.random.split(jax.random.key(0), n), jnp.geomspace(1e-4, 1e-2, n)

    solo, jit_init = jax.jit(run), jax.jit(init)
    jit_step = jax.jit(lambda ts, batch, key, rate: step_of(rate)(ts, batch, key), donate_argnums=0)
    rng = np.random.default_rng(0)

    def sweep(n):
        keys, rates = grid(n)
        return fnn.sweep(run, keys, {"learning_rate": rates})

    def programs():
        keys, rates = grid(8)
        return [solo(key, rate) for key in keys for rate in rates]

    def loops():
        keys, rates = grid(8)
        for key in keys:
            for rate in rates:
                ts = jit_init(key)
                for _ in range(EPOCHS):
                    for rows in rng.permutation(len(x))[: STEPS * BATCH].reshape(STEPS, BATCH):
                        ts, _ = jit_step(ts, (x[rows], labels[rows]), key, rate)
                jax.block_until_ready(ts)

    print(machine())
    works = {
        "sweep of 64": lambda: sweep(8),
        "64 programs one after another": programs,
        "64 Python loops": loops,
    }
    show("64 runs, warm", interleaved(works, n=5), "sweep of 64")
    if jax.default_backend() != "cpu":
        wide = {"sweep of 64": lambda: sweep(8), "sweep of 1,024": lambda: sweep(32)}
        show("wider, warm", interleaved(wide, n=5), "sweep of 64")


if __name__ == "__main__":
    main()
