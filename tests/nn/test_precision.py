"""The products of layers and optimizers as docs/how-to states them: precision and dtypes.

Programs are lowered for CPU, CUDA and TPU in one text, without any of these devices. A product is
(precision, dtypes of both operands, dtype of the result), as StableHLO has it.
"""

import re
from collections import Counter
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.nets import KEY, LABELS, X, init, linear_init, linear_loss_fn, loss_fn
from tests.table_of_layers import LAYERS, Layer, over_time

PLATFORMS = ("cpu", "cuda", "tpu")
DTYPES = {jnp.float32: "f32", jnp.bfloat16: "bf16", jnp.float16: "f16"}
WITH_PRODUCTS = {
    "dense",
    "dense on a sequence",
    "mlp",
    "conv",
    "conv in groups",
    "conv_transpose",
    "lstm",
    "gru",
    "attention",
    "grouped-query attention",
    "dense with weight norm",
}
ROWS = [row for row in LAYERS if row.name in WITH_PRODUCTS] + [
    Layer("rnn", lambda k, **o: fnn.nn.rnn_init(k, 4, 3, **o), over_time(fnn.nn.rnn), (5, 4), (5, 3)),
]  # fmt: skip
PRODUCT = re.compile(
    r"stablehlo\.(?:dot_general|convolution).*?precision\w* = \[(.*?)\].*"
    r": \(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\) -> tensor<(?:\d+x)*(\w+)>"
)


def products(function, *args, platforms=PLATFORMS):
    """{(precision, dtype, dtype, dtype): how many} of the function, lowered for the platforms."""
    text = jax.jit(function).trace(*args).lower(lowering_platforms=platforms).as_text()
    found = Counter()
    for line in text.splitlines():
        if re.search(r"stablehlo\.(dot|convolution)", line):
            precisions, *dtypes = PRODUCT.search(line).groups()
            (precision,) = set(re.findall(r"[A-Z]+\w*", precisions))  # the same of both operands
            found[(precision, *dtypes)] += 1
    return found


def with_gradients(layer, dtype):
    """The layer with its gradients by parameters and input, and shapes to trace it for."""

    def both(params, x):
        y, pullback = jax.vjp(layer.apply, params, x)
        return y, pullback(y)

    params = jax.eval_shape(partial(layer.init, KEY, dtype=dtype))
    return both, params, jax.ShapeDtypeStruct((3, *layer.in_shape), dtype)


@pytest.mark.parametrize("layer", ROWS, ids=lambda row: row.name)
def test_the_products_of_a_layer_are_of_its_dtype(layer):
    for dtype, name in DTYPES.items():
        found = products(*with_gradients(layer, dtype))
        if layer.name.endswith("attention") and dtype != jnp.float32:
            scores_and_gradients = found.pop(("DEFAULT", "f32", "f32", "f32"))
            assert scores_and_gradients == 3 * len(PLATFORMS)
        assert found.keys() == {("DEFAULT", name, name, name)}


@pytest.mark.parametrize("layer", ROWS, ids=lambda row: row.name)
def test_a_layer_has_the_precision_that_the_user_sets(layer):
    with jax.default_matmul_precision("highest"):
        found = products(*with_gradients(layer, jnp.float32))
    assert found.keys() == {("HIGHEST", "f32", "f32", "f32")}


def test_no_other_layer_has_products():
    for layer in LAYERS:
        if not layer.name.startswith((*WITH_PRODUCTS, "mlp", "dense")):
            assert not products(*with_gradients(layer, jnp.bfloat16), platforms=("cuda",))


MATRICES = {"soap": "HIGHEST", "muon": "DEFAULT"}


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
def test_products_of_optimizers_are_float32(dtype):
    params = {"w": jax.ShapeDtypeStruct((4, 3), dtype), "b": jax.ShapeDtypeStruct((3,), dtype)}
    optimizers = {"soap": fnn.optim.soap(0.1), "muon": fnn.muon(0.1, others=fnn.adamw(0.1))}
    for name, optimizer in optimizers.items():
        state = jax.eval_shape(optimizer.init, params)
        found = products(optimizer.update, params, state, params)
        assert found.keys() == {(MATRICES[name], "f32", "f32", "f32")}, name


def test_the_other_optimizers_have_no_products():
    names = ("sgd", "momentum", "adam", "lion", "adafactor", "ademamix", "prodigy")
    params = {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)}

    def update_by_all(grads):
        made = [getattr(fnn.optim, name)(0.1) for name in names]
        return [o.update(grads, o.init(params), params)[0] for o in made]

    assert not products(update_by_all, params)


def test_muon_needs_no_precise_products():
    """Even if each of its operations is rounded to bfloat16: a TPU rounds only what is multiplied."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(48, 64)), jnp.bfloat16)
    o = np.asarray(jax.jit(fnn.optim.orthogonalize)(x), np.float64)
    values = np.linalg.svd(o, compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.2


# --- a population in bfloat16 -------------------------------------------------------------------


def population_run(
    key, learning_rate, *, stored=jnp.float32, optimizer=fnn.adam, computed="bfloat16"
):
    step = fnn.make_train_step(linear_loss_fn, optimizer(learning_rate), compute_dtype=computed)
    ts = step.init(linear_init(key, dtype=stored))
    return fnn.fit(step, ts, (X, LABELS), key, epochs=4, batch_size=16)


def kept(learning_rate):
    return fnn.keep_precision(fnn.adam(learning_rate), "master")


KEYS, RATES = jax.random.split(KEY, 2), jnp.array([0.01, 0.03])


@pytest.mark.parametrize(
    ("stored", "optimizer", "number"),
    [(jnp.float32, fnn.adam, 4), (jnp.bfloat16, fnn.adam, 4), (jnp.bfloat16, kept, 6)],
)
def test_moments_and_masters_of_a_population_are_float32(stored, optimizer, number):
    run = partial(population_run, stored=stored, optimizer=optimizer)
    ts, _ = jax.eval_shape(jax.vmap(run), KEYS, RATES)
    chex.assert_type(jax.tree.leaves(ts.params), stored)
    arrays = [leaf for leaf in jax.tree.leaves(ts.opt_state) if leaf.ndim > 1]  # [members, ...]
    assert len(arrays) == number  # mu and nu of two leaves, and their masters
    chex.assert_type(arrays, jnp.float32)


@pytest.mark.slow
def test_a_sweep_in_bfloat16_is_its_solo_runs_and_follows_float32():
    ts, history = fnn.sweep(population_run, KEYS, paired={"learning_rate": RATES})
    chex.assert_type(jax.tree.leaves(ts.params), jnp.float32)
    runs = [partial(population_run, computed=computed) for computed in ("bfloat16", None)]
    solo, (_, exact) = jax.jit(lambda *at: [run(*at) for run in runs])(KEYS[1], RATES[1])
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[1], (ts, history)), solo)
    losses = history["loss"][1]
    assert (losses != exact["loss"]).any()
    np.testing.assert_allclose(losses, exact["loss"], rtol=0.02)


def test_a_step_in_bfloat16_multiplies_nothing_else():
    step = fnn.make_train_step(loss_fn, fnn.adam(0.1), compute_dtype="bfloat16", clip_norm=1.0)
    found = products(step, step.init(init()), (X, LABELS), KEY)
    assert found.keys() == {("DEFAULT", "bf16", "bf16", "bf16")}
