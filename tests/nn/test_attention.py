import importlib.util
import inspect
import textwrap
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.nn.drawn import normal, params_of
from tests.table_of_layers import LAYERS

module = inspect.getmodule(fnn.attention)
KEY = jax.random.key(0)
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "sequence.npz")
PADDED = np.arange(5) < GOLDEN["lengths"][:, None]  # [batch, source]
attention = jax.jit(fnn.attention, static_argnames="causal")
block = jax.jit(fnn.transformer_block, static_argnames=("causal", "activation"))


def sequence(batch=3, time=5, dim=6, dtype=jnp.float32):
    return normal(batch, time, dim, seed=1, dtype=dtype)


def from_torch(case, what, heads, prefix=""):
    """The parameters of MultiheadAttention, or their gradients, as fnn has them."""

    def named(name):
        return GOLDEN[f"{case}/{what}/{prefix}{name}"]

    if f"{case}/{what}/{prefix}in_proj_weight" in GOLDEN:
        ws = np.split(named("in_proj_weight"), 3)
    else:
        ws = [named(f"{letter}_proj_weight") for letter in "qkv"]
    bs = np.split(named("in_proj_bias"), 3)
    params = {
        name: {"w": w.T.reshape(w.shape[1], heads, -1), "b": b.reshape(heads, -1)}
        for name, w, b in zip(("query", "key", "value"), ws, bs, strict=True)
    }
    w = named("out_proj.weight")
    params["output"] = {"w": w.T.reshape(heads, -1, len(w)), "b": named("out_proj.bias")}
    return jax.tree.map(jnp.asarray, params)


def check_against_torch(case, apply, convert):
    def loss(params, x):
        y = apply(params, x)
        return (y * GOLDEN[f"{case}/probe"]).sum(), y

    with jax.enable_x64(True):
        grad = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (_, y), grads = grad(convert("params"), jnp.asarray(GOLDEN[f"{case}/x"]))
        expected = GOLDEN[f"{case}/y"], (convert("grads"), GOLDEN[f"{case}/x_grad"])
        chex.assert_trees_all_close((y, grads), expected, rtol=1e-10, atol=1e-12)


# --- against PyTorch ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "heads", "options"),
    [
        ("attention_causal", 2, {"causal": True}),
        ("attention_padded", 2, {"mask": PADDED[:, None]}),
        ("attention_context", 3, {"context": GOLDEN["attention_context/context"]}),
    ],
)
def test_attention_is_pytorchs(case, heads, options):
    check_against_torch(
        case,
        lambda params, x: fnn.attention(params, x, **options),
        lambda what: from_torch(case, what, heads),
    )


def test_the_block_is_pytorchs():
    def convert(what):
        def named(name):
            return jnp.asarray(GOLDEN[f"block/{what}/{name}"])

        def norm(name):
            return {"scale": named(f"{name}.weight"), "offset": named(f"{name}.bias")}

        def dense(name):
            return {"w": named(f"{name}.weight").T, "b": named(f"{name}.bias")}

        return {
            "attention_norm": norm("norm1"),
            "attention": from_torch("block", what, 2, "self_attn."),
            "mlp_norm": norm("norm2"),
            "mlp": {"layer_0": dense("linear1"), "layer_1": dense("linear2")},
        }

    check_against_torch("block", lambda p, x: fnn.transformer_block(p, x, causal=True), convert)


def test_values_are_flaxs():
    linen = pytest.importorskip("flax.linen")
    params, x = params_of(fnn.attention_init, 6, 2), sequence()
    layer = linen.MultiHeadDotProductAttention(2)
    names = {"query": "query", "key": "key", "value": "value", "output": "out"}
    theirs = {
        name: {"kernel": params[ours]["w"], "bias": params[ours]["b"]}
        for ours, name in names.items()
    }
    expected = jax.jit(layer.apply)({"params": theirs}, x, mask=PADDED[:, None, None])
    chex.assert_trees_all_close(
        attention(params, x, mask=PADDED[:, None]), expected, rtol=1e-5, atol=1e-6
    )


