"""The command ``fnn``."""

import os
import sys
from pathlib import Path
from typing import Annotated

import jax
import tyro

from fnn.compare import OPTIMIZERS, PIECES, RATES, Settings, compare_optimizers


def compare(
    optimizers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = OPTIMIZERS,
    rates: Annotated[tuple[float, ...], tyro.conf.arg(metavar="RATE [RATE ...]")] = RATES,
    seeds: int = 5,
    epochs: int = 30,
    batch_size: int = 64,
    hidden: Annotated[tuple[int, ...], tyro.conf.arg(metavar="[SIZE ...]")] = (128, 128),
    out: Path = Path("out"),
) -> None:
    """Compare optimizers, written by hand and by Optax, on real handwritten digits.

    Trains a classifier with each optimizer at every learning rate and from every seed, twice:
    by fnn's own rule and by its Optax twin. Prints which is best and whether the twins agree,
    and writes comparison.json and comparison.png.

    Args:
        optimizers: which to compare, of sgd momentum nesterov adagrad rmsprop adam adamw
        rates: the grid of learning rates, increasing
        seeds: networks at each rate, each with initial weights and a shuffle of its own
        epochs: passes over the 1,077 training images
        batch_size: images a step
        hidden: sizes of the hidden layers; none is logistic regression
        out: the folder to write to, made if it is not there
    """
    settings = Settings(optimizers, rates, seeds, epochs, batch_size, hidden)
    prepare_jax(devices=seeds * len(rates))

    # Loaded after the checks, so that a typing error is answered at once.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from fnn.comparison_plot import draw_comparison
    from fnn.report import findings, table, write_json

    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=PIECES * len(optimizers))
        started = False

        def progress(doing: str) -> None:
            nonlocal started
            bar.update(task, advance=started, description=doing)
            started = True

        comparison = compare_optimizers(settings, progress)
    write_json(comparison, out / "comparison.json")
    draw_comparison(comparison, out / "comparison.png")
    console.print(
        "Test accuracy at the rate that validates best, mean and 95 % interval of seeds;\n"
        "how far apart the twins' final parameters are; seconds to compile+train it all.",
        soft_wrap=True,
    )
    console.print(table(comparison))
    for line in findings(comparison):
        console.print(line)
    console.print(f"Every number: {out / 'comparison.json'}, picture: {out / 'comparison.png'}")


def prepare_jax(devices: int) -> None:
    """One CPU device a core, at most `devices`, and a cache of compiled programs on disk.

    Before the backend starts. What the user has set in the environment stays.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", max(1, min(devices, cores())))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "fnn" / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main() -> None:
    """Run the command line; exit code 2 and one sentence for what cannot be run."""
    try:
        tyro.extras.subcommand_cli_from_dict({"compare": compare}, prog="fnn")
    except ValueError as error:
        print(f"fnn: {error}", file=sys.stderr)
        sys.exit(2)
