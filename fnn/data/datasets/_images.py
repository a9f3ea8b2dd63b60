"""MNIST, Fashion-MNIST, CIFAR-10: (x [rows, height, width, channels], labels int32 [rows])."""

import io
import tarfile
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fnn.data.datasets._cache import load

Split = Literal["train", "test"]
Rows = tuple[np.ndarray, np.ndarray]  # x, labels


def mnist(split: Split = "train", *, dtype: DTypeLike = np.float32) -> Rows:
    """Handwritten digits: x [rows, 28, 28, 1] from 0 to 1, labels int32 [rows] 0 to 9.

    60,000 rows to train, 10,000 to test. If `dtype` is uint8, x is the bytes, 0 to 255, in a
    quarter of the memory; scale them batch by batch. For `dense`: x.reshape(len(x), -1).
    Y. LeCun, C. Cortes, C. Burges 1998, CC BY-SA 3.0.
    """
    return _idx_rows("mnist", split, dtype)


def fashion_mnist(split: Split = "train", *, dtype: DTypeLike = np.float32) -> Rows:
    """Pictures of clothes: x [rows, 28, 28, 1] from 0 to 1, labels int32 [rows] 0 to 9.

    Rows and `dtype` are as in `mnist`. The classes: T-shirt, trouser, pullover, dress, coat,
    sandal, shirt, sneaker, bag, ankle boot. H. Xiao, K. Rasul, R. Vollgraf 2017, (c) Zalando SE,
    MIT.
    """
    return _idx_rows("fashion-mnist", split, dtype)


def cifar10(split: Split = "train", *, dtype: DTypeLike = np.float32) -> Rows:
    """Colour photographs: x [rows, 32, 32, 3] from 0 to 1, labels int32 [rows] 0 to 9.

    50,000 rows to train, 614 MB in float32, 154 MB if `dtype` is uint8 (the bytes, 0 to 255);
    10,000 to test. The classes: airplane, automobile, bird, cat, deer, dog, frog, horse, ship,
    truck. A. Krizhevsky 2009, who asks to be cited and names no licence. The binary version is
    read: the Python version is pickles, which can run code.
    """
    _check("cifar10", split, dtype)
    parts = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    names = [f"cifar-10-batches-bin/{part}.bin" for part in parts]
    archive = load("cifar-10/cifar-10-binary.tar.gz")
    # Members are read in memory, by name, so no archive can write a file.
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        rows = np.concatenate([_cifar_rows(name, _member(tar, name)) for name in names])
    x = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _scaled(x, dtype), rows[:, 0].astype(np.int32)


def parse_idx(name: str, content: bytes) -> np.ndarray:
    """Content of an IDX file -> uint8 [...]: 0, 0, 8, rank, sizes (int32, big-endian), bytes.

    ValueError, with `name`, if the content has another form.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(
            f"{name}: starts with {content[:4]!r}, expected 0, 0, 8, rank (IDX, uint8)"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{name}: {len(content)} bytes, expected {start} of header")
    shape = tuple(np.frombuffer(content[4:start], ">i4").tolist())
    if min(shape, default=1) < 0 or len(content) - start != np.prod(shape, dtype=object):
        raise ValueError(f"{name}: {len(content) - start} bytes of data, expected shape {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _idx_rows(folder: str, split: Split, dtype: DTypeLike) -> Rows:
    _check(folder.replace("-", "_"), split, dtype)
    part = "t10k" if split == "test" else "train"
    files = f"{folder}/{part}-images-idx3-ubyte.gz", f"{folder}/{part}-labels-idx1-ubyte.gz"
    x, labels = (parse_idx(name, load(name)) for name in files)
    if x.shape[1:] != (28, 28) or labels.shape != x.shape[:1]:
        raise ValueError(
            f"{folder}: images have shape {x.shape}, labels {labels.shape},"
            " expected [rows, 28, 28] and [rows]"
        )
    return _scaled(x, dtype)[..., None], labels.astype(np.int32)


def _cifar_rows(name: str, content: bytes) -> np.ndarray:
    if len(content) % 3073:
        raise ValueError(f"{name}: {len(content)} bytes, expected a multiple of 3,073")
    return np.frombuffer(content, np.uint8).reshape(-1, 3073)


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name) if name in tar.getnames() else None
    if member is None:
        raise ValueError(f"cifar10: the archive has no file {name}; it has {tar.getnames()}")
    return member.read()


def _scaled(x: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Bytes if `dtype` is uint8, else bytes / 255; half precision is rounded from float32."""
    if np.dtype(dtype) == np.uint8:
        return np.ascontiguousarray(x)
    wide = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    return np.divide(x, wide(255), dtype=wide, order="C").astype(dtype, copy=False)


def _check(name: str, split: str, dtype: DTypeLike) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"{name}: split is {split!r}, expected 'train' or 'test'")
    if np.dtype(dtype) != np.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name}: dtype is {np.dtype(dtype)}, expected floating point or uint8")
