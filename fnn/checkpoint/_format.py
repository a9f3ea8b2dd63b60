"""The format of a checkpoint: the leaves of a tree by path and a header in JSON, in one file.

- The file is a safetensors file, so other tools find the arrays under their paths.
- Its metadata are the header and a sha256 of the whole file. For the sha256 the 64 digits of the
  sha256 itself are zeros.
- There is no pickle in it.
- A file of another tool has no such header and no sha256. Its arrays are read all the same.
- Typed keys are stored as their data. Dtypes that not every version of safetensors has (int4, most
  of float8, complex) are stored as bytes.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import FunctionType
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path

from fnn._base import check_regular

FORMAT = 1
PYTHON = {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}
# {name in a safetensors file: name of the dtype}, of those that format 1 does not store as bytes
_NATIVE = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
_OTHERS = _NATIVE | {"C64": "complex64", "F8_E8M0": "float8_e8m0fnu"}  # as other tools write them
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')  # JSON escapes quotes inside a string
_LONGEST_HEADER = 100_000_000  # the limit of safetensors
_PIECE = 2**20

Buffer = bytes | memoryview
Extra = Mapping[str, Any]
Leaf = dict[str, Any]  # a leaf's entry in the header: dtype, shape, and impl if it is a key


# --- leaves -----------------------------------------------------------------------------------


def named_leaves(name: str, tree: Any) -> dict[str, Any]:
    """{path: leaf} in the order of the tree; ValueError if two leaves have the same path."""
    leaves: dict[str, Any] = {}
    for keys, leaf in tree_leaves_with_path(tree):
        path = keystr(keys, simple=True, separator="/")
        if path in leaves or path == "__metadata__":
            raise ValueError(
                f"{name}: the path {path!r} belongs to another leaf or to the file format"
            )
        leaves[path] = leaf
    return leaves


def is_key(leaf: Any) -> bool:
    """Whether the leaf is a typed key or an array of typed keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def spec(path: str, leaf: Any) -> Leaf:
    """The leaf's entry in the header. TypeError if the leaf is not numbers or keys."""
    if type(leaf) in PYTHON:
        return {"dtype": type(leaf).__name__, "shape": []}
    if is_key(leaf):
        impl = _impl(leaf)
        return {"dtype": f"key<{impl}>", "shape": list(leaf.shape), "impl": impl}
    dtype = getattr(leaf, "dtype", None)
    timed = getattr(dtype, "kind", "") == "m"  # a timedelta, which NumPy counts as an integer
    if (
        dtype is None
        or timed
        or not any(jnp.issubdtype(dtype, kind) for kind in (np.number, np.bool_))
    ):
        came = type(leaf).__name__ if dtype is None else f"an array of {dtype}"
        raise TypeError(f"checkpoint: {path or 'the tree'} is {came}, expected numbers or keys")
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(f"checkpoint: {path} is a masked array, whose mask would be lost")
    return {"dtype": np.dtype(dtype).name, "shape": list(leaf.shape)}


def _impl(key: Any) -> str:
    # Traced, because jax.random.key_impl takes arrays and tracers, but not shapes.
    found: list[str] = []
    jax.eval_shape(lambda key: found.append(str(jax.random.key_impl(key))), key)
    return found[0]


def show(leaf: Leaf) -> str:
    """The entry as text, such as float32[3, 4]."""
    return f"{leaf['dtype']}{leaf['shape']}"


def data_of(leaf: Any) -> Any:
    """The numbers to store for a leaf: an array on the devices of the leaf."""
    if is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf, PYTHON.get(type(leaf)))