# --- who sees whom ------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_causal_output_does_not_depend_on_later_inputs(masked):
    params, x = params_of(fnn.transformer_block_init, 8, 2), np.asarray(sequence(dim=8))
    mask = np.ones((1, 5, 5), bool) if masked else None

    def outputs(x, **options):
        return np.asarray(block(params, x, **options))

    causal = partial(outputs, causal=True, mask=mask, positions=np.arange(5))
    before = causal(x)
    for t in range(4):
        changed = np.where(np.arange(5)[:, None] > t, np.float32(1e3), x)
        after = causal(changed)
        np.testing.assert_array_equal(after[:, : t + 1], before[:, : t + 1])
        assert (after[:, t + 1 :] != before[:, t + 1 :]).any(-1).all()
    assert (outputs(changed)[:, 0] != outputs(x)[:, 0]).any()  # without causal


def test_padding_is_not_seen():
    params, x = params_of(fnn.attention_init, 6, 2), sequence()
    y = attention(params, x, mask=PADDED[:, None])
    filled = attention(params, jnp.where(PADDED[..., None], x, 1e3), mask=PADDED[:, None])
    chex.assert_trees_all_equal(y[PADDED], filled[PADDED])
    for row, length in enumerate(GOLDEN["lengths"]):
        alone = attention(params, x[row : row + 1, :length])
        chex.assert_trees_all_close(y[row, :length], alone[0], rtol=1e-5, atol=1e-6)


GARBAGE = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 3e38, 1e30, 0])


@pytest.mark.parametrize("causal", [False, True])
def test_nan_in_padding_reaches_neither_values_nor_gradients(causal):
    x = sequence()
    layers = {
        "attention": (fnn.attention, params_of(fnn.attention_init, 6, 2)),
        "block": (fnn.transformer_block, params_of(fnn.transformer_block_init, 6, 2)),
    }
    for name, (layer, params) in layers.items():

        @jax.jit
        def gradient(params, x, layer=layer):
            def loss(params, x):
                y = layer(params, x, mask=PADDED[:, None], causal=causal)
                y = jnp.where(PADDED[..., None], y, 0)
                return jnp.sin(y).sum(), y

            return jax.grad(loss, (0, 1), has_aux=True)(params, x)

        found, clean = (
            gradient(params, jnp.where(PADDED[..., None], x, other)) for other in (GARBAGE, 0)
        )
        chex.assert_trees_all_close(found, clean, rtol=1e-5, atol=1e-6)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found)), name


def test_padding_of_a_context_and_positions_that_see_nothing_take_part_in_nothing():
    params, x, context = params_of(fnn.attention_init, 6, 2), sequence(), sequence(time=4)
    rows, places = np.arange(5) < 3, np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    mask = rows[None, :, None] & places[:, None]

    @jax.jit
    def gradient(x, context):
        def loss(params, x, context):
            y = fnn.attention(params, x, context=context, mask=mask)
            return jnp.sin(y).sum(), y

        return jax.grad(loss, (0, 1, 2), has_aux=True)(params, x, context)

    found, clean = (
        gradient(jnp.where(rows[:, None], x, other), jnp.where(places[..., None], context, other))
        for other in (GARBAGE, 0)
    )
    chex.assert_trees_all_equal(found, clean)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    np.testing.assert_array_equal(found[1][2], jnp.broadcast_to(params["output"]["b"], (5, 6)))


def test_masks_of_every_shape_are_the_full_one():
    params, x = params_of(fnn.attention_init, 6, 2), sequence()
    rng = np.random.default_rng(0)
    shapes = [(3, 5, 5), (1, 5, 5), (3, 1, 5), (3, 2, 5, 5), (1, 2, 1, 5), (3, 1, 5, 5)]
    masks = [rng.uniform(size=shape) < 0.7 for shape in shapes]
    ys = jax.jit(lambda *at: [fnn.attention(*at, mask=mask, causal=True) for mask in masks])(
        params, x
    )
    for mask, y in zip(masks, ys, strict=True):
        full = np.broadcast_to(mask if mask.ndim == 4 else mask[:, None], (3, 2, 5, 5))
        causal = full & np.tri(5, dtype=bool)
        np.testing.assert_allclose(y, by_numpy(params, x, causal), rtol=1e-5, atol=1e-5)


