"""Claims: `train` takes less than 3 % longer than `fit`. Checking that a step is finite, and
skipping it if not, takes less than 2 % of a step. One program is faster than its step in a loop.

Small: 64-128-128-10 on digits, batch 64; medium: 784-512-512-10 with dropout, batch 128; conv: two
3x3 convolutions (16, 32), pooled, on 28x28, batch 64. Each run takes a second or more, n = 7
interleaved rounds, without compilation. The benchmark takes about 3 minutes.

    python benchmarks/driver.py

Device: any. 2 CPU cores (AMD EPYC), jax 0.10.2: see benchmarks/README.md.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import interleaved, machine, show

import fnn

KEY, ROUNDS = jax.random.key(0), 7
RNG = np.random.default_rng(0)


def rows(n: int, *shape: int) -> tuple[jax.Array, jax.Array]:
    x = jnp.asarray(RNG.normal(size=(n, *shape)), jnp.float32)
    return x, jnp.asarray(RNG.integers(0, 10, n), jnp.int32)


def conv_init(key: jax.Array) -> Any:
    k1, k2, k3 = jax.random.split(key, 3)
    return {
        "conv_0": fnn.conv_init(k1, 1, 16, (3, 3)),
        "conv_1": fnn.conv_init(k2, 16, 32, (3, 3)),
        "logits": fnn.dense_init(k3, 7 * 7 * 32, 10),
    }


def conv_net(params: Any, x: jax.Array, key: Any) -> jax.Array:
    for name in ("conv_0", "conv_1"):
        x = fnn.max_pool(fnn.relu(fnn.conv(params[name], x)), (2, 2))
    return fnn.dense(params["logits"], x.reshape(len(x), -1))


def mlp(rate: float) -> Callable[..., jax.Array]:
    return lambda params, x, key: fnn.mlp(params, x, key=key, rate=rate)


MODELS = {  # data, batch size, epochs, init, apply
    "small": (fnn.datasets.digits().train, 64, 500, (64, 128, 128, 10), mlp(0.0)),
    "medium": (rows(4096, 784), 128, 12, (784, 512, 512, 10), mlp(0.5)),
    "conv": (rows(1024, 28, 28, 1), 64, 12, None, conv_net),
}


def works(name: str) -> dict[str, Callable[[], Any]]:
    data, batch_size, epochs, sizes, apply = MODELS[name]
    data = jax.tree.map(jnp.asarray, data)
    params = conv_init(KEY) if sizes is None else fnn.mlp_init(KEY, sizes)

    def loss_fn(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        return fnn.cross_entropy(apply(params, batch[0], key), batch[1])

    optimizer = fnn.adam(1e-3)
    skip = fnn.make_train_step(loss_fn, optimizer)
    ignore = fnn.make_train_step(loss_fn, optimizer, nonfinite="ignore")
    ts = skip.init(params)

    def program(step: Any) -> Callable[[], Any]:
        fit = jax.jit(
            lambda ts, data: fnn.fit(step, ts, data, KEY, epochs=epochs, batch_size=batch_size)
        )
        return lambda: fit(ts, data)

    def driven() -> Any:
        return fnn.train(
            skip, ts, data, KEY, epochs=epochs, batch_size=batch_size, progress=False
        ).last

    step = jax.jit(lambda ts, data, index: skip(ts, fnn.data.take(data, index), KEY)[0])
    n = data[0].shape[0]

    def loop() -> Any:
        state, order = ts, np.random.default_rng(0)
        for _ in range(epochs):
            places = order.permutation(n)
            for i in range(0, n - batch_size + 1, batch_size):
                state = step(state, data, places[i : i + batch_size])
        return state

    one = {"one program": program(skip), "one program, not looking": program(ignore)}
    return one | {"train": driven, "jitted step, loop": loop}


def main() -> None:
    print(machine())
    for name in MODELS:
        show(f"{name}, seconds", interleaved(works(name), ROUNDS), "one program")


if __name__ == "__main__":
    main()
