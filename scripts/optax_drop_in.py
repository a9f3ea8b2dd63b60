"""Optax's own tests, with fnn's rules in place of Optax's.

    python scripts/optax_drop_in.py [--only alias_test] [--known FILE]

Optax's package contains its tests. A test counts if it uses one of the rules below and passes with
Optax as it is. It is run a second time with fnn's rule under the name of Optax's.
"""

import argparse
import importlib
import inspect
import json
import re
import subprocess
import sys
import tempfile
import unittest
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import jax
import optax

import fnn

# --- fnn's rules with Optax's arguments -------------------------------------------------------


def sgd(learning_rate, momentum=None, nesterov=False, accumulator_dtype=None):
    if momentum is None:
        return fnn.sgd(learning_rate)
    return fnn.momentum(
        learning_rate, momentum, nesterov=nesterov, accumulator_dtype=accumulator_dtype
    )


def adagrad(learning_rate, initial_accumulator_value=0.1, eps=1e-7):
    return fnn.adagrad(learning_rate, initial_accumulator_value, eps)


def rmsprop(
    learning_rate,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=None,
):
    return fnn.rmsprop(
        learning_rate,
        decay,
        eps,
        eps_inside=eps_in_sqrt,
        initial_scale=initial_scale,
        centered=centered,
        momentum=momentum,
    )


def adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, mu_dtype=None, *, nesterov=False):
    return fnn.adam(
        learning_rate, b1, b2, eps, eps_root=eps_root, mu_dtype=mu_dtype, nesterov=nesterov
    )


def amsgrad(learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, mu_dtype=None):
    return fnn.adam(
        learning_rate, b1, b2, eps, eps_root=eps_root, mu_dtype=mu_dtype, amsgrad="corrected"
    )


def nadam(learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, mu_dtype=None):
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=True)


def adamw(
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    mu_dtype=None,
    weight_decay=1e-4,
    mask=None,
    *,
    nesterov=False,
):
    mask = True if mask is None else mask
    return fnn.adamw(
        *(learning_rate, b1, b2, eps, weight_decay, mask),
        eps_root=eps_root,
        mu_dtype=mu_dtype,
        nesterov=nesterov,
    )


def nadamw(
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    mu_dtype=None,
    weight_decay=1e-4,
    mask=None,
):
    return adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=True)


def lion(learning_rate, b1=0.9, b2=0.99, mu_dtype=None, weight_decay=1e-3, mask=None):
    mask = True if mask is None else mask
    return fnn.lion(learning_rate, b1, b2, weight_decay, mask, mu_dtype=mu_dtype)


def adafactor(
    learning_rate=None,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    multiply_by_parameter_scale=True,
    clipping_threshold=1.0,
    eps=1e-30,
):
    return fnn.adafactor(
        *(1.0 if learning_rate is None else learning_rate, decay_rate, eps, clipping_threshold),
        scale_by_parameters=multiply_by_parameter_scale,
        smallest_factored=min_dim_size_to_factor,
    )


RULES = (sgd, adagrad, rmsprop, adam, amsgrad, nadam, adamw, nadamw, lion, adafactor)

# --- the tests --------------------------------------------------------------------------------


def noting(make: Callable[..., Any], note: Callable[[], None]) -> Callable[..., Any]:
    """The same rule, which notes that it has been initialized or has updated."""

    @wraps(make)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        init, update = make(*args, **kwargs)

        def noted_init(params: Any) -> Any:
            note()
            return init(params)

        def noted_update(*args: Any, **kwargs: Any) -> Any:
            note()
            return update(*args, **kwargs)

        return optax.GradientTransformationExtraArgs(noted_init, noted_update)

    return wrapped


def named(test: Any) -> str:
    return re.sub(" at 0x[0-9a-f]+", "", test.id())


