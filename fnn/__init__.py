"""Functional neural networks for JAX: everything is a pure function of plain arrays.

What a program needs is here, flat. The rest is reached through its wing: ``fnn.nn``, ``fnn.optim``,
``fnn.data``, ``fnn.training``, ``fnn.search``, ``fnn.checkpoint``, ``fnn.inspect``,
``fnn.interchange``, ``fnn.estimators`` and ``fnn.compare``.
"""

import sys as _sys
import typing as _typing

from fnn import (
    checkpoint,
    compare,
    data,
    estimators,
    inspect,
    interchange,
    nn,
    optim,
    search,
    training,
)
from fnn.data import augment, datasets
from fnn.inspect import check_layer, diagnostics, plots, summary
from fnn.interchange import export
from fnn.nn import (
    absolute_error,
    accuracy,
    attention,
    attention_init,
    avg_pool,
    batch_norm,
    batch_norm_init,
    binary_cross_entropy,
    conv,
    conv_init,
    cross_entropy,
    dense,
    dense_init,
    dropout,
    embed,
    embed_init,
    glorot_uniform,
    gru,
    gru_init,
    huber,
    kaiming_normal,
    layer_norm,
    layer_norm_init,
    lstm,
    lstm_init,
    max_pool,
    metrics,
    mlp,
    mlp_init,
    params,
    relu,
    rnn,
    rnn_init,
    sigmoid,
    softmax,
    split,
    squared_error,
    tanh,
    transformer_block,
    transformer_block_init,
)
from fnn.optim import (
    Optimizer,
    adafactor,
    adagrad,
    adam,
    adamw,
    apply_updates,
    averaged,
    by_path,
    chain,
    clip_by_global_norm,
    dialects,
    freeze,
    keep_precision,
    lion,
    momentum,
    muon,
    nadam,
    nesterov,
    optax_wrappers,
    pruning,
    rmsprop,
    schedules,
    sgd,
)
from fnn.search import design, population, race
from fnn.training import (
    EarlyStopping,
    check_finite,
    cross_validate,
    data_parallel,
    evaluate,
    fit,
    fit_until,
    k_folds,
    logs,
    make_train_step,
    predict,
    replay,
    sweep,
    train,
    train_on_batches,
    use_all_cores,
)

__version__ = "0.1.0"

# Grouped by wing; a name that is not here is in its wing.
__all__ = [  # noqa: RUF022
    # layers, activations, initializers, losses
    "nn",
    "absolute_error",
    "accuracy",
    "attention",
    "attention_init",
    "avg_pool",
    "batch_norm",
    "batch_norm_init",
    "binary_cross_entropy",
    "conv",
    "conv_init",
    "cross_entropy",
    "dense",
    "dense_init",
    "dropout",
    "embed",
    "embed_init",
    "glorot_uniform",
    "gru",
    "gru_init",
    "huber",
    "kaiming_normal",
    "layer_norm",
    "layer_norm_init",
    "lstm",
    "lstm_init",
    "max_pool",
    "metrics",
    "mlp",
    "mlp_init",
    "params",
    "relu",
    "rnn",
    "rnn_init",
    "sigmoid",
    "softmax",
    "split",
    "squared_error",
    "tanh",
    "transformer_block",
    "transformer_block_init",
    # optimizers, and what goes around them
    "optim",
    "Optimizer",
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "apply_updates",
    "averaged",
    "by_path",
    "chain",
    "clip_by_global_norm",
    "dialects",
    "freeze",
    "keep_precision",
    "lion",
    "momentum",
    "muon",
    "nadam",
    "nesterov",
    "optax_wrappers",
    "pruning",
    "rmsprop",
    "schedules",
    "sgd",
    # rows
    "data",
    "augment",
    "datasets",
    # runs
    "training",
    "EarlyStopping",
    "check_finite",
    "cross_validate",
    "data_parallel",
    "evaluate",
    "fit",
    "fit_until",
    "k_folds",
    "logs",
    "make_train_step",
    "predict",
    "replay",
    "sweep",
    "train",
    "train_on_batches",
    "use_all_cores",
    # many runs
    "search",
    "design",
    "population",
    "race",
    # files, pictures, the instrument
    "checkpoint",
    "inspect",
    "check_layer",
    "diagnostics",
    "plots",
    "summary",
    "compare",
    # other libraries
    "interchange",
    "export",
    "estimators",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not _typing.TYPE_CHECKING:  # a type checker would take every name for one that is here

    def __getattr__(name: str) -> None:
        """Says which wing has the name; imports nothing."""
        said = f"module 'fnn' has no attribute {name!r}"
        doors = [f"fnn.{d}" for d in __all__ if name in getattr(globals()[d], "__all__", ())]
        if doors:
            raise AttributeError(f"{said}; it is {doors[0]}.{name}")
        raise AttributeError(said, name=name, obj=_sys.modules[__name__])
