"""Weights in and out without the other libraries: what they wrote to a file, and the errors."""

import functools
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fnn
from fnn import interchange, nn
from tests.interchange import cases

GOLDEN = Path(__file__).parents[1] / "golden" / "interchange.npz"


@functools.cache
def golden():
    """{library/net/x, y or weights/NAME: array}."""
    with np.load(GOLDEN) as file:
        numbers, notes = file["numbers"], json.loads(str(file["notes"]))
    arrays, start = {}, 0
    for name, shape in notes["shapes"].items():
        size = math.prod(shape)
        arrays[name] = numbers[start : start + size].reshape(shape)
        start += size
    assert start == len(numbers)
    return arrays


def written(library, name):
    """(x, y, weights by their names there)."""
    start = f"{library}/{name}/"
    x, y = golden()[start + "x"], golden()[start + "y"]
    start += "weights/"
    weights = {k.removeprefix(start): a for k, a in golden().items() if k.startswith(start)}
    return (x.astype(int) if cases.NETS[name].vocab else x), y, weights


def asked(library, name):
    """The arguments of a net's from_ and to_ functions."""
    names = {"torch": cases.TORCH, "keras": cases.KERAS}[library][name]
    kinds = {"torch": cases.KINDS, "keras": cases.KERAS_KINDS}[library].get(name)
    return names, kinds


def eps_of(library, name):
    return 1e-3 if library == "keras" and name != "block" else 1e-5


# --- PyTorch's and Keras's own numbers -------------------------------------------------------------


@pytest.mark.parametrize("name", cases.NETS)
@pytest.mark.parametrize("library", ["torch", "keras"])
def test_outputs_are_theirs(library, name):
    x, y, weights = written(library, name)
    (names, kinds), (params, state) = asked(library, name), cases.new(name)
    read = getattr(interchange, f"from_{library}")
    params, state = cases.parts(read(weights, params, names, state=state, kinds=kinds), state)
    cases.assert_equal_outputs(cases.out(name, params, state, x, eps_of(library, name)), y)


@pytest.mark.parametrize("name", cases.NETS)
@pytest.mark.parametrize("library", ["torch", "keras"])
def test_out_and_in_again_are_the_same_bits(library, name):
    names, kinds = asked(library, name)
    params, state = map(cases.drawn, cases.new(name))
    read, write = (getattr(interchange, f"{way}_{library}") for way in ("from", "to"))
    arrays = write(params, names, state=state, kinds=kinds)
    blank = jax.tree.map(jnp.zeros_like, (params, state))
    back = read(arrays, blank[0], names, state=blank[1], kinds=kinds)
    cases.assert_same_bits(cases.parts(back, state), (params, state))
    theirs = {k: a.shape for k, a in written(library, name)[2].items()}
    assert {k: a.shape for k, a in arrays.items() if a.dtype == np.float32} == theirs


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_two_biases_are_added_up(name):
    x, y, weights = written("torch", name)
    params = interchange.from_torch(weights, cases.new(name)[0], {"cell": ""})
    arrays = interchange.to_torch(params, {"cell": ""})
    hidden = arrays["bias_hh_l0"]
    np.testing.assert_array_equal(hidden[: 8 if name == "gru" else 16], 0)
    again = interchange.from_torch(arrays, params, {"cell": ""})
    cases.assert_same_bits(again, params)
    cases.assert_equal_outputs(cases.out(name, again, None, x), y)


# --- names ----------------------------------------------------------------------------------------


def dense_there(prefix, rows=3, columns=2):
    w = np.arange(rows * columns, dtype=np.float32).reshape(columns, rows)
    return {f"{prefix}weight": w, f"{prefix}bias": np.ones(columns, np.float32)}


