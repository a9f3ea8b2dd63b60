"""A run to watch: a host's loop over compiled chunks of epochs.

`train` does what ``fit`` does, bit for bit. Between chunks, about twice a second, it shows
progress, logs, saves, and may be stopped. Nothing calls back from inside the program.
"""

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.errors import JaxRuntimeError

from fnn._base import (
    Data,
    Interrupts,
    Params,
    check_at_least_1,
    check_range,
    reporter,
)
from fnn.training._flops import Flops, flops_of_run
from fnn.training._loops import Validate, batches_of_run, check_validation
from fnn.training._nonfinite import POLICIES, describe_bad
from fnn.training._plan import Plan, capacity, or_best, words
from fnn.training._processes import (
    by_first,
    check_same,
    everyone,
    fetch,
    is_first,
    several,
    spread,
    together,
)
from fnn.training._profiler import Profiler, checked_folder
from fnn.training._result import Result, device_of, end_line, start_line, told, why
from fnn.training._rows import Tail
from fnn.training._run_folder import History, RunFolder, fresh, opened
from fnn.training._sharding import mesh_of
from fnn.training._state import TrainState
from fnn.training._step import Step
from fnn.training._stopping import EarlyStopping, Progress, check_stop, progress_init
from fnn.training.logs import Log

Hook = Callable[[TrainState, int, dict[str, float]], dict[str, Any] | None]
Rows = list[tuple[int, dict[str, float]]]  # (epoch, metrics)

CHUNK_SECONDS = 0.5


def train(
    step: Step,
    ts: TrainState,
    data: Data,
    key: Array,
    *,
    epochs: int,
    batch_size: int,
    tail: Tail = "pad",
    weights: Array | None = None,
    validate: Validate | None = None,
    validation: Data = None,
    stop: EarlyStopping | None = None,
    hook: Hook | None = None,
    hook_every: int = 1,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    log: Log | None = None,
    progress: bool = True,
    max_seconds: float | None = None,
    profile: str | Path | None = None,
    count_flops: bool = False,
    peak_flops: float | None = None,
) -> Result:
    """-> `Result`. The same run as `fit`, bit for bit, watched: a chunk of epochs at a time.

    `validate`: validate(ts, validation) gives scalars after each epoch, {"loss": ...}. It is part
    of the compiled program: it uses jax.numpy.
    `stop`: an `EarlyStopping`. Without one the best epoch is the one with the least "val_loss".
    `hook`: hook(ts, epoch, metrics) is called after every `hook_every` epochs. It runs on the host:
    it may draw samples, write files, and use NumPy or scikit-learn. `ts` is a copy. The numbers
    that it may return, {"auc": ...}, are in the log and in the history, NaN for other epochs. If it
    raises an error, the run is saved, and the error goes on.
    `checkpoint`: a folder, for one run at a time. If it holds a checkpoint of this run, the run
    goes on from there, and a line says so. A checkpoint of another run is a ValueError: with
    another step, train state, key, data or settings. Only `epochs` may differ. The run is saved at
    the end and every `checkpoint_seconds`, with best.safetensors beside it.
    `log`: called with the epoch, from 0, and its metrics, those of steps averaged over the rows;
    see `fnn.logs`.
    `progress`: show a bar on a terminal, and lines elsewhere.
    `max_seconds`: the run ends after the chunk in which this call has taken so long, compiling
    included; it is saved, and the same call goes on. At least one epoch is trained.
    `profile`: a folder. One epoch after the first is recorded there (``jax.profiler``), for
    TensorBoard and, as perfetto_trace.json.gz, for ui.perfetto.dev.
    `count_flops`: `result.flops` has the operations of a step (`training.flops_of_step`), those of
    a second, validation and logs in its time, and their share of the peak. `peak_flops`: the peak
    of one device, FLOP/s, for a device that `training.PEAKS` lacks, as each CPU. The step is traced
    once more, at the end.

    On several processes (`start_processes`) all of them call it with the same arguments. Process 0
    alone shows progress, calls `log` and `hook`, and writes to the folder, which all must see; a
    hook's `ts` is on a device of process 0. What the hook returns, a signal that any process gets,
    and the length of a chunk are told to all, so all end after the same epoch.

    Ctrl-C or SIGTERM ends the run after the present chunk: it is saved and returned. A second
    Ctrl-C is KeyboardInterrupt. If a log or a checkpoint cannot be written, a UserWarning says so
    once, and the run goes on. `ts` and `data` stay yours. The run is on the devices of `data`.
    """
    started = time.monotonic()
    _refuse_traced(ts=ts, data=data, key=key, weights=weights, validation=validation)
    check_at_least_1("train", epochs=epochs, hook_every=hook_every)
    check_range("train", "checkpoint_seconds", checkpoint_seconds, 0)
    check_range("train", "max_seconds", max_seconds, 0, none=True)
    check_range("train", "peak_flops", peak_flops, 0, above=True, none=True)
    check_stop("train", stop)
    check_validation("train", validate, validation)
    profile = checked_folder("train", profile)
    batches = batches_of_run("train", ts, data, key, weights, batch_size, tail)
    plan = Plan(step, batches, key, validate, validation, or_best(stop, validate, ts, validation))
    check_same(
        "train",
        settings=words(plan.settings | {"epochs": epochs}),
        data=batches,
        validation=validation,
        key=key,
        ts=ts,
    )
    progress = progress and is_first() and sys.stderr is not None
    with _opened(checkpoint, partial(plan.marks, _readable(ts))) as folder:
        until = math.inf if max_seconds is None else started + float(max_seconds)
        run = _Run(plan, ts, folder, checkpoint_seconds, until, profile)
        if progress and folder is not None and run.before > 0:
            print(start_line(folder.folder, run.before, run.is_over(epochs)), file=sys.stderr)
        with (
            Interrupts() as interrupts,
            _Watch(run, hook, hook_every, log) as watch,
            reporter(epochs, run.epochs, progress) as report,
        ):
            for rows in run.chunks(epochs, hook_every if hook else epochs):
                watch(rows, report)
                if run.settled(interrupts.seen):
                    break
        run.profiler.warn_if_unused()
        result = run.result(epochs, count_flops or peak_flops is not None, peak_flops)
        line = end_line(result, time.monotonic() - started, saved=folder is not None)
        if progress and line:
            print(line, file=sys.stderr)
        return told(result)


