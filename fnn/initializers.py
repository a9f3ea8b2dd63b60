"""How weights begin: Glorot (Xavier) and Kaiming (He), uniform and normal; orthogonal.

Each is an initializer of JAX's protocol as it stands, ``init(key, shape, dtype) -> array``, so
any of ``jax.nn.initializers`` can take its place and it can take theirs. A gain other than the
default is given with ``functools.partial(glorot_uniform, gain=gain("tanh"))``.

The normal ones are not truncated, as in the papers and in PyTorch; JAX's and Flax's are.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import jax
from jax import Array
from jax.typing import DTypeLike

from fnn.precision import at_least_float32


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
    """The factor that keeps a signal's scale through a layer with this activation.

    `slope` is leaky_relu's, and only its. The values are those of ``torch.nn.init``:
    sqrt(2 / (1 + slope^2)) for (leaky) relu from He et al. 2015, 5/3 for tanh by custom.
    """
    if activation not in GAINS:
        raise ValueError(f"gain: unknown activation {activation!r}, expected one of {list(GAINS)}")
    return math.sqrt(2 / (1 + slope**2)) if activation == "leaky_relu" else GAINS[activation]


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Inputs and outputs of one unit of a weight [*size, in, out]: (fan_in, fan_out)."""
    if len(shape) < 2:
        raise ValueError(
            f"initializer: shape {tuple(shape)} has no in and out axes, expected [*size, in, out]"
        )
    receptive_field = math.prod(shape[:-2])
    return shape[-2] * receptive_field, shape[-1] * receptive_field


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

    Whichever are fewer; uniform over all such matrices (Saxe et al. 2014). The product of many
    neither grows nor vanishes, which is what a recurrent weight is multiplied with over time.
    """
    fans(shape)
    draw = jax.nn.initializers.orthogonal(gain)(key, shape, _wide(dtype))
    return draw.astype(dtype)


# Half precision is drawn in float32 and rounded, so that it is the same network, only coarser.
# The draws are flat: XLA's CPU backend compiles them in less than half the time, and the numbers
# are those of the shaped ones.


def _uniform(key: Array, shape: Sequence[int], dtype: DTypeLike, deviation: float) -> Array:
    limit = math.sqrt(3) * deviation
    draw = jax.random.uniform(key, (math.prod(shape),), _wide(dtype), -limit, limit)
    return draw.reshape(shape).astype(dtype)


def _normal(key: Array, shape: Sequence[int], dtype: DTypeLike, deviation: float) -> Array:
    draw = jax.random.normal(key, (math.prod(shape),), _wide(dtype))
    return (deviation * draw).reshape(shape).astype(dtype)


def _wide(dtype: DTypeLike) -> DTypeLike:
    return at_least_float32(jax.dtypes.canonicalize_dtype(dtype))


def _at_least_1(fan: float) -> float:
    return max(fan, 1.0)  # a layer of no width has no weights to scale
