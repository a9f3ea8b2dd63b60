"""Before any backend starts: eight CPU devices, and nothing promoted that was not asked for."""

import atexit
import os
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")

if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    # Tests trace the same small programs anew; each worker compiles one once. A directory of its
    # own, because entries are not written atomically and another worker could read half of one.
    programs = tempfile.TemporaryDirectory(prefix="fnn-tests-")
    atexit.register(programs.cleanup)
    jax.config.update("jax_compilation_cache_dir", programs.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def standard_promotion():
    """For tests that run Optax's code, some of which adds an int32 to a float."""
    with jax.numpy_dtype_promotion("standard"):
        yield
