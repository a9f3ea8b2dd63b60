"""Claim: what makes a step safe costs at most a tenth of the bare program, on one core and on two.

Bare is what a careful user writes with `lax.scan`: fnn's Adam, the mean loss, its history, nothing
else. Then come, one after another: the gradient's norm, the norm in the history, the masked last
batch, and `fit` with each policy. Whole runs, warm; n = 15 interleaved rounds; compiling is timed
apart. Small: 64-128-128-10 on digits, batch 64, 30 epochs. Medium: 784-512-512-10, batch 128, 4,096
random rows, 4 epochs.

    python benchmarks/safety.py
    taskset -c 0 python benchmarks/safety.py       # on one core
    python benchmarks/safety.py --size medium

Device: any.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import Array, lax
from timing import compile_seconds, interleaved, machine, show

import fnn

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
OPTIMIZER = fnn.adam(1e-3)


def loss_fn(params: Any, batch: Any, key: Array) -> Array:
    return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])


def bare(data: Any, epochs: int, batch_size: int, *, norm: bool = False) -> Callable[[Any], Any]:
    """Two scans; `norm`: the gradient's norm is computed and kept."""
    rows = len(data[1])
    steps = -(-rows // batch_size)

    def step(carry: Any, index: Array) -> Any:
        params, state = carry
        batch = fnn.data.take(data, index)
        loss, grads = jax.value_and_grad(lambda p: loss_fn(p, batch, KEY).mean())(params)
        updates, state = OPTIMIZER.update(grads, state, params)
        kept = (loss, fnn.params.global_norm(grads)) if norm else loss
        return (optax.apply_updates(params, updates), state), kept

    def epoch(carry: Any, number: Array) -> Any:
        order = fnn.data.permutation(jax.random.fold_in(KEY, number), rows)
        order = jnp.concatenate([order, order[: steps * batch_size - rows]])
        return lax.scan(step, carry, order.reshape(steps, batch_size))

    return lambda params: lax.scan(epoch, (params, OPTIMIZER.init(params)), jnp.arange(epochs))


def safe(data: Any, epochs: int, batch_size: int, **options: Any) -> Callable[[Any], Any]:
    step = fnn.make_train_step(loss_fn, OPTIMIZER, **options)
    return lambda params: fnn.fit(
        step, step.init(params), data, KEY, epochs=epochs, batch_size=batch_size
    )


def main(size: Literal["small", "medium"] = "small", rounds: int = 15) -> None:
    """Print what each part of a safe step costs."""
    if size == "small":
        data, sizes, run = fnn.datasets.digits().train, (64, 128, 128, 10), (30, 64)
    else:
        x = RNG.normal(size=(4096, 784)).astype(np.float32)
        data, sizes, run = (x, RNG.integers(0, 10, 4096)), (784, 512, 512, 10), (4, 128)
    data = jax.tree.map(jnp.asarray, data)
    params = fnn.mlp_init(KEY, sizes)
    programs = {
        "bare": bare(data, *run),
        "bare and the norm": bare(data, *run, norm=True),
        "fit, nonfinite='ignore'": safe(data, *run, nonfinite="ignore"),
        "fit": safe(data, *run),
        "fit, clip_norm": safe(data, *run, clip_norm=1.0),
        "fit, clip_norm, update_ratio": safe(data, *run, clip_norm=1.0, update_ratio=True),
    }
    jitted = {name: jax.jit(program) for name, program in programs.items()}
    print(machine())
    works = {name: (lambda f=f: f(params)) for name, f in jitted.items()}
    show(f"{size}, warm", interleaved(works, rounds), "bare")

    def compiling(program: Callable[[Any], Any]) -> Callable[[], Any]:
        # A new function each time, so that nothing is kept from the last.
        return lambda: jax.jit(lambda p: program(p)).lower(params).compile()

    both = {name: compile_seconds(compiling(programs[name]), 3) for name in ("bare", "fit")}
    show(f"{size}, to trace, lower and compile", both, "bare")


if __name__ == "__main__":
    tyro.cli(main)
