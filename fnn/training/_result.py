"""What `train` returns, and what there is to say about it."""

import json
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.training._flops import Flops
from fnn.training._run_folder import History
from fnn.training._state import TrainState
from fnn.training._stopping import Best, Progress


class Result(NamedTuple):
    """What `train` returns."""

    stopped: str  # why: "epochs", "early stopping", "not finite", "max_seconds", "interrupted"
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
    flops: Flops | None = None  # what a step computes, if train was asked for it

    def __repr__(self) -> str:
        """One line, without the arrays."""
        best = "" if self.best is None else f", best={self._best_of_all()}"
        said = f"stopped={self.stopped!r}, epochs={self.epochs}{best}, nonfinite={self.nonfinite!r}"
        return f"Result({said}, history={list(self.history)}, ...)"

    def _best_of_all(self) -> str:
        epoch = -1 if self.best is None else int(self.best.epoch)
        return "none" if epoch < 0 else f"epoch {epoch + 1} of {self.epochs}"

    def to_json(self) -> str:
        """Everything but the parameters, as JSON. What is not finite is null."""
        best = self.best and {"epoch": int(self.best.epoch), "value": float(self.best.value)}
        if best and best["epoch"] < 0:
            best["value"] = None
        history = {name: values.tolist() for name, values in self.history.items()}
        rest = {k: v for k, v in self._asdict().items() if k not in ("last", "best", "history")}
        more = {"best": best, "history": history, "flops": self.flops and self.flops._asdict()}
        return json.dumps(_finite(rest | more), allow_nan=False)


class NonFiniteError(FloatingPointError):
    """Raised by `train` under the policy "raise"; `result` is the run until then."""

    def __init__(self, message: str, result: Result):
        super().__init__(message)
        self.result = result


def why(progress: Progress, epochs: int, cut: str) -> str:
    """Why the run has ended; `cut` is what ended it from outside, if anything did."""
    if progress.last.first_bad.ends():
        return "not finite"
    if progress.stopped:
        return "early stopping"
    return "epochs" if progress.epochs >= epochs else cut


def start_line(folder: Path, done: int, over: bool) -> str:
    """What a run says that finds `done` epochs in a folder."""
    if over:
        return f"train: {folder} holds all {done} epochs; nothing is trained"
    return f"train: goes on from epoch {done} of {folder}"


def end_line(result: Result, seconds: float, saved: bool) -> str:
    """What a run says that has ended before its last epoch, as the bar counts; "" for others."""
    if result.stopped == "max_seconds":
        epochs = f"epoch {result.epochs} of {result.settings['epochs']}"
        more = "; the same call goes on" if saved else ""
        return f"train: stopped after {seconds:.3g} s (max_seconds) at {epochs}{more}"
    if result.stopped == "early stopping":
        best = -1 if result.best is None else int(result.best.epoch)
        more = f"; best epoch {best + 1}" if best >= 0 else ""
        return f"train: stopped early at epoch {result.epochs}{more}"
    return ""


def told(result: Result) -> Result:
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


def device_of() -> str:
    """The devices of this process, in words."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
