import io

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import fnn
from fnn.nn.params import count, decayed, elastic_net, global_norm, l1, l2, paths

PARAMS = {
    "norm": {"scale": jnp.full(3, 2.0), "offset": jnp.zeros(3)},
    "hidden": {"w": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.array([7.0, 7.0])},
}


def test_paths_and_count():
    assert list(paths(PARAMS)) == ["hidden/b", "hidden/w", "norm/offset", "norm/scale"]
    assert paths(PARAMS)["hidden/w"] is PARAMS["hidden"]["w"]
    assert list(paths([jnp.ones(1), (jnp.ones(1),)])) == ["0", "1/0"]
    assert paths({}) == {}
    assert list(map(count, (PARAMS, {}, jnp.ones(()), {"w": jnp.ones((0, 3))}))) == [12, 0, 1, 0]


def test_penalties_are_of_weights_alone():
    assert l1(PARAMS) == 6.5
    assert l2(PARAMS) == 14.25
    assert l1({}) == l2({}) == l1({"b": jnp.ones(3)}) == 0
    grads = jax.grad(l2)(PARAMS)
    chex.assert_trees_all_equal(
        grads["hidden"], {"w": 2 * PARAMS["hidden"]["w"], "b": jnp.zeros(2)}
    )
    assert l2({"w": jnp.full(4, 300, jnp.float16)}) == 360000  # beyond float16
    complex_w = {"w": jnp.asarray([3 + 4j, 0], jnp.complex64)}
    assert (l1(complex_w), l2(complex_w)) == (5, 25)
    assert l1(complex_w).dtype == l2(complex_w).dtype == jnp.float32
    with jax.enable_x64(True):
        assert l2({"w": jnp.ones(2, jnp.float64)}).dtype == jnp.float64


@pytest.mark.parametrize(
    ("patterns", "size", "square"),
    [
        ((), 6.5, 14.25),
        (("hidden/w",), 6.5, 14.25),
        (("**/b",), 14, 98),
        (("hidden/*",), 20.5, 112.25),
        (("norm/scale", "**/b", "hidden/b"), 20, 110),  # a leaf counts once
        (("norm/offset",), 0, 0),
    ],
)
def test_penalties_of_patterns(patterns, size, square):
    assert l1(PARAMS, *patterns) == size
    assert l2(PARAMS, *patterns) == square
    both = jax.jit(lambda a, b: elastic_net(PARAMS, *patterns, l1=a, l2=b))(0.5, 0.25)
    assert both == 0.5 * size + 0.25 * square


def test_the_penalties_slopes():
    grads = jax.jit(jax.grad(lambda p: elastic_net(p, "**/w", "norm/offset", l1=0.5, l2=0.25)))(
        PARAMS
    )
    expected = jax.tree.map(jnp.zeros_like, PARAMS)  # at 0 too: what is 0 is not pushed away
    expected["hidden"]["w"] = 0.5 * jnp.sign(PARAMS["hidden"]["w"]) + 0.5 * PARAMS["hidden"]["w"]
    chex.assert_trees_all_close(grads, expected, rtol=1e-6)


def test_a_penalty_of_nothing_is_an_error():
    for penalty in (l1, l2):
        name = penalty.__name__
        with pytest.raises(
            ValueError, match=rf"{name}: pattern 'head/[*]' matches no parameter of"
        ):
            penalty(PARAMS, "**/w", "head/*")
    with pytest.raises(ValueError, match="elastic_net: pattern 'w' matches no parameter of"):
        elastic_net(PARAMS, "w", l1=0.1, l2=0.1)
    assert elastic_net({}, l1=0.1, l2=0.1) == 0


