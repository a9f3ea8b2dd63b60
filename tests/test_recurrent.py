import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

KEY = jax.random.key(0)
GOLDEN = np.load(Path(__file__).parent / "golden" / "sequence.npz")
LENGTHS = GOLDEN["lengths"]
MASK = np.arange(5) < LENGTHS[:, None]


def compiled(name):
    init, carry, step, layer = (
        getattr(fnn, name + part) for part in ("_init", "_carry", "_step", "")
    )
    layer = jax.jit(layer, static_argnames="reverse")
    return jax.jit(init, static_argnames=("in_dim", "hidden_dim", "dtype")), carry, step, layer


LAYERS = {name: compiled(name) for name in ("rnn", "lstm", "gru")}
every_layer = pytest.mark.parametrize("name", LAYERS)
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def sequence(batch=3, time=5, dim=4, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), (batch, time, dim), dtype)


def from_torch(case, what, suffix="_l0"):
    """PyTorch's parameters, or their gradients, as fnn has them."""
    w, u, b, c = (
        GOLDEN[f"{case}/{what}/{name}{suffix}"]
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    hidden = u.shape[1]
    if "gru" in case:
        total = b + np.where(np.arange(3 * hidden) < 2 * hidden, c, 0) if what == "params" else b
        params = {"input": {"w": w.T, "b": total}, "hidden": {"w": u.T, "b": c[2 * hidden :]}}
    else:
        total = b + c if what == "params" else b
        params = {"input": {"w": w.T, "b": total}, "hidden": {"w": u.T}}
    return jax.tree.map(jnp.asarray, params)


# --- against PyTorch ----------------------------------------------------------------------------


@every_layer
def test_values_and_gradients_are_pytorchs(name):
    def loss(params, x):
        y = LAYERS[name][-1](params, x)[1]
        return (y * GOLDEN[f"{name}/probe"]).sum(), y

    with jax.enable_x64(True):
        params, x = from_torch(name, "params"), jnp.asarray(GOLDEN[f"{name}/x"])
        expected = from_torch(name, "grads"), GOLDEN[f"{name}/x_grad"]
        (_, y), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
        chex.assert_trees_all_close((y, grads), (GOLDEN[f"{name}/y"], expected), rtol=1e-11)


@every_layer
def test_packed_bidirectional_stacks_are_pytorchs(name):
    case, layer = f"{name}_packed", functools.partial(fnn.bidirectional, LAYERS[name][-1])
    count = 2 if name == "lstm" else 1

    def params_of(what):
        return {
            f"layer_{i}": {
                "forward": from_torch(case, what, f"_l{i}"),
                "backward": from_torch(case, what, f"_l{i}_reverse"),
            }
            for i in range(count)
        }

    def loss(params, x):
        y = fnn.stacked(layer, params, x, mask=MASK)[1]
        return (y * GOLDEN[f"{case}/probe"]).sum(), y

    with jax.enable_x64(True):
        x = jnp.asarray(GOLDEN[f"{case}/x"])
        grad = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (_, y), grads = grad(params_of("params"), x)
        expected = GOLDEN[f"{case}/y"], (params_of("grads"), GOLDEN[f"{case}/x_grad"])
        chex.assert_trees_all_close((y, grads), expected, rtol=1e-11, atol=1e-13)


@every_layer
def test_values_are_flaxs(name):
    linen = pytest.importorskip("flax.linen")
    cell = {"rnn": linen.SimpleCell, "lstm": linen.OptimizedLSTMCell, "gru": linen.GRUCell}[name](3)
    xs = sequence()
    flax_params = linen.RNN(cell).init(KEY, xs)["params"]["cell"]
    gates = {"rnn": [""], "lstm": list("ifgo"), "gru": list("rzn")}[name]
    i, h = ("i", "h") if name == "rnn" else ("i{}", "h{}")

    def joined(letter, leaf):
        return jnp.concatenate([flax_params[letter.format(g)][leaf] for g in gates], axis=-1)

    params = {"input": {"w": joined(i, "kernel")}, "hidden": {"w": joined(h, "kernel")}}
    params["input"]["b"] = joined(h if name == "lstm" else i, "bias")
    if name == "gru":
        params["hidden"]["b"] = flax_params["hn"]["bias"] + 0.5
        flax_params["hn"]["bias"] = params["hidden"]["b"]
    expected = linen.RNN(cell).apply({"params": {"cell": flax_params}}, xs)
    close(LAYERS[name][-1](params, xs)[1], expected)


# --- one function, however it is computed -------------------------------------------------------


@every_layer
def test_a_sequence_is_the_loop_of_steps(name):
    init, start, step, layer = LAYERS[name]
    params, xs = init(KEY, 4, 8), sequence()
    carry, hs, step = start(params, 3), [], jax.jit(step)
    for t in range(5):
        carry, h = step(params, carry, xs[:, t])
        hs.append(h)
    expected = carry, jnp.stack(hs, axis=1)
    close(layer(params, xs), expected)
    close(fnn.unroll(step, params, xs, start(params, 3)), expected)


@pytest.mark.parametrize(("name", "reverse"), [("rnn", True), ("lstm", True), ("gru", False)])
def test_derivatives_of_both_orders_and_modes_are_autodiffs(name, reverse):
    init, start, step, layer = LAYERS[name]
    options = {"mask": MASK, "reverse": reverse}

    def both(at, way):
        def derivatives(run):
            def loss(params, xs, carry):
                return (jnp.stack(jax.tree.leaves(run(params, xs, carry)[0])) ** 3).sum() + (
                    run(params, xs, carry)[1] ** 2
                ).sum()

            def slope(*at):  # forward mode
                return jax.jvp(loss, at, way)[1]

            return jax.grad(loss, (0, 1, 2))(*at), jax.value_and_grad(slope, (0, 1, 2))(*at)

        def unrolled(params, xs, carry):
            return fnn.unroll(step, params, xs, carry, **options)

        return derivatives(functools.partial(layer, **options)), derivatives(unrolled)

    with jax.enable_x64(True):
        params, xs = init(KEY, 4, 3), sequence(dtype=jnp.float64)
        at = params, xs, jax.tree.map(lambda h: h + 0.3, start(params, 3))
        way = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size, dtype=float)).reshape(a.shape), at)
        ours, autodiffs = jax.jit(both)(at, way)
        chex.assert_trees_all_close(ours, autodiffs, rtol=1e-10, atol=1e-12)


