"""The optimizers of fnn with the same names and arguments, computed by Optax.

`fnn compare` trains with each optimizer of fnn and with its twin here.
"""

from typing import Any, Literal

import jax
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn._base import Params, decayed


def sgd(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """``optax.sgd``."""
    return optax.sgd(learning_rate)


def momentum(
    learning_rate: optax.ScalarOrSchedule, decay: ArrayLike = 0.9, *, nesterov: bool = False
) -> optax.GradientTransformation:
    """``optax.sgd`` with momentum."""
    return optax.sgd(learning_rate, momentum=decay, nesterov=nesterov)


def nesterov(
    learning_rate: optax.ScalarOrSchedule, decay: ArrayLike = 0.9
) -> optax.GradientTransformation:
    """``optax.sgd`` with Nesterov's momentum."""
    return optax.sgd(learning_rate, momentum=decay, nesterov=True)


def adagrad(
    learning_rate: optax.ScalarOrSchedule,
    initial_accumulator: ArrayLike = 0.1,
    eps: ArrayLike = 1e-7,
) -> optax.GradientTransformation:
    """``optax.adagrad``."""
    return optax.adagrad(learning_rate, initial_accumulator, eps)


def rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    *,
    eps_inside: bool = True,
    initial_scale: ArrayLike = 0.0,
    centered: bool = False,
    momentum: ArrayLike | None = None,
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
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
) -> optax.GradientTransformation:
    """``optax.adam``."""
    return optax.adam(learning_rate, b1, b2, eps)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    mask: Any = None,
) -> optax.GradientTransformation:
    """``optax.adamw``; a mask of None is `fnn.params.decayed`, as in ``fnn.adamw``."""
    mask = decayed if mask is None else mask
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)


def nadam(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
) -> optax.GradientTransformation:
    """``optax.nadam``."""
    return optax.nadam(learning_rate, b1, b2, eps)


def nadamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    mask: Any = None,
) -> optax.GradientTransformation:
    """``optax.nadamw``; a mask of None is `fnn.params.decayed`, as in ``fnn.optim.nadamw``."""
    mask = decayed if mask is None else mask
    return optax.nadamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)


def adamax(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
) -> optax.GradientTransformation:
    """``optax.adamax``."""
    return optax.adamax(learning_rate, b1, b2, eps)


def radam(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    threshold: ArrayLike = 5.0,
) -> optax.GradientTransformation:
    """``optax.radam``."""
    return optax.radam(learning_rate, b1, b2, eps, threshold=threshold)


def adabelief(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-16,
    *,
    eps_root: ArrayLike = 1e-16,
) -> optax.GradientTransformation:
    """``optax.adabelief``."""
    return optax.adabelief(learning_rate, b1, b2, eps, eps_root)


def adadelta(
    learning_rate: optax.ScalarOrSchedule = 1.0, decay: ArrayLike = 0.9, eps: ArrayLike = 1e-6
) -> optax.GradientTransformation:
    """``optax.adadelta``."""
    return optax.adadelta(learning_rate, decay, eps)


