"""Claim: FnnClassifier has the accuracy of scikit-learn's MLPClassifier on the digits and is faster
once its program is compiled; ten networks at once (n_seeds=10) against ten fits are measured too.

1,437 digits train, 360 test. Both have MLPClassifier's defaults, written out below: one hidden
layer of 100, Adam at 0.001, batch 200, penalty 1e-4; 100 epochs each, none stopped earlier. Both
compute in float32. The first fit of a process, with compilation, is timed apart: in processes of
its own, without JAX's cache on the disk. n = 7 interleaved rounds, warm; accuracies from 10 seeds.

    python benchmarks/estimators.py [--rounds 7] [--seeds 10] [--epochs 100]

Device: any. 2 CPU cores: see benchmarks/README.md.
"""

import statistics
import subprocess
import sys
import warnings

import numpy as np
import tyro
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from timing import interleaved, machine, show

import fnn
from fnn.estimators import FnnClassifier

warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is chosen

digits = fnn.datasets.digits()
x, y = (np.concatenate(parts) for parts in zip(digits.train, digits.valid, strict=True))
x_test, y_test = digits.test
EPOCHS = 100


def options(epochs: int, seed: int) -> dict:
    """What both take, by the same names."""
    return {
        "hidden_layer_sizes": (100,),
        "activation": "relu",
        "alpha": 1e-4,
        "batch_size": 200,
        "max_iter": epochs,
        "tol": 0.0,
        "n_iter_no_change": epochs,
        "random_state": seed,
    }


def ours(epochs: int, seed: int = 0, n_seeds: int = 1) -> FnnClassifier:
    """-> fitted."""
    given = options(epochs, seed)
    return FnnClassifier(optimizer="adam", learning_rate=1e-3, n_seeds=n_seeds, **given).fit(x, y)


def theirs(epochs: int, seed: int = 0) -> MLPClassifier:
    """-> fitted, in float32 as ours."""
    given = options(epochs, seed)
    return MLPClassifier(solver="adam", learning_rate_init=1e-3, **given).fit(x, y)


def first_call(epochs: int) -> float:
    """Seconds of the first fit of a process, imports not counted."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "import estimators; start = time.perf_counter()\n"
        "estimators.ours(int(sys.argv[2])); print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code, sys.path[0], str(epochs)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(said.split()[-1])


def accuracies(seeds: int, epochs: int) -> None:
    """Print the test accuracies of both over the seeds, and of all networks at once."""
    for name, fit in (("FnnClassifier", ours), ("MLPClassifier", theirs)):
        found = [100 * fit(epochs, seed).score(x_test, y_test) for seed in range(seeds)]
        mean, deviation = statistics.mean(found), statistics.stdev(found)
        print(
            f"{name:16} test accuracy {mean:.2f} % (deviation {deviation:.2f}, of {seeds} seeds;"
            f" {min(found):.2f} to {max(found):.2f})"
        )
    together = 100 * ours(epochs, 0, seeds).score(x_test, y_test)
    print(f"{f'n_seeds={seeds}':16} test accuracy {together:.2f} %, the mean of the probabilities")


def main(rounds: int = 7, seeds: int = 10, epochs: int = EPOCHS) -> None:
    fnn.use_all_cores()
    print(machine())
    accuracies(seeds, epochs)
    works = {
        "FnnClassifier": lambda: ours(epochs).coefs_,
        "MLPClassifier": lambda: theirs(epochs).coefs_,
    }
    show(f"fit of {epochs} epochs, warm", interleaved(works, rounds), "FnnClassifier")
    firsts = {"first fit of a process": [first_call(epochs) for _ in range(rounds)]}
    show("fit with compilation", firsts, "first fit of a process")
    many = {
        f"n_seeds={seeds}": lambda: ours(epochs, 0, seeds).coefs_,
        f"{seeds} fits": lambda: [ours(epochs, seed).coefs_ for seed in range(seeds)],
        f"{seeds} fits of MLPClassifier": lambda: [
            theirs(epochs, seed).coefs_ for seed in range(seeds)
        ],
    }
    show(f"{seeds} networks, warm", interleaved(many, rounds), f"n_seeds={seeds}")


if __name__ == "__main__":
    tyro.cli(main)
