"""Recurrent layers, shaped like ``lax.scan``: carry first, in and out.

``lstm_step`` does one step, ``lstm`` a whole sequence; ``rnn`` and ``gru`` likewise. The
parameters are {"input": {"w": [in_dim, gates * hidden_dim], "b"}, "hidden": {"w": [hidden_dim,
gates * hidden_dim]}}, the gates side by side in PyTorch's order.

A mask is as in `fnn.sequences`: a masked step leaves the carry, and its output is zero.

`form` chooses between programs that compute the same to rounding: "fused", one product for all
gates of an input, inside the loop; "hoisted", the input's product taken out of the loop;
"separate", one product a gate. By default it is "hoisted", but where JAX's default backend is a
CPU "separate" for a hidden_dim from 128 to 255 and "fused" for others.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from fnn.initializers import Initializer, glorot_uniform, orthogonal
from fnn.layers import _affine, _check_input
from fnn.precision import wide
from fnn.sequences import blank, check_sequence, scan_time
from fnn.types import AnyArray, Params

Form = Literal["fused", "hoisted", "separate"]
Gates = Sequence[Array]

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
    return _rnn_cell(params, carry, _gates("rnn_step", params["input"], x, 1))


def rnn(
    params: Params,
    xs: AnyArray,
    carry: Array | None = None,
    *,
    mask: AnyArray | None = None,
    reverse: bool = False,
    form: Form | None = None,
) -> tuple[Array, Array]:
    """[batch, time, in] -> (h, hs), hs [batch, time, hidden]: `rnn_step` over time."""
    carry = rnn_carry(params, len(xs)) if carry is None else carry
    return _layer("rnn", _rnn_cell, 1, params, xs, carry, mask, reverse, form)


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
    return _lstm_cell(params, carry, _gates("lstm_step", params["input"], x, 4))


def lstm(
    params: Params,
    xs: AnyArray,
    carry: tuple[Array, Array] | None = None,
    *,
    mask: AnyArray | None = None,
    reverse: bool = False,
    form: Form | None = None,
) -> tuple[tuple[Array, Array], Array]:
    """[batch, time, in] -> ((h, c), hs), hs [batch, time, hidden]: `lstm_step` over time."""
    carry = lstm_carry(params, len(xs)) if carry is None else carry
    return _layer("lstm", _lstm_cell, 4, params, xs, carry, mask, reverse, form)


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
    return _gru_cell(params, carry, _gates("gru_step", params["input"], x, 3))


def gru(
    params: Params,
    xs: AnyArray,
    carry: Array | None = None,
    *,
    mask: AnyArray | None = None,
    reverse: bool = False,
    form: Form | None = None,
) -> tuple[Array, Array]:
    """[batch, time, in] -> (h, hs), hs [batch, time, hidden]: `gru_step` over time."""
    carry = gru_carry(params, len(xs)) if carry is None else carry
    return _layer("gru", _gru_cell, 3, params, xs, carry, mask, reverse, form)


# --- the cells, given the input's share of each gate --------------------------------------------


def _rnn_cell(params: Params, h: Array, inputs: Gates) -> tuple[Array, Array]:
    (recurrent,) = _gates("rnn", params["hidden"], h, 1)
    h = jnp.tanh(inputs[0] + recurrent)
    return h, h


def _lstm_cell(
    params: Params, carry: tuple[Array, Array], inputs: Gates
) -> tuple[tuple[Array, Array], Array]:
    h, c = carry
    recurrent = _gates("lstm", params["hidden"], h, 4)
    i, f, g, o = (wide(a + b) for a, b in zip(inputs, recurrent, strict=True))
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = (jax.nn.sigmoid(o) * jnp.tanh(c)).astype(h.dtype)
    return (h, c), h


def _gru_cell(params: Params, h: Array, inputs: Gates) -> tuple[Array, Array]:
    hidden = params["hidden"]
    recurrent = _gates("gru", {"w": hidden["w"]}, h, 3)
    r = jax.nn.sigmoid(inputs[0] + recurrent[0])
    z = jax.nn.sigmoid(inputs[1] + recurrent[1])
    n = jnp.tanh(inputs[2] + r * (recurrent[2] + hidden["b"]))
    h = n + z * (h - n)
    return h, h


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


def _layer(
    name: str,
    cell: Callable[[Params, Any, Gates], tuple[Any, Array]],
    gates: int,
    params: Params,
    xs: AnyArray,
    carry: Any,
    mask: AnyArray | None,
    reverse: bool,
    form: Form | None,
) -> tuple[Any, Array]:
    form = _form(name, form, params)
    check_sequence(name, xs, mask, "in")
    _check_input(name, xs, params["input"]["w"])
    _check_carry(name, carry, xs)
    xs = blank(mask, xs)
    if form == "hoisted":
        xs = _affine(name, params["input"], xs)
    elif form == "separate":
        params = _cut(params, gates)

    def step(carry: Any, x: Array) -> tuple[Any, Array]:
        inputs = jnp.split(x, gates, axis=-1) if form == "hoisted" else None
        return cell(params, carry, inputs or _gates(name, params["input"], x, gates))

    return scan_time(step, xs, carry, mask, reverse)


def _gates(name: str, params: Params, x: AnyArray, gates: int) -> Gates:
    """[batch, in] -> [batch, hidden] for each gate; where w is cut, by one product each."""
    if isinstance(params["w"], list):
        bs = params.get("b", [None] * gates)
        return [x @ w if b is None else x @ w + b for w, b in zip(params["w"], bs, strict=True)]
    return jnp.split(_affine(name, params, x), gates, axis=-1)


def _cut(params: Params, gates: int) -> Params:
    def cut(w: Array) -> list[Array]:
        return jnp.split(w, gates, axis=-1)

    hidden = params["hidden"] | {"w": cut(params["hidden"]["w"])}
    return {"input": {name: cut(leaf) for name, leaf in params["input"].items()}, "hidden": hidden}


def _form(name: str, form: Form | None, params: Params) -> Form:
    if form is not None:
        if form not in ("fused", "hoisted", "separate"):
            raise ValueError(
                f"{name}: form is {form!r}, expected 'fused', 'hoisted', 'separate' or None"
            )
        return form
    if jax.default_backend() != "cpu":
        return "hoisted"
    return "separate" if 128 <= params["hidden"]["w"].shape[0] < 256 else "fused"


def _check_carry(name: str, carry: Any, xs: AnyArray) -> None:
    for leaf in jax.tree.leaves(carry):
        if leaf.shape[:1] != xs.shape[:1]:
            raise ValueError(
                f"{name}: the carry has shape {leaf.shape}, but xs of shape {xs.shape} expect"
                f" [{xs.shape[0]}, hidden]"
            )
