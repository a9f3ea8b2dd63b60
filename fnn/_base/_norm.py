"""The norm of a tree, and which of its leaves is not finite.

On a CPU the usual case is one pass over joined leaves, and the rest a branch. On a TPU the leaves
are not joined: there the sum of a leaf's squares is part of the product that makes the leaf. On a
GPU, whose host would wait for a branch, all of it is one reduction: there the number of kernels
counts. Leaves that are split over devices are not joined, see `leaves_apart`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fnn._base._branch import seldom
from fnn._base._numerics import safe_divide, wide
from fnn._base._types import Params

# Whether what is traced joins no leaves: joining leaves that are split over devices gathers them.
leaves_apart = jax.make_user_context(False)


@jax.custom_jvp
def global_norm(tree: Params) -> Array:
    """The Euclidean norm of all leaves together, as one scalar; 0 for an empty tree.

    Half precision is summed in float32. If the sum of squares overflows or vanishes, the squares
    are summed again to another scale, so the norm is right for float32 gradients from 1.2e-38 to
    1e38. NaN if a value is NaN, else inf if a value is inf. The derivative at zero is 0.
    A complex number counts by its distance from 0.
    """
    leaves = [leaf for leaf in _alike(tree) if leaf.size]
    if not leaves:
        return jnp.zeros((), jnp.float32)

    def in_one_pass(leaves: list[Array]) -> Array:
        groups = [_joined([leaves[i] for i in group]) for group in _groups(leaves)]
        return _norm_of(*_together([_reduced(_squares(x), []) for x in groups], 3))

    return lax.platform_dependent(
        leaves,
        cuda=in_one_pass,
        rocm=in_one_pass,
        tpu=_norm_by_leaf,
        default=_norm_of_joined,
    )


@global_norm.defjvp
def _(primals: tuple[Params], tangents: tuple[Params]) -> tuple[Array, Array]:
    norm = global_norm(*primals)
    return norm, _derivative(norm, *primals, *tangents)


def _derivative(norm: Array, tree: Params, moves: Params) -> Array:
    still = jax.dtypes.float0  # the tangent of an integer
    moves = jax.tree.map(lambda x, dx: jnp.zeros_like(x) if dx.dtype == still else dx, tree, moves)
    each = zip(_alike(tree), _alike(moves), strict=True)
    along = [jnp.sum(safe_divide(leaf, norm) * move) for leaf, move in each]
    return sum(along, jnp.zeros_like(norm))


def _norm_of_joined(leaves: list[Array]) -> Array:
    small, large = _small_and_large(leaves)
    joined = [_joined([leaves[i] for i in small])] if small else []
    return _norm_by_leaf(joined + [leaves[i] for i in large])


def _norm_by_leaf(parts: list[Array]) -> Array:
    squares = _sum_of_squares(parts)

    def again(parts: list[Array], squares: Array) -> Array:
        sign = jnp.where(squares < 1, 1, -1)
        exact = _sum_of_squares([_scaled(part, sign) for part in parts])
        return jnp.sqrt(exact) * _scale(-sign, squares.dtype)

    return seldom(~_fits(squares), jnp.sqrt(squares), again, parts, squares)


def _norm_of(squares: Array, down: Array, up: Array) -> Array:
    """The root of that sum which neither overflowed nor vanished."""
    up, down = jnp.sqrt(up) * _scale(-1, up.dtype), jnp.sqrt(down) * _scale(1, down.dtype)
    scaled = jnp.where(squares < 1, up, down)
    return jnp.where(_fits(squares), jnp.sqrt(squares), scaled)


def _fits(squares: Array) -> Array:
    """Whether the sum of squares neither overflowed nor lost digits among the smallest numbers."""
    end = jnp.finfo(squares.dtype)
    return (squares < jnp.inf) & (squares > end.smallest_normal / end.eps)


def _scale(sign: Array | int, dtype: Any) -> Array:
    """2^k for a sign of 1, 2^-k for -1: numbers times one of them have squares that fit."""
    k = jnp.finfo(dtype).maxexp * 5 // 8
    return jnp.where(sign > 0, jnp.asarray(2.0**k, dtype), jnp.asarray(2.0**-k, dtype))


def _scaled(x: Array, sign: Array | int) -> Array:
    # Clipped, so that XLA does not square numbers and scale apart, as it may if one is a constant.
    end = jnp.finfo(x.dtype).max
    return jnp.clip(x * _scale(sign, x.dtype), -end, end)


def _sum_of_squares(parts: list[Array]) -> Array:
    return sum((jnp.sum(jnp.square(part)) for part in parts[1:]), jnp.sum(jnp.square(parts[0])))


class Seen(NamedTuple):
    """A norm, and the numbers of the first leaves that are not finite; how many leaves if none."""

    norm: Array  # of the gradient
    is_finite: Array  # whether the norm is
    square_is_finite: Array  # whether its square is
    gradient: Array
    square: Array  # the square of the gradient, times how many numbers it has
    parameter: Array


@jax.custom_jvp
def seen(grads: Sequence[Array], params: Sequence[Array]) -> Seen:
    """The norm of `grads`, and on a GPU what else there is to see in one pass.

    `params` have the shapes of `grads`. On other devices nobody has looked at the leaves: there the
    numbers say that all are finite, and `leaf_by_leaf` looks.
    """
    none = jnp.int32(len(grads))

    def in_one_pass(grads: list[Array], params: list[Array]) -> Seen:
        size = float(sum(leaf.size for leaf in grads))  # no integer: it may exceed 2^31

        def of(group: list[int]) -> Any:
            number = _joined([jnp.full(grads[i].shape, i, jnp.int32) for i in group])
            g, p = (_joined([leaves[i] for i in group]) for leaves in (grads, params))
            where = [jnp.where(jnp.isfinite(x), none, number) for x in (g, jnp.square(g) * size, p)]
            return _reduced(_squares(g), where)

        squares, down, up, gradient, square, parameter = _together(
            [of(group) for group in _groups(grads)], 3
        )
        # Of the sums, not of the norm: its roots would be taken again wherever this is asked.
        end = jnp.finfo(squares.dtype).max
        largest = jnp.square(_scaled(jnp.asarray(end), -1))
        norm = _norm_of(squares, down, up)
        return Seen(norm, down <= largest, squares <= end, gradient, square, parameter)

    def norm_alone(norm_of: Any, grads: list[Array], params: list[Array]) -> Seen:
        norm = norm_of(grads)
        fits = jnp.isfinite(jnp.square(norm))
        return Seen(norm, jnp.isfinite(norm), fits, none, none, none)

    grads, params = _alike(grads), _alike(params)
    if not sum(leaf.size for leaf in grads):
        yes = jnp.array(True)
        return Seen(jnp.zeros((), jnp.float32), yes, yes, none, none, none)
    return lax.platform_dependent(
        grads,
        params,
        cuda=in_one_pass,
        rocm=in_one_pass,
        tpu=functools.partial(norm_alone, _norm_by_leaf),
        default=functools.partial(norm_alone, _norm_of_joined),
    )


@seen.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Seen, Seen]:
    found = seen(*primals)
    still = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), found)
    return found, still._replace(norm=_derivative(found.norm, primals[0], tangents[0]))


def leaf_by_leaf(found: Seen, grads: Sequence[Array], params: Sequence[Array]) -> Seen:
    """The same with the numbers of the leaves, on every device."""
    grads, params = _alike(grads), _alike(params)
    small, large = _small_and_large(grads)
    size, none = float(sum(leaf.size for leaf in grads)), jnp.int32(len(grads))

    def finite(group: list[int]) -> list[Array]:
        """Whether the numbers of gradients, of their squares and of parameters are."""
        g, p = (_joined([leaves[i] for i in group]) for leaves in (grads, params))
        return [jnp.isfinite(x) for x in (g, jnp.square(g) * size, p)]

    def first(i: int) -> Array:
        return jnp.where(jnp.stack([x.all() for x in finite([i])]), none, jnp.int32(i))

    firsts = [first(i) for i in large]
    if small:
        # The place of the first that is not; after all others is one that never is.
        place = jnp.argmin(jnp.pad(jnp.stack(finite(small)), ((0, 0), (0, 1))), axis=1)
        ends = np.cumsum([grads[i].size for i in small])
        number = jnp.sum(place[:, None] >= ends[None], axis=1, dtype=jnp.int32)
        firsts.append(number if not large else jnp.asarray([*small, none])[number])
    of_none = jnp.full(3, none)
    gradient, square, parameter = functools.reduce(jnp.minimum, firsts, of_none)
    return found._replace(gradient=gradient, square=square, parameter=parameter)


def _groups(leaves: Sequence[Array]) -> list[list[int]]:
    """The numbers of the leaves, in parts that are joined for one reduction.

    XLA reads up to 24 where they are; of more it makes a copy first.
    """
    numbers, most = list(range(len(leaves))), 1 if leaves_apart.value else 24
    return [numbers[i : i + most] for i in range(0, len(numbers), most)]


def _squares(x: Array) -> tuple[Array, ...]:
    return tuple(map(jnp.square, (x, _scaled(x, -1), _scaled(x, 1))))


def _reduced(sums: Sequence[Array], least: Sequence[Array]) -> Any:
    """The sums of some arrays and the least numbers of others, as one reduction."""
    zeros = [jnp.zeros((), x.dtype) for x in sums]
    largest = [jnp.array(jnp.iinfo(x.dtype).max, x.dtype) for x in least]

    def both(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
        return _together([a, b], len(sums))

    axes = range((*sums, *least)[0].ndim)
    return lax.reduce((*sums, *least), (*zeros, *largest), both, axes)


def _together(parts: Sequence[tuple[Array, ...]], sums: int) -> tuple[Array, ...]:
    """The sums of the first numbers of each part, the least of the others."""
    columns = zip(*parts, strict=True)
    each = (
        functools.reduce(jnp.add if i < sums else jnp.minimum, x) for i, x in enumerate(columns)
    )
    return tuple(each)


def _joined(leaves: Sequence[Array]) -> Array:
    if leaves_apart.value and len(leaves) == 1:
        return leaves[0]
    return jnp.concatenate([leaf.ravel() for leaf in leaves])


SMALL = 2**15  # numbers in a leaf that is cheaper to copy than to pass over alone


def _small_and_large(leaves: Sequence[Array]) -> tuple[list[int], list[int]]:
    """The numbers of the leaves that are cheaper joined to one, and of those that are not.

    Kernels cost more than copies of what is small.
    """
    numbers = range(len(leaves))
    small = [i for i in numbers if leaves[i].size <= SMALL and not leaves_apart.value]
    return small, [i for i in numbers if i not in small]


def _alike(tree: Params) -> list[Array]:
    """The leaves in the widest of their dtypes, float32 at least; complex ones as two parts."""
    leaves = [_parts(wide(leaf)) for leaf in jax.tree.leaves(tree)]
    dtype = max((leaf.dtype for leaf in leaves), key=lambda d: d.itemsize, default=None)
    return [leaf.astype(dtype) for leaf in leaves]


def _parts(x: Array) -> Array:
    return jnp.stack([x.real, x.imag]) if jnp.iscomplexobj(x) else x
