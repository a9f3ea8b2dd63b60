"""Claim: on 2 cores a sweep of many runs takes a small part of the time that the same trials take
in loops of Flax NNX (a 25th), scikit-learn (a 9th, and a 5th of `GridSearchCV(n_jobs=2)`), Flax
Linen, Equinox, Keras and PyTorch, and at most 1.9 times the time of its matrix products alone.

A trial is a learning rate and a seed: init, 10 epochs of 22 steps of the 64-128-128-10 net with
Adam and batches of 64 on 1,408 digits, the mean loss of the last epoch, the accuracy on the test
rows.

- fnn: 64 trials (8 seeds x 8 rates) as one sweep over all cores, and 1,024 (32 x 32). `population`
  is the same sweep with its results as NumPy.
- "products alone": the eight matrix products of each of these steps, without anything else, in the
  same kind of sweep. By XLA's products no run on these cores can be faster.
- A peer's trials run one after another in a loop, as its documentation has it and at its best: the
  learning rate is an argument of the compiled step, so that it is compiled once. Who builds a new
  model or optimizer for each trial pays the first call at each of them.
- "processes": the loop in as many processes as there are cores, each on a core of its own. PyTorch
  has one thread in a process, except where threads are named.

All start from Glorot's uniform weights. A peer's loop is timed over `--timed` trials, and its time
is scaled to 64 and 1,024; `GridSearchCV` is timed over 64. The last table has the loss and accuracy
of the timed trials beside those of fnn for the same ones, to show that the work is the same.

12 settings (4 rates x 3 strengths of L2) in 5-fold cross-validation: `fnn.cross_validate` against
`GridSearchCV(cv=5, n_jobs=cores)`, 60 fits each.

Each peer has processes of its own, so that none disturbs another. n interleaved rounds after a
first call, which compiles and has a column of its own. A peer that is not installed is left out
(``pip install flax equinox keras scikit-learn torch``). On an accelerator fnn alone is timed.

    python benchmarks/population.py [--n 5] [--timed 8] [--only torch nnx] [--quick]

Device: any; peers on a CPU. The machine must be idle. 2 CPU cores: see benchmarks/README.md.
"""

import importlib
import importlib.util
import itertools
import multiprocessing
import os
import statistics
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from timing import machine, seconds, show

import fnn
from fnn import search

SIZES, BATCH, STEPS, EPOCHS = (64, 128, 128, 10), 64, 22, 10
ROWS = BATCH * STEPS
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
digits = fnn.datasets.digits()
X, LABELS = (np.concatenate(parts)[:ROWS] for parts in zip(digits.train, digits.valid, strict=True))
X_TEST, LABELS_TEST = digits.test

Point = tuple[float, int]  # learning rate, seed
Found = tuple[float, float]  # mean loss of the last epoch, accuracy on the test rows
Trials = Callable[[list[Point]], list[Found]]


def grid_of(n: int) -> tuple[np.ndarray, list[int]]:
    """n learning rates and n seeds."""
    return np.geomspace(1e-3, 1e-2, n).astype(np.float32), list(range(n))


def points_of(n: int) -> list[Point]:
    """All pairs, seed by seed."""
    rates, seeds = grid_of(n)
    return [(float(rate), seed) for seed in seeds for rate in rates]


# --- fnn ----------------------------------------------------------------------------------------


def loss_fn(params, batch, key):
    return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])


def fnn_run(key, learning_rate):
    init_key, fit_key = jax.random.split(key)
    step = fnn.make_train_step(loss_fn, fnn.adam(learning_rate))
    ts = step.init(fnn.mlp_init(init_key, SIZES, w_init=fnn.glorot_uniform))
    ts, history = fnn.fit(step, ts, (X, LABELS), fit_key, epochs=EPOCHS, batch_size=BATCH)
    right = fnn.accuracy(fnn.mlp(ts.params, X_TEST), LABELS_TEST).mean()
    return history["loss"][-1].mean(), right


def keys_of(seeds: list[int]) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.array(seeds))


def as_sweep(n: int) -> Any:
    rates, seeds = grid_of(n)
    return fnn.sweep(fnn_run, keys_of(seeds), {"learning_rate": rates})


def as_population(n: int) -> Any:
    rates, seeds = grid_of(n)
    grid = {"learning_rate": list(rates)}
    return search.population(fnn_run, keys_of(seeds), grid, progress=False).values


