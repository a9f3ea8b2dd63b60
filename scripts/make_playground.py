"""Write out/playground.html: networks of two dimensions to play with, every run of them real.

python scripts/make_playground.py [--quick]

One page that opens offline: choose data, activation, hidden layers, optimizer, learning rate and
seed, and watch the boundary, the loss and the gradients over training. Nothing is computed in the
page. `fnn.population` trains every combination here; activation, hidden layers and optimizer shape
the program, and one program trains all data sets, rates and seeds side by side. Of each run the
page holds the logit of class 1 on a grid, in 96 levels, and losses, accuracies and the norms of
the gradients by layer, in 16 bits, at epochs that are about evenly spaced on a logarithmic scale.

The runs of one program and one data set are a block, compressed by raw deflate. The page unpacks a
block when it is chosen. It needs a browser with DecompressionStream: Chrome 111, Safari 16.4,
Firefox 113, or later.
"""

import base64
import json
import shlex
import sys
import zlib
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array, lax

import fnn

TEMPLATE = Path(__file__).with_name("playground.html")
DATA = {
    "rings": (fnn.data.rings, {"noise": 0.2}),
    "spirals": (fnn.data.spirals, {"turns": 1.0, "noise": 0.1}),
    "clusters": (fnn.data.clusters, {"classes": 2, "noise": 1.1}),
    "xor": (fnn.data.xor, {"noise": 0.1}),
}
ACTIVATIONS = ("relu", "tanh", "sigmoid")
OPTIMIZERS = {"sgd": fnn.sgd, "momentum": fnn.momentum, "adam": fnn.adam}
ROWS, TEST_ROWS, BATCH = 200, 1000, 20
GRID = 40  # points on each side of the map
# A map holds logits from -FAR to FAR in LEVELS + 1 levels, 0.03 apart at 0 and 0.7 at the ends.
# Probabilities would jump from 0 to 1 within a cell of the grid, and the page, which interpolates,
# would make steps of a straight boundary. No level is 0: it would be a plateau.
LEVELS, NEAR, FAR = 95, 0.5, 10.0
MAPS, LOSSES = 1.4, 8  # epochs in each doubling of training that have a map, a mean loss
LAYERS = 5  # of the deepest network; the others leave gaps


class Choices(NamedTuple):
    """The axes of the page, and how long each run is."""

    hidden: tuple[tuple[int, ...], ...] = ((), (4,), (8, 8), (8, 8, 8, 8))
    activations: tuple[str, ...] = ACTIVATIONS
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    seeds: int = 3
    epochs: int = 256


QUICK = Choices(((), (8, 8)), ("tanh",), ("adam",), (0.01, 0.1), 1, 32)


def spaced(epochs: int, per_doubling: float) -> list[int]:
    """0, and epochs whose logarithms are about evenly spaced, to the last one."""
    count = round(np.log2(epochs) * per_doubling) + 1
    return [0, *np.unique(np.round(np.geomspace(1, epochs, count)).astype(int)).tolist()]


# --- the runs -----------------------------------------------------------------------------------


def points_of(rows: int, seed: int) -> tuple[Array, Array]:
    """Points [sets, rows, 2] and their classes [sets, rows], of each data set."""
    keys = jax.random.split(jax.random.key(seed), len(DATA))
    drawn = [f(key, rows, **o) for key, (f, o) in zip(keys, DATA.values(), strict=True)]
    return jnp.stack([x for x, _ in drawn]), jnp.stack([labels for _, labels in drawn])


def extents(x: Array | np.ndarray) -> np.ndarray:
    """[sets]: half the side of the square that a map shows."""
    return 1.08 * np.abs(np.asarray(x)).max((1, 2))


def grid(extent: Array) -> Array:
    """[GRID^2, 2]: the places of a map, row by row from the top."""
    side = extent * jnp.linspace(-1, 1, GRID)
    x, y = jnp.meshgrid(side, -side)
    return jnp.stack([x.ravel(), y.ravel()], -1)


def logits(params: Any, x: Array, activation: str) -> Array:
    """[..., 2] -> [...]: the logit of class 1."""
    return fnn.mlp(params, x, activation=getattr(fnn, activation))[..., 0]


def companded(z: Array) -> Array:
    """[...] -> uint8 [...]: the level of a logit."""
    part = jnp.log1p(jnp.abs(z) / NEAR) / np.log1p(FAR / NEAR)
    return jnp.round(LEVELS * (1 + jnp.sign(z) * jnp.minimum(part, 1)) / 2).astype(jnp.uint8)


