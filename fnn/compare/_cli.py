"""The command ``fnn``."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal

import jax
import tyro

from fnn._base import Interrupts, bar, check_regular, console, write_whole
from fnn.compare._comparison import PIECES, RENDERS, documented, replay_member
from fnn.compare._document import Document, read_document
from fnn.compare._plan import Plan, Settings, plan_of
from fnn.compare._problem import WHO
from fnn.compare._protocol import Result, results
from fnn.compare._run import Kind
from fnn.compare._statistics import RULE_FOR_BETTER
from fnn.compare._store import kept
from fnn.compare._tuning import Point
from fnn.training import use_all_cores

FILES = tuple(RENDERS)
ROOM = 2**23  # bytes that the folder must have room for

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
        rules: names of rules, some of sgd momentum nesterov adagrad rmsprop adam amsgrad adamw
            nadam nadamw cautious_adamw ademamix lion adafactor muon soap prodigy schedule_free_sgd
            schedule_free_adamw; by default the eight that a first run has time for
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
            return said(replayed(replay))
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


def run(plan: Plan, out: Path) -> int:
    """Run the comparison and report it; what was done before it was ended is reported too."""
    done: list[Result] = []
    failed: list[str] = []
    with kept(out / PIECES, plan.marks()) as store:
        failed += say(introduction(plan))
        with suppress(KeyboardInterrupt), Interrupts() as interrupts, telling(interrupts) as tell:
            try:
                for done in results(plan, store, tell):  # noqa: B007
                    pass
                store.finish()
            except OSError as error:
                failed.append(f"{error.filename or out} could not be written: {error.strerror}")
    document: Document = {}
    if done:
        document = documented(plan, done, interrupted=bool(interrupts.seen))
        failed += written(document, out)
    missed = plan.asked_target is not None and len(done) == len(plan.rules)
    missed = missed and not any(_reached(rule) for rule in document["rules"])
    if missed:
        failed.append(f"no run reached the target {plan.asked_target:g}; the rest is written")
    if interrupts.seen:
        failed.append(
            f"interrupted, {len(done)} of {len(plan.rules)} rules are done; the same command goes"
            " on there"
        )
    for what in failed:
        print(f"{WHO}: {what}", file=sys.stderr)
    if interrupts.seen:
        return 128 + interrupts.seen
    return 2 if missed and len(failed) == 1 else int(bool(failed))


def _reached(rule: dict[str, Any]) -> bool:
    return any(steps is not None for steps in rule["steps_to_target"] or [])


def introduction(plan: Plan) -> str:
    """What is going to be done, and the rule for "better", before anything is known."""
    axes = plan.axes[plan.rules[0].name]
    orders = {"new": "a new order in each epoch", "same": "the same order in every epoch"}
    text = (
        f"{plan.problem.name}: {_count(len(plan.rules), 'rule')}, {_count(plan.trials, 'trial')} of"
        f" each ({', '.join(axis.name for axis in axes)}) from {_count(plan.trial_seeds, 'seed')},"
        f" then {_count(plan.seeds, 'fresh seed')}. {_count(plan.steps, 'step')} a run, batches of"
        f" {plan.batch_size} in {orders[plan.order]}.\n{RULE_FOR_BETTER}\n"
    )
    return printed(text)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


@contextmanager
def telling(interrupts: Interrupts) -> Iterator[Callable[[int, int, str], None]]:
    """tell(done, total, text): a bar on a terminal; KeyboardInterrupt after a signal."""
    with ExitStack() as stack:
        show: list[Callable[[int, str], None]] = []

        def tell(done: int, total: int, text: str) -> None:
            if interrupts.seen:
                raise KeyboardInterrupt
            if not show:
                show.append(stack.enter_context(bar(total, done, transient=True)))
            show[0](done, text)

        yield tell


# --- what is written and printed ----------------------------------------------------------------


def rendered(files: Sequence[Path]) -> int:
    """Write and print the report of the first file again; the exit code."""
    if not files:
        raise ValueError(f"{WHO}: --render: nothing came, expected a comparison.json")
    document, *others = documents = [*map(read_document, files)]
    if others:
        check_profile(files, documents)
    return said([], written(document, files[0].parent, others, file=files[0]))


def check_profile(files: Sequence[Path], documents: Sequence[Document]) -> None:
    """ValueError if these comparisons have no performance profile over problems."""
    seen: dict[str, Path] = {}
    for file, document in zip(files, documents, strict=True):
        problem = document["problem"]["name"]
        if document["settings"].get("target") is None:
            raise ValueError(
                f"{WHO}: --render: {file} has no target, which a performance profile needs; compare"
                f" again with --target"
            )
        if problem in seen:
            raise ValueError(
                f"{WHO}: --render: {seen[problem]} and {file} are both on {problem}, expected"
                " another problem in each file"
            )
        seen[problem] = file
    rules = [{rule["name"] for rule in document["rules"]} for document in documents]
    if not set.intersection(*rules):
        raise ValueError(f"{WHO}: --render: no rule is in all of {', '.join(map(str, files))}")


def written(
    document: Document, out: Path, others: Sequence[Document] = (), *, file: Path | None = None
) -> list[str]:
    """Write and print the results. What could not be written does not hinder the rest.

    `file` is where the document came from, if it is not to be written. Returns what failed, as
    sentences.
    """
    from fnn.compare._report import findings_of, table  # slow to import

    failed = []
    for name, render in RENDERS.items():
        if name == FILES[0] and file is not None:
            continue
        try:
            write_whole(out / name, render(document, others, file or out / FILES[0]))
        except OSError as error:
            failed.append(f"{out / name} could not be written: {error.strerror or error}")
    text = printed(table(document), *findings_of(document))
    if not failed:
        text += printed(f"Every number: {file or out / FILES[0]}, report: {out / FILES[-1]}")
    return failed + say(text)


def printed(*parts: Any) -> str:
    """Text and tables as the terminal shows them."""
    screen = console()
    with screen.capture() as captured:
        for part in parts:
            screen.print(part, markup=False, highlight=False)
    return captured.get()


def said(lines: Sequence[str], failed: Sequence[str] = ()) -> int:
    """Print lines, and what failed to stderr; the exit code."""
    wrong = [*failed, *say(printed(*lines))] if lines else failed
    for what in wrong:
        print(f"{WHO}: {what}", file=sys.stderr)
    return int(bool(wrong))


def say(text: str) -> list[str]:
    """Print text in the characters that stdout has. Returns what failed; not a pipe that closed."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for sign, plain in {"\N{EN DASH}": "-", "\N{MICRO SIGN}": "u"}.items():
        if sign.encode(encoding, "ignore") == b"":
            text = text.replace(sign, plain)
    text = text.encode(encoding, "replace").decode(encoding)
    try:
        print(text, end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again
        if not isinstance(error, BrokenPipeError):
            return [f"the table could not be printed: {error.strerror or error}"]
    return []


# --- other work ---------------------------------------------------------------------------------


def replayed(words: Sequence[str]) -> list[str]:
    """``FILE RULE [VALUE ...] [seed=N | trial_seed=N]`` -> what is to be said of that member."""
    if len(words) < 2:
        raise ValueError(
            f"{WHO}: --replay: {' '.join(words) or 'nothing'} came, expected a file and a rule, as"
            " in --replay out/comparison.json adam 0.01 seed=3"
        )
    file, name, *values = words
    point: Point = {}
    kind: Kind = "fresh"
    seed = 0
    for word in values:
        key, equals, value = word.rpartition("=")
        if key in ("seed", "trial_seed"):
            if not value.isdecimal():
                raise ValueError(f"{WHO}: --replay: {word}, expected a whole number >= 0")
            kind, seed = ("fresh" if key == "seed" else "trial"), int(value)
            continue
        try:
            point[key if equals else "learning_rate"] = float(value)
        except ValueError:
            raise ValueError(
                f"{WHO}: --replay: {word}, expected a learning rate, name=value, seed=N or"
                " trial_seed=N"
            ) from None
    return replay_member(read_document(Path(file)), name, point, kind, seed)


def reproduced(name: str, out: Path) -> int:
    """Make a published table again; the exit code."""
    from fnn.compare._reproduce import reproduce, source_of

    source = source_of(name)
    check_can_write(out)
    with (
        Interrupts() as interrupts,
        bar(source.pieces, transient=True) as show,
    ):
        done = -1

        def tell(doing: str) -> None:
            nonlocal done
            if interrupts.seen:
                raise KeyboardInterrupt
            done += 1
            show(done, doing)

        try:
            made = reproduce(name, out, tell)
        except KeyboardInterrupt:
            print(f"{WHO}: interrupted; nothing was written", file=sys.stderr)
            raise
    failed = [*made.failed, *say(made.text)]
    for what in failed:
        print(f"{WHO}: {what}", file=sys.stderr)
    return int(bool(failed))


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


def check_can_write(out: Path) -> None:
    """Make the folder. ValueError if it is a file, is read-only, or has no room."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{WHO}: --out {out} is a file, expected a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out) as file:
            file.write(bytes(ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(
            f"{WHO}: --out {out} cannot be written to: {error.strerror or error}"
        ) from None
    for name in FILES:
        check_regular(out / name)


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
