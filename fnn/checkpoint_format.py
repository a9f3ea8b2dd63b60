"""What a checkpoint holds: a tree's leaves by path, a header in JSON, and one file of both.

The file is in the safetensors format, so that other tools find the arrays under their paths. Its
metadata are the header and a sha256 of the whole file, taken with the digest's own place zeroed.
There is no pickle in it. Typed keys are kept as their data; what not every safetensors has a type
for (int4, most of float8, complex), as bytes.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr, tree_leaves_with_path

FORMAT = 1
PYTHON = {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}
_NATIVE = {"bool", "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"}
_NATIVE |= {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')  # quotes in a text are escaped in JSON
_LONGEST_HEADER = 100_000_000  # safetensors' own limit

Extra = Mapping[str, Any]
Leaf = dict[str, Any]  # a leaf's line in the header: dtype, shape and, of keys, impl


# --- leaves -----------------------------------------------------------------------------------


def named_leaves(name: str, tree: Any) -> dict[str, Any]:
    """{path: leaf} in the order of the tree; ValueError if a path is not one leaf's alone."""
    leaves: dict[str, Any] = {}
    for keys, leaf in tree_leaves_with_path(tree):
        path = keystr(keys, simple=True, separator="/")
        if path in leaves or path == "__metadata__":
            raise ValueError(f"{name}: the path {path!r} is another leaf's, or the file format's")
        leaves[path] = leaf
    return leaves


def is_key(leaf: Any) -> bool:
    """Whether the leaf is a typed key, or an array of them."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def spec(path: str, leaf: Any) -> Leaf:
    """The leaf's dtype and shape, for the header and for comparison with it."""
    if type(leaf) in PYTHON:
        return {"dtype": type(leaf).__name__, "shape": []}
    if is_key(leaf):
        impl = _impl(leaf)
        return {"dtype": f"key<{impl}>", "shape": list(leaf.shape), "impl": impl}
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not any(jnp.issubdtype(dtype, t) for t in (np.number, np.bool_)):
        came = type(leaf).__name__ if dtype is None else f"an array of {dtype}"
        raise TypeError(f"checkpoint: {path} is {came}, expected numbers or keys")
    return {"dtype": np.dtype(dtype).name, "shape": list(leaf.shape)}


def _impl(key: Any) -> str:
    # Traced, for jax.random.key_impl knows arrays and tracers, but not shapes.
    found: list[str] = []
    jax.eval_shape(lambda key: found.append(str(jax.random.key_impl(key))), key)
    return found[0]


def show(leaf: Leaf) -> str:
    """As in float32[3, 4]."""
    return f"{leaf['dtype']}{leaf['shape']}"


def data_of(leaf: Any) -> Any:
    """What there is to store of a leaf: an array of numbers, on the devices where it is."""
    if is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf, PYTHON.get(type(leaf)))


