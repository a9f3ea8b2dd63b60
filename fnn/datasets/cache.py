"""Files that are downloaded once, checked every time, and kept in a folder.

The folder is ``FNN_DATA``, or ``~/.cache/fnn``. A file counts only if its sha256 is the one
written here. It is written beside its place as ``.part`` and renamed when it is whole and right;
a download that was cut goes on where it stopped. By urllib: pooch, the library for this, starts
again from the first byte.
"""

import gzip
import hashlib
import os
import shutil
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple


class File(NamedTuple):
    """Where a file comes from, the best source first, and what it must be.

    The sha256 is of the file or, of a gzip file, of what is in it: copies that were packed anew
    have another date in their header, and are as good.
    """

    urls: tuple[str, ...]
    sha256: str


def _mnist(name: str, sha256: str) -> File:
    mirrors = "ossci-datasets.s3.amazonaws.com", "storage.googleapis.com/cvdf-datasets"
    return File(tuple(f"https://{mirror}/mnist/{name}" for mirror in mirrors), sha256)


def _fashion(name: str, sha256: str) -> File:
    mirrors = (
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    )
    return File(tuple(f"{mirror}/{name}" for mirror in mirrors), sha256)


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

# By their place in the folder.
FILES = {
    f"{folder}/{name}-ubyte.gz": file(f"{name}-ubyte.gz", sha256)
    for folder, (file, names) in _IMAGES.items()
    for name, sha256 in names.items()
} | {
    "cifar-10/cifar-10-binary.tar.gz": File(
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "text/tinyshakespeare.txt": File(
        (
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        ),
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "text/names.txt": File(
        ("https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",),
        "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
    ),
}


def folder() -> Path:
    """Where the files are kept: ``FNN_DATA``, or ``~/.cache/fnn``."""
    return Path(os.environ.get("FNN_DATA") or "~/.cache/fnn").expanduser()


def load(name: str) -> bytes:
    """What is in the file at `name`, a key of `FILES`: unpacked if it is a .gz, not a .tar.gz.

    A file that is missing is downloaded, one that is not what it must be is named in a warning
    and downloaded again. OSError if that fails, with what to put where. A folder that cannot
    be written to will do where the file is there.
    """
    path, state = folder() / name, "is missing"
    if path.exists():
        content = _content(path, FILES[name].sha256)
        if content is not None:
            return content
        state = "is corrupt or cut off (its sha256 is not the expected one)"
        warnings.warn(f"fnn.datasets: {path} {state}; downloading it again", stacklevel=2)
    return _fetch(name, path, state)


def _fetch(name: str, path: Path, state: str) -> bytes:
    urls, sha256 = FILES[name]
    failures = []
    for url in urls:
        try:
            return _download(url, path, sha256)
        except Exception as error:  # urllib passes on whatever comes up, not all of it OSErrors
            failures.append(error)
    reasons = "; ".join(f"{url}: {error}" for url, error in zip(urls, failures, strict=True))
    raise OSError(
        f"fnn.datasets: {path} {state}, and could not be downloaded ({reasons})."
        f" Without a network: get {urls[0]} elsewhere and put it at {path.absolute()},"
        f" or set FNN_DATA to a folder that has it as {name}"
    ) from failures[0]


def _content(path: Path, sha256: str) -> bytes | None:
    """What is in the file, or None if it is not what it must be."""
    content, packed = path.read_bytes(), path.name.removesuffix(".part").endswith("-ubyte.gz")
    right = hashlib.sha256(content).hexdigest() == sha256
    if packed:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return None
        right = right or hashlib.sha256(content).hexdigest() == sha256
    return content if right else None


def _download(url: str, path: Path, sha256: str) -> bytes:
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):  # the first may have gone on from the start of some other file
        while not _append(url, part):
            pass
        content = _content(part, sha256)
        if content is not None:
            part.replace(path)
            return content
        part.unlink()
    raise OSError(f"what came twice does not have the sha256 {sha256}")


def _append(url: str, part: Path) -> bool:
    """Go on with the download in `part`; whether it is whole. An error if it got no further."""
    from urllib.error import HTTPError  # urllib.request takes a while to import
    from urllib.request import Request, urlopen

    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "fnn"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=30)
    except HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing is left to send
            return True
        raise
    with response, part.open("ab" if response.status == 206 else "wb") as out:
        start = out.tell()
        shutil.copyfileobj(response, out)
        end, length = out.tell(), response.headers["Content-Length"]
    whole = length is None or end - start == int(length)
    if not whole and end <= have:
        raise OSError(f"cut off after {end} bytes")
    return whole
