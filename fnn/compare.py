"""Hand-written optimizers against their Optax twins, on real digits.

Every optimizer gets the same initial parameters, the same batches in the same order and the same
grid of learning rates, and is judged at the rate that does best on the validation rows. Its whole
grid, rates x seeds, all epochs, is one compiled program.
"""

import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn import optax_wrappers, optimizers
from fnn.datasets import Splits, digits
from fnn.initializers import kaiming_normal
from fnn.layers import mlp, mlp_init
from fnn.losses import accuracy, check_labels, cross_entropy
from fnn.population import Run, sweep
from fnn.step import make_train_step, train_init
from fnn.training import evaluate, fit
from fnn.types import Data

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
CLASSES = 10
PIECES = 5  # of work an optimizer, for a progress bar


@dataclass(frozen=True)
class Settings:
    """What is compared, checked: a ValueError says in one sentence what is wrong."""

    optimizers: Sequence[str] = OPTIMIZERS
    rates: Sequence[float] = RATES
    seeds: int = 5
    epochs: int = 30
    batch_size: int = 64
    hidden: Sequence[int] = (128, 128)

    def __post_init__(self) -> None:
        """Check everything that a user may have typed."""
        if not self.optimizers:
            raise ValueError(f"no optimizers to compare, expected some of: {', '.join(OPTIMIZERS)}")
        for name in self.optimizers:
            if name not in OPTIMIZERS:
                close = difflib.get_close_matches(name, OPTIMIZERS, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(
                    f"unknown optimizer {name!r}, expected some of: {', '.join(OPTIMIZERS)}{hint}"
                )
        if len(set(self.optimizers)) < len(self.optimizers):
            raise ValueError(f"an optimizer is named twice: {', '.join(self.optimizers)}")
        if not self.rates:
            raise ValueError("the grid of learning rates is empty, expected at least one rate")
        for rate in self.rates:
            if not 0 < rate < float("inf"):
                raise ValueError(f"learning rate {rate} is not a positive number")
        if list(self.rates) != sorted(set(self.rates)):
            raise ValueError(f"learning rates {list(self.rates)} are not in increasing order")
        for what in ("seeds", "epochs", "batch_size"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} is {getattr(self, what)}, expected at least 1")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden sizes are {list(self.hidden)}, expected each at least 1")


class Side(NamedTuple):
    """What one library's optimizer did: accuracies [seeds, rates], loss [seeds, rates, steps]."""

    valid_accuracy: np.ndarray
    valid_loss: np.ndarray
    test_accuracy: np.ndarray
    loss: np.ndarray
    skipped_steps: np.ndarray  # [seeds, rates], steps that were not finite
    params: Any  # leaves [seeds, rates, ...]
    compile_seconds: float
    run_seconds: float


class Race(NamedTuple):
    """One optimizer, by hand and by Optax.

    Training amplifies rounding, so a difference between twins means little by itself. `rounding`
    is the yardstick: how far the hand-written rule's own final parameters move, [seeds, rates],
    when the learning rate changes in its last bit.
    """

    name: str
    fnn: Side
    optax: Side
    rounding: np.ndarray

    @property
    def best(self) -> int:
        """Index of the rate with the best mean validation accuracy, of equals the lower loss."""
        scores = self.fnn.valid_accuracy.mean(0)
        losses = np.where(np.isfinite(self.fnn.valid_loss), self.fnn.valid_loss, np.inf).mean(0)
        return int(np.lexsort((losses, -scores))[0])

    @property
    def difference(self) -> np.ndarray:
        """Largest difference between the twins' final parameters, [seeds, rates]."""
        return largest_difference(self.fnn.params, self.optax.params)

    @property
    def apart_by(self) -> Literal["nothing", "rounding", "more"]:
        """What sets the twins apart at the best rate.

        Rounding is up to 1e-4 of the largest parameter, or ten times `rounding`.
        """
        difference = self.difference[:, self.best].max()
        if difference == 0:
            return "nothing"
        largest = max(abs(leaf[:, self.best]).max() for leaf in jax.tree.leaves(self.fnn.params))
        allowed = max(1e-4 * largest, 10 * self.rounding[:, self.best].max())
        return "rounding" if difference <= allowed else "more"


