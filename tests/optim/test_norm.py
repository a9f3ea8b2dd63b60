"""The norm of all leaves: right at every magnitude, in one pass where that is enough."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

NORMS = {
    "eager": fnn.params.global_norm,
    "jit": jax.jit(fnn.params.global_norm),
    "vmap": jax.jit(
        lambda tree: jax.vmap(fnn.params.global_norm)(jax.tree.map(lambda x: x[None], tree))[0]
    ),
}


@pytest.mark.parametrize("how", NORMS)
@pytest.mark.parametrize(
    "sizes", [(1,), (2, 3), (9000, 1)]
)  # one number, joined leaves, a large one
def test_the_norm_is_right_at_every_magnitude(how, sizes):
    # XLA may turn the square of c x into c^2 x^2, and sqrt(x^2) into |x|: with one number it does.
    for size in (2e-38, 1e-30, 1e-22, 1e-19, 1.0, 1e18, 1e20, 3e36):
        tree = [jnp.full(n, size * (i + 1), jnp.float32) for i, n in enumerate(sizes)]
        each = np.concatenate([np.asarray(leaf, np.float64) for leaf in tree])
        np.testing.assert_allclose(NORMS[how](tree), np.linalg.norm(each), rtol=1e-5)


def test_constants_are_not_squared_before_they_are_scaled():
    # XLA knows these numbers when it compiles: 5e19 squared is inf, and inf times a scale of 0 NaN.
    constant = jax.jit(
        lambda x: fnn.params.global_norm({"a": 0 * x, "b": jnp.full(2, 5e19) + 0 * x})
    )
    np.testing.assert_allclose(constant(jnp.zeros(2)), 5e19 * np.sqrt(2), rtol=1e-6)
    known = jax.jit(lambda: fnn.params.global_norm(jnp.full(2, 5e19)))
    np.testing.assert_allclose(known(), 5e19 * np.sqrt(2), rtol=1e-6)


def test_what_is_not_finite_comes_through():
    both = jax.vmap(fnn.params.global_norm)(
        jnp.array([[1.0, jnp.nan], [jnp.inf, 1.0], [0.0, 0.0], [3.0, 4.0]])
    )
    np.testing.assert_array_equal(both, [np.nan, np.inf, 0.0, 5.0])
    assert fnn.params.global_norm({"none": jnp.zeros((0, 3))}) == 0


def test_members_side_by_side_still_have_a_branch():
    # Chosen element by element, the second pass would be made for all members, always.
    batch = jnp.ones((3, 2, 5))
    nested = jax.jit(jax.vmap(jax.vmap(fnn.params.global_norm)))
    assert nested.lower(batch).compile().as_text().count(" conditional(") == 1
    np.testing.assert_allclose(
        nested(batch.at[1, 1].set(1e25))[1], np.sqrt(5) * np.array([1, 1e25]), rtol=1e-6
    )


def test_derivatives_go_through_the_branch():
    x = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(jax.grad(fnn.params.global_norm)(x), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(fnn.params.global_norm)(x * 1e25), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(fnn.params.global_norm)(0 * x), 0)
    hessian = (np.eye(2) - np.outer([0.6, 0.8], [0.6, 0.8])) / 5
    np.testing.assert_allclose(
        jax.hessian(fnn.params.global_norm)(x), hessian, rtol=1e-5, atol=1e-7
    )
