"""One program on several processes: their start, and what they must agree on.

Each process runs the same script and drives its own devices. JAX joins them: a program over all
devices is started by every process, with the same arguments and in the same order. What depends on
the clock, on a signal or on a file is therefore asked on one process and told to all.
"""

import atexit
import json
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn._base import as_count
from fnn.checkpoint import fingerprint

T = TypeVar("T")

WHO = "start_processes"
GRACE = 10  # seconds after which JAX ends a process that gave up waiting, if that is still there
TEXT = 256  # texts are sent in pieces of so many bytes, so that few programs are compiled


# --- start --------------------------------------------------------------------------------------


def start_processes(
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    start_seconds: int = 300,
    heartbeat_seconds: int = 100,
    end_seconds: int = 300,
) -> None:
    """Join the processes that run this script to one program over all of their devices.

    Call it in every process, before the first array, key or ``jax.devices()``. Without arguments
    JAX finds the other processes under SLURM, Open MPI, Kubernetes (with ``jax[k8s]``) and on TPU
    pods. Where it finds none, the script runs as the one process that it is. Elsewhere:

    - `address`: "host:port" of process 0, a port that is free there and that all can reach.
    - `count`: the number of processes. With 1 nothing is started.
    - `index`: the number of this process, from 0.

    Time limits:

    - `start_seconds`: how long a process waits for the others; TimeoutError then.
    - `heartbeat_seconds`: a process that was killed, or whose machine is gone, is missed after this
      time. Then JAX ends all others: it prints which "tasks are unhealthy", and exit codes are 134.
      `train` goes on from its checkpoint when it is started again, on any number of processes.
    - `end_seconds`: how long a process that is through, or that ended with an error, waits for the
      others. JAX ends them too after this time.

    SIGTERM keeps its usual meaning, and `train` sees it on any process: JAX's own handler, that of
    ``jax.experimental.multihost_utils.reached_preemption_sync_point``, is switched off. On CPUs the
    processes talk by Gloo, JAX's default.
    """
    limits = {"start": start_seconds, "heartbeat": heartbeat_seconds, "end": end_seconds}
    seconds = {name: as_count(WHO, f"{name}_seconds", value) for name, value in limits.items()}
    given = _checked(address, count, index)
    if jax.distributed.is_initialized():
        raise RuntimeError(f"{WHO}: the processes have started already; call it once")
    if given.get("num_processes") == 1:
        return
    jax.config.update("jax_enable_preemption_service", False)
    try:
        _within(seconds["start"], address, lambda: _initialize(given, seconds))
    except (ValueError, RuntimeError) as error:
        if not given and "coordinator_address" in str(error):  # JAX found nothing
            return
        if "must be called before" in str(error):
            raise RuntimeError(
                f"{WHO}: JAX has started already; call {WHO} before the first array, key or"
                " jax.devices()"
            ) from error
        if "RPC server" in str(error):
            raise RuntimeError(
                f"{WHO}: process 0 cannot open {address}; is the port free?"
            ) from error
        raise
    # Before fnn ends a process that had SIGTERM by it: the others would take it for a killed one.
    atexit.register(jax.distributed.shutdown)
    _meet()
    if is_first():
        print(
            f"{WHO}: {jax.process_count()} processes, {jax.device_count()} devices; if a process is"
            f" killed, all end within about {seconds['heartbeat']} s",
            file=sys.stderr,
        )


def _checked(address: Any, count: Any, index: Any) -> dict[str, Any]:
    """The arguments of JAX, {} if nothing was given."""
    given = {"address": address, "count": count, "index": index}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3:
        return {}
    if count is not None:
        count = as_count(WHO, "count", count)
    if count == 1 and index in (None, 0):
        return {"num_processes": 1}
    if count is None or missing:
        raise TypeError(
            f"{WHO}: {' and '.join(missing)} did not come, expected address, count and index, or"
            " none of them"
        )
    index = as_count(WHO, "index", index, least=0)
    if index >= count:
        raise ValueError(f"{WHO}: index is {index}, expected 0 to {count - 1}")
    host, _, port = str(address).rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f'{WHO}: address is {address!r}, expected "host:port"')
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def _initialize(given: dict[str, Any], seconds: dict[str, int]) -> None:
    jax.distributed.initialize(
        **given,
        initialization_timeout=seconds["start"] + GRACE,
        heartbeat_timeout_seconds=seconds["heartbeat"],
        shutdown_timeout_seconds=seconds["end"],
    )