def by_numpy(params, x, mask):
    """[batch, time, dim] -> the same, mask [batch, heads, time, source], in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def project(p):
        return np.einsum("bti,ihd->bhtd", x, p["w"]) + p["b"][:, None]

    q, k, v = (project(params[name]) for name in ("query", "key", "value"))
    scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) * mask
    total = scores.sum(-1, keepdims=True)
    heads = scores / np.where(total > 0, total, 1) @ v
    return np.einsum("bhtd,hdo->bto", heads, params["output"]["w"]) + params["output"]["b"]


def test_a_row_that_sees_nothing_is_zero_and_finite():
    params, x = params_of(fnn.attention_init, 6, 2), sequence()
    params["output"]["b"] = jnp.arange(6.0)
    mask = jnp.ones((3, 5, 5), bool).at[1, 2].set(False).at[2].set(False)

    def loss(params, x):
        y = fnn.attention(params, x, mask=mask)
        return (y**2).sum(), y

    grads, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, y)))
    np.testing.assert_array_equal(y[1, 2], np.arange(6))
    np.testing.assert_array_equal(y[2], np.broadcast_to(np.arange(6.0), (5, 6)))
    assert not grads[1][2].any()


# --- positions ----------------------------------------------------------------------------------


def test_attention_alone_knows_no_order_and_rotary_does():
    params, x = params_of(fnn.attention_init, 8, 2), sequence(dim=8)
    order = jnp.array([3, 0, 4, 1, 2])
    y = attention(params, x)
    chex.assert_trees_all_close(attention(params, x[:, order]), y[:, order], rtol=1e-5, atol=1e-6)
    turned = attention(params, x, positions=jnp.arange(5))
    assert abs(turned - y).max() > 1e-3
    later = attention(params, x, positions=jnp.arange(5) + 1000)
    chex.assert_trees_all_close(later, turned, rtol=1e-5, atol=1e-5)


def test_rotary_is_a_rotation_of_complex_numbers():
    with jax.enable_x64(True):
        x, positions = normal(2, 5, 3, 8, dtype=float), jnp.array([0, 1, 7, 30, 2])
        z = np.asarray(x)[..., :4] + 1j * np.asarray(x)[..., 4:]
        rates = 10_000.0 ** (-np.arange(4) / 4)
        z = z * np.exp(1j * np.asarray(positions)[:, None, None] * rates)
        expected = np.concatenate([z.real, z.imag], axis=-1)
        turned = jax.jit(fnn.nn.rotary)(x, positions)
        np.testing.assert_allclose(turned, expected, atol=1e-13)
        chex.assert_trees_all_equal(turned[:, 0], x[:, 0])


def test_rotary_has_digits_left_far_from_the_start():
    """The plain product of position and frequency is off by 7e-3 at 100,000."""
    x, positions = np.asarray(normal(1, 6, 1, 64)), np.int32([0, -7, 1000, 99_999, 100_000, 10**6])
    angles = positions[:, None] * 1e4 ** (-np.arange(32) / 32)
    turned = (x[0, :, 0, :32] + 1j * x[0, :, 0, 32:]) * np.exp(1j * angles)
    error = abs(
        fnn.nn.rotary(x, positions)[0, :, 0] - np.concatenate([turned.real, turned.imag], 1)
    )
    assert (error.max(1) < np.maximum(2e-6, 3e-9 * abs(positions))).all()


def test_rows_may_have_positions_of_their_own():
    x, positions = normal(3, 4, 2, 8), jnp.array([[0, 1, 2, 3], [5, 6, 7, 8], [0, 0, 0, 9]])
    turned = fnn.nn.rotary(x, positions)
    for row in range(3):
        chex.assert_trees_all_close(turned[row], fnn.nn.rotary(x[row], positions[row]), atol=1e-6)
    chex.assert_trees_all_close(
        fnn.nn.rotary(x[None], positions[None])[0], turned, rtol=1e-6, atol=1e-6
    )
    for wrong in (
        jnp.arange(3),
        jnp.zeros((3, 3), int),
        jnp.zeros((4, 4), int),
        jnp.zeros((), int),
    ):
        with pytest.raises(ValueError, match=r"rotary: x has shape \(3, 4, 2, 8\) and positions"):
            fnn.nn.rotary(x, wrong)


def test_a_batch_padded_on_the_left_is_each_sequence_alone():
    params, x = params_of(fnn.transformer_block_init, 8, 2), sequence(dim=8)
    lengths = np.array([5, 3, 1])
    real = np.arange(5) >= 5 - lengths[:, None]
    positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
    padded = jnp.where(real[..., None], x, jnp.nan)
    y = block(params, padded, causal=True, mask=real[:, None], positions=positions)
    for row, length in enumerate(lengths):
        alone = block(
            params, x[row : row + 1, 5 - length :], causal=True, positions=jnp.arange(length)
        )
        chex.assert_trees_all_close(y[row, 5 - length :], alone[0], rtol=1e-4, atol=1e-5)


def test_the_example_with_learned_positions_runs_and_depends_on_order():
    code = textwrap.dedent(module.__doc__.split("::\n")[1])
    scope = {"jax": jax, "fnn": fnn, "vocab": 7, "dim": 8, "heads": 2, "max_time": 9}
    exec(code, scope)
    params = params_of(scope["init"])
    tokens = jnp.array([[1, 2, 3, 4], [2, 1, 3, 4]])
    apply = scope["apply"]
    logits, noisy = jax.jit(lambda *at: (apply(*at), apply(*at, KEY)))(params, tokens)
    logits = np.asarray(logits)
    assert logits.shape == (2, 4, 7)
    assert abs(logits[0, -1] - logits[1, -1]).max() > 1e-6
    assert (noisy != logits).any()


# --- the block ----------------------------------------------------------------------------------


def test_capture_finds_the_weights():
    params, x = params_of(fnn.transformer_block_init, 4, 2), sequence(dim=4)
    seen, y = jax.jit(fnn.diagnostics.capture(partial(block, causal=True), measure=lambda x: x))(
        params, x
    )
    assert list(seen) == ["attention", "layer_0"]
    chex.assert_trees_all_close(y, block(params, x, causal=True), rtol=1e-6)
    weights = np.asarray(seen["attention"])
    assert weights.shape == (3, 2, 5, 5)
    assert not np.triu(weights, 1).any()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_dropout_draws_thrice_and_only_with_a_key():
    params, x = params_of(fnn.transformer_block_init, 32, 2), sequence(dim=32)
    y = block(params, x, rate=0.5)
    chex.assert_trees_all_equal(y, block(params, x))
    keys = jax.random.split(KEY, 2)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: block(params, x, key=key, rate=0.5)))(keys))
    alone = block(params, x, key=keys[1], rate=0.5)
    chex.assert_trees_all_close(draws[1], alone, rtol=1e-4, atol=1e-5)
    assert (draws[0] != draws[1]).any()
    # With the mlp silent, half of what attention adds is gone, and the rest is doubled.
    params["mlp"]["layer_1"] = jax.tree.map(np.zeros_like, params["mlp"]["layer_1"])
    drawn, whole = block(params, x, key=KEY, rate=0.5), block(params, x)
    added, kept = (np.asarray(y) - np.asarray(x) for y in (drawn, whole))
    assert 0.4 < (added == 0).mean() < 0.6
    chex.assert_trees_all_close(added, np.where(added == 0, 0, 2 * kept), rtol=1e-3, atol=1e-5)


def test_a_silent_block_is_the_identity():
    params, x = params_of(fnn.transformer_block_init, 6, 2), sequence()
    for part in (params["attention"]["output"], params["mlp"]["layer_1"]):
        part |= jax.tree.map(jnp.zeros_like, part)
    chex.assert_trees_all_equal(block(params, x), x)


def test_biases_and_norms_are_spared():
    params = params_of(fnn.transformer_block_init, 6, 2, mlp_dim=5)
    by_path = fnn.params.paths(fnn.params.decayed(params))
    assert by_path == {path: path.endswith("/w") for path in by_path}
    assert fnn.params.count(params) == 4 * (36 + 6) + 2 * 12 + 2 * 30 + 5 + 6
    assert params["attention"]["query"]["w"].shape == (6, 2, 3)
    assert params["attention"]["output"]["w"].shape == (2, 3, 6)
    limit = np.sqrt(6 / 12)  # Glorot's of the whole matrix
    w = fnn.attention_init(KEY, 6, 2)["value"]["w"]
    assert 0.8 * limit < abs(w).max() <= limit


def test_dtypes_pass_through_the_block():
    dtypes = (jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16)

    @jax.jit
    def outputs(params, x):
        ys = []
        for dtype in dtypes:
            p, cast = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), (params, x))
            ys.append(fnn.transformer_block(p, cast, mask=PADDED[:, None]))
        return ys

    with jax.enable_x64(True):
        init = partial(fnn.transformer_block_init, KEY, 6, 2)
        for dtype in dtypes:
            chex.assert_type(jax.tree.leaves(jax.eval_shape(partial(init, dtype=dtype))), dtype)
        ys = outputs(
            params_of(fnn.transformer_block_init, 6, 2, dtype=float), sequence(dtype=float)
        )
    for y, dtype in zip(ys, dtypes, strict=True):
        assert y.dtype == dtype
        tolerance = 0.1 if dtype in dtypes[2:] else 1e-5
        np.testing.assert_allclose(
            np.asarray(y, np.float64), np.asarray(ys[0]), rtol=tolerance, atol=tolerance
        )


# --- cuDNN's kernel -----------------------------------------------------------------------------

HALF = jnp.bfloat16


def by_jax(params, x, *, causal=False):
    """Attention by `jax.nn.dot_product_attention`, XLA's implementation."""
    q, k, v = (
        jnp.einsum("bti,ihd->bthd", x, params[name]["w"]) + params[name]["b"]
        for name in ("query", "key", "value")
    )
    out = jax_attention(q, k, v, is_causal=causal)
    w, b = params["output"]["w"], params["output"]["b"]
    return jnp.einsum("bthd,hdo->bto", out, w) + b


