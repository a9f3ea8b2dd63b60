"""What `fnn compare` does: a comparison, its report again, a member again, a published table."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from fnn._base import Interrupts, bar, check_regular, write_whole
from fnn.compare._comparison import PIECES, RENDERS, documented
from fnn.compare._document import read_document
from fnn.compare._findings import findings_of
from fnn.compare._plan import Plan
from fnn.compare._protocol import Result, results
from fnn.compare._reading import Document
from fnn.compare._replay import replay_member
from fnn.compare._reproduce import reproduce, source_of
from fnn.compare._run import Kind
from fnn.compare._statistics import RULE_FOR_BETTER
from fnn.compare._store import kept
from fnn.compare._terminal import complain, printed, said, say, table
from fnn.compare._tuning import Point
from fnn.compare._words import WHO, counted, not_written

FILES = tuple(RENDERS)
ROOM = 2**23  # bytes that the folder must have room for

# --- a comparison -------------------------------------------------------------------------------


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
                failed.append(not_written(error.filename or out, error))
    document: Document = {}
    if done:
        document = documented(plan, done, interrupted=bool(interrupts.seen))
        failed += written(document, out)
    missed = len(done) == len(plan.rules) and _is_missed(plan, document)
    if missed:
        failed.append(f"no run reached the target {plan.asked_target:g}; the rest is written")
    if interrupts.seen:
        failed.append(
            f"interrupted, {len(done)} of {len(plan.rules)} rules are done; the same command goes"
            " on there"
        )
    complain(failed)
    if interrupts.seen:
        return 128 + interrupts.seen
    return 2 if missed and len(failed) == 1 else int(bool(failed))


def _is_missed(plan: Plan, document: Document) -> bool:
    """Whether a target was asked for and no run reached it."""
    steps = [step for rule in document["rules"] for step in rule["steps_to_target"] or []]
    return plan.asked_target is not None and all(step is None for step in steps)


def introduction(plan: Plan) -> str:
    """What is going to be done, and the rule for "better", before anything is known."""
    axes = plan.axes[plan.rules[0].name]
    orders = {"new": "a new order in each epoch", "same": "the same order in every epoch"}
    names = ", ".join(axis.name for axis in axes)
    return printed(
        f"{plan.problem.name}: {counted(len(plan.rules), 'rule')},"
        f" {counted(plan.trials, 'trial')} of each ({names})"
        f" from {counted(plan.trial_seeds, 'seed')}, then {counted(plan.seeds, 'fresh seed')}."
        f" {counted(plan.steps, 'step')} a run, batches of {plan.batch_size} in"
        f" {orders[plan.order]}.\n{RULE_FOR_BETTER}\n"
    )


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


def written(
    document: Document, out: Path, others: Sequence[Document] = (), *, file: Path | None = None
) -> list[str]:
    """Write and print the results. What could not be written does not hinder the rest.

    `file` is where the document came from, if it is not to be written. Returns what failed, as
    sentences.
    """
    failed = []
    for name, render in RENDERS.items():
        if name == FILES[0] and file is not None:
            continue
        try:
            write_whole(out / name, render(document, others, file or out / FILES[0]))
        except OSError as error:
            failed.append(not_written(out / name, error))
    text = printed(table(document), *findings_of(document))
    if not failed:
        text += printed(f"Every number: {file or out / FILES[0]}, report: {out / FILES[-1]}")
    return failed + say(text)


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


# --- its report again ---------------------------------------------------------------------------


def rendered(files: Sequence[Path]) -> int:
    """Write and print the report of the first file again; the exit code."""
    if not files:
        raise ValueError(f"{WHO}: --render: nothing came, expected a comparison.json")
    document, *others = documents = [*map(read_document, files)]
    if others:
        check_profile(files, documents)
    failed = written(document, files[0].parent, others, file=files[0])
    complain(failed)
    return int(bool(failed))


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


# --- other work ---------------------------------------------------------------------------------


def replayed(words: Sequence[str]) -> int:
    """Train a member again, ``FILE RULE [VALUE ...] [seed=N | trial_seed=N]``; the exit code."""
    file, name, point, kind, seed = member_of(words)
    lines = replay_member(read_document(Path(file)), name, point, kind, seed)
    return said(printed(*lines))


def member_of(words: Sequence[str]) -> tuple[str, str, Point, Kind, int]:
    """``FILE RULE [VALUE ...] [seed=N | trial_seed=N]`` -> file, rule, point, and which seed."""
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
    return file, name, point, kind, seed


def reproduced(name: str, out: Path) -> int:
    """Make a published table again; the exit code."""
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
            complain(["interrupted; nothing was written"])
            raise
    return said(made.text, made.failed)
