import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import fnn
from fnn import checkpoint
from fnn._base import locked
from fnn.checkpoint import _format as checkpoint_format
from tests.golden import make_checkpoint
from tests.nets import LABELS, X, linear_dropout_loss_fn, linear_init, train_init

KEY = jax.random.key(0)
JAX_DTYPES = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "int4",
    "uint4",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3b11fnuz",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
]


class Pair(NamedTuple):
    first: object
    second: object


def bits(leaf):
    """Type, dtype, shape and bytes: all that there is to a leaf."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "key", str(jax.random.key_impl(leaf)), bits(jax.random.key_data(leaf))
    array = np.asarray(leaf)
    kind = "jax" if isinstance(leaf, jax.Array) else type(leaf)
    return kind, array.dtype, array.shape, array.tobytes()


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    assert jax.tree.map(bits, tree) == jax.tree.map(bits, other)


def round_trip(folder, tree):
    checkpoint.save(folder / "x.safetensors", tree)
    return checkpoint.load(folder / "x.safetensors", tree)[0]


def small_tree(value=0.0):
    return {"a": np.full(5, value, np.float32), "n": value, "step": jnp.int32(3)}


def mesh():
    return jax.make_mesh((8,), ("rows",))


# --- what comes back ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", JAX_DTYPES)
def test_every_dtype_comes_back(dtype, tmp_path):
    values = np.array([[1, 0, 3], [0, 1, 1]]).astype(dtype)
    with jax.enable_x64(dtype in ("int64", "uint64", "float64", "complex128")):
        leaf = jnp.asarray(values)
        assert leaf.dtype == dtype
        tree = {"full": leaf, "scalar": leaf[0, 0], "empty": leaf[:0], "numpy": values}
        back = round_trip(tmp_path, tree)
        assert_same(back, tree)
        assert not any(leaf.weak_type for leaf in (back["full"], back["scalar"], back["empty"]))


def test_nan_payloads_are_kept(tmp_path):
    nans = np.array([0x7FC00001, 0xFFA12345, 0x7F800001, 0x80000000], np.uint32).view(np.float32)
    halves = np.array([0x7FC1, 0xFF81, 0x8000], np.uint16).view(jnp.bfloat16)
    tree = {"numpy": nans, "jax": jnp.array(nans), "half": jnp.array(halves)}
    assert bits(tree["jax"])[3] == nans.tobytes()
    assert_same(round_trip(tmp_path, tree), tree)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_draw_what_they_would_have_drawn(impl, tmp_path):
    key = jax.random.key(5, impl=impl)
    tree = {"key": key, "keys": jax.random.split(key, 3), "none": jax.random.split(key, 3)[:0]}
    back = round_trip(tmp_path, tree)
    assert_same(back, tree)
    assert jax.random.bits(back["key"]) == jax.random.bits(key)


def test_what_is_not_an_array_comes_back_as_it_was(tmp_path):
    tree = Pair(
        {"int": -(2**62), "float": 0.1, "inf": float("inf"), "bool": True, "complex": 1j},
        [None, (), [], {}, np.float32(0.1), np.array(3), Pair(None, 2.5)],
    )
    assert_same(round_trip(tmp_path, tree), tree)


def test_a_tree_may_be_one_leaf_or_none(tmp_path):
    for tree in (jnp.arange(3), 2.5, {}, None):
        assert_same(round_trip(tmp_path, tree), tree)


def test_numpy_of_any_layout(tmp_path):
    grid = np.arange(12.0).reshape(3, 4)
    for array in (grid.T, grid[::2, ::-1], grid.astype(">f8"), grid[1, 1:2].reshape(())):
        back = round_trip(tmp_path, array)
        np.testing.assert_array_equal(back, array, strict=array.dtype.isnative)
        back += 1  # writable


def test_weak_types_come_back_strong(tmp_path):
    weak = jax.jit(lambda: 2.0)()
    assert weak.weak_type
    assert not round_trip(tmp_path, weak).weak_type


def test_other_tools_find_the_arrays_under_their_paths(tmp_path):
    from safetensors.numpy import load_file

    params = {"hidden": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(3)}}
    tree = fnn.training.TrainState(params, (), {"m": params}, jnp.int32(3), jnp.full(2, -1))
    checkpoint.save(tmp_path / "x.safetensors", tree)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == fnn.params.paths(tree).keys()
    np.testing.assert_array_equal(found["params/hidden/w"], params["hidden"]["w"], strict=True)


def test_like_may_be_shapes_only(tmp_path):
    tree = {"w": jnp.ones((2, 3)), "key": jax.random.key(1)}
    checkpoint.save(tmp_path / "x.safetensors", tree)
    like = jax.eval_shape(lambda: {"w": jnp.zeros((2, 3)), "key": jax.random.key(0)})
    assert_same(checkpoint.load(tmp_path / "x.safetensors", like)[0], tree)


def test_extra_comes_back(tmp_path):
    extra = {"epoch": 7, "settings": {"rate": 1e-3, "sizes": (1, 2), "ö": None}, "best": np.inf}
    checkpoint.save(tmp_path / "x.safetensors", {}, extra)
    back = checkpoint.load(tmp_path / "x.safetensors", {}, expect=extra)[1]
    assert back == {**extra, "settings": {"rate": 1e-3, "sizes": [1, 2], "ö": None}}


def test_format_1_stays_loadable():
    tree, extra = make_checkpoint.tree(), make_checkpoint.EXTRA
    back = checkpoint.load(make_checkpoint.FILE, tree, expect=extra)
    assert_same(back[0], tree)
    assert back[1] == extra


# --- devices and memory -------------------------------------------------------------------------


def test_sharded_arrays_are_gathered_and_spread_again(tmp_path):
    rows, everywhere = NamedSharding(mesh(), P("rows")), NamedSharding(mesh(), P())
    tree = {
        "rows": jax.device_put(jnp.arange(32.0).reshape(16, 2), rows),
        "everywhere": jax.device_put(jnp.arange(5), everywhere),
        "keys": jax.device_put(jax.random.split(KEY, 8), rows),
        "placed": jax.device_put(jnp.ones(3), jax.devices()[3]),
    }
    back = round_trip(tmp_path, tree)
    assert_same(back, tree)
    for leaf, other in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert leaf.sharding == other.sharding
        assert leaf.committed
    alone = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    back = checkpoint.load(tmp_path / "x.safetensors", alone)[0]
    assert_same(back, tree)
    assert not any(leaf.committed for leaf in jax.tree.leaves(back))
    shapes = jax.eval_shape(lambda tree: tree, tree)  # says how, but not on which devices
    assert_same(checkpoint.load(tmp_path / "x.safetensors", shapes)[0], tree)


@pytest.mark.parametrize("spread", [False, True], ids=["one device", "replicated"])
def test_restored_arrays_own_their_memory(spread):
    memory = np.zeros(4096 + 64, np.uint8)
    start = -memory.ctypes.data % 64  # where JAX would keep NumPy's memory
    data = memory[start : start + 4096].view(np.float32)
    sharding = NamedSharding(mesh(), P()) if spread else None
    like = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
    array = checkpoint_format.place("x", data, {}, like)
    data[:] = 1
    assert not np.any(array)
    pointers = {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}
    assert len(pointers) == len(array.addressable_shards)


def test_restored_arrays_can_be_donated(tmp_path):
    tree = {
        "a": jnp.ones(1000),
        "b": jax.device_put(jnp.ones(80), NamedSharding(mesh(), P("rows"))),
    }
    back = round_trip(tmp_path, tree)
    twice = jax.jit(lambda tree: jax.tree.map(lambda a: 2 * a, tree), donate_argnums=0)(back)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(back))
    chex.assert_trees_all_equal(twice, jax.tree.map(lambda a: 2 * a, tree))


# --- resuming -----------------------------------------------------------------------------------


def test_resume_is_bit_exact(tmp_path):
    optimizer = fnn.adamw(1e-2)
    ts = jax.jit(lambda: train_init(linear_init(), optimizer))()
    step = fnn.make_train_step(linear_dropout_loss_fn, optimizer)

    @jax.jit
    def epoch(ts, key):
        return fnn.fit(step, ts, (X, LABELS), key, epochs=1, batch_size=16)

    def run(ts, key, epochs):
        rows = []
        for _ in range(epochs):
            ts, history = epoch(ts, key)
            rows.append(history)
        return ts, jax.tree.map(lambda *r: np.concatenate(r), *rows)

    whole, history = run(ts, KEY, 20)
    seven, first = run(ts, KEY, 7)
    checkpoint.save_last(tmp_path, {"ts": seven, "key": KEY, "history": first}, step=7)
    like = {"ts": ts, "key": jax.random.key(1), "history": first}
    back, _ = checkpoint.load_last(tmp_path, like)
    resumed, second = run(back["ts"], back["key"], 13)
    assert_same(resumed, whole)
    assert_same(jax.tree.map(lambda *r: np.concatenate(r), back["history"], second), history)


# --- what does not fit --------------------------------------------------------------------------


def test_every_mismatch_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    tree = {"hidden": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "old": 1, "n": 2, "key": KEY}
    checkpoint.save(path, tree, {"optimizer": "adam", "data": "ab", "same": 1})
    like = {
        "hidden": {"w": jnp.ones((2, 4)), "b": jnp.ones(3, jnp.bfloat16)},
        "new": np.ones(2),
        "n": 2.0,
        "key": jax.random.key(0, impl="rbg"),
    }
    with pytest.raises(ValueError, match="does not fit") as error:
        checkpoint.load(path, like, expect={"optimizer": "sgd", "data": "ab", "seed": None})
    assert str(error.value).split("\n")[1:] == [
        "  missing     new: float64[2]",
        "  unexpected  old: int[]",
        "  shape       hidden/w: the file has [2, 3], expected [2, 4]",
        "  dtype       hidden/b: the file has float32, expected bfloat16",
        "  dtype       key: the file has key<threefry2x32>, expected key<rbg>",
        "  dtype       n: the file has int, expected float",
        "  other optimizer: the file has 'adam', expected 'sgd'",
        "  other seed: the file has 'nothing', expected None",
    ]


def test_a_longer_stack_is_refused(tmp_path):
    checkpoint.save(tmp_path / "x.safetensors", fnn.mlp_init(KEY, (3, 3, 3)))
    with pytest.raises(ValueError, match=r"missing     layer_2/w: float32\[3, 3\]"):
        checkpoint.load(tmp_path / "x.safetensors", fnn.mlp_init(KEY, (3, 3, 3, 3)))


def test_float64_is_not_rounded_silently(tmp_path):
    with jax.enable_x64(True):
        tree = {"w": jnp.ones(2, jnp.float64)}
        checkpoint.save(tmp_path / "x.safetensors", tree)
    with pytest.raises(ValueError, match="w is float64"):
        checkpoint.load(tmp_path / "x.safetensors", tree)
    as_numpy = checkpoint.load(tmp_path / "x.safetensors", {"w": np.zeros(2)})[0]
    assert as_numpy["w"].dtype == np.float64


@pytest.mark.parametrize(
    ("tree", "error", "match"),
    [
        ({"a": {"name": "relu"}}, TypeError, "a/name is str"),
        ({"a": np.array(["x"])}, TypeError, "a is an array of <U1"),
        ({"a": np.array([None])}, TypeError, "a is an array of object"),
        ({"a": np.array([3], "m8[s]")}, TypeError, r"a is an array of timedelta64\[s\]"),
        ({"a": jax.ShapeDtypeStruct((2,), "float32")}, TypeError, "a is a ShapeDtypeStruct"),
        ({"a/b": 1, "a": {"b": 2}}, ValueError, "'a/b'"),
        ({"__metadata__": 1}, ValueError, "__metadata__"),
        ({"a": 2**70}, OverflowError, "too large"),
    ],
)
def test_what_cannot_be_saved_says_so(tree, error, match, tmp_path):
    with pytest.raises(error, match=match):
        checkpoint.save(tmp_path / "x.safetensors", tree)
    for no_json in (np.ones(2), np.longdouble(1)):
        with pytest.raises(TypeError, match="JSON"):
            checkpoint.save(tmp_path / "x.safetensors", {}, {"w": no_json})
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_in_extra_are_numbers(tmp_path):
    path = tmp_path / "x.safetensors"
    extra = {"best": np.float32(0.5), "epoch": np.int64(3), "sizes": {2: 1, 10: 2}}
    checkpoint.save(path, {}, extra)
    back = {"best": 0.5, "epoch": 3, "sizes": {"2": 1, "10": 2}}
    assert checkpoint.load(path, {}, expect=extra)[1] == back
    with pytest.raises(ValueError, match="other epoch: the file has 3, expected "):
        checkpoint.load(path, {}, expect={"epoch": np.int64(4)})


def test_some_leaves_by_name(tmp_path):
    path = tmp_path / "x.safetensors"
    tree = {"encoder": {"w": jnp.ones(3), "b": jnp.ones(1)}, "head": {"w": jnp.ones(2)}}
    like = {"encoder": {"w": jnp.zeros(3), "b": jnp.zeros(1)}, "head": {"w": jnp.zeros(7)}}
    checkpoint.save(path, tree)
    back = checkpoint.load_leaves(path, like, names=["encoder/**"])
    assert_same(back, {"encoder": tree["encoder"], "head": like["head"]})
    back = checkpoint.load_leaves(path, like, names=["**/b"])
    assert_same(back["encoder"], {"w": like["encoder"]["w"], "b": tree["encoder"]["b"]})
    with pytest.raises(ValueError, match=r"shape       head/w: the file has \[2\], expected \[7\]"):
        checkpoint.load_leaves(path, like, names=["**/w"])
    with pytest.raises(ValueError, match=r"unmatched   enc/\*"):
        checkpoint.load_leaves(path, like, names=["encoder/*", "enc/*"])
    more = like | {"encoder": like["encoder"] | {"scale": jnp.ones(3)}}
    with pytest.raises(ValueError, match="missing     encoder/scale"):
        checkpoint.load_leaves(path, more, names=["encoder/*"])
    with pytest.raises(ValueError, match="unexpected  encoder/b"):
        checkpoint.load_leaves(path, {"encoder": {"w": jnp.zeros(3)}}, names=["encoder/*"])


# --- looking ------------------------------------------------------------------------------------


def test_the_header_says_what_the_file_holds(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, Pair({"b": jnp.ones((2, 3))}, KEY), {"epoch": 3})
    header = checkpoint.read_header(path)
    assert list(header["leaves"]) == ["first/b", "second"]
    assert header["leaves"]["second"] == {
        "dtype": "key<threefry2x32>",
        "shape": [],
        "impl": "threefry2x32",
    }
    assert header["format"] == 1
    assert header["versions"]["fnn"] == fnn.__version__
    assert "Pair" in header["structure"]
    text = checkpoint.describe(path)
    assert "first/b: float32[2, 3]\nsecond: key<threefry2x32>[]" in text
    assert "extra: {'epoch': 3}" in text


def test_a_newer_format_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_format, "FORMAT", 2)
    checkpoint.save_last(tmp_path, small_tree(), step=1)
    monkeypatch.undo()
    with pytest.raises(NotImplementedError, match="has format 2, this fnn reads up to 1"):
        checkpoint.load_last(tmp_path, small_tree())


def test_fingerprint_sees_every_bit_and_only_that():
    data = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.array([1, 2])}
    print_of = checkpoint.fingerprint
    assert print_of(data) == print_of({"x": jnp.array(data["x"]), "y": np.array([1, 2])})
    assert print_of(np.asfortranarray(data["x"])) == print_of(data["x"])
    others = [
        data | {"x": data["x"].reshape(3, 2)},
        data | {"x": data["x"].view(np.int32)},
        data | {"x": np.nextafter(data["x"], 9, dtype=np.float32)},
        {"x": data["x"]},
        {"x": np.float32(-0.0)},
        {"x": np.float32(0.0)},
        {"x": KEY},
    ]
    assert len({print_of(other) for other in [data, *others]}) == 1 + len(others)


# --- a folder -----------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_are_kept(tmp_path):
    kept = ["best.safetensors", "notes.txt", "step_10.txt", "step_old.safetensors"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    for step in (9, 10, 200, 123456789):
        path = checkpoint.save_last(tmp_path, small_tree(float(step)), {"s": step}, step=step)
    assert names(tmp_path) == sorted([*kept, "step_00000200.safetensors", path.name])
    tree, extra = checkpoint.load_last(tmp_path, small_tree())
    assert_same(tree, small_tree(123456789.0))
    assert extra == {"s": 123456789}
    checkpoint.save_last(tmp_path, small_tree(5.0), step=123456789)  # once more is no later
    assert "step_00000200.safetensors" in names(tmp_path)


def test_the_one_before_stands_in_for_a_damaged_one(tmp_path):
    for step in (1, 2):
        path = checkpoint.save_last(tmp_path, small_tree(float(step)), step=step)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step_00000002\.safetensors is damaged \(cut short"):
        tree, _ = checkpoint.load_last(tmp_path, small_tree())
    assert_same(tree, small_tree(1.0))
    checkpoint.save_last(tmp_path, small_tree(1.5), step=1)  # nothing healthy is later
    assert names(tmp_path) == ["step_00000001.safetensors"]


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no step"):
        checkpoint.load_last(tmp_path / "none_such", small_tree())
    for path in [checkpoint.save_last(tmp_path, small_tree(), step=step) for step in (1, 2)]:
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="trying the file before it"),
        pytest.raises(ValueError, match=r"(?s)every file is damaged.*00002.*00001"),
    ):
        checkpoint.load_last(tmp_path, small_tree())


def test_a_file_that_does_not_fit_is_not_passed_over(tmp_path):
    for step in (1, 2):
        checkpoint.save_last(tmp_path, small_tree(), step=step)
    with pytest.raises(ValueError, match="missing     b"):
        checkpoint.load_last(tmp_path, small_tree() | {"b": 1})


def test_another_runs_later_files_are_not_removed(tmp_path):
    checkpoint.save_last(tmp_path, small_tree(), step=50)
    with pytest.raises(ValueError, match=r"step_00000050\.safetensors is later than step 7"):
        checkpoint.save_last(tmp_path, small_tree(), step=7)
    assert names(tmp_path) == ["step_00000050.safetensors"]


def test_the_spare_file_is_a_good_one(tmp_path):
    paths = [checkpoint.save_last(tmp_path, small_tree(float(n)), step=n) for n in (1, 2)]
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    checkpoint.save_last(tmp_path, small_tree(3.0), step=3).write_bytes(b"cut by the disk")
    assert names(tmp_path) == ["step_00000001.safetensors", "step_00000003.safetensors"]
    with pytest.warns(UserWarning, match=r"step_00000003\.safetensors is damaged"):
        tree, _ = checkpoint.load_last(tmp_path, small_tree())
    assert_same(tree, small_tree(1.0))


def test_a_spare_file_that_cannot_be_read_is_kept(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save_last(tmp_path, small_tree(float(step)), step=step)

    def fail(path):
        raise OSError(f"input/output error: {path}")

    monkeypatch.setattr(checkpoint_format, "check_whole", fail)
    checkpoint.save_last(tmp_path, small_tree(3.0), step=3)
    assert len(names(tmp_path)) == 3
    with pytest.raises(OSError, match=r"input/output error: .*step_00000003"):
        checkpoint.save_last(tmp_path, small_tree(1.5), step=1)  # is step 3 another run's?
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("step", [3, np.int64(3), np.uint8(3), jnp.int32(3), np.array(3)])
def test_a_step_is_any_whole_number(step, tmp_path):
    assert checkpoint.save_last(tmp_path, {}, step=step).name == "step_00000003.safetensors"


@pytest.mark.parametrize(
    ("step", "error", "came"),
    [
        (-1, ValueError, "-1, expected at least 0"),
        (np.int8(-1), ValueError, "-1, expected at least 0"),
        (2.0, TypeError, "2.0, expected a whole number >= 0"),
        (np.float32(2), TypeError, "2.0, expected a whole number >= 0"),
        (float("nan"), TypeError, "nan, expected a whole number >= 0"),
        (True, TypeError, "True, expected a whole number >= 0"),
        ("3", TypeError, "str, expected a whole number >= 0"),
        (None, TypeError, "NoneType, expected a whole number >= 0"),
    ],
)
def test_other_steps_are_refused(step, error, came, tmp_path):
    with pytest.raises(error, match=f"save_last: step is {came}"):
        checkpoint.save_last(tmp_path / "run", {}, step=step)
    assert not (tmp_path / "run").exists()


def test_a_reader_changes_nothing(tmp_path, monkeypatch):
    """A process reads the folder while another writes to it: here, at the writer's fsync."""
    checkpoint.save_last(tmp_path, small_tree(1.0), step=1)
    read = []

    def fsync(descriptor):
        before = names(tmp_path)
        read.append(checkpoint.load_last(tmp_path, small_tree())[0]["n"])
        assert names(tmp_path) == before

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoint.save_last(tmp_path, small_tree(2.0), step=2)
    assert read == [1.0, 2.0]  # before the file has its name, and after
    assert names(tmp_path) == ["step_00000001.safetensors", "step_00000002.safetensors"]