jax_attention = partial(jax.nn.dot_product_attention, implementation="xla")


def with_one_key_head(params):
    """Multi-query attention: all queries take the first head of keys and values."""
    first = {name: jax.tree.map(lambda a: a[..., :1, :], params[name]) for name in ("key", "value")}
    return params | first


def with_gradients(layer, **options):
    def both(params, x):
        y, pullback = jax.vjp(partial(layer, **options), params, x)
        return y, pullback(y)

    return both


def shapes_of(time=512, heads=1, head_dim=8, dtype=HALF, batch=1):
    """Of the parameters and the input of a layer that computes what cuDNN can."""
    init = partial(fnn.attention_init, KEY, heads * head_dim, heads, dtype=dtype)
    return jax.eval_shape(init), jax.ShapeDtypeStruct((batch, time, heads * head_dim), dtype)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_jaxs(causal):
    ours, theirs = (with_gradients(layer, causal=causal) for layer in (fnn.attention, by_jax))

    @jax.jit
    def both(*at):
        halves = jax.tree.map(lambda leaf: leaf.astype(HALF), at)
        return [(ours(*at), theirs(*at)) for at in (at, halves)]

    with jax.numpy_dtype_promotion("standard"):  # JAX's own code mixes dtypes
        pairs = both(params_of(fnn.attention_init, 8, 2), sequence(dim=8))
    for pair, tolerance in zip(pairs, (2e-5, 0.02), strict=True):
        for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
            a, b = (np.asarray(array, np.float64) for array in (a, b))
            # The gradient by the key's bias is 0 up to rounding: that bias moves all scores alike.
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(abs(b).max(), 1))