def _within(seconds: float, address: str | None, work: Callable[[], None]) -> None:
    """work(), in a thread: JAX would end the process at the limit, and would not see Ctrl-C."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(
            f"{WHO}: after {seconds} s not all processes had come to"
            f" {address or 'the address that JAX found'}; start every process, with the same"
            " address and count, see that this port can be reached, or set start_seconds"
        )
    if raised:
        raise raised[0]


def _meet() -> None:
    """The first exchanges over all devices. Gloo waits 30 s for these, and without limit later."""
    everyone([0])
    mesh = Mesh(jax.devices(), ("all",))
    ones = spread(mesh, np.ones(mesh.size, np.float32), PartitionSpec("all"))
    jax.block_until_ready(jax.jit(jax.numpy.sum)(ones))


# --- what was computed --------------------------------------------------------------------------


def fetch(tree: Any) -> Any:
    """The tree with NumPy arrays [...] of the whole arrays, on every process.

    An array that is split over the devices of several processes is gathered, so then every process
    must call this. Typed keys stay JAX arrays, on this process's device.
    """
    return jax.tree.map(_fetched, tree)


def _fetched(leaf: Any) -> Any:
    if isinstance(leaf, Tracer):
        raise TypeError("fetch: the tree is traced, expected values; fetch it outside jit")
    if not isinstance(leaf, Array):
        return np.asarray(leaf)
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _fetched(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if _is_split(leaf):
        return _gathered(leaf, tiled=True)
    return np.asarray(leaf)


def _gathered(value: Any, *, tiled: bool) -> np.ndarray:
    from jax.experimental import multihost_utils  # not loaded by `import jax`

    return multihost_utils.process_allgather(value, tiled=tiled)


def _is_split(leaf: Any) -> bool:
    """Whether no process has the whole array."""
    return isinstance(leaf, Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)


# --- what they agree on -------------------------------------------------------------------------


def several() -> bool:
    """Whether there are several processes."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which writes files and shows progress for all."""
    return jax.process_index() == 0


def everyone(numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """int32 [n] of each process -> int32 [processes, n], on every process, when all have come."""
    if not several():
        return np.asarray(numbers, np.int32)[None]
    return _gathered(np.asarray(numbers, np.int32), tiled=False)


def from_first(value: Any) -> Any:
    """The value of process 0, which JSON can hold, on every process."""
    text = json.dumps(value).encode() if is_first() else b""
    size = int(everyone([len(text)])[0, 0])
    padded = np.zeros(-(-size // TEXT) * TEXT, np.int32)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(everyone(padded)[0, :size].astype(np.uint8)))


def by_first(who: str, work: Callable[[], Any]) -> Any:
    """work() on process 0 alone -> its result, which JSON can hold, or its error, on every one."""
    if not several():
        return work()
    result: Any = None
    error: BaseException | None = None
    if is_first():
        try:
            result = work()
        except BaseException as raised:
            error = raised
    result, said = from_first([result, error and f"{type(error).__name__}: {error}"])
    if error is not None:
        raise error
    if said is not None:
        raise RuntimeError(f"{who}: process 0 ended with {said}")
    return result


def together(who: str, work: Callable[[], T]) -> T:
    """work() on every process; if it raised on one of them, all end."""
    if not several():
        return work()
    result, error = None, None
    try:
        result = work()
    except BaseException as raised:
        error = raised
    failed = np.flatnonzero(everyone([error is not None])[:, 0])
    if error is not None:
        raise error
    if failed.size:
        raise RuntimeError(f"{who}: process {failed[0]} ended with an error, which it has printed")
    return result  # pyright: ignore[reportReturnType]


def check_same(who: str, **given: Any) -> None:
    """ValueError unless every process was given the same. Traced and split arrays do not count."""
    if not several():
        return
    marks = [np.frombuffer(bytes.fromhex(_mark(tree))[:16], np.int32) for tree in given.values()]
    rows = everyone(np.concatenate(marks)).reshape(jax.process_count(), len(given), -1)
    others = (rows != rows[:1]).any(axis=-1)  # [processes, given]
    if others.any():
        process, place = np.argwhere(others)[0]
        raise ValueError(
            f"{who}: {list(given)[place]} of process {process} is not that of process 0, expected"
            " the same on every process: from the same seed, files and options"
        )


def _mark(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    return fingerprint([leaf for leaf in leaves if not isinstance(leaf, Tracer) | _is_split(leaf)])


def spread(mesh: Mesh | None, tree: Any, spec: PartitionSpec | None = None) -> Any:
    """The tree on the devices of a mesh of several processes; for another mesh the tree as it is.

    Every process has all of the values. Traced arrays, and those that are on several processes
    already, stay.
    """
    if mesh is None or not spans_processes(mesh):
        return tree
    sharding = NamedSharding(mesh, spec or PartitionSpec())
    return jax.tree.map(lambda leaf: _spread(leaf, sharding), tree)


def spans_processes(mesh: Mesh) -> bool:
    """Whether the devices of the mesh belong to several processes."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def _spread(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, Tracer) or (isinstance(leaf, Array) and not leaf.is_fully_addressable):
        return leaf
    leaf = jax.numpy.asarray(leaf)
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _spread(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    # A CPU device would share the memory of the NumPy array, also with other devices.
    return jax.make_array_from_callback(
        values.shape, sharding, lambda index: np.array(values[index])
    )
