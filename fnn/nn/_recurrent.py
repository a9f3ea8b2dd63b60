"""Recurrent layers, shaped like ``lax.scan``: carry first, in and out.

``lstm_step`` computes one time step, ``lstm`` a whole sequence; ``rnn`` and ``gru`` likewise. The
parameters are {"input": {"w": [in_dim, gates * hidden_dim], "b"}, "hidden": {"w": [hidden_dim,
gates * hidden_dim]}}, with the gates side by side in PyTorch's order.

`mask`, bool [batch, time], is True where a time step is real. A masked time step does not change
the carry, and its output is zero.

The LSTM's c and the GRU's h are sums over time, so they are float32 at least inside a layer,
because a sum in half precision stops growing. A layer returns the carry in the dtypes in which it
came, so carries in half precision can go round a loop of one's own.

One product before the loop handles the inputs of all time steps; in the loop there is one product
with h. The gradient of each weight is one product after the loop, by `_over_time`'s own rule. A
loop writes few arrays, because each of them is a kernel in every time step on a GPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from fnn._base import (
    AnyArray,
    Params,
    as_count,
    at_least_float32,
    check_floating,
    check_key,
    wide,
)
from fnn.nn._dense import affine, check_input, check_params, dims, product, spread
from fnn.nn._initializers import Initializer, glorot_uniform, orthogonal
from fnn.nn._sequences import as_came, blank, check_sequence, swapped, where


class Cell(NamedTuple):
    """A recurrent layer by its cell. The carry is h or (h, c), the sums are those of its gates.

    Its derivative is linear in the tangents of carry and sums. `next` also returns what the factors
    of this linear function are made of, as one array.
    """

    name: str
    gates: int
    is_wide: tuple[bool, ...]  # h, or (h, c)
    next: Callable[[Any, list[Array]], tuple[Any, Array]]  # carry, sums -> carry, kept
    factors: Callable[[Array], tuple[Array, ...]]  # kept -> the factors of `tangent`
    tangent: Callable[[tuple[Array, ...], Any, list[Array]], Any]  # ..., of carry, sums -> of carry


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
    return _init(RNN, key, in_dim, hidden_dim, w_init, recurrent_init, dtype)


def rnn_carry(params: Params, batch: int) -> Array:
    """The carry before the first time step: h, zeros [batch, hidden]."""
    return _start(RNN, params, as_count("rnn_carry", "batch", batch, least=0))


def rnn_step(params: Params, carry: Array, x: AnyArray) -> tuple[Array, Array]:
    """h [batch, hidden], x [batch, in] -> (h, h): tanh(x @ w + b + h @ u) (Elman 1990)."""
    return _step(RNN, params, carry, x)


def rnn(
    params: Params,
    xs: AnyArray,
    carry: Array | None = None,
    *,
    mask: AnyArray | None = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """[batch, time, in] -> (h, hs), hs [batch, time, hidden]: `rnn_step` over time.

    `carry`, `mask` and `reverse` are as in `lstm`.
    """
    return _layer(RNN, params, xs, carry, mask, reverse)


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

    The gates are i, f, g, o; the weights of each gate are drawn separately. b is zero, except that
    it is `forget_bias` for f: otherwise the cell forgets at first and learns to remember only later
    (Gers et al. 2000).
    """
    params = _init(LSTM, key, in_dim, hidden_dim, w_init, recurrent_init, dtype)
    hidden_dim = params["hidden"]["w"].shape[0]
    b = params["input"]["b"].at[hidden_dim : 2 * hidden_dim].set(forget_bias)
    return params | {"input": params["input"] | {"b": b}}


def lstm_carry(params: Params, batch: int) -> tuple[Array, Array]:
    """The carry before the first time step: (h, c), zeros [batch, hidden], c float32 at least."""
    return _start(LSTM, params, as_count("lstm_carry", "batch", batch, least=0))


def lstm_step(
    params: Params, carry: tuple[Array, Array], x: AnyArray
) -> tuple[tuple[Array, Array], Array]:
    """(h, c) [batch, hidden], x [batch, in] -> ((h, c), h), with i, f, g, o = x @ w + b + h @ u.

    c <- s(f) c + s(i) tanh(g) and h <- s(o) tanh(c), s the sigmoid. This is the cell of Hochreiter
    & Schmidhuber 1997 with Gers's forget gate and without peepholes, as in PyTorch and cuDNN.
    """
    return _step(LSTM, params, carry, x)