class _Run:
    """A run so far: its progress, its history, and the seconds that it took."""

    def __init__(
        self,
        plan: Plan,
        ts: TrainState,
        folder: RunFolder | None,
        every: float,
        until: float,
        profile: Path | None,
    ):
        ts, self.given = plan.placed(ts)
        start, self.history, self.hooked = progress_init(ts, plan.stop), {}, []
        start = spread(mesh_of(plan.step), start)
        if folder is not None:
            resume = partial(folder.resume, start, partial(plan.measures, ts))
            start, self.history, self.hooked = together("train", resume)
            _check_same_epoch(folder, start)
        self.start = start.last.params
        self.progress = jax.tree.map(fresh, start)  # the program overwrites it
        self.program = plan.program(self.progress, self.given)
        self.plan, self.folder, self.every, self.until = plan, folder, every, until
        self.seconds, self.saved, self.before = 0.0, time.monotonic(), int(start.epochs)
        self.cut = ""  # what has ended the run from outside
        self.next, self.due = 1, False  # epochs of the next chunk, whether to save before it
        self.failed: set[str] = set()
        self.profiler = Profiler(profile, partial(self.surviving, "the profile was not written"))

    @property
    def epochs(self) -> int:
        return int(self.progress.epochs)

    def is_over(self, epochs: int) -> bool:
        """Whether nothing is left to train."""
        return self.epochs >= epochs or bool(self.progress.stopped)

    def chunks(self, epochs: int, every: int) -> Iterator[Rows]:
        """(epoch, metrics) of each chunk's epochs. No chunk goes past a multiple of `every`.

        The first chunk is one epoch, to time it.
        """
        while not self.is_over(epochs):
            done = self.epochs
            n = min(self.next, epochs - done, every - done % every)
            recorded = self.profiler.due(first=self.seconds == 0, last=n == epochs - done)
            n = 1 if recorded else n
            if recorded:
                self.profiler.start()
            started = time.perf_counter()
            try:
                self.progress, *told = self.program.call(self.progress, *self.given, np.int32(n))
                (history, means), now = jax.device_get((told, self.progress.epochs))
                seconds = time.perf_counter() - started
            finally:
                if recorded:
                    self.profiler.stop()
            if self.seconds == 0:
                _warn_if_nothing_moved(*_readable((self.start, self.progress.last.params)))
            self.seconds += seconds
            new: History = {name: values[: now - done].copy() for name, values in history.items()}
            new |= {name: np.full(now - done, math.nan) for name in self.hooked}
            self.history = {
                name: np.concatenate([self.history.get(name, values[:0]), values])
                for name, values in new.items()
            }
            most = capacity(self.plan.batches)
            if not recorded:  # recording is slow
                self.next = max(1, min(most, int(CHUNK_SECONDS * (now - done) / seconds)))
            yield [
                (done + i, {name: float(values[i]) for name, values in means.items()})
                for i in range(now - done)
            ]
            if self.due:
                self.save()

    def settled(self, seen: int) -> bool:
        """Whether something outside ends the run on all processes; what a clock says is told."""
        now = time.monotonic()
        rows = everyone([self.next, now - self.saved >= self.every, seen, now >= self.until])
        self.next, self.due = int(rows[0, 0]), bool(rows[0, 1])
        if rows[:, 2].any():  # a signal that any process has seen
            self.cut = "interrupted"
        elif rows[0, 3]:
            self.cut = "max_seconds"
        return bool(self.cut)

    def note(self, values: dict[str, float]) -> None:
        """Put what the hook found into the history of the last epoch."""
        for name, value in values.items():
            if name not in self.hooked:
                self.hooked = [*self.hooked, name]
                self.history[name] = np.full(self.epochs, math.nan)
            self.history[name][-1] = value

    def save(self, alone: bool = False) -> None:
        """Process 0 writes, the others wait; `alone` is after an error that others may not have."""
        if self.folder is None or self.progress.epochs.is_deleted():
            return
        progress = self.progress if alone else _readable(self.progress)
        if is_first():
            with self.surviving("the checkpoint was not written"):
                self.folder.save(progress, self.history, self.hooked)
        if not alone:
            everyone([0])
        self.saved = time.monotonic()

    @contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        """An error in this block is told, once of each kind, and the run goes on."""
        try:
            yield
        except Exception as error:
            if what not in self.failed:
                self.failed.add(what)
                said = f"train: {what}, the run goes on: {type(error).__name__}: {error}"
                warnings.warn(said, stacklevel=6)

    def flops(self, peak: float | None) -> Flops:
        """What the steps of this call computed."""
        batches, last = self.plan.batches, self.progress.last
        first = jax.eval_shape(lambda batches: batches.draw(batches.in_order()[0]), batches)
        devices = len(jax.tree.leaves(self.progress.epochs)[0].sharding.device_set)
        steps = (self.epochs - self.before) * batches.steps
        batch, mask = first
        given = last, batch, self.plan.key, mask
        return flops_of_run(self.plan.step, given, steps, self.seconds, peak, devices)

    def result(self, epochs: int, count_flops: bool, peak: float | None) -> Result:
        last, batches, program = self.progress.last, self.plan.batches, self.program
        policy = POLICIES[int(last.first_bad.policy)]
        return Result(
            stopped=why(self.progress, epochs, self.cut),
            last=last,
            best=None if self.plan.stop is None else self.progress.best,
            history=self.history,
            epochs=self.epochs,
            nonfinite=describe_bad(last.first_bad, last.params, batches.data, batches.steps),
            traces=program.traces,
            compile_seconds=program.compile_seconds,
            run_seconds=self.seconds,
            peak_bytes=program.peak_bytes,
            device=device_of(),
            versions={name: metadata.version(name) for name in ("fnn", "jax", "jaxlib", "optax")},
            settings=self.plan.settings | {"epochs": int(epochs), "nonfinite": policy},
            flops=self.flops(peak) if count_flops else None,
        )


