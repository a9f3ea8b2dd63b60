"""Files that are damaged, forged, or another tool's: loaded exactly, or a ValueError names them."""

import hashlib
import json
import random
import re
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from fnn import checkpoint

EXTRA = {"epoch": 3}


def small_tree():
    tree = {"a": np.arange(5, dtype=np.float32), "n": 0.5, "c": np.arange(3, dtype=np.complex64)}
    return tree | {"step": np.int32(3)}


def damages(raw, draw):
    """Bytes that are not `raw`: bits, truncations, insertions, swapped parts, false lengths."""
    size = len(raw)
    while True:
        at, end = sorted(draw.sample(range(size + 1), 2))
        some = draw.randbytes(draw.randrange(1, 9))
        bits = bytearray(raw)
        for _ in range(draw.randrange(1, 4)):
            bits[draw.randrange(size)] ^= 1 << draw.randrange(8)
        length = draw.choice([0, 1, size, size - 8, 2**31, 2**63, 2**64 - 1, draw.randrange(size)])
        for other in (
            bytes(bits),
            raw[:at],
            raw[at:],
            raw[:at] + some + raw[at:],
            raw[:at] + raw[end:],
            raw[end:] + raw[:end],
            raw[:at] + raw[end:] + raw[at:end],
            raw[:at] + some + raw[at + len(some) :],
            raw + some,
            length.to_bytes(8, "little") + raw[8:],
        ):
            if other != raw:
                yield other


def test_damaged_files_are_refused_by_name(tmp_path):
    path, tree = tmp_path / "step_00000002.safetensors", small_tree()
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
    checkpoint.save_last(tmp_path, tree, EXTRA | {"spare": True}, step=1)
    checkpoint.save(path, tree, EXTRA)
    readers = [
        lambda: checkpoint.load(path, tree),
        lambda: checkpoint.load(path),
        lambda: checkpoint.load_leaves(path, tree, names=["**"]),
    ]
    others = damages(path.read_bytes(), random.Random(0))
    with open(path, "r+b", buffering=0) as file:  # kept open: to cut a file to 0 bytes is slow
        for _, other in zip(range(2500), others, strict=False):
            file.seek(0)
            file.write(other)
            file.truncate()
            for read in readers:
                with pytest.raises(ValueError, match=r"step_00000002\.safetensors is damaged"):
                    read()
            try:
                assert isinstance(checkpoint.describe(path), str)
            except (ValueError, NotImplementedError) as error:  # the digit of the format may change
                assert str(path) in str(error)  # noqa: PT017, it may show it too
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                back, extra = checkpoint.load_last(tmp_path, tree)
            assert f"load_last: {path} is damaged" in str(caught[0].message)
            assert extra["spare"]
            assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(back)] == leaves


# --- headers that no checksum gives away ----------------------------------------------------------


