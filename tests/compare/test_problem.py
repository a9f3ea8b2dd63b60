"""Fingerprints of problems, and a problem of one's own from a file."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.compare._member import train_member
from fnn.compare._problem import Parts, fingerprint, problem_from
from fnn.compare._problems import PROBLEMS, problem_of

KEY = jax.random.key(0)

# --- fingerprints ---------------------------------------------------------------------------------

TWO = ("rosenbrock", "quadratic_deep", "logistic")


def test_fingerprints_are_the_same_in_another_process():
    program = (
        "import jax; jax.config.update('jax_numpy_dtype_promotion', 'strict')\n"
        "from fnn.compare._problem import fingerprint\n"
        "from fnn.compare._problems import problem_of\n"
        f"for name in {TWO}: print(fingerprint(problem_of(name)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.split() == [fingerprint(problem_of(name)) for name in TWO], ran.stderr


def test_fingerprints_tell_problems_apart():
    problem = problem_of("logistic")
    train, valid, test = problem.data()

    def other_data():
        x = train[0].copy()
        x[7, 3] += 0.5
        return Parts((x, train[1]), valid, test)

    def other_loss(params, batch, key):
        return 1.5 * problem.loss(params, batch, key)

    def other_init(key):
        return jax.tree.map(lambda a: a + 1, problem.init(key))

    others = [
        {"data": other_data},
        {"loss": other_loss},
        {"init": other_init},
        {"scores": lambda params, batch: {"loss": other_loss(params, batch, KEY)}},
        {"tail": "drop"},
    ]
    prints = [fingerprint(dataclasses.replace(problem, **other)) for other in [{}, *others]]
    assert len(set(prints)) == 6
    assert all(len(found) == 64 for found in prints)
    assert fingerprint(dataclasses.replace(problem, epochs=1)) == prints[0]


# --- a file of one's own --------------------------------------------------------------------------

MINE = '''"""Lines through points."""
import jax
import jax.numpy as jnp
import numpy as np

x = np.linspace(-1, 1, 60, dtype=np.float32)
y = 2 * x + 1


def data():
    return (x[:40], y[:40]), (x[40:50], y[40:50]), (x[50:], y[50:])


def init(key):
    return {"slope": jax.random.normal(key), "offset": jnp.zeros(())}


def loss(params, batch, key):
    x, y = batch
    return (params["slope"] * x + params["offset"] - y) ** 2
'''


def written(tmp_path, text):
    path = tmp_path / "my_problem.py"
    path.write_text(text)
    return path


def test_a_file_of_ones_own(tmp_path):
    problem = problem_of(str(written(tmp_path, MINE)))
    assert (problem.name, problem.about) == ("my_problem", "Lines through points.")
    assert (problem.score, problem.better, problem.epochs) == ("loss", "lower", 30)
    assert problem.batch_size == 40  # all that there are
    assert problem.data().test[0].shape == (10,)

    @jax.jit
    def run(key):
        return train_member(problem, fnn.sgd(0.3), key, epochs=30, batch_size=10)[0].params

    params = run(KEY)
    np.testing.assert_allclose([params["slope"], params["offset"]], [2, 1], atol=1e-3)
    assert fingerprint(problem) == fingerprint(problem_from(tmp_path / "my_problem.py"))


def test_a_file_may_say_more(tmp_path):
    more = """
name, score, epochs, batch_size, rates, target = "lines", "near", 7, np.int64(8), [0.1, 1], 0.5

def scores(params, batch):
    losses = loss(params, batch, None)
    return {"loss": losses, "near": (losses < 0.1).astype(jnp.float32)}
"""
    problem = problem_from(written(tmp_path, MINE + more))
    assert (problem.name, problem.score, problem.better) == ("lines", "near", "higher")
    assert (problem.epochs, problem.batch_size, problem.rates) == (7, 8, (0.1, 1.0))


def test_a_deterministic_file(tmp_path):
    text = """
