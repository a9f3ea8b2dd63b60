from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

import fnn
from tests.nn.drawn import normal, params_of
from tests.table_of_layers import LAYERS, RANDOM_LAYERS

KEY = jax.random.key(0)
NAMES = ("w", "b", "scale", "offset", "v", "g")
HALVES = (jnp.bfloat16, jnp.float16)
DTYPES = (jnp.float64, jnp.float32, *HALVES)


# Rules of our own, in both modes; conv's second order is in test_conv, against autodiff.
OWN_RULES = ("conv", "conv in groups", "conv_transpose", "max_pool", "global_max_pool")


@pytest.fixture(scope="module", params=LAYERS + RANDOM_LAYERS, ids=lambda row: row.name)
def layer(request):
    return request.param


# --- properties of every row --------------------------------------------------------------------


def test_params_are_plain(layer):
    def init(key, dtype):
        params = layer.init(key, dtype=dtype)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
        return params

    for dtype in DTYPES:
        with jax.enable_x64(True):
            params = fnn.params.paths(jax.eval_shape(partial(init, dtype=dtype), KEY))
        assert all(name.split("/")[-1] in NAMES for name in params)
        chex.assert_type(list(params.values()), dtype)


def test_shapes(layer):
    shapes = jax.eval_shape(layer.init, KEY)
    for batch in ((3,), (0,), ()) if layer in LAYERS else ((3,), (0,)):
        y = jax.eval_shape(layer.apply, shapes, normal(*batch, *layer.in_shape))
        assert y.shape == (*batch, *layer.out_shape)


def test_the_layer_is_checked_as_a_users_is(layer):
    modes = ("forward", "reverse") if layer.name in OWN_RULES else ("reverse",)
    options = {"row_by_row": layer in LAYERS, "modes": modes}
    fnn.inspect.check_layer(
        lambda key: params_of(layer.init), layer.apply, layer.in_shape, **options
    )


def test_a_batch_may_be_of_unknown_length(layer):
    """So that `fnn.export` takes it."""
    if layer not in LAYERS:
        pytest.skip("draws or sees other rows: its rows are counted")
    (batch,) = jax_export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, *layer.in_shape), "float32")
    y = jax.eval_shape(layer.apply, jax.eval_shape(layer.init, KEY), x)
    assert y.shape == (batch, *layer.out_shape)


# --- sums over batch, space and time in half precision ------------------------------------------


def flat_outputs(layer):
    """The outputs of a recurrent layer, without its carry."""
    return lambda params, xs: layer(params, xs)[1]


def by_unroll(name):
    step, start = (getattr(fnn.nn, name + part) for part in ("_step", "_carry"))
    return lambda params, xs: fnn.nn.unroll(step, params, xs, start(params, len(xs)))[1]


