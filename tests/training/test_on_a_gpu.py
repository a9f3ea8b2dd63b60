"""What only a GPU's program has, run on a CPU: the same numbers, and the same names of what is bad."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fnn
from tests.nets import KEY, LABELS, X, linear_init, linear_loss_fn


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if a program were lowered for CUDA."""

    def for_cuda(*args, default=lambda *args: None, cuda=None, **others):
        branch = cuda or default
        return branch(*args)

    monkeypatch.setattr(lax, "platform_dependent", for_cuda)


@functools.cache
def run_of(clip_norm, device):
    """A run as a function of its rows, compiled once as for each device."""
    step = fnn.make_train_step(
        linear_loss_fn, fnn.adam(0.1), clip_norm=clip_norm, update_ratio=True
    )
    options = {"epochs": 2, "batch_size": 16}
    return jax.jit(lambda x: fnn.fit(step, step.init(linear_init()), (x, LABELS), KEY, **options))


ODD_RUNS = {
    "nothing": (X, None),
    "an input": (X.at[42, 0].set(jnp.nan), None),
    "the loss": (X.at[42, 0].set(1e38), None),
    "a square": (X.at[42, 0].set(1e25), None),
    "a square that clipping mends": (X.at[42, 0].set(1e25), 1.0),
}


@pytest.mark.parametrize("odd", ODD_RUNS)
def test_a_run_is_that_of_a_cpu(odd, request):
    x, clip_norm = ODD_RUNS[odd]
    ts, history = run_of(clip_norm, "cpu")(x)
    request.getfixturevalue("on_a_gpu")
    there, theirs = run_of(clip_norm, "gpu")(x)
    np.testing.assert_array_equal(theirs["nonfinite"], history["nonfinite"])
    chex.assert_trees_all_close(there.params, ts.params, rtol=1e-5, atol=1e-6)
    assert there.first_bad == ts.first_bad
    for name in ("grad_norm", "update_ratio"):
        np.testing.assert_allclose(theirs[name], history[name], rtol=1e-5)


def test_what_is_bad_is_named(on_a_gpu):
    step = fnn.make_train_step(
        lambda p, batch, key: p["a"] * batch + p["b"] + p["c"], fnn.adam(1.0)
    )

    @jax.jit
    def code(params, batch):
        return step(step.init(params), batch, KEY)[1]["nonfinite"]

    params = {name: jnp.ones(()) for name in "abc"}
    names = fnn.training.names_of_bad(params, jnp.ones(2))
    said = {
        "the parameter b": code(params | {"b": jnp.inf * jnp.ones(())}, jnp.ones(2)),
        "the square of the gradient of a": code(params, jnp.array([1e25, 1.0])),
        "the input": code(params, jnp.array([jnp.nan, 1.0])),
    }
    assert {name: names[int(found)] for name, found in said.items()} == {n: n for n in said}


@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1.0, 1e25, 1e37])
def test_a_norm_in_one_pass(on_a_gpu, scale):
    rng = np.random.default_rng(0)
    tree = {"w": rng.normal(size=(3, 200)) * scale, "b": np.zeros(0)}
    tree = jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
    exact = np.sqrt(np.sum(tree["w"].astype(np.float64) ** 2))
    np.testing.assert_allclose(jax.jit(fnn.params.global_norm)(tree), exact, rtol=1e-6)
    at_0 = jax.jit(jax.grad(fnn.params.global_norm))({"w": jnp.zeros(2)})
    np.testing.assert_array_equal(at_0["w"], 0)


def test_many_leaves_are_several_reductions(on_a_gpu):
    params = {f"{i:02}": jnp.full(i + 1, float(i)) for i in range(60)}

    def loss_fn(params, batch, key):
        return sum(jnp.sum(leaf**2) for leaf in params.values()) * batch

    step = fnn.make_train_step(loss_fn, fnn.sgd(0.0))

    @jax.jit
    def metrics(params):
        return step(step.init(params), jnp.ones(1), KEY)[1]

    exact = np.sqrt(sum(np.sum(np.square(2.0 * np.asarray(leaf))) for leaf in params.values()))
    np.testing.assert_allclose(metrics(params)["grad_norm"], exact, rtol=1e-6)
    odd = metrics(params | {"57": params["57"].at[3].set(jnp.nan)})["nonfinite"]
    assert fnn.training.names_of_bad(params, jnp.ones(1))[int(odd)] == "the parameter 57"


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_norm_of_what_is_not_finite(on_a_gpu, odd):
    found = jax.jit(fnn.params.global_norm)(jnp.array([1.0, odd]))
    np.testing.assert_array_equal(found, abs(odd))


def test_hypergradients_go_through_clipping(on_a_gpu):
    step = fnn.make_train_step(lambda p, batch, key: p**2 * batch, fnn.sgd(0.1), clip_norm=1.0)

    def after(p):
        ts, _ = fnn.fit(step, step.init(p), jnp.ones(4), KEY, epochs=2, batch_size=2)
        return ts.params**2

    # Each of four steps is clipped to 0.1, wherever it starts: (p - 0.4)^2.
    p, direction = jnp.array(2.0), jnp.ones(())
    np.testing.assert_allclose(jax.jvp(after, (p,), (direction,))[1], 3.2, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(after)(p), 3.2, rtol=1e-5)
