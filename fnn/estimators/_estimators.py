"""The two estimators: their options, labels and targets."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, column_or_1d

from fnn.estimators._base import Activation, FnnEstimator, OptimizerOf
from fnn.estimators._plan import floating
from fnn.estimators._rows import weights_of
from fnn.estimators._runs import Rows

ClassWeight = Mapping[Any, float] | Literal["balanced"] | None


class FnnClassifier(ClassifierMixin, FnnEstimator):
    """scikit-learn's `MLPClassifier`, trained by fnn: X [rows, features], y labels [rows].

    The loss of a batch is the mean cross entropy of its rows plus alpha / (2 * rows) times the sum
    of the squared weights. Each epoch shuffles the rows. The whole fit is one compiled program. It
    is kept: a fit with other numbers or other rows of the same shapes compiles nothing. It computes
    in float32, whatever dtype X has; with ``jax_enable_x64`` in float64. Names and defaults are
    MLPClassifier's, where it has them:

    - `hidden_layer_sizes`: widths of the hidden layers; () is logistic regression.
    - `activation`: "relu", "tanh", "logistic", "identity", or a function of arrays.
    - `optimizer` (there `solver`): a name, as "adam", "sgd" (without momentum), "nesterov",
      "adamw"; or a function of the learning rate, as ``functools.partial(fnn.adam, b1=0.8)``.
    - `learning_rate` (there `learning_rate_init`): a number.
    - `alpha`: the strength of the penalty.
    - `batch_size`: "auto" is 200, or all rows if there are fewer.
    - `max_iter`: the most epochs. `ConvergenceWarning` if the fit was still improving after them,
      unless `n_iter_no_change` asks for all of them.
    - `tol`, `n_iter_no_change`: the fit stops when the loss has not come down by more than `tol`
      for so many epochs in a row.
    - `early_stopping`: keep `validation_fraction` of the rows apart, with each class in proportion.
      Then their accuracy has to rise by more than `tol`, and the parameters of the best epoch
      predict.
    - `class_weight`: None, {label: weight} or "balanced"; it multiplies `sample_weight`.
    - `n_seeds`: so many networks are trained at once, each from its own seed. Probabilities are the
      means over the networks. The first network is that of ``n_seeds=1``. All are one program, a
      `fnn.sweep`: side by side on an accelerator, a share for each device on a CPU.
    - `random_state`: of the initial weights, the shuffles and the split.
    - `warm_start`: `fit` goes on from the last fit, optimizer and all.
    - `verbose`: print one line after a fit.

    A row of weight 0 is as if it were not there. If all rows are one batch, a row of weight 3 gives
    the same bits as three rows.

    Learned: `classes_`, `n_features_in_`, `feature_names_in_`, `params_` (of `fnn.mlp`, NumPy
    arrays), `coefs_`, `intercepts_`, `n_iter_` (epochs), `loss_curve_`, `loss_`, `best_loss_`, and
    with early stopping `validation_scores_` and `best_validation_score_`. With several seeds these
    have a first axis [seeds], and NaN after the epoch in which a network stopped; `n_iter_` is the
    most epochs of any.

    Errors: ValueError and TypeError as scikit-learn has them, also for sparse X; ValueError if
    training diverged.
    """

    _regression = False

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
        class_weight: ClassWeight = None,
        n_seeds: int = 1,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation=activation,
            optimizer=optimizer,
            learning_rate=learning_rate,
            alpha=alpha,
            batch_size=batch_size,
            max_iter=max_iter,
            tol=tol,
            n_iter_no_change=n_iter_no_change,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_seeds=n_seeds,
            random_state=random_state,
            warm_start=warm_start,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "FnnClassifier":
        """X [rows, features], y labels [rows], sample_weight [rows] or None -> the estimator."""
        goes_on = self._goes_on()
        X, y = self._labelled(X, y, reset=not goes_on)
        classes = np.unique(y)
        if goes_on and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"{self._who}: y has the classes {classes}, expected {self.classes_}, those of the"
                " fit that warm_start goes on from"
            )
        rows = self._weighed(X, y, classes, sample_weight)
        self.classes_, self.n_outputs_ = classes, len(classes)
        self._fit(rows, len(classes), goes_on)
        return self

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> "FnnClassifier":
        """One epoch over these rows -> the estimator. The first call needs all `classes`."""
        first = not hasattr(self, "_ts")
        if first and classes is None:
            raise ValueError(f"{self._who}: the first call of partial_fit needs classes")
        known = np.unique(classes) if first else self.classes_
        if classes is not None and not np.array_equal(np.unique(classes), known):
            raise ValueError(f"{self._who}: classes are {classes}, expected {known} as before")
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"{self._who}: class_weight is {self.class_weight!r}, which partial_fit cannot know"
                " from some of the rows; expected None or a dict"
            )
        X, y = self._labelled(X, y, reset=first)
        rows = self._weighed(X, y, known, sample_weight)
        self.classes_, self.n_outputs_ = known, len(known)
        self._partial_fit(rows, len(known))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """[rows, features] -> float32 [rows, classes], in the order of `classes_`."""
        return self._outputs(self._inputs(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """[rows, features] -> [rows, classes], the logarithms of `predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """[rows, features] -> labels [rows]."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def _labelled(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        X, y = self._validated(X, y, reset=reset)
        check_classification_targets(y)
        return X, y

    def _weighed(self, X: np.ndarray, y: np.ndarray, classes: Any, sample_weight: Any) -> Rows:
        if len(classes) < 2:
            raise ValueError(f"{self._who}: y has one class, {classes[0]}, expected at least 2")
        unknown = np.setdiff1d(y, classes)
        if len(unknown):
            raise ValueError(f"{self._who}: y has {unknown}, expected labels among {classes}")
        weights = weights_of(self._who, sample_weight, len(X))
        if self.class_weight is not None:
            by_class = compute_sample_weight(self.class_weight, y)
            weights = weights_of(
                self._who, by_class if weights is None else weights * by_class, len(X)
            )
        return Rows(X, np.searchsorted(classes, y).astype(np.int32), weights)


class FnnRegressor(RegressorMixin, FnnEstimator):
    """scikit-learn's `MLPRegressor`, trained by fnn: X [rows, features], y [rows].

    With several targets y is [rows, outputs], and so are the predictions.

    The loss of a batch is half the mean squared error of its rows, summed over outputs, plus
    alpha / (2 * rows) times the sum of the squared weights. Options, attributes and errors are
    those of `FnnClassifier`, but there is no `class_weight`. With `early_stopping` the score of the
    validation rows is R2, the mean over outputs. With several seeds predictions are the means over
    the networks. Targets are not scaled: for large ones put the estimator into scikit-learn's
    `TransformedTargetRegressor`.
    """

    _regression = True

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "FnnRegressor":
        """X [rows, features], y [rows] or [rows, outputs], weights [rows] -> the estimator."""
        goes_on = self._goes_on()
        rows = self._targeted(X, y, sample_weight, reset=not goes_on)
        self._fit(rows, self.n_outputs_, goes_on)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> "FnnRegressor":
        """One epoch over these rows -> the estimator."""
        rows = self._targeted(X, y, sample_weight, reset=not hasattr(self, "_ts"))
        self._partial_fit(rows, self.n_outputs_)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """[rows, features] -> [rows], or [rows, outputs]; float32 for float32, else float64."""
        outputs = self._outputs(self._inputs(X))
        # scikit-learn asks that a regressor answers float64 in float64.
        dtype = np.float32 if getattr(X, "dtype", None) == np.float32 else np.float64
        outputs = outputs.astype(dtype, copy=False)
        return outputs[:, 0] if self.n_outputs_ == 1 else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _targeted(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> Rows:
        X, y = self._validated(X, y, multi_output=True, y_numeric=True, reset=reset)
        options: dict[str, Any] = {"dtype": floating(), "ensure_2d": False, "input_name": "y"}
        with np.errstate(over="ignore", invalid="ignore"):
            y = check_array(y, estimator=self, **options)
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        y = y[:, None] if y.ndim == 1 else y
        if not reset and y.shape[1] != self.n_outputs_:
            raise ValueError(f"{self._who}: y has {y.shape[1]} outputs, expected {self.n_outputs_}")
        self.n_outputs_ = y.shape[1]
        return Rows(X, y, weights_of(self._who, sample_weight, len(X)))
