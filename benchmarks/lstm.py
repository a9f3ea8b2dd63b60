"""Claim: 50 steps of a character LSTM as one program take less time than with Haiku's LSTM: both
with its step jitted in a loop, as in Haiku's documentation, and with its step in one program.

Hidden 128, sequence 64, batch 32, Adam at 0.001, embedding 128, on tinyshakespeare if its file is
in FNN_DATA, else on random ids; n = 9 interleaved rounds, warm. Then forward and backward of the
layer alone, hidden 32, 128 and 256, n = 25: by fnn's own gradient rule, by autodiff of its steps
(``fnn.nn.unroll``), and Haiku's. Haiku is left out if it is not installed
(``pip install dm-haiku``).

    python benchmarks/lstm.py

Device: any. 2 CPU cores, jax 0.10.2: see benchmarks/README.md.
"""

import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from timing import interleaved, machine, show

import fnn

HIDDEN, TIME, BATCH, STEPS = 128, 64, 32, 50
KEY = jax.random.key(0)


def text_ids() -> tuple[np.ndarray, int]:
    if fnn.datasets.available("shakespeare"):
        text = fnn.datasets.shakespeare()
        vocabulary = fnn.datasets.vocabulary(text)
        return fnn.datasets.encode(text, vocabulary), len(vocabulary)
    return np.random.default_rng(0).integers(0, 65, 100_000), 65


def batches(ids: np.ndarray) -> np.ndarray:
    starts = np.random.default_rng(1).integers(0, len(ids) - TIME - 1, (STEPS, BATCH))
    return ids[starts[..., None] + np.arange(TIME + 1)].astype(np.int32)


def init(vocab):
    keys = jax.random.split(KEY, 3)
    return {
        "embed": {"w": jax.random.normal(keys[0], (vocab, HIDDEN))},
        "lstm": fnn.lstm_init(keys[1], HIDDEN, HIDDEN),
        "logits": fnn.dense_init(keys[2], HIDDEN, vocab),
    }


def fnn_loss(params, tokens, key):
    _, hs = fnn.lstm(params["lstm"], params["embed"]["w"][tokens[:, :-1]])
    return fnn.cross_entropy(fnn.dense(params["logits"], hs), tokens[:, 1:])


def haiku_loss_and_params(vocab):
    hk = importlib.import_module("haiku")

    def logits(tokens):
        core = hk.LSTM(HIDDEN)
        xs = hk.Embed(vocab, HIDDEN)(tokens)
        hs, _ = hk.dynamic_unroll(core, xs, core.initial_state(len(tokens)), time_major=False)
        return hk.Linear(vocab)(hs)

    net = hk.without_apply_rng(hk.transform(logits))
    params = net.init(KEY, jnp.zeros((BATCH, TIME), jnp.int32))
    return lambda p, tokens, key: fnn.cross_entropy(
        net.apply(p, tokens[:, :-1]), tokens[:, 1:]
    ), params


def programs(loss_fn, params, tokens):
    """-> (50 steps in one program, 50 steps in a loop over the jitted, donating step)."""
    step = fnn.make_train_step(loss_fn, fnn.adam(1e-3))
    ts = step.init(params)
    one = jax.jit(lambda ts: jax.lax.scan(lambda ts, rows: step(ts, rows, KEY), ts, tokens))
    jitted = jax.jit(step, donate_argnums=0)

    def loop():
        state, losses = jax.tree.map(jnp.copy, ts), []
        for rows in tokens:
            state, metrics = jitted(state, rows, KEY)
            losses.append(metrics["loss"])
        return state, losses

    return lambda: one(ts), loop


def gradients(hidden: int):
    params = fnn.lstm_init(KEY, hidden, hidden)
    xs = jax.random.normal(KEY, (BATCH, TIME, hidden))

    def steps(params, xs):
        return fnn.nn.unroll(fnn.nn.lstm_step, params, xs, fnn.nn.lstm_carry(params, len(xs)))

    def by(layer):
        grad = jax.jit(jax.grad(lambda params, xs: (layer(params, xs)[1] ** 2).mean(), (0, 1)))
        return lambda: grad(params, xs)

    works = {"fnn.lstm": by(fnn.lstm), "autodiff of its steps": by(steps)}
    if importlib.util.find_spec("haiku"):
        hk = importlib.import_module("haiku")

        def unrolled(xs):
            core = hk.LSTM(hidden)
            return hk.dynamic_unroll(core, xs, core.initial_state(len(xs)), time_major=False)[0]

        net = hk.without_apply_rng(hk.transform(unrolled))
        hk_params = net.init(KEY, xs)
        grad = jax.jit(jax.grad(lambda p, xs: (net.apply(p, xs) ** 2).mean(), (0, 1)))
        works["haiku"] = lambda: grad(hk_params, xs)
    return works


def main() -> None:
    ids, vocab = text_ids()
    tokens = jnp.asarray(batches(ids))
    print(machine())
    one, loop = programs(fnn_loss, init(vocab), tokens)
    works = {"fnn, one program": one, "fnn, jitted step in a loop": loop}
    if importlib.util.find_spec("haiku"):
        one, loop = programs(*haiku_loss_and_params(vocab), tokens)
        works |= {"haiku, one program": one, "haiku, jitted step in a loop": loop}
    show(f"{STEPS} steps, warm", interleaved(works, n=9), "fnn, one program")
    for hidden in (32, 128, 256):
        title = f"forward and backward of the layer, hidden {hidden}"
        show(title, interleaved(gradients(hidden), n=25), "fnn.lstm")


if __name__ == "__main__":
    main()