def test_a_run_has_its_folder_alone(tmp_path):
    folder = tmp_path / "runs" / "a"
    with checkpoint.run_lock("train", folder):
        refused = rf"train: {folder} is in use by another run \(process {os.getpid()} on .*\)"
        with pytest.raises(RuntimeError, match=refused), checkpoint.run_lock("train", folder):
            pass
        checkpoint.save_last(folder, {}, step=1)
        with checkpoint.run_lock("train", tmp_path / "runs" / "b"):
            pass
    with checkpoint.run_lock("train", folder):  # the refused one left the lock as it was
        pass
    assert names(folder) == ["step_00000001.safetensors"]
    (folder / ".lock").write_text("process 1 on a machine that was switched off")
    with checkpoint.run_lock("train", folder):
        pass


def test_runs_that_wait_for_a_lock_have_it_in_turn(tmp_path):
    inside, most = [], []

    def work(_):
        for _ in range(25):
            with locked(tmp_path / "lock", wait=True) as other:
                assert not other
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert (max(most), len(most)) == (1, 200)
    assert not names(tmp_path)


KILL = """
import os, random, signal, sys, time
import numpy as np
from fnn import checkpoint
from tests.nets import train_init

folder, draw, last = sys.argv[1], random.Random(0), 0
tree = lambda n: {"a": np.full(50_000, n), "b": [np.full(n % 7, n), n]}
newest = lambda: max([0, *(int(name[5:13]) for name in os.listdir(folder) if name[:5] == "step_")])
for _ in range(12):
    if not (child := os.fork()):
        for n in range(last + 1, 10**6):
            checkpoint.save_last(folder, tree(n), {"n": n}, step=n)
    while newest() == last:
        time.sleep(0.001)
    time.sleep(draw.random() * 0.03)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    last = newest()
    back, extra = checkpoint.load_last(folder, tree(last))
    assert extra["n"] == last == back["b"][1]
    assert all((leaf == last).all() for leaf in (back["a"], back["b"][0]))
    assert len(os.listdir(folder)) <= 3, os.listdir(folder)
checkpoint.save_last(folder, tree(last + 1), step=last + 1)
left = sorted(os.listdir(folder))
assert left == [f"step_{n:08}.safetensors" for n in (last, last + 1)], left

# The lock of a run that is killed is free, also if a process that it forked lives on.
reads, writes = os.pipe()
if not (child := os.fork()):
    with checkpoint.run_lock("train", folder):
        if grandchild := os.fork():
            os.write(writes, b"%d" % grandchild)
        time.sleep(60)
        os._exit(0)
grandchild = int(os.read(reads, 9))
try:
    with checkpoint.run_lock("train", folder):
        sys.exit("two runs have one folder")
except RuntimeError as error:
    assert f"process {child} on" in str(error), error
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
try:
    with checkpoint.run_lock("train", folder):
        print(last)
finally:
    os.kill(grandchild, signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_a_killed_process_leaves_whole_files(tmp_path):
    """12 writers, killed -9 at random times; a half-written file would warn, which is an error."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", KILL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # a hang fails too
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12


# --- several processes --------------------------------------------------------------------------


def test_sharded_round_trip_through_orbax(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    rows = NamedSharding(mesh(), P("rows"))
    tree = {
        "ts": train_init(fnn.mlp_init(KEY, (3, 4, 2)), fnn.adamw(1e-3)),
        "rows": jax.device_put(jnp.arange(32.0).reshape(16, 2), rows),
        "keys": jax.device_put(jax.random.split(KEY, 8), rows),
        "rbg": jax.random.key(3, impl="rbg"),
        "half": jnp.ones(3, jnp.bfloat16),
        "rest": [np.arange(3), np.float32(2), 4, 0.5, True, None, (), jnp.zeros((0, 3))],
    }
    checkpoint.save_sharded(tmp_path / "one", tree, {"epoch": 3})
    back, extra = checkpoint.load_sharded(tmp_path / "one", tree, expect={"epoch": 3})
    assert_same(back, tree)
    assert extra == {"epoch": 3}
    assert back["rows"].sharding == back["keys"].sharding == rows
    assert not back["half"].committed
    like = tree | {"rows": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"(?s)shape       rows: .*other epoch"):
        checkpoint.load_sharded(tmp_path / "one", like, expect={"epoch": 4})
