import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.nets import train_init
from tests.nn.drawn import normal, params_of

KEY = jax.random.key(0)
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "sequence.npz")
LENGTHS = GOLDEN["lengths"]
MASK = np.arange(5) < LENGTHS[:, None]


def compiled(name):
    init, carry, step, layer = (
        getattr(fnn.nn, name + part) for part in ("_init", "_carry", "_step", "")
    )
    layer = jax.jit(layer, static_argnames="reverse")
    return functools.partial(params_of, init), carry, step, layer


LAYERS = {name: compiled(name) for name in ("rnn", "lstm", "gru")}
every_layer = pytest.mark.parametrize("name", LAYERS)
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def sequence(batch=3, time=5, dim=4, dtype=jnp.float32):
    return normal(batch, time, dim, seed=1, dtype=dtype)


def stacked_params(init, sizes):
    return params_of(functools.partial(fnn.nn.stacked_init, init), sizes)


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
    case, layer = f"{name}_packed", functools.partial(fnn.nn.bidirectional, LAYERS[name][-1])
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
        y = fnn.nn.stacked(layer, params, x, mask=MASK)[1]
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
    flax_params = params_of(linen.RNN(cell).init, xs)["params"]["cell"]
    gates = {"rnn": [""], "lstm": list("ifgo"), "gru": list("rzn")}[name]
    i, h = ("i", "h") if name == "rnn" else ("i{}", "h{}")

    def joined(letter, leaf):
        return jnp.concatenate([flax_params[letter.format(g)][leaf] for g in gates], axis=-1)

    params = {"input": {"w": joined(i, "kernel")}, "hidden": {"w": joined(h, "kernel")}}
    params["input"]["b"] = joined(h if name == "lstm" else i, "bias")
    if name == "gru":
        params["hidden"]["b"] = flax_params["hn"]["bias"] + 0.5
        flax_params["hn"]["bias"] = params["hidden"]["b"]
    expected = jax.jit(linen.RNN(cell).apply)({"params": {"cell": flax_params}}, xs)
    close(LAYERS[name][-1](params, xs)[1], expected)


# --- one function, however it is computed -------------------------------------------------------


@every_layer
def test_a_sequence_is_the_loop_of_steps(name):
    init, start, step, layer = LAYERS[name]
    params, xs = init(4, 8), sequence()

    @jax.jit
    def loop(params, xs):
        carry, hs = start(params, 3), []
        for t in range(5):
            carry, h = step(params, carry, xs[:, t])
            hs.append(h)
        return (carry, jnp.stack(hs, axis=1)), fnn.nn.unroll(step, params, xs, start(params, 3))

    expected, unrolled = loop(params, xs)
    close(layer(params, xs), expected)
    close(unrolled, expected)


@pytest.mark.parametrize(("name", "reverse"), [("rnn", True), ("lstm", True), ("gru", False)])
def test_derivatives_of_both_orders_and_modes_are_autodiffs(name, reverse):
    init, start, step, layer = LAYERS[name]
    options = {"mask": MASK, "reverse": reverse}

    def both(at, way):
        def derivatives(run):
            def loss(params, xs, carry):
                carry, hs = run(params, xs, carry)
                return (jnp.stack(jax.tree.leaves(carry)) ** 3).sum() + (hs**2).sum()

            def value_and_slope(*at):  # forward mode
                found = jnp.stack(jax.jvp(loss, at, way))
                return found, found

            return jax.jacrev(value_and_slope, (0, 1, 2), has_aux=True)(*at)

        def unrolled(params, xs, carry):
            return fnn.nn.unroll(step, params, xs, carry, **options)

        return derivatives(functools.partial(layer, **options)), derivatives(unrolled)

    with jax.enable_x64(True):
        params, xs = init(4, 3, dtype=jnp.float64), sequence(dtype=jnp.float64)
        at = params, xs, jax.tree.map(lambda h: h + 0.3, start(params, 3))
        way = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size, dtype=float)).reshape(a.shape), at)
        ours, autodiffs = jax.jit(both)(at, way)
        chex.assert_trees_all_close(ours, autodiffs, rtol=1e-10, atol=1e-12)


