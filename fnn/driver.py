"""A run to watch: a host's loop over compiled chunks of epochs.

`train` does what ``fit`` does, bit for bit, and between chunks, about twice a second, shows
progress, logs, saves, and may be stopped. Nothing calls back from inside the program.
"""

import json
import math
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn import checkpoint as checkpoints
from fnn.early_stopping import (
    NEVER,
    Best,
    EarlyStopping,
    Progress,
    Validate,
    progress_init,
    run_epochs,
    with_validation,
)
from fnn.logs import Log
from fnn.programs import Program, compiled
from fnn.progress import Interrupts, reporter
from fnn.step import Step, TrainState, policy
from fnn.training import Tail, check_at_least_1, epoch_of, name_of_bad, steps_per_epoch
from fnn.types import Data, Metrics

History = dict[str, np.ndarray]
CHUNK_SECONDS = 0.5
HISTORY_VALUES = 2**18  # of each metric, that one chunk may hold


class Result(NamedTuple):
    """What `train` returns."""

    stopped: str  # why: "epochs", "early stopping", "not finite", "interrupted"
    last: TrainState
    best: Best | None  # by validation loss or the rule's monitor; None without either
    history: History  # of steps [epochs, steps], of validation [epochs]
    epochs: int
    nonfinite: str | None  # the first step that was not finite, and what
    traces: int  # programs compiled for this call
    compile_seconds: float
    run_seconds: float
    peak_bytes: int  # that the compiled program needs, as predicted
    device: str
    versions: dict[str, str]
    settings: dict[str, Any]

    def to_json(self) -> str:
        """All but the parameters; what is not finite is null."""
        best = self.best and {"epoch": int(self.best.epoch), "value": float(self.best.value)}
        history = {name: values.tolist() for name, values in self.history.items()}
        rest = {k: v for k, v in self._asdict().items() if k not in ("last", "best", "history")}
        return json.dumps(_finite(rest | {"best": best, "history": history}), allow_nan=False)


