from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fnn
from tests.table_of_layers import LAYERS, RANDOM_LAYERS

KEY = jax.random.key(0)
every_layer = pytest.mark.parametrize("layer", LAYERS + RANDOM_LAYERS, ids=lambda row: row.name)
every_fixed_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda row: row.name)
NAMES = ("w", "b", "scale", "offset")
HALVES = (jnp.bfloat16, jnp.float16)


# Rules of our own, in both modes; conv's second order is in test_conv, against autodiff.
OWN_RULES = ("conv", "conv in groups", "conv_transpose", "max_pool", "global_max_pool")


def inputs(layer, rows=3, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), (rows, *layer.in_shape), dtype)


# One init and one program a layer for all properties: compiling is what takes the time.
@cache
def drawn(layer):
    """Parameters and inputs in float32, as NumPy has them."""
    return jax.tree.map(np.asarray, (layer.init(KEY, dtype=jnp.float32), inputs(layer)))


def params_and_inputs(layer, dtype=jnp.float32):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.astype(dtype)), drawn(layer))


@cache
def program(layer):
    return jax.jit(layer.apply)


# --- properties of every row --------------------------------------------------------------------


@every_layer
def test_shapes_and_plain_params(layer):
    params = layer.init(KEY)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert all(name.split("/")[-1] in NAMES for name in fnn.params.paths(params))
    assert program(layer)(params, inputs(layer)).shape == (3, *layer.out_shape)
    assert program(layer)(params, inputs(layer, rows=0)).shape == (0, *layer.out_shape)


@every_layer
def test_jit_is_eager(layer):
    params, x = params_and_inputs(layer)
    chex.assert_trees_all_close(
        program(layer)(params, x), layer.apply(params, x), rtol=1e-5, atol=1e-6
    )


