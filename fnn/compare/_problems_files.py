"""Larger nets, on files in FNN_DATA: a convolutional one on MNIST, an LSTM on Shakespeare."""

import os
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base import AnyArray, Params
from fnn.compare._problem import Parts, Problem, loss_as_scores
from fnn.compare._problems_digits import classifier
from fnn.compare._words import WHO
from fnn.data import datasets
from fnn.nn import (
    conv,
    conv_init,
    cross_entropy,
    dense,
    dense_init,
    embed,
    embed_init,
    lstm,
    lstm_init,
    max_pool,
    relu,
)


def _check_available(problem: str, name: str, call: str, split: Any = None) -> None:
    """ValueError if a data set is not there: a comparison downloads nothing by itself."""
    if not datasets.available(name, split):
        folder = os.environ.get("FNN_DATA") or "~/.cache/fnn"
        raise ValueError(
            f"{WHO}: {problem} needs data that are not in {folder} (FNN_DATA);"
            f" fnn.datasets.{call} downloads them"
        )


@cache
def _mnist_rows() -> Parts:
    """MNIST's 10,000 test images, shuffled: 5,000 to train, 1,000 to validate, 4,000 to test.

    They are shuffled because the second half of the file is by other writers than the first.
    """
    _check_available("mnist_cnn", "mnist", 'mnist("test")', "test")
    x, labels = datasets.mnist("test")
    order = np.random.RandomState(0).permutation(len(x))
    parts = order[:5000], order[5000:6000], order[6000:]
    return Parts(*((x[part], labels[part]) for part in parts))


def _cnn_init(key: Array) -> Params:
    k1, k2, k3, k4 = jax.random.split(key, 4)
    return {
        "conv_1": conv_init(k1, 1, 16, 5),
        "conv_2": conv_init(k2, 16, 32, 3),
        "hidden": dense_init(k3, 7 * 7 * 32, 64),
        "logits": dense_init(k4, 64, 10),
    }


def _cnn(params: Params, x: AnyArray) -> Array:
    h = max_pool(relu(conv(params["conv_1"], x)), 2)  # [batch, 14, 14, 16]
    h = max_pool(relu(conv(params["conv_2"], h)), 2)  # [batch, 7, 7, 32]
    h = relu(dense(params["hidden"], h.reshape(len(h), -1)))
    return dense(params["logits"], h)


MNIST_CNN = Problem(
    name="mnist_cnn",
    data=_mnist_rows,
    init=_cnn_init,
    **classifier(_cnn),
    epochs=5,
    target=0.97,
    about="Two convolutional and two dense layers on MNIST's 10,000 test images, half of"
    " them to train.",
)

CHARACTERS = 65  # different ones in the text
PIECE = 64  # characters of a row; one more follows, the last label


@cache
def _shakespeare_rows() -> Parts:
    """Pieces of the first 80 %, the next 10 % and the last 10 % of the text, int32 [rows, 65]."""
    _check_available("shakespeare_lstm", "shakespeare", "shakespeare()")
    text = datasets.shakespeare()
    ids = datasets.encode(text, datasets.vocabulary(text))
    parts = np.split(ids, [8 * len(ids) // 10, 9 * len(ids) // 10])
    pieces = np.lib.stride_tricks.sliding_window_view
    return Parts(*(pieces(part, PIECE + 1)[::PIECE].copy() for part in parts))


def _lstm_init(key: Array) -> Params:
    k1, k2, k3 = jax.random.split(key, 3)
    return {
        "embed": embed_init(k1, CHARACTERS, 32),
        "layer": lstm_init(k2, 32, 128),
        "logits": dense_init(k3, 128, CHARACTERS),
    }


def _lstm_loss(params: Params, ids: AnyArray, _: Array) -> Array:
    hs: Any = lstm(params["layer"], embed(params["embed"], ids[:, :-1]))[1]
    return jnp.mean(cross_entropy(dense(params["logits"], hs), ids[:, 1:]), axis=-1)


SHAKESPEARE_LSTM = Problem(
    name="shakespeare_lstm",
    data=_shakespeare_rows,
    init=_lstm_init,
    loss=_lstm_loss,
    scores=loss_as_scores(_lstm_loss),
    epochs=1,
    batch_size=32,
    target=2.0,
    about="An LSTM of 128 units on the characters of Tiny Shakespeare; the loss of the next"
    " character, in nats.",
)