class Comparison(NamedTuple):
    """Everything that was measured."""

    settings: Settings
    races: list[Race]


def largest_difference(a: Any, b: Any) -> np.ndarray:
    """max |a - b| over two trees of leaves [seeds, rates, ...]: [seeds, rates]."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return np.max([abs(x - y).reshape(*x.shape[:2], -1).max(-1) for x, y in pairs], axis=0)


def classifier_run(
    make_optimizer: Callable[[Array], Any], splits: Splits, settings: Settings
) -> Run:
    """run(key, learning_rate) -> results: initialise, train and evaluate, one pure function."""
    sizes = (splits.train[0].shape[1], *settings.hidden, CLASSES)

    def loss_fn(params: Any, batch: Data, _: Array) -> Array:
        x, labels = batch
        return cross_entropy(mlp(params, x), labels)

    def scores(params: Any, batch: Data) -> dict[str, Array]:
        x, labels = batch
        logits = mlp(params, x)
        return {"accuracy": accuracy(logits, labels), "loss": cross_entropy(logits, labels)}

    def run(key: Array, learning_rate: Array) -> dict[str, Any]:
        init_key, fit_key = jax.random.split(key)
        params = mlp_init(init_key, sizes, w_init=kaiming_normal)
        optimizer = make_optimizer(learning_rate)
        ts, history = fit(
            make_train_step(loss_fn, optimizer),
            train_init(params, optimizer),
            splits.train,
            fit_key,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
        )
        valid = evaluate(partial(scores, ts.params), splits.valid, batch_size=512)
        test = evaluate(partial(scores, ts.params), splits.test, batch_size=512)
        return {
            "valid_accuracy": valid["accuracy"],
            "valid_loss": valid["loss"],
            "test_accuracy": test["accuracy"],
            "loss": history["loss"].reshape(-1),
            "skipped_steps": (history["nonfinite"] >= 0).sum(),
            "params": ts.params,
        }

    return run


def compare_optimizers(
    settings: Settings, progress: Callable[[str], None] = lambda doing: None
) -> Comparison:
    """Train with each optimizer by fnn and by Optax; `progress` is told before each piece of work.

    There are `PIECES` an optimizer: compile and train by each library, and train once more.
    """
    splits = digits()
    if settings.batch_size > len(splits.train[0]):
        raise ValueError(
            f"batch size {settings.batch_size} exceeds the {len(splits.train[0])} training images"
        )
    for _, labels in splits:
        check_labels(labels, CLASSES)
    keys = jax.random.split(jax.random.key(0), settings.seeds)
    rates = jnp.asarray(settings.rates)

    def side(make_optimizer: Callable[[Array], Any], who: str) -> tuple[Side, Callable[..., Any]]:
        progress(f"{who}: compiling")
        run = classifier_run(make_optimizer, splits, settings)
        start = time.perf_counter()
        program = jax.jit(partial(sweep, run)).lower(keys, {"learning_rate": rates}).compile()
        compiled = time.perf_counter()
        progress(f"{who}: training {settings.seeds * len(rates)} networks")
        results = jax.device_get(program(keys, {"learning_rate": rates}))
        done = time.perf_counter()
        return Side(
            compile_seconds=compiled - start, run_seconds=done - compiled, **results
        ), program

    def race(name: str) -> Race:
        ours, program = side(getattr(optimizers, name), f"{name} by hand")
        progress(f"{name} by hand: again with every rate one bit larger")
        nudged = program(keys, {"learning_rate": jnp.nextafter(rates, jnp.inf)})
        rounding = largest_difference(ours.params, jax.device_get(nudged["params"]))
        theirs, _ = side(getattr(optax_wrappers, name), f"{name} by Optax")
        return Race(name, ours, theirs, rounding)

    return Comparison(settings, [race(name) for name in settings.optimizers])
