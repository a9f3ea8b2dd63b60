"""A run to watch: a host's loop over compiled chunks of epochs.

`train` does what ``fit`` does, bit for bit. Between chunks, about twice a second, it shows
progress, logs, saves, and may be stopped. Nothing calls back from inside the program.
"""

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.errors import JaxRuntimeError

from fnn._base import (
    Data,
    Interrupts,
    Metrics,
    Params,
    check_at_least_1,
    check_range,
    kept_with,
    paths,
    reporter,
    weakly,
)
from fnn.training._loops import Validate, batches_of_run, epoch_of, run_epochs, validated
from fnn.training._nonfinite import POLICIES, describe_bad
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
from fnn.training._programs import Compiler, Program
from fnn.training._rows import Batches, Tail
from fnn.training._run_folder import History, RunFolder, fresh, marks_of_run, opened
from fnn.training._sharding import mesh_of, on_the_same
from fnn.training._state import TrainState
from fnn.training._step import Step
from fnn.training._stopping import NEVER, Best, EarlyStopping, Progress, progress_init
from fnn.training.logs import Log

Hook = Callable[[TrainState, int, dict[str, float]], dict[str, Any] | None]
Rows = list[tuple[int, dict[str, float]]]  # (epoch, metrics)

CHUNK_SECONDS = 0.5
HISTORY_VALUES = 2**18  # of each metric, that one chunk may hold


class Result(NamedTuple):
    """What `train` returns."""

    stopped: str  # why: "epochs", "early stopping", "not finite", "interrupted"
    last: TrainState
    best: Best | None  # by "val_loss" or the rule's monitor; None without either
    history: History  # of steps [epochs, steps], of validation and hook [epochs]
    epochs: int
    nonfinite: str | None  # the first step that was not finite, and what
    traces: int  # programs compiled for this call
    compile_seconds: float
    run_seconds: float
    peak_bytes: int  # that the compiled program needs, as predicted
    device: str
    versions: dict[str, str]
    settings: dict[str, Any]

    def __repr__(self) -> str:
        """One line, without the arrays."""
        best = "" if self.best is None else f", best=epoch {int(self.best.epoch)}"
        said = f"stopped={self.stopped!r}, epochs={self.epochs}{best}, nonfinite={self.nonfinite!r}"
        return f"Result({said}, history={list(self.history)}, ...)"

    def to_json(self) -> str:
        """Everything but the parameters, as JSON. What is not finite is null."""
        best = self.best and {"epoch": int(self.best.epoch), "value": float(self.best.value)}
        if best and best["epoch"] < 0:
            best["value"] = None
        history = {name: values.tolist() for name, values in self.history.items()}
        rest = {k: v for k, v in self._asdict().items() if k not in ("last", "best", "history")}
        return json.dumps(_finite(rest | {"best": best, "history": history}), allow_nan=False)


