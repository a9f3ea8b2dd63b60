"""Data larger than memory: training on any iterable of batches.

`fit` holds its data on the device and is one program. Here batches come from the host, from a
generator over memory-mapped files, Grain, or anything else one can iterate over, and every step is
a call of one compiled program. A thread prepares batches while the device computes.
"""

import atexit
import itertools
import json
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import closing
from queue import Empty, Queue
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from fnn.data import rows_of
from fnn.training import Step, TrainState
from fnn.types import Data, Metrics

_IN_FLIGHT = 8  # steps that may wait on the device, so that their batches do not pile up there
_CHUNK = 256  # steps whose metrics are fetched together
_CLOSING = 10.0  # seconds that a source is given to return from its batch
_reading: weakref.WeakKeyDictionary[threading.Thread, tuple[Queue[Any], threading.Event]] = (
    weakref.WeakKeyDictionary()
)


def prefetch(
    batches: Iterable[Data], size: int = 2, sharding: Sharding | None = None
) -> "Prefetch":
    """The same batches, pytrees of arrays, put onto the device before they are asked for.

    A thread reads up to `size` batches ahead, and has one more in hand. Each is copied, so a
    source may fill the same buffer again. What the source raises is raised here, where its batch
    would have come. `close`, or dropping the iterator, stops the thread. `position` and `restore`
    speak of the batches handed out, not of those read ahead.
    """
    if size < 1:
        raise ValueError(f"prefetch: size is {size}, expected at least 1")
    return Prefetch(iter(batches), size, sharding)


class Prefetch(Iterator[Data]):
    """What `prefetch` returns: an iterator that can be closed, and knows where it stands."""

    def __init__(self, source: Iterator[Data], size: int, sharding: Sharding | None) -> None:
        self._source, self._sharding = source, sharding
        self._queue: Queue[tuple[Data, Any, BaseException | None]] = Queue(size)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._state: Any = None  # of the source, after the batch that was handed out last
        # The thread knows nothing of this object, so that dropping it is noticed.
        weakref.finalize(self, _drain, self._queue, self._stop)

    def __next__(self) -> Data:
        if self._stop.is_set():
            raise StopIteration
        if self._thread is None:
            self._start()
        batch, state, error = self._queue.get()
        if error is not None:
            self._stop.set()
            raise error
        self._state = state
        return batch

    def close(self) -> None:
        """Stop reading; a source that does not return from its batch in 10 s is left to it."""
        _drain(self._queue, self._stop)
        if self._thread is not None:
            self._thread.join(timeout=_CLOSING)

    def get_state(self) -> Any:
        """The source's state after the batch that was handed out last."""
        state = _with_state("prefetch", self._source).get_state
        return state() if self._thread is None else self._state

    def set_state(self, state: Any) -> None:
        """Have the source go on elsewhere; only before the first batch."""
        if self._thread is not None:
            raise ValueError("prefetch: reads ahead already; restore it before the first batch")
        _with_state("prefetch", self._source).set_state(state)

    def _start(self) -> None:
        self._state = getattr(self._source, "get_state", lambda: None)()
        # Settings of this thread, which a new one would not have.
        x64 = jax.dtypes.canonicalize_dtype(float) == np.float64
        device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
        arguments = (self._source, self._sharding, self._queue, self._stop, x64, device)
        self._thread = threading.Thread(target=_read, args=arguments, daemon=True)
        self._thread.start()
        _reading[self._thread] = self._queue, self._stop