def lstm(
    params: Params,
    xs: AnyArray,
    carry: tuple[Array, Array] | None = None,
    *,
    mask: AnyArray | None = None,
    reverse: bool = False,
) -> tuple[tuple[Array, Array], Array]:
    """[batch, time, in] -> ((h, c), hs), hs [batch, time, hidden]: `lstm_step` over time.

    `carry` is the first carry, zeros without one. `mask`, bool [batch, time], is True where a time
    step is real: a masked time step leaves the carry as it is, and its hs is zero. So the (h, c)
    that is returned is that of each row's last real time step. `reverse` begins at the last.
    """
    return _layer(LSTM, params, xs, carry, mask, reverse)


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

    The gates are r, z, n. The hidden b, [hidden_dim], belongs to n. PyTorch has hidden biases for r
    and z too; they are only added to the input's biases, so they are left out here.
    """
    params = _init(GRU, key, in_dim, hidden_dim, w_init, recurrent_init, dtype)
    b = jnp.zeros(params["hidden"]["w"].shape[0], dtype)
    return params | {"hidden": params["hidden"] | {"b": b}}


def gru_carry(params: Params, batch: int) -> Array:
    """The carry before the first time step: h, zeros [batch, hidden], float32 at least."""
    return _start(GRU, params, as_count("gru_carry", "batch", batch, least=0))


def gru_step(params: Params, carry: Array, x: AnyArray) -> tuple[Array, Array]:
    """h [batch, hidden], x [batch, in] -> (h, h), h <- (1 - s(z)) n + s(z) h, s the sigmoid.

    r and z are x @ w + b + h @ u, and n = tanh(x @ w + b + s(r) (h @ u + b')). The reset gate acts
    after the product with u, as in PyTorch, cuDNN and version 1 of Cho et al. 2014, not before it.
    """
    return _step(GRU, params, carry, x)


def gru(
    params: Params,
    xs: AnyArray,
    carry: Array | None = None,
    *,
    mask: AnyArray | None = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """[batch, time, in] -> (h, hs), hs [batch, time, hidden]: `gru_step` over time.

    `carry`, `mask` and `reverse` are as in `lstm`.
    """
    return _layer(GRU, params, xs, carry, mask, reverse)


# --- the cells, given the summed input of each gate ---------------------------------------------


def _rnn_next(h: Array, sums: list[Array]) -> tuple[Array, Array]:
    h = jnp.tanh(sums[0])
    return h, h


def _rnn_factors(h: Array) -> tuple[Array, ...]:
    return (1 - h * h,)


def _rnn_tangent(factors: tuple[Array, ...], dh: Array, dsums: list[Array]) -> Array:
    return factors[0] * dsums[0]


def _lstm_next(carry: tuple[Array, Array], sums: list[Array]) -> tuple[tuple[Array, Array], Array]:
    h, c = carry
    i, f, g, o = map(wide, sums)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    new = f * c + i * g
    t = jnp.tanh(new)
    return ((o * t).astype(h.dtype), new), jnp.concatenate([i, f, g, o, c, t], axis=-1)


def _lstm_factors(kept: Array) -> tuple[Array, ...]:
    i, f, g, o, c, t = jnp.split(kept, 6, axis=-1)
    of_sums = g * i * (1 - i), c * f * (1 - f), i * (1 - g * g), t * o * (1 - o)
    return *of_sums, f, o * (1 - t * t)


def _lstm_tangent(
    factors: tuple[Array, ...], dcarry: tuple[Array, Array], dsums: list[Array]
) -> tuple[Array, Array]:
    by_i, by_f, by_g, by_o, by_c, by_new = factors
    dh, dc = dcarry
    di, df, dg, do = map(wide, dsums)
    dc = by_i * di + by_f * df + by_g * dg + by_c * dc
    return (by_o * do + by_new * dc).astype(dh.dtype), dc


def _gru_next(h: Array, sums: list[Array]) -> tuple[Array, Array]:
    r, z, recurrent, new = map(wide, sums)
    r, z = jax.nn.sigmoid(r), jax.nn.sigmoid(z)
    n = jnp.tanh(new + r * recurrent)
    return n + z * (h - n), jnp.concatenate([r, z, recurrent, n, h], axis=-1)


def _gru_factors(kept: Array) -> tuple[Array, ...]:
    r, z, recurrent, n, h = jnp.split(kept, 5, axis=-1)
    by_new = (1 - z) * (1 - n * n)
    return by_new * recurrent * r * (1 - r), (h - n) * z * (1 - z), by_new * r, by_new, z


def _gru_tangent(factors: tuple[Array, ...], dh: Array, dsums: list[Array]) -> Array:
    by_r, by_z, by_recurrent, by_new, by_h = factors
    dr, dz, drecurrent, dnew = map(wide, dsums)
    return by_r * dr + by_z * dz + by_recurrent * drecurrent + by_new * dnew + by_h * dh


RNN = Cell("rnn", 1, (False,), _rnn_next, _rnn_factors, _rnn_tangent)
LSTM = Cell("lstm", 4, (False, True), _lstm_next, _lstm_factors, _lstm_tangent)
GRU = Cell("gru", 3, (True,), _gru_next, _gru_factors, _gru_tangent)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _next(cell: Cell, carry: Any, sums: list[Array]) -> Any:
    return cell.next(carry, sums)[0]


@_next.defjvp
def _(cell: Cell, primals: Any, tangents: Any) -> tuple[Any, Any]:
    # Autodiff's derivative with its factors multiplied out: a time step keeps fewer arrays.
    carry, kept = cell.next(*primals)
    return carry, cell.tangent(cell.factors(kept), *tangents)


# --- shared by the three layers -----------------------------------------------------------------


def _init(
    cell: Cell,
    key: Array,
    in_dim: int,
    hidden_dim: int,
    w_init: Initializer,
    recurrent_init: Initializer,
    dtype: DTypeLike,
) -> Params:
    name, gates = f"{cell.name}_init", cell.gates
    check_key(name, key)
    (in_dim,), hidden_dim = dims(name, in_dim=in_dim), as_count(name, "hidden_dim", hidden_dim)

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


def _start(cell: Cell, params: Params, batch: int) -> Any:
    # `batch` may be a symbol, of jax.export.
    name = f"{cell.name}_carry"
    w = _check_params(name, cell, params)
    h = jnp.zeros((batch, w.shape[0]), w.dtype)
    return _typed(cell, h if len(cell.is_wide) == 1 else (h, h), w.dtype)


def _typed(cell: Cell, carry: Any, dtype: DTypeLike) -> Any:
    """The carry in the dtype of the layer, with what the cell sums over time float32 at least."""
    parts = carry if isinstance(carry, tuple) else (carry,)
    dtypes = [at_least_float32(dtype) if is_wide else dtype for is_wide in cell.is_wide]
    parts = tuple(jnp.asarray(part, own) for part, own in zip(parts, dtypes, strict=True))
    return parts if isinstance(carry, tuple) else parts[0]


def _step(cell: Cell, params: Params, carry: Any, x: AnyArray) -> tuple[Any, Array]:
    name = f"{cell.name}_step"
    w = _check_params(name, cell, params)
    inputs = _inputs(name, params, x)
    _check_carry(name, cell, carry, (*x.shape[:-1], w.shape[0]))
    dtype = inputs.dtype
    carry = _typed(cell, carry, dtype)
    recurrent = _h(carry).astype(dtype) @ w.astype(dtype)
    carry = _next(cell, carry, _sums(*(_gates(a, len(w)) for a in (inputs, recurrent))))
    return carry, _h(carry).astype(dtype)


def _layer(
    cell: Cell,
    params: Params,
    xs: AnyArray,
    carry: Any,
    mask: AnyArray | None,
    reverse: bool,
) -> tuple[Any, Array]:
    name = cell.name
    check_sequence(name, xs, mask, "in")
    w = _check_params(name, cell, params)
    check_input(name, xs, params["input"]["w"])
    # Products before the axes are swapped: then the rows of a sharded batch stay on their devices.
    inputs = swapped(_inputs(name, params, blank(mask, xs)))
    dtype = inputs.dtype
    came = _start(cell, params, xs.shape[0]) if carry is None else carry
    _check_carry(name, cell, came, (xs.shape[0], w.shape[0]))
    start = _typed(cell, came, dtype)
    last, hs = _over_time(cell, reverse, w.astype(dtype), inputs, start, swapped(mask))
    hs = swapped(hs)
    last = last if carry is None else as_came(carry, last)
    return last, hs if mask is None else where(mask, hs, jnp.zeros_like(hs))


def _inputs(name: str, params: Params, x: AnyArray) -> Array:
    """[..., in] -> [..., gates hidden]: the input of each gate, without the product with h."""
    hidden, b = params["hidden"]["w"].shape[0], params["hidden"].get("b")
    inputs = affine(name, params["input"], x)
    if b is None:
        return inputs
    # n of the GRU keeps the terms of h and of x apart.
    *others, n = jnp.split(inputs, inputs.shape[-1] // hidden, axis=-1)
    return jnp.concatenate([*others, spread(b, n.shape), n], axis=-1)


def _sums(inputs: list[Array], recurrent: list[Array]) -> list[Array]:
    """The inputs, with the products of h added to the first of them."""
    added = (a + b for a, b in zip(inputs, recurrent, strict=False))
    return [*added, *inputs[len(recurrent) :]]


def _gates(x: Array, hidden: int) -> list[Array]:
    return jnp.split(x, x.shape[-1] // hidden, axis=-1)


def _h(carry: Any) -> Array:
    return carry[0] if isinstance(carry, tuple) else carry


def _scan(
    cell: Cell, reverse: bool, w: Array, inputs: Array, carry: Any, mask: Array | None
) -> tuple[Any, tuple[Array, Array]]:
    """inputs [time, batch, gates hidden], mask [time, batch] -> (carry, (hs, kept)), over time."""

    def step(carry: Any, now: tuple[list[Array], Array | None]) -> tuple[Any, tuple[Array, Array]]:
        inputs, valid = now
        new, kept = cell.next(carry, _sums(inputs, _gates(_h(carry).astype(w.dtype) @ w, len(w))))
        new = new if valid is None else where(valid, new, carry)
        return new, (_h(new).astype(w.dtype), kept)

    # Separate arrays: inside a loop on a CPU, slices of one array are read slowly.
    return lax.scan(step, carry, (_gates(inputs, len(w)), mask), reverse=reverse)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _over_time(
    cell: Cell, reverse: bool, w: Array, inputs: Array, carry: Any, mask: Array | None
) -> tuple[Any, Array]:
    """(carry, h after each time step)."""
    last, (hs, _) = _scan(cell, reverse, w, inputs, carry, mask)
    return last, hs


@_over_time.defjvp
def _(cell: Cell, reverse: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    # A change dw of w has the same effect as h @ dw added to the gate's input. h @ dw is computed
    # for all time steps at once, so its transpose, the gradient of w, is one large product.
    # Autodiff has one small product a time step, each added to an array as large as w. The factors
    # too are computed for all time steps at once. The rule is made of JAX's own functions, so
    # forward mode, higher orders and vmap work.
    (w, inputs, carry, mask), (dw, dinputs, dcarry, _) = primals, tangents
    last, (hs, kept) = _scan(cell, reverse, w, inputs, carry, mask)
    first = _h(carry)[None].astype(w.dtype)
    before = jnp.concatenate([hs, first])[1:] if reverse else jnp.concatenate([first, hs])[:-1]
    moved = swapped(product(swapped(before), dw))
    apart = inputs.shape[-1] - moved.shape[-1]  # n of the GRU
    dinputs = dinputs + jnp.pad(moved, [(0, 0), (0, 0), (0, apart)])
    # Once, before the loop: what depends on no tangent would have a loop of its own.
    valid = None if mask is None else jnp.broadcast_to(mask[..., None], hs.shape)
    turned = w.T  # so that the gradient's product in the loop reads it row by row

    def step(dcarry: Any, now: Any) -> tuple[Any, Array]:
        dinputs, factors, valid = now
        moved = lax.dot_general(_h(dcarry).astype(w.dtype), turned, (((1,), (1,)), ((), ())))
        dsums = _sums(*(_gates(a, len(w)) for a in (dinputs, moved)))
        new = cell.tangent(factors, dcarry, dsums)
        new = new if valid is None else where(valid, new, dcarry)
        return new, _h(new).astype(w.dtype)

    given = dinputs, cell.factors(kept), valid
    return (last, hs), lax.scan(step, dcarry, given, reverse=reverse)


def _check_params(name: str, cell: Cell, params: Params) -> Array:
    """The weight of h, [hidden, gates hidden]; an error if the parameters are not of this layer."""
    check_params(name, params, "input", "hidden", optional=())
    check_params(f"{name} input", params["input"], "w")
    check_params(f"{name} hidden", params["hidden"], "w", *["b"] * (cell is GRU), optional=())
    w = params["hidden"]["w"]
    if w.ndim != 2 or w.shape[1] != cell.gates * w.shape[0]:
        raise ValueError(
            f"{name}: hidden w has shape {w.shape}, expected [hidden, {cell.gates} hidden]"
        )
    came = params["input"]["w"].shape
    if len(came) != 2 or came[1] != w.shape[1]:
        raise ValueError(f"{name}: input w has shape {came}, expected [in, {w.shape[1]}]")
    return w


def _check_carry(name: str, cell: Cell, carry: Any, shape: tuple[int, ...]) -> None:
    parts = carry if isinstance(carry, tuple) else (carry,)
    if len(parts) != len(cell.is_wide) or not all(hasattr(part, "dtype") for part in parts):
        one = "one array" if hasattr(carry, "dtype") else f"of type {type(carry).__name__}"
        came = f"a tuple of {len(carry)}" if isinstance(carry, tuple) else one
        expected = "(h, c), two arrays" if cell is LSTM else "h, one array"
        raise TypeError(f"{name}: the carry is {came}, expected {expected} of shape {shape}")
    for part in parts:
        check_floating(f"{name} carry", part)
        if part.shape != shape:
            raise ValueError(f"{name}: the carry has shape {part.shape}, expected {shape}")
