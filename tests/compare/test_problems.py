import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import fnn
from fnn.compare import _problems
from fnn.compare._member import STEPS, score_rows, steps_of, train_member
from fnn.compare._problem import checked, problem_from
from fnn.compare._problems import PROBLEMS, digits_problem, fingerprint, problem_of
from fnn.data.datasets import digits

ON_FILES = {"mnist_cnn", "shakespeare_lstm"}  # need FNN_DATA
KEY = jax.random.key(0)


def wide(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def softmax_loss(logits, labels):
    """Cross entropy [rows], float64."""
    logits = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - np.take_along_axis(logits, labels[:, None], 1)[:, 0]


def network(params, x, activation):
    *hidden, last = (params[f"layer_{i}"] for i in range(len(params)))
    for layer in hidden:
        x = activation(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


# --- each loss in float64 -----------------------------------------------------------------------


def relu_classifier(params, batch):
    return softmax_loss(network(params, batch[0], lambda h: np.maximum(h, 0)), batch[1])


def logistic(params, batch):
    square = (params["w"] ** 2).sum() + (params["b"] ** 2).sum()
    return softmax_loss(batch[0] @ params["w"] + params["b"], batch[1]) + 0.0005 * square


def quadratic(params, x):
    away, h = params["p"] - x, _problems.quadratic_hessian()
    return 0.5 * np.einsum("ri,ij,rj->r", away, h, away)


def autoencoder(params, x):
    return ((network(params, x, np.tanh) - x) ** 2).sum(1)


def rosenbrock(params, _):
    return optimize.rosen(params["p"])


def beale(params, _):
    x, y = params["p"]
    return sum((c - x + x * y**k) ** 2 for k, c in ((1, 1.5), (2, 2.25), (3, 2.625)))


BY_HAND = {
    "digits": relu_classifier,
    "logistic": logistic,
    "spirals": relu_classifier,
    "quadratic_deep": quadratic,
    "rosenbrock": rosenbrock,
    "beale": beale,
    "autoencoder": autoencoder,
}


def somewhere(problem):
    """Some parameters and a few rows."""
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(problem.init, KEY)
    params = jax.tree.map(lambda a: draw.normal(0, 0.3, a.shape).astype(a.dtype), shapes)
    return params, jax.tree.map(lambda a: a[:5], problem.data().train)


def test_every_problem_is_tried():
    assert BY_HAND.keys() | ON_FILES == PROBLEMS.keys()


@pytest.mark.parametrize("name", BY_HAND)
def test_loss_against_float64(name):
    problem = problem_of(name)
    params, batch = somewhere(problem)
    expected = BY_HAND[name](wide(params), batch)
    losses, scores = jax.jit(lambda p, b: (problem.loss(p, b, KEY), problem.scores(p, b)))(
        params, batch
    )
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    np.testing.assert_allclose(scores["loss"], np.atleast_1d(expected), rtol=2e-5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_a_problem_says_of_itself(name):
    problem = PROBLEMS[name]
    assert problem.name == name
    assert problem.about.endswith(".")
    assert problem.target is not None
    assert list(problem.rates) == sorted(set(problem.rates))
    if name not in ON_FILES or fnn.datasets.available(name.split("_")[0], "test"):
        checked(problem, name)


# --- optima -------------------------------------------------------------------------------------


def test_logistic_optimum():
    """By quasi-Newton in float64, where the gradient is 0; convex, so there is no other."""
    x, labels = PROBLEMS["logistic"].data().train
    assert PROBLEMS["logistic"].data().test[0] is x  # the score is the training loss
    x = np.c_[x.astype(np.float64), np.ones(len(x))]

    def loss(flat):
        w = flat.reshape(65, 10)
        logits = x @ w
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = x.T @ (p - np.eye(10)[labels]) / len(x) + 0.001 * w
        return softmax_loss(logits, labels).mean() + 0.0005 * (w**2).sum(), gradient.ravel()

    options = {"ftol": 0, "gtol": 1e-10, "maxiter": 2000}
    found = optimize.minimize(loss, np.zeros(650), jac=True, method="L-BFGS-B", options=options)
    assert abs(found.jac).max() < 1e-8
    np.testing.assert_allclose(PROBLEMS["logistic"].optimum, found.fun, rtol=1e-12)
    w = found.x.reshape(65, 10).astype(np.float32)
    params = {"w": jnp.asarray(w[:64]), "b": jnp.asarray(w[64])}
    train = PROBLEMS["logistic"].data().train

    def mean_loss(params):
        return PROBLEMS["logistic"].loss(params, train, KEY).mean()

    value, gradient = jax.jit(jax.value_and_grad(mean_loss))(params)
    np.testing.assert_allclose(value, found.fun, rtol=1e-6)
    assert max(float(abs(g).max()) for g in jax.tree.leaves(gradient)) < 1e-6


@pytest.mark.parametrize(("name", "least"), [("rosenbrock", (1.0, 1.0)), ("beale", (3.0, 0.5))])
def test_valleys_are_0_and_flat_at_their_optimum(name, least):
    problem = PROBLEMS[name]
    params = {"p": jnp.asarray(least)}
    value, gradient = jax.value_and_grad(problem.loss)(params, None, KEY)
    assert value == problem.optimum == 0
    np.testing.assert_array_equal(gradient["p"], 0)
    assert problem.scores(params, None)["distance"] == 0
    away = problem.scores({"p": jnp.asarray(least) + jnp.array([3.0, 4.0])}, None)["distance"]
    np.testing.assert_allclose(away, [5.0])


def test_valleys_start_near_the_classical_points():
    for name, start in {"rosenbrock": (-1.2, 1.0), "beale": (1.0, 1.0)}.items():
        starts = jax.jit(jax.vmap(PROBLEMS[name].init))(jax.random.split(KEY, 1000))["p"]
        np.testing.assert_allclose(starts.mean(0), start, atol=0.02)
        np.testing.assert_allclose(starts.std(0), 0.1, atol=0.01)


def test_quadratic_deep_is_deepobs():
    """Its eigenvalues are those that are drawn, and the published logs start at 353.44676."""
    draw = np.random.RandomState(42)
    e = np.concatenate([draw.uniform(0, 1, 90), draw.uniform(30, 60, 10)])
    h = _problems.quadratic_hessian()
    np.testing.assert_allclose(np.linalg.eigvalsh(h), np.sort(e), atol=1e-12)
    problem = PROBLEMS["quadratic_deep"]
    train, _, test = problem.data()
    assert (train.shape, test.shape) == ((1000, 100), (896, 100))
    start = {"p": np.ones(100)}
    assert quadratic(start, test.astype(np.float64)).mean() == pytest.approx(353.44676, abs=2e-5)
    away = test.astype(np.float64)
    np.testing.assert_allclose(quadratic({"p": away.mean(0)}, away).mean(), problem.optimum)


def test_spirals_have_many_test_rows():
    train, valid, test = PROBLEMS["spirals"].data()
    assert [len(labels) for _, labels in (train, valid, test)] == [2000, 2000, 20_000]
    np.testing.assert_allclose(np.bincount(test[1]) / 20_000, 1 / 3, atol=1e-3)


# --- on files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ON_FILES))
def test_data_that_are_not_there_are_one_sentence(name, monkeypatch, tmp_path):
    monkeypatch.setenv("FNN_DATA", str(tmp_path))
    _problems._mnist_rows.cache_clear()
    _problems._shakespeare_rows.cache_clear()
    with pytest.raises(ValueError, match=f"^fnn compare: {name} needs data that are not in") as e:
        problem_of(name).data()
    assert "fnn.datasets." in str(e.value)
    assert str(tmp_path) in str(e.value)


def test_mnist_rows_are_those_of_the_file(monkeypatch):
    x = np.arange(10_000, dtype=np.float32)[:, None, None, None] * np.ones((28, 28, 1), np.float32)
    monkeypatch.setattr(fnn.datasets, "available", lambda *a: True)
    monkeypatch.setattr(fnn.datasets, "mnist", lambda split: (x, x[:, 0, 0, 0].astype(np.int32)))
    _problems._mnist_rows.cache_clear()
    parts = problem_of("mnist_cnn").data()
    _problems._mnist_rows.cache_clear()
    assert [len(labels) for _, labels in parts] == [5000, 1000, 4000]
    assert sorted(np.concatenate([labels for _, labels in parts])) == list(range(10_000))
    for x, labels in parts:
        np.testing.assert_array_equal(x[:, 3, 4, 0], labels)
    shapes = jax.eval_shape(problem_of("mnist_cnn").init, KEY)
    rows = jax.tree.map(lambda a: a[:2], parts.test)
    assert jax.eval_shape(problem_of("mnist_cnn").loss, shapes, rows, KEY).shape == (2,)


def test_shakespeare_pieces_follow_the_text(monkeypatch):
    characters = "".join(chr(40 + i) for i in range(65))
    monkeypatch.setattr(fnn.datasets, "available", lambda *a: True)
    monkeypatch.setattr(fnn.datasets, "shakespeare", lambda: 100 * characters)
    _problems._shakespeare_rows.cache_clear()
    train, valid, test = problem_of("shakespeare_lstm").data()
    _problems._shakespeare_rows.cache_clear()
    assert [part.shape for part in (train, valid, test)] == [(81, 65), (10, 65), (10, 65)]
    np.testing.assert_array_equal(train[:-1, -1], train[1:, 0])  # each goes on where one ends
    np.testing.assert_array_equal(train[:, :-1].ravel()[:130], np.tile(np.arange(65), 2))
    problem = problem_of("shakespeare_lstm")
    shapes = jax.eval_shape(problem.init, KEY)
    assert jax.eval_shape(problem.loss, shapes, test[:3], KEY).shape == (3,)


# --- fingerprints -------------------------------------------------------------------------------

TWO = ("rosenbrock", "quadratic_deep", "logistic")


def test_fingerprints_are_the_same_in_another_process():
    program = (
        "import jax; jax.config.update('jax_numpy_dtype_promotion', 'strict')\n"
        "from fnn.compare._problems import fingerprint, problem_of\n"
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
        return _problems.Parts((x, train[1]), valid, test)

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


# --- one member ---------------------------------------------------------------------------------


def same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_digits_trains_the_network_of_the_readme():
    """With a new order, a member is `fnn.fit` and nothing else, bit for bit."""
    rows = digits()

    def loss_fn(params, batch, key):
        return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])

    @jax.jit
    def plain(key):
        init_key, fit_key = jax.random.split(key)
        params = fnn.mlp_init(init_key, (64, 10), w_init=fnn.kaiming_normal)
        step = fnn.make_train_step(loss_fn, fnn.adam(0.01))
        return fnn.fit(step, step.init(params), rows.train, fit_key, epochs=2, batch_size=512)

    @jax.jit
    def member(key):
        return train_member(
            digits_problem(()), fnn.adam(0.01), key, epochs=2, batch_size=512, order="new"
        )

    same_bits(member(jax.random.key(3)), plain(jax.random.key(3)))
    assert jax.eval_shape(PROBLEMS["digits"].init, KEY)["layer_1"]["w"].shape == (128, 128)


def drawing_problem(tail):
    """A least-squares problem of ten rows; the loss uses its key."""
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)

    def loss(params, batch, key):
        return (batch @ params["w"] - jax.random.normal(key)) ** 2

    def init(key):
        return {"w": jax.random.normal(key, (3,))}

    parts = _problems.Parts(x, x, x)
    scores = {"scores": lambda params, batch: {"loss": loss(params, batch, KEY)}}
    return _problems.Problem("drawn", lambda: parts, init, loss, **scores, tail=tail)


@pytest.mark.parametrize(
    "tail", ["pad", *(pytest.param(tail, marks=pytest.mark.slow) for tail in ("drop", "wrap"))]
)
def test_one_order_is_that_of_the_first_epoch(tail):
    """Its first epoch is that of `fit`, bit for bit; later epochs have other keys and losses."""
    problem = drawing_problem(tail)

    @jax.jit
    def runs(key):
        orders = {"new": 1, "same": 2}
        return [
            train_member(problem, fnn.sgd(0.01), key, epochs=n, batch_size=4, order=order)[1]
            for order, n in orders.items()
        ]

    new, same = runs(KEY)
    assert same["loss"].shape == (2, steps_of(problem, 2, 4) // 2)
    same_bits(jax.tree.map(lambda a: a[:1], same), new)
    assert (np.diff(same["loss"], axis=0) != 0).all()


@pytest.mark.slow
def test_one_order_against_float64():
    """Two epochs of momentum on the quadratic problem, by NumPy with the same batches."""
    problem = dataclasses.replace(PROBLEMS["quadratic_deep"])
    train = problem.data().train[:300]
    decay, rate = 0.9, 0.002

    @jax.jit
    def run(key):
        optimizer = fnn.momentum(rate, decay)
        return train_member(
            problem, optimizer, key, epochs=2, batch_size=128, order="same", train=train
        )

    ts, history = run(KEY)
    shuffle_key = jax.random.split(jax.random.split(KEY)[1])[0]
    order = np.asarray(fnn.data.permutation(jax.random.fold_in(shuffle_key, 0), 300))
    p, v, losses = np.ones(100), np.zeros(100), []
    for batch in 2 * [order[:128], order[128:256]]:  # the last 44 rows are dropped
        x = train[batch].astype(np.float64)
        losses.append(quadratic({"p": p}, x).mean())
        v = decay * v + _problems.quadratic_hessian() @ (p - x.mean(0))
        p = p - rate * v
    np.testing.assert_allclose(history["loss"].ravel(), losses, rtol=1e-5)
    np.testing.assert_allclose(ts.params["p"], p, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ["new", "same"])
def test_a_member_without_rows(order):
    """An epoch is 100 steps, whatever the order; validated after each, as NumPy does it."""
    problem = PROBLEMS["rosenbrock"]

    def validate(ts):
        return {"distance": score_rows(problem, ts.params, None)["distance"][0]}

    @jax.jit
    def run(key):
        return train_member(
            problem, fnn.sgd(1e-3), key, epochs=2, batch_size=1, validate=validate, order=order
        )

    ts, history = run(KEY)
    assert history["loss"].shape == (2, STEPS)
    assert steps_of(problem, 2, 1) == 2 * STEPS == ts.step
    p = wide(jax.jit(problem.init)(jax.random.split(KEY)[0]))["p"]
    distances = []
    for _ in range(2):
        for _ in range(STEPS):
            p = p - 1e-3 * optimize.rosen_der(p)
        distances.append(np.linalg.norm(p - 1))
    np.testing.assert_allclose(history["val_distance"], distances, rtol=1e-4)
    np.testing.assert_allclose(ts.params["p"], p, rtol=1e-3)


def test_scores_of_all_rows_in_their_order():
    problem = PROBLEMS["logistic"]
    params, _ = somewhere(problem)
    rows = jax.tree.map(lambda a: a[:700], problem.data().test)  # more than one batch
    found = jax.jit(lambda params: score_rows(problem, params, rows))(params)
    np.testing.assert_allclose(found["loss"], logistic(wide(params), rows), rtol=2e-5)


def test_an_order_that_is_unknown():
    with pytest.raises(ValueError, match="order is 'sorted', expected 'new' or 'same'"):
        train_member(PROBLEMS["beale"], fnn.sgd(1.0), KEY, epochs=1, batch_size=1, order="sorted")
    with pytest.raises(ValueError, match="batch_size 11 exceeds the 10 rows"):
        train_member(
            drawing_problem("pad"), fnn.sgd(1.0), KEY, epochs=1, batch_size=11, order="same"
        )


# --- a file of one's own ------------------------------------------------------------------------

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
