"""A small transformer on Shakespeare, character by character, and what its heads attend to.

python examples/12_transformer.py [--quick]      writes out/12_transformer.png

The transformer has two blocks of four heads and as many parameters as the LSTM of
11_characters.py. It trains like the LSTM: six epochs on pieces of 64 characters. The text is cut
into tenths:

- The first eight tenths train a network at each of two learning rates.
- The ninth tenth chooses the rate. Then a network is trained on all nine at this rate.
- The last tenth is the test, used once: 2.35 bits per character; the LSTM needs 2.34.

An LSTM can read a text of any length; this transformer attends to at most 64 characters. So the
test pieces overlap by half, and only their later half counts: each character is predicted from the
33 to 64 characters before it. Positions rotate the queries and keys (rotary embedding). The text is
read from FNN_DATA, or downloaded (1.1 MB).
"""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

import fnn

# %% [markdown]
# ## Sizes

# %%
CONTEXT, HEADS, RATES = 64, 4, (3e-3, 1e-2)
STAND_IN = "the quick brown fox jumps over the lazy dog and runs away.\n" * 200


# %% [markdown]
# ## The network
#
# Each character asks a question, the query $q$, and offers a key $k$ and a value $v$. A head takes
# the mean of the values, weighed by how well keys answer the query:
#
# $$\mathrm{attention}(q, k, v) = \mathrm{softmax}\left(\frac{q k^T}{\sqrt{d}} + m\right) v$$
#
# The mask $m$ is $-\infty$ for later characters, so none can look ahead. A block is attention and
# then a small network for each character; each adds to what comes in, after a layer norm:
#
# $$x \leftarrow x + \mathrm{attention}(\mathrm{norm}(x))$$
#
# $$x \leftarrow x + \mathrm{mlp}(\mathrm{norm}(x))$$
#
# Attention does not know positions. Rotary embedding turns queries and keys by an angle that grows
# with the position, so that their product depends on the distance.


# %%
def init(key, vocab, dim, blocks):
    embed_key, logits_key, *keys = jax.random.split(key, 2 + blocks)
    init_block = fnn.transformer_block_init
    return {
        "blocks": {f"block_{i}": init_block(key, dim, HEADS) for i, key in enumerate(keys, 1)},
        "embed": fnn.embed_init(embed_key, vocab, dim),
        "norm": fnn.layer_norm_init(dim),
        "logits": fnn.dense_init(logits_key, dim, vocab),
    }


def apply(params, ids):
    """int [batch, time] -> logits [batch, time, vocab] of the next character."""
    x, positions = fnn.embed(params["embed"], ids), jnp.arange(ids.shape[1])
    for block in params["blocks"].values():
        x = fnn.transformer_block(block, x, causal=True, positions=positions)
    return fnn.dense(params["logits"], fnn.layer_norm(params["norm"], x))


def attention_weights(params, ids):
    """int [time] -> [blocks, heads, time, time]: attention of each character to earlier ones."""
    marked, _ = fnn.diagnostics.capture(apply, measure=lambda x: x)(params, ids[None])
    return jnp.concatenate([w for name, w in marked.items() if name.startswith("attention")])


# %% [markdown]
# ## A run
#
# As in the chapter before: bits per character, clipped gradients, a rate that rises and falls.


# %%
def bits(params, ids):
    """int [batch, time + 1] -> [batch, time]: bits of each character after the first."""
    return fnn.cross_entropy(apply(params, ids[:, :-1]), ids[:, 1:]) * (1 / math.log(2))


@partial(jax.jit, static_argnames=("vocab", "dim", "blocks", "epochs"))
def run(key, train, rate, *, vocab, dim, blocks, epochs):
    """-> (params, training bits [epochs, steps])."""
    init_key, fit_key = jax.random.split(key)
    rows = fnn.data.windows(train, CONTEXT + 1, CONTEXT)
    length = fnn.schedules.Run(epochs, rows=len(rows), batch_size=32)
    optimizer = fnn.adamw(fnn.schedules.warmup_cosine(length, rate, warmup=0.1), weight_decay=0.01)
    step = fnn.make_train_step(lambda params, ids, key: bits(params, ids), optimizer, clip_norm=1.0)
    ts = step.init(init(init_key, vocab, dim, blocks))
    ts, history = fnn.fit(step, ts, rows, fit_key, epochs=epochs, batch_size=32)
    return ts.params, history["loss"]