class NonFiniteError(FloatingPointError):
    """Raised by `train` under the policy "raise"; `result` is the run until then."""

    def __init__(self, message: str, result: Result):
        super().__init__(message)
        self.result = result


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

    On several processes (`start_processes`) all of them call it with the same arguments. Process 0
    alone shows progress, calls `log` and `hook`, and writes to the folder, which all must see; a
    hook's `ts` is on a device of process 0. What the hook returns, a signal that any process gets,
    and the length of a chunk are told to all, so all end after the same epoch.

    Ctrl-C or SIGTERM ends the run after the present chunk: it is saved and returned. A second
    Ctrl-C is KeyboardInterrupt. If a log or a checkpoint cannot be written, a UserWarning says so
    once, and the run goes on. `ts` and `data` stay yours. The run is on the devices of `data`.
    """
    _refuse_traced(ts=ts, data=data, key=key, weights=weights, validation=validation)
    check_at_least_1("train", epochs=epochs, hook_every=hook_every)
    check_range("train", "checkpoint_seconds", checkpoint_seconds, 0)
    batches = batches_of_run("train", ts, data, key, weights, batch_size, tail)
    plan = _Plan(step, batches, key, validate, validation, _or_best(stop, validate, ts, validation))
    check_same(
        "train",
        settings=_words(plan.settings | {"epochs": epochs}),
        data=batches,
        validation=validation,
        key=key,
        ts=ts,
    )
    progress = progress and is_first()
    with _opened(checkpoint, partial(plan.marks, _readable(ts))) as folder:
        run = _Run(plan, ts, folder, checkpoint_seconds, progress)
        with (
            Interrupts() as interrupts,
            _Watch(run, hook, hook_every, log) as watch,
            reporter(epochs, run.epochs, progress) as report,
        ):
            for rows in run.chunks(epochs, hook_every if hook else epochs):
                watch(rows, report)
                if run.settled(interrupts.seen):
                    break
        return _told(run.result(epochs))


class _Plan:
    """What a run does: everything but its state."""

    def __init__(
        self,
        step: Step,
        batches: Batches,
        key: Array,
        validate: Validate | None,
        validation: Data,
        stop: EarlyStopping | None,
    ):
        self.step, self.batches, self.key, self.stop = step, batches, key, stop
        self.validate, self.validation = validate, validation
        self.settings = {
            "batch_size": batches.batch_size,
            "tail": batches.tail,
            "stop": stop and _plain(stop),
        }

    def marks(self, ts: TrainState) -> dict[str, Any]:
        """What a checkpoint of the run is known by."""
        given = self.batches, self.validation, self.key, self.settings
        return marks_of_run(self.step, ts, *given)

    def measures(self, ts: TrainState) -> set[str]:
        """The names of the metrics."""
        epoch = epoch_of("train", self.step, self.batches, self.key, self.validate, self.validation)
        return set(paths(jax.eval_shape(lambda ts: epoch(ts)[1].history(), ts)))

    def placed(self, ts: TrainState) -> tuple[TrainState, list[Any]]:
        """`ts` and the arguments of the program after it, all on the same devices."""
        given = self.batches.data, self.validation, self.batches.weights, self.key
        given = jax.tree.map(jnp.asarray, given)
        mesh = mesh_of(self.step)
        *given, ts = on_the_same(mesh, spread(mesh, (*given, ts)))
        return ts, given

    def program(self, progress: Progress, given: list[Any]) -> Program:
        """The program of a chunk of any length: kept as long as step and validate live."""
        # The program outlives this call, so it must not hold the data or these functions.
        step, validate = weakly(self.step), weakly(self.validate)
        batches, stop = replace(self.batches, data=None, weights=None), self.stop

        def chunk(
            progress: Progress, data: Any, validation: Any, weights: Any, key: Any, n: Array
        ) -> tuple[Progress, Metrics, Metrics]:
            given = replace(batches, data=data, weights=weights)
            epoch = epoch_of("train", step(), given, key, validate(), validation)
            progress, history, means = run_epochs(epoch, progress, stop, n, _capacity(given))
            return progress, paths(history), means

        settings = "train", json.dumps(self.settings, sort_keys=True), batches.others
        compiler = kept_with((self.step, self.validate), settings, lambda: Compiler("train", chunk))
        return compiler(progress, *given, np.int32(1))


class _Run:
    """A run so far: its progress, its history, and the seconds that it took."""

    def __init__(
        self, plan: _Plan, ts: TrainState, folder: RunFolder | None, every: float, say: bool
    ):
        ts, self.given = plan.placed(ts)
        start, self.history, self.hooked = progress_init(ts, plan.stop), {}, []
        start = spread(mesh_of(plan.step), start)
        if folder is not None:
            resume = partial(folder.resume, start, partial(plan.measures, ts))
            start, self.history, self.hooked = together("train", resume)
            _check_same_epoch(folder, start)
            if say and start.epochs > 0:
                print(
                    f"train: goes on from epoch {start.epochs} of {folder.folder}", file=sys.stderr
                )
        self.start = start.last.params
        self.progress = jax.tree.map(fresh, start)  # the program overwrites it
        self.program = plan.program(self.progress, self.given)
        self.plan, self.folder, self.every = plan, folder, every
        self.seconds, self.saved = 0.0, time.monotonic()
        self.next, self.due = 1, False  # epochs of the next chunk, whether to save before it
        self.failed: set[str] = set()

    @property
    def epochs(self) -> int:
        return int(self.progress.epochs)

    def chunks(self, epochs: int, every: int) -> Iterator[Rows]:
        """(epoch, metrics) of each chunk's epochs. No chunk goes past a multiple of `every`.

        The first chunk is one epoch, to time it.
        """
        while self.epochs < epochs and not self.progress.stopped:
            done, started = self.epochs, time.perf_counter()
            n = np.int32(min(self.next, epochs - done, every - done % every))
            self.progress, *told = self.program.call(self.progress, *self.given, n)
            (history, means), now = jax.device_get((told, self.progress.epochs))
            seconds = time.perf_counter() - started
            if self.seconds == 0:
                _warn_if_nothing_moved(*_readable((self.start, self.progress.last.params)))
            self.seconds += seconds
            new: History = {name: values[: now - done].copy() for name, values in history.items()}
            new |= {name: np.full(now - done, math.nan) for name in self.hooked}
            self.history = {
                name: np.concatenate([self.history.get(name, values[:0]), values])
                for name, values in new.items()
            }
            most = _capacity(self.plan.batches)
            self.next = max(1, min(most, int(CHUNK_SECONDS * (now - done) / seconds)))
            yield [
                (done + i, {name: float(values[i]) for name, values in means.items()})
                for i in range(now - done)
            ]
            if self.due:
                self.save()

    def settled(self, seen: int) -> int:
        """The signal that any process has seen, 0 if none; and what depends on a clock is told."""
        due = time.monotonic() - self.saved >= self.every
        rows = everyone([self.next, due, seen])
        self.next, self.due = int(rows[0, 0]), bool(rows[0, 1])
        return int(rows[:, 2].max())

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

    def result(self, epochs: int) -> Result:
        last, batches, program = self.progress.last, self.plan.batches, self.program
        policy = POLICIES[int(last.first_bad.policy)]
        return Result(
            stopped=_why(self.progress, epochs),
            last=last,
            best=None if self.plan.stop is None else self.progress.best,
            history=self.history,
            epochs=self.epochs,
            nonfinite=describe_bad(last.first_bad, last.params, batches.data, batches.steps),
            traces=program.traces,
            compile_seconds=program.compile_seconds,
            run_seconds=self.seconds,
            peak_bytes=program.peak_bytes,
            device=_device(),
            versions={name: metadata.version(name) for name in ("fnn", "jax", "jaxlib", "optax")},
            settings=self.plan.settings | {"epochs": int(epochs), "nonfinite": policy},
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


def _capacity(batches: Batches) -> int:
    """The number of epochs whose history one chunk may hold."""
    return max(1, HISTORY_VALUES // batches.steps)


def _or_best(
    stop: EarlyStopping | None, validate: Validate | None, ts: TrainState, validation: Data
) -> EarlyStopping | None:
    """The rule; without one, that which only keeps the best "val_loss", if there is one."""
    if stop is None:
        found = jax.eval_shape(partial(validated, "train", validate), ts, validation)
        stop = EarlyStopping(patience=NEVER) if "val_loss" in found else None
    return stop


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


# --- the result, and what there is to say about it ----------------------------------------------


def _why(progress: Progress, epochs: int) -> str:
    if progress.last.first_bad.ends():
        return "not finite"
    if progress.stopped:
        return "early stopping"
    return "epochs" if progress.epochs >= epochs else "interrupted"


def _told(result: Result) -> Result:
    """The result; a step that was not finite is raised or warned of, as its policy says."""
    policy = result.settings["nonfinite"]
    if result.nonfinite is None or policy in ("stop", "ignore"):
        return result
    if policy == "raise":
        raise NonFiniteError(f"train: {result.nonfinite}; fnn.replay takes that step again", result)
    bad = result.history.get("nonfinite", np.zeros(1))  # a step of one's own may not count them
    count = int((bad >= 0).sum())
    warnings.warn(f"train: {count} steps were not taken; {result.nonfinite}", stacklevel=3)
    return result


def _warn_if_nothing_moved(before: Params, after: Params) -> None:
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    if all(np.array_equal(old, new, equal_nan=True) for old, new in pairs):
        warnings.warn(
            "train: no parameter moved in the first epoch: is the learning rate 0, is everything"
            " frozen, or does the loss not depend on the parameters?",
            stacklevel=4,
        )


def _words(settings: dict[str, Any]) -> np.ndarray:
    """The settings as an array, to be compared."""
    return np.frombuffer(json.dumps(settings, sort_keys=True).encode(), np.uint8)


def _plain(stop: EarlyStopping) -> dict[str, Any]:
    return {name: v if isinstance(v, str) else float(v) for name, v in stop._asdict().items()}


def _device() -> str:
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