def products_run(key, scale):
    """The products of a run: three forward, five backward, in each step of each epoch.

    The gradients are the next step's weights, and all numbers are 0: products take as long with
    any numbers, and nothing but products is left to compute.
    """
    weights = [jnp.full(shape, scale) for shape in itertools.pairwise(SIZES)]
    batches = jnp.asarray(X).reshape(STEPS, BATCH, -1)

    def step(weights, x):
        def chain(weights):
            out = x
            for w in weights:
                out = out @ w
            return out

        out, pull = jax.vjp(chain, weights)
        return pull(out)[0], None

    def epoch(weights, _):
        return jax.lax.scan(step, weights, batches)[0], None

    weights, _ = jax.lax.scan(epoch, weights, length=EPOCHS)
    return sum(w.sum() for w in weights)


def products(n: int) -> Any:
    _, seeds = grid_of(n)
    return fnn.sweep(products_run, keys_of(seeds), {"scale": np.zeros(n, np.float32)})


def fnn_cv_run(key, train, valid, learning_rate, alpha):
    """One fit as scikit-learn has it, whose L2 penalty is alpha / 2 a row of the batch."""

    def penalised(params, batch, key):
        return loss_fn(params, batch, key) + alpha / (2 * BATCH) * fnn.nn.l2(params)

    init_key, fit_key = jax.random.split(key)
    step = fnn.make_train_step(penalised, fnn.adam(learning_rate))
    ts = step.init(fnn.mlp_init(init_key, SIZES, w_init=fnn.glorot_uniform))
    ts, _ = fnn.fit(
        step, ts, train.data, fit_key, weights=train.weights, epochs=EPOCHS, batch_size=BATCH
    )
    x, labels = valid.data
    return fnn.training.weighted_mean(fnn.accuracy(fnn.mlp(ts.params, x), labels), valid.weights)


CV_GRID = {"learning_rate": np.geomspace(1e-3, 1e-2, 4), "alpha": np.geomspace(1e-4, 1e-1, 3)}


def cross_validated() -> Any:
    folds = fnn.k_folds(None, ROWS, 5, labels=LABELS)
    grid = {name: values.astype(np.float32) for name, values in CV_GRID.items()}
    return fnn.cross_validate(fnn_cv_run, keys_of([0]), (X, LABELS), folds, grid)


# --- peers: each makes a function of points, which its process calls again and again ------------


def looped(step: Callable, state: Any, point: Point) -> tuple[Any, float]:
    """A Python loop over epochs and batches -> the last state, the mean loss of the last epoch."""
    rate, seed = np.float32(point[0]), point[1]
    rng, losses = np.random.default_rng(seed), []
    for _ in range(EPOCHS):
        losses = []
        for rows in rng.permutation(ROWS).reshape(STEPS, BATCH):
            state, loss = step(state, (X[rows], LABELS[rows], rate))
            losses.append(loss)
    return state, float(np.mean([float(loss) for loss in losses]))


def share_right(logits: Any) -> float:
    return float((np.asarray(logits).argmax(-1) == LABELS_TEST).mean())