@every_layer
def test_a_weights_gradient_is_one_product_after_the_loop(name):
    layer = getattr(fnn.nn, name)
    params = LAYERS[name][0](4, 8)
    program = jax.make_jaxpr(jax.grad(lambda p: layer(p, sequence())[1].sum()))(params)
    loops = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(loops) == 2  # forth and back
    carried = {v.aval.shape for eqn in loops for v in eqn.outvars}
    assert carried.isdisjoint({leaf.shape for leaf in jax.tree.leaves(params)})
    # On a GPU each array that a loop keeps is a kernel in every time step: h and what the gradient
    # needs on the way forth, the gradient of all gates on the way back.
    steps = sequence().shape[1]
    kept = [[v for v in eqn.outvars if v.aval.shape[:1] == (steps,)] for eqn in loops]
    assert list(map(len, kept)) == [2, 1]


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_gradients_of_one_row_one_step_and_no_row(name):
    init, start, step, layer = LAYERS[name]
    params = init(4, 8)

    @jax.jit
    def both(params, xs):
        def steps(params, xs):
            return fnn.nn.unroll(step, params, xs, start(params, len(xs)))

        return [
            jax.grad(lambda *at, run=run: (run(*at)[1] ** 3).sum(), (0, 1))(params, xs)
            for run in (layer, steps)
        ]

    for shape in ((1, 3), (3, 1), (0, 3)):
        close(*both(params, sequence(*shape)))


def test_rows_that_are_dealt_out_to_devices_stay_there():
    params, optimizer = params_of(fnn.lstm_init, 4, 8), fnn.sgd(0.1)
    step = fnn.make_train_step(lambda p, xs, key: (fnn.lstm(p, xs)[1] ** 2).mean((1, 2)), optimizer)
    given = train_init(params, optimizer), sequence(batch=16), KEY
    dealt = jax.jit(fnn.data_parallel(step)).lower(*given).compile()
    for moving in ("all-gather", "all-to-all", "collective-permute"):
        assert moving not in dealt.as_text()
    close(dealt(*given)[0].params, jax.jit(step)(*given)[0].params)


@every_layer
def test_two_halves_are_the_whole(name):
    init, start, _, layer = LAYERS[name]
    params, xs = init(4, 8), sequence(time=4)
    middle, first = layer(params, xs[:, :2], start(params, 3))
    end, second = layer(params, xs[:, 2:], middle)
    whole = layer(params, xs, start(params, 3))
    chex.assert_trees_all_equal((end, jnp.concatenate([first, second], axis=1)), whole)
    no_steps = layer(params, xs[:, :0], middle)
    chex.assert_trees_all_equal(no_steps, (middle, jnp.zeros((3, 0, 8))))


# --- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "reverse"), [("rnn", True), ("lstm", False), ("gru", True)])
def test_a_padded_batch_is_each_sequence_alone(name, reverse):
    init, _, _, layer = LAYERS[name]
    mask = MASK[:2]  # 5 and 2 time steps
    params, xs = init(4, 8), jnp.where(mask[..., None], sequence(batch=2), jnp.nan)

    @jax.jit
    def grads_of(xs, mask):
        def loss(params):
            carry, hs = layer(params, xs, mask=mask, reverse=reverse)
            return (hs**2).sum(), (carry, hs)

        return jax.grad(loss, has_aux=True)(params)

    grads, (carry, hs) = grads_of(xs, mask)
    assert not np.asarray(hs)[~mask].any()
    total = jax.tree.map(np.zeros_like, params)
    for row, length in enumerate(LENGTHS[:2]):
        alone, (end, ys) = grads_of(xs[row : row + 1, :length], None)
        close(hs[row, :length], ys[0])
        close(jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], carry), end)
        total = jax.tree.map(np.add, total, alone)
    chex.assert_trees_all_close(grads, total, rtol=1e-4, atol=1e-5)


def test_a_row_of_no_steps_keeps_its_carry():
    init, _, _, layer = LAYERS["lstm"]
    params, start = init(4, 8), (jnp.full((3, 8), 0.5), jnp.full((3, 8), -2.0))
    mask = MASK & (np.arange(3) != 1)[:, None]
    carry, hs = layer(params, sequence(), start, mask=mask)
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
    carry, (sums, tokens) = fnn.nn.unroll(step, jnp.float32(2), xs, start, mask=mask)
    np.testing.assert_array_equal(sums, [[0, 2, 6], [6, 0, 0]])
    np.testing.assert_array_equal(tokens, [[0, 1, 2], [3, 0, 0]])
    np.testing.assert_array_equal(carry["sum"], [6, 6])
    np.testing.assert_array_equal(carry["last"], [2, 3])


