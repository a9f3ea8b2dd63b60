"""What a run does: everything but its state."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base import Data, Metrics, kept_with, paths, weakly
from fnn.training._loops import Validate, epoch_of, run_epochs, validated
from fnn.training._processes import spread
from fnn.training._programs import Compiler, Program
from fnn.training._rows import Batches
from fnn.training._run_folder import marks_of_run
from fnn.training._sharding import mesh_of, on_the_same
from fnn.training._state import TrainState
from fnn.training._step import Step
from fnn.training._stopping import NEVER, EarlyStopping, Progress

HISTORY_VALUES = 2**18  # of each metric, that one chunk may hold


class Plan:
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
            progress, history, means = run_epochs(epoch, progress, stop, n, capacity(given))
            return progress, paths(history), means

        settings = "train", json.dumps(self.settings, sort_keys=True), batches.others
        compiler = kept_with((self.step, self.validate), settings, lambda: Compiler("train", chunk))
        return compiler(progress, *given, np.int32(1))


def capacity(batches: Batches) -> int:
    """The number of epochs whose history one chunk may hold."""
    return max(1, HISTORY_VALUES // batches.steps)


def or_best(
    stop: EarlyStopping | None, validate: Validate | None, ts: TrainState, validation: Data
) -> EarlyStopping | None:
    """The rule; without one, that which only keeps the best "val_loss", if there is one."""
    if stop is None:
        found = jax.eval_shape(partial(validated, "train", validate), ts, validation)
        stop = EarlyStopping(patience=NEVER) if "val_loss" in found else None
    return stop


def words(settings: dict[str, Any]) -> np.ndarray:
    """The settings as an array, to be compared."""
    return np.frombuffer(json.dumps(settings, sort_keys=True).encode(), np.uint8)


def _plain(stop: EarlyStopping) -> dict[str, Any]:
    return {name: v if isinstance(v, str) else float(v) for name, v in stop._asdict().items()}
