"""What a person at the terminal sees and does: a bar or lines, and Ctrl-C."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LINE_SECONDS = 5.0


class Interrupts:
    """Within it Ctrl-C sets `seen`, once; the second time it is KeyboardInterrupt as ever."""

    def __init__(self) -> None:
        self.seen = False
        self.before: Any = None

    def __enter__(self) -> "Interrupts":
        # Signals reach the main thread alone. One that somebody else handles is left to them.
        here = threading.current_thread() is threading.main_thread()
        if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.before = signal.signal(signal.SIGINT, self._see)
        return self

    def _see(self, *_: Any) -> None:
        self.seen = True
        self._restore()

    def _restore(self) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            self.before = None

    def __exit__(self, *_: Any) -> None:
        self._restore()


Report = Callable[[int, dict[str, float]], None]


@contextmanager
def reporter(epochs: int, done: int, show: bool) -> Iterator[Report]:
    """report(epoch, metrics): a bar on a terminal, a line now and then elsewhere, or nothing."""
    if not show:
        yield lambda epoch, metrics: None
    elif sys.stderr.isatty():
        with _bar(epochs, done) as report:
            yield report
    else:
        yield _lines(epochs)


@contextmanager
def _bar(epochs: int, done: int) -> Iterator[Report]:
    from tqdm import tqdm

    with tqdm(total=epochs, initial=done, unit="epoch") as bar:

        def report(epoch: int, metrics: dict[str, float]) -> None:
            bar.set_postfix_str(_said(metrics), refresh=False)
            bar.update(epoch + 1 - bar.n)

        yield report


def _lines(epochs: int) -> Report:
    last = -float("inf")

    def report(epoch: int, metrics: dict[str, float]) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS or epoch == epochs - 1:
            print(f"epoch {epoch + 1}/{epochs}  {_said(metrics)}", file=sys.stderr)
            last = time.monotonic()

    return report


def _said(metrics: dict[str, float]) -> str:
    named = [name for name in metrics if name == "loss" or name.startswith("val_")]
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in named)
