"""Around any rule: updates that the gradient agrees with, and decay of the weights beside them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn._base import Params, as_number, check_range, wide
from fnn.optim._lifting import Number, Optimizer, Rate, check_optimizer, lift


def _cautious(u: Array, g: Array, min_mean: Number) -> Array:
    kept = ~(jnp.sign(u) * jnp.sign(g) >= 0)  # u g < 0 without underflow; and NaN, which shows
    mean = kept.astype(u.dtype).sum() * (1 / max(1, u.size))
    return jnp.where(kept, u, 0) * (1 / jnp.maximum(mean, min_mean))


def cautious(optimizer: Optimizer, min_mean: ArrayLike = 1e-3) -> Optimizer:
    """Liang et al. 2024: only the entries of an update that go against the gradient's sign.

    u <- u k / max(mean(k), min_mean), k = 1 where u g < 0, else 0, for each array u of the updates
    and its gradient g, with the mean over the array. So a weight stays where its update would go
    with the gradient, and where the gradient is 0. The state is the optimizer's.

    This is the authors' C-AdamW code and timm's. The paper divides by mean(k) + eps, their C-Lion
    by mean(k) + 1 / size. Weight decay is not masked::

        chain(cautious(adam(rate)), decay_weights(rate, 0.1))

    Complex arrays, which have no sign, are a TypeError.
    """
    check_optimizer("cautious", optimizer)
    check_range("cautious", "min_mean", min_mean, 0, upto=1, above=True)
    inside = optax.with_extra_args_support(optimizer)

    def update(
        updates: Params, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        def mask(u: ArrayLike, g: ArrayLike) -> Array:
            if jnp.iscomplexobj(g):
                came = jnp.result_type(g)
                raise TypeError(f"cautious: a gradient is {came}, expected real numbers")
            least = as_number(min_mean, wide(u).dtype)
            return _cautious(wide(u), jnp.asarray(g, wide(u).dtype), least).astype(
                jnp.result_type(u)
            )

        steps, state = inside.update(updates, state, params, **extra_args)
        return jax.tree.map(mask, steps, updates), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _passed(u: Array, t: Array, rate: Number) -> tuple[Array, dict[str, Array]]:
    return -u, {}


def decay_weights(learning_rate: Rate, weight_decay: Rate, mask: Any = None) -> Optimizer:
    """u <- u - rate weight_decay p: decoupled weight decay after any rule, in a `chain`.

    ``chain(adam(rate), decay_weights(rate, 0.01))`` is ``adamw(rate, weight_decay=0.01)``. `mask`
    as in `adamw`. No memory.
    """
    decay = {"weight_decay": weight_decay, "mask": mask}
    return lift("decay_weights", _passed, {}, learning_rate, {}, **decay)