import jax.numpy as jnp
def data(): return None, None, None
def init(key): return jnp.array([3.0, -2.0])
def loss(params, batch, key): return jnp.sum(params ** 2)
"""
    problem = problem_from(written(tmp_path, text))
    assert problem.scores(jnp.ones(2), None)["loss"].shape == (1,)
    ts, _ = train_member(problem, fnn.sgd(0.1), KEY, epochs=1, batch_size=1)
    np.testing.assert_allclose(ts.params, 0, atol=1e-6)


TRAIN_ONLY = "    return (x[:40], y[:40]), None, (x[50:], y[50:])"
WRONG = {
    "does not import": ("import numpy as np", "import numpi", r"does not import: ModuleNotFound.*'numpi' \(line 4\)$"),
    "a syntax error": ("def data():", "def data(:", r"does not import: SyntaxError: .*line 10"),
    "ends itself": ("y = 2 * x + 1", "raise SystemExit(3)", r"does not import: SystemExit: 3 \(line 7\)$"),
    "no loss": ("def loss", "def losses", r"does not define 'loss', expected data, init, loss; it has 'losses'$"),
    "no init": ("def init", "def start", r"does not define 'init', expected data, init, loss$"),
    "data that are two parts": ("(x[40:50], y[40:50]), ", "", r"data\(\) returned a tuple, expected \(train, valid, test\)$"),
    "a part without rows": ("    return (x[:40], y[:40]), (x[40:50], y[40:50]), (x[50:], y[50:])", TRAIN_ONLY, r"None for some parts"),
    "rows that differ": ("(x[:40], y[:40]), (", "(x[:40], y[:41]), (", r"train: data have shapes \[\(40,\), \(41,\)\], expected one shared first axis$"),
    "no parameters": ('{"slope": jax.random.normal(key), "offset": jnp.zeros(())}', "{}", r"init\(key\) returned no array, expected a pytree of arrays$"),
    "one loss for all": ("- y) ** 2", "- y).sum() ** 2", r"loss of 4 rows has shape \(\), expected \(4,\), a loss for each row$"),
    "a loss that fails": ('params["slope"]', 'params["slop"]', r"loss failed: KeyError: 'slop'$"),
    "a loss of whole numbers": ("- y) ** 2", "- y).astype(int)", r"the gradient of loss failed: TypeError"),
    "a batch too large": ("y = 2", "batch_size = 41\ny = 2", r"batch_size 41 exceeds the 40 training rows$"),
    "epochs of nothing": ("y = 2", "epochs = 0\ny = 2", r"epochs is 0, expected at least 1$"),
    "rates that fall": ("y = 2", "rates = 0.2, 0.1\ny = 2", r"rates are \(0.2, 0.1\), expected positive numbers in increasing order$"),
    "a rate that is none": ("y = 2", "rates = 'abc'\ny = 2", r"rates are abc, expected positive numbers"),
    "a word for better": ("y = 2", "better = 'more'\ny = 2", r"better is 'more', expected 'higher' or 'lower'$"),
    "a score that is missing": ("y = 2", "score = 'accuracy'\ny = 2", r"scores returned \['loss'\], expected a dict with 'accuracy' and 'loss'$"),
    "a tail of dogs": ("y = 2", "tail = 'wag'\ny = 2", r"tail is 'wag', expected 'pad' or 'drop' or 'wrap'$"),
    "a target of words": ("y = 2", "target = 'low'\ny = 2", r"target is 'low', expected a number or None$"),
    "data that are a list": ("def data():", "data = [1]\ndef datum():", r"data is a list, expected a function$"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_is_one_sentence(wrong, tmp_path):
    old, new, said = WRONG[wrong]
    assert MINE.count(old) == 1
    path = written(tmp_path, MINE.replace(old, new))
    before = list(sys.path)
    with pytest.raises(ValueError, match=said) as error:
        problem_of(str(path))
    assert str(error.value).startswith("fnn compare: ")
    assert "my_problem.py" in str(error.value)
    assert "\n" not in str(error.value)
    assert sys.path == before


def test_names_that_are_unknown(tmp_path):
    known = ", ".join(PROBLEMS)
    said = f"fnn compare: unknown problem 'digit', expected a Python file or one of: {known}; did you mean digits?"
    with pytest.raises(ValueError) as error:  # noqa: PT011
        problem_of("digit")
    assert str(error.value) == said
    with pytest.raises(ValueError, match=r"there is no file .*nothing.py$"):
        problem_of(str(tmp_path / "nothing.py"))
