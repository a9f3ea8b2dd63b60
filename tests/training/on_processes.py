"""For `test_processes.py`: what each of several processes does, and the same on one.

``python -m tests.training.on_processes SCENARIO FOLDER ADDRESS COUNT INDEX`` is one process.
"""

import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fnn

EPOCHS = 6


@functools.cache
def split_step(devices=None):
    """One step for all runs on these devices, so that each program compiles once."""
    from tests.nets import linear_loss_fn

    return fnn.training.data_parallel(fnn.make_train_step(linear_loss_fn, fnn.sgd(0.1)), devices)


def validate(ts, rows):
    from tests.nets import linear_loss_fn

    return {"loss": linear_loss_fn(ts.params, rows, None).mean()}


def evaluated(ts, rows):
    from tests.nets import linear_loss_fn

    loss = fnn.evaluate(lambda batch: linear_loss_fn(ts.params, batch, None), rows, 16)
    return loss, fnn.predict(lambda batch: fnn.dense(ts.params, batch[0]), rows, 16)


def watched(folder, devices=None, epochs=EPOCHS, **options):
    """A run of `train`, with everything that only one process may do."""
    from tests.nets import KEY, LABELS, X, linear_init

    step = split_step(devices and tuple(devices))
    data = (X[:80], LABELS[:80])
    ts = step.init(linear_init())
    return fnn.train(
        step, ts, data, KEY, epochs=epochs, batch_size=16, checkpoint=folder, **options
    )


def swept():
    from tests.nets import KEY

    def run(key, rate):
        return {"draw": jax.random.normal(key, (2,)) * rate, "key": key}

    return fnn.sweep(run, jax.random.split(KEY, 3), {"rate": [0.5, 1.0, 2.0]})


def searched(folder):
    """Arrays by name: of a population of two programs and of a race, both kept in a folder."""
    from tests.nets import KEY, LABELS, X, linear_init, linear_loss_fn

    data, keys = (X[:48], LABELS[:48]), jax.random.split(KEY, 3)

    def step_of(rate):
        return fnn.make_train_step(linear_loss_fn, fnn.sgd(rate))

    def run(key, rate, epochs):
        step = step_of(rate)
        ts, history = fnn.fit(
            step, step.init(linear_init()), data, key, epochs=epochs, batch_size=16
        )
        return {"w": ts.params["w"], "loss": history["loss"][-1, -1]}

    def init(key, rate):
        return step_of(rate).init(linear_init())

    def update(ts, key, rate):
        ts, history = fnn.fit(step_of(rate), ts, data, key, epochs=1, batch_size=16)
        return ts, {"loss": history["loss"][0, -1]}

    grid = {"rate": [0.01, 0.1, 0.3], "epochs": [fnn.search.Static(1), fnn.search.Static(2)]}
    kept = {"folder": folder / "population", "piece": 4, "progress": False}
    population = fnn.population(run, keys, grid, **kept)
    rule = fnn.search.SuccessiveHalving("loss")
    kept = {"folder": folder / "race", "progress": False}
    rates = {"rate": [0.01, 0.03, 0.1, 0.3]}
    race = fnn.race((init, update), keys, rates, epochs=4, prune=rule, **kept)
    return named((population.values, race.values))


def trained(folder, devices=None):
    """Arrays by name: of a sweep, and of `train` with a checkpoint, a hook and validation."""
    from tests.nets import LABELS, X

    calls = []

    def hook(ts, epoch, metrics):
        calls.append(epoch)
        return {"size": float(jax.numpy.abs(ts.params["w"]).sum())}

    options = {"hook": hook, "hook_every": 2, "progress": False, "validate": validate}
    result = watched(folder, devices, validation=(X[80:], LABELS[80:]), **options)
    found = swept()["draw"], result.last.params, result.best.params, result.history
    return named(found) | {"hooked": len(calls)}


