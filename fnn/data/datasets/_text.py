"""Texts for models of characters, and the numbers of characters."""

from collections.abc import Iterable
from itertools import chain

import numpy as np

from fnn.data.datasets._cache import load


def shakespeare() -> str:
    """Tiny Shakespeare: 1,115,394 characters of his plays, 65 different ones.

    Collected by A. Karpathy for char-rnn, 2015; the plays are in the public domain.
    """
    return load("text/tinyshakespeare.txt").decode()


def names() -> list[str]:
    """32,033 first names in small letters a to z, the most frequent first.

    US Social Security Administration, public domain; A. Karpathy's selection for makemore, 2022.
    """
    return load("text/names.txt").decode().split()


def vocabulary(text: str | Iterable[str]) -> str:
    """The different characters of one text or of several texts, sorted."""
    return "".join(sorted(set(chain.from_iterable(text))))


def encode(text: str, vocabulary: str) -> np.ndarray:
    """Text -> int32 [characters]: the place of each character in `vocabulary`."""
    index = {character: i for i, character in enumerate(vocabulary)}
    if len(index) != len(vocabulary):
        twice = next(c for i, c in enumerate(vocabulary) if index[c] != i)
        raise ValueError(f"encode: {twice!r} is in the vocabulary twice")
    unknown = sorted(set(text) - set(index))
    if unknown:
        raise ValueError(
            f"encode: {_some(unknown)} are not in the vocabulary {_some(vocabulary)}"
            f" ({len(vocabulary)} characters)"
        )
    return np.fromiter((index[character] for character in text), np.int32, len(text))


def decode(ids: Iterable[int] | np.ndarray, vocabulary: str) -> str:
    """int [characters] -> text, the inverse of `encode`."""
    ids = np.asarray(ids if hasattr(ids, "__array__") else list(ids))
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
        raise ValueError(
            f"decode: ids are {ids.dtype}{list(ids.shape)}, expected int [characters];"
            " decode one text at a time"
        )
    if ids.size and not 0 <= ids.min() <= ids.max() < len(vocabulary):
        raise ValueError(
            f"decode: ids from {ids.min()} to {ids.max()}, expected 0 to {len(vocabulary) - 1}"
        )
    return "".join(vocabulary[i] for i in ids.tolist())


def _some(characters: str | list[str]) -> str:
    """The first of them, as a message shows them."""
    return f"{characters[:20]!r}" + " ..." * (len(characters) > 20)