def test_penalties_of_mixed_types():
    mixed = {"a": {"w": jnp.ones(2, jnp.bfloat16)}, "b": {"w": jnp.ones(3)}}
    assert l1(mixed) == 5
    with jax.enable_x64(True):
        assert l2({"a": {"w": jnp.ones(2, jnp.float32)}}).dtype == jnp.float32
        rates = jnp.asarray(0.5, jnp.float32), jnp.asarray(1.0, jnp.float32)
        both = {"a": {"w": jnp.ones(2, jnp.float32)}, "b": {"w": jnp.ones(2, jnp.float64)}}
        assert elastic_net(both, l1=rates[0], l2=rates[1]) == 6


def test_decayed():
    expected = {"norm": {"scale": False, "offset": False}, "hidden": {"w": True, "b": False}}
    assert decayed(PARAMS) == expected
    vector, matrix = jnp.ones(1), jnp.ones((1, 1))
    named = {"kernel": matrix, "bias": matrix, "weight": vector, "w": vector}
    assert decayed([(matrix, vector), named]) == [
        (True, False),
        {"kernel": True, "bias": False, "weight": False, "w": True},
    ]
    assert decayed(vector)  # a tree that is one array, as under optax.flatten


@pytest.mark.parametrize(
    ("tree", "norm"),
    [
        ({}, 0.0),
        ({"a": jnp.zeros(3)}, 0.0),
        ({"a": jnp.zeros((0,))}, 0.0),
        ({"a": jnp.array([3.0]), "b": jnp.array(4.0)}, 5.0),
        ([jnp.full(4, 1e20)], 2e20),
        ([jnp.full(4, 1e-25)], 2e-25),
        ([jnp.full(4, 1.5e38)], 3e38),
        ([jnp.full(4, 300, jnp.float16)], 600.0),
        ([jnp.full(4, 3, jnp.bfloat16), jnp.full(4, 4, jnp.float32)], 10.0),
        ([jnp.array([1.0, jnp.inf])], np.inf),
        ([jnp.array([jnp.nan, jnp.inf])], np.nan),
        ([jnp.array([1.0, jnp.nan])], np.nan),
    ],
)  # fmt: skip
def test_global_norm(tree, norm):
    ours = jax.jit(global_norm)(tree)
    np.testing.assert_allclose(ours, norm, rtol=1e-6)
    assert ours.dtype == jnp.float32
    assert ours.shape == ()
    assert not ours.weak_type


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), max_size=4), max_size=3))
def test_global_norm_is_numpys(values):
    tree = [jnp.asarray(leaf, jnp.float32) for leaf in values]
    exact = np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in values))
    np.testing.assert_allclose(global_norm(tree), exact, rtol=1e-6, atol=1e-37)


def test_global_norm_has_derivatives():
    assert (jax.grad(global_norm)(jnp.zeros(3)) == 0).all()
    np.testing.assert_allclose(jax.grad(global_norm)(jnp.array([3.0, 4.0])), [0.6, 0.8], rtol=1e-6)
    with jax.enable_x64(True):
        jax.test_util.check_grads(
            jax.jit(global_norm), ({"a": jnp.array([3.0, 4.0]), "b": jnp.ones(2)},), order=2
        )
        assert global_norm([jnp.ones(3), jnp.ones(1, jnp.float32)]).dtype == jnp.float64


def test_global_norm_is_optaxs():
    chex.assert_trees_all_close(global_norm(PARAMS), optax.tree.norm(PARAMS), rtol=1e-6)
    assert fnn.params.global_norm is global_norm


def test_summary():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(fnn.summary(PARAMS, groups=["norm/*", "**/b"]))
    rows = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]]
        for line in console.export_text().splitlines()
        if "│" in line
    }
    assert rows == {
        "hidden/b": ["[2]", "float32", "2", "no", "**/b"],
        "hidden/w": ["[2, 2]", "float32", "4", "yes", "none"],
        "norm/offset": ["[3]", "float32", "3", "no", "norm/*"],
        "norm/scale": ["[3]", "float32", "3", "no", "norm/*"],
    }
    everything = fnn.summary(PARAMS, mask=True)
    assert list(everything.columns[4].cells) == ["yes"] * 4