class NonFiniteError(FloatingPointError):
    """Raised by `train` under the policy "raise"; `result` is what there was until then."""

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
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    log: Log | None = None,
    progress: bool = True,
) -> Result:
    """`fit`, watched: the same steps on the same rows, but a chunk of epochs at a time.

    ``validate(ts, validation)`` gives scalars after each epoch, {"loss": ...}; `stop` is an
    `EarlyStopping`. Without one the best epoch is that of the least "val_loss".

    `checkpoint` is a folder: the run goes on from what is there, if it is of this run, and is
    saved at the end and every `checkpoint_seconds`, with best.safetensors beside it. Ctrl-C ends
    the run after the present chunk, saves, and returns what there is; a second one interrupts.

    `log` is called with the epoch and its metrics, those of steps averaged: see `fnn.logs`.
    `progress` shows a bar on a terminal and lines elsewhere. `ts` and `data` stay the caller's.
    """
    check_at_least_1("train", epochs=epochs)
    steps = steps_per_epoch("train", data, batch_size, tail)
    capacity = max(1, HISTORY_VALUES // steps)
    if stop is None and validate is not None and "loss" in jax.eval_shape(validate, ts, validation):
        stop = EarlyStopping(patience=NEVER)
    settings = {"batch_size": batch_size, "tail": tail, "stop": stop and _plain(stop)}
    start, history = progress_init(ts, stop), {}
    folder = None if checkpoint is None else _Folder(checkpoint, settings, (data, weights), key)
    if folder is not None:
        start, history = folder.resume(start, history)
    held = start = jax.tree.map(_own, start)  # the program is given it for good
    fixed = jax.tree.map(jnp.asarray, (data, validation, weights, key))

    def chunk(
        run: Progress, data: Any, validation: Any, weights: Any, key: Any, n: Array
    ) -> tuple[Progress, Metrics]:
        epoch, _ = epoch_of("train", step, data, key, batch_size, tail, weights)
        whole = with_validation(epoch, validate, validation)
        return run_epochs(whole, run, stop, n, capacity, policy(step))

    depends_on = settings | {"validate": validate}
    program = compiled("train", step, depends_on, chunk, held, *fixed, np.int32(1))
    run_seconds, saved = 0.0, time.monotonic()
    try:
        with Interrupts() as interrupts, reporter(epochs, int(held.epoch), progress) as report:
            for held, new, seconds in _chunks(program, start, fixed, epochs, capacity):
                if run_seconds == 0:
                    _check_moved(ts, held.ts)
                run_seconds += seconds
                first = int(held.epoch) - len(new["loss"])
                history = {k: np.concatenate([history.get(k, v[:0]), v]) for k, v in new.items()}
                for i in range(len(new["loss"])):
                    row = {name: float(np.mean(values[i])) for name, values in new.items()}
                    report(first + i, row)
                    if log is not None:
                        log(first + i, row)
                if folder is not None and time.monotonic() - saved >= checkpoint_seconds:
                    folder.save(held, history)
                    saved = time.monotonic()
                if interrupts.seen:
                    break
    finally:  # whatever a log may raise, what has been trained is kept
        if folder is not None and not held.epoch.is_deleted():
            folder.save(held, history)

    result = Result(
        stopped=_why(held, epochs, step),
        last=held.ts,
        best=None if stop is None else held.best,
        history=history,
        epochs=int(held.epoch),
        nonfinite=_first_bad(held.ts, data, steps),
        traces=program.traces,
        compile_seconds=program.compile_seconds,
        run_seconds=run_seconds,
        peak_bytes=program.peak_bytes,
        device=_device(),
        versions={name: metadata.version(name) for name in ("fnn", "jax", "jaxlib", "optax")},
        settings=settings | {"epochs": epochs, "nonfinite": policy(step)},
    )
    _tell_of_bad(step, result)
    return result


def _chunks(
    program: Program, held: Progress, fixed: Any, epochs: int, capacity: int
) -> Iterator[tuple[Progress, History, float]]:
    """(progress, history, seconds) after each chunk; the first is one epoch, to time it."""
    n, done = 1, int(held.epoch)
    while done < epochs and not held.stopped:
        started = time.perf_counter()
        held, new = program.call(held, *fixed, np.int32(min(n, epochs - done)))
        new, now = jax.device_get((new, held.epoch))
        seconds = time.perf_counter() - started
        n = max(1, min(capacity, int(CHUNK_SECONDS * (now - done) / seconds)))
        yield held, {name: values[: now - done].copy() for name, values in new.items()}, seconds
        done = int(now)


class _Folder:
    """A run's checkpoints, which are only gone on from by the same run."""

    def __init__(self, folder: str | Path, settings: Any, data: Data, key: Array):
        self.folder = Path(folder)
        fingerprints = {"data": checkpoints.fingerprint(data), "key": checkpoints.fingerprint(key)}
        self.expect = {"settings": settings} | fingerprints

    def resume(self, held: Progress, history: History) -> tuple[Progress, History]:
        if not any(self.folder.glob("step_*.safetensors")):
            return held, history

        def like(header: Any) -> Any:
            names = [path for path in header["leaves"] if path.startswith("history/")]
            leaves = {path: header["leaves"][path] for path in names}
            history = {
                p[len("history/") :]: np.empty(x["shape"], x["dtype"]) for p, x in leaves.items()
            }
            return {"progress": held, "history": history}

        tree, _ = checkpoints.load_last(self.folder, like, expect=self.expect)
        return tree["progress"], tree["history"]

    def save(self, held: Progress, history: History) -> None:
        epoch = int(held.epoch)
        extra = self.expect | {"epoch": epoch}
        tree = {"progress": held, "history": history}
        checkpoints.save_last(self.folder, tree, extra, step=epoch)
        if held.best.epoch >= 0:
            best = {"epoch": int(held.best.epoch), "value": float(held.best.value)}
            tree = {"params": held.best.params, "state": held.best.state}
            checkpoints.save(self.folder / "best.safetensors", tree, best)


# --- what there is to tell --------------------------------------------------------------------


def _why(held: Progress, epochs: int, step: Step) -> str:
    if held.ts.first_bad[0] >= 0 and policy(step) in ("stop", "raise"):
        return "not finite"
    if held.stopped:
        return "early stopping"
    return "epochs" if held.epoch >= epochs else "interrupted"


def _first_bad(ts: TrainState, data: Data, steps: int) -> str | None:
    step, code = ts.first_bad.tolist()
    if step < 0:
        return None
    what = name_of_bad(code, ts.params, data)
    return f"epoch {step // steps}, step {step % steps}: {what} is not finite"


def _tell_of_bad(step: Step, result: Result) -> None:
    if result.nonfinite is None or policy(step) in ("stop", "ignore"):
        return
    if policy(step) == "raise":
        raise NonFiniteError(f"train: {result.nonfinite}; fnn.replay takes that step again", result)
    count = int((result.history["nonfinite"] >= 0).sum())
    warnings.warn(f"train: {count} steps were not taken; {result.nonfinite}", stacklevel=3)


def _check_moved(before: TrainState, after: TrainState) -> None:
    pairs = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
    if all(np.array_equal(old, new, equal_nan=True) for old, new in pairs):
        warnings.warn(
            "train: no parameter moved in the first epoch: is the learning rate 0, is everything"
            " frozen, or does the loss not depend on the parameters?",
            stacklevel=3,
        )


def _own(leaf: Any) -> Array:
    """A copy, strongly typed, that may be given away."""
    leaf = jnp.asarray(leaf)
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf.copy() if is_key else jnp.array(leaf, dtype=leaf.dtype, copy=True)


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
