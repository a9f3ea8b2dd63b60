"""Against PyTorch, where it is installed: in, out into its modules, and in again."""

import numpy as np
import pytest

import fnn
from fnn import interchange
from tests.golden import make_interchange as there
from tests.interchange import cases

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    return there.torch_nets()


def asked(name):
    return {"names": cases.TORCH[name], "kinds": cases.KINDS.get(name)}


@pytest.mark.parametrize("name", cases.NETS)
def test_in(nets, name):
    (module, apply), (params, state), x = nets[name], cases.new(name), cases.inputs(name)
    there.torch_fill(module, np.random.default_rng(1))
    new = interchange.from_torch(module.state_dict(), params, state=state, **asked(name))
    y = cases.out(name, *cases.parts(new, state), x)
    cases.assert_equal_outputs(y, there.torch_out(module, apply, x))


@pytest.mark.parametrize("name", cases.NETS)
def test_out_and_in_again(nets, name):
    (module, apply), x = nets[name], cases.inputs(name)
    params, state = map(cases.drawn, cases.new(name))
    arrays = interchange.to_torch(params, state=state, **asked(name))
    module.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
    cases.assert_equal_outputs(cases.out(name, params, state, x), there.torch_out(module, apply, x))
    again = interchange.from_torch(module.state_dict(), params, state=state, **asked(name))
    cases.assert_same_bits(cases.parts(again, state), (params, state))


def test_tensors_of_any_kind():
    module = torch.nn.Linear(3, 2).to(torch.bfloat16)
    params = {"d": fnn.dense_init(cases.KEY, 3, 2, dtype="bfloat16")}
    new = interchange.from_torch(dict(module.named_parameters()), params, {"d": ""})
    expected = module.weight.detach().float().numpy().T
    np.testing.assert_array_equal(new["d"]["w"].astype("float32"), expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.float64])
def test_tensors_of_any_width(dtype):
    weight = torch.tensor([1.5, -0.25]).to(dtype)
    new = interchange.from_torch({"gain": weight}, {"gain": np.ones(2, np.float32)})
    np.testing.assert_array_equal(new["gain"], [1.5, -0.25])


@pytest.mark.parametrize("options", [{"layout": torch.sparse_coo}, {"device": "meta"}])
def test_tensors_without_values_to_take_are_named(options):
    tensor = torch.zeros(2, **options)
    with pytest.raises(TypeError, match=r"from_torch: gain is a Tensor of dtype torch.float32"):
        interchange.from_torch({"gain": tensor}, {"gain": np.ones(2, np.float32)})


def test_two_layers_in_two_directions():
    module = torch.nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)
    inits = {"_l0": 3, "_l0_reverse": 3, "_l1": 8, "_l1_reverse": 8}
    params = {name: fnn.lstm_init(cases.KEY, dim, 4) for name, dim in inits.items()}
    params = interchange.from_torch(
        module.state_dict(), params, {name: f"*{name}" for name in params}
    )
    x = y = cases.inputs("lstm")
    for level in ("_l0", "_l1"):
        ahead = fnn.lstm(params[level], y)[1]
        back = fnn.lstm(params[f"{level}_reverse"], y, reverse=True)[1]
        y = np.concatenate([ahead, back], -1)
    cases.assert_equal_outputs(y, there.torch_out(module, lambda net, x: net(x)[0], x))


def test_cells_have_no_suffix():
    module = torch.nn.GRUCell(3, 4)
    params = {"cell": fnn.gru_init(cases.KEY, 3, 4)}
    params = interchange.from_torch(module.state_dict(), params, {"cell": "*"})
    x, h = cases.inputs("gru")[:, 0], np.ones((2, 4), np.float32)
    expected = there.torch_out(module, lambda net, x: net(x, torch.from_numpy(h)), x)
    cases.assert_equal_outputs(fnn.nn.gru_step(params["cell"], h, x)[1], expected)
