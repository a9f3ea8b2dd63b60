"""Files that are downloaded once, kept in a folder, and checked whenever they are read.

- The folder is ``FNN_DATA``, or ``~/.cache/fnn``.
- The sha256 and the size of every file are written here. A file with another sha256 is not used,
  and no more bytes are downloaded or decompressed than the right file has.
- A download is written to a ``.part`` file and renamed when it is complete and checked. A download
  that was cut off resumes at its last byte. Other processes that want the file wait for it.
- A mirror that is slower than `SLOWEST` is given up, and the next mirror is asked.

Downloads use urllib. pooch, the library for this, starts again at the first byte.
"""

import gzip
import hashlib
import io
import os
import time
import warnings
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

from fnn._base import check_regular, locked

SLOWEST = 10_000  # bytes a second, on average over a download
PATIENCE = 60.0  # seconds that a download may lag behind SLOWEST


class File(NamedTuple):
    """The addresses of a file, the best one first, its sha256, and the bytes of its content.

    For a gzip file the sha256 may also be that of the content: a copy that was compressed again has
    another date in its header, but the same content. The size is that of the content.
    """

    urls: tuple[str, ...]
    sha256: str
    size: int

    def largest(self, packed: bool) -> int:
        """The bytes that the file has at most. Data that do not compress grow a little by gzip."""
        return self.size + self.size // 1000 + 4096 if packed else self.size


def _mnist(name: str) -> tuple[str, ...]:
    mirrors = "ossci-datasets.s3.amazonaws.com", "storage.googleapis.com/cvdf-datasets"
    return tuple(f"https://{mirror}/mnist/{name}" for mirror in mirrors)


def _fashion(name: str) -> tuple[str, ...]:
    mirrors = (
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    )
    return tuple(f"{mirror}/{name}" for mirror in mirrors)