def lars(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    decay: ArrayLike = 0.9,
    trust: ArrayLike = 1e-3,
    eps: ArrayLike = 0.0,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """``optax.lars``; a mask of None is `fnn.params.decayed`, as in ``fnn.optim.lars``."""
    mask = decayed if mask is None else mask
    options: dict[str, Any] = {"momentum": decay, "nesterov": nesterov}
    return optax.lars(learning_rate, weight_decay, mask, trust, eps, **options)


def lamb(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    """``optax.lamb``; a mask of None is `fnn.params.decayed`, as in ``fnn.optim.lamb``."""
    mask = decayed if mask is None else mask
    return optax.lamb(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)


def lion(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    weight_decay: optax.ScalarOrSchedule = 1e-3,
    mask: Any = None,
) -> optax.GradientTransformation:
    """``optax.lion``; a mask of None is `fnn.params.decayed`, as in ``fnn.lion``."""
    mask = decayed if mask is None else mask
    return optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=mask)


def adafactor(
    learning_rate: optax.ScalarOrSchedule,
    decay: ArrayLike = 0.8,
    eps: ArrayLike = 1e-30,
    clip: ArrayLike = 1.0,
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


def muon(
    learning_rate: optax.ScalarOrSchedule,
    decay: ArrayLike = 0.95,
    *,
    others: optax.GradientTransformation | None = None,
    nesterov: bool = True,
    iterations: int = 5,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    eps: ArrayLike = 0.0,
    correct: bool = False,
    scale: Literal["width"] | ArrayLike | None = "width",
) -> optax.GradientTransformation:
    """The parts of ``optax.contrib.muon``, which itself is with ``correct=True, eps=1e-8``.

    Optax has no `scale` of None. `others` is an optimizer of Optax for what is no matrix.
    """
    if scale is None:
        raise ValueError("optax_wrappers.muon: scale is None, expected 'width' or a number")

    def sized(u: Array) -> Array:  # optax.contrib._muon.scale_by_shape, which is not public
        ins, outs = u.shape
        if isinstance(scale, str):
            return u * max(1, outs / ins) ** 0.5
        return u * scale * max(ins, outs) ** 0.5

    def matrices(params: Params) -> Params:
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)

    def orthogonalized(beta: ArrayLike, nesterov: bool) -> optax.GradientTransformation:
        return optax.contrib.scale_by_muon(
            beta=beta,
            eps=eps,
            ns_steps=iterations,
            nesterov=nesterov,
            weight_dimension_numbers=matrices,
        )

    average = optax.chain(
        optax.trace(decay, nesterov),
        optax.scale(1 - decay),  # pyright: ignore[reportOperatorIssue]
        orthogonalized(0.0, False),
    )
    rule = optax.chain(
        orthogonalized(decay, nesterov) if correct else average,
        optax.stateless(lambda updates, params: jax.tree.map(sized, updates)),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    if others is None:
        return rule
    return optax.partition(
        {"matrices": rule, "others": others},
        lambda params: jax.tree.map(lambda p: "matrices" if p.ndim == 2 else "others", params),
    )


def ademamix(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    b3: optax.ScalarOrSchedule = 0.9999,
    alpha: optax.ScalarOrSchedule = 5.0,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    """``optax.contrib.ademamix``; a mask of None is `fnn.params.decayed`."""
    mask = decayed if mask is None else mask
    return optax.contrib.ademamix(
        learning_rate, b1, b2, b3, alpha, eps, weight_decay=weight_decay, mask=mask
    )


def schedule_free_sgd(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    weight_lr_power: ArrayLike = 2.0,
) -> optax.GradientTransformation:
    """``optax.contrib.schedule_free`` around SGD; a mask of None is `fnn.params.decayed`.

    A schedule is asked for the same update by both, which Optax's own schedule_free_sgd does not.
    """
    mask = decayed if mask is None else mask
    inner = optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.sgd(learning_rate))
    return _schedule_free(inner, learning_rate, b1, weight_lr_power)


def schedule_free_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    weight_lr_power: ArrayLike = 2.0,
) -> optax.GradientTransformation:
    """``optax.contrib.schedule_free`` around AdamW without momentum, as `schedule_free_sgd`."""
    mask = decayed if mask is None else mask
    inner = optax.chain(
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    return _schedule_free(inner, learning_rate, b1, weight_lr_power)


def _schedule_free(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike,
    weight_lr_power: ArrayLike,
) -> optax.GradientTransformation:
    # Optax steps with schedule(t - 1), and would weigh with schedule(t).
    if callable(learning_rate):
        schedule = learning_rate
        learning_rate = lambda count: schedule(count - 1)  # noqa: E731
    return optax.contrib.schedule_free(inner, learning_rate, b1, weight_lr_power)


def prodigy(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    *,
    d0: ArrayLike = 1e-6,
    d_coef: ArrayLike = 1.0,
    safeguard_warmup: bool = False,
) -> optax.GradientTransformation:
    """``optax.contrib.prodigy``, which decays everything: fnn's with ``mask=True``."""
    return optax.contrib.prodigy(
        learning_rate,
        (b1, b2),
        eps=eps,
        estim_lr0=d0,
        estim_lr_coef=d_coef,
        weight_decay=weight_decay,
        safeguard_warmup=safeguard_warmup,
    )