@pytest.fixture
def cudnn(monkeypatch):
    """A stand-in for cuDNN's attention: JAX's own by XLA, seen in a program as a barrier."""

    def attend(q, k, v, *, is_causal, implementation):
        assert implementation == "cudnn"
        q = jax.lax.optimization_barrier(q)
        return jax_attention(q, k, v, is_causal=is_causal)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    with jax.numpy_dtype_promotion("standard"):
        yield


def is_by_cudnn(layer, *args, platform="cuda"):
    traced = jax.jit(lambda *at: layer(*at)).trace(*args)  # a new function, which is traced anew
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return "optimization_barrier" in text


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu", "rocm"])
def test_a_gpu_alone_takes_cudnns_kernel(cudnn, platform):
    layers = {
        "attention": fnn.attention,
        "causal": partial(fnn.attention, causal=True),
        "gradients": with_gradients(fnn.attention, causal=True),
        "turned": lambda p, x: fnn.attention(p, x, positions=jnp.arange(x.shape[1])),
        "context": lambda p, x: fnn.attention(p, x, context=x),
        "one head of keys and values": lambda p, x: fnn.attention(with_one_key_head(p), x),
        "side by side": lambda p, x: jax.vmap(fnn.attention)(
            *jax.tree.map(lambda a: a[None], (p, x))
        ),
    }
    for name, layer in layers.items():
        taken = is_by_cudnn(layer, *shapes_of(heads=2), platform=platform)
        assert taken == (platform == "cuda"), name


