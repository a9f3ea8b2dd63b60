"""Claim: a whole run as one program is at least 1.3 times as fast as the same step in a loop,
and takes at most 1.5 times as long to compile as the programs that the loop needs.

The 64-128-128-10 net on 1,437 digits, batch 64, 30 epochs of 22 steps, Adam at 0.001. The loop
calls the same step, jitted and donating, on batches cut in NumPy. n = 15 interleaved rounds, warm,
and 7 compilations of each program. Both sides compile init.

    python benchmarks/one_program.py

Device: any. 2 CPU cores (AMD EPYC), jax 0.10.2: see benchmarks/README.md.
"""

import jax
import numpy as np
from timing import compile_seconds, interleaved, machine, show

import fnn

EPOCHS, BATCH, STEPS = 30, 64, 22
digits = fnn.datasets.digits()
x, labels = (np.concatenate(parts) for parts in zip(digits.train, digits.valid, strict=True))


def loss_fn(params, batch, key):
    return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])


step = fnn.make_train_step(loss_fn, fnn.adam(1e-3))


def init(key):
    return step.init(fnn.mlp_init(key, (64, 128, 128, 10)))


def run(key):
    init_key, fit_key = jax.random.split(key)
    data = (x, labels)
    return fnn.fit(
        step, init(init_key), data, fit_key, epochs=EPOCHS, batch_size=BATCH, tail="drop"
    )


def main() -> None:
    key = jax.random.key(0)
    ts, batch = init(key), (x[:BATCH], labels[:BATCH])

    def jit_run():
        return jax.jit(lambda key: run(key)).lower(key).compile()

    def jit_init():
        return jax.jit(lambda key: init(key)).lower(key).compile()

    def jit_step():
        donating = jax.jit(lambda *a: step(*a), donate_argnums=0)
        return donating.lower(ts, batch, key).compile()

    one_program, loop_init, loop_step = jit_run(), jit_init(), jit_step()
    rng = np.random.default_rng(0)

    def loop():
        ts, losses = loop_init(key), []
        for _ in range(EPOCHS):
            for rows in rng.permutation(len(x))[: STEPS * BATCH].reshape(STEPS, BATCH):
                ts, metrics = loop_step(ts, (x[rows], labels[rows]), key)
                losses.append(metrics["loss"])
        return ts, losses

    print(machine())
    works = {"one program": lambda: one_program(key), "jitted step in a loop": loop}
    show("run, warm", interleaved(works, n=15), "one program")
    compiles = {"one program": compile_seconds(jit_run, 7), "step": compile_seconds(jit_step, 7)}
    inits = compile_seconds(jit_init, 7)
    compiles["init + step"] = [a + b for a, b in zip(inits, compiles["step"], strict=True)]
    show("compile", compiles, "init + step")


if __name__ == "__main__":
    main()
