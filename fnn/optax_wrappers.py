"""The same optimizers, same names and arguments, done by Optax.

`fnn compare` trains with each of `fnn.optimizers` and its twin here.
"""

from typing import Any

import optax

from fnn.params import decayed


def sgd(learning_rate: Any) -> optax.GradientTransformation:
    """``optax.sgd``."""
    return optax.sgd(learning_rate)


def momentum(
    learning_rate: Any, decay: Any = 0.9, *, nesterov: bool = False
) -> optax.GradientTransformation:
    """``optax.sgd`` with momentum."""
    return optax.sgd(learning_rate, momentum=decay, nesterov=nesterov)


def nesterov(learning_rate: Any, decay: Any = 0.9) -> optax.GradientTransformation:
    """``optax.sgd`` with Nesterov's momentum."""
    return optax.sgd(learning_rate, momentum=decay, nesterov=True)


def adagrad(
    learning_rate: Any, initial_accumulator: Any = 0.1, eps: Any = 1e-7
) -> optax.GradientTransformation:
    """``optax.adagrad``."""
    return optax.adagrad(learning_rate, initial_accumulator, eps)


def rmsprop(
    learning_rate: Any,
    decay: Any = 0.9,
    eps: Any = 1e-8,
    *,
    eps_inside: bool = True,
    initial_scale: Any = 0.0,
    centered: bool = False,
    momentum: Any = None,
) -> optax.GradientTransformation:
    """``optax.rmsprop``."""
    return optax.rmsprop(
        learning_rate,
        decay,
        eps,
        initial_scale=initial_scale,
        eps_in_sqrt=eps_inside,
        centered=centered,
        momentum=momentum,
    )


def adam(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8
) -> optax.GradientTransformation:
    """``optax.adam``."""
    return optax.adam(learning_rate, b1, b2, eps)


def adamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 1e-4,
    mask: Any = None,
) -> optax.GradientTransformation:
    """``optax.adamw``; no mask is `fnn.params.decayed`, as in ``fnn.adamw``."""
    mask = decayed if mask is None else mask
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)


def nadam(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8
) -> optax.GradientTransformation:
    """``optax.nadam``."""
    return optax.nadam(learning_rate, b1, b2, eps)


def lion(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.99,
    weight_decay: Any = 1e-3,
    mask: Any = None,
) -> optax.GradientTransformation:
    """``optax.lion``; no mask is `fnn.params.decayed`, as in ``fnn.lion``."""
    mask = decayed if mask is None else mask
    return optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=mask)


def adafactor(
    learning_rate: Any,
    decay: Any = 0.8,
    eps: Any = 1e-30,
    clip: Any = 1.0,
    *,
    scale_by_parameters: bool = True,
    smallest_factored: int = 128,
) -> optax.GradientTransformation:
    """``optax.adafactor``."""
    return optax.adafactor(
        learning_rate,
        min_dim_size_to_factor=smallest_factored,
        decay_rate=decay,
        eps=eps,
        clipping_threshold=clip,
        multiply_by_parameter_scale=scale_by_parameters,
    )
