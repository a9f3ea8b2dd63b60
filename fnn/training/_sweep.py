"""Many runs as one program: every seed at every combination of hyperparameters.

A run is any pure function ``run(key, **hyperparameters)``. Nothing in this file knows of training.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from fnn._base import as_count, check_keys, kept_with, weakly
from fnn.training._processes import check_same, everyone, several, spans_processes, spread, together
from fnn.training._programs import check_memory, memory_limit, peak_bytes

Run = Callable[..., Any]
Call = Callable[..., Any]  # call(run, key, *shared, **point)
EVERYWHERE = PartitionSpec()


def sweep(
    run: Run,
    keys: Array,
    grid: Mapping[str, ArrayLike] | None = None,
    *,
    paired: Mapping[str, ArrayLike] | None = None,
    width: int | None = None,
) -> Any:
    """run(key, **point) for each of keys [n] at each point of the grid: leaves [n, *grid, ...].

    - `grid` is {"learning_rate": [rates], ...}. Every combination is run with every key; the axes
      of the result are in the grid's order.
    - `paired`, in place of a grid, is {"learning_rate": n rates, ...}. Value i belongs to key i:
      member i is ``run(keys[i], learning_rate=rates[i])``, and leaves are [n, ...].

    Values are numbers that the program computes with. What shapes the program, such as a width, a
    batch size or the name of an optimizer, is varied by `population`, with a program for each.

    The whole sweep is one XLA program. Its runs, the members, are split over all devices. On each
    device `width` members run side by side (vmap), and the groups of `width` run one after another.
    By default:

    - on a CPU the width is 1, because XLA is slow there at batches of small products;
    - on an accelerator the width is the largest that fits into memory, which is read off the
      compiled program: all members of a device, or groups of equal size. A tenth of the memory is
      left free; other arrays on the device do not count. Inside another program it is all members.

    MemoryError, before anything runs, if the memory is too small for this.

    On several processes (`start_processes`) all of them call it with the same arguments, and each
    gets all results. ValueError if keys, values or data are not the same on all.

    With width 1 a member is its solo run ``jit(run)(key, **point)`` bit for bit. So a sweep of a
    function that returns a few numbers of each run is enough: the whole history of one member is
    that call. A second call with the same function `run` compiles nothing. The program is freed
    with `run`.
    """
    if grid is not None and paired is not None:
        raise TypeError(
            "sweep: grid and paired came, expected one of them; paired values belong to one key"
            " each, those of a grid to all keys"
        )
    return sweep_with("sweep", run, keys, grid, width, paired=paired)


def alone(run: Run, key: Array, **point: Any) -> Any:
    """How a sweep calls its run."""
    return run(key, **point)


def sweep_with(
    who: str,
    run: Run,
    keys: Array,
    grid: Mapping[str, ArrayLike] | None,
    width: int | None,
    shared: tuple[Any, ...] = (),
    call: Call = alone,
    paired: Mapping[str, ArrayLike] | None = None,
) -> Any:
    """`sweep` of call(run, key, *shared, **point); `who` is the function that messages name.

    `shared` is an argument of the program, not a constant in it. So a call with other data of the
    same shapes compiles nothing. `call` is a function of a module.
    """
    return _prepared(who, run, keys, grid, width, shared, call, paired)[1]()


def width_of(who: str, run: Run, keys: Array, paired: Mapping[str, ArrayLike]) -> int:
    """The width that a sweep chooses for these members."""
    return _prepared(who, run, keys, None, None, (), alone, paired)[0]


def _prepared(
    who: str,
    run: Run,
    keys: Array,
    grid: Mapping[str, ArrayLike] | None,
    given: int | None,
    shared: tuple[Any, ...],
    call: Call,
    paired: Mapping[str, ArrayLike] | None,
) -> tuple[int, Callable[[], Any]]:
    """The width of a sweep, and the sweep."""
    for argument, came in (("grid", grid), ("paired", paired)):
        if not isinstance(came or {}, Mapping):
            raise TypeError(
                f"{who}: {argument} is a {type(came).__name__}, expected a dict such as"
                ' {"learning_rate": [0.1, 0.2]}'
            )
    pairs = {name: _values(who, name, values) for name, values in (paired or {}).items()}
    gridded = {name: _values(who, name, values) for name, values in (grid or {}).items()}
    typed = check_keys(who, keys)
    for name, v in pairs.items():
        if v.shape[0] != keys.shape[0]:
            raise ValueError(
                f"{who}: {name} has {v.shape[0]} values for {keys.shape[0]} keys, expected one for"
                " each, because they are paired"
            )
    values, axes = pairs | gridded, (*(0 for _ in pairs), *range(1, 1 + len(gridded)))
    devices = jax.devices()
    members = math.prod(_sizes(keys, axes, tuple(values.values())))
    by_memory, width = given is None, given
    if width is None:
        width = -(-members // len(devices)) if side_by_side(devices[0]) else 1
    width = as_count(who, "width", width)
    if width > 1 and typed and "rbg" in str(jax.random.key_impl(keys)):
        raise ValueError(
            f"{who}: keys of the rbg generator draw other numbers under vmap than alone;"
            " expected threefry keys, or width=1"
        )
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return width, partial(_one_by_one, partial(call, run), keys, values, axes, shared)
    mesh = Mesh(devices, ("members",))
    # A program for all devices does not take an array that is on one of them only.
    if not several():
        shared = jax.device_put(shared, NamedSharding(mesh, EVERYWHERE))
    made = kept_with((run,), ("sweep", call), lambda: Made(_program(who, call, weakly(run)), {}))
    settings, args = (tuple(values), axes), (keys, tuple(values.values()), shared)
    leaves, structure = jax.tree.flatten((keys[:1], *args))  # an operation: traced under any jit
    if not any(isinstance(leaf, Tracer) for leaf in leaves):  # else nothing can be compiled here
        check_same(who, keys=keys, values=args[1], data=shared)
        args = spread(mesh, args)
        limit = memory_limit(mesh.local_devices)
        shapes = structure, *((leaf.shape, leaf.dtype) for leaf in leaves)
        kind = mesh, width, by_memory, *settings, limit, shapes
        if kind not in made.widths:
            choose = partial(_fitting, who, made.program, mesh, width, by_memory, settings, args)
            # The processes run one program, also where one of them has less memory.
            made.widths[kind] = int(everyone([together(who, choose)]).min())
        width = made.widths[kind]
    return width, partial(made.program, mesh, width, *settings, *args)


class Made(NamedTuple):
    """What is kept for a run: its sweep, and which width was found to fit into memory."""

    program: Callable[..., Any]
    widths: dict[Any, int]


def side_by_side(device: Any) -> bool:
    """Whether many small products at once are fast on the device."""
    return device.platform != "cpu"


def _fitting(
    who: str,
    program: Any,
    mesh: Mesh,
    width: int,
    by_memory: bool,
    settings: tuple[Any, ...],
    args: tuple[Any, ...],
) -> int:
    """The width, made smaller until the program fits if it is chosen by memory; or MemoryError.

    Groups are even: 10 members at width 9 would be 5 and 5. Memory is taken to grow by the same for
    each member, so that two to four programs are compiled, not ten.
    """
    limit, most, known = memory_limit(mesh.local_devices), width, (0, 0)  # known: width, bytes
    room = math.inf if limit is None else 0.9 * limit  # the rest for what no compiler foresees
    while True:
        given = not by_memory or width == 1
        traced = program.trace(mesh, width, *settings, *args)
        if len(traced.jaxpr.in_avals) > len(jax.tree.leaves(args)):
            return width  # the run closes over values of a grad or vmap: it cannot be compiled here
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:  # a TPU's compiler refuses what does not fit
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if given:
                text = str(error).splitlines()[0]
                raise MemoryError(f"{who}: the program at width {width}: {text:.200}") from error
            fits = width // 2
        else:
            needed = peak_bytes(compiled)
            if given or needed <= room:
                check_memory(f"{who}: the program at width {width}", needed, mesh.local_devices)
                return width
            growth = (needed - known[1]) / (width - known[0])
            fits = int(width - (needed - room) / growth) if growth > 0 else width // 2
            if width < most:  # one group of all is another program, without a loop around it
                known = width, needed
        width = max(1, min(width - 1, fits))
        width = -(-most // -(-most // width))


def _sizes(keys: Array, axes: tuple[int, ...], values: tuple[Array, ...]) -> list[int]:
    """The sizes of the axes: of the keys, then of the grid."""
    return [keys.shape[0], *(v.shape[0] for v, axis in zip(values, axes, strict=True) if axis)]


def _values(who: str, name: str, values: ArrayLike) -> Array:
    """The values of one name of the grid, or paired ones."""
    if not isinstance(values, Array):
        values = np.asarray(values)
        if values.dtype.kind not in "biufcV":
            raise TypeError(
                f"{who}: {name} has the values {str(values.tolist())[:60]}, expected numbers; words"
                " and functions are for fnn.population, which makes a program for each"
            )
    values = jnp.asarray(values)
    if values.ndim == 0 or values.shape[0] == 0:
        raise ValueError(f"{who}: {name} has shape {values.shape}, expected at least one value")
    return values


def _one_by_one(
    run: Run,
    keys: Array,
    values: Mapping[str, Array],
    axes: tuple[int, ...],
    shared: tuple[Any, ...],
) -> Any:
    """Every member by itself, for those who switched compiling off to look inside."""
    sizes = _sizes(keys, axes, tuple(values.values()))
    along = dict(zip(values, axes, strict=True))
    members = [
        run(keys[at[0]], *shared, **{name: v[at[along[name]]] for name, v in values.items()})
        for at in np.ndindex(*sizes)
    ]
    return jax.tree.map(lambda *a: jnp.stack(a).reshape(*sizes, *jnp.shape(a[0])), *members)


def _program(who: str, call: Call, run_of: Callable[[], Run]) -> Callable[..., Any]:
    """The compiled sweep of one run, which it does not hold."""

    def run(key: Array, *shared: Any, **point: Any) -> Any:
        try:
            return call(run_of(), key, *shared, **point)
        except TypeError as error:  # also JAX's ConcretizationTypeError
            text = str(error)
            if "Tracer" not in text and "traced" not in text:
                raise
            names = [name for name in point if name.isidentifier()]
            raise TypeError(
                f"{who}: the run needs the value of its key or one of {names} while it is traced;"
                " values of the grid cannot be sizes, epochs or conditions of Python's: vary those"
                f" by fnn.population with search.Static ({text.splitlines()[0]:.200})"
            ) from error

    return jax.jit(partial(_sweep, run), static_argnums=(0, 1, 2, 3))


def _sweep(
    run: Run,
    mesh: Mesh,
    width: int,
    names: tuple[str, ...],
    axes: tuple[int, ...],
    keys: Array,
    values: tuple[Array, ...],
    shared: tuple[Any, ...],
) -> Any:
    """Values of axis 0 belong to the keys one by one, those of axis i are axis i of the result."""
    sizes = _sizes(keys, axes, values)
    members = math.prod(sizes)
    group = mesh.size * width
    # Every device gets the same number of whole groups. Missing members are the last one again.
    places = jnp.minimum(jnp.arange(-(-members // group) * group), members - 1)
    index = jnp.unravel_index(places, sizes)
    points = [v[index[axis]] for v, axis in zip(values, axes, strict=True)]

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
    results = on_all((keys[index[0]], *points), shared)
    results = jax.tree.map(lambda a: a[:members].reshape(*sizes, *a.shape[1:]), results)
    if spans_processes(mesh):  # then every process gets all of them, and NumPy can read them
        return lax.with_sharding_constraint(results, NamedSharding(mesh, EVERYWHERE))
    return results
