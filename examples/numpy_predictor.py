"""Networks that are trained by fnn and predict by NumPy alone.

An MLP and a convolutional network learn the digits for a few epochs. Their parameters are saved as
.npz files. The four functions of the second part are all that a program without JAX needs.

python examples/numpy_predictor.py [--quick]
"""

from pathlib import Path

import jax
import numpy as np
import tyro

import fnn

DIGITS = fnn.datasets.digits()
OUT = Path("out")


def mlp(params, x):
    return fnn.mlp(params, x)


def conv_net(params, x):
    x = x.reshape(-1, 8, 8, 1)
    x = fnn.max_pool(fnn.relu(fnn.conv(params["conv"], x, padding=1)), 2)
    return fnn.dense(params["logits"], x.reshape(x.shape[0], -1))


def conv_net_init(key):
    k1, k2 = jax.random.split(key)
    return {"conv": fnn.conv_init(k1, 1, 16, 3), "logits": fnn.dense_init(k2, 4 * 4 * 16, 10)}


def trained(apply, params, epochs):
    def loss_fn(params, batch, key):
        return fnn.cross_entropy(apply(params, batch[0]), batch[1])

    step = fnn.make_train_step(loss_fn, fnn.adam(3e-3))
    run = jax.jit(
        lambda ts, key: fnn.fit(step, ts, DIGITS.train, key, epochs=epochs, batch_size=64)
    )
    return run(step.init(params), jax.random.key(1))[0].params


# --- NumPy alone: p are the arrays of the .npz file, by the paths of the parameters ---------------


def numpy_dense(p, name, x):
    return x @ p[f"{name}/w"] + p[f"{name}/b"]


def numpy_conv(p, name, x, padding):
    """[batch, height, width, in] -> [batch, height, width, out], stride 1."""
    w, at = p[f"{name}/w"], (padding, padding)  # [height, width, in, out]
    x = np.pad(x, ((0, 0), at, at, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[:2], axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows, w, optimize=True) + p[f"{name}/b"]


def numpy_mlp(p, x):
    layers = sorted({path.split("/")[0] for path in p})
    for name in layers[:-1]:
        x = np.maximum(numpy_dense(p, name, x), 0)
    return numpy_dense(p, layers[-1], x)


def numpy_conv_net(p, x):
    x = np.maximum(numpy_conv(p, "conv", x.reshape(-1, 8, 8, 1), padding=1), 0)
    x = x.reshape(-1, 4, 2, 4, 2, 16).max(axis=(2, 4))  # windows of 2 x 2
    return numpy_dense(p, "logits", x.reshape(len(x), -1))


# --- both predict the test rows ------------------------------------------------------------------


def main(quick: bool = False) -> None:
    """Train, save, load, predict by both, and compare."""
    OUT.mkdir(exist_ok=True)
    nets = {
        "mlp": (mlp, fnn.mlp_init(jax.random.key(0), (64, 64, 10)), numpy_mlp),
        "conv_net": (conv_net, conv_net_init(jax.random.key(0)), numpy_conv_net),
    }
    x, labels = map(np.asarray, DIGITS.test)
    for name, (apply, params, by_numpy) in nets.items():
        params = trained(apply, params, 2 if quick else 20)
        file = OUT / f"{name}.npz"
        np.savez(file, allow_pickle=False, **jax.device_get(fnn.params.paths(params)))

        with np.load(file) as loaded:
            logits = by_numpy(dict(loaded), x)
        expected = np.asarray(apply(params, x))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
        right = 100 * (logits.argmax(1) == labels).mean()
        apart = abs(logits - expected).max()
        print(f"{name}: {right:.1f} % right by NumPy alone; logits differ by at most {apart:.0e}")


if __name__ == "__main__":
    tyro.cli(main)