def test_cudnns_kernel_is_for_long_sequences_in_half_precision_without_a_mask(cudnn):
    taken = [{}, {"dtype": jnp.float16}, {"head_dim": 128}, {"time": 513, "heads": 3}]
    others = [
        {"dtype": jnp.float32},
        {"time": 511},
        {"head_dim": 4},
        {"head_dim": 12},
        {"head_dim": 136},
        {"batch": 0},
    ]
    for options in taken:
        assert is_by_cudnn(fnn.attention, *shapes_of(**options)), options
    for options in others:
        assert not is_by_cudnn(fnn.attention, *shapes_of(**options)), options
    params, x = shapes_of()
    mask = jnp.ones((1, 1, 1), bool)
    assert not is_by_cudnn(lambda *at: fnn.attention(*at, mask=mask), params, x)
    assert not is_by_cudnn(lambda *at: fnn.attention(*at, context=at[1][:, :511]), params, x)


def test_gpus_and_installations_without_the_kernel_do_without(cudnn, monkeypatch):
    class Gpu:
        def __init__(self, capability):
            self.compute_capability = capability

    gpus = {"7.5": False, "8.0": True, "9.0": True, "12.1": True, "gfx90a": True}
    for capability, taken in gpus.items():
        monkeypatch.setattr(jax, "local_devices", lambda c=capability: [Gpu(c)])
        assert is_by_cudnn(fnn.attention, *shapes_of()) == taken, capability
    monkeypatch.undo()

    def missing(*args, **options):
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(jax.nn, "dot_product_attention", missing)
    assert not is_by_cudnn(fnn.attention, *shapes_of())


def test_on_a_cpu_cudnns_kernel_changes_nothing(cudnn, monkeypatch):
    params, x = params_of(fnn.attention_init, 8, 1), sequence(1, 512, 8)
    params, x = jax.tree.map(lambda leaf: leaf.astype(HALF), (params, x))
    found = jax.jit(with_gradients(fnn.attention, causal=True))(params, x)
    monkeypatch.setattr(module, "LONG", 513)
    expected = jax.jit(with_gradients(fnn.attention, causal=True))(params, x)
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.slow
def test_cudnns_kernel_is_in_the_program():
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        pytest.skip("needs JAX for CUDA: pip install 'jax[cuda13]'")

    def kernels(layer, platform):
        traced = jax.jit(layer).trace(*shapes_of(head_dim=64))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return text.count("@__cudnn$fmhaSoftmax("), text.count("@__cudnn$fmhaSoftmaxBackward(")

    assert kernels(fnn.attention, "cuda") == (1, 0)
    assert kernels(with_gradients(fnn.attention, causal=True), "cuda") == (1, 1)
    for platform in ("cpu", "tpu"):
        assert kernels(with_gradients(fnn.attention, causal=True), platform) == (0, 0)


