"""Numbers by NumPy: XLA takes longer to compile one random draw of JAX's than a whole layer."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape, seed=0, dtype=jnp.float32):
    """[*shape], normal."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def params_of(init, *sizes, seed=0, dtype=jnp.float32, **options):
    """A tree with the shapes of init(key, *sizes, **options): w by its fan-in, the rest normal."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init(key, *sizes, **options), jax.random.key(0))

    def draw(leaf):
        w = rng.normal(size=leaf.shape)
        if len(leaf.shape) > 1:
            w /= math.sqrt(max(math.prod(leaf.shape[:-1]), 1))
        return jnp.asarray(w, dtype)

    return jax.tree.map(draw, shapes)
