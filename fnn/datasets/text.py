"""Text to model character by character, and characters as numbers."""

from collections.abc import Iterable
from itertools import chain

import numpy as np

from fnn.datasets.cache import load


def shakespeare() -> str:
    """Tiny Shakespeare: 1,115,394 characters of his plays, 65 different ones.

    Put together by A. Karpathy for char-rnn, 2015; the plays are in the public domain.
    """
    return load("text/tinyshakespeare.txt").decode()


def names() -> list[str]:
    """32,033 first names in small letters a to z, the most frequent first.

    US Social Security Administration, public domain; A. Karpathy's selection for makemore, 2022.
    """
    return load("text/names.txt").decode().split()


def vocabulary(text: str | Iterable[str]) -> str:
    """The different characters of a text, or of several, sorted."""
    return "".join(sorted(set(chain.from_iterable(text))))


def encode(text: str, vocabulary: str) -> np.ndarray:
    """Text -> int32 [characters]: where in `vocabulary` each of them stands."""
    index = {character: i for i, character in enumerate(vocabulary)}
    if len(index) != len(vocabulary):
        raise ValueError(f"encode: a character is in the vocabulary twice ({vocabulary!r})")
    unknown = set(text) - set(index)
    if unknown:
        raise ValueError(f"encode: {sorted(unknown)} are not in the vocabulary {vocabulary!r}")
    return np.fromiter((index[character] for character in text), np.int32, len(text))


def decode(ids: Iterable[int] | np.ndarray, vocabulary: str) -> str:
    """int [characters] -> text, what `encode` made of it undone."""
    ids = np.asarray(ids if hasattr(ids, "__array__") else list(ids), np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(vocabulary):
        raise ValueError(
            f"decode: ids from {ids.min()} to {ids.max()}, expected 0 to {len(vocabulary) - 1}"
        )
    return "".join(vocabulary[i] for i in ids)
