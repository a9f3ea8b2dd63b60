"""Compiling once, saying why when it is twice, and knowing beforehand what memory it takes."""

import inspect
import os
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax

from fnn.params import path_of


class Program(NamedTuple):
    """A compiled function, and what it took."""

    call: Callable[..., Any]
    traces: int  # 0 where it had been compiled before
    compile_seconds: float
    peak_bytes: int


_Known = list[tuple[dict[str, Any], dict[str, str], Program]]
_known: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def compiled(
    name: str, owner: Any, depends_on: Mapping[str, Any], function: Any, *args: Any
) -> Program:
    """`function` compiled for such arguments, the first donated; `name` is who asks, for messages.

    What was compiled for the same `owner`, settings and shapes is used again. Where only shapes
    differ from last time a UserWarning says which. MemoryError if it cannot fit.
    """
    shapes = _shapes(dict(zip(inspect.signature(function).parameters, args, strict=True)))
    known = _known.setdefault(owner, [])
    same_settings = [(s, program) for settings, s, program in known if settings == depends_on]
    for other, program in same_settings:
        if other == shapes:
            return program._replace(traces=0, compile_seconds=0.0)
    if same_settings:
        _warn_of_another(name, same_settings[-1][0], shapes)
    started = time.perf_counter()
    call = jax.jit(function, donate_argnums=0).lower(*args).compile()
    program = Program(call, 1, time.perf_counter() - started, _peak_bytes(call))
    _check_memory(name, program.peak_bytes)
    known.append((dict(depends_on), shapes, program))
    return program


def _shapes(args: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(args)
    return {path_of(keys): _shape(leaf) for keys, leaf in leaves}


def _shape(leaf: Any) -> str:
    shape = f"{leaf.dtype}{list(leaf.shape)}"
    spread = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
    return f"{shape} on {leaf.sharding}" if spread else shape


def _warn_of_another(name: str, last: dict[str, str], shapes: dict[str, str]) -> None:
    odd = [path for path in last | shapes if last.get(path) != shapes.get(path)]
    now, was = (" and ".join(f"{path} {d.get(path)}" for path in odd[:3]) for d in (shapes, last))
    warnings.warn(f"{name}: compiles this step once more, for {now} after {was}", stacklevel=4)


def _peak_bytes(program: Any) -> int:
    sizes = program.memory_analysis()
    if sizes is None:  # not every backend tells
        return 0
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return int(held - sizes.alias_size_in_bytes)


def _check_memory(name: str, needed: int) -> None:
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    if limit is None and device.platform == "cpu" and hasattr(os, "sysconf"):
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if limit is not None and needed > limit:
        raise MemoryError(
            f"{name}: the program needs {needed / 1e9:.3g} GB at once, but {device} has"
            f" {limit / 1e9:.3g} GB"
        )
