"""What a problem is, a problem of one's own from a Python file, and a problem's fingerprint."""

import difflib
import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fnn._base import Data, Params, as_count, number_of
from fnn.checkpoint import fingerprint as fingerprint_of
from fnn.compare._words import WHO, said_by
from fnn.data import rows_of
from fnn.training import Tail

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
NEEDED = ("data", "init", "loss")  # what a user's file must define


class Parts(NamedTuple):
    """Rows to train, validate and test: pytrees of arrays with one first axis, or None."""

    train: Data
    valid: Data
    test: Data


@dataclass(frozen=True)
class Problem:
    """What is trained, on what, and how it is judged.

    A file of one's own defines these names: data, init and loss. The others have defaults.

    - `data`: data() -> (train, valid, test), each a pytree of arrays with one shared first axis,
      the rows. A deterministic problem has no rows: (None, None, None).
    - `init`: init(key) -> params.
    - `loss`: loss(params, batch, key) -> losses [rows]. If there are no rows, batch is None and
      the loss is a scalar.
    - `scores`: scores(params, batch) -> {name: [rows]}; the mean over rows is the score. One of
      them is "loss". If there are no rows, they are [1]. The default is the loss with a fixed key.
    - `score`: the name of the score that rules are chosen by and that is reported.
    - `better`: "higher" or "lower". The default is "lower" if the score is the loss, else "higher".
    - `epochs`, `batch_size`, `tail`: the budget, and what `fit` does with a last batch that is not
      full. The defaults are 30, 64 (or all training rows, if they are fewer) and "pad". Without
      rows, an epoch is 100 steps.
    - `rates`: the grid of learning rates, increasing.
    - `target`: a value of the score; the report counts the steps to reach it on validation rows.
    - `optimum`: the least loss that any params have on the test rows, if it is known.
    - `about`: one sentence, what it is and where it comes from. The default is the first line of
      the file's docstring.
    """

    name: str
    data: Callable[[], Parts]
    init: Callable[[Array], Params]
    loss: Callable[[Params, Data, Array], Array]
    scores: Callable[[Params, Data], dict[str, Array]]
    score: str = "loss"
    better: Literal["higher", "lower"] = "lower"
    epochs: int = 30
    batch_size: int = 64
    rates: Sequence[float] = RATES
    target: float | None = None
    about: str = ""
    optimum: float | None = None
    tail: Tail = "pad"


def loss_as_scores(loss: Callable[..., Array]) -> Callable[[Params, Data], dict[str, Array]]:
    """-> scores(params, batch): the loss with a fixed key, [rows] or [1]."""

    def scores(params: Params, batch: Data) -> dict[str, Array]:
        return {"loss": jnp.atleast_1d(loss(params, batch, jax.random.key(0)))}

    return scores


# --- a file of one's own ------------------------------------------------------------------------


def problem_from(path: Path) -> Problem:
    """The problem that a Python file defines by the names of `Problem`; checked."""
    module = module_from(path)
    found = {n: v for n, v in vars(module).items() if not n.startswith("_")}
    for name in NEEDED:
        if name not in found:
            close = difflib.get_close_matches(name, found, n=1)
            hint = f"; it has {close[0]!r}" if close else ""
            raise ValueError(
                f"{WHO}: {path} does not define {name!r}, expected {', '.join(NEEDED)}{hint}"
            )
    given: dict[str, Any] = {f.name: found[f.name] for f in fields(Problem) if f.name in found}
    given = {"name": path.stem, "scores": loss_as_scores(found["loss"])} | given
    given = {"better": "lower" if given.get("score", "loss") == "loss" else "higher"} | given
    given = {"about": (module.__doc__ or "").strip().partition("\n")[0]} | given
    return checked(Problem(**given), str(path), fit_batch="batch_size" not in found)


def module_from(path: Path) -> ModuleType:
    """The module in a file; ValueError, one sentence, if it is not there or does not import."""
    if not path.is_file():
        raise ValueError(f"{WHO}: there is no file {path}")
    name = f"fnn_compare_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{WHO}: {path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    sys.path.insert(0, str(path.parent.resolve()))  # a file imports its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(
            f"{WHO}: {path} does not import: {said_by(error)}{_line_of(error, path)}"
        ) from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _line_of(error: BaseException, path: Path) -> str:
    """The last line of the file that the error came through."""
    if isinstance(error, SyntaxError):
        return ""  # its own text has the line
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" (line {lines[-1]})" if lines else ""


def checked(problem: Problem, where: str, *, fit_batch: bool = False) -> Problem:
    """The same problem, with its numbers as Python's; ValueError, one sentence, if it cannot run.

    Functions are traced with shapes alone, nothing is computed but the data. With `fit_batch` a
    batch size that exceeds the training rows becomes their number.
    """
    problem = _checked_settings(problem, where)
    parts = _checked_parts(problem, where)
    rows = None if parts.train is None else rows_of(where, parts.train)
    if rows is not None and problem.batch_size > rows:
        if not fit_batch:
            raise _wrong(where, f"batch_size {problem.batch_size} exceeds the {rows} training rows")
        problem = replace(problem, batch_size=rows)
    problem = replace(problem, data=lambda: parts)
    _check_functions(problem, where)
    return problem


def _wrong(where: str, what: str) -> ValueError:
    return ValueError(f"{WHO}: {where}: {what}")