SUMS = {  # layer, initializer and its arguments, shape of x: sums of 500 to 4,000 products
    "dense": (fnn.dense, fnn.dense_init, (4, 3), (20, 80, 4)),
    "dense, a long axis": (fnn.dense, fnn.dense_init, (2000, 3), (4, 2000)),
    "conv": (fnn.conv, fnn.conv_init, (2, 3, 3), (2, 20, 20, 2)),
    "conv, few places": (fnn.conv, fnn.conv_init, (2, 3, 3), (100, 4, 4, 2)),
    "conv, depthwise": (partial(fnn.conv, groups=2), partial(fnn.conv_init, groups=2), (2, 4, 3), (2, 20, 20, 2)),
    "conv, 1-D": (fnn.conv, fnn.conv_init, (2, 3, (3,)), (2, 600, 2)),
    "conv, 3-D": (fnn.conv, fnn.conv_init, (2, 3, (2, 2, 2)), (2, 8, 8, 8, 2)),
    "conv_transpose": (partial(fnn.nn.conv_transpose, stride=2), fnn.nn.conv_transpose_init, (2, 3, 3), (2, 12, 12, 2)),
    "rnn": (flat_outputs(fnn.rnn), fnn.rnn_init, (2, 3), (60, 20, 2)),
    "lstm": (flat_outputs(fnn.lstm), fnn.lstm_init, (2, 3), (60, 20, 2)),
    "gru": (flat_outputs(fnn.gru), fnn.gru_init, (2, 3), (60, 20, 2)),
    "unroll rnn": (by_unroll("rnn"), fnn.rnn_init, (2, 3), (2, 500, 2)),
    "unroll lstm": (by_unroll("lstm"), fnn.lstm_init, (2, 3), (2, 500, 2)),
    "unroll gru": (by_unroll("gru"), fnn.gru_init, (2, 3), (2, 500, 2)),
    "attention": (fnn.attention, fnn.attention_init, (4, 2), (10, 60, 4)),
    "grouped-query attention": (fnn.attention, partial(fnn.attention_init, kv_heads=1), (4, 2), (10, 60, 4)),
    "instance_norm": (fnn.nn.instance_norm, lambda key: fnn.nn.instance_norm_init(4), (), (40, 40, 4)),
    "layer_norm": (fnn.layer_norm, lambda key: fnn.layer_norm_init(4), (), (40, 40, 4)),
    "group_norm": (partial(fnn.nn.group_norm, groups=2), lambda key: fnn.nn.group_norm_init(4), (), (40, 40, 4)),
    "rms_norm": (fnn.nn.rms_norm, lambda key: fnn.nn.rms_norm_init(4), (), (40, 40, 4)),
    "max_pool": (lambda _, x: fnn.max_pool(x, 3, stride=1), lambda key: {}, (), (2, 12, 12, 2)),
    "avg_pool": (lambda _, x: fnn.avg_pool(x, 5, stride=1), lambda key: {}, (), (2, 12, 12, 2)),
    "global_avg_pool": (lambda _, x: fnn.nn.global_avg_pool(x), lambda key: {}, (), (2, 40, 40, 2)),
}  # fmt: skip
# float16 takes the same way through the code as bfloat16, and has three digits more.
IN_FLOAT16_TOO = ("dense", "conv", "conv_transpose", "lstm", "attention", "layer_norm", "avg_pool")
CANCEL = ("grads/1", "grads/0/scale")  # sums about 0: a norm takes out the mean


@pytest.mark.parametrize("name", SUMS)
def test_sums_in_half_precision_are_float64s(name):
    apply, init, sizes, shape = SUMS[name]
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: init(key, *sizes), KEY)
    # Positive numbers: a sum that stops growing is then far off, and no sum cancels.
    params = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.3, leaf.shape) / 8, shapes)
    given = params, rng.uniform(0.5, 1.5, shape)
    given = jax.tree.map(lambda a: np.asarray(a, jnp.bfloat16).astype(np.float64), given)
    dtypes = HALVES if name in IN_FLOAT16_TOO else HALVES[:1]

    @jax.jit
    def in_each_dtype(given):
        found = []
        for dtype in (jnp.float64, *dtypes):
            half = jax.tree.map(lambda a, dtype=dtype: a.astype(dtype), given)
            y, vjp = jax.vjp(apply, *half)
            found.append({"y": y, "grads": vjp(jnp.full(y.shape, 2**-6, dtype))})
        return found

    with jax.enable_x64(True):
        exact, *halves = in_each_dtype(given)
    for dtype, found in zip(dtypes, halves, strict=True):
        chex.assert_type(jax.tree.leaves(found), dtype)
        for (path, a), b in zip(
            fnn.params.paths(found).items(), jax.tree.leaves(exact), strict=True
        ):
            if path.endswith("key/b") or (name.endswith("norm") and path in CANCEL):
                continue
            a, b = np.asarray(a, np.float64), np.asarray(b)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-2 * abs(b).max(), err_msg=path)


def test_a_strided_convolutions_bias_has_1600_places():
    params = {"w": jnp.ones((3, 3, 1, 1), jnp.bfloat16), "b": jnp.zeros(1, jnp.bfloat16)}
    x = jnp.ones((1, 80, 80, 1), jnp.bfloat16)
    grads = jax.jit(jax.grad(lambda p: fnn.conv(p, x, stride=2, padding=1).sum()))(params)
    assert float(grads["b"][0]) == 1600


