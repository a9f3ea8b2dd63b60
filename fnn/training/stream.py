"""Data larger than memory: training on any iterable of batches.

`fit` is one program and holds its data on the device. Here the batches come from the host: from a
generator over memory-mapped files, from Grain, or from any other iterable. Every step is a call of
one compiled program. A thread prepares batches while the device computes.
"""

import atexit
import itertools
import json
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from fnn._base import Data, Interrupts, Metrics, as_array, as_count, check_fits, check_key
from fnn.data import rows_of
from fnn.training._processes import everyone, several, spread
from fnn.training._state import TrainState
from fnn.training._step import Step, Update

_IN_FLIGHT = 8  # steps that may wait on the device; more would pile up their batches there
_CHUNK = 256  # steps whose metrics are fetched together
_CLOSING = 10.0  # seconds that `close` waits for the source to return its batch
_ENDING = 1.0  # the same when a run was interrupted or Python ends, and the source may be stuck
_LOOK = 0.1  # seconds between two looks for a signal while no batch comes


def prefetch(
    batches: Iterable[Data], size: int = 2, sharding: Sharding | None = None
) -> "Prefetch":
    """The same batches, pytrees of arrays, put onto the device before they are asked for.

    A thread reads up to `size` batches ahead, and holds one more. Each batch is copied, so the
    source may fill the same buffer again. An error of the source is raised here, in place of its
    batch. `close`, or dropping the iterator, stops the thread. `get_position` and `set_position`
    count the batches handed out, not the batches read ahead.
    """
    return Prefetch(iter(batches), as_count("prefetch", "size", size), sharding)


class Prefetch(Iterator[Data]):
    """The iterator that `prefetch` returns. It can be closed, and knows its position.

    Several threads may take batches from it: each batch goes to one of them, and all end.
    """

    def __init__(self, source: Iterator[Data], size: int, sharding: Sharding | None) -> None:
        self._source, self._reader = source, _Reader(source, size, sharding)
        self._state: Any = None  # the source's, after the batch that was handed out last
        weakref.finalize(self, self._reader.stop)  # may run in the thread: no join

    def __next__(self) -> Data:
        return self._take(None)[0]

    def close(self) -> None:
        """Stop reading. Waits at most 10 s for the batch that the source is making."""
        self._reader.close(_CLOSING)

    def _take(self, timeout: float | None) -> list[Data]:
        """[batch], or [] if none came within `timeout` seconds. StopIteration at the end."""
        if not self._reader.started:
            self._state = getattr(self._source, "get_state", lambda: None)()
            self._reader.start()
        came = self._reader.take(timeout)
        if came:
            self._state = came[0][1]
        return [batch for batch, _ in came]

    def get_state(self) -> Any:
        """The source's state after the batch that was handed out last."""
        state = _with_state("prefetch", self._source).get_state
        return self._state if self._reader.started else state()

    def set_state(self, state: Any) -> None:
        """Set the source's state. ValueError after the first batch."""
        if self._reader.started:
            raise ValueError(
                "prefetch: batches are read ahead already; set the position before the first batch"
            )
        _with_state("prefetch", self._source).set_state(state)