@contextmanager
def _failing(where: str, name: str) -> Iterator[None]:
    """Whatever is raised inside becomes a ValueError of one sentence."""
    try:
        yield
    except Exception as error:
        raise _wrong(where, f"{name} failed: {said_by(error)}") from error


def _checked_settings(problem: Problem, where: str) -> Problem:
    """The numbers and words."""
    counts = {}
    for name in ("epochs", "batch_size"):
        try:
            counts[name] = as_count(where, name, getattr(problem, name))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{WHO}: {error}") from None
    rates = problem.rates if isinstance(problem.rates, Sequence | np.ndarray) else [problem.rates]
    numbers = [number_of(rate) for rate in rates]
    positive = [float(n) for n in numbers if n is not None and 0 < n < float("inf")]
    if not numbers or len(positive) < len(numbers) or positive != sorted(set(positive)):
        expected = "expected positive numbers in increasing order"
        raise _wrong(where, f"rates are {problem.rates}, {expected}")
    for name in ("target", "optimum"):
        value = getattr(problem, name)
        if value is not None and number_of(value) is None:
            raise _wrong(where, f"{name} is {value!r}, expected a number or None")
    for name, words in {"better": ("higher", "lower"), "tail": get_args(Tail)}.items():
        if (word := getattr(problem, name)) not in words:
            raise _wrong(where, f"{name} is {word!r}, expected {' or '.join(map(repr, words))}")
    return replace(problem, rates=tuple(positive), **counts)


def _checked_parts(problem: Problem, where: str) -> Parts:
    """The rows."""
    for name in (*NEEDED, "scores"):
        if not callable(function := getattr(problem, name)):
            raise _wrong(where, f"{name} is a {type(function).__name__}, expected a function")
    with _failing(where, "data"):
        parts = problem.data()
    if not isinstance(parts, tuple | list) or len(parts) != 3:
        came = type(parts).__name__
        raise _wrong(where, f"data() returned a {came}, expected (train, valid, test)")
    parts = Parts(*parts)
    if len({part is None for part in parts}) > 1:
        expected = "expected rows in all three or in none"
        raise _wrong(where, f"data() returned None for some parts, {expected}")
    for name, part in parts._asdict().items():
        try:
            if part is not None:
                rows_of(f"data() {name}", part)
        except (TypeError, ValueError) as error:
            raise _wrong(where, str(error)) from None
    return parts


def _check_functions(problem: Problem, where: str) -> None:
    """What the functions return, for a few rows; by shapes alone."""
    parts, key = problem.data(), jax.random.key(0)
    few = 1 if parts.train is None else min(4, *(rows_of(where, part) for part in parts))
    train, *others = (jax.tree.map(lambda a: a[:few], part) for part in parts)
    with _failing(where, "init"):
        params = jax.eval_shape(problem.init, key)
    if not jax.tree.leaves(params):
        raise _wrong(where, "init(key) returned no array, expected a pytree of arrays")
    with _failing(where, "loss"):
        losses = jax.eval_shape(problem.loss, params, train, key)
    expected = () if train is None else (few,)
    if _shape(losses) != expected:
        came = f"loss of {few} rows has shape {_shape(losses)}"
        raise _wrong(where, f"{came}, expected {expected}, a loss for each row")
    with _failing(where, "the gradient of loss"):
        jax.eval_shape(jax.grad(lambda params: jnp.sum(problem.loss(params, train, key))), params)
    for batch in others:
        with _failing(where, "scores"):
            scores = jax.eval_shape(problem.scores, params, batch)
        if not isinstance(scores, dict) or not {"loss", problem.score} <= scores.keys():
            came = list(scores) if isinstance(scores, dict) else f"a {type(scores).__name__}"
            names = " and ".join(sorted({"'loss'", repr(problem.score)}))
            raise _wrong(where, f"scores returned {came}, expected a dict with {names}")
        for name, values in scores.items():
            if _shape(values) != (few,):
                came = f"score {name!r} of {few} rows has shape {_shape(values)}"
                raise _wrong(where, f"{came}, expected ({few},)")


def _shape(value: Any) -> Any:
    """The shape; of what has none, the name of its type."""
    return getattr(value, "shape", type(value).__name__)


# --- what tells a problem from another ----------------------------------------------------------


def fingerprint(problem: Problem) -> str:
    """sha256, in hexadecimal: of the data, the initial params of key 0, and loss and scores.

    Loss and scores count as programs, with the arrays that they close over; tail, score and better
    count too. The same in every process on one machine and one version of JAX. Another version may
    write the same loss as another program.
    """
    parts, key = problem.data(), jax.random.key(0)
    params = jax.device_get(jax.jit(problem.init)(key))
    batch = jax.tree.map(lambda a: a[: problem.batch_size], parts.train)
    programs = [
        jax.make_jaxpr(problem.loss)(params, batch, key),
        jax.make_jaxpr(problem.scores)(params, batch),
    ]
    trees = [tuple(parts), params, *(list(program.consts) for program in programs)]
    words = [problem.tail, problem.score, problem.better]
    texts = [text_of(program.jaxpr) for program in programs]
    whole = "\n".join([*map(fingerprint_of, trees), *texts, *words])
    return hashlib.sha256(whole.encode()).hexdigest()


def text_of(program: Any) -> str:
    """A jaxpr as text, without the addresses of functions, which every process has others of."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(program))
