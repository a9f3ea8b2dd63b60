"""Interleaved timing: A B A B ..., medians with their range, the machine named."""

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
    """Wall-clock seconds of work(), its results computed."""
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def interleaved(works: dict[str, Callable[[], Any]], n: int) -> dict[str, list[float]]:
    """Seconds of each work, n rounds of all of them in turn, after one round to warm up."""
    for work in works.values():
        work()
    rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(n)]
    return {name: [r[name] for r in rounds] for name in works}


def compile_seconds(jitted: Callable[[], Any], n: int) -> list[float]:
    """Seconds to trace, lower and compile what `jitted` makes anew, n times."""
    jitted()  # whatever the process loads only once
    return [seconds(jitted) for _ in range(n)]


def show(title: str, times: dict[str, list[float]], base: str) -> None:
    """A table of medians with their range, and of each round's ratio to `base`."""
    table = Table(title=title, title_justify="left")
    for column in ("", "median s", "min", "max", f"times {base}"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, values in times.items():
        ratios = [v / b for v, b in zip(values, times[base], strict=True)]
        cells = (statistics.median(values), min(values), max(values), statistics.median(ratios))
        table.add_row(name, *(f"{cell:.3g}" for cell in cells))
    Console().print(table)


def machine() -> str:
    """The device, and the versions that matter."""
    device = jax.devices()[0]
    return (
        f"{jax.device_count()} x {device.device_kind} ({device.platform}), "
        f"jax {metadata.version('jax')}, Python {platform.python_version()}"
    )
