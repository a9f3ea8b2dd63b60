"""Claim: on 2 cores a tuning study as sweeps is several times as fast as the same study as loops
over trials, seeds, epochs and batches around a jitted Optax step, and more so where the step is
made anew for each trial, as in the examples of Optuna.

The study: AdamW on the 64-128-128-10 net and 1,077 digits, batch 64, 10 epochs of 17 steps; 100
trials of learning rate, b1, b2 and weight decay from 10 seeds each; the validation accuracy of each
trial is the mean over its seeds. scikit-learn's ParameterSampler proposes the trials.

- "sweeps": fnn.sweep with points, all runs of the study in one program.
- "loop, one program": the loop at its best. Optax's AdamW is built inside the jitted step, from
  numbers that are arguments, so that no trial compiles anything; the train state is donated; NumPy
  cuts the batches.
- "loop, a program a trial": the same, but the optimizer is made with the trial's numbers and the
  step is jitted for it, as objectives of Optuna and scikit-learn are mostly written.

Loops take long, so a round times the whole study as sweeps and `--looped` of its trials as loops;
runs per minute are compared. n = 3 interleaved rounds, warm.

    python benchmarks/tuning.py [--trials 100] [--seeds 10] [--looped 5] [--rounds 3]

Device: any. 2 CPU cores: see benchmarks/README.md.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from scipy.stats import loguniform, uniform
from sklearn.model_selection import ParameterSampler
from timing import machine

import fnn

EPOCHS, BATCH, STEPS = 10, 64, 16
SIZES = (64, 128, 128, 10)
SPACE = {
    "learning_rate": loguniform(1e-4, 1e-1),
    "b1": uniform(0.8, 0.19),
    "b2": uniform(0.9, 0.099),
    "weight_decay": loguniform(1e-5, 1e-1),
}
data = fnn.datasets.digits()
x, labels = data.train
x_valid, labels_valid = data.valid


def loss_fn(params, batch, key=None):
    return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])


def run(key, **point):
    """One run as fnn has it: a pure function of its key and its hyperparameters."""
    init_key, fit_key = jax.random.split(key)
    step = fnn.make_train_step(loss_fn, fnn.adamw(**point))
    ts = step.init(fnn.mlp_init(init_key, SIZES))
    ts, _ = fnn.fit(step, ts, (x, labels), fit_key, epochs=EPOCHS, batch_size=BATCH, tail="drop")
    return fnn.accuracy(fnn.mlp(ts.params, x_valid), labels_valid).mean()


def as_sweeps(trials, seeds):
    """All runs of the study -> validation accuracy of each trial."""
    keys = jnp.tile(jax.random.split(jax.random.key(0), seeds), len(trials))
    points = {
        name: np.repeat([t[name] for t in trials], seeds).astype(np.float32) for name in SPACE
    }
    return np.asarray(fnn.sweep(run, keys, paired=points)).reshape(len(trials), seeds).mean(1)


@jax.jit
def init(key, point):
    params = fnn.mlp_init(key, SIZES)
    return params, optax.adamw(**point).init(params)


def _step(params, state, batch, point):
    grads = jax.grad(lambda params: loss_fn(params, batch).mean())(params)
    updates, state = optax.adamw(**point).update(grads, state, params)
    return optax.apply_updates(params, updates), state


one_step = jax.jit(_step, donate_argnums=(0, 1))


def of_trial(trial):
    """The step of one trial, whose numbers are constants in its program."""
    numbers = {name: float(value) for name, value in trial.items()}
    step = jax.jit(
        lambda params, state, batch: _step(params, state, batch, numbers), donate_argnums=(0, 1)
    )
    return lambda params, state, batch, point: step(params, state, batch)


@jax.jit
def validate(params):
    return (fnn.mlp(params, x_valid).argmax(-1) == labels_valid).mean()


def as_new_loop(trials, seeds):
    """The same, with a step of its own for each trial."""
    return as_loop(trials, seeds, anew=True)


def as_loop(trials, seeds, anew=False):
    """The same study, a run after the other."""
    scores = []
    for trial in trials:
        step = of_trial(trial) if anew else one_step
        point, of_seeds = {name: np.float32(value) for name, value in trial.items()}, []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            params, state = init(jax.random.key(seed), point)
            for _ in range(EPOCHS):
                order = rng.permutation(len(x))
                for rows in order[: STEPS * BATCH].reshape(STEPS, BATCH):
                    params, state = step(params, state, (x[rows], labels[rows]), point)
            of_seeds.append(float(validate(params)))
        scores.append(np.mean(of_seeds))
    return np.array(scores)


def main(trials: int = 100, seeds: int = 10, looped: int = 5, rounds: int = 3) -> None:
    fnn.use_all_cores()
    print(machine())
    proposed = list(ParameterSampler(SPACE, trials, random_state=0))
    some = proposed[:looped]
    works = {
        "sweeps": (as_sweeps, proposed),
        "loop, one program": (as_loop, some),
        "loop, a program a trial": (as_new_loop, some),
    }
    scores = {name: work(given, seeds) for name, (work, given) in works.items()}  # compiles
    best = proposed[int(scores["sweeps"].argmax())]
    print("best trial:", ", ".join(f"{name} {value:.3g}" for name, value in best.items()))
    apart = abs(scores["sweeps"][:looped] - scores["loop, one program"]).max()
    print(f"validation accuracies of the two ways are at most {100 * apart:.1f} % apart")
    a_minute: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (work, given) in works.items():
            start = time.perf_counter()
            work(given, seeds)
            a_minute[name].append(60 * len(given) * seeds / (time.perf_counter() - start))
    for name, values in a_minute.items():
        ratio = statistics.median(a / b for a, b in zip(a_minute["sweeps"], values, strict=True))
        low, high = min(values), max(values)
        print(
            f"{name:24}{statistics.median(values):7,.0f} runs a minute ({low:,.0f} to {high:,.0f});"
            f" sweeps are {ratio:.1f} times as fast"
        )


if __name__ == "__main__":
    tyro.cli(main)
