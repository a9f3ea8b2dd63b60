"""Nets, rows and runs that several test modules use. Nothing here draws from a shared generator."""

import jax
import jax.numpy as jnp
import numpy as np

import fnn

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(103, 4)), jnp.float32)
LABELS = X[:, :3].argmax(-1)


def init(key=KEY, **options):
    return fnn.mlp_init(key, (4, 8, 3), **options)


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x), labels)


def dropout_loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x, key=key, rate=0.5), labels)


def run(key, learning_rate=0.1, *, optimizer=fnn.adam, epochs=3, data=(X, LABELS), **options):
    """One whole run with everything switched on."""
    step = fnn.make_train_step(dropout_loss_fn, optimizer(learning_rate), clip_norm=1.0)
    return fnn.fit(step, step.init(init(key)), data, key, epochs=epochs, batch_size=16, **options)


# The least net, for tests of what is around a net: a program of it compiles in a third of the time.


def linear_init(key=KEY, **options):
    return fnn.dense_init(key, 4, 3, **options)


def linear_loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.dense(params, x), labels)


def linear_dropout_loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.dense(params, fnn.dropout(key, x, 0.3)), labels)


def linear_run(key, learning_rate, *, optimizer=fnn.sgd, epochs=3, data=(X, LABELS), **options):
    """One whole run of the least net."""
    step = fnn.make_train_step(linear_dropout_loss_fn, optimizer(learning_rate), clip_norm=1.0)
    ts = step.init(linear_init(key))
    return fnn.fit(step, ts, data, key, epochs=epochs, batch_size=16, **options)


def train_init(params, optimizer, state=(), **options):
    """The first train state of any step with this optimizer."""
    return fnn.make_train_step(loss_fn, optimizer, **options).init(params, state)