class Results(unittest.TestResult):
    """{test: "" if it passed, else its failure}, of the chosen tests or those that used a rule."""

    def __init__(self, chosen: set[str] | None) -> None:
        super().__init__()
        self.chosen = chosen
        self.outcomes: dict[str, str] = {}
        self.used = False
        self.said = ""

    def startTest(self, test: Any) -> None:  # noqa: N802
        self.used, self.said = False, ""

    def stopTest(self, test: Any) -> None:  # noqa: N802
        counts = self.used if self.chosen is None else named(test) in self.chosen
        if counts and self.said != "skipped":
            self.outcomes[named(test)] = self.said

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        self.said = self.said or "skipped"

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        self.said = f"{err[0].__name__}: {err[1]}"

    addFailure = addError  # noqa: N815

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        if err is not None:
            self.addError(test, err)


def run(ours: bool, only: str, chosen: set[str] | None = None) -> dict[str, str]:
    """The outcome of every chosen test that uses a rule: fnn's if `ours`, else Optax's."""
    from optax._src import alias

    results = Results(chosen)

    def note() -> None:
        results.used = True

    for rule in RULES:
        name = rule.__name__
        # A test of schedules skips a rule whose rate is not annotated as one.
        rate = inspect.signature(getattr(optax, name)).parameters["learning_rate"].annotation
        rule.__annotations__["learning_rate"] = rate
        wrapped = noting(rule if ours else getattr(optax, name), note)
        for module in (optax, alias):
            setattr(module, name, wrapped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules_with_tests():
            if only not in name:
                continue
            module = importlib.import_module(name)
            for test in each_test(unittest.defaultTestLoader.loadTestsFromModule(module)):
                if chosen is None or named(test) in chosen:
                    test.run(results)
            jax.clear_caches()
    return results.outcomes


def each_test(suite: Any) -> Iterator[unittest.TestCase]:
    for part in suite:
        yield from each_test(part) if isinstance(part, unittest.TestSuite) else (part,)


def modules_with_tests() -> list[str]:
    """The test modules of Optax that mention one of the rules."""
    root = Path(optax.__file__).parent
    mentions = re.compile(rf"\b(alias|({'|'.join(rule.__name__ for rule in RULES)})\()")
    found = [path for path in root.rglob("*_test.py") if mentions.search(path.read_text())]
    return sorted(".".join(path.relative_to(root.parent).with_suffix("").parts) for path in found)


def missing() -> str | None:
    """What the tests need and is not here, in one sentence."""
    if not modules_with_tests():
        return f"Optax {optax.__version__} came without its tests (optax/_src/alias_test.py)."
    for module in ("absl", "sklearn"):
        try:
            importlib.import_module(module)
        except ImportError:
            return f"Optax's tests need the module {module}, which is not installed."
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a test module's name")
    parser.add_argument("--known", type=Path, help="a file of Optax's results: written, or read")
    parser.add_argument("--run", choices=("fnn", "optax"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--chosen", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        chosen = set(json.loads(args.chosen.read_text())) if args.chosen else None
        args.out.write_text(json.dumps(run(args.run == "fnn", args.only, chosen)))
        return 0
    if said := missing():
        print(f"skipped: {said}")
        return 0

    def outcomes(which: str, out: Path, *more: Any) -> dict[str, str]:
        # A process each: tests hold rules that were made when their module was imported.
        call = [sys.executable, __file__, "--run", which, "--only", args.only, "--out", out]
        subprocess.run([*call, *more], check=True)
        return json.loads(out.read_text())

    with tempfile.TemporaryDirectory() as folder:
        known = args.known or Path(folder) / "optax"
        theirs = json.loads(known.read_text()) if known.exists() else outcomes("optax", known)
        counted = [test for test, said in theirs.items() if not said and args.only in test]
        (chosen := Path(folder) / "chosen").write_text(json.dumps(counted))
        ours = outcomes("fnn", Path(folder) / "fnn", "--chosen", chosen)
    passed = [test for test in counted if ours.get(test, "not run") == ""]
    for test in sorted(set(counted) - set(passed)):
        print(f"{test}\n    {ours.get(test, 'not run').strip().splitlines()[0][:200]}")
    print(f"{len(passed)} of {len(counted)} tests of Optax {optax.__version__} pass")
    return 0


if __name__ == "__main__":
    sys.exit(main())
