"""Where `train` may write its metrics: a log is any function of the epoch and a dict of floats."""

import csv
from collections.abc import Callable
from pathlib import Path

Log = Callable[[int, dict[str, float]], None]


def to_csv(path: str | Path) -> Log:
    """A line an epoch, flushed as it comes: epoch and the metrics, named in the first line.

    A file that is there is gone on with, if it has the same columns.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def log(epoch: int, metrics: dict[str, float]) -> None:
        columns = ["epoch", *metrics]
        begun = path.exists() and path.stat().st_size > 0
        if begun:
            with open(path, newline="") as file:
                found = next(csv.reader(file))
            if found != columns:
                raise ValueError(f"to_csv: {path} has the columns {found}, expected {columns}")
        with open(path, "a", newline="") as file:
            writer = csv.writer(file)
            if not begun:
                writer.writerow(columns)
            writer.writerow([epoch, *metrics.values()])

    return log


def to_tensorboard(folder: str | Path) -> Log:
    """Scalars for TensorBoard, by tensorboardX (``pip install 'fnn[tensorboard]'``)."""
    from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

    writer = SummaryWriter(str(folder))

    def log(epoch: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    return log


def to_all(*logs: Log) -> Log:
    """Each of several logs, in turn."""

    def log(epoch: int, metrics: dict[str, float]) -> None:
        for each in logs:
            each(epoch, metrics)

    return log
