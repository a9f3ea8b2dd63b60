"""Words that several messages share."""

import difflib
from collections.abc import Iterable
from typing import Any

WHO = "fnn compare"  # begins every message


def hint(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean adam?`, the end of a sentence about a name that is not known."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def counted(n: int, noun: str) -> str:
    """`1 seed`, `1,000 seeds`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def said_by(error: BaseException) -> str:
    """The kind of an error, and the first line of what it says."""
    first = str(error).strip().partition("\n")[0]
    return type(error).__name__ + (f": {first}" if first else "")


def not_written(path: Any, error: OSError) -> str:
    """What is said of a file that could not be written."""
    return f"{path} could not be written: {error.strerror or error}"