@pytest.mark.parametrize("name", ["rnn", "lstm"])  # their carries: an array, a pair
def test_stacked_is_the_loop_and_hands_its_carry_on(name):
    init, layer = getattr(fnn.nn, f"{name}_init"), LAYERS[name][-1]
    params, xs = stacked_params(init, (4, 4, 4)), sequence(time=4)
    hs, carries = xs, {}
    for i in range(2):
        carries[f"layer_{i}"], hs = layer(params[f"layer_{i}"], hs)
    close(fnn.nn.stacked(layer, params, xs), (carries, hs))
    middle, _ = fnn.nn.stacked(layer, params, xs[:, :2])
    close(fnn.nn.stacked(layer, params, xs[:, 2:], middle), (carries, hs[:, 2:]))


def test_stacked_names_are_in_order_and_draws_are_apart():
    params = fnn.nn.stacked_init(fnn.dense_init, KEY, [2] * 12)
    assert list(params) == sorted(params) == [f"layer_{i:02}" for i in range(11)]
    assert (params["layer_00"]["w"] != params["layer_01"]["w"]).all()


def test_dropout_is_between_the_layers_only():
    @jax.jit
    def run(params, xs):
        seen = []

        def layer(params, xs, carry, mask):
            seen.append(xs)
            return fnn.rnn(params, xs, carry, mask=mask)

        hs = fnn.nn.stacked(layer, params, xs, key=KEY, rate=0.5)[1]
        assert seen[0] is xs
        return hs, seen[1], fnn.nn.stacked(layer, params, xs, rate=0.5)[1]

    hs, between, without_key = run(stacked_params(fnn.rnn_init, (4, 64, 64)), sequence())
    assert 0.4 < float((between == 0).mean()) < 0.6
    assert (hs != 0).all()
    assert (without_key != hs).any()


def test_bidirectional_hands_its_carry_on():
    init, _, _, layer = LAYERS["lstm"]
    params = {"forward": init(4, 8), "backward": init(4, 6)}
    xs, half = sequence(), functools.partial(fnn.nn.bidirectional, layer, params)
    carry, hs = half(xs)
    assert hs.shape == (3, 5, 14)
    close(hs[..., :8], layer(params["forward"], xs)[1])
    flipped = layer(params["backward"], xs[:, ::-1])
    close((carry["backward"], hs[..., 8:]), (flipped[0], flipped[1][:, ::-1]))
    close(half(xs, carry)[1][..., :8], layer(params["forward"], xs, carry["forward"])[1])


# --- parameters ---------------------------------------------------------------------------------


def test_recurrent_weights_begin_orthogonal_gate_by_gate():
    with jax.enable_x64(True):
        params = jax.jit(lambda key: fnn.lstm_init(key, 4, 16))(KEY)
        gates = np.split(np.asarray(params["hidden"]["w"]), 4, axis=1)
        for gate in gates:
            np.testing.assert_allclose(gate.T @ gate, np.eye(16), atol=1e-14)
    assert abs(gates[0] - gates[1]).max() > 0.1
    limit = np.sqrt(6 / (4 + 16))
    spread = abs(np.asarray(params["input"]["w"])).max()  # of one gate's fans, not of all
    assert 0.9 * limit < spread <= limit * (1 + 1e-6)


def test_the_forget_gate_begins_open():
    zeros = jax.nn.initializers.zeros
    for bias in (1.0, 0.0, 2.5):
        params = fnn.lstm_init(KEY, 4, 3, w_init=zeros, recurrent_init=zeros, forget_bias=bias)
        b = params["input"]["b"]
        np.testing.assert_array_equal(b, [0] * 3 + [bias] * 3 + [0] * 6)


@every_layer
def test_biases_are_spared_and_weights_penalised(name):
    params = LAYERS[name][0](4, 8)
    by_path = fnn.params.paths(fnn.params.decayed(params))
    assert by_path == {path: path.endswith("/w") for path in by_path}
    squares = sum(float((params[part]["w"] ** 2).sum()) for part in ("input", "hidden"))
    np.testing.assert_allclose(fnn.params.l2(params), squares, rtol=1e-6)


def test_inits_of_a_sweep_are_the_loop():
    @jax.jit
    def both(keys):
        def init(key):
            return fnn.gru_init(key, 4, 3)

        return jax.vmap(init)(keys), jax.lax.map(init, keys)

    close(*both(jax.random.split(KEY, 3)))


