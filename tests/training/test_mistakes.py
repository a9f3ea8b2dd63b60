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


def train(
    data=(X, LABELS), loss=loss_fn, params=PARAMS, optimizer=None, ts=None, key=KEY, **options
):
    step = fnn.make_train_step(loss, optimizer or fnn.sgd(0.1))
    options = {"epochs": 1, "batch_size": 4, "progress": False} | options
    return fnn.train(step, ts or step.init(params), data, key, **options)


STEP = fnn.make_train_step(loss_fn, fnn.sgd(0.1))


def own_step(ts, batch, key, mask=None):
    return ts, {"error": jnp.zeros(())}


def fit(step=STEP, key=KEY, data=(X, LABELS), **options):
    options = {"epochs": 1, "batch_size": 4} | options
    return fnn.fit(step, STEP.init(PARAMS), data, key, **options)


def fit_until(key=KEY, **options):
    options = {"epochs": 1, "batch_size": 4} | options
    stop = fnn.EarlyStopping("loss")
    return fnn.fit_until(STEP, STEP.init(PARAMS), (X, LABELS), key, stop, **options)


def on_batches(batches=((X, LABELS),), key=KEY, **options):
    step = fnn.make_train_step(loss_fn, fnn.sgd(0.1))
    return fnn.train_on_batches(step, step.init(PARAMS), batches, key, **options)


class Table:  # as pandas and polars have it
    shape, dtype = (8, 4), np.dtype(float)

    def to_numpy(self):
        return np.ones((8, 4))


