"""Attention with fewer heads of keys and values: full attention with each of them repeated."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.nn.drawn import normal, params_of

KEY = jax.random.key(0)
HEADS, HEAD_DIM, DIM = 4, 2, 8
GROUPED = {n: params_of(fnn.attention_init, DIM, HEADS, kv_heads=n) for n in (1, 2, 4)}
X = normal(3, 5, DIM, seed=1)
PADDED = np.arange(5) < np.array([5, 3, 1])[:, None]
OF_HEADS = np.random.default_rng(2).uniform(size=(3, HEADS, 5, 5)) < 0.7
CALLS = {
    "plain": {},
    "causal": {"causal": True},
    "padded": {"mask": PADDED[:, None]},
    "a mask for each head": {"mask": OF_HEADS},
    "turned": {"positions": jnp.arange(5), "causal": True},
    "context": {"context": normal(3, 7, DIM, seed=3)},
}


def repeated(params):
    """The same layer with a head of keys and values for each query head."""
    repeats = HEADS // params["key"]["w"].shape[1]
    return params | {
        name: {
            "w": jnp.repeat(params[name]["w"], repeats, axis=1),
            "b": jnp.repeat(params[name]["b"], repeats, axis=0),
        }
        for name in ("key", "value")
    }


@pytest.mark.parametrize("call", CALLS)
def test_it_is_full_attention_with_repeated_heads(call):
    """Outputs, and gradients: those of a repeated head are summed by `repeated`'s derivative."""

    def loss(params, x, full):
        y = fnn.attention(repeated(params) if full else params, x, **CALLS[call])
        return jnp.sin(y).sum(), y

    @jax.jit
    def both(params, x):
        grad = jax.grad(loss, (0, 1), has_aux=True)
        return grad(params, x, full=False), grad(params, x, full=True)

    params = GROUPED[1 if call == "padded" else 2]
    found, expected = both(params, X)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=2e-5)


def q_k_v(params, x):
    return [
        jnp.einsum("bti,ihd->bthd", x, params[name]["w"]) + params[name]["b"]
        for name in ("query", "key", "value")
    ]


def put_out(params, heads):
    return jnp.einsum("bthd,hdo->bto", heads, params["output"]["w"]) + params["output"]["b"]


@pytest.mark.parametrize("kv_heads", GROUPED)
@pytest.mark.parametrize("causal", [False, True])
def test_it_is_jaxs(kv_heads, causal):
    params = GROUPED[kv_heads]
    with jax.numpy_dtype_promotion("standard"):  # JAX's own code mixes dtypes
        q, k, v = q_k_v(params, X)
        expected = put_out(params, jax.nn.dot_product_attention(q, k, v, is_causal=causal))
    found = jax.jit(fnn.attention, static_argnames="causal")(params, X, causal=causal)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_heads", GROUPED)
def test_it_is_pytorchs(kv_heads):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    params = GROUPED[kv_heads]
    q, k, v = (
        torch.tensor(np.asarray(a).swapaxes(1, 2).astype(np.float64)) for a in q_k_v(params, X)
    )
    attend = torch.nn.functional.scaled_dot_product_attention
    heads = attend(q, k, v, is_causal=True, enable_gqa=True).numpy().swapaxes(1, 2)
    expected = put_out(params, heads.astype(np.float32))
    np.testing.assert_allclose(
        fnn.attention(params, X, causal=True), expected, rtol=1e-4, atol=1e-5
    )


def test_sizes_and_defaults():
    params = fnn.attention_init(KEY, DIM, HEADS, kv_heads=1)
    shapes = {name: params[name]["w"].shape for name in params}
    assert shapes == {
        "query": (DIM, HEADS, HEAD_DIM),
        "key": (DIM, 1, HEAD_DIM),
        "value": (DIM, 1, HEAD_DIM),
        "output": (HEADS, HEAD_DIM, DIM),
    }
    full = fnn.attention_init(KEY, DIM, HEADS)
    chex.assert_trees_all_equal(fnn.attention_init(KEY, DIM, HEADS, kv_heads=HEADS), full)
    chex.assert_trees_all_equal(params["query"], full["query"])
    limit = np.sqrt(6 / (DIM + HEAD_DIM))  # Glorot's of the smaller matrix
    assert 0.7 * limit < abs(params["key"]["w"]).max() <= limit
    block = params_of(fnn.transformer_block_init, DIM, HEADS, kv_heads=2)
    assert block["attention"]["value"]["b"].shape == (2, HEAD_DIM)
    assert jax.eval_shape(fnn.transformer_block, block, X).shape == X.shape


def test_keys_and_values_are_not_repeated():
    """No array of the program is as large as the keys of all heads would be."""
    params, x = params_of(fnn.attention_init, DIM, HEADS, kv_heads=1), normal(1, 2, DIM)
    context = normal(1, 1000, DIM)
    program = jax.make_jaxpr(lambda x, c: fnn.attention(params, x, context=c))(x, context)
    sizes = [v.aval.size for eqn in program.jaxpr.eqns for v in eqn.outvars if "dot" in str(eqn)]
    assert max(sizes) == 2 * HEADS * 1000  # the scores; keys of all heads have 8000 too, repeated
    shapes = {v.aval.shape for eqn in program.jaxpr.eqns for v in eqn.outvars}
    assert (1, 1000, HEADS, HEAD_DIM) not in shapes


def test_half_precision_capture_and_empty():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), GROUPED[2])
    half = jax.jit(fnn.attention)(params, X.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    capture = jax.jit(fnn.diagnostics.capture(fnn.attention, measure=lambda x: x))
    seen, exact = capture(GROUPED[2], X)
    np.testing.assert_allclose(np.asarray(half, float), exact, rtol=0.1, atol=0.05)
    assert seen["attention"].shape == (3, HEADS, 5, 5)
    np.testing.assert_allclose(seen["attention"].sum(-1), 1, rtol=1e-5)
    for x in (X[:0], X[:, :0]):
        assert jax.eval_shape(fnn.attention, GROUPED[2], x).shape == x.shape


def with_heads(**numbers):
    params = dict(GROUPED[4])
    for name, heads in numbers.items():
        params[name] = {"w": jnp.ones((DIM, heads, HEAD_DIM))}
    return params


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fnn.attention_init(KEY, DIM, 4, kv_heads=3), "attention_init: heads is 4, expected a multiple of kv_heads, 3"),
        (lambda: fnn.attention_init(KEY, DIM, 4, kv_heads=0), "attention_init: kv_heads is 0, expected at least 1"),
        (lambda: fnn.attention_init(KEY, DIM, 2, kv_heads=4), "heads is 2, expected a multiple of kv_heads, 4"),
        (lambda: fnn.attention(with_heads(key=2), X), "attention: params have 4 heads of queries, 2 of keys and 4 of values"),
        (lambda: fnn.attention(with_heads(key=3, value=3), X), "params have 4 heads of queries, 3 of keys and 3 of values"),
        (lambda: fnn.attention(with_heads(key=8, value=8), X), "params have 4 heads of queries, 8 of keys"),
        (lambda: fnn.attention(with_heads(key=0, value=0), X), "params have 4 heads of queries, 0 of keys"),
        (lambda: fnn.attention(with_heads() | {"key": {"w": jnp.ones((DIM, 4, 1))}}, X), rf"heads of {HEAD_DIM} features for queries and 1 for keys"),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
