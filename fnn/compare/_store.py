"""The pieces of a comparison, kept in a folder as they come, so that nothing done is done again.

A piece is a dict of arrays, in a safetensors file with a checksum (``fnn.checkpoint``), written
whole or not at all. The folder also says which comparison it belongs to:

    pieces/settings.json            the settings, and whether the comparison was finished
    pieces/adam/search_0.safetensors
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fnn._base import write_whole
from fnn.checkpoint import load, run_lock, save
from fnn.compare._words import WHO

SETTINGS = "settings.json"
Piece = dict[str, Any]  # of arrays, nested


class Store:
    """``get(name, mark)`` and ``put(name, mark, piece)``; in memory if there is no folder.

    `mark` is what the piece was made of: a piece with another mark is not found.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.memory: dict[tuple[str, str], Piece] = {}

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"

    def get(self, name: str, mark: str) -> Piece | None:
        """The piece; None if it is not there, is damaged, or has another mark."""
        if self.folder is None or (name, mark) in self.memory:
            return self.memory.get((name, mark))
        if not self._path(name).exists():
            return None
        try:
            tree, extra = load(self._path(name))
        except ValueError as error:
            warnings.warn(f"{WHO}: {error}; it is made again", stacklevel=2)
            return None
        return _as_numpy(tree) if extra.get("mark") == mark else None

    def put(self, name: str, mark: str, piece: Piece) -> None:
        """Keep the piece."""
        if self.folder is None:
            self.memory[name, mark] = piece
        else:
            save(self._path(name), piece, {"mark": mark})

    def finish(self) -> None:
        """The comparison is finished: another one may take its place."""
        if self.folder is not None:
            was = _settings(self.folder) or {}
            write_whole(self.folder / SETTINGS, _json({**was, "finished": True}))


@contextmanager
def kept(folder: Path | None, settings: Mapping[str, Any]) -> Iterator[Store]:
    """The store of a comparison with these settings. None: in memory.

    - Pieces of the same comparison are there again.
    - Pieces of another comparison that was finished are removed.
    - Pieces of another comparison that was not finished are a ValueError, which says what differs.
    - A folder in use by another process is a ValueError.
    """
    if folder is None:
        yield Store()
        return
    try:
        with run_lock(WHO, folder):
            _claim(folder, json.loads(json.dumps(settings)))
            yield Store(folder)
    except RuntimeError as error:
        if WHO not in str(error):
            raise
        raise ValueError(str(error)) from None


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    was = _settings(folder)
    if was is not None and was.get("settings") != settings:
        if not was.get("finished"):
            raise ValueError(
                f"{WHO}: {folder} has pieces of a comparison that was not finished, with"
                f" {_difference(was.get('settings') or {}, settings)}; go on with the same"
                " settings, or use another --out, or remove the folder"
            )
        for piece in folder.iterdir():
            if piece.is_dir():
                shutil.rmtree(piece)
    write_whole(folder / SETTINGS, _json({"settings": settings, "finished": False}))


def _settings(folder: Path) -> dict[str, Any] | None:
    """What the folder says of itself; {} if that cannot be read, None if it is a new one."""
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """``epochs 30 where 20 was given``, of every setting that differs."""
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    said = (f"{n} {_short(was.get(n))} where {_short(now.get(n))} was given" for n in names)
    return ", ".join(said) or "settings that cannot be read"


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def _as_numpy(tree: Any) -> Piece:
    return {
        name: _as_numpy(value) if isinstance(value, dict) else np.asarray(value)
        for name, value in tree.items()
    }
