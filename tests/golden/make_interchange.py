"""Write interchange.npz: weights of small nets of PyTorch and Keras, an input and the output.

    pip install torch==2.13.0 keras==3.15.1 jax numpy
    KERAS_BACKEND=jax python tests/golden/make_interchange.py

For each net there are library/net/x, library/net/y, and library/net/weights/NAME for each array of
the net under its name there. Inputs and outputs have the channels last. Kept in the repository so
that the tests need neither library; with them, tests/interchange builds these nets. The file has
all numbers in one array, "numbers", and the shapes by name as JSON, because 140 arrays in a file of
NumPy need five times the space.
"""

import json
import os
from pathlib import Path

import numpy as np

VOCAB = 5
SHAPES = {
    "mlp": (4, 3),
    "convnet": (3, 6, 5, 2),
    "grouped": (2, 6, 4),
    "depthwise": (2, 5, 4, 3),
    "norms": (2, 3, 4),
    "rnn": (2, 5, 3),
    "lstm": (2, 5, 3),
    "gru": (2, 5, 3),
    "attention": (2, 3, 4),
    "cross": (2, 3, 7),
    "embed": (2, 3),
    "block": (2, 3, 4),
}


def drawn(name, shape, rng):
    values = rng.normal(size=shape)
    return (np.abs(values) + 0.5 if "var" in name else values).astype(np.float32)


def inputs(net, rng):
    shape = SHAPES[net]
    if net == "embed":
        return rng.integers(0, VOCAB, shape)
    return rng.normal(size=shape).astype(np.float32)


# --- PyTorch ------------------------------------------------------------------------------------


def torch_nets():
    """{name: (module, apply)}, apply(module, x) with the channels last."""
    import torch
    from torch import nn

    def last(f):
        return lambda net, x: f(net, x.movedim(-1, 1)).movedim(1, -1)

    def convnet(net, x):
        x = torch.relu(net["norm"](net["conv"](x.movedim(-1, 1))))
        return net["logits"](torch.tanh(net["up"](x)).mean((2, 3)))

    def norms(net, x):
        x = net["layer"](x).movedim(-1, 1)
        return net["rms"](net["group"](x).movedim(1, -1))

    def sequence(net, x):
        return net(x)[0]

    def itself(net, x):
        return net(x)

    modules = {
        "mlp": (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), itself),
        "convnet": (
            nn.ModuleDict(
                {
                    "conv": nn.Conv2d(2, 4, (3, 2)),
                    "norm": nn.BatchNorm2d(4),
                    "up": nn.ConvTranspose2d(4, 3, (3, 2), 2),
                    "logits": nn.Linear(3, 2),
                }
            ),
            convnet,
        ),
        "grouped": (
            nn.ModuleDict({"conv": nn.Conv1d(4, 6, 3, groups=2)}),
            last(lambda net, x: net["conv"](x)),
        ),
        "depthwise": (
            nn.ModuleDict({"conv": nn.Conv2d(3, 3, 2, groups=3)}),
            last(lambda net, x: net["conv"](x)),
        ),
        "norms": (
            nn.ModuleDict(
                {
                    "layer": nn.LayerNorm(4),
                    "group": nn.GroupNorm(2, 4),
                    "rms": nn.RMSNorm(4, eps=1e-5),
                }
            ),
            norms,
        ),
        "rnn": (nn.RNN(3, 4, batch_first=True), sequence),
        "lstm": (nn.LSTM(3, 4, batch_first=True), sequence),
        "gru": (nn.GRU(3, 4, batch_first=True), sequence),
        "attention": (
            nn.MultiheadAttention(4, 2, batch_first=True),
            lambda net, x: net(x, x, x)[0],
        ),
        "cross": (
            nn.MultiheadAttention(4, 2, batch_first=True, kdim=3, vdim=3),
            lambda net, x: net(x[..., :4], x[..., 4:], x[..., 4:])[0],
        ),
        "embed": (nn.Sequential(nn.Embedding(5, 5), nn.Linear(5, 5, bias=False)), itself),
        "block": (
            nn.TransformerEncoderLayer(4, 2, 6, 0.0, "gelu", batch_first=True, norm_first=True),
            itself,
        ),
    }
    return {name: (module.eval(), apply) for name, (module, apply) in modules.items()}


