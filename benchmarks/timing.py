"""Interleaved timing, A B A B ..., medians with their range, and the name of the machine."""

import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
from rich.console import Console
from rich.table import Table


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of work(), until its results are computed."""
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def interleaved(works: dict[str, Callable[[], Any]], n: int) -> dict[str, list[float]]:
    """Seconds of each work in each of n rounds, all works in turn, after a warm-up round."""
    for work in works.values():
        work()
    rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(n)]
    return {name: [r[name] for r in rounds] for name in works}


def compile_seconds(jitted: Callable[[], Any], n: int) -> list[float]:
    """Seconds to trace, lower and compile, n times; each call of `jitted` makes a new program."""
    jitted()  # loads what a process loads only once
    return [seconds(jitted) for _ in range(n)]


def show(title: str, times: dict[str, list[float]], base: str) -> None:
    """Print a table: median, range, and the median over rounds of the ratio to `base`."""
    table = Table(title=title, title_justify="left")
    for column in ("", "median s", "min", "max", f"times {base}"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, values in times.items():
        ratios = [v / b for v, b in zip(values, times[base], strict=True)]
        cells = (statistics.median(values), min(values), max(values), statistics.median(ratios))
        table.add_row(name, *(f"{cell:.3g}" for cell in cells))
    Console().print(table)


def machine() -> str:
    """The device, and the versions of JAX and Python."""
    device = jax.devices()[0]
    return (
        f"{jax.device_count()} x {device.device_kind} ({device.platform}), "
        f"jax {metadata.version('jax')}, Python {platform.python_version()}"
    )