def losses(params: Any, rows: tuple[Array, Array], activation: str) -> Array:
    """The loss of each row."""
    return fnn.binary_cross_entropy(logits(params, rows[0], activation), rows[1])


def measured(
    params: Any, train: Any, test: Any, places: Array, activation: str
) -> dict[str, Array]:
    """The map; loss and share right of the training and the fresh points; norms by layer."""

    def right(rows: tuple[Array, Array]) -> Array:
        return fnn.metrics.binary_accuracy(logits(params, rows[0], activation), rows[1]).mean()

    gradient = jax.grad(lambda p: losses(p, train, activation).mean())(params)
    norms = jnp.stack([*fnn.diagnostics.gradient_norms(gradient).values()])
    return {
        "map": companded(logits(params, places, activation)),
        "losses": jnp.stack([losses(params, rows, activation).mean() for rows in (train, test)]),
        "right": jnp.stack([right(train), right(test)]),
        "norms": jnp.zeros(LAYERS).at[: len(norms)].set(norms),
    }


def make_run(choices: Choices) -> Any:
    """run(key, data, activation, hidden, optimizer, learning_rate) -> what the page shows of it."""
    all_train, all_test = points_of(ROWS, 0), points_of(TEST_ROWS, 1)
    half = jnp.asarray(extents(all_train[0]), all_train[0].dtype)
    shown = jnp.asarray(spaced(choices.epochs, MAPS))
    curve = jnp.asarray(spaced(choices.epochs, LOSSES)[1:])

    def run(
        key: Array,
        data: Array,
        activation: str,
        hidden: tuple[int, ...],
        optimizer: str,
        learning_rate: Array,
    ) -> dict[str, Array]:
        train, test = ((x[data], labels[data]) for x, labels in (all_train, all_test))
        measure = partial(
            measured, train=train, test=test, places=grid(half[data]), activation=activation
        )
        step = fnn.make_train_step(
            lambda params, rows, key: losses(params, rows, activation),
            OPTIMIZERS[optimizer](learning_rate),
        )
        init_key, fit_key = jax.random.split(key)
        ts = step.init(fnn.mlp_init(init_key, (2, *hidden, 1)))
        film = jax.tree.map(lambda a: jnp.stack([a] * len(shown)), measure(ts.params))

        def epoch(carry: Any, number: Array) -> tuple[Any, Array]:
            ts, film = carry
            ts, history = fnn.fit(step, ts, train, fit_key, epochs=1, batch_size=BATCH)
            at = jnp.searchsorted(shown, number)

            def keep(film: Any) -> Any:
                return jax.tree.map(lambda f, a: f.at[at].set(a), film, measure(ts.params))

            # All members are in the same epoch, so the others are not measured.
            film = lax.cond(shown[at] == number, keep, lambda film: film, film)
            return (ts, film), history["loss"].mean()

        (_, film), by_epoch = lax.scan(epoch, (ts, film), jnp.arange(1, choices.epochs + 1))
        return film | {"by epoch": by_epoch[curve - 1]}

    return run


def programs_of(choices: Choices) -> list[dict[str, Any]]:
    """What shapes a program. Without a hidden layer there is nothing to activate."""
    nets = product(choices.hidden, choices.activations, choices.optimizers)
    return [
        {"hidden": hidden, "activation": activation, "optimizer": optimizer}
        for hidden, activation, optimizer in nets
        if hidden or activation == choices.activations[0]
    ]


def trained(choices: Choices) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """(the blocks, values [blocks, rates, seeds, ...]): a block is a program and a data set."""
    blocks = [p | {"data": at} for p, at in product(programs_of(choices), range(len(DATA)))]
    points = [b | {"learning_rate": rate} for b, rate in product(blocks, choices.rates)]
    keys = jax.random.split(jax.random.key(2), choices.seeds)
    found = fnn.population(make_run(choices), keys, points=points, piece=10_000)
    shape = choices.seeds, len(blocks), len(choices.rates)

    def in_blocks(leaf: np.ndarray) -> np.ndarray:
        return np.moveaxis(leaf.reshape(*shape, *leaf.shape[2:]), 0, 2)

    return blocks, {name: in_blocks(leaf) for name, leaf in found.values.items()}


# --- the file -----------------------------------------------------------------------------------


