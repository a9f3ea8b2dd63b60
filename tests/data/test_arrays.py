import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fnn
from fnn.data import class_weights, permutation, rows_of, split, take, windows

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


def swap_or_not(key, n):
    """The shuffle as its docstring has it, in whole numbers of 64 bits."""
    x = np.arange(n)
    rounds = 32 * -(-6 * math.log2(max(n, 2)) // 32)
    for k, salt in np.asarray(jax.random.bits(key, (int(rounds), 2), jnp.uint32)).astype(np.uint64):
        partner = (int(k) % n - x) % n
        h = np.maximum(x, partner).astype(np.uint64) ^ salt
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            h = (h ^ (h >> np.uint64(shift))) * np.uint64(factor) % np.uint64(2**32)
        x = np.where((h ^ (h >> np.uint64(16))) >> np.uint64(31) == 1, partner, x)
    return x


@pytest.mark.parametrize("n", [1, 2, 7, 33, 1077, 60000])
def test_permutation_is_the_published_shuffle(n):
    np.testing.assert_array_equal(permutation(KEY, n), swap_or_not(KEY, n))


def test_the_order_of_a_key_stays():
    expected = [3, 9, 2, 6, 8, 5, 7, 0, 1, 4]
    np.testing.assert_array_equal(permutation(jax.random.key(1), 10), expected)


def test_split_is_disjoint_and_complete():
    data = {"x": jnp.arange(20.0).reshape(10, 2), "y": np.arange(10)}
    a, b = split(KEY, data, 0.7)
    assert a["x"].shape == (7, 2)
    assert sorted([*a["y"].tolist(), *b["y"].tolist()]) == list(range(10))
    np.testing.assert_array_equal(a["x"][:, 0], 2 * a["y"])
    for fraction in (1.5, np.float32(0), np.nan):
        with pytest.raises(
            ValueError, match=r"split: fraction is .*, expected a number in \(0, 1\)"
        ):
            split(KEY, data, fraction)
    with pytest.raises(
        ValueError, match=r"split: fraction is 0\.01, which makes parts of 0 and 10 rows"
    ):
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
    fnn.nn.check_labels(labels, SETS[name])
    np.testing.assert_array_equal(x, make(KEY, 500)[0])
    assert (np.asarray(x) != np.asarray(make(jax.random.key(1), 500)[0])).any()
    jitted, _ = jax.jit(make, static_argnums=1)(KEY, 500)
    np.testing.assert_allclose(jitted, x, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=f"{name}: rows is 0, expected at least 1"):
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
        fnn.nn.check_labels(labels, 10)
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
    with pytest.raises(ValueError, match="windows: length is 12, but the sequence has 11 steps"):
        windows(jnp.zeros(11), 12)
    with pytest.raises(ValueError, match="windows: length is 0, expected at least 1"):
        windows(jnp.zeros(11), 0, 1)
    with pytest.raises(ValueError, match="windows: stride is 0, expected at least 1"):
        windows(jnp.zeros(11), 4, 0)
    with pytest.raises(ValueError, match="windows: data have no rows"):
        windows(jnp.zeros(0), 1)


# --- stratified, and without a key --------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.37, 0.8])
def test_stratified_split_gives_each_class_its_share(fraction):
    sizes = np.array([50, 7, 1, 92, 3])
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), sizes))
    words = np.array(["e", "b", "c", "d", "a"])[labels]
    orders = set()
    for seed in range(3):
        key = jax.random.key(seed)
        a, b = split(key, {"y": labels, "row": np.arange(153)}, fraction, labels=labels)
        assert len(a["y"]) == round(fraction * 153)
        assert (abs(np.bincount(a["y"], minlength=5) - fraction * sizes) < 1.01).all()
        assert sorted([*a["row"].tolist(), *b["row"].tolist()]) == list(range(153))
        assert (np.diff(a["y"]) < 0).any()  # not sorted by class
        orders.add(tuple(a["row"].tolist()))
        traced = jax.jit(lambda k, y: split(k, jnp.arange(153), fraction, labels=y))
        np.testing.assert_array_equal(traced(key, labels)[0], a["row"])
        of_words, _ = split(key, np.arange(153), fraction, labels=words)
        assert len(of_words) == len(a["row"])
    assert len(orders) == 3
    with pytest.raises(ValueError, match=r"split: labels have shape \(3,\), expected \[rows\]"):
        split(KEY, labels, 0.5, labels=labels[:3])


def test_split_without_a_key_keeps_the_order():
    a, b = split(None, np.arange(10), 0.7)
    np.testing.assert_array_equal([*a, *b], np.arange(10))


# --- labels in dtypes that cannot hold the classes, and many rows --------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.uint32, np.int64, np.uint64])
def test_class_weights_are_scikit_learns(dtype):
    labels = np.repeat([0, 1, 100], [5, 3, 2]).astype(dtype)
    expected = np.repeat(10 / (3 * np.array([5, 3, 2])), [5, 3, 2])
    for classes in (101, np.int64(256)):
        for weigh in (class_weights, jax.jit(class_weights, static_argnums=1)):
            np.testing.assert_allclose(weigh(labels, classes), expected, rtol=1e-6)
    assert weigh(labels, 256).sum() == pytest.approx(10)