def streamed(devices=None):
    """`train_on_batches`, each process with its part of every batch, also of the short last one."""
    from tests.nets import KEY, LABELS, X, linear_init, linear_loss_fn

    parts = jax.process_count(), -1
    step = fnn.make_train_step(linear_loss_fn, fnn.sgd(0.1))
    mesh = Mesh(devices or jax.devices(), ("batch",))

    def batches():
        for start in range(0, 88, 16):
            rows = np.arange(start, min(start + 16, 88)).reshape(parts)[jax.process_index()]
            yield np.asarray(X)[rows], np.asarray(LABELS)[rows]

    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    ts = step.init(linear_init())
    ts, history = fnn.train_on_batches(step, ts, batches(), KEY, sharding=sharding)
    return ts.params, history["loss"]


def everything(folder, devices=None):
    """The same, and of `fit`, `evaluate`, `predict` and `train_on_batches`."""
    from tests.nets import KEY, LABELS, X, linear_init

    step, data = split_step(devices and tuple(devices)), (X, LABELS)
    ts, history = fnn.fit(step, step.init(linear_init()), data, KEY, epochs=2, batch_size=16)
    found = ts.params, history["loss"], jax.jit(evaluated)(ts, data), streamed(devices)
    return trained(folder, devices) | {f"fit{name}": leaf for name, leaf in named(found).items()}


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(fnn.training.fetch(tree))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def when(path, work):
    """work() as soon as there is such a file."""

    def wait():
        while not path.exists():
            time.sleep(0.01)
        work()

    threading.Thread(target=wait, daemon=True).start()


def sweep_scenario(folder, index):
    result = swept()
    np.savez(folder / f"{index}.npz", draw=np.asarray(result["draw"]))
    fnn.training.fetch(result["key"])
    try:
        fnn.sweep(jax.random.normal, jax.random.split(jax.random.key(index), 2))
    except ValueError as error:
        print(error)


def everything_scenario(folder, index):
    """In one start: what is computed, what is searched, and mistakes."""
    np.savez(folder / f"{index}.npz", **everything(folder / "everything"))
    np.savez(folder / f"searched{index}.npz", **searched(folder / "searched"))
    mistakes(folder, index)


def trained_scenario(folder, index):
    np.savez(folder / f"{index}.npz", **trained(folder / "run"))


def broken_hook(ts, epoch, metrics):
    raise ZeroDivisionError("of the hook")


def mistakes(folder, index):
    for options in ({"hook": broken_hook}, {"folder": folder / str(index % 2)}):
        try:
            watched(**{"folder": folder / "run", "epochs": 1, "progress": False} | options)
        except (ZeroDivisionError, RuntimeError, ValueError) as error:
            print(type(error).__name__, error)
        if "hook" in options and index == 0:  # the second folder has a file for process 0 alone
            (folder / "run").rename(folder / "0")
            (folder / "run").mkdir()


def endless_scenario(folder, index, number=None):
    """A run without end; process 1 is hit by the signal when the second checkpoint is there."""
    fnn.training._train.CHUNK_SECONDS = 0.0
    if index == int(os.environ["HIT"]):
        number = int(os.environ["SIGNAL"])
        when(folder / "run" / "step_00000002.safetensors", lambda: os.kill(os.getpid(), number))
    options = {"checkpoint_seconds": 0.0, "progress": False, "log": lambda *_: time.sleep(0.2)}
    result = watched(folder / "run", epochs=1000, **options)
    print(result.stopped, result.epochs)


def alone_scenario(folder, index):
    raise AssertionError("a process that never comes has come")


def main(scenario, folder, address, count, index):
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    fnn.training.start_processes(
        address,
        int(count),
        int(index),
        start_seconds=3 if scenario == "alone" else 120,
        heartbeat_seconds=int(os.environ.get("HEARTBEAT", "100")),
        end_seconds=120,
    )
    globals()[f"{scenario}_scenario"](Path(folder), int(index))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(*sys.argv[1:])
