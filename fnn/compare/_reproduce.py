"""Published tables, re-made by one command: ``fnn compare --reproduce deepobs-quadratic``.

    REPRODUCTIONS                           {name: Source}
    source_of(name) -> Source               ValueError, one sentence, for a name that is unknown
    reproduce(name, out, tell) -> Reproduction

`tell(doing)` is called before each piece of work, ``source_of(name).pieces`` times; what it raises
ends the work, and nothing is written. `Reproduction.text` is to be printed. `failed` are sentences
about files that could not be written. A cell that does not agree is a result, not a failure.
"""

import json
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fnn._base import write_whole
from fnn.compare import _reproduce_deepobs, _reproduce_wilson
from fnn.compare._words import WHO, hint, not_written

Tell = Callable[[str], None]
Found = tuple[str, dict[str, Any], bytes]  # what is printed, every number, the picture as PNG


class Source(NamedTuple):
    """Where a table was published, and how it is re-made."""

    about: str
    pieces: int  # of work, for a progress bar
    run: Callable[[Tell], Found]


class Reproduction(NamedTuple):
    """What is to be printed, and what could not be written, as sentences."""

    text: str
    failed: list[str]


REPRODUCTIONS = {
    "deepobs-quadratic": Source(
        "DeepOBS, quadratic_deep (Schneider, Balles, Hennig 2019, arXiv:1903.05499)",
        _reproduce_deepobs.PIECES,
        _reproduce_deepobs.run,
    ),
    "wilson-overfit": Source(
        "The marginal value of adaptive gradient methods, section 3.3 (Wilson, Roelofs, Stern,"
        " Srebro, Recht 2017, arXiv:1705.08292)",
        _reproduce_wilson.PIECES,
        _reproduce_wilson.run,
    ),
}


def source_of(name: str) -> Source:
    """The source of that name; ValueError, one sentence, if there is none."""
    if name not in REPRODUCTIONS:
        raise ValueError(
            f"{WHO}: nothing to reproduce is called {name!r}, expected one of:"
            f" {', '.join(REPRODUCTIONS)}{hint(name, REPRODUCTIONS, 0.4)}"
        )
    return REPRODUCTIONS[name]


def reproduce(name: str, out: Path, tell: Tell = lambda doing: None) -> Reproduction:
    """Train, compare, and write ``out/<name>.json`` and ``out/<name>.png``."""
    source = source_of(name)
    text, numbers, picture = source.run(tell)
    document = {
        "schema": "fnn.reproduction",
        "version": 1,
        "command": f"fnn compare --reproduce {name}",
        "name": name,
        "source": source.about,
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in ("fnn", "jax", "jaxlib", "numpy")},
        "device": jax.devices()[0].device_kind,
        **numbers,
    }
    files = {
        out / f"{name}.json": json.dumps(document, indent=1, allow_nan=False).encode(),
        out / f"{name}.png": picture,
    }
    failed = []
    for path, content in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        except OSError as error:
            failed.append(not_written(path, error))
    written = "" if failed else "Every number: {}, picture: {}\n".format(*files)
    return Reproduction(f"{source.about}\n\n{text}{written}", failed)
