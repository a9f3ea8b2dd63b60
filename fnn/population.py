"""Many runs as one program: every seed at every combination of hyperparameters.

A run is any pure function ``run(key, **hyperparameters)``; nothing here knows of training.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

Run = Callable[..., Any]
EVERYWHERE = PartitionSpec()


def sweep(
    run: Run,
    keys: Array,
    grid: Mapping[str, ArrayLike] | None = None,
    *,
    width: int | None = None,
) -> Any:
    """run(key, **point) for each of keys [n] at each point of the grid: leaves [n, *grid, ...].

    `grid` is {"learning_rate": [rates], ...}, and every combination is run, the axes in its
    order. All of it is one XLA program, the members dealt out to all devices. On each device
    `width` of them run side by side (vmap) and these groups one after another: all at once on
    an accelerator, and 1 on a CPU, where XLA is slow at batches of small products. With width 1
    a member is its solo run ``jit(run)(key, **point)`` bit for bit.

    A second call with the same function `run` compiles nothing.
    """
    return sweep_with("sweep", run, keys, grid, width, ())


def sweep_with(
    who: str,
    run: Run,
    keys: Array,
    grid: Mapping[str, ArrayLike] | None,
    width: int | None,
    shared: tuple[Any, ...],
) -> Any:
    """`sweep` of run(key, *shared, **point); `who` asks, for the messages.

    What is shared is an argument of the program and not a constant in it: other data of the same
    shapes compile nothing.
    """
    grid = {name: jnp.asarray(values) for name, values in (grid or {}).items()}
    for name, values in grid.items():
        if values.ndim == 0 or values.shape[0] == 0:
            raise ValueError(f"{who}: {name} has shape {values.shape}, expected at least one value")
    typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if keys.ndim != (1 if typed else 2) or keys.shape[0] == 0:
        raise ValueError(
            f"{who}: keys have shape {keys.shape}, expected [n], as jax.random.split(key, n) gives"
        )
    devices = jax.devices()
    members = math.prod([keys.shape[0], *(values.shape[0] for values in grid.values())])
    if width is None:
        width = 1 if devices[0].platform == "cpu" else math.ceil(members / len(devices))
    if width < 1:
        raise ValueError(f"{who}: width is {width}, expected at least 1")
    if width > 1 and typed and "rbg" in str(jax.random.key_impl(keys)):
        raise ValueError(
            f"{who}: keys of the rbg generator draw other numbers under vmap than alone;"
            " expected threefry keys, or width=1"
        )
    mesh = Mesh(devices, ("members",))
    # What lives on one device only would not go into a program for all of them.
    shared = jax.device_put(shared, NamedSharding(mesh, EVERYWHERE))
    return _sweep(run, mesh, width, tuple(grid), keys, tuple(grid.values()), shared)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sweep(
    run: Run,
    mesh: Mesh,
    width: int,
    names: tuple[str, ...],
    keys: Array,
    values: tuple[Array, ...],
    shared: tuple[Any, ...],
) -> Any:
    sizes = [keys.shape[0], *(v.shape[0] for v in values)]
    members = math.prod(sizes)
    group = mesh.size * width
    # Every device gets as many whole groups; the last member fills up what is missing.
    places = jnp.minimum(jnp.arange(-(-members // group) * group), members - 1)
    key_index, *value_index = jnp.unravel_index(places, sizes)
    points = [v[i] for v, i in zip(values, value_index, strict=True)]

    def on_one_device(batch: tuple[Array, ...], shared: tuple[Any, ...]) -> Any:
        def one(member: tuple[Array, ...]) -> Any:
            key, *point = member
            return run(key, *shared, **dict(zip(names, point, strict=True)))

        if width == 1:
            return lax.map(one, batch)
        groups = jax.tree.map(lambda a: a.reshape(-1, width, *a.shape[1:]), batch)
        results = lax.map(jax.vmap(one), groups)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), results)

    spec = PartitionSpec("members")
    on_all = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(spec, EVERYWHERE), out_specs=spec, check_vma=False
    )
    results = on_all((keys[key_index], *points), shared)
    return jax.tree.map(lambda a: a[:members].reshape(*sizes, *a.shape[1:]), results)