def one_dense():
    return fnn.dense_init(jax.random.key(0), 3, 2)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (None, "a.0.b."),
        ({"a": "net"}, "net.0.b."),
        ({"a/0": "net"}, "net.b."),
        ({"a": "wrong", "a/0/b": "net.3"}, "net.3."),
        ({"": "module"}, "module.a.0.b."),
        ({"a/0/b": ""}, ""),
        ({"a/0/b": "dense_*_v"}, None),
    ],
)
def test_the_longest_path_counts(names, prefix):
    weights = dense_there("" if prefix is None else prefix)
    if prefix is None:
        weights = {f"dense_{name}_v": a for name, a in weights.items()}
    params = interchange.from_torch(weights, {"a": [{"b": one_dense()}]}, names)
    np.testing.assert_array_equal(params["a"][0]["b"]["w"], [[0, 3], [1, 4], [2, 5]])
    assert interchange.to_torch(params, names).keys() == weights.keys()


def test_layers_and_directions_of_a_cell():
    x, y, weights = written("torch", "lstm")
    backward = {name.replace("_l0", "_l3_reverse"): a for name, a in weights.items()}
    params = {"cell": cases.new("lstm")[0]["cell"]}
    params = interchange.from_torch(backward, params, {"cell": "*_l3_reverse"})
    cases.assert_equal_outputs(cases.out("lstm", params, None, x), y)


def test_arrays_in_no_layer_are_taken_as_they_are():
    params = {"positions": jnp.ones((2, 3)), "table": {"w": jnp.ones((2, 3))}, "t": jnp.zeros(())}
    weights = {
        "pos": np.arange(6.0).reshape(2, 3),
        "table": np.ones((2, 3)) * 7,
        "t": np.float32(4),
    }
    asked = {"names": {"positions": "pos"}, "kinds": {"table": "parameter"}}
    new = interchange.from_torch(weights, params, **asked)
    np.testing.assert_array_equal(new["positions"], weights["pos"])
    np.testing.assert_array_equal(new["table"]["w"], 7)
    assert float(new["t"]) == 4
    assert interchange.to_torch(new, **asked).keys() == weights.keys()


def test_counters_are_no_weights_and_state_apart():
    x, y, weights = written("torch", "convnet")
    weights = weights | {"norm.num_batches_tracked": np.array(3)}
    params, state = cases.new("convnet")
    with pytest.raises(ValueError, match=r"norm.running_mean +nothing +\[4\]"):
        interchange.from_torch(weights, params, kinds={"up": "conv_transpose"})
    both = interchange.from_torch(weights, params, state=state, kinds={"up": "conv_transpose"})
    cases.assert_equal_outputs(cases.out("convnet", *both, x), y)
    arrays = interchange.to_torch(both[0], state=both[1], kinds={"up": "conv_transpose"})
    assert arrays["norm.num_batches_tracked"].dtype == np.int64


def test_a_batch_norm_that_is_the_whole_module():
    params, state = fnn.batch_norm_init(3)
    arrays = interchange.to_torch({"n": params}, {"n": ""}, state={"n": state})
    expected = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert arrays.keys() == expected


def test_shapes_are_enough_for_params():
    shapes = jax.eval_shape(one_dense)
    params = interchange.from_torch(dense_there(""), {"d": shapes}, {"d": ""})
    assert isinstance(params["d"]["w"], jax.Array)
    with pytest.raises(TypeError, match="d/w is of type ShapeDtypeStruct"):
        interchange.to_torch({"d": shapes})


@pytest.mark.parametrize(
    ("function", "source"),
    [("from_torch", {}), ("from_linen", {"params": {}}), ("from_nnx", {}), ("from_equinox", {})],
)
def test_a_function_for_params_is_told_to_give_shapes(function, source):
    said = f"{function}: params is a function, expected its shapes: jax.eval_shape(init, key)"
    with pytest.raises(TypeError, match=re.escape(said)):
        getattr(interchange, function)(source, one_dense)


# --- differences ----------------------------------------------------------------------------------


def test_one_table_of_all_differences():
    params = fnn.mlp_init(jax.random.key(0), (3, 2, 4))
    weights = dense_there("layer_0.", 3, 5) | {
        "layer_1.weight": np.ones((4, 2)),
        "head": np.ones(3),
    }
    with pytest.raises(ValueError, match="from_torch") as error:
        interchange.from_torch(weights, params)
    assert str(error.value).split("\n") == [
        "from_torch: differences, 4:",
        "  path here  shape here  name there      expected  came",
        "  layer_0/w  [3, 2]      layer_0.weight  [2, 3]    [5, 3]",
        "  layer_0/b  [2]         layer_0.bias    [2]       [5]",
        "  layer_1/b  [4]         layer_1.bias    [4]       missing",
        "                         head            nothing   [3]",
    ]


