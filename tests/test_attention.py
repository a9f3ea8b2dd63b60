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
from tests.table_of_layers import LAYERS

module = inspect.getmodule(fnn.attention)
KEY = jax.random.key(0)
GOLDEN = np.load(Path(__file__).parent / "golden" / "sequence.npz")
PADDED = np.arange(5) < GOLDEN["lengths"][:, None]  # [batch, source]
attention = jax.jit(fnn.attention, static_argnames="causal")
block = jax.jit(fnn.transformer_block, static_argnames=("causal", "activation"))


def sequence(batch=3, time=5, dim=6, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), (batch, time, dim), dtype)


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
    params, x = fnn.attention_init(KEY, 6, 2), sequence()
    layer = linen.MultiHeadDotProductAttention(2)
    names = {"query": "query", "key": "key", "value": "value", "output": "out"}
    theirs = {
        name: {"kernel": params[ours]["w"], "bias": params[ours]["b"]}
        for ours, name in names.items()
    }
    expected = layer.apply({"params": theirs}, x, mask=PADDED[:, None, None])
    chex.assert_trees_all_close(
        attention(params, x, mask=PADDED[:, None]), expected, rtol=1e-5, atol=1e-6
    )


# --- who sees whom ------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_causal_output_does_not_depend_on_later_inputs(masked):
    params, x = fnn.transformer_block_init(KEY, 8, 2), sequence(dim=8)
    mask = jnp.ones((1, 5, 5), bool) if masked else None
    before = block(params, x, causal=True, mask=mask, positions=jnp.arange(5))
    for t in range(4):
        changed = x.at[:, t + 1 :].set(1e3)
        after = block(params, changed, causal=True, mask=mask, positions=jnp.arange(5))
        chex.assert_trees_all_equal(after[:, : t + 1], before[:, : t + 1])
        assert (after[:, t + 1 :] != before[:, t + 1 :]).any(-1).all()
    assert (block(params, x.at[:, -1].set(1e3))[:, 0] != block(params, x)[:, 0]).any()


def test_padding_is_not_seen():
    params, x = fnn.attention_init(KEY, 6, 2), sequence()
    y = attention(params, x, mask=PADDED[:, None])
    filled = attention(params, jnp.where(PADDED[..., None], x, 1e3), mask=PADDED[:, None])
    chex.assert_trees_all_equal(y[PADDED], filled[PADDED])
    for row, length in enumerate(GOLDEN["lengths"]):
        alone = fnn.attention(params, x[row : row + 1, :length])
        chex.assert_trees_all_close(y[row, :length], alone[0], rtol=1e-5, atol=1e-6)


def test_masks_of_every_shape_are_the_full_one():
    params, x = fnn.attention_init(KEY, 6, 2), sequence()
    rng = np.random.default_rng(0)
    for shape in [(3, 5, 5), (1, 5, 5), (3, 1, 5), (3, 2, 5, 5), (1, 2, 1, 5), (3, 1, 5, 5)]:
        mask = rng.uniform(size=shape) < 0.7
        full = np.broadcast_to(mask if mask.ndim == 4 else mask[:, None], (3, 2, 5, 5))
        causal = full & np.tri(5, dtype=bool)
        for options in ({"mask": mask}, {"mask": full}):
            y = attention(params, x, causal=True, **options)
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
    params, x = fnn.attention_init(KEY, 6, 2), sequence()
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
    params, x = fnn.attention_init(KEY, 8, 2), sequence(dim=8)
    order = jnp.array([3, 0, 4, 1, 2])
    y = attention(params, x)
    chex.assert_trees_all_close(attention(params, x[:, order]), y[:, order], rtol=1e-5, atol=1e-6)
    turned = attention(params, x, positions=jnp.arange(5))
    assert abs(turned - y).max() > 1e-3
    later = attention(params, x, positions=jnp.arange(5) + 1000)
    chex.assert_trees_all_close(later, turned, rtol=1e-3, atol=1e-3)


def test_rotary_is_a_rotation_of_complex_numbers():
    with jax.enable_x64(True):
        x, positions = jax.random.normal(KEY, (2, 5, 3, 8)), jnp.array([0, 1, 7, 30, 2])
        z = np.asarray(x)[..., :4] + 1j * np.asarray(x)[..., 4:]
        rates = 10_000.0 ** (-np.arange(4) / 4)
        z = z * np.exp(1j * np.asarray(positions)[:, None, None] * rates)
        expected = np.concatenate([z.real, z.imag], axis=-1)
        np.testing.assert_allclose(fnn.rotary(x, positions), expected, atol=1e-13)
        chex.assert_trees_all_equal(fnn.rotary(x, positions)[:, 0], x[:, 0])


def test_the_example_with_learned_positions_runs_and_depends_on_order():
    code = textwrap.dedent(module.__doc__.split("::\n")[1])
    scope = {"jax": jax, "fnn": fnn, "vocab": 7, "dim": 8, "heads": 2, "max_time": 9}
    exec(code, scope)
    params = jax.jit(scope["init"])(KEY)
    tokens = jnp.array([[1, 2, 3, 4], [2, 1, 3, 4]])
    logits = jax.jit(scope["apply"])(params, tokens)
    assert logits.shape == (2, 4, 7)
    assert abs(logits[0, -1] - logits[1, -1]).max() > 1e-6
    noisy = jax.jit(scope["apply"])(params, tokens, KEY)
    assert (noisy != logits).any()


# --- the block ----------------------------------------------------------------------------------


