"""What both estimators have in common: the fit, what is learned, and what predicts."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from numpy.random import RandomState
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from fnn._base import Params, as_count
from fnn.estimators._plan import (
    ACTIVATIONS,
    OPTIMIZERS,
    Numbers,
    Plan,
    batch_rows,
    floating,
    function_of,
    hidden_sizes,
    numbers_of,
)
from fnn.estimators._rows import counted, distinct, scaled, split
from fnn.estimators._runs import Rows, Trained, predict, train
from fnn.optim import Optimizer
from fnn.training import TrainState

Activation = str | Callable[[Array], Array]
OptimizerOf = str | Callable[..., Optimizer]


class FnnEstimator(BaseEstimator):
    """The options are those of `FnnRegressor`."""

    _regression = True

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        *,
        activation: Activation = "relu",
        optimizer: OptimizerOf = "adam",
        learning_rate: float = 1e-3,
        alpha: float = 1e-4,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int = 200,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_seeds: int = 1,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_seeds = n_seeds
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    # --- what is learned --------------------------------------------------------------------------

    @property
    def params_(self) -> Params:
        """The parameters as those of `fnn.mlp`; with several seeds, leaves [seeds, ...]."""
        params = self._ts.params
        one = len(jax.tree.leaves(params)[0]) == 1
        return jax.tree.map(lambda leaf: leaf[0], params) if one else params

    @property
    def coefs_(self) -> list[np.ndarray]:
        """The weights of each layer, [in, out]; with several seeds [seeds, in, out]."""
        params = self.params_
        return [params[name]["w"] for name in sorted(params)]

    @property
    def intercepts_(self) -> list[np.ndarray]:
        """The biases of each layer, [out]; with several seeds [seeds, out]."""
        params = self.params_
        return [params[name]["b"] for name in sorted(params)]

    @property
    def n_layers_(self) -> int:
        """The number of layers, inputs and outputs included."""
        return len(self.params_) + 1

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_ts")

    @property
    def _who(self) -> str:
        return type(self).__name__

    # --- fit and predict --------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        return bool(self.warm_start) and hasattr(self, "_ts")

    def _inputs(self, X: Any) -> Any:
        check_is_fitted(self)
        return self._validated(X, reset=False)

    def _validated(self, *given: Any, **options: Any) -> Any:
        """X, or X and y, as scikit-learn validates them; X in the dtype that JAX computes in."""
        if options["reset"]:  # a fit that fails would leave the old net with other labels
            self.__dict__.pop("_ts", None)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # what overflows in float32 is an error that says so
            return validate_data(self, *given, dtype=floating(), order="C", **options)

    def _outputs(self, X: np.ndarray) -> np.ndarray:
        """[rows, outputs], means over the seeds."""
        activation = function_of(self._who, "activation", self._activation, ACTIVATIONS)
        return predict(self._regression, activation, self._ts.params, X)

    def _fit(self, rows: Rows, outputs: int, goes_on: bool) -> None:
        """A whole fit, which goes on from the last one if it should."""
        epochs = as_count(self._who, "max_iter", self.max_iter)
        numbers = self._numbers()
        self._train(rows, outputs, goes_on, epochs, numbers, bool(self.early_stopping))
        all_wanted = self.n_iter_no_change >= self.max_iter
        if not self._stopped and not all_wanted:
            warnings.warn(
                f"{self._who}: max_iter {epochs} epochs were run, and the"
                f" {'validation score' if self.early_stopping else 'loss'} was still improving",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _partial_fit(self, rows: Rows, outputs: int) -> None:
        """One more epoch."""
        if self.early_stopping:
            raise ValueError(f"{self._who}: partial_fit does not support early_stopping=True")
        # The program of `fit`, which ends after one epoch because no improvement is large enough.
        epochs = as_count(self._who, "max_iter", self.max_iter)
        numbers = self._numbers()._replace(tol=np.asarray(np.inf, floating()), patience=np.int32(1))
        self._train(rows, outputs, hasattr(self, "_ts"), epochs, numbers, validates=False)

    def _numbers(self) -> Numbers:
        return numbers_of(
            self._who, self.learning_rate, self.alpha, self.tol, self.n_iter_no_change
        )

    def _train(
        self,
        rows: Rows,
        outputs: int,
        goes_on: bool,
        epochs: int,
        numbers: Numbers,
        validates: bool,
    ) -> None:
        seeds = as_count(self._who, "n_seeds", self.n_seeds)
        random_state = check_random_state(self.random_state)
        key = jax.random.key(random_state.randint(np.iinfo(np.int32).max))
        rows, validation, plan = self._prepared(rows, outputs, epochs, validates, random_state)
        rows, exponent = scaled(rows, floating())
        with np.errstate(over="ignore"):
            numbers = numbers._replace(alpha=np.ldexp(numbers.alpha, -exponent))
        starts = self._starts(plan, seeds) if goes_on else None
        trained = train(self._who, plan, key, seeds, starts, rows, validation, numbers)
        if not _are_finite([trained.ts.params, trained.losses[:, 0]]):
            raise ValueError(
                f"{self._who}: the parameters are not finite after {trained.epochs.max()} epochs;"
                " scale the features, as by StandardScaler, or lower learning_rate"
            )
        self._learned(trained, goes_on)

    def _prepared(
        self, rows: Rows, outputs: int, epochs: int, validates: bool, random_state: RandomState
    ) -> tuple[Rows, Rows | None, Plan]:
        """(rows to train, rows to validate, what shapes the program)."""
        rows, validation = counted(rows), None
        if validates:
            fraction, stratified = self.validation_fraction, not self._regression
            rows, validation = split(self._who, rows, fraction, stratified, random_state)
            validation = scaled(validation, floating())[0]
        batch_size = batch_rows(self._who, self.batch_size, len(rows.x))
        if batch_size == len(rows.x):
            rows = distinct(rows)
            batch_size = len(rows.x)
        sizes = rows.x.shape[1], *hidden_sizes(self._who, self.hidden_layer_sizes), outputs
        activation = function_of(self._who, "activation", self.activation, ACTIVATIONS)
        optimizer = function_of(self._who, "optimizer", self.optimizer, OPTIMIZERS)
        plan = Plan(self._regression, sizes, activation, optimizer, batch_size, epochs, validates)
        return rows, validation, plan

    def _starts(self, plan: Plan, seeds: int) -> TrainState:
        """The states that this fit goes on from, [seeds, ...]."""
        params = self._ts.params
        weights = [params[name]["w"] for name in sorted(params)]
        came = len(weights[0]), weights[0].shape[1], *(w.shape[2] for w in weights)
        if came != (seeds, *plan.sizes):
            raise ValueError(
                f"{self._who}: n_seeds and the sizes of the layers are {(seeds, *plan.sizes)}, but"
                f" {came} in the fit that this one goes on from; expected the same"
            )
        return self._ts

    def _learned(self, trained: Trained, goes_on: bool) -> None:
        """Set what scikit-learn's users look for."""
        self._ts, self._activation = trained.ts, self.activation
        self._stopped = bool(trained.stopped.all())
        self.n_iter_ = int(trained.epochs.max())
        run = np.arange(self.n_iter_) < trained.epochs[:, None]  # [seeds, epochs]
        losses, counts = trained.losses[:, : self.n_iter_], trained.counts[:, : self.n_iter_]
        counts = np.where(run[..., None], counts, 1)
        curve = np.where(run, np.average(losses, axis=-1, weights=counts), np.nan)
        scores = trained.scores
        scores = None if scores is None else np.where(run, scores[:, : self.n_iter_], np.nan)
        self.loss_ = _of_one(curve[np.arange(len(curve)), trained.epochs - 1])
        self._tell(curve, scores, goes_on)

    def _tell(self, curve: np.ndarray, scores: np.ndarray | None, goes_on: bool) -> None:
        self.best_loss_ = _of_one(np.nanmin(curve, 1))
        curve = _of_one(curve)
        self.loss_curve_ = np.concatenate([self.loss_curve_, curve], -1) if goes_on else curve
        self.validation_scores_ = None if scores is None else _of_one(scores)
        self.best_validation_score_ = None if scores is None else _of_one(np.nanmax(scores, 1))
        if self.verbose:
            why = "stopped early" if self._stopped else "max_iter reached"
            print(f"{self._who}: {self.n_iter_} epochs, loss {np.mean(self.loss_):.4g}, {why}")


def _are_finite(tree: Any) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def _of_one(values: np.ndarray) -> Any:
    """[seeds, ...] -> [...] if there is one seed; a number as Python's."""
    values = values[0] if len(values) == 1 else values
    return float(values) if values.ndim == 0 else values
