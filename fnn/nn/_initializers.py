"""Initializers of weights: Glorot (Xavier) and Kaiming (He), uniform and normal; orthogonal.

They have the signature of ``jax.nn.initializers``, ``init(key, shape, dtype) -> array``, so either
can be used in place of the other. To give another gain than the default, use
``functools.partial(glorot_uniform, gain=gain("tanh"))``.

The normal distributions are not truncated, as in the papers and in PyTorch. JAX and Flax truncate
them.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import jax
from jax import Array
from jax.typing import DTypeLike

from fnn._base import as_count, at_least_float32, check_key


class Initializer(Protocol):
    """``init(key, shape, dtype) -> array``, the protocol of ``jax.nn.initializers``."""

    def __call__(self, key: Array, shape: Sequence[int], dtype: DTypeLike = ..., /) -> Array: ...


GAINS = {
    "linear": 1.0,
    "sigmoid": 1.0,
    "softmax": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "leaky_relu": math.sqrt(2 / (1 + 0.01**2)),
}


def gain(activation: str, slope: float = 0.01) -> float:
    """The factor that keeps the scale of a signal through a layer with this activation.

    `slope` is the slope of leaky_relu; other activations ignore it. The values are those of
    ``torch.nn.init``: sqrt(2 / (1 + slope^2)) for relu and leaky_relu (He et al. 2015), 5/3 for
    tanh by custom.
    """
    if activation not in GAINS:
        raise ValueError(f"gain: unknown activation {activation!r}, expected one of {list(GAINS)}")
    return math.sqrt(2 / (1 + slope**2)) if activation == "leaky_relu" else GAINS[activation]


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """shape [*size, in, out] -> (fan_in, fan_out): the inputs and outputs of one unit."""
    if len(shape) < 2:
        raise ValueError(
            f"initializer: shape {tuple(shape)} has no in and out axes, expected [*size, in, out]"
        )
    *size, fan_in, fan_out = (as_count("initializer", "shape", n, least=0) for n in shape)
    return fan_in * math.prod(size), fan_out * math.prod(size)


def glorot_uniform(
    key: Array, shape: Sequence[int], dtype: DTypeLike = float, *, gain: float = 1.0
) -> Array:
    """[*size, in, out], uniform on +-gain sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010)."""
    return _uniform(key, shape, dtype, gain / math.sqrt(_at_least_1(sum(fans(shape)) / 2)))


def glorot_normal(
    key: Array, shape: Sequence[int], dtype: DTypeLike = float, *, gain: float = 1.0
) -> Array:
    """[*size, in, out], normal with deviation gain sqrt(2 / (fan_in + fan_out))."""
    return _normal(key, shape, dtype, gain / math.sqrt(_at_least_1(sum(fans(shape)) / 2)))


def kaiming_uniform(
    key: Array, shape: Sequence[int], dtype: DTypeLike = float, *, gain: float = math.sqrt(2)
) -> Array:
    """[*size, in, out], uniform on +-gain sqrt(3 / fan_in) (He et al. 2015, forward mode)."""
    return _uniform(key, shape, dtype, gain / math.sqrt(_at_least_1(fans(shape)[0])))


def kaiming_normal(
    key: Array, shape: Sequence[int], dtype: DTypeLike = float, *, gain: float = math.sqrt(2)
) -> Array:
    """[*size, in, out], normal with deviation gain / sqrt(fan_in) (He et al. 2015, eq. 10)."""
    return _normal(key, shape, dtype, gain / math.sqrt(_at_least_1(fans(shape)[0])))


def orthogonal(
    key: Array, shape: Sequence[int], dtype: DTypeLike = float, *, gain: float = 1.0
) -> Array:
    """[*size, in, out], seen as [size * in, out]: gain times orthonormal columns, or rows.

    The columns are orthonormal, or the rows if there are fewer rows. The distribution is uniform
    over all such matrices (Saxe et al. 2014). A recurrent layer multiplies by its weight at every
    step; products of many orthogonal matrices neither grow nor vanish.
    """
    fans(shape)
    check_key("initializer", key)
    draw = jax.nn.initializers.orthogonal(gain)(key, shape, _wide(dtype))
    return draw.astype(dtype)


# Half precision is drawn in float32 and rounded, so that it is the same network, only coarser.
# The shape is flat while drawing: the numbers are the same, and XLA's CPU backend compiles the
# program in less than half the time.


def _uniform(key: Array, shape: Sequence[int], dtype: DTypeLike, deviation: float) -> Array:
    # From -1 to 1 every draw is exact, and a product rounds once. A draw from -limit to limit is a
    # product and a sum, which a compiler may round once or twice: then a member of a sweep and the
    # same run alone would begin from different weights.
    check_key("initializer", key)
    draw = jax.random.uniform(key, (math.prod(shape),), _wide(dtype), -1, 1)
    return (math.sqrt(3) * deviation * draw).reshape(shape).astype(dtype)


def _normal(key: Array, shape: Sequence[int], dtype: DTypeLike, deviation: float) -> Array:
    check_key("initializer", key)
    draw = jax.random.normal(key, (math.prod(shape),), _wide(dtype))
    return (deviation * draw).reshape(shape).astype(dtype)


def _wide(dtype: DTypeLike) -> DTypeLike:
    return at_least_float32(jax.dtypes.canonicalize_dtype(dtype))


def _at_least_1(fan: float) -> float:
    return max(fan, 1.0)  # a layer with no inputs has no weights to scale
