"""Before any backend starts: eight CPU devices, and nothing promoted that was not asked for."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def standard_promotion():
    """For tests that run Optax's code, some of which adds an int32 to a float."""
    with jax.numpy_dtype_promotion("standard"):
        yield