def numpy_of(path: str, leaf: Any) -> np.ndarray:
    """`data_of` as one contiguous array in the machine's byte order; a sharded leaf is gathered."""
    if isinstance(leaf, Tracer):
        raise TypeError(f"checkpoint: {path} is traced, expected values; save it outside jit")
    if type(leaf) is int and not -(2**63) <= leaf < 2**63:
        raise OverflowError(f"checkpoint: {path} is {leaf}, too large for 64 bits")
    data = data_of(leaf)
    if isinstance(data, jax.Array) and not (data.is_fully_addressable or data.is_fully_replicated):
        raise ValueError(f"checkpoint: {path} is sharded over several processes; use save_sharded")
    array = np.asarray(data, order="C")
    if array.dtype == object:
        raise TypeError(f"checkpoint: {path} is a {type(leaf).__name__}, which holds no numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


# --- header -----------------------------------------------------------------------------------


def header_of(tree: Any, leaves: Mapping[str, Any], extra: Extra | None) -> Leaf:
    """The header: format, leaves, structure, versions, extra."""
    return {
        "format": FORMAT,
        "leaves": {path: spec(path, leaf) for path, leaf in leaves.items()},
        "structure": str(jax.tree.structure(tree)),
        "versions": {name: metadata.version(name) for name in ("fnn", "jax", "optax")},
        "extra": dict(extra or {}),
    }


def read_header(path: str | Path) -> Leaf:
    """The header of a file: format, leaves, structure, versions, extra. No array is read.

    The checksum, which covers the whole file, is not verified. A safetensors file of another tool
    has format 0, and its metadata are `extra`.
    """
    with _opened(path) as file:
        return _parse(path, _head(path, file)[8:])


def _opened(path: str | Path) -> BinaryIO:
    check_regular(path)
    return open(path, "rb")


def _head(path: str | Path, file: BinaryIO) -> bytes:
    """The length of the header, in 8 bytes, and the header."""
    size = file.read(8)
    header = file.read(min(int.from_bytes(size, "little"), _LONGEST_HEADER))
    if len(size) < 8 or len(header) < int.from_bytes(size, "little"):
        raise ValueError(f"{path} is damaged (cut short or changed): its header is cut")
    return size + header


def _parse(path: str | Path, content: bytes) -> Leaf:
    """The header in `content`. ValueError if anything in it is not as `header_of` makes it."""
    try:
        arrays = json.loads(content)
        notes = arrays.pop("__metadata__", {})
        if not {"fnn", "sha256"} & notes.keys():
            return _header_of_others(arrays, notes)
        found = json.loads(notes["fnn"])
        if (version := _as(int, found["format"])) < 1:
            raise ValueError(f"format {version}")
        if version <= FORMAT:
            for leaf in _as(dict, found["leaves"]).values():
                _check_leaf(leaf)
            for name, kind in {"structure": str, "versions": dict, "extra": dict}.items():
                _as(kind, found[name])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged, or is no safetensors file: its header is unreadable ({error!r})"
        ) from None
    if version > FORMAT:
        raise NotImplementedError(f"{path} has format {version}, this fnn reads up to {FORMAT}")
    return found


def _header_of_others(arrays: Mapping[str, Any], notes: Mapping[str, Any]) -> Leaf:
    leaves = {
        name: {"dtype": _OTHERS[entry["dtype"]], "shape": entry["shape"]}
        for name, entry in arrays.items()
    }
    for leaf in leaves.values():
        _check_leaf(leaf)
    return {"format": 0, "leaves": leaves, "structure": "", "versions": {}, "extra": dict(notes)}


def _check_leaf(leaf: Leaf) -> None:
    if any(_as(int, size) < 0 for size in _as(list, leaf["shape"])):
        raise ValueError(f"shape {leaf['shape']}")
    if "impl" not in leaf:
        _dtype(leaf["dtype"])
    elif leaf["dtype"] != f"key<{_as(str, leaf['impl'])}>":
        raise ValueError(f"dtype {leaf['dtype']} of a key of {leaf['impl']}")


def _dtype(name: Any) -> np.dtype[Any]:
    if not re.fullmatch(r"(bool|u?int|b?float|complex)[a-z0-9_]*", _as(str, name)):
        raise ValueError(f"dtype {name!r}")
    return np.dtype(name)


def _as(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.50} is no {kind.__name__}")
    return value


# --- comparing and restoring -------------------------------------------------------------------


