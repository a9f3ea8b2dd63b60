"""Against Keras on JAX, where it is installed: in, out into its models, and in again."""

import os

import numpy as np
import pytest

from fnn import interchange
from tests.golden import make_interchange as there
from tests.interchange import cases

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")


@pytest.fixture(scope="module")
def nets():
    if keras.backend.backend() != "jax":
        pytest.skip("KERAS_BACKEND is not jax")
    return there.keras_nets()


def asked(name):
    return {"names": cases.KERAS[name], "kinds": cases.KERAS_KINDS.get(name)}


def eps_of(name):
    return 1e-5 if name == "block" else 1e-3


@pytest.mark.parametrize("name", cases.NETS)
def test_in(nets, name):
    model, (params, state), x = nets[name], cases.new(name), cases.inputs(name)
    there.keras_fill(model, np.random.default_rng(1))
    new = interchange.from_keras(model, params, state=state, **asked(name))
    y = cases.out(name, *cases.parts(new, state), x, eps_of(name))
    cases.assert_equal_outputs(y, there.keras_out(model, x))


@pytest.mark.parametrize("name", cases.NETS)
def test_out_and_in_again(nets, name):
    model, x = nets[name], cases.inputs(name)
    params, state = map(cases.drawn, cases.new(name))
    arrays = interchange.to_keras(params, state=state, **asked(name))
    for weight in model.weights:
        weight.assign(arrays[weight.path])
    y = cases.out(name, params, state, x, eps_of(name))
    cases.assert_equal_outputs(y, there.keras_out(model, x))
    again = interchange.from_keras(model.weights, params, state=state, **asked(name))
    cases.assert_same_bits(cases.parts(again, state), (params, state))
