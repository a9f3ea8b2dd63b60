"""Which network for these rows? The recipe of a first course, by cross-validation, with reasons.

suggestion = fnn.design.suggest((x, labels))
print(suggestion)
sizes = (x.shape[1], *suggestion.hidden, classes)
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base import Data, as_count, check_key, check_range, weighted_mean, wide
from fnn.data import rows_of
from fnn.nn import accuracy, cross_entropy, kaiming_normal, mlp, mlp_init, squared_error
from fnn.optim import adam, schedules
from fnn.training import (
    Folds,
    Part,
    Run,
    cross_validate,
    fit,
    k_folds,
    make_train_step,
    standardizer,
)

Hidden = tuple[int, ...]  # the widths of the hidden layers; () is a linear model
WHO = "suggest"
STEPS = 2000  # of training, if the number of epochs is not given


class Tried(NamedTuple):
    """A network that was cross-validated.

    `score`: of the rows left out, the mean over folds and keys; see `suggest`.
    `standard_error`: of this mean, over the folds.
    `seen`: the score on the rows trained on.
    """

    hidden: Hidden
    parameters: int
    score: float
    standard_error: float
    seen: float


class Suggestion(NamedTuple):
    """What `suggest` returns; print it.

    `hidden`: the widths of the hidden layers, () if none is needed.
    `table`: the networks that were tried, in order.
    `why`: the reasons, one sentence each.
    """

    hidden: Hidden
    table: list[Tried]
    why: list[str]

    def __str__(self) -> str:
        """A table of what was tried, and the reasons."""
        lines = ["hidden layers     parameters    score   standard error"]
        for tried in self.table:
            mark = "  <- suggested" if tried.hidden == self.hidden else ""
            lines.append(
                f"{tried.hidden!s:16}{tried.parameters:12,}{_short(tried.score):>9}"
                f"{_short(tried.standard_error):>17}{mark}"
            )
        return "\n".join([*lines, "", *self.why])


def suggest(
    data: Data,
    key: Array | None = None,
    *,
    folds: int = 5,
    seeds: int = 2,
    epochs: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 0.01,
    enough: float = 0.99,
    largest: int = 256,
) -> Suggestion:
    """(x [rows, ...], y) -> which hidden layers a network for these rows should have, and why.

    `y` holds labels, int [rows], or the targets of a regression, float [rows] or [rows, outputs].
    The score is the accuracy; of a regression it is R2, 1 - mean squared error / variance of the
    targets trained on, the mean over the outputs. Every score is of rows that the network was not
    trained on: the mean over `folds`, stratified by labels, and over `seeds` keys.

    1. A linear model. If its score is `enough`, no hidden layer is needed.
    2. One hidden layer, as wide as the mean of the numbers of inputs and outputs.
    3. Twice the width, again and again, until two widths in a row are not better than the best
       before by more than one standard error.
    4. A second hidden layer of the same width. If it is better by more than one standard error,
       both layers are doubled as in 3.

    Growing ends when a score is `enough`, and before layers of more than `largest` units. Suggested
    is the network with the fewest parameters within one standard error of the best score (Breiman
    et al. 1984; Hastie, Tibshirani & Friedman 2009, section 7.10). The standard error is that of
    the better score, over the folds.

    All networks are trained alike: relu between layers, x standardized by the rows trained on, Adam
    whose rate falls from `learning_rate` to 0, for `epochs`, by default as many as make 2,000
    steps. Each network is a `cross_validate`, so one program. `key` draws folds, initial weights
    and batches; without it they are always the same.

    The folds have chosen the network, so its score is a little too good. For the final test use
    rows that are not among these.
    """
    x, y = _checked(data)
    key = jax.random.key(0) if key is None else key
    check_key(WHO, key)
    check_range(WHO, "enough", enough, -math.inf)
    check_range(WHO, "learning_rate", learning_rate, 0, above=True)
    largest = as_count(WHO, "largest", largest)
    batch_size = as_count(WHO, "batch_size", batch_size)
    fold_key, run_key = jax.random.split(key)
    classify = y.ndim == 1
    parts = k_folds(fold_key, len(x), folds, labels=y if classify else None)
    batch_size = min(batch_size, parts.train.shape[1])
    steps = -(-parts.train.shape[1] // batch_size)
    passes = -(-STEPS // steps) if epochs is None else as_count(WHO, "epochs", epochs)
    outputs = int(y.max()) + 1 if classify else y.shape[1]
    how = _How(outputs, classify, passes, batch_size, float(learning_rate))
    keys = jax.random.split(run_key, as_count(WHO, "seeds", seeds))
    return _recipe(_Trials((x, y), parts, keys, how, float(enough), largest))


def _checked(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """x float [rows, features]; y int32 [rows] or float [rows, outputs]."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise TypeError(f"{WHO}: data is a {type(data).__name__}, expected (x, y)")
    rows = rows_of(WHO, tuple(data))
    x, y = np.asarray(wide(data[0])).reshape(rows, -1), np.asarray(data[1])
    if jnp.issubdtype(y.dtype, jnp.floating):
        y = np.asarray(wide(y)).reshape(rows, -1)
    elif y.ndim != 1 or y.dtype.kind not in "iub":
        raise ValueError(
            f"{WHO}: y is {y.dtype}{list(y.shape)}, expected labels, int [rows], or targets,"
            " float [rows] or [rows, outputs]"
        )
    elif y.min() < 0 or y.min() == y.max():
        raise ValueError(
            f"{WHO}: y has labels from {y.min()} to {y.max()}, expected two classes or more, from 0"
        )
    for name, values in (("x", x), ("y", y)):
        if not np.isfinite(values).all():
            raise ValueError(f"{WHO}: {name} has NaN or inf, expected finite numbers")
        if not values.size:
            raise ValueError(f"{WHO}: {name} has no column, expected at least one")
    return x, y if y.ndim == 2 else y.astype(np.int32)