def torch_fill(module, rng):
    """Other numbers in all weights; returns them by name."""
    import torch

    state = module.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(drawn(name, tuple(tensor.shape), rng)))
    module.load_state_dict(state)
    weights = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    return {name: tensor.numpy().copy() for name, tensor in weights.items()}


def torch_out(module, apply, x):
    import torch

    with torch.no_grad():
        return apply(module, torch.from_numpy(np.array(x))).numpy()


# --- Keras --------------------------------------------------------------------------------------


def keras_nets():
    """{name: model}."""
    import keras
    from keras import layers

    def stack(name, *parts, dtype="float32"):
        shape = SHAPES[name][1:]
        return keras.Sequential([keras.Input(shape, dtype=dtype), *parts], name=name)

    return {
        "mlp": stack("mlp", layers.Dense(5, "relu", name="a"), layers.Dense(2, name="b")),
        "convnet": stack(
            "convnet",
            layers.Conv2D(4, (3, 2), name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Conv2DTranspose(3, (3, 2), 2, activation="tanh", name="up"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, name="logits"),
        ),
        "grouped": stack("grouped", layers.Conv1D(6, 3, groups=2, name="conv")),
        "depthwise": stack("depthwise", layers.DepthwiseConv2D(2, name="conv")),
        "norms": stack(
            "norms",
            layers.LayerNormalization(name="layer"),
            layers.GroupNormalization(2, name="group"),
            layers.RMSNormalization(epsilon=1e-3, name="rms"),
        ),
        "rnn": stack("rnn", layers.SimpleRNN(4, return_sequences=True, name="cell")),
        "lstm": stack("lstm", layers.LSTM(4, return_sequences=True, name="cell")),
        "gru": stack("gru", layers.GRU(4, return_sequences=True, name="cell")),
        "attention": keras_attention(),
        "cross": keras_cross(),
        "embed": stack(
            "embed",
            layers.Embedding(5, 5, name="tokens"),
            layers.Dense(5, use_bias=False, name="head"),
            dtype="int32",
        ),
        "block": keras_block(),
    }


def keras_attention():
    import keras

    x = keras.Input((3, 4))
    return keras.Model(x, keras.layers.MultiHeadAttention(2, 2, name="attention")(x, x))


def keras_cross():
    import keras

    x = keras.Input((3, 7))
    query, context = x[..., :4], x[..., 4:]
    return keras.Model(x, keras.layers.MultiHeadAttention(2, 2, name="attention")(query, context))


def keras_block():
    import keras
    from keras import layers

    x = start = keras.Input((3, 4))
    y = layers.LayerNormalization(epsilon=1e-5, name="attention_norm")(x)
    x = x + layers.MultiHeadAttention(2, 2, name="attention")(y, y)
    y = layers.LayerNormalization(epsilon=1e-5, name="mlp_norm")(x)
    x = x + layers.Dense(4, name="narrow")(layers.Dense(6, "gelu", name="wide")(y))
    return keras.Model(start, x)


def keras_fill(model, rng):
    weights = {}
    for weight in model.weights:
        weights[weight.path] = drawn(weight.path, weight.shape, rng)
        weight.assign(weights[weight.path])
    return weights


def keras_out(model, x):
    return np.asarray(model(x, training=False))


# --- the file -----------------------------------------------------------------------------------


def main():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras
    import torch

    rng = np.random.default_rng(0)
    arrays = {}
    for name, (module, apply) in torch_nets().items():
        x, weights = inputs(name, rng), torch_fill(module, rng)
        arrays |= filed(f"torch/{name}", x, torch_out(module, apply, x), weights)
    for name, model in keras_nets().items():
        x, weights = inputs(name, rng), keras_fill(model, rng)
        arrays |= filed(f"keras/{name}", x, keras_out(model, x), weights)
    notes = {
        "versions": {"torch": torch.__version__, "keras": keras.__version__},
        "shapes": {name: array.shape for name, array in arrays.items()},
    }
    numbers = np.concatenate([array.reshape(-1) for array in arrays.values()], dtype=np.float32)
    path = Path(__file__).with_name("interchange.npz")
    np.savez_compressed(path, numbers=numbers, notes=np.array(json.dumps(notes)))


def filed(start, x, y, weights):
    assert np.isfinite(y).all(), start
    named = {f"{start}/weights/{name}": array for name, array in weights.items()}
    return {f"{start}/x": x, f"{start}/y": y, **named}


if __name__ == "__main__":
    main()