def linen() -> Trials:
    nn, optax = importlib.import_module("flax.linen"), importlib.import_module("optax")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for size in SIZES[1:-1]:
                x = nn.relu(nn.Dense(size, kernel_init=nn.initializers.glorot_uniform())(x))
            return nn.Dense(SIZES[-1], kernel_init=nn.initializers.glorot_uniform())(x)

    model = Net()

    @jax.jit
    def init(seed):
        params = model.init(jax.random.key(seed), X[:1])
        return params, optax.adam(0.0).init(params)

    def step(state, batch):
        (params, opt_state), (x, labels, rate) = state, batch

        def loss_of(params):
            logits = model.apply(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optax.adam(rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    step, apply = jax.jit(step, donate_argnums=0), jax.jit(model.apply)

    def trial(point: Point) -> Found:
        (params, _), loss = looped(step, init(point[1]), point)
        return loss, share_right(apply(params, X_TEST))

    return lambda points: [trial(point) for point in points]


def equinox() -> Trials:
    eqx, optax = importlib.import_module("equinox"), importlib.import_module("optax")
    glorot = jax.nn.initializers.glorot_uniform()

    @eqx.filter_jit
    def init(seed):
        keys = jax.random.split(jax.random.key(seed), len(SIZES))
        model = eqx.nn.MLP(SIZES[0], SIZES[-1], SIZES[1], len(SIZES) - 2, key=keys[-1])
        weights = [
            glorot(key, layer.weight.shape) for key, layer in zip(keys, model.layers, strict=False)
        ]
        model = eqx.tree_at(lambda m: [layer.weight for layer in m.layers], model, weights)
        biases = [jnp.zeros_like(layer.bias) for layer in model.layers]
        model = eqx.tree_at(lambda m: [layer.bias for layer in m.layers], model, biases)
        return model, optax.adam(0.0).init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_value_and_grad
    def loss_of(model, x, labels):
        logits = jax.vmap(model)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @eqx.filter_jit(donate="all-except-first")
    def update(batch, state):
        (model, opt_state), (x, labels, rate) = state, batch
        loss, grads = loss_of(model, x, labels)
        updates, opt_state = optax.adam(rate).update(grads, opt_state)
        return (eqx.apply_updates(model, updates), opt_state), loss

    apply = eqx.filter_jit(lambda model, x: jax.vmap(model)(x))

    def trial(point: Point) -> Found:
        seed = jnp.asarray(point[1])  # a Python number would be static for filter_jit
        (model, _), loss = looped(lambda state, batch: update(batch, state), init(seed), point)
        return loss, share_right(apply(model, X_TEST))

    return lambda points: [trial(point) for point in points]


def nnx_parts() -> tuple[Any, Callable, Callable]:
    """-> flax.nnx, init(seed, rate) -> (model, optimizer), update(model, optimizer, batch)."""
    nnx, optax = importlib.import_module("flax.nnx"), importlib.import_module("optax")
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)

    class Net(nnx.Module):
        def __init__(self, rngs):
            glorot = nnx.initializers.glorot_uniform()
            self.first = nnx.Linear(*SIZES[0:2], kernel_init=glorot, rngs=rngs)
            self.second = nnx.Linear(*SIZES[1:3], kernel_init=glorot, rngs=rngs)
            self.third = nnx.Linear(*SIZES[2:4], kernel_init=glorot, rngs=rngs)

        def __call__(self, x):
            return self.third(nnx.relu(self.second(nnx.relu(self.first(x)))))

    @nnx.jit
    def init(seed, rate):
        model = Net(nnx.Rngs(jax.random.key(seed)))
        optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)
        optimizer.opt_state.hyperparams["learning_rate"][...] = rate
        return model, optimizer

    def update(model, optimizer, batch):
        def loss_of(model):
            logits = model(batch[0])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

        loss, grads = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, grads)
        return loss

    return nnx, init, update


def nnx_jit() -> Trials:
    """As the first pages of its documentation have it."""
    nnx, init, update = nnx_parts()
    update, apply = nnx.jit(update), nnx.jit(lambda model, x: model(x))

    def step(state, batch):
        return state, update(*state, batch)

    def trial(point: Point) -> Found:
        (model, _), loss = looped(step, init(point[1], np.float32(point[0])), point)
        return loss, share_right(apply(model, X_TEST))

    return lambda points: [trial(point) for point in points]


def nnx_split() -> Trials:
    """As its guide to performance has it: split once, merged inside of the compiled step."""
    nnx, init, update = nnx_parts()
    apply = nnx.jit(lambda model, x: model(x))

    def trial(point: Point) -> Found:
        graph, state = nnx.split(init(point[1], np.float32(point[0])))
        state, loss = looped(lambda state, batch: step(graph, state, batch), state, point)
        return loss, share_right(apply(nnx.merge(graph, state)[0], X_TEST))

    def merged(graph, state, batch):
        model, optimizer = nnx.merge(graph, state)
        loss = update(model, optimizer, batch)
        return nnx.state((model, optimizer)), loss

    step = jax.jit(merged, static_argnums=0, donate_argnums=1)
    return lambda points: [trial(point) for point in points]


