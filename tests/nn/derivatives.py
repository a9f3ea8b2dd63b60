"""Derivatives against finite differences, many in one program: compiling is what takes the time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

STEP = 1e-6


def check_derivatives(f, *at, order=1, modes=("forward", "reverse"), tolerance=1e-5):
    """Derivatives of f at float64 arrays are the finite differences."""
    with jax.enable_x64(True):
        pairs = jax.jit(partial(derivatives_and_differences, f, order=order, modes=modes))(*at)
    check_pairs(pairs, tolerance)


def check_pairs(pairs, tolerance=1e-5):
    for name, (ours, differences) in pairs.items():
        ours, differences = jax.tree.leaves(ours), jax.tree.leaves(differences)
        for a, b in zip(ours, differences, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def derivatives_and_differences(f, *at, order=1, modes=("forward", "reverse")):
    """{name: (derivative, finite difference)} along a random way, to be traced in float64."""
    rng = np.random.default_rng(0)

    def normal_like(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)

    def moved(step):
        return f(*jax.tree.map(lambda a, w: a + step * w, at, way))

    def forward(*at):
        return jax.jvp(f, at, way)[1]

    def reverse(*at):
        return jax.vjp(f, *at)[1](probe)

    way, probe = normal_like(at), normal_like(jax.eval_shape(f, *at))
    ends = jax.lax.map(moved, jnp.array([-STEP / 2, STEP / 2]))
    differences = jax.tree.map(lambda y: (y[1] - y[0]) / STEP, ends)
    pairs = {}
    if "forward" in modes:
        pairs["forward"] = forward(*at), differences
    if "reverse" in modes:
        pairs["reverse"] = _inner(reverse(*at), way), _inner(probe, differences)
    if order > 1:
        for first in (forward, reverse):
            second = derivatives_and_differences(first, *at, order=order - 1, modes=modes)
            pairs |= {f"{name} of {first.__name__}": pair for name, pair in second.items()}
    return pairs


def _inner(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum((jnp.vdot(x, y) for x, y in leaves), start=jnp.zeros(()))
