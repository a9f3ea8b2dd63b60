"""The command ``fnn``."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from fnn.compare._commands import check_can_write, rendered, replayed, reproduced, run
from fnn.compare._plan import Settings, plan_of
from fnn.compare._words import WHO
from fnn.training import use_all_cores

Words = tuple[str, ...]


def metavar(words: str, **more: Any) -> Any:
    """How the help shows the values of an option."""
    return tyro.conf.arg(metavar=words, **more)


def compare(
    own: Annotated[Words, tyro.conf.Positional, metavar("[my_rule.py ...]")] = (),
    /,
    rules: Annotated[Words | None, metavar("RULE [...]", aliases=["--optimizers"])] = None,
    problem: str = "digits",
    tune: Annotated[Words, metavar("AXIS [AXIS ...]")] = (),
    rates: Annotated[tuple[float, ...] | None, metavar("RATE [...]")] = None,
    how: Literal["grid", "sobol"] | None = None,
    trials: int | None = None,
    trial_seeds: int = 3,
    seeds: int = 10,
    epochs: int | None = None,
    batch_size: int | None = None,
    order: Literal["new", "same"] = "new",
    target: float | None = None,
    hidden: Annotated[tuple[int, ...] | None, metavar("[SIZE ...]")] = None,
    out: Path = Path("out"),
    replay: Annotated[Words | None, metavar("FILE RULE [VALUE ...] [seed=N]")] = None,
    render: Annotated[tuple[Path, ...] | None, metavar("FILE [FILE ...]")] = None,
    reproduce: str | None = None,
) -> int:
    """Compare optimizers on a problem, written by hand and by Optax.

    Every rule gets the same trials. Its point is chosen on the validation rows and trained again
    from fresh seeds, which are scored on the test rows. Prints the best rule, what cannot be told
    from it, and whether rules and Optax twins agree. Writes comparison.json, .png, .md, .tex and
    report.html. Ctrl-C ends it after the present piece of work; the same command goes on there.

    Args:
        own: rules of one's own, compared beside the others: a file that defines a function
            (learning_rate, **hyperparameters) -> optimizer, my_rule.py:name, or module:name
        rules: names of rules, some of sgd momentum nesterov adagrad rmsprop adadelta rprop adam
            amsgrad adamax radam adabelief adamw nadam nadamw cautious_adamw ademamix lion adafactor
            lamb lars muon soap prodigy schedule_free_sgd schedule_free_adamw; by default the eight
            that a first run has time for
        problem: digits, logistic, spirals, quadratic_deep, rosenbrock, beale, autoencoder,
            mnist_cnn, shakespeare_lstm, or a file my_problem.py that defines data, init and loss
        tune: hyperparameters to tune beside the learning rate: b2=0.9,0.99 or b2=0.9..0.999:log1m,
            weight_decay=0..0.1; warmup, stable, final, clip_norm for every rule; adam.b1=0.8,0.9
            for one
        rates: the learning rates; short for --tune learning_rate=RATE,RATE
        how: a grid, or Sobol points, which is the default if an axis is a range
        trials: points of every rule; by default all of a grid, or 16 of Sobol's
        trial_seeds: runs at each point
        seeds: fresh runs at the chosen point
        epochs: passes over the training rows, by default the problem's
        batch_size: rows in each step, by default the problem's
        order: of the batches, new in each epoch or the same
        target: a score; the steps to reach it are counted
        hidden: sizes of the hidden layers of digits; no size is logistic regression
        out: the folder to write to; it is made if it does not exist
        replay: train one member of a comparison again: out/comparison.json adam 0.01 seed=3
        render: write the report of a comparison.json again; with more files, of comparisons on
            other problems, it has their performance profile too
        reproduce: a published table, made again: deepobs-quadratic or wilson-overfit
    """
    try:
        if render is not None:
            return rendered(render)
        prepare_jax(devices=64)
        if replay is not None:
            return replayed(replay)
        if reproduce is not None:
            return reproduced(reproduce, out)
        chosen = Settings.rules if rules is None else rules
        given = tune
        if rates is not None:
            given = (_rates(rates), *tune)
        plan = plan_of(Settings(
            (*chosen, *own), problem, given, how, trials, trial_seeds, seeds, epochs, batch_size,
            order, target, hidden,
        ))  # fmt: skip
        check_can_write(out)
        return run(plan, out)
    except (ValueError, TypeError) as error:
        print(error, file=sys.stderr)
        return 2


def _rates(rates: Sequence[float]) -> str:
    """The rates as an axis."""
    if not rates:
        raise ValueError(f"{WHO}: rates is empty, expected at least one learning rate")
    for rate in rates:
        if not 0 < rate < float("inf"):
            raise ValueError(f"{WHO}: learning rate {rate} is not a positive number")
    if list(rates) != sorted(set(rates)):
        raise ValueError(f"{WHO}: learning rates {list(rates)} are not in increasing order")
    return f"learning_rate={','.join(map(repr, rates))}"


def prepare_jax(devices: int) -> None:
    """Use one CPU device for each core, at most `devices`, and cache compiled programs on disk.

    Call it before JAX starts. Settings in the user's environment stay.
    """
    use_all_cores(devices)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "fnn" / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def main() -> None:
    """Run the command line.

    Exit codes: 2 for arguments that cannot be run, with a one-line message; 1 if results could not
    be written; 130 after Ctrl-C and 143 after SIGTERM, when what was done is written and printed.
    """
    try:
        code = tyro.extras.subcommand_cli_from_dict({"compare": compare}, prog="fnn")
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)