_SIZES = {  # of Fashion-MNIST too: a header, and 28 x 28 bytes an image, 1 byte a label
    "train-images-idx3": 47_040_016,
    "train-labels-idx1": 60_008,
    "t10k-images-idx3": 7_840_016,
    "t10k-labels-idx1": 10_008,
}
_IMAGES = {
    "mnist": (
        _mnist,
        {
            "train-images-idx3": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion-mnist": (
        _fashion,
        {
            "train-images-idx3": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}

# {path in the folder: file}
FILES = {
    f"{folder}/{name}-ubyte.gz": File(urls(f"{name}-ubyte.gz"), sha256, _SIZES[name])
    for folder, (urls, names) in _IMAGES.items()
    for name, sha256 in names.items()
} | {
    "cifar-10/cifar-10-binary.tar.gz": File(
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        170_052_171,
    ),
    "text/tinyshakespeare.txt": File(
        (
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        ),
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        1_115_394,
    ),
    "text/names.txt": File(
        ("https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",),
        "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
        228_145,
    ),
}


def folder() -> Path:
    """The folder of the files: ``FNN_DATA``, or ``~/.cache/fnn``."""
    return Path(os.environ.get("FNN_DATA") or "~/.cache/fnn").expanduser()


# {data set: how the paths of its files begin}
SETS = {
    "mnist": "mnist/",
    "fashion_mnist": "fashion-mnist/",
    "cifar10": "cifar-10/",
    "shakespeare": "text/tinyshakespeare.txt",
    "names": "text/names.txt",
}


def available(name: str, split: Literal["train", "test"] | None = None) -> bool:
    """Whether the files of a data set, such as "mnist", exist, so no download is needed.

    `name` is the name of the function. With a `split`, only the files of this split are needed.
    The content of the files is not read.
    """
    if name not in SETS:
        raise ValueError(f"available: no data set {name!r}, expected one of: {', '.join(SETS)}")
    if split not in (None, "train", "test"):
        raise ValueError(f"available: split is {split!r}, expected 'train' or 'test'")
    other = {"train": "/t10k-", "test": "/train-"}.get(split or "")  # CIFAR-10 is one file
    files = (f for f in FILES if f.startswith(SETS[name]) and not (other and other in f))
    return all((folder() / file).exists() for file in files)


def load(name: str) -> bytes:
    """The content of the file `name`, a key of `FILES`; a .gz is decompressed, a .tar.gz is not.

    A missing file is downloaded. A file with another sha256 is named in a warning and downloaded
    again. If the download fails, OSError says which file to put where. If the file is there, the
    folder may be read-only.
    """
    path, state = folder() / name, "is missing"
    if check_regular(path) is not None:
        content = _content(path, FILES[name])
        if content is not None:
            return content
        state = "is corrupt or cut off (its sha256 is another)"
        warnings.warn(f"fnn.datasets: {path} {state}; downloading it again", stacklevel=2)
    return _fetch(name, path, state)


def _fetch(name: str, path: Path, state: str) -> bytes:
    file, failures = FILES[name], []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(path.name + ".lock"), wait=True):
            content = _content(path, file) if path.exists() else None
            if content is not None:  # another process has downloaded it
                return content
            for url in file.urls:
                try:
                    return _download(url, path, file)
                except Exception as error:  # urllib raises other errors than OSError too
                    failures.append((url, error))
    except OSError as error:
        failures.append((path.parent, error))
    reasons = "; ".join(f"{source}: {error}" for source, error in failures)
    raise OSError(
        f"fnn.datasets: {path} {state} and could not be downloaded ({reasons})."
        f" Without a network: download {file.urls[0]} on another machine and put it at"
        f" {path.absolute()}, or set FNN_DATA to a folder that has the file as {name}"
    ) from failures[0][1]


def _is_packed(path: Path) -> bool:
    return path.name.removesuffix(".part").endswith("-ubyte.gz")


def _content(path: Path, file: File) -> bytes | None:
    """The content, decompressed if it is a .gz, or None if its sha256 is another."""
    packed = _is_packed(path)
    if path.stat().st_size > file.largest(packed):
        return None
    content = path.read_bytes()
    right = hashlib.sha256(content).hexdigest() == file.sha256
    if packed:
        try:
            with gzip.open(io.BytesIO(content)) as unpacked:
                content = unpacked.read(file.size + 1)
        except (OSError, EOFError, zlib.error):
            return None
        right = right or hashlib.sha256(content).hexdigest() == file.sha256
    return content if right else None


class _Pace:
    """The bytes and the seconds of a download; OSError if it is too slow."""

    def __init__(self) -> None:
        self.came, self.start = 0, time.monotonic()

    def add(self, count: int) -> None:
        self.came += count
        seconds = time.monotonic() - self.start
        if seconds > PATIENCE + self.came / SLOWEST:
            raise OSError(f"too slow: {self.came:,} bytes in {seconds:.0f} seconds")


def _download(url: str, path: Path, file: File) -> bytes:
    part, largest, pace = (
        path.with_name(path.name + ".part"),
        file.largest(_is_packed(path)),
        _Pace(),
    )
    for _ in range(2):  # the first may have resumed a part of another file
        while not _append(url, part, largest, pace):
            pass
        content = _content(part, file)
        if content is not None:
            part.replace(path)
            return content
        part.unlink()
    raise OSError(f"two downloads did not have the sha256 {file.sha256}")


def _append(url: str, part: Path, largest: int, pace: _Pace) -> bool:
    """Resume the download in `part` and return whether it is complete.

    OSError if nothing came, if it came too slowly, or if `part` became larger than `largest`.
    """
    from urllib.error import HTTPError  # urllib.request takes a while to import
    from urllib.request import Request, urlopen

    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "fnn"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=30)
    except HTTPError as error:
        error.close()
        if error.code == 416 and done:  # no bytes are left
            return True
        raise
    with response, part.open("ab" if response.status == 206 else "wb") as out:
        start = out.tell()
        # read1 returns what is there; read would wait for all of it
        while (piece := response.read1(2**16)) and out.tell() <= largest:
            out.write(piece)
            pace.add(len(piece))
        end, length = out.tell(), response.headers["Content-Length"]
    if end > largest:
        part.unlink()
        raise OSError(f"more than the {largest:,} bytes that the file may have")
    complete = length is None or end - start == int(length)
    if not complete and end <= done:
        raise OSError(f"cut off after {end} bytes")
    return complete
