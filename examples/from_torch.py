"""A net of PyTorch goes on training in fnn, and goes back.

A small convolutional net with batch norm is made in PyTorch. fnn takes its weights and running
statistics, has the same outputs, trains it on digits, and PyTorch takes the weights again.

python examples/from_torch.py [--quick]      needs torch
"""

import importlib.util

import jax
import numpy as np
import tyro

import fnn

DIGITS = fnn.datasets.digits()
NAMES = {"conv": "0", "norm": "1", "logits": "5"}  # {path here: name there}


def torch_net():
    from torch import nn  # pyright: ignore[reportMissingImports]

    parts = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(72, 10)).eval()


def torch_outputs(net, x):
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        return net(torch.from_numpy(np.array(x)).reshape(-1, 1, 8, 8)).numpy()


def init(key):
    k1, k2 = jax.random.split(key)
    norm, state = fnn.batch_norm_init(8)
    conv, logits = fnn.conv_init(k1, 1, 8, 3), fnn.dense_init(k2, 72, 10)
    return {"conv": conv, "norm": norm, "logits": logits}, {"norm": state}


def apply(params, state, x, *, train):
    x = fnn.conv(params["conv"], x.reshape(-1, 8, 8, 1), padding="VALID")
    x, norm = fnn.batch_norm(params["norm"], state["norm"], x, train=train)
    x = fnn.avg_pool(fnn.relu(x), 2)
    # PyTorch flattens [channels, *space], and the weights of its last layer have this order.
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    return fnn.dense(params["logits"], x), {"norm": norm}


def loss_fn(params, state, batch, key):
    logits, state = apply(params, state, batch[0], train=True)
    return fnn.cross_entropy(logits, batch[1]), state


def main(quick: bool = False) -> None:
    """Take the net over, compare outputs, train it, and give it back."""
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed (pip install torch), so there is no net to take over")
        return
    import torch  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    net, (x, labels) = torch_net(), DIGITS.test

    def compare(what, params, state):
        y = apply(params, state, x, train=False)[0]
        right = 100 * fnn.accuracy(y, labels).mean()
        difference = np.abs(torch_outputs(net, x) - y).max() / np.abs(y).max()
        print(f"{what}: accuracy {right:.1f} %, outputs equal to PyTorch's to {difference:.0e}")

    shapes, state = jax.eval_shape(init, jax.random.key(0))
    params, state = fnn.interchange.from_torch(net.state_dict(), shapes, NAMES, state=state)
    compare("taken over", params, state)

    step = fnn.make_train_step(loss_fn, fnn.adam(1e-2))
    ts, epochs = step.init(params, state), 2 if quick else 20
    ts, _ = fnn.fit(step, ts, DIGITS.train, jax.random.key(1), epochs=epochs, batch_size=64)

    arrays = fnn.interchange.to_torch(ts.params, NAMES, state=ts.state)
    net.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    compare("trained, and given back", ts.params, ts.state)


if __name__ == "__main__":
    tyro.cli(main)
