"""Training: the step, loops over rows, many runs, several devices, what is logged."""

from fnn._base import weighted_mean
from fnn.training import logs, stream
from fnn.training._devices import use_all_cores
from fnn.training._evaluate import evaluate, predict
from fnn.training._flops import PEAKS, Flops, flops_of_step
from fnn.training._folds import (
    Folds,
    Part,
    Standardizer,
    cross_validate,
    k_folds,
    pad_folds,
    standardizer,
)
from fnn.training._gradient import Weighted
from fnn.training._layout import sharded
from fnn.training._loops import Measured, Validate, fit, fit_until, run_epochs
from fnn.training._mean_state import mean_state
from fnn.training._nonfinite import POLICIES, FirstBad, NonFinitePolicy, check_finite, names_of_bad
from fnn.training._processes import (
    check_same,
    everyone,
    fetch,
    is_first,
    start_processes,
    together,
)
from fnn.training._replay import replay
from fnn.training._result import NonFiniteError, Result
from fnn.training._rows import Tail
from fnn.training._sharding import data_parallel
from fnn.training._state import LossScale, TrainState
from fnn.training._step import Step, make_train_step, with_update
from fnn.training._step_gradient import step_gradient
from fnn.training._stopping import Best, EarlyStopping, Progress, progress_init
from fnn.training._sweep import Run, side_by_side, sweep, sweep_with, width_of
from fnn.training._train import train
from fnn.training.stream import prefetch, train_on_batches

__all__ = [
    "PEAKS",
    "POLICIES",
    "Best",
    "EarlyStopping",
    "FirstBad",
    "Flops",
    "Folds",
    "LossScale",
    "Measured",
    "NonFiniteError",
    "NonFinitePolicy",
    "Part",
    "Progress",
    "Result",
    "Run",
    "Standardizer",
    "Step",
    "Tail",
    "TrainState",
    "Validate",
    "Weighted",
    "check_finite",
    "check_same",
    "cross_validate",
    "data_parallel",
    "evaluate",
    "everyone",
    "fetch",
    "fit",
    "fit_until",
    "flops_of_step",
    "is_first",
    "k_folds",
    "logs",
    "make_train_step",
    "mean_state",
    "names_of_bad",
    "pad_folds",
    "predict",
    "prefetch",
    "progress_init",
    "replay",
    "run_epochs",
    "sharded",
    "side_by_side",
    "standardizer",
    "start_processes",
    "step_gradient",
    "stream",
    "sweep",
    "sweep_with",
    "together",
    "train",
    "train_on_batches",
    "use_all_cores",
    "weighted_mean",
    "width_of",
    "with_update",
]
