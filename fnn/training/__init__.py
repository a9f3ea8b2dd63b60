"""Training: the step, loops over rows, many runs, several devices, what is logged."""

from fnn._base import weighted_mean
from fnn.training import logs, stream
from fnn.training._devices import use_all_cores
from fnn.training._evaluate import evaluate, predict
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
from fnn.training._loops import Validate, fit, fit_until
from fnn.training._nonfinite import POLICIES, FirstBad, NonFinitePolicy, check_finite, names_of_bad
from fnn.training._replay import replay
from fnn.training._rows import Tail
from fnn.training._sharding import data_parallel
from fnn.training._state import LossScale, TrainState
from fnn.training._step import Step, make_train_step, with_update
from fnn.training._stopping import Best, EarlyStopping, Progress
from fnn.training._sweep import Run, sweep
from fnn.training._train import NonFiniteError, Result, train
from fnn.training.stream import prefetch, train_on_batches

__all__ = [
    "POLICIES",
    "Best",
    "EarlyStopping",
    "FirstBad",
    "Folds",
    "LossScale",
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
    "cross_validate",
    "data_parallel",
    "evaluate",
    "fit",
    "fit_until",
    "k_folds",
    "logs",
    "make_train_step",
    "names_of_bad",
    "pad_folds",
    "predict",
    "prefetch",
    "replay",
    "standardizer",
    "stream",
    "sweep",
    "train",
    "train_on_batches",
    "use_all_cores",
    "weighted_mean",
    "with_update",
]
