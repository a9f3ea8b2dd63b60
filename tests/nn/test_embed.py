import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

DTYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_ids_of_every_dtype(dtype):
    """256 rows do not fit in a uint8, 65,536 not in a uint16; 2^32 + 5 is not 5."""
    w = np.arange(70_000, dtype=np.float32)[:, None]
    info = np.iinfo(dtype)
    ids = np.array([0, 5, info.max, info.min, min(info.max, 2**32 + 5)], dtype)
    for vocab in (256, 65_536, 70_000):
        expected = [float(i) if 0 <= i < vocab else np.nan for i in ids.tolist()]
        got = fnn.embed({"w": w[:vocab]}, ids)[:, 0]
        np.testing.assert_array_equal(got, expected)
        if info.bits < 64:  # jit itself cuts 64 bits, before fnn sees them
            inside = jax.jit(lambda ids, v=vocab: fnn.embed({"w": w[:v]}, ids))(ids)
            np.testing.assert_array_equal(inside[:, 0], expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_repeated_ids_are_summed_in_float32(dtype):
    """In bfloat16 a sum of ones stops at 256."""
    ids = jnp.asarray(np.repeat([1, 3, 7], [3000, 1, 40]), jnp.uint8)
    t = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, (ids.size, 2)), dtype)
    expected = np.zeros((8, 2))
    np.add.at(expected, np.asarray(ids), np.asarray(t, np.float64))

    def loss(w, ids, t):
        return jnp.sum(fnn.embed({"w": w}, ids) * t, dtype=jnp.float32)

    def half(w, ids, t):  # as `compute_dtype` does
        return loss(w.astype(dtype), ids, t)

    w = jnp.zeros((8, 2))
    grads = jax.jit(jax.grad(loss))(w.astype(dtype), ids, t)
    assert grads.dtype == dtype
    both = jax.jit(jax.vmap(jax.grad(half), (0, None, None)))(jnp.stack([w, w]), ids, t)
    for grad in (grads, both[0], both[1]):
        np.testing.assert_allclose(np.asarray(grad, np.float64), expected, rtol=5e-3)
    forward = jax.jvp(lambda w: fnn.embed({"w": w}, ids), (w.astype(dtype),), (grads,))[1]
    np.testing.assert_array_equal(forward, grads[ids])


def test_errors():
    params = fnn.embed_init(jax.random.key(0), np.int64(5), np.uint8(3))
    assert params["w"].shape == (5, 3)
    with pytest.raises(TypeError, match=r"embed_init: vocab is 5\.0, expected a whole number"):
        fnn.embed_init(jax.random.key(0), 5.0, 3)
    with pytest.raises(TypeError, match="embed: ids came as a list, expected an array"):
        fnn.embed(params, [0, 1])