def train_on_batches(
    step: Step,
    ts: TrainState,
    batches: Iterable[Data],
    key: Array,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    tail: Literal["pad", "drop"] = "pad",
    size: int = 2,
    sharding: Sharding | None = None,
) -> tuple[TrainState, Metrics]:
    """-> (ts, history), whose leaves are step's metrics, NumPy [steps, ...].

    `step` is make_train_step's: step s draws from fold_in(key, s), s as `ts` counts it. Batches
    are taken until they, or `steps` of them, are done; no batch more is read, so the `position`
    of an iterator is afterwards that of the run. The rows of the first batch, or `batch_size`,
    are those of the program; smaller batches are padded with their own rows, which a mask takes
    out of the mean, or dropped and not counted; larger ones are a ValueError.

    `size` and `sharding` are `prefetch`'s; a sharding, of the first axis, splits the rows over
    devices, and what is on one device of `ts` is copied to them all. `ts` stays as it is: the
    steps overwrite a copy. Not for use under jit.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"train_on_batches: steps is {steps}, expected at least 1")
    if tail not in ("pad", "drop"):
        raise ValueError(f"train_on_batches: tail is {tail!r}, expected 'pad' or 'drop'")
    run = jax.jit(step, donate_argnums=0)  # JAX knows a function again: compiled once for all calls
    ts = jax.tree.map(lambda leaf: _own(leaf, sharding), ts)
    source = itertools.islice(_of_one_shape(batches, batch_size, tail), steps)
    with closing(prefetch(source, size, sharding)) as ahead:
        ts, history = _train(run, ts, ahead, key)
    if not history:
        raise ValueError("train_on_batches: no batch came; a generator gives its batches only once")
    return ts, jax.tree.map(lambda *chunks: np.concatenate(chunks), *history)


def position(iterator: Any) -> str:
    """Where an iterator stands, as text for a checkpoint: Grain's, `prefetch`'s, one's own.

    The iterator has get_state(), which returns bytes or what JSON can hold, and set_state(state).
    Grain promises that a state fits the version of Grain, and the pipeline, that it came from. A
    source that can start anywhere needs none of this: ts.step is the number of batches done.
    """
    state = _with_state("position", iterator).get_state()
    return state.decode() if isinstance(state, bytes) else json.dumps(state, default=_plain)


def restore(iterator: Any, position: str) -> None:
    """Have a new iterator over the same data go on where `position` was taken."""
    as_bytes = isinstance(_with_state("restore", iterator).get_state(), bytes)
    iterator.set_state(position.encode() if as_bytes else json.loads(position))


def _train(
    run: Step, ts: TrainState, ahead: Iterator[Data], key: Array
) -> tuple[TrainState, list[Metrics]]:
    waiting: list[Metrics] = []  # on the device
    history: list[Metrics] = []
    for batch, mask in ahead:
        ts, metrics = run(ts, batch, key, mask)
        waiting.append(metrics)
        if len(waiting) >= _IN_FLIGHT:
            jax.block_until_ready(waiting[-_IN_FLIGHT])
        if len(waiting) == _CHUNK + _IN_FLIGHT:
            history.append(_fetch(waiting[:_CHUNK]))
            del waiting[:_CHUNK]
    return ts, [*history, _fetch(waiting)] if waiting else history


def _read(
    source: Iterator[Data],
    sharding: Sharding | None,
    queue: Queue[tuple[Data, Any, BaseException | None]],
    stop: threading.Event,
    x64: bool,
    device: Any,
) -> None:
    get_state = getattr(source, "get_state", lambda: None)
    with jax.enable_x64(x64), jax.default_device(device):
        try:
            while not stop.is_set():
                batch = _to_device(next(source), sharding)
                queue.put((batch, get_state(), None))
                del batch  # not held while the next one is read
        except BaseException as error:  # the end of the batches among them
            queue.put((None, None, error))


def _to_device(batch: Data, sharding: Sharding | None) -> Data:
    # A CPU device would share the array's memory, which the source may write to, or which is a
    # file that is not read yet. Waited for, so that a slow transfer holds up the reading.
    own = jax.tree.map(lambda leaf: leaf if isinstance(leaf, Array) else np.array(leaf), batch)
    return jax.block_until_ready(jax.device_put(own, sharding))


@atexit.register
def _close_all() -> None:
    # A thread that is in the middle of a transfer when Python ends would take the process down.
    for thread, (queue, stop) in list(_reading.items()):
        _drain(queue, stop)
        thread.join(timeout=_CLOSING)


def _drain(queue: Queue[Any], stop: threading.Event) -> None:
    """Stop the thread: it looks before each batch, and after this has room for one more."""
    stop.set()
    try:
        while True:
            queue.get_nowait()
    except Empty:
        pass


def _of_one_shape(
    batches: Iterable[Data], batch_size: int | None, tail: str
) -> Iterator[tuple[Data, np.ndarray | None]]:
    """(batch, mask) with as many rows each; the mask is None where the tail is dropped."""
    first = None
    for batch in batches:
        rows = rows_of("train_on_batches", batch)
        batch_size = rows if batch_size is None else batch_size
        kind = [(leaf.shape[1:], str(leaf.dtype)) for leaf in jax.tree.leaves(batch)]
        first = kind if first is None else first
        if rows > batch_size:
            raise ValueError(
                f"train_on_batches: a batch has {rows} rows, more than the {batch_size} of"
                " batch_size, or else of the first batch"
            )
        if kind != first:
            raise ValueError(
                f"train_on_batches: a batch's rows are {kind}, but the first batch's were {first}"
            )
        if rows == batch_size:
            yield batch, np.ones(rows, bool) if tail == "pad" else None
        elif tail == "pad":
            places = np.arange(batch_size)
            index = places % rows
            yield jax.tree.map(lambda leaf, i=index: leaf[i], batch), places < rows


def _own(leaf: Any, sharding: Sharding | None) -> Array:
    """A copy that may be overwritten, on all of the devices if it was on one."""
    leaf = jax.numpy.array(leaf, copy=True)
    if isinstance(sharding, NamedSharding) and len(leaf.devices()) == 1:
        return jax.device_put(leaf, NamedSharding(sharding.mesh, PartitionSpec()))
    return leaf


def _fetch(metrics: list[Metrics]) -> Metrics:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(metrics))


def _with_state(name: str, iterator: Any) -> Any:
    if not (hasattr(iterator, "get_state") and hasattr(iterator, "set_state")):
        raise TypeError(
            f"{name}: {type(iterator).__name__} has no get_state and set_state; Grain's iterators"
            " have, and of a generator that can start anywhere ts.step says where"
        )
    return iterator


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"position: the state holds a {type(value).__name__}, expected what JSON can")
