"""A file of `export` gives the outputs of the function, by JAX alone."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

import fnn
from fnn.interchange import export
from tests.nn.drawn import normal, params_of

CONV = {"conv": params_of(fnn.conv_init, 1, 2, 3), "logits": params_of(fnn.dense_init, 8, 3)}


def conv_net(x):
    x = fnn.max_pool(fnn.relu(fnn.conv(CONV["conv"], x, padding=1)), 2)
    return fnn.dense(CONV["logits"], x.reshape(x.shape[0], -1))


def by_numpy(x):
    """`conv_net` once more, in float64."""
    w, b = (np.asarray(CONV["conv"][name], float) for name in ("w", "b"))
    x = np.pad(x.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    y = np.maximum(np.einsum("bhwcij,ijco->bhwo", windows, w) + b, 0)
    y = y.reshape(-1, 2, 2, 2, 2, 2).max((2, 4)).reshape(len(x), -1)
    return y @ np.asarray(CONV["logits"]["w"], float) + np.asarray(CONV["logits"]["b"], float)


def exported(fn, example, path, **options):
    export(fn, example, path, **options)
    return jax_export.deserialize(bytearray(path.read_bytes()))


OTHER_PROGRAM = """
import pathlib, sys
sys.modules["fnn"] = None
import jax, numpy as np
predict = jax.export.deserialize(bytearray(pathlib.Path("net.jax").read_bytes())).call
x = np.load("x.npy")
np.savez("y.npz", one=predict(x[:1]), three=predict(x[:3]), all=predict(x))
assert not [name for name in sys.modules if name.startswith("fnn.")]
"""


def test_a_program_without_fnn_gives_the_same_outputs(tmp_path):
    x = np.asarray(normal(7, 4, 4, 1))
    export(conv_net, jax.ShapeDtypeStruct((1, 4, 4, 1), "float32"), tmp_path / "net.jax")
    np.save(tmp_path / "x.npy", x)
    subprocess.run([sys.executable, "-c", OTHER_PROGRAM], cwd=tmp_path, check=True)
    with np.load(tmp_path / "y.npz") as found:
        assert [found[name].shape for name in ("one", "three", "all")] == [(1, 3), (3, 3), (7, 3)]
        np.testing.assert_allclose(found["all"], by_numpy(x), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["three"], by_numpy(x)[:3], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["one"], by_numpy(x)[:1], rtol=1e-5, atol=1e-5)


def test_one_file_is_for_three_platforms_and_any_batch(tmp_path):
    found = exported(conv_net, normal(1, 4, 4, 1), tmp_path / "net.jax")
    assert found.platforms == ("cpu", "cuda", "tpu")
    assert str(found.in_avals[0].shape[0]) == "batch"
    found = exported(conv_net, normal(1, 4, 4, 1), tmp_path / "net.jax", platforms=("cuda",))
    assert found.platforms == ("cuda",)


def test_trees_in_and_out_share_the_batch(tmp_path):
    def fn(given):
        return {"sum": given["a"] + given["b"][:, None], "both": (given["a"], given["b"])}

    predict = exported(fn, {"a": normal(2, 3), "b": normal(2)}, tmp_path / "tree").call
    given = {"a": normal(5, 3), "b": normal(5, seed=1)}
    np.testing.assert_array_equal(predict(given)["sum"], given["a"] + given["b"][:, None])
    with pytest.raises(ValueError, match="batch"):
        predict({"a": normal(5, 3), "b": normal(4)})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_dtypes_of_the_example_are_those_of_the_file(tmp_path, dtype):
    predict = exported(lambda x: x + x, jax.ShapeDtypeStruct((1, 2), dtype), tmp_path / "f").call
    x = jnp.arange(6).reshape(3, 2).astype(dtype)
    assert predict(x).dtype == dtype
    np.testing.assert_array_equal(predict(x), 2 * x)
    with pytest.raises(ValueError, match="Dtype mismatch"):
        predict(x.astype("float32"))


def test_float64_examples_follow_the_x64_flag(tmp_path):
    assert exported(jnp.sin, np.zeros((1, 2)), tmp_path / "f").in_avals[0].dtype == "float32"
    with jax.enable_x64(True):
        assert exported(jnp.sin, np.zeros((1, 2)), tmp_path / "f").in_avals[0].dtype == "float64"


def test_a_fixed_batch_is_that_of_the_example(tmp_path):
    def pairs(x):
        return x.reshape(len(x) // 2, 2, -1).sum(1)

    predict = exported(pairs, normal(4, 3), tmp_path / "pairs", fixed_batch=True).call
    x = normal(4, 3, seed=1)
    np.testing.assert_allclose(predict(x), [x[0] + x[1], x[2] + x[3]], rtol=1e-6)
    with pytest.raises(ValueError, match="shape"):
        predict(x[:2])


@pytest.mark.parametrize("layer", ["mlp", "attention"])
def test_layers_take_any_batch(tmp_path, layer):
    sizes, shape = {"mlp": (((4, 8, 3),), (4,)), "attention": ((4, 2), (5, 4))}[layer]
    apply = partial(getattr(fnn, layer), params_of(getattr(fnn, f"{layer}_init"), *sizes))
    predict = exported(apply, normal(1, *shape), tmp_path / layer).call
    for rows in (6,):
        x = normal(rows, *shape, seed=rows)
        np.testing.assert_allclose(predict(x), jax.jit(apply)(x), rtol=1e-5, atol=1e-6)


def of_known_length(x):
    return x * len(x)


def in_halves(x):
    return x if x.shape[0] > 8 else 2 * x


@pytest.mark.parametrize("fn", [of_known_length, in_halves])
def test_a_function_that_needs_the_length_is_told_what_to_do(tmp_path, fn):
    with pytest.raises(Exception, match=r"_DimExpr|batch") as caught:
        export(fn, normal(1, 3), tmp_path / "f")
    assert any("fixed_batch=True" in note for note in caught.value.__notes__)
    export(fn, normal(1, 3), tmp_path / "f", fixed_batch=True)


@pytest.mark.parametrize(
    ("fn", "example", "error", "message"),
    [
        ("mlp", normal(1, 2), TypeError, "export: fn is a str, expected a function of one argument"),
        (jnp.sin, 1.0, TypeError, "export: example is of type float, expected an array or its shape"),
        (jnp.sin, {"x": [1]}, TypeError, "export: example/x/0 is of type int, expected an array"),
        (jnp.sin, jnp.float32(1), ValueError, r"export: example has no axis \(shape \(\)\), expected \[batch, ...\]"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, fn, example, error, message):
    with pytest.raises(error, match=message):
        export(fn, example, tmp_path / "f")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("platforms", "error", "message"),
    [
        ("cpu", TypeError, "export: platforms is 'cpu', expected several words of"),
        ((), TypeError, r"export: platforms is \(\), expected several words of"),
        (["cpu", "gpu"], ValueError, "export: platforms has 'gpu', expected words of"),
    ],
)
def test_platforms_that_there_are(tmp_path, platforms, error, message):
    with pytest.raises(error, match=message):
        export(jnp.sin, normal(1, 3), tmp_path / "f", platforms=platforms)


def test_a_random_key_stays_outside(tmp_path):
    keys = jax.random.split(jax.random.key(0), 3)
    with pytest.raises(TypeError, match="export: example/key has dtype key<fry>, expected numbers"):
        export(lambda x: x["x"], {"x": normal(3, 2), "key": keys}, tmp_path / "f")


def test_an_error_of_the_function_leaves_the_old_file(tmp_path):
    def wrong(x):
        raise RuntimeError("mine")

    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="mine"):
        export(wrong, normal(1, 3), tmp_path / "f")
    assert Path(tmp_path / "f").read_bytes() == b"old"


def test_without_flatbuffers_it_says_what_to_install(tmp_path, monkeypatch):
    def serialize(self):
        raise ImportError("flatbuffers")

    monkeypatch.setattr(jax_export.Exported, "serialize", serialize)
    with pytest.raises(
        ModuleNotFoundError, match=r"flatbuffers is missing: pip install 'fnn\[export\]'"
    ):
        export(jnp.sin, normal(1, 3), tmp_path / "f")
