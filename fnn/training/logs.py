"""Logs for `train`. A log is any function of the epoch and a dict of floats, the metrics."""

import csv
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fnn._base import write_whole

Log = Callable[[int, dict[str, float]], None]


def to_csv(path: str | Path) -> Log:
    """A CSV file with one line an epoch: the epoch and the metrics, named in the first line.

    - Each line is written at once.
    - If the file exists, lines are added; its columns must be the same, or the log raises
      ValueError.
    - An epoch has one line. If a run resumes at epoch 7, or starts again at epoch 0, the lines of
      that epoch and of later epochs are removed first.
    - A last line that was cut short, by a kill or a full disk, is removed with a UserWarning.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    known: list[str] | None = None  # what this log wrote last: columns, epoch, the file's size
    last = size = -1

    def log(epoch: int, metrics: dict[str, float]) -> None:
        nonlocal known, last, size
        columns = ["epoch", *metrics]
        if path.is_file():
            if columns != known or epoch <= last or size != path.stat().st_size:
                _make_ready(path, columns, epoch)
            begun = path.stat().st_size > 0
        else:  # none yet, or a FIFO or a device, which cannot be read again
            begun = columns == known and path.exists()
        rows = [[epoch, *metrics.values()]]
        try:
            with open(path, "ab") as file:
                file.write(_lines(rows if begun else [columns, *rows]))
        except OSError as error:
            if error.errno and not error.filename:  # a full disk does not say where
                error.filename = str(path)
            raise
        known, last, size = columns, epoch, path.stat().st_size

    return log


def _make_ready(path: Path, columns: list[str], epoch: int) -> None:
    """Remove the lines from `epoch` on, and a last line that was cut. ValueError if not ours."""
    content = path.read_bytes()
    try:
        rows = [row for row in csv.reader(io.StringIO(content.decode(), newline="")) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"to_csv: {path} is no CSV file: {error}") from None
    cut = bool(content) and not content.endswith(b"\n")
    if cut and len(rows) == 1 and _lines([columns]).startswith(content):
        rows = []  # the line of the columns itself
    elif rows and rows[0] != columns:
        raise ValueError(f"to_csv: {path} has the columns {rows[0]}, expected {columns}")
    elif cut:
        rows.pop()
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(columns) or not row[0].isdecimal():
            raise ValueError(
                f"to_csv: {path} has {row} in line {number}, expected a line of {len(columns)}"
                " values that begins with the epoch"
            )
    kept = [*rows[:1], *(row for row in rows[1:] if int(row[0]) < epoch)]
    if cut:
        line = content.splitlines()[-1].decode()
        warnings.warn(f"to_csv: {path} ended in a line that was cut short, {line!r}", stacklevel=3)
    if cut or len(kept) < len(rows):
        write_whole(path, _lines(kept))


def _lines(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def to_tensorboard(folder: str | Path) -> Log:
    """Scalars for TensorBoard, written by tensorboardX (``pip install 'fnn[tensorboard]'``).

    If a run resumes at epoch 7, TensorBoard hides what was logged of that epoch and of later ones.
    """
    from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

    Path(folder).mkdir(parents=True, exist_ok=True)
    writer: Any = None

    def log(epoch: int, metrics: dict[str, float]) -> None:
        nonlocal writer
        writer = writer or SummaryWriter(str(folder), purge_step=int(epoch), flush_secs=1)
        for name, value in metrics.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    return log


def to_all(*logs: Log) -> Log:
    """One log that calls each of these logs, in turn. If one raises, the others are called too."""

    def log(epoch: int, metrics: dict[str, float]) -> None:
        errors = []
        for each in logs:
            try:
                each(epoch, metrics)
            except Exception as error:
                errors.append(error)
        if len(errors) > 1:
            raise ExceptionGroup(f"to_all: {len(errors)} of {len(logs)} logs failed", errors)
        if errors:
            raise errors[0]

    return log