# --- breaking it --------------------------------------------------------------------------------


def test_empty_one_row_and_huge():
    params, x = params_of(fnn.attention_init, 6, 2), sequence()
    assert attention(params, x[:0]).shape == (0, 5, 6)
    one = attention(params, x[:1])
    chex.assert_trees_all_close(one, attention(params, x)[:1], rtol=1e-5, atol=1e-6)
    assert jnp.isfinite(attention(params, 1e15 * x, causal=True)).all()
    value, output = params["value"], params["output"]
    only = x[:, 0] @ value["w"].reshape(6, 6) + value["b"].reshape(6)
    only = only @ output["w"].reshape(6, 6) + output["b"]
    chex.assert_trees_all_close(attention(params, x[:, :1])[:, 0], only, atol=1e-5)


def test_a_nan_stays_in_its_example():
    x = sequence().at[1, 2].set(jnp.nan)
    y = block(params_of(fnn.transformer_block_init, 6, 2), x, causal=True)
    # Rows before it in the same example too: 0 * NaN is NaN, whatever the mask.
    np.testing.assert_array_equal(jnp.isnan(y).any((1, 2)), [False, True, False])


def test_the_table_of_layers_has_a_row():
    assert {"attention", "lstm"} <= {row.name for row in LAYERS}


PARAMS = params_of(fnn.attention_init, 6, 2)
X = jnp.zeros((3, 5, 6))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fnn.attention_init(KEY, 6, 4),
            ValueError,
            "attention_init: dim is 6, expected a multiple of heads, 4",
        ),
        (
            lambda: fnn.attention(PARAMS, jnp.zeros((3, 5, 7))),
            ValueError,
            r"attention query: x has 7 features \(shape \(3, 5, 7\)\), but w expects 6",
        ),
        (
            lambda: fnn.attention(PARAMS, X, context=jnp.zeros((3, 5, 7))),
            ValueError,
            "attention key: x has 7 features",
        ),
        (
            lambda: fnn.attention(PARAMS, jnp.zeros((5, 6))),
            ValueError,
            r"attention: x has shape \(5, 6\), expected \[batch, time, dim\]",
        ),
        (
            lambda: fnn.attention(PARAMS, X, context=jnp.zeros((2, 5, 6))),
            ValueError,
            r"attention: x has shape \(3, 5, 6\) and context \(2, 5, 6\), expected .* and \[batch, source",
        ),
        (
            lambda: fnn.attention(PARAMS, X, context=X, causal=True),
            ValueError,
            "attention: causal and positions need x as the context, but context is given",
        ),
        (
            lambda: fnn.attention(PARAMS, X, mask=jnp.ones((3, 5), bool)),
            ValueError,
            r"attention: mask has shape \(3, 5\), expected \(3, 5, 5\).*mask\[:, None\]",
        ),
        (
            lambda: fnn.attention(PARAMS, X, mask=jnp.ones((3, 4, 5), bool)),
            ValueError,
            r"attention: mask has shape \(3, 4, 5\)",
        ),
        (
            lambda: fnn.attention(PARAMS, X, mask=jnp.ones((3, 5, 5))),
            TypeError,
            "attention: mask is float32, expected bool, True where a position may attend",
        ),
        (
            lambda: fnn.attention(PARAMS, X, positions=jnp.arange(5)),
            ValueError,
            r"rotary: head_dim is 3 \(shape \(3, 5, 2, 3\)\), expected even",
        ),
        (
            lambda: fnn.attention(PARAMS, X.astype(int)),
            TypeError,
            "attention: x is int32, expected floating point",
        ),
    ],
)
def test_errors_name_the_layer(call, error, message):
    with pytest.raises(error, match=message):
        call()
