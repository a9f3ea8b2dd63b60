"""The terminal and the system: a progress bar or lines, Ctrl-C and SIGTERM."""

import atexit
import datetime
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

LINE_SECONDS = 5.0
FULL_WIDTH = 10_000  # columns of what is no terminal: nothing is cut or wrapped

_terminated = False  # whether SIGTERM came while a loop ran


class Interrupts:
    """A context for a loop that looks at `seen`, and ends itself when a signal was seen.

    `seen` is 0, or the number of the signal. Nothing is raised at that moment: Python may be in
    the middle of anything, and drops what is raised in a callback of garbage collection.

    - The first Ctrl-C is seen. A second one is KeyboardInterrupt.
    - SIGTERM, with which clusters and containers announce their end, is seen too. It is put off,
      not dropped: loops that start later see it at once, and when the program is through, the
      process ends by SIGTERM. A shell shows exit code 143.

    A handler that is not Python's own stays, and so do all outside the main thread.
    """

    def __init__(self) -> None:
        self.seen = signal.SIGTERM if _terminated else 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            for number, usual in (
                (signal.SIGINT, signal.default_int_handler),
                (signal.SIGTERM, signal.SIG_DFL),
            ):
                if signal.getsignal(number) == usual:
                    self.before[number] = signal.signal(number, self._see)
        return self

    def _see(self, number: int, _: Any) -> None:
        global _terminated
        self.seen = number
        if number == signal.SIGTERM:
            _terminated = True
        else:
            self._restore(number)

    def _restore(self, number: int) -> None:
        signal.signal(number, self.before.pop(number))

    def __exit__(self, *_: Any) -> None:
        for number in list(self.before):
            self._restore(number)


@atexit.register
def _end_by_sigterm() -> None:
    if _terminated:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed, or a pipe that nobody reads
                stream.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)


def console(*, stderr: bool = False) -> Any:
    """A rich Console, as wide as the terminal; 80 columns if it says 0, `FULL_WIDTH` if none is."""
    from rich.console import Console

    made = Console(stderr=stderr)
    if not made.is_terminal:
        made.width = FULL_WIDTH
    elif 0 in made.size:  # of the variable COLUMNS or LINES
        made.size = made.width or 80, made.height or 25
    return made


Report = Callable[[int, dict[str, float]], None]


@contextmanager
def bar(
    total: int, done: int = 0, *, transient: bool = False
) -> Iterator[Callable[[int, str], None]]:
    """show(done, text): a bar on stderr, if that is a terminal. A transient one disappears."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (BarColumn(), MofNCompleteColumn(), TimeLeft(), TextColumn("{task.description}"))
    where = console(stderr=True)
    hidden = not where.is_terminal
    with Progress(*columns, console=where, transient=transient, disable=hidden) as progress:
        task = progress.add_task("", total=total, completed=done)
        yield lambda done, text: progress.update(task, completed=done, description=text)


@contextmanager
def reporter(epochs: int, done: int, show: bool) -> Iterator[Report]:
    """report(epoch, metrics): a bar on a terminal, else a line every 5 s; nothing unless `show`."""
    with counter("epoch", epochs, done, show) as say:
        yield lambda epoch, metrics: say(epoch + 1, _said(metrics))


@contextmanager
def counter(
    what: str, total: int, done: int, show: bool, *, timed: bool = False
) -> Iterator[Callable[[int, str], None]]:
    """say(done, text): a bar on a terminal, else a line every 5 s; nothing unless `show`.

    `what` is counted, such as "epoch". `timed` lines have the time left, as the bar has.
    """
    if not show or sys.stderr is None:
        yield lambda done, text: None
    elif sys.stderr.isatty():
        with bar(total, done) as say:
            yield say
    else:
        with _lines(what, total, done, timed) as say:
            yield say


@contextmanager
def _lines(what: str, total: int, first: int, timed: bool) -> Iterator[Callable[[int, str], None]]:
    last, waiting, began = -float("inf"), "", time.monotonic()

    def say(done: int, text: str) -> None:
        nonlocal last, waiting
        now = time.monotonic()
        parts = [f"{what} {done}/{total}", text]
        if timed and first < done < total:
            seconds = round((now - began) / (done - first) * (total - done))
            parts.append(f"{datetime.timedelta(seconds=seconds)} left")
        waiting = "  ".join(filter(None, parts))
        if now - last >= LINE_SECONDS:
            print(waiting, file=sys.stderr)
            last, waiting = now, ""

    yield say
    if waiting:  # the last one, whatever ended the loop
        print(waiting, file=sys.stderr)


def _said(metrics: dict[str, float]) -> str:
    named = [name for name in metrics if name == "loss" or name.startswith("val_")]
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in named)