class _Reader:
    """The thread of a `Prefetch` and what the two share.

    It holds no reference to the `Prefetch`, so that dropping that stops the thread.
    """

    def __init__(self, source: Iterator[Data], size: int, sharding: Sharding | None) -> None:
        self.source, self.size, self.sharding = source, size, sharding
        self.changed = threading.Condition()  # guards all below
        self.ready: deque[tuple[Data, Any]] = deque()  # (batch, the source's state after it)
        self.reading, self.closed, self.ended = True, False, False
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None
        self.transfer = threading.Lock()  # held while a batch goes to the device

    @property
    def started(self) -> bool:
        return self.thread is not None

    def start(self) -> None:
        # Settings of this thread that a new thread does not inherit.
        x64 = jax.dtypes.canonicalize_dtype(float) == np.float64
        device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
        with self.changed:
            if self.thread is None and not self.closed:
                self.thread = threading.Thread(target=self.run, args=(x64, device), daemon=True)
                self.thread.start()
                _started.add(self)

    def run(self, x64: bool, device: Any) -> None:
        get_state = getattr(self.source, "get_state", lambda: None)
        error = None
        with jax.enable_x64(x64), jax.default_device(device):
            try:
                while self.reading:
                    batch = next(self.source)
                    with self.transfer:
                        batch = _to_device(batch, self.sharding)
                    self.put(batch, get_state())
                    del batch  # so that it is not held while the next one is read
            except BaseException as raised:  # StopIteration too, at the end of the batches
                error = raised
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify_all()

    def put(self, batch: Data, state: Any) -> None:
        with self.changed:
            self.changed.wait_for(lambda: len(self.ready) < self.size or not self.reading)
            if not self.closed:
                self.ready.append((batch, state))
                self.changed.notify_all()

    def take(self, timeout: float | None) -> list[tuple[Data, Any]]:
        """One at most; [] if none came in time. The end is StopIteration for every taker."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.ready or self.ended or self.closed, timeout):
                return []
            if self.ready:
                self.changed.notify_all()
                return [self.ready.popleft()]
            error, self.error = self.error, None
        raise error or StopIteration

    def finish(self) -> None:
        """Read no more. What is read already can still be taken."""
        with self.changed:
            self.reading = False
            self.changed.notify_all()

    def stop(self) -> None:
        """Read no more, and drop what is read."""
        with self.changed:
            self.reading, self.closed, self.error = False, True, None
            self.ready.clear()
            self.changed.notify_all()

    def close(self, timeout: float) -> None:
        self.stop()
        if self.thread is not None:
            self.thread.join(timeout)


_started: weakref.WeakSet[_Reader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A thread that is in the middle of a transfer when Python ends would crash the process. The
    # lock is kept, so none begins. A source that is stuck is not waited for.
    for reader in list(_started):
        reader.close(_ENDING)
        reader.transfer.acquire(timeout=_CLOSING)


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
    """-> (ts, history), whose leaves are the step's metrics, NumPy [steps, ...].

    `step` is one of `make_train_step`. Step s draws from fold_in(key, s); s is ``ts.step``.
    `steps`: the most batches to take; by default all. No batch more is read, so afterwards the
    position of an iterator is the position of the run.
    `batch_size`: the rows of every batch of the program, by default those of the first batch.
    A larger batch is a ValueError.
    `tail` says what happens to a smaller batch:

    - "pad": it is filled up with its own rows, which a mask takes out of the mean.
    - "drop": it is dropped and not counted as a step.

    `size` and `sharding` are those of `prefetch`. A sharding of the first axis splits the rows
    over devices; arrays of `ts` that are on one device are then copied to all of them. `ts` stays
    yours: the steps overwrite a copy. Not for use under jit, grad, vmap or sweep.

    On several processes (`start_processes`) all of them call it, with the same `steps`, and with a
    sharding over the devices of all. Each process's batches hold its own rows: the program's batch
    is all of them. Every process must have enough batches for the same number of steps. A signal
    ends the next call, on all processes: call it for some steps at a time.

    Ctrl-C or SIGTERM ends it after the batches that are read already, and what was trained is
    returned; before the first step the history is {}. A second Ctrl-C is KeyboardInterrupt.
    """
    who = "train_on_batches"
    steps = None if steps is None else as_count(who, "steps", steps)
    batch_size = None if batch_size is None else as_count(who, "batch_size", batch_size)
    if tail not in ("pad", "drop"):
        raise ValueError(f"{who}: tail is {tail!r}, expected 'pad' or 'drop'")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((ts, key))):
        raise TypeError(
            f"{who}: ts or key is traced, but {who} is a loop of the host, which cannot be under"
            " jit, grad, vmap or sweep; use fit there"
        )
    check_key(who, key)
    run = jax.jit(step, donate_argnums=0)  # kept by JAX with the step: later calls compile nothing
    ts = jax.tree.map(lambda leaf: _own(leaf, sharding), ts)
    source = itertools.islice(_of_one_shape(batches, batch_size, tail), steps)
    ahead = prefetch(source, size, sharding)
    try:
        with Interrupts() as interrupts:
            seen = everyone([interrupts.seen]).any()  # by any of several processes
            ts, chunks = _train(run, ts, _until(interrupts, ahead, seen), key)
    finally:
        ahead._reader.close(_ENDING)
    history = jax.tree.map(lambda *chunks: np.concatenate(chunks), *chunks) if chunks else {}
    if interrupts.seen or seen:
        done = len(jax.tree.leaves(history)[0]) if history else 0
        print(f"{who}: interrupted after {done} steps", file=sys.stderr)
    elif not chunks:
        raise ValueError(f"{who}: no batch came; a generator gives its batches only once")
    return ts, history


def get_position(iterator: Any) -> str:
    """The position of an iterator, as text for a checkpoint: Grain's, `prefetch`'s, or your own.

    The iterator has get_state() and set_state(state). The state is bytes or a value that JSON can
    hold. Grain's states fit only the pipeline and the version of Grain that they came from. A
    source that can start anywhere needs no position: ``ts.step`` is the number of batches done.
    """
    state = _with_state("get_position", iterator).get_state()
    return state.decode() if isinstance(state, bytes) else json.dumps(state, default=_plain)


def set_position(iterator: Any, position: str) -> None:
    """Move a new iterator over the same data to the position that `get_position` gave."""
    as_bytes = isinstance(_with_state("set_position", iterator).get_state(), bytes)
    iterator.set_state(position.encode() if as_bytes else json.loads(position))


def _train(
    run: Update, ts: TrainState, ahead: Iterator[Data], key: Array
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


def _until(interrupts: Interrupts, ahead: Prefetch, seen: Any) -> Iterator[Data]:
    """The batches; after a signal only those that are read already.

    All of these, so that the position of the source stays the position of the run. If the source
    is stuck in a batch, that batch is waited for a moment only.
    """
    if several():  # they take the same number of steps, so only what came before these counts
        yield from () if seen else ahead
        return
    stuck = None
    while True:
        if interrupts.seen and stuck is None:
            ahead._reader.finish()
            stuck = time.monotonic() + _ENDING
        try:
            came = ahead._take(_LOOK)
        except StopIteration:
            return
        yield from came
        if not came and stuck is not None and time.monotonic() > stuck:
            return


def _to_device(batch: Data, sharding: Sharding | None) -> Data:
    # A slow transfer is waited for and holds up reading.
    batch = jax.tree.map(_copied, batch)
    if sharding is None or sharding.is_fully_addressable:
        return jax.block_until_ready(jax.device_put(batch, sharding))
    # Each process has its own rows. `device_put` would want the same rows of all, and compare them.
    place = partial(jax.make_array_from_process_local_data, sharding)
    return jax.block_until_ready(jax.tree.map(place, batch))


def _copied(leaf: Any) -> Any:
    # A CPU device shares the memory of a NumPy array, which the source may write to, or which is a
    # file that is not read yet. A JAX array there may be such an array already.
    if not isinstance(leaf, Array):
        array = as_array("prefetch", "batches", np.asanyarray(leaf))
        check_fits("prefetch", "batches", array)
        return np.array(array)
    return leaf.copy() if any(d.platform == "cpu" for d in leaf.devices()) else leaf


def _of_one_shape(
    batches: Iterable[Data], batch_size: int | None, tail: str
) -> Iterator[tuple[Data, np.ndarray | None]]:
    """(batch, mask), all with the same number of rows; the mask is None if the tail is dropped."""
    first = structure = None
    for batch in batches:
        rows = rows_of("train_on_batches", batch)
        batch_size = rows if batch_size is None else batch_size
        kind = [(leaf.shape[1:], str(leaf.dtype)) for leaf in jax.tree.leaves(batch)]
        came = jax.tree.structure(batch)
        first, structure = first or kind, structure or came
        if came != structure:
            raise ValueError(
                f"train_on_batches: a batch is {came}, but the first batch was {structure}"
            )
        if rows > batch_size:
            raise ValueError(
                f"train_on_batches: a batch has {rows} rows, more than {batch_size}, the batch_size"
                " or the rows of the first batch"
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
    """A copy that may be overwritten; on all devices of the sharding if it was on one."""
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        leaf = spread(sharding.mesh, leaf)
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
            " have them, and a source that can start anywhere can start at ts.step instead"
        )
    return iterator


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(
        f"get_position: the state holds a {type(value).__name__}, expected what JSON can hold"
    )
