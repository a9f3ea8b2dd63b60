"""The CPU as several devices."""

import os

import jax

from fnn._base import as_count


def use_all_cores(most: int | None = None) -> None:
    """One CPU device for each core, at most `most`: a `sweep` then uses them all.

    Call it before JAX starts, that is before the first array or key is made; later JAX raises
    RuntimeError. A number of devices that the user has set in the environment stays.
    """
    most = None if most is None else as_count("use_all_cores", "most", most)
    given = os.environ.get("JAX_NUM_CPU_DEVICES"), os.environ.get("XLA_FLAGS", "")
    if given[0] is None and "xla_force_host_platform_device_count" not in given[1]:
        cores = _cores()
        jax.config.update("jax_num_cpu_devices", cores if most is None else min(most, cores))


def _cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
