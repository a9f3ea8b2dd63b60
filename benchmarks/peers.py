"""Claim: fnn's one program never takes longer than the best JAX peer takes for the same run, and
not much more than 1.5 times as long as PyTorch. On 2 CPU cores the best JAX peer takes 2.8 (conv)
and 1.3 times as long (lstm) as fnn, and fnn takes 1.4 and 1.3 times as long as PyTorch.

conv: 28x28, two 3x3 convolutions (32, 64), each with batch norm, relu and 2x2 max pooling, two
dense layers (128, 10), batch 128, 31 steps. lstm: vocabulary 65, embedding 64, hidden 128,
sequence 64, batch 32, 50 steps. Adam at 0.001, float32, random data: only time counts. Each peer is
written as in its documentation:

- Linen, Haiku, Equinox: a jitted step in a Python loop; the batches are on the device already.
- Keras: `fit`, with all batches in one call and all steps executed together.
- PyTorch: eager, with channels_last images and fused Adam.

fnn also shuffles and gathers its batches. n = 5 interleaved rounds, warm. Init, compiling and (not
for Keras) copying to the device are not timed. The number of parameters and the mean loss are
printed, to show that the nets are the same; PyTorch's LSTM has a second bias, 512 numbers. A peer
that is not installed is left out (``pip install flax equinox dm-haiku keras optax torch``).

    python benchmarks/peers.py conv
    python benchmarks/peers.py lstm

Device: any. PyTorch uses the GPU if JAX does, and TF32 there, as JAX does by default. On a CPU the
machine must be idle: with other work on its cores PyTorch took many times as long.
"""

import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from timing import interleaved, machine, show

import fnn

HIDDEN, TIME, VOCAB, EMBED = 128, 64, 65, 64
BATCH = {"conv": 128, "lstm": 32}
STEPS = {"conv": 31, "lstm": 50}
KEY = jax.random.key(0)
Run = Callable[[], tuple[Any, Any]]  # -> (loss of each step, state)
Batches = list[tuple[np.ndarray, np.ndarray]]


def drawn(net: str, steps: int) -> Batches:
    rng, batch = np.random.default_rng(0), BATCH[net]
    if net == "conv":
        images = rng.uniform(size=(steps, batch, 28, 28, 1)).astype(np.float32)
        return list(zip(images, rng.integers(0, 10, (steps, batch), np.int32), strict=True))
    ids = rng.integers(0, VOCAB, (steps, batch, TIME + 1), np.int32)
    return [(rows[:, :-1], rows[:, 1:]) for rows in ids]


def size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array))


def keeping(losses: dict[str, Any], name: str, run: Run) -> Run:
    """-> a work that calls `run` and stores the losses of the first call in `losses`."""

    def work():
        out = run()
        losses.setdefault(name, out[0])
        return out

    return work


def loop(step: Callable, state: Any, batches: Batches) -> Run:
    on_device = jax.device_put(batches)

    def run():
        now, losses = state, []
        for x, labels in on_device:
            now, loss = step(now, x, labels)
            losses.append(loss)
        return losses, now

    return run


# --- fnn ----------------------------------------------------------------------------------------


def fnn_conv():
    keys = jax.random.split(KEY, 4)
    norms = {"norm_1": fnn.batch_norm_init(32), "norm_2": fnn.batch_norm_init(64)}
    params = {name: params for name, (params, _) in norms.items()} | {
        "conv_1": fnn.conv_init(keys[0], 1, 32, 3),
        "conv_2": fnn.conv_init(keys[1], 32, 64, 3),
        "hidden": fnn.dense_init(keys[2], 7 * 7 * 64, 128),
        "logits": fnn.dense_init(keys[3], 128, 10),
    }

    def logits(params, state, x):
        new = {}
        for i in "12":
            x, name = fnn.conv(params[f"conv_{i}"], x), f"norm_{i}"
            x, new[name] = fnn.batch_norm(params[name], state[name], x, train=True)
            x = fnn.max_pool(fnn.relu(x), 2)
        x = fnn.relu(fnn.dense(params["hidden"], x.reshape(x.shape[0], -1)))
        return fnn.dense(params["logits"], x), new

    return params, {name: state for name, (_, state) in norms.items()}, logits


def fnn_lstm():
    keys = jax.random.split(KEY, 3)
    params = {
        "embed": fnn.embed_init(keys[0], VOCAB, EMBED),
        "lstm": fnn.lstm_init(keys[1], EMBED, HIDDEN),
        "logits": fnn.dense_init(keys[2], HIDDEN, VOCAB),
    }

    def logits(params, state, ids):
        _, hs = fnn.lstm(params["lstm"], fnn.embed(params["embed"], ids))
        return fnn.dense(params["logits"], hs), state

    return params, {}, logits