# %% [markdown]
# ## The score on held-out text
#
# Pieces overlap by half, and only the later half of each counts. So no character is predicted from
# fewer than 33 before it.


# %%
@jax.jit
def cost(params, ids):
    """int [characters] -> mean bits, each character predicted from the 33 to 64 before it."""
    rows = fnn.data.windows(ids, CONTEXT + 1, CONTEXT // 2)
    return fnn.evaluate(lambda ids: bits(params, ids)[:, CONTEXT // 2 :].mean(-1), rows, 64)


# %% [markdown]
# ## Writing
#
# The window moves on by one character at each step.


# %%
@partial(jax.jit, static_argnames="length")
def sample(key, params, prompt, temperature, *, length):
    """int [CONTEXT] -> int [length]: a text that follows the prompt, in one compiled scan."""

    def write(window, key):
        logits = apply(params, window[None])[0, -1]
        character = jax.random.categorical(key, logits * (1 / temperature)).astype(window.dtype)
        return jnp.append(window[1:], character), character

    return jax.lax.scan(write, prompt, jax.random.split(key, length))[1]


# %% [markdown]
# ## The text


# %%
def load(quick):
    if quick and not fnn.datasets.available("shakespeare"):
        print("Shakespeare is not in FNN_DATA: --quick takes a sentence over and over")
        return STAND_IN
    text = fnn.datasets.shakespeare()
    return text[:20_000] if quick else text


# %% [markdown]
# ## The drawing: what each head looks at


# %%
def draw(path, weights, text):
    """Draw all heads on one passage: row t is the attention of character t."""
    figure = Figure(figsize=(11, 6.2), layout="constrained", dpi=110)
    names = [character.replace("\n", "¶").replace(" ", "·") for character in text]
    panels: Any = figure.subplots(*weights.shape[:2], sharex=True, sharey=True, squeeze=False)
    for (block, head), axes in np.ndenumerate(panels):
        axes.imshow(weights[block, head], cmap="Blues", vmin=0, vmax=1)
        axes.set_title(f"block {block + 1}, head {head + 1}", fontsize=10)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(range(len(names)), names, fontsize=6, family="monospace")
            axis.set_tick_params(length=0, pad=1)
        axes.spines[:].set_visible(False)
    figure.supxlabel("... looks at this one", fontsize=10)
    figure.supylabel("this character ...", fontsize=10)
    image = panels[0, 0].get_images()[0]
    figure.colorbar(image, ax=panels, label="attention", shrink=0.6, pad=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"drawn in {path}")


# %% [markdown]
# ## Choose a rate, then train on all but the test


# %%
def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Train at each rate; print the bits of the last tenth and a sample; draw the attention."""
    text = load(quick)
    vocabulary = fnn.datasets.vocabulary(text)
    ids = fnn.datasets.encode(text, vocabulary)
    train, valid, test = np.split(ids, [8 * len(ids) // 10, 9 * len(ids) // 10])
    key = jax.random.key(0)
    dim, blocks, epochs = (32, 1, 1) if quick else (64, 2, 6)
    options = {"vocab": len(vocabulary), "dim": dim, "blocks": blocks, "epochs": epochs}
    costs = {}
    for rate in RATES:
        start = time.perf_counter()
        params, losses = run(key, train, rate, **options)
        costs[rate] = float(cost(params, valid))
        print(
            f"rate {rate}: {fnn.params.count(params):,} parameters, {losses.size:,} steps,"
            f" {losses[-1, -100:].mean():.2f} bits per character in training,"
            f" {costs[rate]:.2f} on the ninth tenth, {time.perf_counter() - start:.0f} s"
        )
    rate = min(costs, key=costs.__getitem__)
    params, _ = run(key, np.concatenate([train, valid]), rate, **options)
    print(f"on all nine at rate {rate}: {cost(params, test):.2f} bits per character of the last")
    prompt = test[:CONTEXT]
    print(f"\nthe prompt, from the held-out text:\n{fnn.datasets.decode(prompt, vocabulary)}")
    for temperature in (0.5, 1.0):
        length = 60 if quick else 400
        written = sample(jax.random.key(1), params, prompt, temperature, length=length)
        print(f"--- at temperature {temperature}:\n{fnn.datasets.decode(written, vocabulary)}\n")
    passage = test[2:30]
    weights = np.asarray(jax.jit(attention_weights)(params, passage))
    draw(out / "12_transformer.png", weights, fnn.datasets.decode(passage, vocabulary))


if __name__ == "__main__":
    tyro.cli(main)