@every_layer
def test_a_weights_gradient_is_one_product_after_the_loop(name):
    init, _, _, layer = (getattr(fnn, name + part) for part in ("_init", "_carry", "_step", ""))
    params = init(KEY, 4, 8)
    program = jax.make_jaxpr(jax.grad(lambda p: layer(p, sequence())[1].sum()))(params)
    loops = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(loops) == 2  # forth and back
    carried = {v.aval.shape for eqn in loops for v in eqn.outvars}
    assert carried.isdisjoint({leaf.shape for leaf in jax.tree.leaves(params)})


def test_rows_that_are_dealt_out_to_devices_stay_there():
    params, optimizer = fnn.lstm_init(KEY, 4, 8), fnn.sgd(0.1)
    step = fnn.make_train_step(lambda p, xs, key: (fnn.lstm(p, xs)[1] ** 2).mean((1, 2)), optimizer)
    given = fnn.train_init(params, optimizer), sequence(batch=16), KEY
    dealt = jax.jit(fnn.data_parallel(step)).lower(*given).compile()
    for moving in ("all-gather", "all-to-all", "collective-permute"):
        assert moving not in dealt.as_text()
    close(dealt(*given)[0].params, jax.jit(step)(*given)[0].params)


@every_layer
def test_two_halves_are_the_whole(name):
    init, _, _, layer = LAYERS[name]
    params, xs = init(KEY, 4, 8), sequence(time=6)
    middle, first = layer(params, xs[:, :2])
    end, second = layer(params, xs[:, 2:], middle)
    whole = layer(params, xs)
    chex.assert_trees_all_equal((end, jnp.concatenate([first, second], axis=1)), whole)
    no_steps = layer(params, xs[:, :0], middle)
    chex.assert_trees_all_equal(no_steps, (middle, jnp.zeros((3, 0, 8))))