def run_fnn(net: str, batches: Batches) -> tuple[Run, int]:
    params, state, logits = fnn_conv() if net == "conv" else fnn_lstm()

    def loss_fn(params, state, batch, key):
        y, state = logits(params, state, batch[0])
        return fnn.cross_entropy(y, batch[1]), state

    step = fnn.make_train_step(loss_fn, fnn.adam(1e-3))
    ts = step.init(params, state)
    data = tuple(jnp.concatenate(parts) for parts in zip(*batches, strict=True))

    @jax.jit
    def train(ts, data):
        return fnn.fit(step, ts, data, KEY, epochs=1, batch_size=BATCH[net])

    def run():
        ts_, history = train(ts, data)
        return history["loss"], ts_

    return run, size(params)


# --- Flax's Linen, Haiku, Equinox ---------------------------------------------------------------


def run_linen(net: str, batches: Batches) -> tuple[Run, int]:
    nn, optax = importlib.import_module("flax.linen"), importlib.import_module("optax")

    class Conv(nn.Module):
        @nn.compact
        def __call__(self, x):
            for channels in (32, 64):
                x = nn.Conv(channels, (3, 3))(x)
                x = nn.BatchNorm(use_running_average=False, momentum=0.9)(x)
                x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
            x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
            return nn.Dense(10)(x)

    class Lstm(nn.Module):
        @nn.compact
        def __call__(self, ids):
            hs = nn.RNN(nn.OptimizedLSTMCell(HIDDEN))(nn.Embed(VOCAB, EMBED)(ids))
            return nn.Dense(VOCAB)(hs)

    model, optimizer = Conv() if net == "conv" else Lstm(), optax.adam(1e-3)
    variables = model.init(KEY, batches[0][0])
    params, stats = variables["params"], variables.get("batch_stats", {})

    @jax.jit
    def step(state, x, labels):
        params, stats, opt_state = state

        def loss_fn(params):
            both = {"params": params, "batch_stats": stats}
            logits, new = model.apply(both, x, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), new.get("batch_stats", {})

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), stats, opt_state), loss

    return loop(step, (params, stats, optimizer.init(params)), batches), size(params)


def run_haiku(net: str, batches: Batches) -> tuple[Run, int]:
    hk, optax = importlib.import_module("haiku"), importlib.import_module("optax")

    def conv(x):
        for channels in (32, 64):
            x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(channels, 3)(x), is_training=True)
            x = hk.max_pool(jax.nn.relu(x), (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return hk.Linear(10)(jax.nn.relu(hk.Linear(128)(hk.Flatten()(x))))

    def lstm(ids):
        core, xs = hk.LSTM(HIDDEN), hk.Embed(VOCAB, EMBED)(ids)
        hs, _ = hk.dynamic_unroll(core, xs, core.initial_state(len(ids)), time_major=False)
        return hk.Linear(VOCAB)(hs)

    model = hk.without_apply_rng(hk.transform_with_state(conv if net == "conv" else lstm))
    optimizer = optax.adam(1e-3)
    params, stats = model.init(KEY, batches[0][0])

    @jax.jit
    def step(state, x, labels):
        params, stats, opt_state = state

        def loss_fn(params):
            logits, new = model.apply(params, stats, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), stats, opt_state), loss

    return loop(step, (params, stats, optimizer.init(params)), batches), size(params)


def run_equinox(net: str, batches: Batches) -> tuple[Run, int]:
    eqx, optax = importlib.import_module("equinox"), importlib.import_module("optax")
    keys = jax.random.split(KEY, 4)

    class Conv(eqx.Module):
        convs: list
        norms: list
        dense: list
        pool: Any

        def __init__(self):
            self.convs = [
                eqx.nn.Conv2d(1, 32, 3, padding=1, key=keys[0]),
                eqx.nn.Conv2d(32, 64, 3, padding=1, key=keys[1]),
            ]
            self.norms = [
                eqx.nn.BatchNorm(c, "batch", momentum=0.9, mode="batch") for c in (32, 64)
            ]
            self.dense = [
                eqx.nn.Linear(7 * 7 * 64, 128, key=keys[2]),
                eqx.nn.Linear(128, 10, key=keys[3]),
            ]
            self.pool = eqx.nn.MaxPool2d(2, 2)

        def __call__(self, x, state):
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x, state = norm(conv(x), state)
                x = self.pool(jax.nn.relu(x))
            return self.dense[1](jax.nn.relu(self.dense[0](x.reshape(-1)))), state

    class Lstm(eqx.Module):
        embed: Any
        cell: Any
        dense: Any

        def __init__(self):
            self.embed = eqx.nn.Embedding(VOCAB, EMBED, key=keys[0])
            self.cell = eqx.nn.LSTMCell(EMBED, HIDDEN, key=keys[1])
            self.dense = eqx.nn.Linear(HIDDEN, VOCAB, key=keys[2])

        def __call__(self, ids, state):
            def one(carry, x):
                carry = self.cell(x, carry)
                return carry, carry[0]

            zeros = jnp.zeros(HIDDEN)
            _, hs = jax.lax.scan(one, (zeros, zeros), jax.vmap(self.embed)(ids))
            return jax.vmap(self.dense)(hs), state

    model, stats = eqx.nn.make_with_state(Conv if net == "conv" else Lstm)()
    optimizer = optax.adam(1e-3)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    if net == "conv":  # Equinox wants the channels first
        batches = [(x.transpose(0, 3, 1, 2), labels) for x, labels in batches]

    @eqx.filter_value_and_grad(has_aux=True)
    def loss_fn(model, stats, x, labels):
        logits, stats = jax.vmap(model, (0, None), (0, None), axis_name="batch")(x, stats)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats

    @eqx.filter_jit
    def step(state, x, labels):
        model, stats, opt_state = state
        (loss, stats), grads = loss_fn(model, stats, x, labels)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (eqx.apply_updates(model, updates), stats, opt_state), loss

    params = eqx.filter(model, eqx.is_inexact_array)
    return loop(step, (model, stats, opt_state), batches), size(params)


# --- Keras --------------------------------------------------------------------------------------


def run_keras(net: str, batches: Batches) -> tuple[Run, int]:
    os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is imported
    keras = importlib.import_module("keras")
    layers, (x, labels) = keras.layers, map(np.concatenate, zip(*batches, strict=True))

    def conv(channels):
        same = layers.Conv2D(channels, 3, padding="same"), layers.BatchNormalization(momentum=0.9)
        return [*same, layers.ReLU(), layers.MaxPooling2D(2)]

    if net == "conv":
        dense = layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10)
        stack = [keras.Input((28, 28, 1)), *conv(32), *conv(64), *dense]
    else:
        lstm = layers.LSTM(HIDDEN, return_sequences=True)
        stack = [keras.Input((TIME,)), layers.Embedding(VOCAB, EMBED), lstm, layers.Dense(VOCAB)]
    model = keras.Sequential(stack)
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=len(batches),
    )

    def run():  # continues from the last run, which takes as long
        history = model.fit(x, labels, BATCH[net], epochs=1, shuffle=False, verbose=0)
        return history.history["loss"], None

    return run, sum(math.prod(v.shape) for v in model.trainable_variables)