def test_a_step_in_bfloat16_moves_the_biases_as_in_float32():
    params, x = params_of(fnn.mlp_init, (4, 8, 3)), normal(1500, 2, 4)

    def moved(compute_dtype):
        def loss_fn(params, x, key):
            return fnn.mlp(params, x).sum(2)

        step = fnn.make_train_step(loss_fn, fnn.sgd(1.0), compute_dtype=compute_dtype)
        ts, _ = jax.jit(step.update)(step.init(params), x, KEY)
        return jax.tree.map(jnp.subtract, ts.params, params)

    half, single = moved(jnp.bfloat16), moved(None)
    chex.assert_trees_all_close(half, single, rtol=2e-2, atol=2e-2)


def test_biases_of_half_precision_have_forward_mode_vmap_and_second_derivatives():
    params = params_of(fnn.dense_init, 3, 2, dtype=jnp.bfloat16)
    x = normal(600, 3, dtype=jnp.bfloat16)

    def loss(b, x):
        return (fnn.dense(params | {"b": b}, x).astype(jnp.float32) ** 2).mean(0).sum()

    @jax.jit
    def derivatives(b):
        second = jax.hessian(loss)(b, x), jax.jacrev(jax.jacrev(loss))(b, x)
        rows = jax.vmap(jax.grad(loss), (None, 0))(b, x[:, None])
        return jax.jvp(lambda b: loss(b, x), (b,), (b,))[1], jax.grad(loss)(b, x), second, rows

    slope, gradient, second, rows = derivatives(params["b"])
    np.testing.assert_allclose(slope, (gradient * params["b"]).sum(), rtol=2e-2)
    for hessian in second:
        np.testing.assert_allclose(hessian.astype(float), 2 * np.eye(2), atol=1e-2)
    np.testing.assert_allclose(
        rows.astype(float).mean(0), gradient.astype(float), rtol=2e-2, atol=2e-2
    )


# --- dense and mlp ------------------------------------------------------------------------------