@every_fixed_layer
def test_vmap_over_rows_is_the_batch(layer):
    params, x = params_and_inputs(layer)
    one_by_one = jax.jit(jax.vmap(layer.apply, (None, 0)))(params, x)
    chex.assert_trees_all_close(one_by_one, program(layer)(params, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [row for row in LAYERS + RANDOM_LAYERS if jax.eval_shape(row.init, KEY)],
    ids=lambda row: row.name,
)
def test_vmap_over_params_is_the_loop(layer):
    stacked = jax.jit(jax.vmap(layer.init))(jax.random.split(KEY, 3))
    x = inputs(layer)
    together = jax.jit(jax.vmap(layer.apply, (0, None)))(stacked, x)
    for i, y in enumerate(together):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        chex.assert_trees_all_close(y, program(layer)(member, x), rtol=1e-5, atol=1e-6)


@every_layer
def test_scan_is_the_loop(layer):
    params, x = params_and_inputs(layer)
    xs = jnp.stack([x, 2 * x])
    scanned = jax.lax.scan(lambda _, x: (None, layer.apply(params, x)), None, xs)[1]
    looped = jnp.stack([program(layer)(params, x) for x in xs])
    chex.assert_trees_all_close(scanned, looped, rtol=1e-5)


@every_layer
def test_gradients_are_the_finite_differences(layer):
    order = 2 if layer.name == "max_pool" else 1
    modes = ("fwd", "rev") if layer.name in OWN_RULES else ("rev",)
    with jax.enable_x64(True):
        params, x = layer.init(KEY, dtype=jnp.float64), inputs(layer, dtype=jnp.float64)
        check_grads(program(layer), (params, x), order=order, modes=modes, atol=1e-5, rtol=1e-5)


@every_layer
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, *HALVES], ids=lambda d: d.__name__)
def test_dtype_passes_through(layer, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        own = jax.eval_shape(partial(layer.init, dtype=dtype), KEY)
        params, x = params_and_inputs(layer, dtype)
        y = program(layer)(params, x)
        chex.assert_type([*jax.tree.leaves(own), y], dtype)
        wide = program(layer)(
            jax.tree.map(lambda p: p.astype(jnp.float32), params), x.astype("float32")
        )
        rtol = 0.05 if dtype in HALVES else 1e-5
        chex.assert_trees_all_close(y.astype("float32"), wide, rtol=rtol, atol=rtol)


@every_layer
def test_second_call_does_not_recompile(layer):
    traces = []

    @jax.jit
    def apply(params, x):
        traces.append(1)
        return layer.apply(params, x)

    for seed in range(3):
        apply(layer.init(jax.random.key(seed)), inputs(layer) + seed)
    assert len(traces) == 1


# --- dense and mlp ------------------------------------------------------------------------------


def test_dense_is_its_formula():
    params = fnn.dense_init(KEY, 5, 3)
    params["b"] = jnp.arange(3.0)
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    expected = x.astype(np.float64) @ np.asarray(params["w"], np.float64) + np.arange(3)
    np.testing.assert_allclose(fnn.dense(params, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dense on a sequence", "attention", "lstm"])
def test_weights_of_sequences_and_their_gradients_are_products_of_matrices(name):
    layer = next(row for row in LAYERS if row.name == name)
    shapes = jax.eval_shape(layer.init, KEY), jax.eval_shape(lambda: inputs(layer))
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
    short, long = fnn.mlp_init(KEY, (2, 3, 4)), fnn.mlp_init(KEY, (2, 3, 4, 5))
    chex.assert_trees_all_equal(short, {name: long[name] for name in short})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fnn.dense(fnn.dense_init(KEY, 64, 128), jnp.zeros((4, 63))),
            ValueError,
            r"dense: x has 63 features \(shape \(4, 63\)\), but w expects 64 \(shape \(64, 128\)\)",
        ),
        (
            lambda: fnn.mlp(fnn.mlp_init(KEY, (64, 8, 2)), jnp.zeros((4, 63))),
            ValueError,
            r"mlp layer_0: x has 63 features \(shape \(4, 63\)\), but w expects 64",
        ),
        (
            lambda: fnn.dense(fnn.dense_init(KEY, 4, 2), jnp.float32(1)),
            ValueError,
            r"dense: x has no features \(shape \(\)\)",
        ),
        (
            lambda: fnn.dense(fnn.dense_init(KEY, 4, 2), jnp.zeros((1, 4), jnp.uint8)),
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
    assert fnn.dense(fnn.dense_init(KEY, 4, 2), x.astype("float32") / 255).shape == (1, 2)


# --- embed ---------------------------------------------------------------------------------------


def test_embed_is_numpy_indexing():
    params = fnn.embed_init(KEY, 7, 3)
    ids = np.array([[0, 6, 2], [2, 2, 5]])
    np.testing.assert_array_equal(fnn.embed(params, ids), np.asarray(params["w"])[ids])
    assert fnn.embed(params, jnp.zeros((0, 2), jnp.uint8)).shape == (0, 2, 3)
    grads = jax.grad(lambda p: fnn.embed(p, ids).sum())(params)["w"]
    np.testing.assert_array_equal(grads[:, 0], [1, 0, 3, 0, 0, 1, 1])


@pytest.mark.parametrize("dtype", [jnp.float32, *HALVES], ids=lambda d: d.__name__)
def test_embed_says_nan_to_ids_that_are_none(dtype):
    params = fnn.embed_init(KEY, 7, 3, dtype=dtype)
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
            fnn.embed(fnn.embed_init(KEY, 7, 3), ids)


# --- dropout ------------------------------------------------------------------------------------


def masks(key, x=None, rate=0.5):
    return np.asarray(fnn.dropout(key, jnp.ones((64, 64)) if x is None else x, rate) != 0)


def test_dropout_keeps_the_expectation():
    for rate in (0.1, 0.5, 0.9):
        y = fnn.dropout(KEY, jnp.full((1000, 1000), 3.0), rate)
        assert abs(float((y == 0).mean()) - rate) < 5 * np.sqrt(rate * (1 - rate)) / 1000
        np.testing.assert_allclose(np.unique(np.asarray(y)), [0, 3 / (1 - rate)], rtol=1e-6)


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
    rates = jnp.array([0.0, 0.25, 0.75])
    y = jax.vmap(lambda rate: fnn.dropout(KEY, jnp.ones((200, 200)), rate))(rates)
    np.testing.assert_allclose((y == 0).mean((1, 2)), rates, atol=0.02)
    chex.assert_trees_all_equal(y[1], fnn.dropout(KEY, jnp.ones((200, 200)), 0.25))


def test_masks_differ_between_rows_layers_and_members():
    rows = masks(KEY)
    assert len(np.unique(rows, axis=0)) == len(rows)
    first, second = fnn.split(KEY, 2)
    assert (masks(first) != masks(second)).any()
    members = np.asarray(
        jax.vmap(lambda key: fnn.dropout(key, jnp.ones(256), 0.5))(jax.random.split(KEY, 8))
    )
    assert len(np.unique(members, axis=0)) == 8
    # Inside mlp each layer draws its own: with one mask for both, halves of equal width agree.
    identity = {f"layer_{i}": {"w": jnp.eye(256)} for i in range(3)}
    y = fnn.mlp(identity, jnp.ones((1, 256)), key=KEY, rate=0.5)
    assert abs(float((y > 0).mean()) - 0.25) < 0.1


def test_masks_are_equal_between_vmap_and_loop():
    keys, x = jax.random.split(KEY, 4), jnp.ones((5, 7))
    together = jax.vmap(lambda key: fnn.dropout(key, x, 0.3))(keys)
    chex.assert_trees_all_equal(together, jnp.stack([fnn.dropout(key, x, 0.3) for key in keys]))


@pytest.mark.parametrize("rate", [0.001, 0.1, 1 / 3, 0.5, 0.9])
def test_dropout_rate_is_right_to_a_ten_thousandth(rate):
    drop = jax.jit(lambda key, rate: (fnn.dropout(key, jnp.ones((2**12, 2**11)), rate) == 0).sum())
    drawn = 4 * 2**23
    share = sum(int(drop(key, rate)) for key in jax.random.split(KEY, 4)) / drawn
    assert abs(share - rate) < min(1e-4, 2**-17 + 4 * np.sqrt(rate * (1 - rate) / drawn)) + 1e-5


def test_the_two_halves_of_a_word_are_independent():
    keep = masks(KEY, jnp.ones((1000, 1000)), 0.3).astype(float)
    for a, b in [
        (keep[:, :500], keep[:, 500:]),
        (keep[:, :-1], keep[:, 1:]),
        (keep[:-1], keep[1:]),
    ]:
        correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(a.size)


def test_dropout_at_rates_that_only_a_sweep_can_give():
    x = jnp.full((3, 5), 2.0)
    y = jax.jit(lambda rates: jax.vmap(lambda rate: fnn.dropout(KEY, x, rate))(rates))
    none, all_, tiny = y(jnp.array([0.0, 1.0, 1e-9]))
    chex.assert_trees_all_equal((none, all_, tiny), (x, 0 * x, x))
    assert np.isnan(fnn.dropout(KEY, x, jnp.array(jnp.nan))).any()
    half = fnn.dropout(KEY, x, jnp.array(0.25, jnp.float16))
    chex.assert_trees_all_equal(half, fnn.dropout(KEY, x, 0.25))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1), (2, 3, 5), (0, 4), (4, 0)])
