"""Paths of parameters under optimizers. Many optimizers share one program, which compiles faster."""

import chex
import jax
import jax.numpy as jnp
import pytest

import fnn

runs_optax = pytest.mark.usefixtures("standard_promotion")
GRADS = {"layer": {"w": jnp.array([[0.5, -2.0], [1e-6, 0.0]]), "b": jnp.array([3.0, -1e-3])}}
PARAMS = {"layer": {"w": jnp.array([[1.0, 2.0], [-3.0, 0.5]]), "b": jnp.array([0.1, -0.1])}}
SLOWING = {"constant": 0.0, "changing": 0.1}  # the rate is 0.01 / (1 + slowing * step)


def times(*factors, grads=GRADS):
    """The gradients of several steps: leaves [steps, ...]."""
    return jax.tree.map(lambda g: jnp.stack([factor * g for factor in factors]), grads)


def path(optimizer, params, grads):
    """Every point of the path: leaves [steps, ...]. To be called within jit."""

    def step(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        params = fnn.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]


def follow_each(optimizers, params, grads):
    """{name: optimizer} -> {name: path}."""

    @jax.jit
    def paths(params, grads):
        return {name: path(o, params, grads) for name, o in optimizers.items()}

    return paths(params, grads)


def follow(optimizer, params, grads):
    return follow_each({"only": optimizer}, params, grads)["only"]


def follow_both(makes, params, grads):
    """{name: make(rate)} -> {name: path at the constant and the changing rate, [2, steps, ...]}."""

    @jax.jit
    @jax.vmap
    def paths(slowing):
        def rate(step):
            return 0.01 / (1 + slowing * step.astype(float))

        return {name: path(make(rate), params, grads) for name, make in makes.items()}

    return paths(jnp.array(list(SLOWING.values())))


def assert_same_path(ours, theirs):
    """In float32, where Optax's Adam is off by up to 2e-5 of a step, and the steps are 0.1."""
    chex.assert_trees_all_close(ours, theirs, rtol=2e-5, atol=3e-6)
