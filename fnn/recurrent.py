"""Recurrent layers, shaped like ``lax.scan``: carry first, in and out.

``lstm_step`` does one step, ``lstm`` a whole sequence; ``rnn`` and ``gru`` likewise. The
parameters are {"input": {"w": [in_dim, gates * hidden_dim], "b"}, "hidden": {"w": [hidden_dim,
gates * hidden_dim]}}, the gates side by side in PyTorch's order.

A mask is as in `fnn.sequences`: a masked step leaves the carry, and its output is zero.

Over time there is one product of the input for all steps, before the loop, and in the loop one
product of h. Gradients of the weights are one product after the loop, by `_over_time`'s own rule.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from fnn.initializers import Initializer, glorot_uniform, orthogonal
from fnn.layers import _affine, _check_input, product
from fnn.precision import wide
from fnn.sequences import blank, check_sequence, swapped, where
from fnn.types import AnyArray, Params

Cell = Callable[[Any, Sequence[Array]], Any]  # (carry, sums of each gate) -> carry

# --- plain recurrent layer ----------------------------------------------------------------------


def rnn_init(
    key: Array,
    in_dim: int,
    hidden_dim: int,
    *,
    w_init: Initializer = glorot_uniform,
    recurrent_init: Initializer = orthogonal,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `rnn`: input w [in_dim, hidden_dim], b zero; hidden w [hidden_dim] * 2."""
    return _init(key, in_dim, hidden_dim, 1, w_init, recurrent_init, dtype)


def rnn_carry(params: Params, batch: int) -> Array:
    """The carry before the first step: h, zeros [batch, hidden]."""
    w = params["hidden"]["w"]
    return jnp.zeros((batch, w.shape[0]), w.dtype)


def rnn_step(params: Params, carry: Array, x: AnyArray) -> tuple[Array, Array]:
    """h [batch, hidden], x [batch, in] -> (h, h): tanh(x @ w + b + h @ u) (Elman 1990)."""
    return _step("rnn_step", _rnn_cell, params, carry, x)


