import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fnn
from fnn.data import permutation, split, take, windows

KEY = jax.random.key(0)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 31, 32, 33, 64, 1000])
def test_permutation_is_one(n):
    order = np.asarray(permutation(KEY, n))
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_small_permutations_are_all_equally_likely(n):
    keys = jax.random.split(jax.random.key(n), 200 * math.factorial(n))
    orders = np.asarray(jax.jit(jax.vmap(lambda key: permutation(key, n)))(keys))
    _, counts = np.unique(orders @ n ** np.arange(n), return_counts=True)
    assert len(counts) == math.factorial(n)
    assert stats.chisquare(counts).pvalue > 1e-3


def features(orders):
    """What would show if neighbours stayed together, sums stayed equal, or rows stayed behind."""
    n = orders.shape[1]
    return {
        "fixed points": (orders == np.arange(n)).sum(1),
        "descents": (np.diff(orders) < 0).sum(1),
        "neighbours": (abs(np.diff(orders)) == 1).sum(1),
        "rank correlation": orders @ np.arange(n),
        "first": orders[:, 0],
        "middle": orders[:, n // 2],
        "difference": (orders[:, 0] - orders[:, 1]) % n,
        "sum": (orders[:, 0] + orders[:, 1]) % n,
        "four": (orders[:, 0] - orders[:, 1] + orders[:, 2] - orders[:, 3]) % n,
    }


@pytest.mark.parametrize("n", [33, 500])
def test_large_permutations_look_like_numpys(n):
    keys = jax.random.split(jax.random.key(n), 4000)
    ours = features(np.asarray(jax.jit(jax.vmap(lambda key: permutation(key, n)))(keys)))
    theirs = features(np.random.default_rng(0).permuted(np.tile(np.arange(n), (4000, 1)), axis=1))
    for name in ours:
        assert stats.ks_2samp(ours[name], theirs[name]).pvalue > 1e-3, name


def test_permutation_is_a_function_of_its_key():
    keys = jax.random.split(KEY, 4)
    together = jax.vmap(lambda key: permutation(key, 50))(keys)
    np.testing.assert_array_equal(together, jnp.stack([permutation(key, 50) for key in keys]))
    assert len(np.unique(np.asarray(together), axis=0)) == 4


def test_split_is_disjoint_and_complete():
    data = {"x": jnp.arange(20.0).reshape(10, 2), "y": np.arange(10)}
    a, b = split(KEY, data, 0.7)
    assert a["x"].shape == (7, 2)
    assert sorted([*a["y"].tolist(), *b["y"].tolist()]) == list(range(10))
    np.testing.assert_array_equal(a["x"][:, 0], 2 * a["y"])
    with pytest.raises(ValueError, match=r"split: fraction 1\.5 of 10 rows leaves 15 and -5"):
        split(KEY, data, 1.5)
    with pytest.raises(ValueError, match=r"split: fraction 0\.01 of 10 rows leaves 0 and 10"):
        split(KEY, data, 0.01)


def test_take():
    taken = take((jnp.arange(5), np.arange(5.0)), jnp.array([[3, 0]]))
    np.testing.assert_array_equal(taken[0], [[3, 0]])
    np.testing.assert_array_equal(taken[1], [[3.0, 0.0]])


SETS = {"spirals": 2, "rings": 2, "clusters": 3, "xor": 2, "moons": 2}


@pytest.mark.parametrize("name", SETS)
def test_synthetic_sets(name):
    make = getattr(fnn.data, name)
    x, labels = make(KEY, 500)
    assert x.shape == (500, 2)
    assert labels.dtype == jnp.int32
    assert np.bincount(labels, minlength=SETS[name]).min() > 500 / SETS[name] * 0.8
    fnn.check_labels(labels, SETS[name])
    np.testing.assert_array_equal(x, make(KEY, 500)[0])
    assert (np.asarray(x) != np.asarray(make(jax.random.key(1), 500)[0])).any()
    jitted, _ = jax.jit(make, static_argnums=1)(KEY, 500)
    np.testing.assert_allclose(jitted, x, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=f"{name}: 0 rows of"):
        make(KEY, 0)


def test_synthetic_sets_are_their_shapes():
    x, labels = fnn.data.rings(KEY, 300, classes=3, noise=0.0)
    np.testing.assert_allclose(jnp.linalg.norm(x, axis=1), np.asarray(labels) + 1, rtol=1e-5)
    x, labels = fnn.data.xor(KEY, 300, noise=0.0)
    np.testing.assert_array_equal((x[:, 0] * x[:, 1] < 0), labels == 1)
    x, labels = fnn.data.clusters(KEY, 300, classes=4, noise=0.0)
    assert len(np.unique(np.round(np.asarray(x), 3), axis=0)) == 4
    x, labels = fnn.data.moons(KEY, 300, noise=0.0)
    centre = jnp.where(labels[:, None] == 1, jnp.array([1.0, 0.5]), jnp.zeros(2))
    np.testing.assert_allclose(jnp.linalg.norm(x - centre, axis=1), 1, rtol=1e-5)
    x, labels = fnn.data.spirals(KEY, 300, classes=3, noise=0.0)
    radius = jnp.linalg.norm(x, axis=1) / 3
    turns = (jnp.arctan2(x[:, 1], x[:, 0]) / (2 * jnp.pi) - radius - labels / 3) % 1
    np.testing.assert_allclose(jnp.minimum(turns, 1 - turns), 0, atol=1e-4)


def test_digits():
    splits = fnn.datasets.digits()
    assert [len(labels) for _, labels in splits] == [1077, 360, 360]
    for x, labels in splits:
        assert x.shape == (len(labels), 64)
        assert (x.dtype, labels.dtype) == (np.float32, np.int32)
        assert (x.min(), x.max()) == (0, 1)
        fnn.check_labels(labels, 10)
        assert np.bincount(labels).min() > 0.06 * len(labels)
    rows = np.concatenate([x for x, _ in splits])
    assert len(np.unique(rows, axis=0)) == 1797
    assert len(splits.test) == 2


@pytest.mark.parametrize(
    ("length", "stride"), [(1, None), (4, None), (4, 4), (5, 4), (3, 7), (11, 1)]
)
@pytest.mark.parametrize("shape", [(11,), (11, 2)])
def test_windows_are_numpys(shape, length, stride):
    sequence = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    view = np.lib.stride_tricks.sliding_window_view(sequence, length, axis=0)
    expected = np.moveaxis(view, -1, 1)[:: stride or length]
    for cut in (windows, jax.jit(windows, static_argnums=(1, 2))):
        got = cut(sequence, length, stride)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, expected)


def test_windows_say_what_does_not_fit():
    with pytest.raises(ValueError, match="windows: length 12 exceeds the 11 steps"):
        windows(jnp.zeros(11), 12)
    with pytest.raises(ValueError, match="windows: length 0, stride 1, expected at least 1"):
        windows(jnp.zeros(11), 0, 1)
    with pytest.raises(ValueError, match="windows: length 4, stride 0, expected at least 1"):
        windows(jnp.zeros(11), 4, 0)
    with pytest.raises(ValueError, match="windows: data have no rows"):
        windows(jnp.zeros(0), 1)