@every_layer
def test_dtypes_pass_through(name):
    _, start, _, layer = LAYERS[name]
    init = functools.partial(getattr(fnn.nn, f"{name}_init"), dtype=jnp.bfloat16)
    chex.assert_type(jax.tree.leaves(jax.eval_shape(lambda: init(KEY, 4, 8))), jnp.bfloat16)
    half = params_of(init, 4, 8, dtype=jnp.bfloat16)
    carry, hs = layer(half, sequence(dtype=jnp.bfloat16), mask=MASK)
    assert hs.dtype == jnp.bfloat16
    chex.assert_trees_all_equal_dtypes(carry, start(half, 3))


@every_layer
@pytest.mark.parametrize(
    ("own", "given"), [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_a_carry_may_have_another_dtype_and_keeps_it(name, own, given):
    init, start, step, layer = LAYERS[name]
    params, xs = init(4, 8, dtype=own), sequence(time=4, dtype=own)
    carry = jax.tree.map(lambda leaf: leaf.astype(given), start(params, 3))

    @jax.jit
    def run(carry):
        def chunk(carry, xs):  # truncated backpropagation: the carry goes round a loop
            return layer(params, xs, carry)

        halves = xs.reshape(3, 2, 2, 4).swapaxes(0, 1)
        last, _ = jax.lax.scan(chunk, carry, halves)
        return last, layer(params, xs, carry), fnn.nn.unroll(step, params, xs, carry)

    last, (end, hs), unrolled = run(carry)
    chex.assert_type(jax.tree.leaves((last, end, unrolled[0])), jnp.dtype(given))
    chex.assert_type([hs, unrolled[1]], jnp.dtype(own))
    to_float = functools.partial(jax.tree.map, lambda leaf: np.asarray(leaf, float))
    expected = to_float(layer(params, xs)[1])
    for found in (to_float(hs), to_float(unrolled[1])):
        np.testing.assert_allclose(found, expected, atol=2e-2)
    chex.assert_trees_all_close(to_float(last), to_float(end), atol=2e-2)


@every_layer
def test_half_parameters_with_inputs_of_float32_are_promoted(name, standard_promotion):
    init, _, _, layer = LAYERS[name]
    params, xs = init(4, 8, dtype=jnp.bfloat16), sequence()
    carry, hs = layer(params, xs)
    chex.assert_type(jax.tree.leaves((carry, hs)), jnp.float32)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    chex.assert_trees_all_close(hs, layer(wide, xs)[1], atol=1e-6)


def test_h_of_a_gru_in_half_precision_does_not_stall():
    # h moves to 1 by 1 / 500 of the distance a step: in bfloat16 it would stop at about a half.
    params = jax.tree.map(jnp.zeros_like, params_of(fnn.gru_init, 1, 1, dtype=jnp.bfloat16))
    z = jnp.asarray(-np.log(1 / 499), jnp.bfloat16)
    params["input"]["b"] = jnp.stack([jnp.zeros_like(z), z, jnp.asarray(20, z.dtype)])
    h, hs = jax.jit(fnn.gru)(params, jnp.zeros((1, 1000, 1), jnp.bfloat16))
    assert h.dtype == jnp.float32
    expected = 1 - (1 / (1 + np.exp(-float(z)))) ** 1000
    np.testing.assert_allclose(h, expected, rtol=1e-3)
    np.testing.assert_allclose(float(hs[0, -1, 0]), expected, rtol=1e-2)


def test_the_cell_of_an_lstm_in_half_precision_does_not_stall():
    # 1,000 additions of about 0.01: in bfloat16 the sum would stop where that is half a unit.
    params = jax.tree.map(jnp.zeros_like, params_of(fnn.lstm_init, 1, 1, dtype=jnp.bfloat16))
    params["input"]["b"] = jnp.array([-4.6, 20, 20, 0], jnp.bfloat16)
    (_, c), _ = jax.jit(fnn.lstm)(params, jnp.zeros((1, 1000, 1), jnp.bfloat16))
    assert c.dtype == jnp.float32
    np.testing.assert_allclose(c, 1000 / (1 + np.exp(4.59375)), rtol=1e-3)


# --- breaking it --------------------------------------------------------------------------------


@every_layer
def test_empty_one_row_and_huge(name):
    init, _, _, layer = LAYERS[name]
    params = init(4, 8)
    assert jax.eval_shape(layer, params, jnp.zeros((0, 5, 4)))[1].shape == (0, 5, 8)
    xs = np.asarray(sequence())
    close(layer(params, xs[:1])[1], np.asarray(layer(params, xs)[1])[:1])
    huge = np.float32(1e30) * xs
    grad = jax.jit(jax.value_and_grad(lambda params: layer(params, huge)[1].sum()))
    assert np.isfinite(layer(params, huge)[1]).all()
    chex.assert_tree_all_finite(grad(params))


def test_a_nan_stays_in_its_row_and_after_its_step():
    init, _, _, layer = LAYERS["lstm"]
    params, xs = init(4, 8), sequence().at[1, 2].set(jnp.nan)
    bad = np.isnan(layer(params, xs)[1]).all(-1)
    np.testing.assert_array_equal(bad, (np.arange(3) == 1)[:, None] & (np.arange(5) >= 2))


LSTM = params_of(fnn.lstm_init, 64, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fnn.lstm(LSTM, jnp.zeros((4, 5, 63))),
            ValueError,
            r"lstm: x has 63 features \(shape \(4, 5, 63\)\), but w expects 64 \(shape \(64, 32\)\)",
        ),
        (
            lambda: fnn.nn.lstm_step(LSTM, fnn.nn.lstm_carry(LSTM, 4), jnp.zeros((4, 63))),
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
            lambda: fnn.lstm(LSTM, jnp.zeros((4, 5, 64)), fnn.nn.lstm_carry(LSTM, 1)),
            ValueError,
            r"lstm: the carry has shape \(1, 8\), expected \(4, 8\)",
        ),
        (
            lambda: fnn.nn.lstm_step(
                LSTM, (jnp.zeros((4, 5)), jnp.zeros((4, 5))), jnp.zeros((4, 64))
            ),
            ValueError,
            r"lstm_step: the carry has shape \(4, 5\), expected \(4, 8\)",
        ),
        (
            lambda: fnn.nn.unroll(lambda p, c, x: (c, x), {}, jnp.zeros(3), ()),
            ValueError,
            r"unroll: xs have shape \(3,\), expected \[batch, time, ...\]",
        ),
        (
            lambda: fnn.nn.stacked_init(fnn.gru_init, KEY, (4,)),
            ValueError,
            r"stacked_init: sizes are \(4,\), expected \(in_dim, hidden, ...\)",
        ),
    ],
)
def test_errors_name_the_layer(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- orthogonal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 7), (3, 3, 4, 8), (7, 24), (0, 3), (1, 1)])
def test_orthogonal_is_to_the_last_digit_of_float64(shape):
    def draw():
        return fnn.nn.orthogonal(KEY, shape), fnn.nn.orthogonal(KEY, shape, gain=3.0)

    with jax.enable_x64(True):
        w, tripled = (np.asarray(w).reshape(-1, shape[-1]) for w in jax.jit(draw)())
    assert w.dtype == np.float64
    gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-14)
    np.testing.assert_allclose(tripled, 3 * w, rtol=1e-14)


