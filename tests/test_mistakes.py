"""The mistakes that people make, and word for word what they are told."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

KEY = jax.random.key(0)
X = jnp.ones((8, 4))
LABELS = jnp.arange(8) % 3
PARAMS = fnn.mlp_init(KEY, (4, 5, 3))


def loss_fn(params, batch, key):
    return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])


def train(data=(X, LABELS), loss=loss_fn, params=PARAMS, optimizer=None, **options):
    optimizer = fnn.sgd(0.1) if optimizer is None else optimizer
    step = fnn.make_train_step(loss, optimizer)
    options = {"epochs": 1, "batch_size": 4, "progress": False} | options
    return fnn.train(step, fnn.train_init(params, optimizer), data, KEY, **options)


MISTAKES = {
    "a wrong width": (
        lambda: train(data=(X[:, :3], LABELS)),
        ValueError,
        "mlp layer_0: x has 3 features (shape (4, 3)), but w expects 4 (shape (4, 5))",
    ),
    "labels of shape [n, 1]": (
        lambda: train(data=(X, LABELS[:, None])),
        ValueError,
        "cross_entropy: labels have shape (4, 1) (int32), but logits of shape (4, 3) expect integer labels of",
    ),
    "targets of shape [n, 1]": (
        lambda: fnn.squared_error(jnp.ones(8), jnp.ones((8, 1))),
        ValueError,
        "squared_error: predictions have shape (8,), but targets have shape (8, 1); expected the same",
    ),
    "integer images": (
        lambda: train(data=(np.ones((8, 4), np.uint8), LABELS)),
        TypeError,
        "mlp layer_0: x is uint8, expected floating point; scale it first, as in x.astype('float32')",
    ),
    "logits and labels swapped": (
        lambda: fnn.cross_entropy(LABELS, X),
        TypeError,
        "cross_entropy: logits are int32, expected floating point",
    ),
    "a label out of range": (
        lambda: fnn.check_labels(np.array([0, 1, 3]), 3),
        ValueError,
        "check_labels: row 2 has label 3, expected 0 to 2 (1 of 3 labels are out of range)",
    ),
    "a batch larger than the data": (
        lambda: train(batch_size=9),
        ValueError,
        "train: batch_size 9 exceeds the 8 rows of data",
    ),
    "a seed for a key": (
        lambda: fnn.dropout(0, X, 0.5),
        TypeError,
        "dropout: key is int, expected a key like jax.random.key(0), or None",
    ),
    "a mean for losses": (
        lambda: train(loss=lambda p, b, k: loss_fn(p, b, k).mean(), batch_size=3),
        ValueError,
        "make_train_step: loss_fn returned shape (), but 3 rows are masked; expected one loss per row",
    ),
    "a misspelt option": (
        lambda: fnn.make_train_step(loss_fn, fnn.sgd(0.1), clipnorm=1.0),
        TypeError,
        "unexpected keyword argument 'clipnorm'",
    ),
    "an optimizer's params forgotten": (
        lambda: fnn.adamw(0.1).update(PARAMS, fnn.adamw(0.1).init(PARAMS)),
        ValueError,
        "adamw: update(grads, state) came without params, which it needs",
    ),
    "nothing that moves": (
        lambda: train(optimizer=fnn.sgd(0.0)),
        UserWarning,
        "train: no parameter moved in the first epoch: is the learning rate 0,",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_said(mistake):
    make, error, message = MISTAKES[mistake]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=re.escape(message)):
            make()


def test_one_label_out_of_range_in_training_is_reported():
    with pytest.warns(
        UserWarning, match="train: 1 steps were not taken; epoch 0, step .: the loss is not"
    ):
        train(data=(X, LABELS.at[3].set(3)))
