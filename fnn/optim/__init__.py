"""Optimizers written from their formulas, wrappers around them, and their twins by Optax.

Every optimizer has Optax's interface, two pure functions: ``init(params) -> state`` and
``update(grads, state, params) -> (updates, state)``. So Optax's wrappers take fnn's optimizers,
and `chain` takes Optax's.

Every number may be a Python float or a traced scalar, so an optimizer may be made inside ``jit`` or
``vmap`` without recompiling. A learning rate may also be a schedule, called with 0 for the first
update. Bools and strings are static. Where libraries differ, the default is Optax's; `dialects`
has the arguments of the papers, PyTorch and Keras.
"""

from fnn.optim import dialects, optax_wrappers, pruning, schedules
from fnn.optim._adam import adam, adamw, nadam, nadamw
from fnn.optim._adam_relatives import adabelief, adamax, radam
from fnn.optim._adaptive import adagrad, rmsprop
from fnn.optim._averaging import averaged, stochastic_average
from fnn.optim._cautious import cautious, decay_weights
from fnn.optim._clipping import (
    adaptive_clip,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    scale_to_norm,
)
from fnn.optim._constraints import max_norm
from fnn.optim._groups import by_path, freeze, moving
from fnn.optim._half_precision import keep_precision
from fnn.optim._layerwise import lamb, lars
from fnn.optim._lifting import (
    Optimizer,
    Rate,
    Schedule,
    bias_correction,
    check_optimizer,
    lift,
)
from fnn.optim._matrix_rules import adafactor, muon, orthogonalize
from fnn.optim._mixtures import ademamix
from fnn.optim._momentum import lion, momentum, nesterov, sgd
from fnn.optim._own_rates import adadelta, rprop
from fnn.optim._plateau import reduce_on_plateau
from fnn.optim._prodigy import prodigy
from fnn.optim._schedule_free import eval_params, schedule_free_adamw, schedule_free_sgd
from fnn.optim._soap import soap
from fnn.optim._transforms import add_weight_decay, apply_updates, chain

__all__ = [
    "Optimizer",
    "Rate",
    "Schedule",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adaptive_clip",
    "add_weight_decay",
    "ademamix",
    "apply_updates",
    "averaged",
    "bias_correction",
    "by_path",
    "cautious",
    "chain",
    "check_optimizer",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "decay_weights",
    "dialects",
    "eval_params",
    "freeze",
    "keep_precision",
    "lamb",
    "lars",
    "lift",
    "lion",
    "max_norm",
    "momentum",
    "moving",
    "muon",
    "nadam",
    "nadamw",
    "nesterov",
    "optax_wrappers",
    "orthogonalize",
    "prodigy",
    "pruning",
    "radam",
    "reduce_on_plateau",
    "rmsprop",
    "rprop",
    "scale_to_norm",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "schedules",
    "sgd",
    "soap",
    "stochastic_average",
]