def test_class_weights_of_labels_out_of_range_are_nan():
    weights = class_weights(np.array([0, 1, -1, 7, 1]), 2)
    np.testing.assert_allclose(weights, [1.5, 0.75, np.nan, np.nan, 0.75])
    # classes present times rows of a class is beyond 2^31
    weights = jax.jit(class_weights, static_argnums=1)(np.arange(150_000) % 50_000, 50_000)
    np.testing.assert_allclose(weights, 1, rtol=1e-6)
    one_large = np.concatenate([np.arange(1000), np.zeros(3_000_000, int)]).astype(np.int32)
    first, last = np.asarray(class_weights(one_large, 1000))[[0, 999]]
    np.testing.assert_allclose([first, last], [3_001_000 / 1000 / 3_000_001, 3001], rtol=1e-5)


def test_more_rows_than_int32_can_number_are_one_sentence():
    many = np.broadcast_to(np.zeros(1, np.int8), 2**31 + 10)  # no memory: its stride is 0
    message = r"rows_of: data have 2147483658 rows, expected at most 2147483647"
    with pytest.raises(ValueError, match=message):
        rows_of("rows_of", many)
    assert rows_of("rows_of", many[: 2**31 - 1]) == 2**31 - 1
    with pytest.raises(ValueError, match="permutation: data have 2147483648 rows, expected at m"):
        permutation(KEY, 2**31)


# --- what is no array ----------------------------------------------------------------------------


class Table:  # as pandas and polars have it
    shape, dtype = (3, 2), np.dtype(float)

    def to_numpy(self):
        return np.zeros((3, 2))


NO_ARRAYS = {
    "table": (Table(), "data came as a Table, expected an array; use .to_numpy()"),
    "words": (["cat", "dog"], "data at '0' came as 'cat', expected an array; use np.asarray"),
    "numbers": ([1.0, 2.0], "data at '0' came as 1.0, expected an array; use np.asarray"),
    "strings": (np.array(["a"]), "data came as an array of dtype <U1, expected numbers or bools; number"),
    "objects": (np.array([1, None]), "data came as an array of dtype object, expected numbers or bools; use .as"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), "dtype datetime64[D], expected numbers or bools; subtract"),
    "durations": (np.array([1], "m8[s]"), "dtype timedelta64[s], expected numbers or bools; divide"),
    "fields": (np.zeros(2, [("a", "i4")]), "expected numbers or bools; take the fields apart"),
    "masked": (np.ma.array([1.0], mask=[True]), "data came as a masked array, whose mask would be lost"),
    "64 bits": (np.array([2**32 + 5]), "data hold the number 4294967301, which int32 cannot hold"),
    "unsigned": (np.array([2**32 + 5], np.uint64), "data hold the number 4294967301, which uint32"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_what_is_no_array_is_one_sentence(kind):
    data, message = NO_ARRAYS[kind]
    calls = {
        "rows_of": lambda: rows_of("rows_of", data),
        "split": lambda: split(KEY, data, 0.5),
        "windows": lambda: windows(data, 1),
        "evaluate": lambda: fnn.evaluate(lambda b: b, data, 1),
        "take": lambda: take(data, jnp.array([0])),
    }
    for name, call in calls.items():
        with pytest.raises((TypeError, ValueError)) as error:
            call()
        assert message in str(error.value)
        assert str(error.value).startswith(f"{name}: ")


@pytest.mark.parametrize("dtype", ["bool", "float16", "bfloat16", "int64", "uint32", "complex64"])
def test_arrays_of_numbers_are_data(dtype):
    data = np.zeros(4).astype(jnp.dtype(dtype))
    assert rows_of("f", (data, jax.random.split(KEY, 4), jnp.asarray(data))) == 4
    assert jax.jit(lambda d: take(d, jnp.array([0, 1])))(data).shape == (2,)


def test_keys_and_numbers_of_every_kind_are_checked():
    for call in (
        lambda key: split(key, jnp.arange(4), 0.5),
        lambda key: permutation(key, 4),
        *(lambda key, name=name: getattr(fnn.data, name)(key, 4) for name in SETS),
    ):
        with pytest.raises(TypeError, match=r": key is int, expected a key like jax\.random"):
            call(0)
    for kind in (np.int64, np.uint8, jnp.int32):
        assert fnn.data.spirals(KEY, kind(6), classes=kind(3))[0].shape == (6, 2)
        assert windows(jnp.arange(9), kind(3), kind(2)).shape == (4, 3)
        assert permutation(KEY, kind(5)).shape == (5,)
    with pytest.raises(TypeError, match=r"windows: length is 2\.0, expected a whole number >= 1"):
        windows(jnp.arange(9), 2.0)
    with pytest.raises(ValueError, match=r"rings: noise is -1\.0, expected a number >= 0"):
        fnn.data.rings(KEY, 4, noise=np.float32(-1))
