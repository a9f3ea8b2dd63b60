"""Claim: on a CPU a conv net trained as one program is at least 5 times as fast with fnn's
gradient rules as with autodiff's, and at least 1.3 times as fast as the same step in a loop.

Random 28x28 images and labels (only time counts), two 3x3 convolutions (32, 64) with batch norm and
max pooling, two dense layers, batch 128, Adam at 0.001. "autodiff's gradients" replaces fnn's
convolution and pooling by XLA's and is the same otherwise. The loops call the jitted, donating step
on batches cut in NumPy. 31 steps, n = 3 interleaved rounds, warm. Autodiff in one program takes a
minute for 31 steps, so it is compared over 3 steps, n = 2.

    python benchmarks/conv.py

Device: any; only on a CPU the convolutions differ. 2 CPU cores: see benchmarks/README.md.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from timing import interleaved, machine, show

import fnn

BATCH, STEPS = 128, 31
rng = np.random.default_rng(0)
images = rng.uniform(size=(BATCH * STEPS, 28, 28, 1)).astype(np.float32)
labels = rng.integers(0, 10, BATCH * STEPS)


def autodiffs_conv(params, x):
    y = lax.conv_general_dilated(
        x, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + params["b"]


def autodiffs_max_pool(x, size):
    window = (1, size, size, 1)
    return lax.reduce_window(x, -np.inf, lax.max, window, window, "VALID")


def init(step, key):
    keys = jax.random.split(key, 4)
    norms = {"norm_1": fnn.batch_norm_init(32), "norm_2": fnn.batch_norm_init(64)}
    params = {name: params for name, (params, _) in norms.items()} | {
        "conv_1": fnn.conv_init(keys[0], 1, 32, 3),
        "conv_2": fnn.conv_init(keys[1], 32, 64, 3),
        "hidden": fnn.dense_init(keys[2], 7 * 7 * 64, 128),
        "logits": fnn.dense_init(keys[3], 128, 10),
    }
    state = {name: state for name, (_, state) in norms.items()}
    return step.init(params, state)


def make_step(conv, max_pool):
    def loss_fn(params, state, batch, key):
        x, labels = batch
        new = {}
        for i in ("1", "2"):
            name = f"norm_{i}"
            x = conv(params[f"conv_{i}"], x)
            x, new[name] = fnn.batch_norm(params[name], state[name], x, train=True)
            x = max_pool(jax.nn.relu(x), 2)
        x = jax.nn.relu(fnn.dense(params["hidden"], x.reshape(x.shape[0], -1)))
        return fnn.cross_entropy(fnn.dense(params["logits"], x), labels), new

    return fnn.make_train_step(loss_fn, fnn.adam(1e-3))


def one_program(step, steps=STEPS):
    def run(key, data):
        init_key, fit_key = jax.random.split(key)
        return fnn.fit(step, init(step, init_key), data, fit_key, epochs=1, batch_size=BATCH)

    compiled = jax.jit(run)
    rows = steps * BATCH
    data = (jnp.asarray(images[:rows]), jnp.asarray(labels[:rows]))
    return lambda: compiled(jax.random.key(0), data)


def loop(step):
    jit_init, jit_step = jax.jit(partial(init, step)), jax.jit(step, donate_argnums=0)

    def run():
        key = jax.random.key(0)
        ts, losses = jit_init(key), []
        for rows in np.random.default_rng(0).permutation(len(images)).reshape(STEPS, BATCH):
            ts, metrics = jit_step(ts, (images[rows], labels[rows]), key)
            losses.append(metrics["loss"])
        return ts, losses

    return run


def main() -> None:
    print(machine())
    ours, theirs = make_step(fnn.conv, fnn.max_pool), make_step(autodiffs_conv, autodiffs_max_pool)
    works = {
        "one program": one_program(ours),
        "jitted step in a loop": loop(ours),
        "loop, autodiff's gradients": loop(theirs),
    }
    show("31 steps, warm", interleaved(works, n=3), "one program")
    short = {
        "one program": one_program(ours, 3),
        "one program, autodiff's gradients": one_program(theirs, 3),
    }
    show("3 steps, warm", interleaved(short, n=2), "one program")


if __name__ == "__main__":
    main()