def test_an_empty_tree_and_an_empty_file():
    assert interchange.from_torch({}, {}) == {}
    assert interchange.to_torch({}) == {}
    with pytest.raises(ValueError, match="nothing"):
        interchange.from_torch({"w": np.ones(3)}, {})
    with pytest.raises(ValueError, match="missing"):
        interchange.from_torch({}, one_dense())


def test_a_matrix_must_be_said():
    params = {"head": {"w": jnp.arange(6.0).reshape(2, 3)}}
    for write in (interchange.to_torch, interchange.to_linen, interchange.to_keras):
        with pytest.raises(ValueError, match=r"kinds=\{'head': 'embed'\}"):
            write(params)
    dense = interchange.to_torch(params, kinds={"head": "dense"})
    np.testing.assert_array_equal(dense["head.weight"], params["head"]["w"].T)
    table = interchange.to_torch(params, kinds={"**": "embed"})
    np.testing.assert_array_equal(table["head.weight"], params["head"]["w"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"names": {"hiden": "net"}}, "names has 'hiden', expected paths of layers"),
        ({"kinds": {"hidden": "convolution"}}, "kinds has 'convolution', expected one of"),
        ({"kinds": {"hidden": "embed"}}, "kinds has 'hidden', expected a pattern of a layer"),
        ({"names": {"hidden": "a", "other": "a"}}, "two arrays would have the name 'a.weight'"),
    ],
)
def test_mistakes_are_said(asked, message):
    params = {"hidden": one_dense(), "other": one_dense()}
    with pytest.raises(ValueError, match=message):
        interchange.to_torch(params, **asked)


def test_values_of_other_kinds_are_refused():
    params = {"d": one_dense()}
    with pytest.raises(TypeError, match=r"state_dict is of type list"):
        interchange.from_torch([np.ones(3)], params)
    with pytest.raises(TypeError, match=r"d.bias is of type list"):
        interchange.from_torch({"d.weight": np.ones((2, 3)), "d.bias": [0.0, 0.0]}, params)
    with pytest.raises(TypeError, match=r"variables is \['dense'\]"):
        interchange.from_linen({"dense": {}}, params)
    with pytest.raises(TypeError, match="weights has a ndarray"):
        interchange.from_keras([np.ones(3)], params)
    with pytest.raises(TypeError, match="d/w is traced"):
        jax.jit(interchange.to_torch)(params)


def test_a_gru_that_resets_first_is_refused():
    _, _, weights = written("keras", "gru")
    name = "gru/cell/gru_cell/bias"
    weights = weights | {name: weights[name][0]}
    names = cases.KERAS["gru"]
    with pytest.raises(ValueError, match=r"\[2, 12\] +\[12\]; reset_after=False is another"):
        interchange.from_keras(weights, cases.new("gru")[0], names)


def test_grouped_heads_are_refused():
    params = {"attention": fnn.attention_init(jax.random.key(0), 4, 2, kv_heads=1)}
    with pytest.raises(ValueError, match="attention has fewer heads of keys than of queries"):
        interchange.to_torch(params)


def test_arrays_that_no_layer_there_has():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"cell is of kind 'rnn' and has \['hidden/w', 'input/b'"):
        interchange.from_equinox({}, {"cell": fnn.rnn_init(key, 3, 4)})
    params = fnn.attention_init(key, 4, 2)
    del params["key"]["b"]
    with pytest.raises(ValueError, match=r"has \['query/b', 'value/b'\], but such a layer"):
        interchange.to_torch({"attention": params})


def test_stacked_layers_do_not_pass_for_a_kernel():
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = {"blocks": jax.vmap(lambda key: fnn.dense_init(key, 4, 4))(keys)}
    with pytest.raises(ValueError, match=r"blocks/w +\[3, 4, 4\] +blocks.w +\[3, 4, 4\] +missing"):
        interchange.from_torch(dense_there("blocks.", 4, 4), stacked)