def test_dense_is_its_formula():
    params = params_of(fnn.dense_init, 5, 3) | {"b": jnp.arange(3.0)}
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    expected = x.astype(np.float64) @ np.asarray(params["w"], np.float64) + np.arange(3)
    np.testing.assert_allclose(fnn.dense(params, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dense on a sequence", "attention", "lstm"])
def test_weights_of_sequences_and_their_gradients_are_products_of_matrices(name):
    layer = next(row for row in LAYERS if row.name == name)
    shapes = jax.eval_shape(layer.init, KEY), normal(3, *layer.in_shape)
    program = jax.make_jaxpr(jax.grad(lambda p, x: layer.apply(p, x).sum(), (0, 1)))(*shapes)
    products = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "dot_general"]
    of_weights = [eqn for eqn in products if not eqn.params["dimension_numbers"][1][0]]
    assert len(of_weights) >= 2
    assert all(v.aval.ndim == 2 for eqn in of_weights for v in eqn.invars)


def test_init_follows_the_x64_flag():
    with jax.enable_x64(True):
        chex.assert_type(list(fnn.dense_init(KEY, 2, 2).values()), jnp.float64)
    chex.assert_type(list(fnn.dense_init(KEY, 2, 2).values()), jnp.float32)


def test_twelve_layers_run_in_their_order():
    params = fnn.mlp_init(KEY, [2] * 13)
    assert list(fnn.params.paths(params))[:4] == [
        "layer_00/b",
        "layer_00/w",
        "layer_01/b",
        "layer_01/w",
    ]
    x = jnp.array([[1.0, 2.0]])
    y = x
    for i in range(12):
        y = fnn.dense(params[f"layer_{i:02}"], y)
        y = fnn.relu(y) if i < 11 else y
    chex.assert_trees_all_close(fnn.mlp(params, x), y)


def test_one_more_layer_leaves_the_others():
    short, long = fnn.mlp_init(KEY, [2] * 3), fnn.mlp_init(KEY, [2] * 4)
    chex.assert_trees_all_equal(short, {name: long[name] for name in short})


def test_layers_run_in_the_order_of_their_numbers():
    ws = [jnp.eye(2) * (-1) ** (i == 2) + i * jnp.eye(2, k=1) for i in range(11)]
    padded = {f"layer_{i:02}": {"w": w} for i, w in enumerate(ws)}
    plain = {f"layer_{i}": {"w": w} for i, w in enumerate(ws)}
    x = jnp.array([[1.0, 2.0]])
    chex.assert_trees_all_equal(fnn.mlp(plain, x), fnn.mlp(padded, x))


def test_numpy_scalars_are_sizes():
    two, three, four = np.int64(2), np.uint8(3), jnp.int32(4)
    for init, ours, plain in (
        (fnn.dense_init, (two, three), (2, 3)),
        (fnn.mlp_init, (np.array([2, 3]),), ((2, 3),)),
        (partial(fnn.conv_init, groups=two), (two, two, three), (2, 2, 3)),
        (fnn.conv_init, (two, two, np.array([3])), (2, 2, (3,))),
        (fnn.gru_init, (two, three), (2, 3)),
        (fnn.attention_init, (four, two), (4, 2)),
        (lambda key, dim: fnn.batch_norm_init(dim), (three,), (3,)),
    ):
        shapes = [
            jax.eval_shape(lambda f=init, sizes=sizes: f(KEY, *sizes)) for sizes in (ours, plain)
        ]
        chex.assert_trees_all_equal_shapes(*shapes)
    params, x = params_of(fnn.conv_init, 2, 4, 3, groups=2), normal(2, 6, 6, 2)
    options = {"stride": two, "padding": np.int32(1), "dilation": np.array([1, 2]), "groups": two}
    expected = fnn.conv(params, x, stride=2, padding=1, dilation=(1, 2), groups=2)
    chex.assert_trees_all_equal(fnn.conv(params, x, **options), expected)
    chex.assert_trees_all_equal(fnn.max_pool(x, two, stride=np.array(2)), fnn.max_pool(x, 2))
    norm = fnn.layer_norm_init(2)
    with jax.numpy_dtype_promotion("strict"):
        y = fnn.layer_norm(norm, x, eps=np.float64(1e-5))
        z = fnn.nn.group_norm(norm, x, groups=two, eps=np.float32(1e-5))
    chex.assert_trees_all_equal(
        (y, z), (fnn.layer_norm(norm, x), fnn.nn.group_norm(norm, x, groups=2))
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fnn.dense(params_of(fnn.dense_init, 64, 128), jnp.zeros((4, 63))),
            ValueError,
            r"dense: x has 63 features \(shape \(4, 63\)\), but w expects 64 \(shape \(64, 128\)\)",
        ),
        (
            lambda: fnn.mlp(params_of(fnn.mlp_init, (64, 8, 2)), jnp.zeros((4, 63))),
            ValueError,
            r"mlp layer_0: x has 63 features \(shape \(4, 63\)\), but w expects 64",
        ),
        (
            lambda: fnn.dense(params_of(fnn.dense_init, 4, 2), jnp.float32(1)),
            ValueError,
            r"dense: x has no features \(shape \(\)\)",
        ),
        (
            lambda: fnn.dense(params_of(fnn.dense_init, 4, 2), jnp.zeros((1, 4), jnp.uint8)),
            TypeError,
            r"dense: x is uint8, expected floating point; scale it first, as in",
        ),
        (lambda: fnn.mlp_init(KEY, (4,)), ValueError, r"mlp_init: sizes are \(4,\), expected"),
        (lambda: fnn.dense_init(KEY, 2, 2, biass=False), TypeError, "biass"),
    ],
)  # fmt: skip
def test_errors_name_the_layer(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_advice_for_images_works():
    x = jnp.full((1, 4), 255, jnp.uint8)
    params = params_of(fnn.dense_init, 4, 2)
    assert fnn.dense(params, x.astype("float32") / 255).shape == (1, 2)


# --- embed ---------------------------------------------------------------------------------------


def test_embed_is_numpy_indexing():
    params = params_of(fnn.embed_init, 7, 3)
    ids = np.array([[0, 6, 2], [2, 2, 5]])
    np.testing.assert_array_equal(fnn.embed(params, ids), np.asarray(params["w"])[ids])
    assert fnn.embed(params, jnp.zeros((0, 2), jnp.uint8)).shape == (0, 2, 3)
    grads = jax.grad(lambda p: fnn.embed(p, ids).sum())(params)["w"]
    np.testing.assert_array_equal(grads[:, 0], [1, 0, 3, 0, 0, 1, 1])


@pytest.mark.parametrize("dtype", [jnp.float32, *HALVES], ids=lambda d: d.__name__)
def test_embed_says_nan_to_ids_that_are_none(dtype):
    params = params_of(fnn.embed_init, 7, 3, dtype=dtype)
    rows = fnn.embed(params, jnp.array([-1, 0, 6, 7, 1000]))
    assert rows.dtype == dtype
    np.testing.assert_array_equal(jnp.isnan(rows).all(1), [True, False, False, True, True])
    assert not jnp.isnan(rows[1:3]).any()


def test_embed_init_gives_rows_of_norm_1():
    norms = jnp.linalg.norm(fnn.embed_init(KEY, 500, 64)["w"], axis=1)
    assert abs(float(norms.mean()) - 1) < 0.01


def test_embed_wants_integers():
    for ids in (jnp.zeros(3), jnp.zeros(3, bool)):
        with pytest.raises(TypeError, match=r"embed: ids are (float32|bool), expected integers"):
            fnn.embed(params_of(fnn.embed_init, 7, 3), ids)


# --- dropout ------------------------------------------------------------------------------------


RATES = (0.1, 0.3, 0.5, 0.9)


@pytest.fixture(scope="module")
def dropped():
    """Threes [1000, 1000] after dropout at each of RATES."""
    x = jnp.full((1000, 1000), 3.0)
    return dict(zip(RATES, jax.jit(lambda: [fnn.dropout(KEY, x, r) for r in RATES])(), strict=True))


def test_dropout_keeps_the_expectation(dropped):
    for rate, y in dropped.items():
        assert abs(float((y == 0).mean()) - rate) < 5 * np.sqrt(rate * (1 - rate)) / 1000
        np.testing.assert_allclose(np.unique(np.asarray(y)), [0, 3 / (1 - rate)], rtol=1e-6)


def test_dropout_rounds_once_in_half_precision():
    x = jnp.linspace(1, 2, 300, dtype=jnp.bfloat16)
    y = np.asarray(fnn.dropout(KEY, x, 0.3), np.float32)
    once = np.asarray(x.astype(np.float32) * np.float32(1 / 0.7)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y[y > 0], once.astype(np.float32)[y > 0])


def test_dropout_does_nothing_without_a_key_or_rate():
    x = jnp.ones(3)
    assert fnn.dropout(None, x, 0.5) is x
    assert fnn.dropout(KEY, x, 0.0) is x
    assert fnn.dropout(KEY, x, 0) is x


@pytest.mark.parametrize("rate", [-0.1, 1, 1.0, 1.5, float("nan")])
def test_dropout_rate_must_be_a_fraction(rate):
    with pytest.raises(ValueError, match=r"dropout: rate is .*, expected a number in \[0, 1\)"):
        fnn.dropout(KEY, jnp.ones(3), rate)
    with pytest.raises(ValueError, match="dropout: rate"):
        fnn.dropout(None, jnp.ones(3), rate)


def test_dropout_errors_name_what_came():
    with pytest.raises(
        TypeError, match=r"dropout: key is an array of float32\[3\], expected a key"
    ):
        fnn.dropout(jnp.ones(3), KEY, 0.5)
    with pytest.raises(TypeError, match="dropout: key is int, expected a key"):
        fnn.dropout(0, jnp.ones(3), 0.5)
    with pytest.raises(TypeError, match="dropout: x is int32, expected floating point"):
        fnn.dropout(KEY, jnp.ones(3, int), 0.5)


def test_dropout_rate_may_be_swept():
    @jax.jit
    def sweep(rates):
        x = jnp.ones((200, 200))
        return jax.vmap(lambda rate: fnn.dropout(KEY, x, rate))(rates), fnn.dropout(KEY, x, 0.25)

    rates = jnp.array([0.0, 0.25, 0.75])
    y, quarter = sweep(rates)
    np.testing.assert_allclose((y == 0).mean((1, 2)), rates, atol=0.02)
    chex.assert_trees_all_equal(y[1], quarter)


def test_masks_differ_between_rows_layers_and_members():
    @jax.jit
    def masks():
        keys = fnn.split(KEY, 8)
        x = jnp.ones((64, 64))
        alone = fnn.dropout(KEY, x, 0.5), fnn.dropout(keys[0], x, 0.5), fnn.dropout(keys[1], x, 0.5)
        return alone, jax.vmap(lambda key: fnn.dropout(key, x[0], 0.5))(keys)

    (rows, first, second), members = jax.tree.map(lambda y: np.asarray(y) != 0, masks())
    assert len(np.unique(rows, axis=0)) == 64
    assert (first != second).any()
    assert len(np.unique(members, axis=0)) == 8
    # Inside mlp each layer draws its own: with one mask for both, halves of equal width agree.
    identity = {f"layer_{i}": {"w": jnp.eye(256)} for i in range(3)}
    y = jax.jit(lambda p: fnn.mlp(p, jnp.ones((1, 256)), key=KEY, rate=0.5))(identity)
    assert abs(float((y > 0).mean()) - 0.25) < 0.1


def test_masks_are_equal_between_vmap_and_loop():
    @jax.jit
    def both():
        keys, x = jax.random.split(KEY, 2), jnp.ones((5, 7))
        together = jax.vmap(lambda key: fnn.dropout(key, x, 0.3))(keys)
        return together, jnp.stack([fnn.dropout(key, x, 0.3) for key in keys])

    chex.assert_trees_all_equal(*both())


def test_dropout_rate_is_right_to_a_ten_thousandth():
    rates = (0.001, 0.1, 1 / 3, 0.5, 0.9)
    x = jnp.ones((2**12, 2**11))

    @jax.jit
    def drop(key):
        return [(fnn.dropout(key, x, jnp.float32(rate)) == 0).sum() for rate in rates]

    drawn = 4 * 2**23
    sums = np.sum([drop(key) for key in jax.random.split(KEY, 4)], axis=0)
    for rate, share in zip(rates, sums / drawn, strict=True):
        wanted = min(1e-4, 2**-17 + 4 * np.sqrt(rate * (1 - rate) / drawn)) + 1e-5
        assert abs(share - rate) < wanted


def test_the_two_halves_of_a_word_are_independent(dropped):
    keep = (np.asarray(dropped[0.3]) != 0).astype(float)
    for a, b in [
        (keep[:, :500], keep[:, 500:]),
        (keep[:, :-1], keep[:, 1:]),
        (keep[:-1], keep[1:]),
    ]:
        correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(a.size)


def test_dropout_at_rates_that_only_a_sweep_can_give():
    x = jnp.full((3, 5), 2.0)

    @jax.jit
    def drop(rates, nan, half):
        swept = jax.vmap(lambda rate: fnn.dropout(KEY, x, rate))(rates)
        return swept, [fnn.dropout(KEY, x, rate) for rate in (nan, half, 0.25)]

    swept, (of_nan, of_half, quarter) = drop(
        jnp.array([0.0, 1.0, 1e-9]), jnp.array(jnp.nan), jnp.array(0.25, jnp.float16)
    )
    chex.assert_trees_all_equal(tuple(swept), (x, 0 * x, x))
    assert np.isnan(of_nan).any()
    chex.assert_trees_all_equal(of_half, quarter)


@pytest.mark.parametrize("dtype", [jnp.float32, *HALVES], ids=lambda d: d.__name__)
def test_a_traced_rate_that_reaches_1_has_zeros_and_no_gradient(dtype):
    x = jnp.full((4, 6), 2, dtype)
    for drop in (fnn.dropout, fnn.nn.spatial_dropout):

        def both(rate, drop=drop):
            return drop(KEY, x, rate), jax.grad(lambda x: drop(KEY, x, rate).sum())(x)

        rates = jnp.array([1.0, 2.0, np.nextafter(np.float32(1), np.float32(0))])
        for found in jax.jit(jax.vmap(both))(rates):
            np.testing.assert_array_equal(found, np.zeros((3, 4, 6)))


def test_numpy_scalars_are_rates():
    x = normal(4, 6)
    chex.assert_trees_all_equal(
        fnn.dropout(KEY, x, np.float32(0.5)), fnn.dropout(KEY, x, np.float64(0.5))
    )
    chex.assert_trees_all_equal(fnn.dropout(KEY, x, np.array(0.5)), fnn.dropout(KEY, x, 0.5))
    assert fnn.dropout(KEY, x, np.float16(0)) is x
    with pytest.raises(ValueError, match=r"dropout: rate is 1.0, expected a number in \[0, 1\)"):
        fnn.dropout(KEY, x, np.float32(1))


def test_dropout_of_any_shape():
    shapes = [(), (7,), (3, 1), (2, 3, 5), (0, 4), (4, 0)]
    ys = jax.jit(lambda: [fnn.dropout(KEY, jnp.ones(shape), 0.5) for shape in shapes])()
    for y, shape in zip(ys, shapes, strict=True):
        assert y.shape == shape
        assert set(np.unique(y)) <= {0, 2}


@pytest.mark.parametrize("drop", [fnn.dropout, fnn.nn.spatial_dropout])
def test_a_row_draws_by_its_own_number(drop):
    x, parts = normal(8, 6, 16), jnp.array([[0, 1, 2], [3, 4, 5], [7, 0, 7]])

    @jax.jit
    def both(x, parts):
        y = drop(fnn.nn.row_keys(KEY, 8), x, 0.5)
        return y, jax.lax.map(lambda rows: drop(fnn.nn.row_keys(KEY, rows), x[rows], 0.5), parts)

    y, by_part = both(x, parts)
    assert len(np.unique(np.asarray(y != 0), axis=0)) == 8
    chex.assert_trees_all_equal(by_part, y[parts])


def test_keys_of_rows_go_through_split_and_mlp():
    params, x = params_of(fnn.mlp_init, (6, 32, 32, 4)), normal(8, 6)

    @jax.jit
    def apply(keys, x):
        first, second = fnn.split(keys)
        return fnn.mlp(params, fnn.dropout(first, x, 0.3), key=second, rate=0.5)

    keys = fnn.nn.row_keys(KEY, 8)
    y = apply(keys, x)
    assert len(np.unique(np.asarray(apply(keys, x * 0 + x[0])), axis=0)) == 8
    # Each row with a key of its own, which is one key then.
    one_by_one = jax.jit(jax.vmap(apply))(keys, x)
    chex.assert_trees_all_close(one_by_one, y, rtol=1e-5, atol=1e-6)
    assert fnn.nn.row_keys(None, 8) is None
    raw = fnn.nn.row_keys(jax.random.PRNGKey(0), 8)
    chex.assert_trees_all_close(apply(raw, x), y, rtol=1e-6)


def test_spatial_dropout_drops_whole_channels():
    x = 1 + jnp.abs(normal(50, 4, 5, 40))
    y = jax.jit(lambda x: fnn.nn.spatial_dropout(KEY, x, 0.25))(x)
    kept = np.asarray(y != 0)
    assert (kept == kept[:, :1, :1]).all()
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 2000)
    chex.assert_trees_all_close(y, jnp.where(kept, x / 0.75, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fnn.dropout(fnn.nn.row_keys(KEY, 3), jnp.ones((4, 2)), 0.5),
            ValueError,
            r"dropout: key has shape \(3,\), expected one key, or one for each of 4 rows",
        ),
        (
            lambda: fnn.nn.row_keys(fnn.nn.row_keys(KEY, 3), 3),
            ValueError,
            r"row_keys: key has shape \(3,\), expected one key",
        ),
        (lambda: fnn.nn.row_keys(0, 3), TypeError, "row_keys: key is int, expected a key"),
        (
            lambda: fnn.nn.spatial_dropout(KEY, jnp.ones(3), 0.5),
            ValueError,
            r"spatial_dropout: x has shape \(3,\), expected \[batch, \*space, channels\]",
        ),
        (
            lambda: fnn.nn.spatial_dropout(KEY, jnp.ones((2, 3)), 1.0),
            ValueError,
            "spatial_dropout: rate is 1.0",
        ),
    ],
)  # fmt: skip
def test_errors_of_rows_and_channels(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_split_of_no_key():
    assert fnn.split(None, 3) == [None] * 3
    chex.assert_trees_all_equal(fnn.split(KEY, 3), jax.random.split(KEY, 3))
