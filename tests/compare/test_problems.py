"""The problems that come with it, against float64, and how one member is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import fnn
from fnn.compare import _problems_files as on_files
from fnn.compare._member import STEPS, score_rows, steps_of, train_member
from fnn.compare._problem import Parts, Problem, checked
from fnn.compare._problems import PROBLEMS, digits_problem, problem_of
from fnn.compare._problems_functions import quadratic_hessian
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


# --- each loss in float64 -------------------------------------------------------------------------


def relu_classifier(params, batch):
    return softmax_loss(network(params, batch[0], lambda h: np.maximum(h, 0)), batch[1])


def logistic(params, batch):
    square = (params["w"] ** 2).sum() + (params["b"] ** 2).sum()
    return softmax_loss(batch[0] @ params["w"] + params["b"], batch[1]) + 0.0005 * square


def quadratic(params, x):
    away, h = params["p"] - x, quadratic_hessian()
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


# --- optima ---------------------------------------------------------------------------------------


def test_logistic_optimum():
    """By Newton's method in float64; convex, so where the gradient is 0 is the only optimum."""
    x, labels = PROBLEMS["logistic"].data().train
    assert PROBLEMS["logistic"].data().test[0] is x  # the score is the training loss
    x, n = np.c_[x.astype(np.float64), np.ones(len(x))], len(x)
    w = np.zeros((65, 10))
    for _ in range(8):
        logits = x @ w
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = x.T @ (p - np.eye(10)[labels]) / n + 0.001 * w
        products = (x[:, :, None] * p[:, None]).reshape(n, 650)
        hessian = 0.001 * np.eye(650) - products.T @ products / n
        for k in range(10):
            hessian[k::10, k::10] += (x * p[:, [k]]).T @ x / n
        w -= np.linalg.solve(hessian, gradient.ravel()).reshape(65, 10)
    assert abs(gradient).max() < 1e-12
    least = softmax_loss(logits, labels).mean() + 0.0005 * (w**2).sum()
    np.testing.assert_allclose(PROBLEMS["logistic"].optimum, least, rtol=1e-12)
    w = w.astype(np.float32)
    params = {"w": jnp.asarray(w[:64]), "b": jnp.asarray(w[64])}
    train = PROBLEMS["logistic"].data().train

    def mean_loss(params):
        return PROBLEMS["logistic"].loss(params, train, KEY).mean()

    value, gradient = jax.jit(jax.value_and_grad(mean_loss))(params)
    np.testing.assert_allclose(value, least, rtol=1e-6)
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
    classical = {"rosenbrock": (-1.2, 1.0), "beale": (1.0, 1.0)}
    inits = [PROBLEMS[name].init for name in classical]
    many = jax.jit(jax.vmap(lambda key: [init(key)["p"] for init in inits]))
    starts = np.array(many(jax.random.split(KEY, 1000)))
    np.testing.assert_allclose(starts.mean(1), list(classical.values()), atol=0.02)
    np.testing.assert_allclose(starts.std(1), 0.1, atol=0.01)


def test_quadratic_deep_is_deepobs():
    """Its eigenvalues are those that are drawn, and the published logs start at 353.44676."""
    draw = np.random.RandomState(42)
    e = np.concatenate([draw.uniform(0, 1, 90), draw.uniform(30, 60, 10)])
    h = quadratic_hessian()
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


# --- on files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ON_FILES))
def test_data_that_are_not_there_are_one_sentence(name, monkeypatch, tmp_path):
    monkeypatch.setenv("FNN_DATA", str(tmp_path))
    on_files._mnist_rows.cache_clear()
    on_files._shakespeare_rows.cache_clear()
    with pytest.raises(ValueError, match=f"^fnn compare: {name} needs data that are not in") as e:
        problem_of(name).data()
    assert "fnn.datasets." in str(e.value)
    assert str(tmp_path) in str(e.value)


def test_mnist_rows_are_those_of_the_file(monkeypatch):
    x = np.arange(10_000, dtype=np.float32)[:, None, None, None] * np.ones((28, 28, 1), np.float32)
    monkeypatch.setattr(fnn.datasets, "available", lambda *a: True)
    monkeypatch.setattr(fnn.datasets, "mnist", lambda split: (x, x[:, 0, 0, 0].astype(np.int32)))
    on_files._mnist_rows.cache_clear()
    parts = problem_of("mnist_cnn").data()
    on_files._mnist_rows.cache_clear()
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
    on_files._shakespeare_rows.cache_clear()
    train, valid, test = problem_of("shakespeare_lstm").data()
    on_files._shakespeare_rows.cache_clear()
    assert [part.shape for part in (train, valid, test)] == [(81, 65), (10, 65), (10, 65)]
    np.testing.assert_array_equal(train[:-1, -1], train[1:, 0])  # each goes on where one ends
    np.testing.assert_array_equal(train[:, :-1].ravel()[:130], np.tile(np.arange(65), 2))
    problem = problem_of("shakespeare_lstm")
    shapes = jax.eval_shape(problem.init, KEY)
    assert jax.eval_shape(problem.loss, shapes, test[:3], KEY).shape == (3,)


# --- one member -----------------------------------------------------------------------------------


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

    parts = Parts(x, x, x)
    scores = {"scores": lambda params, batch: {"loss": loss(params, batch, KEY)}}
    return Problem("drawn", lambda: parts, init, loss, **scores, tail=tail)


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
        v = decay * v + quadratic_hessian() @ (p - x.mean(0))
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
