"""A search by Optuna: its TPE proposes eight points at a time, fnn runs them from three seeds each.

python examples/search.py [--quick]      writes out/search.png

Learning rate, dropout rate and hidden layers of a network on the digits. Each round is one
population: rates are numbers in the program, and each shape of the network is one program, which
is compiled once for all rounds. The study is told the mean validation loss over the seeds, so it
does not chase one lucky seed. The best point has an interval over its seeds, and Optuna tells which
hyperparameters mattered. To go on another day, or with several processes at once, give the study a
storage: ``optuna.create_study(storage="sqlite:///study.db", study_name="digits")``.
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import tyro

import fnn
from fnn import plots
from fnn.inspect.plots import COLOURS
from fnn.search import Range, run_study

DIGITS = fnn.datasets.digits()
HIDDEN = [(16,), (64,), (128, 128)]


def apply(params, x, key=None, rate=0.0):
    return fnn.mlp(params, x, key=key, rate=rate)


def run_of(epochs):
    """-> run(key, **point): one training run, its validation loss and accuracy."""

    def run(key, learning_rate, dropout, hidden):
        def loss_fn(params, batch, key):
            x, labels = batch
            return fnn.cross_entropy(apply(params, x, key, dropout), labels)

        init_key, fit_key = jax.random.split(key)
        step = fnn.make_train_step(loss_fn, fnn.adam(learning_rate))
        ts = step.init(fnn.mlp_init(init_key, (64, *hidden, 10)))
        ts, _ = fnn.fit(step, ts, DIGITS.train, fit_key, epochs=epochs, batch_size=64)
        x, labels = DIGITS.valid
        logits = apply(ts.params, x)
        return {
            "loss": fnn.cross_entropy(logits, labels).mean(),
            "accuracy": fnn.accuracy(logits, labels).mean(),
        }

    return run


def draw(path, found, batch, importances):
    """Losses by trial and by learning rate; importances."""
    losses, mean = found["loss"], found["loss"].mean(0)
    rates = [point["learning_rate"] for point in found.points]
    figure, (by_trial, by_rate, bars) = plots.subplots(1, 3, width=4.2, height=3.8)
    trials = np.arange(len(mean))
    by_trial.plot(trials, losses.T, "o", color=COLOURS[5], alpha=0.5, markersize=3)
    by_trial.plot(trials, mean, "o", color=COLOURS[0], label="mean of the seeds")
    best = np.minimum.accumulate(np.where(np.isnan(mean), np.inf, mean))
    by_trial.step(trials, best, where="post", color=COLOURS[1], label="best so far")
    for start in range(batch, len(mean), batch):
        by_trial.axvline(start - 0.5, color="0.8", linewidth=0.8)
    by_trial.set(xlabel="trial (lines: rounds)", ylabel="validation loss", yscale="log")
    for colour, hidden in zip(COLOURS, HIDDEN, strict=False):
        own = [i for i, point in enumerate(found.points) if point["hidden"] == hidden]
        name = "-".join(map(str, hidden))
        by_rate.plot([rates[i] for i in own], mean[own], "o", color=colour, label=f"hidden {name}")
    by_rate.set(xlabel="learning rate", ylabel="validation loss", xscale="log", yscale="log")
    bars.barh([*importances][::-1], [*importances.values()][::-1], color=COLOURS[2])
    bars.set(xlabel="importance", xlim=(0, 1))
    for axes in (by_trial, by_rate, bars):
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not bars:
            axes.legend(frameon=False)
    plots.save(figure, path)
    print(f"drawn in {path}")


def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Search, then say what was found."""
    if not importlib.util.find_spec("optuna"):
        print("Optuna is not installed: pip install 'fnn[search]'")
        return
    import optuna  # pyright: ignore[reportMissingImports]

    fnn.use_all_cores()  # each core trains its share of the runs
    epochs, rounds, batch, seeds = (2, 2, 4, 2) if quick else (20, 4, 8, 3)
    keys = jax.random.split(jax.random.key(0), seeds)
    space = {
        "learning_rate": Range(1e-4, 1e-1, "log"),
        "dropout": Range(0.0, 0.6),
        "hidden": HIDDEN,
    }
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=batch)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    found = run_study(study, run_of(epochs), keys, space, batch=batch, rounds=rounds, value="loss")

    best = found.best("loss")
    for name, value in best.point.items():
        print(f"{name:14}{value if name == 'hidden' else format(value, '.3g')}")
    print(f"validation loss {best.mean:.3f}, 95 % interval over {seeds} seeds", end=" ")
    print(f"{best.low:.3f} to {best.high:.3f}; the first round's best {first_of(found, batch):.3f}")
    accuracy = found["accuracy"].ravel()[best.members]
    print(f"validation accuracy of its seeds {100 * accuracy.min():.1f} to", end=" ")
    print(f"{100 * accuracy.max():.1f} %")
    importances = optuna.importance.get_param_importances(study)
    print("importance:", ", ".join(f"{n} {100 * v:.0f} %" for n, v in importances.items()))
    draw(out / "search.png", found, batch, importances)


def first_of(found, batch):
    return np.nanmin(found["loss"][:, :batch].mean(0))


if __name__ == "__main__":
    tyro.cli(main)