def restore(
    path: str | Path, header: Leaf, arrays: Mapping[str, Any], like: Any, expect: Extra | None
) -> tuple[Any, dict[str, Any]]:
    """(tree, extra). ValueError if `check` finds a difference. Nested dicts if like is `...`."""
    if like is ...:
        check(path, header, None, expect)
        return _nested(path, header["leaves"], arrays), header["extra"]
    like = like(header) if isinstance(like, FunctionType) else like
    wanted, found = named_leaves("load", like), header["leaves"]
    check(path, header, wanted, expect)
    leaves = [place(p, arrays[p], found[p], leaf) for p, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), header["extra"]


def check(
    path: str | Path, header: Leaf, wanted: Mapping[str, Any] | None, expect: Extra | None
) -> None:
    """ValueError that lists every difference to the wanted leaves and to `expect`, if any."""
    entries = {name: header["extra"].get(name, "nothing") for name in expect or {}}
    others = [
        f"other {name}: the file has {entries[name]!r}, expected {value!r}"
        for name, value in (expect or {}).items()
        if _json(entries[name]) != _json(value)
    ]
    leaves = [] if wanted is None else differences(header["leaves"], wanted)
    refuse(path, [*leaves, *others])


def _json(value: Any) -> str:
    """The value as text, of which equal values have the same; keys that are numbers are text."""
    return json.dumps(json.loads(json.dumps(value, default=_plain)), sort_keys=True)


def differences(found: Mapping[str, Leaf], wanted: Mapping[str, Any]) -> list[str]:
    """A line for each leaf that only one side has, or that has another shape or dtype."""
    specs = {p: spec(p, leaf) for p, leaf in wanted.items()}
    return [
        *(f"missing     {p}: {show(specs[p])}" for p in specs if p not in found),
        *(f"unexpected  {p}: {show(found[p])}" for p in found if p not in specs),
        *(
            f"{what:<10}  {p}: the file has {found[p][what]}, expected {specs[p][what]}"
            for what in ("shape", "dtype")
            for p in specs
            if p in found and found[p][what] != specs[p][what]
        ),
    ]


def refuse(path: str | Path, differences: Sequence[str]) -> None:
    """ValueError that lists the differences, if there are any."""
    if differences:
        raise ValueError(f"checkpoint: {path} does not fit:\n  " + "\n  ".join(differences))


def _nested(path: str | Path, leaves: Mapping[str, Leaf], arrays: Mapping[str, Any]) -> Any:
    """Nested dicts: the leaf a/b is tree["a"]["b"]. A tree of one leaf is that leaf."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *outer, last = ["", *name.split("/")] if name else [""]
        branch: Any = tree
        for key in outer:
            branch = branch.setdefault(key, {}) if isinstance(branch, dict) else None
        if not isinstance(branch, dict) or last in branch:
            raise ValueError(f"load: {path} has a leaf inside another, at {name!r}; pass like")
        branch[last] = place(name, arrays[name], leaf, _like(leaf, arrays[name]))
    return tree.get("", tree)


def _like(leaf: Leaf, data: np.ndarray) -> Any:
    """What `place` makes a Python number or a JAX array; NumPy's, if JAX would round or refuse."""
    python = {"int": 0, "float": 0.0, "complex": 0j}.get(leaf["dtype"])
    longer = data.dtype.name in ("float96", "float128", "complex192", "complex256")
    rounded = "impl" not in leaf and (
        longer or jax.dtypes.canonicalize_dtype(data.dtype) != data.dtype
    )
    return data if python is None and rounded else python


def sharding_of(like: Any) -> Any:
    """The sharding that the array like `like` must have; None if `like` names no devices."""
    sharding = getattr(like, "sharding", None) if getattr(like, "committed", True) else None
    # jax.eval_shape of a sharded array has the partition, but not the devices.
    abstract = isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh)
    return None if abstract else sharding


def place(path: str, data: Any, leaf: Leaf, like: Any) -> Any:
    """The stored data as the type of `like`: a key, a JAX or NumPy array, a Python number."""
    if type(like) in PYTHON:
        return data.item()
    if isinstance(like, np.ndarray | np.generic):
        return data if isinstance(like, np.ndarray) else data[()]
    if jax.dtypes.canonicalize_dtype(data.dtype) != data.dtype:
        raise ValueError(f"load: {path} is {data.dtype}, which needs jax.enable_x64")
    array = data if isinstance(data, jax.Array) else _to_devices(data, sharding_of(like))
    return jax.random.wrap_key_data(array, impl=leaf["impl"]) if "impl" in leaf else array