def rnn(
    params: Params,
    xs: AnyArray,
    carry: Array | None = None,
    *,
    mask: AnyArray | None = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """[batch, time, in] -> (h, hs), hs [batch, time, hidden]: `rnn_step` over time."""
    carry = rnn_carry(params, len(xs)) if carry is None else carry
    return _layer("rnn", _rnn_cell, params, xs, carry, mask, reverse)


# --- LSTM ---------------------------------------------------------------------------------------


def lstm_init(
    key: Array,
    in_dim: int,
    hidden_dim: int,
    *,
    w_init: Initializer = glorot_uniform,
    recurrent_init: Initializer = orthogonal,
    forget_bias: float = 1.0,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `lstm`: input w [in_dim, 4 hidden_dim], hidden w [hidden_dim, 4 hidden_dim].

    The gates are i, f, g, o, each drawn by itself. b is zero, but for `forget_bias` on f: a cell
    that forgets at first learns to remember late (Gers et al. 2000).
    """
    params = _init(key, in_dim, hidden_dim, 4, w_init, recurrent_init, dtype)
    b = params["input"]["b"].at[hidden_dim : 2 * hidden_dim].set(forget_bias)
    return params | {"input": params["input"] | {"b": b}}


def lstm_carry(params: Params, batch: int) -> tuple[Array, Array]:
    """The carry before the first step: (h, c), zeros [batch, hidden].

    c is a sum over time, so it is float32 where the parameters are of half precision.
    """
    h = rnn_carry(params, batch)
    return h, wide(h)


def lstm_step(
    params: Params, carry: tuple[Array, Array], x: AnyArray
) -> tuple[tuple[Array, Array], Array]:
    """(h, c) [batch, hidden], x [batch, in] -> ((h, c), h), with i, f, g, o = x @ w + b + h @ u.

    c <- s(f) c + s(i) tanh(g) and h <- s(o) tanh(c), s the sigmoid: Hochreiter & Schmidhuber
    1997 with Gers's forget gate and without peepholes, as in PyTorch and cuDNN.
    """
    return _step("lstm_step", _lstm_cell, params, carry, x)


def lstm(
    params: Params,
    xs: AnyArray,
    carry: tuple[Array, Array] | None = None,
    *,
    mask: AnyArray | None = None,
    reverse: bool = False,
) -> tuple[tuple[Array, Array], Array]:
    """[batch, time, in] -> ((h, c), hs), hs [batch, time, hidden]: `lstm_step` over time."""
    carry = lstm_carry(params, len(xs)) if carry is None else carry
    return _layer("lstm", _lstm_cell, params, xs, carry, mask, reverse)


# --- GRU ----------------------------------------------------------------------------------------


def gru_init(
    key: Array,
    in_dim: int,
    hidden_dim: int,
    *,
    w_init: Initializer = glorot_uniform,
    recurrent_init: Initializer = orthogonal,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `gru`: input w [in_dim, 3 hidden_dim], hidden w [hidden_dim, 3 hidden_dim].

    The gates are r, z, n, and the hidden b, [hidden_dim], is n's. PyTorch has hidden biases for
    r and z too, which only add to the input's.
    """
    params = _init(key, in_dim, hidden_dim, 3, w_init, recurrent_init, dtype)
    return params | {"hidden": params["hidden"] | {"b": jnp.zeros(hidden_dim, dtype)}}


def gru_carry(params: Params, batch: int) -> Array:
    """The carry before the first step: h, zeros [batch, hidden]."""
    return rnn_carry(params, batch)


def gru_step(params: Params, carry: Array, x: AnyArray) -> tuple[Array, Array]:
    """h [batch, hidden], x [batch, in] -> (h, h), h <- (1 - s(z)) n + s(z) h, s the sigmoid.

    r and z are x @ w + b + h @ u, and n = tanh(x @ w + b + s(r) (h @ u + b')): the reset gate
    after the product, as in PyTorch, cuDNN and version 1 of Cho et al. 2014, not before it.
    """
    return _step("gru_step", _gru_cell, params, carry, x)


def gru(
    params: Params,
    xs: AnyArray,
    carry: Array | None = None,
    *,
    mask: AnyArray | None = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """[batch, time, in] -> (h, hs), hs [batch, time, hidden]: `gru_step` over time."""
    carry = gru_carry(params, len(xs)) if carry is None else carry
    return _layer("gru", _gru_cell, params, xs, carry, mask, reverse)


# --- the cells, given the sum of what comes in to each gate ---------------------------------------


def _rnn_cell(h: Array, sums: Sequence[Array]) -> Array:
    return jnp.tanh(sums[0])


def _lstm_cell(carry: tuple[Array, Array], sums: Sequence[Array]) -> tuple[Array, Array]:
    h, c = carry
    new, c = _lstm_gates(*map(wide, sums), c)
    return new.astype(h.dtype), c


@jax.custom_jvp
def _lstm_gates(i: Array, f: Array, g: Array, o: Array, c: Array) -> tuple[Array, Array]:
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


@_lstm_gates.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Any, Any]:
    # Autodiff's derivative with its factors multiplied out, six arrays to keep of a step, not 11.
    (i, f, g, o, c), (di, df, dg, do, dc) = primals, tangents
    i, f, o, g = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o), jnp.tanh(g)
    new = f * c + i * g
    t = jnp.tanh(new)
    dnew = (g * i * (1 - i)) * di + (c * f * (1 - f)) * df + (i * (1 - g * g)) * dg + f * dc
    dh = (t * o * (1 - o)) * do + (o * (1 - t * t)) * dnew
    return (o * t, new), (dh, dnew)


def _gru_cell(h: Array, sums: Sequence[Array]) -> Array:
    r, z, recurrent, new = sums
    n = jnp.tanh(new + jax.nn.sigmoid(r) * recurrent)
    return n + jax.nn.sigmoid(z) * (h - n)


# --- what they share ----------------------------------------------------------------------------


def _init(
    key: Array,
    in_dim: int,
    hidden_dim: int,
    gates: int,
    w_init: Initializer,
    recurrent_init: Initializer,
    dtype: DTypeLike,
) -> Params:
    def draw(init: Initializer, key: Array, rows: int) -> Array:
        keys = jax.random.split(key, gates)
        ws = jax.vmap(lambda key: init(key, (rows, hidden_dim), dtype))(keys)
        return ws.swapaxes(0, 1).reshape(rows, gates * hidden_dim)

    input_key, hidden_key = jax.random.split(key)
    b = jnp.zeros(gates * hidden_dim, dtype)
    return {
        "input": {"w": draw(w_init, input_key, in_dim), "b": b},
        "hidden": {"w": draw(recurrent_init, hidden_key, hidden_dim)},
    }


def _step(name: str, cell: Cell, params: Params, carry: Any, x: AnyArray) -> tuple[Any, Array]:
    recurrent = _affine(f"{name} hidden", {"w": params["hidden"]["w"]}, _h(carry))
    carry = cell(carry, _sums(_inputs(name, params, x), recurrent))
    return carry, _h(carry)


def _layer(
    name: str,
    cell: Cell,
    params: Params,
    xs: AnyArray,
    carry: Any,
    mask: AnyArray | None,
    reverse: bool,
) -> tuple[Any, Array]:
    check_sequence(name, xs, mask, "in")
    _check_input(name, xs, params["input"]["w"])
    _check_carry(name, carry, xs, params["hidden"]["w"])
    # Products before the axes are swapped: the rows of a batch that is dealt out to devices stay.
    inputs = swapped(_inputs(name, params, blank(mask, xs)))
    carry, hs = _over_time(cell, reverse, params["hidden"]["w"], inputs, carry, swapped(mask))
    hs = swapped(hs)
    return carry, hs if mask is None else where(mask, hs, jnp.zeros_like(hs))


def _inputs(name: str, params: Params, x: AnyArray) -> list[Array]:
    """[..., in] -> [..., hidden] for each gate, what it gets beside the product of h."""
    gates = params["hidden"]["w"].shape[-1] // params["hidden"]["w"].shape[0]
    # Each an array of its own: slices of one are read slowly inside a loop on a CPU.
    inputs = jnp.split(_affine(name, params["input"], x), gates, axis=-1)
    if "b" in params["hidden"]:  # gru's n, where what h gives stands apart from what x gives
        inputs.insert(-1, jnp.broadcast_to(params["hidden"]["b"], inputs[-1].shape))
    return inputs


def _sums(inputs: Sequence[Array], recurrent: Array) -> list[Array]:
    """The inputs, what h gives, [..., gates hidden], added to the first of them."""
    gates = jnp.split(recurrent, recurrent.shape[-1] // inputs[0].shape[-1], axis=-1)
    return [*(a + b for a, b in zip(inputs, gates, strict=False)), *inputs[len(gates) :]]


def _h(carry: Any) -> Array:
    return carry[0] if isinstance(carry, tuple) else carry


def _scan(
    cell: Cell, reverse: bool, w: Array, inputs: list[Array], carry: Any, mask: Array | None
) -> tuple[Any, Array]:
    """inputs [time, batch, hidden] each, mask [time, batch] -> (carry, h after each step)."""

    def step(carry: Any, now: tuple[list[Array], Array | None]) -> tuple[Any, Array]:
        inputs, valid = now
        new = cell(carry, _sums(inputs, _h(carry) @ w))
        new = new if valid is None else where(valid, new, carry)
        return new, _h(new)

    return lax.scan(step, carry, (inputs, mask), reverse=reverse)


_over_time = jax.custom_jvp(_scan, nondiff_argnums=(0, 1))


@_over_time.defjvp
def _(cell: Cell, reverse: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    # A change of w does to a sum what h @ dw added to its input does. So it is made for all steps
    # at once, and its transpose, w's gradient, is one large product; autodiff's is many small
    # ones, each added to an array as large as w. All of it is JAX's own, hence forward mode,
    # higher orders and vmap.
    (w, inputs, carry, mask), (dw, dinputs, dcarry, _) = primals, tangents
    given_w = partial(_scan, cell, reverse, w, mask=mask)
    (last, hs), linear = jax.linearize(given_w, inputs, carry)
    first = _h(carry)[None]
    before = jnp.concatenate([hs, first])[1:] if reverse else jnp.concatenate([first, hs])[:-1]
    moved = swapped(product(swapped(before), dw))
    return (last, hs), linear(_sums(dinputs, moved), dcarry)


def _check_carry(name: str, carry: Any, xs: AnyArray, w: Array) -> None:
    for leaf in jax.tree.leaves(carry):
        if leaf.shape != (xs.shape[0], w.shape[0]):
            raise ValueError(
                f"{name}: the carry has shape {leaf.shape}, but xs of shape {xs.shape} expect"
                f" [{xs.shape[0]}, hidden], {(xs.shape[0], w.shape[0])}"
            )