class _Watch:
    """Shows, logs and hands out what a run measures; at the end the run is saved."""

    def __init__(self, run: _Run, hook: Hook | None, every: int, log: Log | None):
        self.run, self.hook, self.every, self.log = run, hook, every, log
        # A log may want the same columns from the first epoch on, so epochs wait for the names.
        self.waiting: Rows = []
        self.named = hook is None or bool(run.hooked)

    def __call__(self, rows: Rows, report: Callable[[int, dict[str, float]], None]) -> None:
        for epoch, metrics in rows:
            report(epoch, metrics)
        self.waiting += rows
        epoch, metrics = rows[-1]
        if self.hook is not None and (epoch + 1) % self.every == 0:
            last = jax.tree.map(fresh, _readable(self.run.progress.last))
            hook = self.hook

            def values_of_hook() -> dict[str, float]:
                return _hooked(hook(last, epoch, dict(metrics)), metrics)

            values = by_first("train", values_of_hook)
            self.run.note(values)
            metrics |= values
            self.named = True
        if self.named:
            self.tell_log()

    def tell_log(self) -> None:
        rows, self.waiting = self.waiting, []
        if self.log is None or not is_first():
            return
        for epoch, metrics in rows:
            others = {n: math.nan for n in self.run.hooked if n not in metrics}
            with self.run.surviving("the log failed"):
                self.log(epoch, metrics | others)

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A second Ctrl-C, or a program that fails, may be this process's alone.
        others = kind is None or (issubclass(kind, Exception) and kind is not JaxRuntimeError)
        try:
            self.tell_log()
        finally:
            self.run.save(alone=not others)  # whatever was raised, what has been trained is kept