def forged(header, arrays, data):
    """A file with this header, these entries of arrays, and a right checksum."""
    text = header if isinstance(header, str) else json.dumps(header)
    outer = {"__metadata__": {"sha256": "0" * 64, "fnn": text}, **arrays}
    head = json.dumps(outer, separators=(",", ":")).encode()
    raw = len(head).to_bytes(8, "little") + head + data
    return raw.replace(b"0" * 64, hashlib.sha256(raw).hexdigest().encode())


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LEAF = {"dtype": "float32", "shape": [2]}
HEADER = {
    "format": 1,
    "leaves": {"a": LEAF},
    "structure": "{'a': *}",
    "versions": {"fnn": "1"},
    "extra": {},
}
KEY_LEAF = {"dtype": "key<threefry2x32>", "shape": [], "impl": "threefry2x32"}
FORGED = {
    "brackets in fnn's header": {"header": "[" * 100_000},
    "brackets in extra": {"header": json.dumps(HEADER)[:-1] + ',"extra":' + "[" * 100_000},
    "brackets that close": {"header": "[" * 100_000 + "]" * 100_000},
    "no dict": {"header": [HEADER]},
    "no leaves": {"header": {n: v for n, v in HEADER.items() if n != "leaves"}},
    "no versions": {"header": {n: v for n, v in HEADER.items() if n != "versions"}},
    **{
        f"{name} is {value!r}": {"header": HEADER | {name: value}}
        for name, values in {
            "leaves": ([], ["a"], None, {"b": LEAF}, {}, {"a": LEAF, "b": LEAF}, {"a": 1}),
            "format": ("1", None, 1.0, True, 0, -1),
            "structure": (None, 1, []),
            "versions": ([], None, "fnn"),
            "extra": ([], None, "", 1),
        }.items()
        for value in values
    },
    **{
        f"{name} of a leaf is {value!r}": {"header": HEADER | {"leaves": {"a": LEAF | {name: value}}}}
        for name, values in {
            "shape": (2, None, "2", [2.0], [-2], [True], ["2"], [3], [1], [], [[2]], [2**70], [2**70, 0]),
            "dtype": ("float99", "O", "object", "str", "V8", "a3", "", "f4,f4", "datetime64", 4, None, "float64", "float16", ["float32"], "key<threefry2x32>"),
            "impl": ("threefry2x32", None, 3),
        }.items()
        for value in values
    },
    "no dtype": {"header": HEADER | {"leaves": {"a": {"shape": [2]}}}},
    "an unknown generator": {
        "header": HEADER | {"leaves": {"a": {"dtype": "key<my>", "shape": [], "impl": "my"}}}
    },
    "another generator's size": {"header": HEADER | {"leaves": {"a": KEY_LEAF | {"shape": [2]}}}},
    **{
        f"array {name} is {value!r}": {"arrays": {"a": ENTRY | {name: value}}}
        for name, values in {
            "data_offsets": ([0, 4], [8, 0], [-8, 0], [0, 2**40], [4, 12], [0, 2**64], [0], None, [0.0, 8.0]),
            "dtype": ("F33", "F64", "", None),
            "shape": ([3], [-2], [2.0], None, [2**63, 2**63]),
        }.items()
        for value in values
    },
    "no array": {"arrays": {}, "data": b""},
    "no array, but its bytes": {"arrays": {}},
    "bytes that are nobody's": {"data": bytes(16)},
    "arrays that overlap": {
        "header": HEADER | {"leaves": {"a": LEAF, "b": LEAF}}, "arrays": {"a": ENTRY, "b": ENTRY}
    },
    "an array without bytes and a size that is none": {
        "header": HEADER | {"leaves": {"a": LEAF | {"shape": [0, 2**62, 2**62]}}},
        "arrays": {"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, "data": b"",
    },
}  # fmt: skip


def write_forged(path, header=HEADER, arrays=None, data=bytes(8)):
    path.write_bytes(forged(header, {"a": ENTRY} if arrays is None else arrays, data))


def test_the_forger_can_write(tmp_path):
    path = tmp_path / "x.safetensors"
    write_forged(path)
    np.testing.assert_array_equal(checkpoint.load(path)[0]["a"], np.zeros(2, np.float32))
    words = {"dtype": "U32", "shape": [2], "data_offsets": [0, 8]}
    write_forged(path, HEADER | {"leaves": {"a": KEY_LEAF}}, {"a": words})
    assert jax.random.key_data(checkpoint.load(path)[0]["a"]).tolist() == [0, 0]


@pytest.mark.parametrize("case", FORGED)
def test_forged_headers_are_refused_by_name(case, tmp_path):
    path, like = tmp_path / "step_00000002.safetensors", {"a": jnp.zeros(2)}
    checkpoint.save_last(tmp_path, like, EXTRA, step=1)
    write_forged(path, **FORGED[case])
    for read in (
        lambda: checkpoint.load(path, like),
        lambda: checkpoint.load(path),
        lambda: checkpoint.load_leaves(path, like, names=["a"]),
    ):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read()
    for show in (checkpoint.describe, checkpoint.read_header):  # they look at no array
        try:
            show(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017, it may show it too
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            assert checkpoint.load_last(tmp_path, like)[1] == EXTRA
            assert str(path) in str(caught[0].message)
        except ValueError as error:  # whole, but of another shape or dtype: that is no damage
            assert f"{path} does not fit" in str(error)  # noqa: PT017


def test_brackets_around_everything(tmp_path):
    path = tmp_path / "x.safetensors"
    for text in (b"[" * 100_000, b'{"a":' * 100_000, b"[" * 50_000 + b"]" * 50_000, b"null", b"3"):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        for read in (checkpoint.load, checkpoint.describe, checkpoint.read_header):
            with pytest.raises(
                ValueError, match=r"x\.safetensors is damaged, or is no safetensors"
            ):
                read(path)


def test_a_checksum_in_the_data_is_none(tmp_path):
    path, like = tmp_path / "x.safetensors", {"a": np.zeros(84, np.uint8)}
    checkpoint.save(path, like)
    raw = path.read_bytes()
    quoted = b'"sha256":"' + b"0" * 64 + b'"'
    named = raw.replace(b'"sha256"', b'"sha255"')[: -len(quoted)] + quoted
    path.write_bytes(named.replace(b"0" * 64, hashlib.sha256(named).hexdigest().encode()))
    with pytest.raises(ValueError, match="it has no checksum"):
        checkpoint.load(path, like)


# --- other tools' files ---------------------------------------------------------------------------


def others_file(path):
    """As PyTorch's models are stored: dots in the names, no metadata of ours."""
    arrays = {
        "layer.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "layer.0.bias": np.ones(2, jnp.bfloat16),
        "head/w": np.arange(3, dtype=np.int64),
        "flags": np.array([True, False]),
        "small": np.array([1, -2], jnp.float8_e4m3fn),
        "z": np.array([1j], np.complex64),
    }
    save_file(arrays, path, {"format": "pt"})
    return arrays


def test_another_tools_file_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    arrays = others_file(path)
    tree, extra = checkpoint.load(path)
    assert extra == {"format": "pt"}
    assert tree.keys() == {"layer.0.weight", "layer.0.bias", "head", "flags", "small", "z"}
    found = tree | {"head/w": tree["head"]["w"]}
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert isinstance(found[name], np.ndarray if name == "head/w" else jax.Array)  # int64
    like = {"layer.0.weight": jnp.zeros((2, 3)), "mine": jnp.zeros(1)}
    back = checkpoint.load_leaves(path, like, names=["layer.0.weight"])
    chex.assert_trees_all_equal(back, like | {"layer.0.weight": arrays["layer.0.weight"]})
    with pytest.raises(ValueError, match=r"missing     mine: float32\[1\]\n.*unexpected"):
        checkpoint.load(path, like)
    with pytest.raises(ValueError, match="other epoch: the file has 'nothing', expected 3"):
        checkpoint.load(path, expect=EXTRA)
    text = checkpoint.describe(path)
    assert "format 0, safetensors of another tool\nextra: {'format': 'pt'}" in text
    assert "layer.0.weight: float32[2, 3]" in text
    assert checkpoint.read_header(path)["leaves"]["small"]["dtype"] == "float8_e4m3fn"


def test_another_tools_file_without_metadata(tmp_path):
    save_file({"a": np.ones(3)}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "x.safetensors")[0]["a"], np.ones(3))


def test_another_tools_file_is_no_runs_last(tmp_path):
    save_file({"a": np.ones(3)}, tmp_path / "step_00000003.safetensors")
    with (
        pytest.warns(UserWarning, match="or is not fnn's: it has no checksum"),
        pytest.raises(ValueError, match="every file is damaged"),
    ):
        checkpoint.load_last(tmp_path, {"a": np.ones(3)})


def test_a_dtype_that_numpy_has_not(tmp_path):
    path = tmp_path / "x.safetensors"
    head = json.dumps({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(2))
    with pytest.raises(ValueError, match=r"x\.safetensors .*'F4'"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"", b"<html><body>404</body></html>", b"PK\x03\x04" * 9])
def test_a_file_of_another_kind(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (checkpoint.load, checkpoint.describe):
        with pytest.raises(ValueError, match=r"x\.safetensors is damaged"):
            read(path)


# --- without an example ---------------------------------------------------------------------------


def test_nested_dicts_without_like(tmp_path):
    path, key = tmp_path / "x.safetensors", jax.random.key(5, impl="rbg")
    params = {"hidden": {"w": jnp.ones((2, 3), jnp.bfloat16), "b": np.zeros(3, np.float32)}}
    tree = {"params": params, "key": key, "n": 3, "rate": 0.5, "z": 1j, "wide": np.arange(2.0)}
    checkpoint.save(path, tree | {"list": [jnp.ones(1), (jnp.zeros(2),)], "nothing": {}}, EXTRA)
    back, extra = checkpoint.load(path, expect=EXTRA)
    assert extra == EXTRA
    expected = tree | {"list": {"0": jnp.ones(1), "1": {"0": jnp.zeros(2)}}}
    assert jax.tree.structure(back) == jax.tree.structure(expected)
    chex.assert_trees_all_equal(back | {"key": 0}, expected | {"key": 0})
    assert jnp.array_equal(jax.random.key_data(back["key"]), jax.random.key_data(key))
    assert jax.random.key_impl(back["key"]) == "rbg"
    assert isinstance(back["params"]["hidden"]["b"], jax.Array)
    assert [type(back[name]) for name in ("n", "rate", "z")] == [int, float, complex]
    assert type(back["wide"]) is np.ndarray  # JAX would round it
    checkpoint.save(path, np.ones(2, np.longdouble))  # which JAX has not
    assert checkpoint.load(path)[0].dtype == np.longdouble
    checkpoint.save(path, tree, EXTRA)
    with jax.enable_x64(True):
        assert isinstance(checkpoint.load(path)[0]["wide"], jax.Array)
    with pytest.raises(ValueError, match="other epoch: the file has 3, expected 4"):
        checkpoint.load(path, expect={"epoch": 4})
    checkpoint.save_last(tmp_path, params, EXTRA, step=1)
    chex.assert_trees_all_equal(checkpoint.load_last(tmp_path)[0], params)


def test_a_tree_of_one_leaf_or_none_without_like(tmp_path):
    path = tmp_path / "x.safetensors"
    for tree in (2.5, {}, {"": {"": 1}}, {"a": {"": 1}}):
        checkpoint.save(path, tree)
        assert checkpoint.load(path)[0] == tree
    for name in ("a", "b"):  # a leaf is beside "a/b" in a dict, before it or after it
        write_forged(
            path,
            HEADER | {"leaves": {name: LEAF, "a/b": LEAF, "b/b": LEAF}},
            {
                leaf: ENTRY | {"data_offsets": [8 * i, 8 * i + 8]}
                for i, leaf in enumerate([name, "a/b", "b/b"])
            },
            bytes(24),
        )
        with pytest.raises(ValueError, match=r"load: .*x\.safetensors has a leaf inside another"):
            checkpoint.load(path)


def test_a_length_of_2_to_the_63_is_no_reason_to_ask_for_so_many_bytes(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little"))
    for read in (checkpoint.load, checkpoint.describe):
        with pytest.raises(ValueError, match="its header is cut"):
            read(path)