# --- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "reverse"), [("rnn", True), ("lstm", False), ("gru", True)])
def test_a_padded_batch_is_each_sequence_alone(name, reverse):
    init, _, _, layer = LAYERS[name]
    params, xs = init(KEY, 4, 8), jnp.where(MASK[..., None], sequence(), jnp.nan)

    @jax.jit
    def grads_of(xs, mask):
        def loss(params):
            carry, hs = layer(params, xs, mask=mask, reverse=reverse)
            return (hs**2).sum(), (carry, hs)

        return jax.grad(loss, has_aux=True)(params)

    grads, (carry, hs) = grads_of(xs, MASK)
    assert not np.asarray(hs)[~MASK].any()
    total = jax.tree.map(np.zeros_like, params)
    for row, length in enumerate(LENGTHS):
        alone, (end, ys) = grads_of(xs[row : row + 1, :length], None)
        close(hs[row, :length], ys[0])
        close(jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], carry), end)
        total = jax.tree.map(np.add, total, alone)
    chex.assert_trees_all_close(grads, total, rtol=1e-4, atol=1e-5)


def test_a_row_of_no_steps_keeps_its_carry():
    params, start = fnn.lstm_init(KEY, 4, 8), (jnp.full((3, 8), 0.5), jnp.full((3, 8), -2.0))
    mask = MASK & (np.arange(3) != 1)[:, None]
    carry, hs = fnn.lstm(params, sequence(), start, mask=mask)
    chex.assert_trees_all_equal([leaf[1] for leaf in carry], [leaf[1] for leaf in start])
    assert not hs[1].any()


# --- composition --------------------------------------------------------------------------------


def test_unroll_takes_a_cell_of_ones_own():
    def step(params, carry, x):
        carry = {"sum": carry["sum"] + params * x["number"], "last": x["token"]}
        return carry, (carry["sum"], x["token"])

    xs = {"number": jnp.arange(6.0).reshape(2, 3), "token": jnp.arange(6).reshape(2, 3)}
    start = {"sum": jnp.zeros(2), "last": jnp.full(2, -1)}
    mask = jnp.array([[True, True, True], [True, False, False]])
    carry, (sums, tokens) = fnn.unroll(step, jnp.float32(2), xs, start, mask=mask)
    np.testing.assert_array_equal(sums, [[0, 2, 6], [6, 0, 0]])
    np.testing.assert_array_equal(tokens, [[0, 1, 2], [3, 0, 0]])
    np.testing.assert_array_equal(carry["sum"], [6, 6])
    np.testing.assert_array_equal(carry["last"], [2, 3])


@every_layer
def test_stacked_is_the_loop_and_hands_its_carry_on(name):
    init, _, _, layer = LAYERS[name]
    params, xs = fnn.stacked_init(init, KEY, (4, 8, 6)), sequence(time=6)
    hs, carries = xs, {}
    for i in range(2):
        carries[f"layer_{i}"], hs = layer(params[f"layer_{i}"], hs)
    close(fnn.stacked(layer, params, xs), (carries, hs))
    middle, _ = fnn.stacked(layer, params, xs[:, :3])
    close(fnn.stacked(layer, params, xs[:, 3:], middle), (carries, hs[:, 3:]))


def test_stacked_names_are_in_order_and_draws_are_apart():
    params = fnn.stacked_init(fnn.rnn_init, KEY, [2] * 12)
    assert list(params) == sorted(params) == [f"layer_{i:02}" for i in range(11)]
    assert (params["layer_00"]["input"]["w"] != params["layer_01"]["input"]["w"]).all()


def test_dropout_is_between_the_layers_only():
    params, xs = fnn.stacked_init(LAYERS["rnn"][0], KEY, (4, 64, 64)), sequence()
    seen = []

    def layer(params, xs, carry, mask):
        seen.append(xs)
        return fnn.rnn(params, xs, carry, mask=mask)

    hs = fnn.stacked(layer, params, xs, key=KEY, rate=0.5)[1]
    assert seen[0] is xs
    assert 0.4 < float((seen[1] == 0).mean()) < 0.6
    assert (hs != 0).all()
    assert (fnn.stacked(layer, params, xs, rate=0.5)[1] != hs).any()


