import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

X = jnp.ones((20, 3))


def test_metrics_of_any_shape_and_type():
    labels = jnp.arange(7) % 3

    def metrics(batch):
        return {
            "one_hot": jax.nn.one_hot(batch, 3),
            "is_0": batch == 0,
            "half": batch.astype(jnp.bfloat16),
        }

    sizes = (1, 3, 7, 100)
    for means in jax.jit(lambda data: [fnn.evaluate(metrics, data, n) for n in sizes])(labels):
        np.testing.assert_allclose(means["one_hot"], np.array([3, 2, 2]) / 7, rtol=1e-6)
        np.testing.assert_allclose(means["is_0"], 3 / 7, rtol=1e-6)
        np.testing.assert_allclose(means["half"], 6 / 7, rtol=1e-6)
        assert {m.dtype for m in means.values()} == {jnp.dtype("float32")}


def test_sums_are_counted_in_integers():
    def metrics(batch):
        return {"count": batch > 0, "small": batch.astype(jnp.int8), "float": batch + 0.5}

    sums = fnn.evaluate(metrics, jnp.ones(300), 7, reduce="sum")
    assert (int(sums["count"]), int(sums["small"]), float(sums["float"])) == (300, 300, 450)
    assert (sums["count"].dtype, sums["small"].dtype) == (jnp.int32, jnp.int32)


def test_predictions_of_all_rows_in_their_order():
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)

    def apply(batch):
        return {"twice": 2 * batch, "sum": batch.sum(-1), "bool": batch[:, 0] > 0}

    expected = apply(x)
    for found in jax.jit(lambda x: [fnn.predict(apply, x, n) for n in (1, 3, 7, 100)])(x):
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-6)
        assert found["bool"].dtype == bool
    pair = fnn.predict(lambda batch: batch[0] @ batch[1].T, (x, x), np.int64(7))
    np.testing.assert_allclose(pair, x @ x.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fnn.evaluate(lambda batch: batch.mean(), X, 16), r"evaluate: metric_fn returned shape \(\), expected one value per row, \[16, ...\]"),
        (lambda: fnn.evaluate(lambda batch: batch, X[:0], 16), "evaluate: data have no rows"),
        (lambda: fnn.predict(lambda batch: {"a": batch.mean(0)}, X, 8), r"predict: apply_fn returned shape \(3,\) a, expected one entry per row, \[8, ...\]"),
        (lambda: fnn.predict(lambda batch: batch, X, 0), "predict: batch_size is 0, expected at least 1"),
        (lambda: fnn.evaluate(lambda batch: batch, X, 0), "evaluate: batch_size is 0"),
        (lambda: fnn.evaluate(lambda batch: batch, X, 4, reduce="max"), "evaluate: reduce is 'max', expected 'mean' or 'sum'"),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