def test_orthogonal_is_uniform_and_keeps_to_the_protocol():
    # Of uniform ones det is +1 as often as -1 and an entry has variance 1 / n; QR alone has neither.
    draw = jax.jit(jax.vmap(lambda key: fnn.nn.orthogonal(key, (3, 3))))
    ws = draw(jax.random.split(KEY, 4000))
    assert abs((np.linalg.det(np.asarray(ws)) > 0).mean() - 0.5) < 0.04
    assert abs(np.asarray(ws).mean(0)).max() < 5 / np.sqrt(3 * 4000)
    half, single = (fnn.nn.orthogonal(KEY, (8, 8), d) for d in (jnp.bfloat16, jnp.float32))
    np.testing.assert_array_equal(half, single.astype(jnp.bfloat16))
    assert fnn.dense_init(KEY, 4, 3, w_init=fnn.nn.orthogonal)["w"].shape == (4, 3)
    with pytest.raises(ValueError, match=r"initializer: shape \(3,\) has no in and out axes"):
        fnn.nn.orthogonal(KEY, (3,))


def test_layers_one_above_the_other_take_a_key_for_each_row():
    params = fnn.nn.stacked_init(fnn.gru_init, KEY, (3, 4, 4))
    keys, xs = fnn.nn.row_keys(KEY, np.int64(2)), normal(2, 3, 3)
    both = fnn.nn.stacked(fnn.gru, params, xs, key=keys, rate=0.5)[1]
    one = fnn.nn.stacked(fnn.gru, params, xs[1:], key=keys[1:], rate=0.5)[1]
    np.testing.assert_allclose(both[1:], one, rtol=1e-5, atol=1e-6)
    assert not np.allclose(both, fnn.nn.stacked(fnn.gru, params, xs)[1])
