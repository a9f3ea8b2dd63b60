"""Before any backend starts: eight CPU devices, and nothing promoted that was not asked for."""

import atexit
import ctypes
import gc
import os
import signal
import sys
import tempfile
from pathlib import Path

import jax
import pytest

# A shell that starts the tests in the background has Ctrl-C ignored; the tests send it themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

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
gc.set_threshold(100_000)  # tracing makes many small objects, few of them in circles


@pytest.fixture
def standard_promotion():
    """For tests that run Optax's code, some of which adds an int32 to a float."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True)
def no_sigterm_came(monkeypatch):
    """A SIGTERM that a test sends ends neither the loops of later tests nor the process."""
    monkeypatch.setattr("fnn._base._terminal._terminated", False)


@pytest.fixture(scope="module")
def compiled_quickly():
    """For modules that compare no bits: XLA optimises less, which saves a quarter of their time.
    Their programs are dropped, so that no test that follows runs one of them.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


MEGABYTES = 1200  # of memory, beyond which what JAX has compiled is dropped: it is on the disk


@pytest.fixture(autouse=True)
def small_workers():
    """JAX keeps every program of a process; two workers would grow to 5 GB each."""
    yield
    if sys.platform == "linux" and _resident_megabytes() > MEGABYTES:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # back to the system, what is free


def _resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