class _How(NamedTuple):
    """How every network is trained."""

    outputs: int
    classify: bool
    epochs: int
    batch_size: int
    learning_rate: float


class _Trials:
    """The networks tried so far, and why."""

    def __init__(
        self,
        data: tuple[np.ndarray, np.ndarray],
        folds: Folds,
        keys: Array,
        how: _How,
        enough: float,
        largest: int,
    ) -> None:
        self.data, self.folds, self.keys, self.how = data, folds, keys, how
        self.enough, self.largest = enough, largest
        self.table: list[Tried] = []
        self.why: list[str] = []

    def __call__(self, hidden: Hidden) -> Tried:
        """Cross-validate a network."""
        run = _run_of(hidden, self.how)
        results = cross_validate(run, self.keys, self.data, self.folds)
        score, seen = (np.nan_to_num(np.asarray(a, np.float64), nan=-np.inf) for a in results)
        by_fold = score.mean(0)
        with np.errstate(invalid="ignore"):  # inf - inf, of a network that diverged
            error = float(np.nan_to_num(by_fold.std(ddof=1) / math.sqrt(len(by_fold))))
        sizes = (self.data[0].shape[1], *hidden, self.how.outputs)
        parameters = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
        tried = Tried(hidden, parameters, float(by_fold.mean()), error, float(seen.mean()))
        self.table.append(tried)
        return tried

    def against(self, best: Tried, hidden: Hidden) -> Tried:
        """The network of these layers if it is better by more than a standard error, or best."""
        tried = self(hidden)
        better = tried.score - best.score > tried.standard_error
        self.why.append(
            f"{hidden} {self.said(tried)}, {'' if better else 'not '}better than {best.hidden} by"
            " more than one standard error."
        )
        return tried if better else best

    def grown(self, best: Tried) -> Tried:
        """The best of the networks that are this one with its layers doubled again and again."""
        hidden, missed = best.hidden, 0
        while missed < 2 and best.score < self.enough:
            hidden = tuple(2 * width for width in hidden)
            if max(hidden) > self.largest:
                self.why.append(f"Layers of more than {self.largest} units are not tried.")
                break
            better = self.against(best, hidden)
            best, missed = better, missed + 1 if better is best else 0
        return best

    def number(self, score: float) -> str:
        """A score in words."""
        return f"{100 * score:.1f} %" if self.how.classify else f"R2 {_short(score)}"

    def said(self, tried: Tried) -> str:
        """What a network does on the rows left out."""
        if self.how.classify:
            error = f"{100 * tried.standard_error:.1f} %"
            does = f"is right on {self.number(tried.score)} of the rows left out"
        else:
            error = _short(tried.standard_error)
            does = f"has {self.number(tried.score)} on the rows left out"
        return f"{does} (standard error {error})"