def test_dropout_of_any_shape(shape):
    y = fnn.dropout(KEY, jnp.ones(shape), 0.5)
    assert y.shape == shape
    assert set(np.unique(y)) <= {0, 2}


@pytest.mark.parametrize("drop", [fnn.dropout, fnn.spatial_dropout])
def test_a_row_draws_by_its_own_number(drop):
    x = jax.random.normal(KEY, (8, 6, 16))
    drop_rows = jax.jit(lambda rows: drop(fnn.row_keys(KEY, rows), x[rows], 0.5))
    y = jax.jit(lambda: drop(fnn.row_keys(KEY, 8), x, 0.5))()
    assert len(np.unique(np.asarray(y != 0), axis=0)) == 8
    for rows in ([0, 1, 2], [3, 4, 5], [7, 0, 7]):
        chex.assert_trees_all_equal(drop_rows(jnp.array(rows)), y[jnp.array(rows)])


def test_keys_of_rows_go_through_split_and_mlp():
    params, x = fnn.mlp_init(KEY, (6, 32, 32, 4)), jax.random.normal(KEY, (8, 6))

    @jax.jit
    def apply(keys, x):
        first, second = fnn.split(keys)
        return fnn.mlp(params, fnn.dropout(first, x, 0.3), key=second, rate=0.5)

    y = apply(fnn.row_keys(KEY, 8), x)
    assert len(np.unique(np.asarray(apply(fnn.row_keys(KEY, 8), x * 0 + x[0])), axis=0)) == 8
    # Each row with a key of its own, which is one key then.
    one_by_one = jax.vmap(apply)(fnn.row_keys(KEY, 8), x)
    chex.assert_trees_all_close(one_by_one, y, rtol=1e-5, atol=1e-6)
    assert fnn.row_keys(None, 8) is None
    raw = fnn.row_keys(jax.random.PRNGKey(0), 8)
    chex.assert_trees_all_close(apply(raw, x), y, rtol=1e-6)


def test_spatial_dropout_drops_whole_channels():
    x = 1 + jax.random.uniform(KEY, (50, 4, 5, 40))
    kept = np.asarray(fnn.spatial_dropout(KEY, x, 0.25) != 0)
    assert (kept == kept[:, :1, :1]).all()
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 2000)
    y = fnn.spatial_dropout(KEY, x, 0.25)
    chex.assert_trees_all_close(y, jnp.where(kept, x / 0.75, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fnn.dropout(fnn.row_keys(KEY, 3), jnp.ones((4, 2)), 0.5),
            ValueError,
            r"dropout: key has shape \(3,\), expected one key, or one for each of 4 rows",
        ),
        (
            lambda: fnn.row_keys(jax.random.split(KEY, 3), 3),
            ValueError,
            r"row_keys: key has shape \(3,\), expected one key",
        ),
        (lambda: fnn.row_keys(0, 3), TypeError, "row_keys: key is int, expected a key"),
        (
            lambda: fnn.spatial_dropout(KEY, jnp.ones(3), 0.5),
            ValueError,
            r"spatial_dropout: x has shape \(3,\), expected \[batch, \*space, channels\]",
        ),
        (
            lambda: fnn.spatial_dropout(KEY, jnp.ones((2, 3)), 1.0),
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