def test_a_cell_with_a_norm_beside_it():
    params = {"cell": fnn.lstm_init(jax.random.key(0), 3, 4), "norm": nn.rms_norm_init(4)}
    arrays = interchange.to_torch(params)
    assert "norm.weight" in arrays
    assert "cell.weight_hh_l0" in arrays


# --- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_values_get_the_dtype_of_params(dtype):
    with jax.enable_x64(True):
        params = {"d": fnn.dense_init(jax.random.key(0), 3, 2, dtype=dtype)}
        new = interchange.from_torch(dense_there("d."), params)
        assert new["d"]["w"].dtype == dtype
        arrays = interchange.to_torch(new)
        assert arrays["d.weight"].dtype == dtype
        cases.assert_same_bits(interchange.from_torch(arrays, params), new)


def test_nan_goes_in_and_out():
    weights = dense_there("d.") | {"d.bias": np.array([np.nan, -0.0], np.float32)}
    arrays = interchange.to_torch(interchange.from_torch(weights, {"d": one_dense()}))
    assert arrays["d.bias"].tobytes() == weights["d.bias"].tobytes()


def test_half_precision_biases_are_added_in_float32():
    params = fnn.lstm_init(jax.random.key(0), 1, 1)
    weights = interchange.to_torch(params, {"": ""})
    weights |= {"bias_ih_l0": np.full(4, 2048, np.float16), "bias_hh_l0": np.ones(4, np.float16)}
    np.testing.assert_array_equal(interchange.from_torch(weights, params)["input"]["b"], 2049)


def test_what_comes_out_has_memory_of_its_own():
    params = {"d": jax.tree.map(np.asarray, one_dense())}
    arrays = interchange.to_torch(params)
    arrays["d.bias"][:] = 5
    assert arrays["d.weight"].flags.c_contiguous
    np.testing.assert_array_equal(params["d"]["b"], 0)


# --- safetensors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["torch", "keras"])
def test_safetensors_by_names(tmp_path, library):
    x, y, weights = written(library, "convnet")
    names, kinds = asked(library, "convnet")
    path, (params, state) = tmp_path / "model.safetensors", cases.new("convnet")
    save_file(weights, path)
    asked_for = {"layout": library, "kinds": kinds}
    both = interchange.load_safetensors(path, params, names, state=state, **asked_for)
    cases.assert_equal_outputs(cases.out("convnet", *both, x, eps_of(library, "convnet")), y)
    interchange.save_safetensors(path, both[0], names, state=both[1], **asked_for)
    again = load_file(path)
    for name, array in weights.items():
        np.testing.assert_array_equal(again[name], array)


def test_safetensors_of_another_layout_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    params = {"d": fnn.dense_init(jax.random.key(0), 3, 2, dtype=jnp.bfloat16)}
    interchange.save_safetensors(path, params)
    cases.assert_same_bits(interchange.load_safetensors(path, params), params)
    with pytest.raises(ValueError, match=r"d/w +\[3, 2\] +d/kernel +\[3, 2\] +missing"):
        interchange.load_safetensors(path, params, layout="linen")
    with pytest.raises(ValueError, match="layout is 'pytorch', expected one of"):
        interchange.load_safetensors(path, params, layout="pytorch")


# --- what a layer is ------------------------------------------------------------------------------


def test_dense_layers_called_input_and_hidden_are_no_cell():
    k1, k2 = jax.random.split(jax.random.key(0))
    params = {"input": fnn.dense_init(k1, 3, 4), "hidden": fnn.dense_init(k2, 4, 4)}
    names = {"input.weight", "input.bias", "hidden.weight", "hidden.bias"}
    assert interchange.to_torch(params).keys() == names
    bare = jax.tree.map(lambda x: x, params)
    for layer in bare.values():
        del layer["b"]
    assert interchange.to_torch(bare, kinds={"*": "dense"}).keys() == {
        "input.weight",
        "hidden.weight",
    }


