"""PyTorch's layers, as `tests/golden/make_layers.py` has written them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden" / "layers.npz"


def golden(name):
    """{array: values} of one case: x, y, the parameters, and "dx", the gradient by x, and so on."""
    with np.load(GOLDEN) as file:
        return {k.removeprefix(f"{name}/"): file[k] for k in file if k.startswith(f"{name}/")}


def check_golden(apply, case, names):
    """Value and gradients of sum(y cos(0, 1, ...)) are PyTorch's."""

    @jax.jit
    def value_and_grads(inputs):
        def loss(inputs):
            y = apply(inputs)
            c = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
            return (y * c).sum(), y

        return jax.grad(loss, has_aux=True)(inputs)

    with jax.enable_x64(True):
        inputs = {name: jnp.asarray(case[name], float) for name in names}
        grads, y = value_and_grads(inputs)
    np.testing.assert_allclose(y, case["y"], rtol=1e-6, atol=1e-6)
    for name in names:
        np.testing.assert_allclose(grads[name], case[f"d{name}"], rtol=1e-6, atol=1e-6)