def test_bidirectional_hands_its_carry_on():
    init, _, _, layer = LAYERS["lstm"]
    params = {"forward": init(KEY, 4, 8), "backward": init(KEY, 4, 6)}
    xs, half = sequence(), functools.partial(fnn.bidirectional, layer, params)
    carry, hs = half(xs)
    assert hs.shape == (3, 5, 14)
    close(hs[..., :8], fnn.lstm(params["forward"], xs)[1])
    flipped = fnn.lstm(params["backward"], xs[:, ::-1])
    close((carry["backward"], hs[..., 8:]), (flipped[0], flipped[1][:, ::-1]))
    close(half(xs, carry)[1][..., :8], fnn.lstm(params["forward"], xs, carry["forward"])[1])


# --- parameters ---------------------------------------------------------------------------------


def test_recurrent_weights_begin_orthogonal_gate_by_gate():
    init = LAYERS["lstm"][0]
    with jax.enable_x64(True):
        w = init(KEY, 4, 16)["hidden"]["w"]
        gates = np.split(np.asarray(w), 4, axis=1)
        for gate in gates:
            np.testing.assert_allclose(gate.T @ gate, np.eye(16), atol=1e-14)
    assert abs(gates[0] - gates[1]).max() > 0.1
    limit = np.sqrt(6 / (4 + 16))
    spread = abs(init(KEY, 4, 16)["input"]["w"]).max()  # of one gate's fans, not of all
    assert 0.9 * limit < spread <= limit * (1 + 1e-6)


def test_the_forget_gate_begins_open():
    for bias in (1.0, 0.0, 2.5):
        b = fnn.lstm_init(KEY, 4, 3, forget_bias=bias)["input"]["b"]
        np.testing.assert_array_equal(b, [0] * 3 + [bias] * 3 + [0] * 6)


@every_layer
def test_biases_are_spared_and_weights_penalised(name):
    params = LAYERS[name][0](KEY, 4, 8)
    by_path = fnn.params.paths(fnn.params.decayed(params))
    assert by_path == {path: path.endswith("/w") for path in by_path}
    squares = sum(float((params[part]["w"] ** 2).sum()) for part in ("input", "hidden"))
    np.testing.assert_allclose(fnn.params.l2(params), squares, rtol=1e-6)


@every_layer
def test_orders_of_keys_and_dtypes(name):
    init, start, _, layer = LAYERS[name]
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda key: init(key, 4, 8)))(keys)
    for i, key in enumerate(keys):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], together), init(key, 4, 8))
    half = init(KEY, 4, 8, dtype=jnp.bfloat16)
    chex.assert_type(jax.tree.leaves(half), jnp.bfloat16)
    carry, hs = layer(half, sequence(dtype=jnp.bfloat16), mask=MASK)
    assert hs.dtype == jnp.bfloat16
    chex.assert_trees_all_equal_dtypes(carry, start(half, 3))


def test_the_cell_of_an_lstm_in_half_precision_does_not_stall():
    # 1,000 additions of about 0.01: in bfloat16 the sum would stop where that is half a unit.
    params = jax.tree.map(jnp.zeros_like, fnn.lstm_init(KEY, 1, 1, dtype=jnp.bfloat16))
    params["input"]["b"] = jnp.array([-4.6, 20, 20, 0], jnp.bfloat16)
    (_, c), _ = jax.jit(fnn.lstm)(params, jnp.zeros((1, 1000, 1), jnp.bfloat16))
    assert c.dtype == jnp.float32
    np.testing.assert_allclose(c, 1000 / (1 + np.exp(4.59375)), rtol=1e-3)


# --- breaking it --------------------------------------------------------------------------------


@every_layer
def test_empty_one_row_and_huge(name):
    init, _, _, layer = LAYERS[name]
    params = init(KEY, 4, 8)
    assert layer(params, jnp.zeros((0, 5, 4)))[1].shape == (0, 5, 8)
    xs = sequence()
    close(layer(params, xs[:1])[1], layer(params, xs)[1][:1])
    grad = jax.jit(jax.grad(lambda params: layer(params, 1e30 * xs)[1].sum()))
    assert jnp.isfinite(layer(params, 1e30 * xs)[1]).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grad(params)))


def test_a_nan_stays_in_its_row_and_after_its_step():
    init, _, _, layer = LAYERS["lstm"]
    params, xs = init(KEY, 4, 8), sequence().at[1, 2].set(jnp.nan)
    bad = np.isnan(layer(params, xs)[1]).all(-1)
    np.testing.assert_array_equal(bad, (np.arange(3) == 1)[:, None] & (np.arange(5) >= 2))