def test_a_cell_without_bias():
    params = fnn.lstm_init(jax.random.key(0), 3, 4)
    params = {"cell": {"input": {"w": params["input"]["w"]}, "hidden": params["hidden"]}}
    assert interchange.to_torch(params).keys() == {"cell.weight_ih_l0", "cell.weight_hh_l0"}


def test_names_inside_a_transformer_block():
    params = cases.new("block")[0]
    names = {"block": "layers.0", "block/mlp": "ffn", "block/mlp_norm": "ln"}
    ends = {name.rpartition(".")[0] for name in interchange.to_torch(params, names)}
    start = "layers.0"
    expected = {f"{start}.norm1", f"{start}.self_attn", f"{start}.self_attn.out_proj"}
    assert ends == expected | {"ln", "ffn.layer_0", "ffn.layer_1"}


def test_whole_numbers_are_taken_where_they_are_asked_for():
    params = {"d": one_dense(), "count": jnp.int32(0)}
    new = interchange.from_torch(dense_there("d.") | {"count": np.array(7)}, params)
    assert new["count"] == 7
    assert new["count"].dtype == np.int32


def test_float64_of_numpy_is_not_rounded():
    params = {"d": jax.tree.map(lambda x: np.asarray(x, np.float64), one_dense())}
    weights = dense_there("d.") | {"d.bias": np.array([1 / 3, 2 / 3])}
    new = interchange.from_torch(weights, params)
    np.testing.assert_array_equal(new["d"]["b"], weights["d.bias"])


@pytest.mark.parametrize(
    ("here", "array", "message"),
    [
        (jnp.arange(2), np.array([1.5, 2.0]), "a came as float64 with the value 1.5, which int32"),
        (jnp.arange(2), np.array([1, 2**40]), "int64 with the value 1099511627776, which int32"),
        (jnp.arange(2), np.array([1, np.nan]), "with the value nan, which int32 cannot hold"),
        (jnp.ones(2, bool), np.array([0, 3]), "with the value 3, which bool cannot hold"),
        (jnp.ones(2), np.array([1, 1 + 2j]), r"complex128 with the value \(1\+2j\), which float32"),
        (jnp.ones(2), np.array([1, -1e300]), r"with the value -1e\+300, which float32 cannot hold"),
        (jnp.ones(2, "float16"), np.float32([1, 1e6]), "float32 with the value 1000000.0, which"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(here, array, message):
    with pytest.raises(ValueError, match=message):
        interchange.from_torch({"a": array}, {"a": here})


def test_values_that_fit_another_dtype_are_taken():
    for here, array in (
        (jnp.arange(2), np.array([1.0, 2.0])),
        (jnp.ones(2), np.array([1 + 0j, np.inf])),
        (jnp.ones(2, "bfloat16"), np.array([-np.inf, 3e38])),
    ):
        new = interchange.from_torch({"a": array}, {"a": here})["a"]
        assert new.dtype == here.dtype
        np.testing.assert_allclose(np.asarray(new, float), array.real, rtol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": "net"}, "to_torch: names is a str, expected a dict of strings"),
        ({"names": {"hidden": 0}}, r"to_torch: names has \('hidden', 0\), expected strings"),
        ({"kinds": ["embed"]}, "to_torch: kinds is a list, expected a dict of strings"),
    ],
)
def test_names_and_kinds_are_dicts_of_strings(options, message):
    with pytest.raises(TypeError, match=message):
        interchange.to_torch({"hidden": one_dense()}, **options)


def test_what_numpy_does_not_take_is_named():
    with pytest.raises(TypeError, match=r"to_torch: key is a \w+ of dtype key<fry>, expected"):
        interchange.to_torch({"d": one_dense(), "key": jax.random.key(0)})
    with pytest.raises(TypeError, match="from_keras: weights is a NoneType, expected model"):
        interchange.from_keras(None, {"d": one_dense()})


@pytest.mark.parametrize("names", [{"b": "d"}, {"d": "b"}])
def test_an_array_inside_of_another_is_refused(names):
    params = {"b": jnp.ones(3), "d": one_dense()}
    with pytest.raises(ValueError, match=r"to_linen: './bias' would be inside of another array"):
        interchange.to_linen(params, names)