@contextmanager
def _opened(
    folder: str | Path | None, marks: Callable[[], dict[str, Any]]
) -> Iterator[RunFolder | None]:
    """`opened`; of several processes the first holds the folder for all."""
    with ExitStack() as held:
        if not folder or not several():
            yield held.enter_context(opened(folder, marks))
            return

        mine: list[RunFolder] = []

        def hold() -> None:
            mine.append(held.enter_context(opened(folder, marks)))

        by_first("train", hold)
        yield together("train", lambda: mine[0] if mine else RunFolder(folder, marks()))


def _readable(tree: Any) -> Any:
    """The tree; of several processes each has the whole arrays, which one alone can read."""
    return fetch(tree) if several() else tree


def _check_same_epoch(folder: RunFolder, start: Progress) -> None:
    epochs = everyone([int(start.epochs)])[:, 0]
    if (epochs != epochs[0]).any():
        process = int(np.flatnonzero(epochs != epochs[0])[0])
        raise ValueError(
            f"train: {folder.folder} has epoch {epochs[process]} for process {process}, but epoch"
            f" {epochs[0]} for process 0; expected a folder on a disk that all processes share"
        )


def _refuse_traced(**given: Any) -> None:
    for name, tree in given.items():
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
            raise TypeError(
                f"train: {name} is traced, but train is a loop of the host, which cannot be under"
                " jit, grad, vmap or sweep; use fit or fit_until there"
            )


def _hooked(found: Any, metrics: dict[str, float]) -> dict[str, float]:
    """What the hook returned, as floats."""
    if not isinstance(found, dict | None):
        came = type(found).__name__
        raise TypeError(f'train: hook returned a {came}, expected a dict such as {{"auc": ...}}')
    twice = sorted((found or {}).keys() & metrics.keys())
    if twice:
        raise ValueError(f"train: hook returned {twice}, which the run measures itself")
    return {name: float(value) for name, value in (found or {}).items()}


def _warn_if_nothing_moved(before: Params, after: Params) -> None:
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    if all(np.array_equal(old, new, equal_nan=True) for old, new in pairs):
        warnings.warn(
            "train: no parameter moved in the first epoch: is the learning rate 0, is everything"
            " frozen, or does the loss not depend on the parameters?",
            stacklevel=4,
        )