LSTM = fnn.lstm_init(KEY, 64, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fnn.lstm(LSTM, jnp.zeros((4, 5, 63))),
            ValueError,
            r"lstm: x has 63 features \(shape \(4, 5, 63\)\), but w expects 64 \(shape \(64, 32\)\)",
        ),
        (
            lambda: fnn.lstm_step(LSTM, fnn.lstm_carry(LSTM, 4), jnp.zeros((4, 63))),
            ValueError,
            "lstm_step: x has 63 features",
        ),
        (
            lambda: fnn.gru(LSTM, jnp.zeros((4, 64))),
            ValueError,
            r"gru: xs have shape \(4, 64\), expected \[batch, time, in\]",
        ),
        (
            lambda: fnn.lstm(LSTM, jnp.zeros((4, 5, 64), int)),
            TypeError,
            "lstm: x is int32, expected floating point",
        ),
        (
            lambda: fnn.lstm(LSTM, jnp.zeros((4, 5, 64)), mask=jnp.ones(4, bool)),
            ValueError,
            r"lstm: mask has shape \(4,\), but xs of shape \(4, 5, 64\) expect \(4, 5\)",
        ),
        (
            lambda: fnn.lstm(LSTM, jnp.zeros((4, 5, 64)), mask=jnp.ones((4, 5))),
            TypeError,
            "lstm: mask is float32, expected bool",
        ),
        (
            lambda: fnn.lstm(LSTM, jnp.zeros((4, 5, 64)), fnn.lstm_carry(LSTM, 1)),
            ValueError,
            r"lstm: the carry has shape \(1, 8\), but xs of shape \(4, 5, 64\) expect \[4, hidden\], \(4, 8\)",
        ),
        (
            lambda: fnn.lstm_step(LSTM, (jnp.zeros((4, 5)), jnp.zeros((4, 5))), jnp.zeros((4, 64))),
            ValueError,
            r"lstm_step hidden: x has 5 features \(shape \(4, 5\)\), but w expects 8",
        ),
        (
            lambda: fnn.unroll(lambda p, c, x: (c, x), {}, jnp.zeros(3), ()),
            ValueError,
            r"unroll: xs have shape \(3,\), expected \[batch, time, ...\]",
        ),
        (
            lambda: fnn.stacked_init(fnn.gru_init, KEY, (4,)),
            ValueError,
            r"stacked_init: sizes are \(4,\), expected \(in_dim, hidden, ...\)",
        ),
    ],
)
def test_errors_name_the_layer(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- orthogonal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (24, 7), (7, 24), (3, 3, 4, 8), (0, 3), (1, 1)])
def test_orthogonal_is_to_the_last_digit_of_float64(shape):
    with jax.enable_x64(True):
        w = np.asarray(fnn.orthogonal(KEY, shape)).reshape(-1, shape[-1])
        assert w.dtype == np.float64
        gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-14)
        tripled = fnn.orthogonal(KEY, shape, gain=3.0).reshape(w.shape)
        np.testing.assert_allclose(tripled, 3 * w, rtol=1e-14)


def test_orthogonal_is_uniform_and_keeps_to_the_protocol():
    # Of uniform ones det is +1 as often as -1 and an entry has variance 1 / n; QR alone has neither.
    ws = jax.vmap(lambda key: fnn.orthogonal(key, (3, 3)))(jax.random.split(KEY, 4000))
    assert abs(float((jnp.linalg.det(ws) > 0).mean()) - 0.5) < 0.04
    assert abs(np.asarray(ws).mean(0)).max() < 5 / np.sqrt(3 * 4000)
    half, single = (fnn.orthogonal(KEY, (8, 8), d) for d in (jnp.bfloat16, jnp.float32))
    np.testing.assert_array_equal(half, single.astype(jnp.bfloat16))
    assert fnn.dense_init(KEY, 4, 3, w_init=fnn.orthogonal)["w"].shape == (4, 3)
    with pytest.raises(ValueError, match=r"initializer: shape \(3,\) has no in and out axes"):
        fnn.orthogonal(KEY, (3,))