def as_codes(values: np.ndarray) -> np.ndarray:
    """Positive numbers in 16 bits: 1 + 65534 (log10(value) + 6) / 10, so from 1e-6 to 1e4; else 0.

    A number is off by at most 0.02 %.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.round(65534 * (np.log10(values) + 6) / 10)
        return np.where(values > 0, 1 + np.clip(np.nan_to_num(codes), 0, 65534), 0).astype("<u2")


def filtered(maps: np.ndarray) -> np.ndarray:
    """uint8 [..., y, x]: each number less what its neighbours to the left and above foretell.

    The predictor is that of LOCO-I (Weinberger et al. 2000): the plane through three neighbours,
    unless there is an edge. Maps are flat or smooth, so most numbers that are left are 0 or 1.
    """
    padded = np.pad(maps.astype(int), [(0, 0)] * (maps.ndim - 2) + [(1, 0), (1, 0)])
    left, above, corner = padded[..., 1:, :-1], padded[..., :-1, 1:], padded[..., :-1, :-1]
    low, high = np.minimum(left, above), np.maximum(left, above)
    plane = left + above - corner
    foretold = np.where(corner >= high, low, np.where(corner <= low, high, plane))
    return (maps - foretold).astype(np.uint8)  # modulo 256


def block_of(values: dict[str, np.ndarray], at: int) -> bytes:
    """The numbers of all runs, then their maps, deflated."""
    runs = {name: leaf[at].reshape(-1, *leaf.shape[3:]) for name, leaf in values.items()}
    flat = [as_codes(runs[n]).reshape(len(runs[n]), -1) for n in ("by epoch", "losses", "norms")]
    right = np.round(65535 * runs["right"]).astype("<u2").reshape(len(flat[0]), -1)
    maps = runs["map"].reshape(*runs["map"].shape[:-1], GRID, GRID)
    # The maps of one epoch side by side: before training they are the same for every rate.
    left = filtered(maps).swapaxes(0, 1)
    raw = np.concatenate([*flat, right], 1).tobytes() + left.tobytes()
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeezed.compress(raw) + squeezed.flush()


def about(
    choices: Choices, blocks: list[dict[str, Any]], values: dict[str, np.ndarray], sizes: list[int]
) -> dict[str, Any]:
    """What the page must know to read the blocks, and what it shows of all of them."""
    x, labels = map(np.asarray, points_of(ROWS, 0))
    sets = [
        {
            "name": name,
            "made": f"fnn.data.{name}(key, {ROWS}, {', '.join(f'{n}={v}' for n, v in o.items())})",
            "half": round(float(half), 4),
            "x": np.round(x[at], 3).tolist(),
            "labels": labels[at].tolist(),
        }
        for at, ((name, (_, o)), half) in enumerate(zip(DATA.items(), extents(x), strict=True))
    ]
    return {
        "data": sets,
        "choices": choices._asdict(),
        "blocks": [b | {"size": size} for b, size in zip(blocks, sizes, strict=True)],
        "final": np.round(100 * values["right"][..., -1, 1], 1).tolist(),
        "first": first_choice(choices),
        "shown": spaced(choices.epochs, MAPS),
        "curve": spaced(choices.epochs, LOSSES)[1:],
        "grid": GRID,
        "levels": LEVELS,
        "near": NEAR,
        "far": FAR,
        "layers": LAYERS,
        "rows": ROWS,
        "test rows": TEST_ROWS,
        "batch": BATCH,
        "runs": len(blocks) * len(choices.rates) * choices.seeds,
        "command": shlex.join(["python", "scripts/make_playground.py", *sys.argv[1:]]),
        "version": fnn.__version__,
    }


def first_choice(choices: Choices) -> dict[str, int]:
    """What the page shows first: a network that solves the spirals, at the end of training."""

    def place(values: tuple[Any, ...], wanted: Any) -> int:
        return values.index(wanted) if wanted in values else 0

    return {
        "data": list(DATA).index("spirals"),
        "hidden": place(choices.hidden, (8, 8)),
        "activation": place(choices.activations, "tanh"),
        "optimizer": place(choices.optimizers, "adam"),
        "rate": place(choices.rates, 0.03),
        "seed": 0,
        "time": len(spaced(choices.epochs, MAPS)) - 1,
    }


def page(choices: Choices) -> bytes:
    """The whole page."""
    blocks, values = trained(choices)
    packed = [block_of(values, at) for at in range(len(blocks))]
    meta = json.dumps(about(choices, blocks, values, [len(block) for block in packed]))
    html = TEMPLATE.read_text().replace("__ABOUT__", meta.replace("<", "\\u003c"))
    return html.replace("__RUNS__", base64.b64encode(b"".join(packed)).decode()).encode()


def main(quick: bool = False, out: Path = Path("out/playground.html")) -> None:
    """Train all runs, and write the page."""
    fnn.use_all_cores()
    made = page(QUICK if quick else Choices())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(made)
    print(f"{out}: {len(made) / 1e6:.1f} MB")


if __name__ == "__main__":
    tyro.cli(main)