def keras_fit() -> Trials:
    os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is imported
    keras = importlib.import_module("keras")
    hidden = [keras.layers.Dense(size, activation="relu") for size in SIZES[1:-1]]
    model = keras.Sequential([keras.Input(SIZES[:1]), *hidden, keras.layers.Dense(SIZES[-1])])
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=STEPS,
    )
    model.optimizer.build(model.trainable_variables)

    def trial(point: Point) -> Found:  # the same compiled model, from new weights
        rate, seed = point
        for i, layer in enumerate(model.layers):
            init = keras.initializers.GlorotUniform(seed=1000 * seed + i)
            layer.kernel.assign(init(layer.kernel.shape))
            layer.bias.assign(np.zeros(layer.bias.shape, np.float32))
        for variable in model.optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        model.optimizer.learning_rate = rate
        fitted = model.fit(X, LABELS, BATCH, epochs=EPOCHS, verbose=0)
        return fitted.history["loss"][-1], share_right(model.predict_on_batch(X_TEST))

    return lambda points: [trial(point) for point in points]


def torch_loop(threads: int = 1) -> Trials:
    torch = importlib.import_module("torch")
    nn = torch.nn
    torch.set_num_threads(threads)
    x, labels = torch.tensor(X), torch.tensor(LABELS, dtype=torch.int64)
    x_test, criterion = torch.tensor(X_TEST), nn.CrossEntropyLoss()

    def trial(point: Point) -> Found:
        rate, seed = point
        torch.manual_seed(seed)
        layers = [nn.Linear(*sizes) for sizes in itertools.pairwise(SIZES)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        optimizer, losses = torch.optim.Adam(model.parameters(), rate, fused=True), []
        for _ in range(EPOCHS):
            losses = []
            for rows in torch.randperm(ROWS).reshape(STEPS, BATCH):
                optimizer.zero_grad()
                loss = criterion(model(x[rows]), labels[rows])
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        with torch.no_grad():
            return float(torch.stack(losses).mean()), share_right(model(x_test).numpy())

    return lambda points: [trial(point) for point in points]


def classifier(**options: Any) -> Any:
    """scikit-learn's, without its L2 penalty and without stopping early."""
    network = importlib.import_module("sklearn.neural_network")
    options = {"alpha": 0.0} | options
    return network.MLPClassifier(
        SIZES[1:-1], batch_size=BATCH, max_iter=EPOCHS, n_iter_no_change=10**6, **options
    )


def quiet() -> Any:
    """Without the warning that the loss still falls; scikit-learn tells its workers, too."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def sklearn_loop() -> Trials:
    limits = importlib.import_module("threadpoolctl").threadpool_limits

    def trial(point: Point) -> Found:
        model = classifier(learning_rate_init=point[0], random_state=point[1]).fit(X, LABELS)
        return model.loss_, model.score(X_TEST, LABELS_TEST)

    def trials(points: list[Point]) -> list[Found]:
        with (
            quiet(),
            limits(1),
        ):  # products are small: of two threads of BLAS one waits for the other
            return [trial(point) for point in points]

    return trials


def searched(grid: Any, cv: Any, x: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """GridSearchCV on all cores, by accuracy and by the last training loss."""
    selection = importlib.import_module("sklearn.model_selection")
    search = selection.GridSearchCV(
        classifier(random_state=0),
        grid,
        scoring={"accuracy": "accuracy", "loss": lambda model, x, labels: model.loss_},
        n_jobs=CORES,
        cv=cv,
        refit=False,
    )
    with quiet():
        return search.fit(x, labels).cv_results_


def sklearn_grid() -> Trials:
    x, labels = np.concatenate([X, X_TEST]), np.concatenate([LABELS, LABELS_TEST])
    once = [(np.arange(ROWS), np.arange(ROWS, len(x)))]

    def trials(points: list[Point]) -> list[Found]:
        grid = [{"learning_rate_init": [rate], "random_state": [seed]} for rate, seed in points]
        found = searched(grid, once, x, labels)
        return list(zip(found["mean_test_loss"], found["mean_test_accuracy"], strict=True))

    return trials


def sklearn_cv() -> Trials:
    grid = {"learning_rate_init": CV_GRID["learning_rate"], "alpha": CV_GRID["alpha"]}

    def trials(points: list[Point]) -> list[Found]:
        found = searched(grid, 5, X, LABELS)
        return list(zip(found["mean_test_loss"], found["mean_test_accuracy"], strict=True))

    return trials


LOOPS = {
    "Flax NNX, nnx.jit": ("flax", nnx_jit),
    "Flax NNX, split": ("flax", nnx_split),
    "Flax Linen": ("flax", linen),
    "Equinox": ("equinox", equinox),
    "Keras": ("keras", keras_fit),
    "PyTorch": ("torch", torch_loop),
    f"PyTorch, {CORES} threads": ("torch", partial(torch_loop, CORES)),
    "scikit-learn": ("sklearn", sklearn_loop),
}
SEARCH, CV = f"GridSearchCV(n_jobs={CORES})", f"GridSearchCV(cv=5, n_jobs={CORES})"
MAKERS = {name: make for name, (_, make) in LOOPS.items()} | {SEARCH: sklearn_grid, CV: sklearn_cv}


# --- processes ----------------------------------------------------------------------------------

_made: dict[str, Trials] = {}  # of this process


def work_of(name: str, points: list[Point]) -> list[Found]:
    """In a peer's process: its trials; what is compiled stays for the next call."""
    if name not in _made:
        _made[name] = MAKERS[name]()
    return [(float(loss), float(accuracy)) for loss, accuracy in _made[name](points)]


def pin(core: int | None) -> None:
    """In a peer's process, before anything starts threads: on this core only."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})


class Peer(NamedTuple):
    """A peer's work, in processes of its own; in this one without any."""

    name: str
    points: list[Point]
    pools: list[ProcessPoolExecutor]

    def __call__(self) -> list[Found]:
        if not self.pools:
            return work_of(self.name, self.points)
        share = len(self.pools)
        parts = [self.points[i::share] for i in range(share)]
        pending = [
            pool.submit(work_of, self.name, part)
            for pool, part in zip(self.pools, parts, strict=True)
        ]
        found = [future.result() for future in pending]
        return [found[i % share][i // share] for i in range(len(self.points))]


def peer(name: str, points: list[Point], processes: int = 1) -> Peer:
    context = multiprocessing.get_context("spawn")
    cores = [None] if processes == 1 else range(processes)
    pools = [ProcessPoolExecutor(1, context, pin, (core,)) for core in cores]
    return Peer(name, points, pools)


def peers_of(only: tuple[str, ...], timed: int) -> dict[str, Peer]:
    """Those that are installed and asked for."""
    all_points = points_of(8)
    some = [all_points[9 * i % 64] for i in range(timed)]  # first each seed with another rate
    peers = {}
    for name, (module, _) in LOOPS.items():
        if not importlib.util.find_spec(module):
            print(f"{name}: {module} is not installed, left out")
            continue
        peers[name] = peer(name, some)
        if CORES > 1 and "threads" not in name:
            peers[f"{name}, {CORES} processes"] = peer(name, some, CORES)
    if importlib.util.find_spec("sklearn"):
        # joblib starts processes of its own, which a process that is not the main one cannot end.
        peers[SEARCH] = Peer(SEARCH, all_points if timed >= 8 else some, [])
        peers[CV] = Peer(CV, [], [])
    wanted = [word.lower() for word in only]
    return {
        name: each
        for name, each in peers.items()
        if not wanted or any(word in name.lower() for word in wanted)
    }


# --- the tables -----------------------------------------------------------------------------------


class Timed(NamedTuple):
    """What the rounds gave."""

    first: dict[str, float]  # seconds of the first call
    times: dict[str, list[float]]
    results: dict[str, Any]


def rounds_of(works: dict[str, Callable[[], Any]], n: int) -> Timed:
    """A first call of each, then n interleaved rounds; what fails is named and left out."""
    first, results = {}, {}
    for name, work in list(works.items()):
        try:
            first[name] = seconds(lambda name=name, work=work: results.setdefault(name, work()))
        except Exception as error:
            print(f"{name}: left out, it failed with {type(error).__name__}: {error}")
            del works[name]
        else:
            print(f"{name}: first call {first[name]:.3g} s", flush=True)
    rounds = []
    for i in range(n):
        rounds.append({name: seconds(work) for name, work in works.items()})
        print(f"round {i + 1} of {n}: {sum(rounds[-1].values()):.0f} s", flush=True)
    return Timed(first, {name: [r[name] for r in rounds] for name in works}, results)


def scaled(times: dict[str, list[float]], factors: dict[str, float]) -> dict[str, list[float]]:
    return {name: [t * factors[name] for t in times[name]] for name in factors if name in times}


def show_work(timed: Timed, peers: dict[str, Peer]) -> None:
    """First calls, and the losses and accuracies of the trials beside fnn's of the same trials."""
    losses, rights = (np.asarray(leaf).ravel() for leaf in timed.results["fnn.sweep, 64"])
    every = points_of(8)
    title = "What was trained: means over the timed trials, and fnn's over the same ones"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("trials", "first call s", "loss", "fnn's", "accuracy", "fnn's"):
        table.add_column(column, justify="right")
    for name, first in timed.first.items():
        cells = ["", f"{first:.3g}", "", "", "", ""]
        if name in peers and peers[name].points:
            found = np.array(timed.results[name])
            loss, accuracy = found.mean(0)
            same = [every.index(point) for point in peers[name].points]
            own = losses[same].mean(), rights[same].mean()
            cells = [str(len(found)), cells[1], f"{loss:.4f}", f"{own[0]:.4f}"]
            cells += [f"{100 * accuracy:.1f}", f"{100 * own[1]:.1f}"]
            if abs(accuracy - own[1]) > 0.02 or not 0.8 < loss / own[0] < 1.25:
                name = f"{name} (not the same work?)"
        table.add_row(name, *cells)
    Console(width=100).print(table)


def show_all(timed: Timed, peers: dict[str, Peer], wide: bool) -> None:
    loops = {name: each for name, each in peers.items() if each.points}
    for n in (8, 32) if wide else (8,):
        trials, base = n * n, f"fnn.sweep, {n * n:,}"
        factors = {base: 1.0, f"fnn.population, {trials:,}": 1.0, "products alone, 64": trials / 64}
        factors |= {name: trials / len(each.points) for name, each in loops.items()}
        show(f"{trials:,} runs, warm", scaled(timed.times, factors), base)
    fnn_64, alone = timed.times["fnn.sweep, 64"], timed.times["products alone, 64"]
    ratio = statistics.median(a / b for a, b in zip(fnn_64, alone, strict=True))
    flops = 64 * EPOCHS * STEPS * flops_of_step()
    print(f"a sweep of 64 takes {ratio:.2f} times as long as its products alone,", end=" ")
    print(f"which run at {flops / statistics.median(alone) / 1e9:.1f} GFLOP/s")
    base = "fnn.cross_validate"
    show("5 folds, 12 settings, warm", scaled(timed.times, {base: 1.0, CV: 1.0}), base)
    if CV in timed.results:
        ours = 100 * np.asarray(timed.results[base]).mean((0, 1)).ravel()
        theirs = 100 * np.array(timed.results[CV])[:, 1].reshape(3, 4).T.ravel()
        gap = abs(ours - theirs)
        print(
            f"accuracies of the 12 settings: means {ours.mean():.1f} and {theirs.mean():.1f} %,",
            end=" ",
        )
        print(f"at most {gap.max():.1f} points apart")
    show_work(timed, peers)


def flops_of_step() -> int:
    """Of the products: two of each weight matrix backward, except by the first layer's input."""
    sizes = [a * b for a, b in itertools.pairwise(SIZES)]
    return 2 * BATCH * (3 * sum(sizes) - sizes[0])


def main(n: int = 5, timed: int = 8, only: tuple[str, ...] = (), quick: bool = False) -> None:
    """Time `n` rounds; of a peer's loop `timed` trials."""
    fnn.use_all_cores()
    print(f"{machine()}; {CORES} cores")
    n, timed = (1, 2) if quick else (n, timed)
    works: dict[str, Callable[[], Any]] = {"fnn.sweep, 64": lambda: as_sweep(8)}
    if not quick:
        works["fnn.sweep, 1,024"] = lambda: as_sweep(32)
    if hasattr(search, "population"):
        works["fnn.population, 64"] = lambda: as_population(8)
        if not quick:
            works["fnn.population, 1,024"] = lambda: as_population(32)
    works["products alone, 64"] = lambda: products(8)
    if jax.default_backend() != "cpu":
        works["fnn, one run"] = lambda: as_sweep(1)
        found = rounds_of(works, n)
        show("runs, warm", found.times, "fnn, one run")
        return
    works["fnn.cross_validate"] = cross_validated
    peers = peers_of(only, timed)
    show_all(rounds_of(works | peers, n), peers, wide=not quick)


if __name__ == "__main__":
    tyro.cli(main)