def numpy_of(path: str, leaf: Any) -> np.ndarray:
    """`data_of` as one contiguous array of the machine's byte order, gathered if sharded."""
    data = data_of(leaf)
    if isinstance(data, jax.Array) and not (data.is_fully_addressable or data.is_fully_replicated):
        raise ValueError(f"checkpoint: {path} is spread over several processes; use save_sharded")
    array = np.asarray(data, order="C")
    if array.dtype == object:
        raise TypeError(f"checkpoint: {path} is a {type(leaf).__name__}, which holds no numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


# --- header -----------------------------------------------------------------------------------


def header_of(tree: Any, leaves: Mapping[str, Any], extra: Extra | None) -> Leaf:
    """All that a checkpoint says of itself, as JSON can hold it."""
    import fnn

    return {
        "format": FORMAT,
        "leaves": {path: spec(path, leaf) for path, leaf in leaves.items()},
        "structure": str(jax.tree.structure(tree)),
        "versions": {module.__name__: module.__version__ for module in (fnn, jax, optax)},
        "extra": dict(extra or {}),
    }


def read_header(path: str | Path) -> Leaf:
    """What the file says of itself: format, leaves, structure, versions, extra; no array."""
    with open(path, "rb") as file:
        size = file.read(8)
        header = file.read(min(int.from_bytes(size, "little"), _LONGEST_HEADER))
    return _parse(path, header)


def _parse(path: str | Path, header: bytes) -> Leaf:
    try:
        found = json.loads(json.loads(header)["__metadata__"]["fnn"])
        known = found["format"] <= FORMAT
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{path} is damaged, or is not fnn's: its header is unreadable") from None
    if not known:
        raise NotImplementedError(f"{path} has format {found['format']}, this fnn knows {FORMAT}")
    return found


# --- comparing and restoring -------------------------------------------------------------------


def restore(
    path: str | Path, header: Leaf, arrays: Mapping[str, Any], like: Any, expect: Extra | None
) -> tuple[Any, dict[str, Any]]:
    """(tree, extra), if `check` finds nothing."""
    like = like(header) if isinstance(like, FunctionType) else like
    wanted, found = named_leaves("load", like), header["leaves"]
    check(path, header, wanted, expect)
    leaves = [place(p, arrays[p], found[p], leaf) for p, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), header["extra"]


def check(path: str | Path, header: Leaf, wanted: Mapping[str, Any], expect: Extra | None) -> None:
    """ValueError listing what is not as wanted, if anything."""
    entries = {name: header["extra"].get(name, "nothing") for name in expect or {}}
    others = [
        f"other {name}: the file has {entries[name]!r}, expected {value!r}"
        for name, value in (expect or {}).items()
        if json.dumps(entries[name], sort_keys=True) != json.dumps(value, sort_keys=True)
    ]
    refuse(path, [*differences(header["leaves"], wanted), *others])


def differences(found: Mapping[str, Leaf], wanted: Mapping[str, Any]) -> list[str]:
    """A line for each leaf that is not on both sides, or not the same."""
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
    """ValueError of these differences, if there are any."""
    if differences:
        raise ValueError(f"checkpoint: {path} does not fit:\n  " + "\n  ".join(differences))


def sharding_of(like: Any) -> Any:
    """Where the array that `like` stands for is to be; None if `like` names no devices."""
    sharding = getattr(like, "sharding", None) if getattr(like, "committed", True) else None
    # jax.eval_shape of a sharded array says how it is cut, but not among whom.
    abstract = isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh)
    return None if abstract else sharding


def place(path: str, data: Any, leaf: Leaf, like: Any) -> Any:
    """The stored data as what `like` is: a key, a JAX or NumPy array, a Python number."""
    if type(like) in PYTHON:
        return data.item()
    if isinstance(like, np.ndarray | np.generic):
        return data if isinstance(like, np.ndarray) else data[()]
    if jax.dtypes.canonicalize_dtype(data.dtype) != data.dtype:
        raise ValueError(f"load: {path} is {data.dtype}, which JAX has only under enable_x64")
    array = data if isinstance(data, jax.Array) else _to_devices(data, sharding_of(like))
    return jax.random.wrap_key_data(array, impl=leaf["impl"]) if "impl" in leaf else array


def _to_devices(data: np.ndarray, sharding: Any) -> jax.Array:
    # Copies: device_put may keep NumPy's memory, on a CPU even one memory for several devices.
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
    raw = save(arrays, {"fnn": json.dumps(header), "sha256": "0" * 64})
    place = _DIGEST.search(raw)
    assert place, "safetensors no longer writes its header as compact JSON"
    start, end = place.span(1)
    return b"".join([raw[:start], _digest(raw, start, end), raw[end:]])


def unpack(path: str | Path) -> tuple[Leaf, dict[str, np.ndarray]]:
    """The file's header and arrays; ValueError if one byte is not as it was written."""
    from safetensors import deserialize

    raw = Path(path).read_bytes()
    if (place := _DIGEST.search(raw, 0, _LONGEST_HEADER)) is None:
        raise ValueError(f"{path} is damaged, or is not fnn's: it has no checksum")
    if place[1] != _digest(raw, *place.span(1)):
        raise ValueError(f"{path} is damaged (cut short or changed): its checksum is not its own")
    header = _parse(path, raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    entries = deserialize(raw)
    return header, {name: _original(entry, header["leaves"][name]) for name, entry in entries}


def _digest(raw: bytes, start: int, end: int) -> bytes:
    view = memoryview(raw)
    digest = hashlib.sha256(view[:start])
    digest.update(b"0" * (end - start))
    digest.update(view[end:])
    return digest.hexdigest().encode()


def _stored(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.name in _NATIVE else array.reshape(-1).view(np.uint8)


def _original(entry: Mapping[str, Any], leaf: Leaf) -> np.ndarray:
    if "impl" in leaf:
        return np.ndarray(entry["shape"], np.uint32, buffer=entry["data"])
    return np.ndarray(leaf["shape"], np.dtype(leaf["dtype"]), buffer=entry["data"])
