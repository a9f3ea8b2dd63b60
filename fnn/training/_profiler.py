"""A recording of one chunk of a run, for TensorBoard and Perfetto."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import jax

from fnn.training._processes import is_first


def checked_folder(name: str, folder: str | Path | None) -> Path | None:
    """The folder as a path; an error if it is none."""
    if folder is None:
        return None
    if not isinstance(folder, str | Path) or not str(folder):
        raise TypeError(f"{name}: profile is {folder!r}, expected the path of a folder")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{name}: profile is {path}, a file, expected a folder")
    return path


class Profiler:
    """Records the first chunk after the one that warms up; of several processes the first does."""

    def __init__(
        self, folder: Path | None, surviving: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.folder, self.surviving = folder, surviving
        self.waits = folder is not None

    def due(self, *, first: bool, last: bool) -> bool:
        """Whether the next chunk is recorded; the first chunk only if there is no other."""
        return self.waits and (last or not first)

    def start(self) -> None:
        """Start to record. A recording that fails is told, and the run goes on."""
        self.waits = False
        if is_first():
            with self.surviving():
                jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)

    def stop(self) -> None:
        """Write what was recorded."""
        if is_first():
            with self.surviving():
                jax.profiler.stop_trace()

    def warn_if_unused(self) -> None:
        """UserWarning if no chunk was recorded."""
        if self.waits:
            warnings.warn(
                f"train: nothing is recorded in {self.folder}: the run has ended before its second"
                " chunk",
                stacklevel=3,
            )