# --- PyTorch ------------------------------------------------------------------------------------


def run_torch(net: str, batches: Batches) -> tuple[Run, int]:
    torch = importlib.import_module("torch")
    nn, device = torch.nn, "cuda" if jax.default_backend() == "gpu" else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32, as JAX by default and cuDNN

    class Lstm(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(VOCAB, EMBED)
            self.lstm = nn.LSTM(EMBED, HIDDEN, batch_first=True)
            self.dense = nn.Linear(HIDDEN, VOCAB)

        def forward(self, ids):
            return self.dense(self.lstm(self.embed(ids))[0]).transpose(1, 2)

    def conv(channels, out):
        layers = nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out)
        return nn.Sequential(*layers, nn.ReLU(), nn.MaxPool2d(2))

    def build():
        if net == "lstm":
            return Lstm().to(device)
        dense = nn.Flatten(), nn.Linear(7 * 7 * 64, 128), nn.ReLU(), nn.Linear(128, 10)
        model = nn.Sequential(conv(1, 32), conv(32, 64), *dense)
        return model.to(device, memory_format=torch.channels_last)

    def on_device(x, labels):
        x = torch.tensor(x, device=device)
        if net == "conv":
            x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        return x, torch.tensor(labels, dtype=torch.int64, device=device)

    tensors, criterion = [on_device(*batch) for batch in batches], nn.CrossEntropyLoss()
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def run():  # continues from the last run, which takes as long
        losses = []
        for x, labels in tensors:
            optimizer.zero_grad()
            loss = criterion(model(x), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        if device == "cuda":
            torch.cuda.synchronize()
        return torch.stack(losses).tolist(), None

    return run, sum(p.numel() for p in model.parameters())


PEERS = {
    "fnn, one program": ("fnn", run_fnn),
    "Linen": ("flax", run_linen),
    "Haiku": ("haiku", run_haiku),
    "Equinox": ("equinox", run_equinox),
    "Keras": ("keras", run_keras),
    "PyTorch": ("torch", run_torch),
}


def main(
    net: tyro.conf.Positional[Literal["conv", "lstm"]], *, n: int = 5, steps: int | None = None
) -> None:
    """Time `n` rounds of `steps` steps each (by default 31 of conv, 50 of lstm)."""
    print(machine())
    steps = STEPS[net] if steps is None else steps
    batches, works, losses = drawn(net, steps), {}, {}
    for name, (module, run_peer) in PEERS.items():
        if not importlib.util.find_spec(module):
            print(f"{name}: {module} is not installed, left out")
            continue
        run, count = run_peer(net, batches)
        works[name] = keeping(losses, name, run)
        print(f"{name}: {count:,} parameters")
    times = interleaved(works, n)
    for name, values in losses.items():
        print(f"{name}: mean loss of its first run {np.mean(values):.3f}")
    show(f"{net}, {steps} steps, warm", times, "fnn, one program")


if __name__ == "__main__":
    tyro.cli(main)