def _to_devices(data: np.ndarray, sharding: Any) -> jax.Array:
    # Copies, because device_put may keep NumPy's memory, on a CPU the same for several devices.
    if sharding is None:
        return jnp.array(data)
    return jax.make_array_from_callback(data.shape, sharding, lambda index: jnp.array(data[index]))


# --- file -------------------------------------------------------------------------------------


def pack(tree: Any, extra: Extra | None) -> bytes:
    """The whole content of the file."""
    from safetensors.numpy import save

    leaves = named_leaves("save", tree)
    header = header_of(tree, leaves, extra)
    arrays = {path: _stored(numpy_of(path, leaf)) for path, leaf in leaves.items()}
    raw = save(arrays, {"fnn": json.dumps(header, default=_plain), "sha256": "0" * 64})
    digits = _DIGEST.search(raw)
    assert digits, "safetensors no longer writes its header as compact JSON"
    start, end = digits.span(1)
    rest = memoryview(raw)[end:]
    return b"".join([raw[:start], _digest(raw[:end], start, end, [rest]), rest])


def unpack(path: str | Path, *, others: bool = False) -> tuple[Leaf, dict[str, np.ndarray]]:
    """The header and the arrays of a file; ValueError if one byte has changed.

    With `others`, files of other tools too, which have no checksum.
    """
    from safetensors import SafetensorError, deserialize

    with _opened(path) as file:
        head = _head(path, file)
        file.seek(0)
        raw = file.read()
    header = _verify(path, head, [memoryview(raw)[len(head) :]], others)
    try:
        entries = dict(deserialize(raw))
        if entries.keys() != header["leaves"].keys():
            raise ValueError("its header names other arrays than it has")
        return header, {p: _original(entry, header["leaves"][p]) for p, entry in entries.items()}
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def check_whole(path: str | Path) -> None:
    """ValueError if one byte of the file has changed. Needs no memory for the arrays."""
    with _opened(path) as file:
        _verify(path, _head(path, file), iter(lambda: file.read(_PIECE), b""), False)


def _verify(path: str | Path, head: bytes, rest: Iterable[Buffer], others: bool) -> Leaf:
    """The header in `head`, if the checksum of `head` and `rest` is right."""
    digits = _DIGEST.search(head)
    if digits and digits[1] != _digest(head, *digits.span(1), rest):
        raise ValueError(f"{path} is damaged (cut short or changed): its checksum is wrong")
    header = _parse(path, head[8:])
    if not digits and (header["format"] or not others):
        raise ValueError(f"{path} is damaged, or is not fnn's: it has no checksum")
    return header


def _plain(value: Any) -> Any:
    """A number of NumPy's in `extra` as Python's, which JSON can hold."""
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        return value.item()
    raise TypeError(
        f"checkpoint: extra holds a {type(value).__name__}, expected what JSON can hold"
    )


def _digest(head: bytes, start: int, end: int, rest: Iterable[Buffer]) -> bytes:
    digest = hashlib.sha256(head[:start] + b"0" * (end - start) + head[end:])
    for piece in rest:
        digest.update(piece)
    return digest.hexdigest().encode()


def _stored(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.name in _NATIVE.values() else array.reshape(-1).view(np.uint8)


def _original(entry: Mapping[str, Any], leaf: Leaf) -> np.ndarray:
    shape, dtype = leaf["shape"], np.dtype(np.uint32)
    if "impl" in leaf:
        shape = [*shape, *_key_shape(leaf["impl"])]
    else:
        dtype = _dtype(leaf["dtype"])
    if math.prod(shape) * dtype.itemsize != len(entry["data"]):
        raise ValueError(f"{len(entry['data'])} bytes for an array {show(leaf)}")
    return np.ndarray(shape, dtype, buffer=entry["data"])


@functools.cache
def _key_shape(impl: str) -> tuple[int, ...]:
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=impl))).shape