def _short(number: float) -> str:
    return f"{number:.3f}" if abs(number) < 1000 else f"{number:.2g}"  # 1e30, where one diverged


def _recipe(trials: _Trials) -> Suggestion:
    linear = trials(())
    trials.why.append(_on_linear(trials, linear))
    if linear.score < trials.enough:
        inputs, outputs = trials.data[0].shape[1], trials.how.outputs
        width = min(max(2, round((inputs + outputs) / 2)), trials.largest)
        best = trials((width,))
        trials.why.append(
            f"One hidden layer of {width} units, near the mean of the numbers of inputs, {inputs},"
            f" and of outputs, {outputs}, {trials.said(best)}."
        )
        best = trials.grown(best)
        if best.score < trials.enough:
            deeper = trials.against(best, (*best.hidden, best.hidden[-1]))
            if deeper is not best:
                trials.grown(deeper)
    return _smallest(trials)


def _on_linear(trials: _Trials, linear: Tried) -> str:
    if trials.how.classify:
        planes = "separate" if linear.seen == 1 else "do not separate"
        seen = f"planes {planes} the classes of the rows trained on"
    else:
        seen = f"on the rows trained on it has {trials.number(linear.seen)}"
    enough = f"{'at least' if linear.score >= trials.enough else 'less than'} the"
    enough += f" {trials.number(trials.enough)} that is enough"
    then = "No hidden layer" if linear.score >= trials.enough else "A hidden layer"
    return f"A linear model {trials.said(linear)}, {enough}; {seen}. {then} is needed."


def _smallest(trials: _Trials) -> Suggestion:
    """The network with the fewest parameters within one standard error of the best."""
    # Sums in another order differ in their last digits.
    best = max(trials.table, key=lambda tried: (round(tried.score, 6), -tried.parameters))
    if not math.isfinite(best.score):
        raise ValueError(f"{WHO}: every network diverged, expected a smaller learning_rate")
    least = best.score - best.standard_error
    within = [tried for tried in trials.table if tried.score >= least]
    chosen = min(within, key=lambda tried: tried.parameters)
    if len(trials.table) > 1:
        own = "It is also" if chosen is best else f"{chosen.hidden} is"
        trials.why.append(
            f"{best.hidden} has the best score. {own} the smallest network within one standard"
            f" error of it, {trials.number(least)} or more, and is suggested:"
            f" {chosen.parameters:,} parameters."
        )
    return Suggestion(chosen.hidden, trials.table, trials.why)


@functools.lru_cache(maxsize=32)  # the same function again, so that nothing is compiled again
def _run_of(hidden: Hidden, how: _How) -> Run:
    """run(key, train, valid) -> (score of valid, score of train) of the network."""
    loss, score = (cross_entropy, accuracy) if how.classify else (_error, _r2)

    def loss_fn(params: Any, batch: Any, key: Array) -> Array:
        return loss(mlp(params, batch[0]), batch[1])

    def run(key: Array, train: Part, valid: Part) -> tuple[Array, Array]:
        init_key, fit_key = jax.random.split(key)
        standardize = standardizer(train.data[0], train.weights)
        targets = None if how.classify else standardizer(train.data[1], train.weights)

        def rows(part: Part) -> tuple[Array, Array]:
            x, y = part.data
            return standardize(x), y if targets is None else targets(y)

        data = rows(train)
        sizes = (data[0].shape[1], *hidden, how.outputs)
        params = mlp_init(init_key, sizes, w_init=kaiming_normal, dtype=data[0].dtype)
        length = schedules.Run(how.epochs, len(data[0]), how.batch_size)
        step = make_train_step(loss_fn, adam(schedules.cosine(length, how.learning_rate)))
        ts, _ = fit(
            step,
            step.init(params),
            data,
            fit_key,
            epochs=how.epochs,
            batch_size=how.batch_size,
            weights=train.weights,
        )

        def scored(part: Part) -> Array:
            x, y = rows(part)
            return weighted_mean(score(mlp(ts.params, x), y), part.weights)

        return scored(valid), scored(train)

    return run


def _error(predictions: Array, targets: Array) -> Array:
    return squared_error(predictions, targets).mean(-1)


def _r2(predictions: Array, targets: Array) -> Array:
    """Each row's share of R2; targets have variance 1 on the rows trained on."""
    return 1 - _error(predictions, targets)
