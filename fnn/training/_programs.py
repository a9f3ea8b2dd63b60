"""Compiled programs: their memory is checked before they run."""

import inspect
import os
import time
import warnings
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax

from fnn._base import NEEDS_VALUES, path_of


class Program(NamedTuple):
    """A compiled function, and the cost of compiling and running it."""

    call: Callable[..., Any]
    traces: int  # 0 if it was compiled by an earlier call, else 1
    compile_seconds: float  # 0.0 then
    peak_bytes: int  # 0 if the backend does not tell


class Compiler:
    """Compiles a function, its first argument donated, for whatever arguments come.

    `jax.jit` keeps what it has compiled: for these shapes, devices and switches of JAX's.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        self.jitted = jax.jit(function, donate_argnums=0)
        self.known: list[Any] = []
        self.shapes: list[dict[str, str]] = []

    def __call__(self, *args: Any) -> Program:
        """The program for arguments like these.

        UserWarning if it is another one than before because shapes differ, MemoryError if it needs
        more memory than the device has.
        """
        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
            return Program(self.function, 0, 0.0, 0)
        started = time.perf_counter()
        call = self.jitted.lower(*args).compile()
        seconds = time.perf_counter() - started
        executable = call.runtime_executable()
        if any(executable is other for other in self.known):
            return Program(call, 0, 0.0, peak_bytes(call))
        devices = jax.tree.leaves(call.input_shardings)[0].addressable_devices
        check_memory(f"{self.name}: the program", peak_bytes(call), devices)
        shapes = self._shapes(args)
        if self.shapes and shapes not in self.shapes:
            _warn_of_another(self.name, self.shapes[-1], shapes)
        self.known.append(executable)
        self.shapes.append(shapes)
        return Program(call, 1, seconds, peak_bytes(call))

    def _shapes(self, args: tuple[Any, ...]) -> dict[str, str]:
        named = dict(zip(inspect.signature(self.function).parameters, args, strict=True))
        leaves = jax.tree_util.tree_leaves_with_path(named)
        return {path_of(keys): f"{leaf.dtype}{list(leaf.shape)}" for keys, leaf in leaves}


def _warn_of_another(name: str, last: dict[str, str], shapes: dict[str, str]) -> None:
    odd = [path for path in last | shapes if last.get(path) != shapes.get(path)][:3]
    now, was = (", ".join(f"{n} {d.get(n, 'absent')}" for n in odd) for d in (shapes, last))
    warnings.warn(
        f"{name}: this step was compiled before for other shapes ({was}); now for ({now}). This is"
        " normal if the data changed on purpose",
        stacklevel=6,  # the line that calls train
    )


def peak_bytes(program: Any) -> int:
    """The memory that a compiled program needs at once on each of its devices; 0 if unknown."""
    sizes = program.memory_analysis()
    if sizes is None:  # not every backend tells
        return 0
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return int(held - sizes.alias_size_in_bytes)


def memory_limit(devices: Collection[Any]) -> int | None:
    """The bytes that a program of these devices can have on each of them, None if unknown."""
    devices = sorted(devices, key=lambda device: device.id)
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is None and devices[0].platform == "cpu" and hasattr(os, "sysconf"):
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = whole // len(devices)  # they share it
    return limit


def check_memory(subject: str, needed: int, devices: Collection[Any]) -> None:
    """MemoryError if a program needs more bytes on each of its devices than they have."""
    limit = memory_limit(devices)
    if limit is not None and needed > limit:
        device = min(devices, key=lambda device: device.id)
        raise MemoryError(
            f"{subject} needs {needed / 1e9:.3g} GB at once, but {device} has {limit / 1e9:.3g} GB"
        )


def traced(
    name: str,
    argument: str,
    function: Callable[..., Any],
    *given: Any,
    advice: str = "",
    **named: Any,
) -> Any:
    """function(*given, **named), which the user gave to `name` and which is part of a program."""
    if not callable(function):
        raise TypeError(f"{name}: {argument} is a {type(function).__name__}, expected a function")
    try:
        return function(*given, **named)
    except NEEDS_VALUES as error:
        raise TypeError(
            f"{name}: {argument} needs values while it is traced: it is part of the program, and"
            f" may use jax.numpy, but not NumPy or scikit-learn, nor if and float(){advice}"
        ) from error