LOOPS = {"fit": fit, "fit_until": fit_until, "train": train}
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
        lambda: fnn.nn.check_labels(np.array([0, 1, 3]), 3),
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
    "the train state of another optimizer": (
        lambda: train(ts=fnn.make_train_step(loss_fn, fnn.adam(0.1)).init(PARAMS)),
        ValueError,
        "make_train_step: ts is not of this step: 'mu/layer_0/b' of the optimizer's state has shape (5,), but with",
    ),
    "a seed for the key of train_on_batches": (
        lambda: on_batches(key=0),
        TypeError,
        "train_on_batches: key is int, expected a key like jax.random.key(0)",
    ),
    "steps of train_on_batches that are not whole": (
        lambda: on_batches(steps=2.5),
        TypeError,
        "train_on_batches: steps is 2.5, expected a whole number >= 1",
    ),
    "batches of two structures": (
        lambda: on_batches([(X, LABELS), {"x": X, "y": LABELS}]),
        ValueError,
        "train_on_batches: a batch is PyTreeDef({'x': *, 'y': *}), but the first batch was PyTreeDef((*, *))",
    ),
    "half a batch ahead": (
        lambda: fnn.training.prefetch([], size=0.5),
        TypeError,
        "prefetch: size is 0.5, expected a whole number >= 1",
    ),
    "parameters of another library": (
        lambda: fnn.dense({"kernel": X, "bias": X[0]}, X),
        ValueError,
        "dense: params has ['bias', 'kernel'], expected a dict with ['w'], and with ['b'] or without",
    ),
    "a bias of another library": (
        lambda: fnn.layer_norm({"scale": X[0], "bias": X[0]}, X),
        ValueError,
        "layer_norm: params has ['bias', 'scale'], expected a dict with ['scale'], and with ['offset']",
    ),
    "an object for parameters": (
        lambda: fnn.conv(object(), X),
        TypeError,
        "conv: params is of type object, expected a dict with ['w'], and with ['b'] or without",
    ),
    "a list of layers": (
        lambda: fnn.mlp([PARAMS["layer_0"]], X),
        TypeError,
        "mlp: params is of type list, expected a dict of layers, {'layer_0': ...}",
    ),
    "parameters of another recurrent layer": (
        lambda: fnn.lstm(fnn.rnn_init(KEY, 4, 2), X[None]),
        ValueError,
        "lstm: hidden w has shape (2, 2), expected [hidden, 4 hidden]",
    ),
    "an LSTM's carry that is one array": (
        lambda: fnn.lstm(fnn.lstm_init(KEY, 4, 2), X[None], jnp.zeros((2, 2))),
        TypeError,
        "lstm: the carry is one array, expected (h, c), two arrays of shape (1, 2)",
    ),
    "PyTorch's weight of a dense layer": (
        lambda: fnn.dense({"w": jnp.ones((3, 4))}, X),
        ValueError,
        "but w expects 3 (shape (3, 4)); PyTorch's weights are [out, in]: give w.T",
    ),
    "PyTorch's weight of a convolution": (
        lambda: fnn.conv({"w": jnp.ones((6, 1, 5, 5))}, jnp.ones((2, 9, 9, 1))),
        ValueError,
        "conv: x has 1 channels (shape (2, 9, 9, 1)), but w expects 5 (shape (6, 1, 5, 5));"
        " PyTorch's w has other axes: give w.transpose(2, 3, 1, 0)",
    ),
    "PyTorch's images": (
        lambda: fnn.conv({"w": jnp.ones((3, 3, 1, 6))}, jnp.ones((2, 1, 9, 9))),
        ValueError,
        "but w expects 1 (shape (3, 3, 1, 6)); the channels of x must be its last axis",
    ),
    "a bias that would broadcast": (
        lambda: fnn.dense({"w": jnp.ones((4, 1)), "b": jnp.ones(3)}, X),
        ValueError,
        "dense: b has shape (3,), but w of shape (4, 1) expects (1,)",
    ),
    "an int as a key of a layer": (
        lambda: fnn.mlp_init(0, (4, 2)),
        TypeError,
        "mlp_init: key is int, expected a key like jax.random.key(0)",
    ),
    "a size that is no whole number": (
        lambda: fnn.dense_init(KEY, 4.0, 2),
        TypeError,
        "dense_init: in_dim is 4.0, expected a whole number >= 0",
    ),
    "a stride that is no whole number": (
        lambda: fnn.conv(fnn.conv_init(KEY, 1, 1, 3), jnp.ones((1, 4, 4, 1)), stride=2.0),
        TypeError,
        "conv: stride is 2.0, expected a whole number >= 1",
    ),
    "a float in batch norm's state": (
        lambda: fnn.batch_norm(
            fnn.batch_norm_init(4)[0], {"mean": 0.0, "var": X[0]}, X, train=True
        ),
        TypeError,
        "batch_norm: mean is of type float, expected an array",
    ),
    "a negative eps": (
        lambda: fnn.layer_norm(fnn.layer_norm_init(4), X, eps=np.float32(-1)),
        ValueError,
        "layer_norm: eps is -1.0, expected a number >= 0",
    ),
    "a list for an array": (
        lambda: fnn.dense(PARAMS["layer_0"], [[1.0] * 4]),
        TypeError,
        "dense: x is of type list, expected an array",
    ),
    "a step of another shape": (
        lambda: fnn.nn.unroll(lambda p, c, x: (c[:, :1], x), {}, X[None], X[:1]),
        ValueError,
        "unroll: the carry begins as float32[1, 4], but step returned float32[1, 1]",
    ),
    "nothing that moves": (
        lambda: train(optimizer=fnn.sgd(0.0)),
        UserWarning,
        "train: no parameter moved in the first epoch: is the learning rate 0,",
    ),
    "a pattern for a mask": (
        lambda: fnn.adamw(0.1, mask="**/w"),
        TypeError,
        "adamw: mask has '**/w', expected None, a tree of bools or a function params -> bools, such as",
    ),
    "a mask of another model": (
        lambda: train(optimizer=fnn.adamw(0.1, mask={"layer_0": True})),
        ValueError,
        "adamw: mask has the structure PyTreeDef({'layer_0': *}), expected that of the parameters, PyTree",
    ),
    "an optimizer that is not called": (
        lambda: fnn.chain(fnn.clip_by_global_norm(1.0), fnn.adam),
        TypeError,
        "chain: adam is a function, expected an optimizer; call it, as in adam(1e-3)",
    ),
    "a schedule for a beta": (
        lambda: fnn.adam(0.1, b1=lambda count: 0.9),
        TypeError,
        "adam: b1 is a function, expected a number; learning_rate and weight_decay may be schedules",
    ),
    "parameters that are integers": (
        lambda: fnn.adam(0.1).init({"a": jnp.arange(3)}),
        TypeError,
        "adam: parameter 'a' is int32, expected floating point",
    ),
    "names with slashes": (
        lambda: fnn.by_path({"**": fnn.adam(0.1)}).init(
            {"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)}
        ),
        ValueError,
        "paths: two leaves have the path 'a/b'; keys may have no slash",
    ),
    "a length over the whole run": (
        lambda: fnn.schedules.cosine(fnn.schedules.Run(2.5, 100, 10), 0.1),
        TypeError,
        "Run: epochs is 2.5, expected a whole number >= 1",
    ),
    "a checkpoint's step below 0": (
        lambda: fnn.checkpoint.save_last("unused", PARAMS, step=-1),
        ValueError,
        "save_last: step is -1, expected at least 0",
    ),
    "a table for data": (
        lambda: train(data=(Table(), LABELS)),
        TypeError,
        "train: data at '0' came as a Table, expected an array; use .to_numpy()",
    ),
    "words for labels": (
        lambda: train(data=(X, np.array(["cat"] * 8))),
        TypeError,
        "train: data at '1' came as an array of dtype <U3, expected numbers or bools; number the words, as np.unique",
    ),
    "a list for labels": (
        lambda: fnn.cross_entropy(X, [0] * 8),
        TypeError,
        "cross_entropy: labels came as a list, expected an array; use np.asarray",
    ),
    "a masked array": (
        lambda: fnn.data.split(KEY, np.ma.array(np.ones(8), mask=np.arange(8) > 3), 0.5),
        TypeError,
        "split: data came as a masked array, whose mask would be lost; use .filled(value), and give the mask as",
    ),
    "ids of 64 bits": (
        lambda: train(data=(X, np.arange(8) + 2**32)),
        ValueError,
        "train: data hold the number 4294967296, which int32 cannot hold; renumber them, or set jax_enable_x64",
    ),
    "more rows than there are numbers": (
        lambda: train(data=np.broadcast_to(np.zeros(1, np.int8), 2**31)),
        ValueError,
        "train: data have 2147483648 rows, expected at most 2147483647",
    ),
    "a seed for a split": (
        lambda: fnn.data.split(0, X, 0.5),
        TypeError,
        "split: key is int, expected a key like jax.random.key(0)",
    ),
    "one logit for two classes": (
        lambda: fnn.accuracy(X[:, :1], LABELS),
        ValueError,
        "accuracy: logits have shape (8, 1), with 1 class, which is always the answer; one logit for yes or no wants",
    ),
    "several labels a row": (
        lambda: fnn.accuracy(X, jnp.ones((8, 4))),
        ValueError,
        "accuracy: labels (8, 4) (float32) have rows that sum to 4, expected probabilities that sum to 1; for several",
    ),
    "ids of several texts": (
        lambda: fnn.datasets.decode(np.zeros((2, 3), int), "ab"),
        ValueError,
        "decode: ids are int64[2, 3], expected int [characters]; decode one text at a time",
    ),
    "a loss with metrics and no aux=True": (
        lambda: train(loss=lambda p, b, k: (loss_fn(p, b, k), {"a": 1.0})),
        ValueError,
        "make_train_step: loss_fn returned a tuple of 2, expected losses alone; metrics beside the loss want aux=True",
    ),
    "a validation that returns a scalar": (
        lambda: train(validate=lambda ts, data: jnp.zeros(())),
        TypeError,
        'train: validate returned an array of shape (), expected a dict such as {"loss": ...}',
    ),
    **{
        f"a validation of each row by {name}": (
            lambda call=call: call(validate=lambda ts, data: {"acc": X[:, 0]}),
            ValueError,
            f'{name}: validate returned "acc" of shape (8,), expected a scalar: take .mean()',
        )
        for name, call in LOOPS.items()
    },
    **{
        f"rows for a validation without validate of {name}": (
            lambda call=call: call(validation=(X, LABELS)),
            ValueError,
            f"{name}: validation came without validate, the function that measures it: validate(ts",
        )
        for name, call in LOOPS.items()
    },
    "a validation that returns a tuple": (
        lambda: fit(validate=lambda ts, data: (0.0, 1.0)),
        TypeError,
        'fit: validate returned a tuple, expected a dict such as {"loss": ...}',
    ),
    "NumPy in a validation": (
        lambda: train(
            validate=lambda ts, data: {"norm": np.linalg.norm(ts.params["layer_0"]["w"])}
        ),
        TypeError,
        "train: validate needs values while it is traced: it is part of the program, and may use jax.numpy, but not",
    ),
    "a condition of Python's in a validation": (
        lambda: fit(validate=lambda ts, data: {"step": 1.0 if ts.step > 0 else 0.0}),
        TypeError,
        "fit: validate needs values while it is traced",
    ),
    "a step that returns no dict": (
        lambda: fit(step=lambda ts, batch, key, mask: (ts, jnp.zeros(()))),
        TypeError,
        "fit: the step's metrics are an array of shape (), expected a dict",
    ),
    "a monitor that a step of one's own does not measure": (
        lambda: fnn.fit_until(
            own_step,
            STEP.init(PARAMS),
            (X, LABELS),
            KEY,
            fnn.EarlyStopping("loss"),
            epochs=1,
            batch_size=4,
        ),
        ValueError,
        "EarlyStopping: monitor is 'loss', expected one of error",
    ),
    "parameters for a train state": (
        lambda: fnn.fit(STEP, PARAMS, (X, LABELS), KEY, epochs=1, batch_size=4),
        TypeError,
        "fit: ts is a dict, expected a train state, as step.init(params) makes it",
    ),
    "a name that lives in a wing": (
        lambda: fnn.lstm_step,
        AttributeError,
        "module 'fnn' has no attribute 'lstm_step'; it is fnn.nn.lstm_step",
    ),
    "parameters for a step": (
        lambda: STEP.update(PARAMS, (X, LABELS), KEY),
        TypeError,
        "step.update: ts is a dict, expected a train state, as step.init(params) makes it",
    ),
    "train under jit": (
        lambda: jax.jit(lambda ts: train(ts=ts))(STEP.init(PARAMS)),
        TypeError,
        "train: ts is traced, but train is a loop of the host, which cannot be under jit, grad, vmap or sweep; use fit",
    ),
    "train under vmap": (
        lambda: jax.vmap(lambda x: train(data=(x, LABELS)))(X[None]),
        TypeError,
        "train: data is traced",
    ),
    "train in a sweep": (
        lambda: fnn.sweep(lambda key: train(params=fnn.mlp_init(key, (4, 5, 3))), KEY[None]),
        TypeError,
        "train: ts is traced",
    ),
    "a width in a grid": (
        lambda: fnn.sweep(
            lambda key, width: fnn.mlp_init(key, (4, width, 3)), KEY[None], {"width": [5, 6]}
        ),
        TypeError,
        "is traced, expected a number that is known when the program is compiled",
    ),
    "a size in a grid": (
        lambda: fnn.sweep(
            lambda key, width: jax.random.normal(key, (width,)), KEY[None], {"width": [5, 6]}
        ),
        TypeError,
        "sweep: the run needs the value of its key or one of ['width'] while it is traced; values of the grid cannot be",
    ),
    "a batch size in a grid": (
        lambda: fnn.sweep(lambda key, n: fit(batch_size=n)[0].params, KEY[None], {"n": [2, 4]}),
        TypeError,
        "fit: batch_size is traced, expected a number that is known when the program is compiled",
    ),
    "a condition on a grid": (
        lambda: fnn.sweep(lambda key, n: n if n > 1 else -n, KEY[None], {"n": [2, 4]}),
        TypeError,
        "sweep: the run needs the value of its key or one of ['n'] while it is traced",
    ),
    "words in a grid": (
        lambda: fnn.sweep(lambda key, rule: 0, KEY[None], {"rule": ["adam", "sgd"]}),
        TypeError,
        "sweep: rule has the values ['adam', 'sgd'], expected numbers; words and functions are for fnn.population",
    ),
    "optimizers in a grid": (
        lambda: fnn.sweep(lambda key, rule: 0, KEY[None], {"rule": [fnn.adam, fnn.sgd]}),
        TypeError,
        "sweep: rule has the values [<function adam",
    ),
    "a seed for the keys of a sweep": (
        lambda: fnn.sweep(lambda key: 0, 3),
        TypeError,
        "sweep: keys came as 3, expected [n], as jax.random.split(key, n) gives",
    ),
    "half a width of a sweep": (
        lambda: fnn.sweep(lambda key: 0, KEY[None], width=1.5),
        TypeError,
        "sweep: width is 1.5, expected a whole number >= 1",
    ),
    "a list of weights": (
        lambda: fit(weights=[1.0] * 8),
        TypeError,
        "fit: weights came as a list, expected an array; use np.asarray",
    ),
    "a table for data of train with a checkpoint": (
        lambda: train(data=(X, Table()), checkpoint="nowhere"),
        TypeError,
        "train: data at '1' came as a Table, expected an array; use .to_numpy()",
    ),
    **{
        f"half an epoch of {name}": (
            lambda call=call: call(epochs=2.5),
            TypeError,
            f"{name}: epochs is 2.5, expected a whole number >= 1",
        )
        for name, call in LOOPS.items()
    },
    **{
        f"a float for the batch size of {name}": (
            lambda call=call: call(batch_size=np.float32(4)),
            TypeError,
            f"{name}: batch_size is 4.0, expected a whole number >= 1",
        )
        for name, call in LOOPS.items()
    },
    **{
        f"a seed for the key of {name}": (
            lambda call=call: call(key=0),
            TypeError,
            f"{name}: key is int, expected a key like jax.random.key(0)",
        )
        for name, call in LOOPS.items()
    },
    "half a step to replay": (
        lambda: fnn.replay(STEP, STEP.init(PARAMS), (X, LABELS), KEY, at=0.5, batch_size=4),
        TypeError,
        "replay: at is 0.5, expected a whole number >= 0",
    ),
    "folds that are not whole": (
        lambda: fnn.k_folds(KEY, 8, 2.5),
        TypeError,
        "k_folds: folds is 2.5, expected a whole number >= 1",
    ),
    "a hook that is called every half epoch": (
        lambda: train(hook_every=0.5),
        TypeError,
        "train: hook_every is 0.5, expected a whole number >= 1",
    ),
    "seconds below 0": (
        lambda: train(checkpoint_seconds=-1),
        ValueError,
        "train: checkpoint_seconds is -1, expected a number >= 0",
    ),
    "a folder for a checkpoint's file": (
        lambda: fnn.checkpoint.load("/", PARAMS),
        ValueError,
        "/ is a folder, expected a regular file",
    ),
    "weights of other classes": (
        lambda: fnn.binary_cross_entropy(X, X, pos_weight=jnp.ones(3)),
        ValueError,
        "binary_cross_entropy: pos_weight has shape (3,), expected one number, or an array that broadcasts to (8, 4)",
    ),
    "a delta that would make more losses": (
        lambda: fnn.huber(X[0], X[0], delta=jnp.ones((3, 1))),
        ValueError,
        "huber: delta has shape (3, 1), expected one number, or an array that broadcasts to (4,)",
    ),
    "complex targets": (
        lambda: fnn.squared_error(X, X.astype(complex)),
        TypeError,
        "squared_error: targets are complex64, expected real numbers",
    ),
    "several learning rates": (
        lambda: fnn.adam(np.array([0.1])),
        TypeError,
        "adam: learning_rate has shape (1,), expected a number",
    ),
    "a rate for each column": (
        lambda: fnn.dropout(KEY, X, jnp.array([0.1, 0.2])),
        TypeError,
        "dropout: rate has shape (2,), expected a number",
    ),
    "no limit for a clip": (
        lambda: fnn.clip_by_global_norm(None),
        TypeError,
        "clip_by_global_norm: max_norm is None, expected a number",
    ),
    "gradients of each example": (
        lambda: fnn.adam(0.1).update({"w": X}, fnn.adam(0.1).init({"w": X[0]}), {"w": X[0]}),
        ValueError,
        "adam: grads have shape (8, 4) at 'w', but the parameter has (4,)",
    ),
    "updates of another shape": (
        lambda: fnn.apply_updates({"w": X[0]}, {"w": X}),
        ValueError,
        "apply_updates: updates have shape (8, 4) at 'w', but the parameter has (4,)",
    ),
    "updates of another tree": (
        lambda: fnn.apply_updates({"w": X}, {"v": X}),
        ValueError,
        "apply_updates: updates and params differ in structure (first at 'v')",
    ),
    "state and params swapped": (
        lambda: fnn.adam(0.1).update(PARAMS, PARAMS, fnn.adam(0.1).init(PARAMS)),
        TypeError,
        "adam: state came as a dict with ['layer_0', 'layer_1'], expected a dict with ['count', 'mu', 'nu'], as init",
    ),
    "an int as a key of a net": (
        lambda: fnn.mlp(PARAMS, X, key=0, rate=0.5),
        TypeError,
        "mlp: key is int, expected a key like jax.random.key(0), or None",
    ),
    "an int as a key of a block": (
        lambda: fnn.transformer_block(fnn.transformer_block_init(KEY, 4, 2), X[None], key=0),
        TypeError,
        "transformer_block: key is int, expected a key like jax.random.key(0), or None",
    ),
    "a list for a sequence": (
        lambda: fnn.gru(fnn.gru_init(KEY, 1, 2), [[[1.0]]]),
        TypeError,
        "gru: xs came as a list, expected an array; use np.asarray",
    ),
    "a list for a mask": (
        lambda: fnn.attention(fnn.attention_init(KEY, 4, 2), X[None], mask=[[True]]),
        TypeError,
        "attention: mask came as a list, expected an array; use np.asarray",
    ),
    "a mask of other heads": (
        lambda: fnn.attention(
            fnn.attention_init(KEY, 4, 2), X[None], mask=np.ones((1, 3, 8, 8), bool)
        ),
        ValueError,
        "attention: mask has shape (1, 3, 8, 8), for 3 heads, but params have 2",
    ),
    "a base of 0": (
        lambda: fnn.nn.rotary(X[:, None], jnp.arange(8), base=0),
        ValueError,
        "rotary: base is 0, expected a number > 0",
    ),
    "one carry for two directions": (
        lambda: fnn.nn.bidirectional(fnn.gru, {"forward": {}, "backward": {}}, X[None], X[:1]),
        TypeError,
        "bidirectional: the carry is of type ArrayImpl, expected a dict with ['forward', 'backward']",
    ),
    "one carry for several layers": (
        lambda: fnn.nn.stacked(fnn.gru, {"layer_0": {}}, X[None], X[:1]),
        TypeError,
        "stacked: the carry is of type ArrayImpl, expected a dict with ['layer_0']",
    ),
    "a loss that returns nothing": (
        lambda: train(loss=lambda p, b, k: None),
        TypeError,
        "make_train_step: loss_fn returned a NoneType, expected losses, [batch, ...]",
    ),
    "NumPy in a loss": (
        lambda: train(loss=lambda p, b, k: np.exp(loss_fn(p, b, k))),
        TypeError,
        "make_train_step: loss_fn needs values while it is traced: it is part of the program, and may use jax.numpy",
    ),
    "no loss": (
        lambda: fnn.make_train_step(None, fnn.sgd(0.1)),
        TypeError,
        "make_train_step: loss_fn is a NoneType, expected a function",
    ),
    "a compute dtype that is none": (
        lambda: fnn.make_train_step(loss_fn, fnn.sgd(0.1), compute_dtype="float17"),
        TypeError,
        "make_train_step: compute_dtype is 'float17', expected floating point, such as 'bfloat16', or None",
    ),
    "scikit-learn in a metric": (
        lambda: fnn.evaluate(lambda batch: np.asarray(batch[0]).sum(1), (X, LABELS), 4),
        TypeError,
        "evaluate: metric_fn needs values while it is traced: it is part of the program, and may use jax.numpy",
    ),
    "a metric that is one number": (
        lambda: fnn.evaluate(lambda batch: 1.0, X, 4),
        ValueError,
        "evaluate: metric_fn returned shape (), expected one value per row, [4, ...]",
    ),
    "a name for a rule of stopping": (
        lambda: fnn.fit_until(
            STEP, STEP.init(PARAMS), (X, LABELS), KEY, "loss", epochs=1, batch_size=4
        ),
        TypeError,
        "fit_until: stop is 'loss', expected fnn.EarlyStopping(...)",
    ),
    "a patience for a rule of stopping": (
        lambda: train(stop=5),
        TypeError,
        "train: stop is 5, expected fnn.EarlyStopping(...)",
    ),
    "a rule for what nothing measures": (
        lambda: train(stop=fnn.EarlyStopping("val_accuracy")),
        ValueError,
        "EarlyStopping: monitor is 'val_accuracy', expected one of grad_norm, learning_rate, loss, nonfinite; names with val_ come",
    ),
    "a list for a grid": (
        lambda: fnn.sweep(lambda key: 1.0, jax.random.split(KEY, 2), [0.1, 0.2]),
        TypeError,
        "sweep: grid is a list, expected a dict such as",
    ),
    "features of other data": (
        lambda: fnn.training.standardizer(X)(X[:, :3]),
        ValueError,
        "standardize: x has shape (8, 3), but mean and scale have (4,), the shape of one row",
    ),
    "no folds": (
        lambda: fnn.training.pad_folds([]),
        ValueError,
        "pad_folds: no pair came, expected one of (rows, rows) for each fold",
    ),
    "key and data swapped in a split": (
        lambda: fnn.data.split(X, KEY, 0.5),
        TypeError,
        "split: key is an array of float32[8, 4], expected a key like jax.random.key(0)",
    ),
    "a center for other outputs": (
        lambda: fnn.metrics.r2_terms(X, X, jnp.ones(3)),
        ValueError,
        "r2_terms: center has shape (3,), expected one number, or one for each output of targets (8, 4)",
    ),
    "counts of something else": (
        lambda: fnn.metrics.f1({"right": X}),
        ValueError,
        "f1: counts have ['right'], expected correct, answered and present",
    ),
    "a masked array in a checkpoint": (
        lambda: fnn.checkpoint.save("unused", {"a": np.ma.array([1.0], mask=[True])}),
        TypeError,
        "checkpoint: a is a masked array, whose mask would be lost",
    ),
    "path and tree swapped": (
        lambda: fnn.checkpoint.save(PARAMS, "unused"),
        TypeError,
        "checkpoint: the tree is str, expected numbers or keys",
    ),
    "a checkpoint under jit": (
        lambda: jax.jit(lambda x: fnn.checkpoint.save("unused", {"a": x}))(X),
        TypeError,
        "checkpoint: a is traced, expected values; save it outside jit",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_said(mistake):
    make, error, message = MISTAKES[mistake]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=re.escape(message)):
            make()


def test_a_name_that_no_wing_has_is_an_attribute_error():
    """With what Python needs to propose another name: its object."""
    assert not hasattr(fnn, "adm")
    with pytest.raises(AttributeError, match=r"^module 'fnn' has no attribute 'adm'$") as caught:
        fnn.adm  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("adm", fnn)
    assert not hasattr(fnn, "lstm_step")


@pytest.mark.parametrize("loop", [train, fit, fit_until])
def test_validate_without_rows_is_told_so(loop):
    """Only where that is an error: a validate may measure the parameters alone."""

    def reads(ts, rows):
        return {"loss": jnp.mean(rows[0])}

    with pytest.raises(TypeError, match="not subscriptable") as caught:
        loop(validate=reads)
    said = f"{loop.__name__}: validation is None; give validation=, the rows for validate"
    assert said in caught.value.__notes__
    with pytest.raises(IndexError) as caught:
        loop(validate=reads, validation=())
    assert not any("validation" in note for note in getattr(caught.value, "__notes__", ()))
    loop(validate=lambda ts, rows: {"norm": jnp.sum(ts.params["layer_0"]["b"])})


def test_one_label_out_of_range_in_training_is_reported():
    with pytest.warns(
        UserWarning, match="train: 1 steps were not taken; epoch 0, step .: the loss is not"
    ):
        train(data=(X, LABELS.at[3].set(3)))