def test_capture_finds_the_weights():
    params, x = fnn.transformer_block_init(KEY, 4, 2), jax.random.normal(KEY, (3, 5, 4))
    block = partial(fnn.transformer_block, causal=True)
    seen, y = fnn.diagnostics.capture(block, measure=lambda x: x)(params, x)
    assert list(seen) == ["attention", "layer_0"]
    chex.assert_trees_all_close(y, block(params, x), rtol=1e-6)
    weights = np.asarray(seen["attention"])
    assert weights.shape == (3, 2, 5, 5)
    assert not np.triu(weights, 1).any()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_dropout_draws_thrice_and_only_with_a_key():
    params, x = fnn.transformer_block_init(KEY, 32, 2), sequence(dim=32)
    y = block(params, x, rate=0.5)
    chex.assert_trees_all_equal(y, block(params, x))
    keys = jax.random.split(KEY, 4)
    draws = jax.vmap(lambda key: block(params, x, key=key, rate=0.5))(keys)
    alone = block(params, x, key=keys[1], rate=0.5)
    chex.assert_trees_all_close(draws[1], alone, rtol=1e-4, atol=1e-5)
    assert (draws[0] != draws[1]).any()
    # With the mlp silent, half of what attention adds is gone, and the rest is doubled.
    params["mlp"]["layer_1"]["w"] = jnp.zeros_like(params["mlp"]["layer_1"]["w"])
    added, kept = block(params, x, key=KEY, rate=0.5) - x, block(params, x) - x
    assert 0.4 < float((added == 0).mean()) < 0.6
    chex.assert_trees_all_close(added, jnp.where(added == 0, 0, 2 * kept), rtol=1e-3, atol=1e-5)


def test_a_silent_block_is_the_identity():
    params, x = fnn.transformer_block_init(KEY, 6, 2), sequence()
    for part in (params["attention"]["output"], params["mlp"]["layer_1"]):
        part["w"] = jnp.zeros_like(part["w"])
    chex.assert_trees_all_equal(block(params, x), x)


def test_biases_and_norms_are_spared():
    params = fnn.transformer_block_init(KEY, 6, 2, mlp_dim=5)
    by_path = fnn.params.paths(fnn.params.decayed(params))
    assert by_path == {path: path.endswith("/w") for path in by_path}
    assert fnn.params.count(params) == 4 * (36 + 6) + 2 * 12 + 2 * 30 + 5 + 6
    assert params["attention"]["query"]["w"].shape == (6, 2, 3)
    assert params["attention"]["output"]["w"].shape == (2, 3, 6)
    limit = np.sqrt(6 / 12)  # Glorot's of the whole matrix
    w = fnn.attention_init(KEY, 6, 2)["value"]["w"]
    assert 0.8 * limit < abs(w).max() <= limit


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16, jnp.float16])
def test_dtypes_pass_through_the_block(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params = fnn.transformer_block_init(KEY, 6, 2, dtype=dtype)
        chex.assert_type(jax.tree.leaves(params), dtype)
        x = sequence(dtype=dtype)
        options = {"mask": PADDED[:, None], "positions": None}
        y = block(params, x, **options)
        assert y.dtype == dtype
        assert attention(params["attention"], x[..., :6], **options).dtype == dtype
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, x))
        tolerance = 1e-5 if dtype == jnp.float64 else 0.1
        chex.assert_trees_all_close(
            y.astype(jnp.float32), block(*wide, **options), rtol=tolerance, atol=tolerance
        )


# --- breaking it --------------------------------------------------------------------------------


def test_empty_one_row_and_huge():
    params, x = fnn.attention_init(KEY, 6, 2), sequence()
    assert attention(params, x[:0]).shape == (0, 5, 6)
    one = attention(params, x[:1])
    chex.assert_trees_all_close(one, attention(params, x)[:1], rtol=1e-5, atol=1e-6)
    assert jnp.isfinite(attention(params, 1e15 * x, causal=True)).all()
    only = params["value"]["w"].reshape(6, 6) @ params["output"]["w"].reshape(6, 6)
    chex.assert_trees_all_close(attention(params, x[:, :1])[:, 0], x[:, 0] @ only, atol=1e-5)


def test_a_nan_stays_in_its_example():
    x = sequence().at[1, 2].set(jnp.nan)
    y = block(fnn.transformer_block_init(KEY, 6, 2), x, causal=True)
    # Rows before it in the same example too: 0 * NaN is NaN, whatever the mask.
    np.testing.assert_array_equal(jnp.isnan(y).any((1, 2)), [False, True, False])


def test_the_table_of_layers_has_a_row():
    assert {"attention", "lstm"} <= {row.name for row in LAYERS}


PARAMS = fnn.attention_init(KEY, 6, 2)
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
            r"attention: x has shape \(3, 5, 6\) and context \(2, 5, 6\), expected",
        ),
        (
            lambda: fnn.attention(PARAMS, X, context=X, causal=True),
            ValueError,
            "attention: causal and positions order x itself, but a context came",
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
            "attention: mask is float32, expected bool",
        ),
        (
            lambda: fnn.attention(PARAMS, X, positions=jnp.arange(5)),
            ValueError,
            r"rotary: head_dim is 3 \(shape \(3, 5, 2, 3\)\), expected even",
        ),
        (
            lambda: fnn.attention(PARAMS, X.astype(int)),
            TypeError,
            "attention query: x is int32, expected floating point",
        ),
    ],
)
def test_errors_name_the_layer(call, error, message):
    with pytest.raises(error, match=message):
        call()
