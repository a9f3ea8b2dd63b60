import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training import Part

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 2)
X = np.random.default_rng(0).normal(5, 3, (23, 4)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, 23).astype(np.int32)
DATA = (X, LABELS)
RATES = {"learning_rate": [0.1, 0.3]}
FOLDS = fnn.k_folds(KEY, 23, 4, labels=LABELS)  # of 6, 6, 6 and 5 rows


def numbers(folds, part):
    """The rows' numbers of each fold, without what it was filled up with."""
    index, mask = getattr(folds, part), getattr(folds, f"{part}_mask")
    return [rows[counts] for rows, counts in zip(index, mask, strict=True)]


def sizes(folds):
    return [len(rows) for rows in numbers(folds, "valid")]


def counts(folds, labels):
    """[folds, classes]"""
    return np.stack([np.bincount(labels[v], minlength=3) for v in numbers(folds, "valid")])


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.dense(params, fnn.dropout(key, x, 0.2)), labels)


def run(key, train, valid, learning_rate):
    """With all that could tell a fold from another: standardized, shuffled, with dropout."""
    init_key, fit_key = jax.random.split(key)
    standardize = fnn.training.standardizer(train.data[0], train.weights)
    step = fnn.make_train_step(loss_fn, fnn.sgd(learning_rate))
    ts = step.init(fnn.dense_init(init_key, 4, 3))
    rows = (standardize(train.data[0]), train.data[1])
    ts, _ = fnn.fit(step, ts, rows, fit_key, epochs=3, batch_size=5, weights=train.weights)
    x, labels = valid.data
    right = fnn.accuracy(fnn.dense(ts.params, standardize(x)), labels)
    return ts.params, fnn.training.weighted_mean(right, valid.weights)


def mean(key, train, valid, factor):
    return fnn.training.weighted_mean(valid.data[0], valid.weights) * factor


MEANS = np.stack([X[rows].mean(0) for rows in numbers(FOLDS, "valid")])


# --- folds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "rows", "k"),
    [(None, 10, 5), (None, 14, 5), (None, 2, 2), (None, 1077, 10), (KEY, 23, 5), (KEY, 23, 23)],
)
def test_every_row_is_validated_once_in_folds_of_scikit_learns_sizes(key, rows, k):
    folds = fnn.k_folds(key, rows, k)
    # KFold's documented sizes, which are those of array_split.
    assert sizes(folds) == [len(part) for part in np.array_split(np.arange(rows), k)]
    np.testing.assert_array_equal(np.sort(np.concatenate(numbers(folds, "valid"))), range(rows))
    for train, valid in zip(numbers(folds, "train"), numbers(folds, "valid"), strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate([train, valid])), range(rows))


def test_what_fills_up_a_fold_is_of_its_own_rows():
    folds = fnn.k_folds(KEY, 23, 4)
    assert folds.train.shape == (4, 18)
    assert folds.valid.shape == (4, 6)
    assert folds.train.dtype == folds.valid.dtype == np.int32
    assert (folds.train_mask.sum(1) + folds.valid_mask.sum(1) == 23).all()
    assert (~folds.train_mask).sum() == 3
    for train, valid in zip(folds.train, folds.valid, strict=True):
        assert not set(train) & set(valid)


@pytest.mark.parametrize(("seed", "k"), list(enumerate([2, 3, 5, 10, 20])))
def test_stratified_counts_differ_by_at_most_one(seed, k):
    rng = np.random.default_rng(seed)
    rows = 46
    labels = rng.choice(3, rows, p=[0.7, 0.25, 0.05])
    folds = fnn.k_folds(jax.random.key(seed), rows, k, labels=labels)
    assert np.ptp(counts(folds, labels), axis=0).max() <= 1
    assert sizes(folds) == [len(part) for part in np.array_split(np.arange(rows), k)]


def test_sorted_labels_of_any_kind():
    names = np.repeat(["cat", "dog", "owl"], [9, 6, 3])
    folds = fnn.k_folds(None, 18, 3, labels=names)
    for valid in numbers(folds, "valid"):
        assert sorted(names[valid]) == ["cat"] * 3 + ["dog"] * 2 + ["owl"]


GROUPS = np.repeat(np.arange(9), [11, 2, 7, 7, 3, 1, 5, 2, 8])


@pytest.mark.parametrize("key", [None, KEY])
def test_groups_stay_together_in_folds_of_scikit_learns_sizes(key):
    shuffled = np.random.default_rng(1).permutation(GROUPS)
    folds = fnn.k_folds(key, 46, 4, groups=shuffled)
    # scikit-learn 1.9.1: [len(v) for _, v in GroupKFold(4).split(GROUPS, groups=GROUPS)]
    assert sizes(folds) == [11, 12, 12, 11]
    where = [set(shuffled[v]) for v in numbers(folds, "valid")]
    assert sum(map(len, where)) == len(set.union(*where)) == 9


@pytest.mark.parametrize("seed", range(3))
def test_groups_and_labels_together(seed):
    """30 groups of 4 rows, each mostly of one class, in 5 folds: counts near 8 of each class."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(30), 4)
    labels = np.where(rng.random(120) < 0.8, groups % 3, rng.integers(0, 3, 120))
    both = fnn.k_folds(KEY, 120, 5, labels=labels, groups=groups)
    alone = fnn.k_folds(KEY, 120, 5, groups=groups)
    where = [set(groups[v]) for v in numbers(both, "valid")]
    assert sum(map(len, where)) == 30
    assert sizes(both) == sizes(alone) == [24] * 5
    assert abs(counts(both, labels) - 8).max() <= 3 < abs(counts(alone, labels) - 8).max()


def test_the_key_is_what_shuffles():
    again, other = fnn.k_folds(KEY, 46, 5), fnn.k_folds(jax.random.key(1), 46, 5)
    chex.assert_trees_all_equal(fnn.k_folds(KEY, 46, 5), again)
    assert (other.valid != again.valid).any()
    np.testing.assert_array_equal(fnn.k_folds(None, 7, 3).valid[0], [0, 3, 6])


# --- the sweep --------------------------------------------------------------------------------


def test_a_member_is_its_solo_run_bit_for_bit():
    together = fnn.cross_validate(run, KEYS, DATA, FOLDS, RATES)
    assert together[1].shape == (2, 4, 2)
    alone = jax.jit(run)
    for i, fold, j in [(0, 0, 0), (1, 3, 1), (0, 2, 1)]:
        parts = [
            Part(fnn.data.take(DATA, index[fold]), jnp.asarray(mask[fold], float))
            for index, mask in [FOLDS[:2], FOLDS[2:]]
        ]
        member = jax.tree.map(lambda leaf, at=(i, fold, j): leaf[at], together)
        chex.assert_trees_all_equal(member, alone(KEYS[i], *parts, RATES["learning_rate"][j]))


def test_against_a_loop_in_numpy():
    """Ridge regression in closed form, the penalty swept, statistics of the training fold."""
    noise = np.random.default_rng(2).normal(0, 1, 23).astype("f4")
    targets = X @ np.array([1.0, -2.0, 0.5, 3.0], np.float32) + noise

    def ridge(key, train, valid, penalty):
        standardize = fnn.training.standardizer(train.data[0], train.weights)
        x, y = standardize(train.data[0]), train.data[1]
        mean = fnn.training.weighted_mean(y, train.weights)
        kept = x * train.weights.astype(x.dtype)[:, None]
        w = jnp.linalg.solve(kept.T @ x + penalty * jnp.eye(4), kept.T @ (y - mean))
        predicted = standardize(valid.data[0]) @ w + mean
        return fnn.training.weighted_mean(
            fnn.squared_error(predicted, valid.data[1]), valid.weights
        )

    def by_hand(train, valid, penalty):
        x, y = X[train].astype(float), targets[train].astype(float)
        mean, deviation = x.mean(0), x.std(0)
        z = (x - mean) / deviation
        w = np.linalg.solve(z.T @ z + penalty * np.eye(4), z.T @ (y - y.mean()))
        predicted = (X[valid] - mean) / deviation @ w + y.mean()
        return np.mean((predicted - targets[valid]) ** 2)

    penalties = [0.1, 1.0, 10.0]
    result = fnn.cross_validate(ridge, KEYS, (X, targets), FOLDS, {"penalty": penalties})
    pairs = zip(numbers(FOLDS, "train"), numbers(FOLDS, "valid"), strict=True)
    expected = [[by_hand(*pair, penalty) for penalty in penalties] for pair in pairs]
    np.testing.assert_allclose(result[0], expected, rtol=1e-4)
    chex.assert_trees_all_equal(result[0], result[1])


def test_training_on_a_padded_fold_is_training_on_its_rows():
    """One step on the whole fold: the gradient is the mean over the rows that count."""

    def one_step(key, train, valid):
        step = fnn.make_train_step(lambda p, x, key: (x[0] @ p) ** 2, fnn.sgd(0.01))
        ts, rows = step.init(jnp.ones(4)), len(train.weights)
        fit = fnn.fit(step, ts, train.data, key, epochs=1, batch_size=rows, weights=train.weights)
        return fit[0]

    params = fnn.cross_validate(one_step, KEYS[:1], DATA, FOLDS).params[0]
    for fold, train in enumerate(numbers(FOLDS, "train")):
        x = X[train].astype(float)
        grad = np.mean(2 * (x @ np.ones(4))[:, None] * x, axis=0)
        np.testing.assert_allclose(params[fold], 1 - 0.01 * grad, rtol=1e-5)


def test_nothing_leaks_from_the_rows_validated_on():
    """They become NaN, and what was fitted on the others is the same bit for bit."""
    params, accuracies = fnn.cross_validate(run, KEYS, DATA, FOLDS, RATES)
    for fold, valid in enumerate(numbers(FOLDS, "valid")):
        spoilt = X.copy()
        spoilt[valid] = np.nan
        other, wrong = fnn.cross_validate(run, KEYS, (spoilt, LABELS), FOLDS, RATES)
        np.testing.assert_array_equal(params["w"][:, fold], other["w"][:, fold])
        assert (wrong[:, fold] == 0).all()
        assert (accuracies[:, fold] > 0).any()
        assert np.isnan(other["w"][:, fold - 1]).any() or (other["w"] != params["w"]).any()


def test_every_point_meets_the_same_folds_and_the_same_key():
    def what(key, train, valid, a):
        return {"key": jax.random.bits(key), "rows": (train.data, valid.data), "a": a}

    data = np.arange(23, dtype=np.int32)
    result = fnn.cross_validate(what, KEYS, data, FOLDS, {"a": jnp.arange(3)})
    np.testing.assert_array_equal(result["a"], np.broadcast_to(np.arange(3), (2, 4, 3)))
    bits = jax.vmap(jax.random.bits)(KEYS)[:, None, None]
    np.testing.assert_array_equal(result["key"], np.broadcast_to(bits, (2, 4, 3)))
    for rows, fold in zip(result["rows"], (FOLDS.train, FOLDS.valid), strict=True):
        np.testing.assert_array_equal(
            rows, np.broadcast_to(fold[:, None], (2, 4, 3, fold.shape[1]))
        )


def test_one_trace_for_all_and_for_other_data():
    traces = []

    def counted(key, train, valid, factor):
        traces.append(1)
        return mean(key, train, valid, factor)

    for data, seed in ((DATA, 0), ((2 * X, LABELS), 1)):
        folds = fnn.k_folds(jax.random.key(seed), 23, 4)
        result = fnn.cross_validate(counted, KEYS, data, folds, {"factor": [1.0, 0.3]})
        expected = 0.3 * data[0][numbers(folds, "valid")[3]].mean(0)
        np.testing.assert_allclose(result[0, 3, 1], expected, rtol=1e-5)
    assert len(traces) == 1


def test_side_by_side_under_jit_and_from_one_device():
    grid = {"factor": jnp.array([1.0])}
    there = jax.device_put(DATA, jax.devices()[3])
    jitted = jax.jit(lambda data: fnn.cross_validate(mean, KEYS, data, FOLDS, grid))
    for result in (
        fnn.cross_validate(mean, KEYS, DATA, FOLDS, grid, width=3),
        fnn.cross_validate(mean, KEYS, there, FOLDS, grid),
        jitted(DATA),
    ):
        np.testing.assert_allclose(result[:, :, 0], [MEANS, MEANS], rtol=1e-5)


def test_a_hyperparameter_may_have_any_name():
    def named(key, train, valid, fold, rows):
        return fold + rows

    grid = {"fold": jnp.array([10]), "rows": jnp.array([1, 2])}
    result = fnn.cross_validate(named, KEYS, DATA, FOLDS, grid)
    np.testing.assert_array_equal(result, np.broadcast_to([[11, 12]], (2, 4, 1, 2)))


def test_a_value_for_each_fold():
    factors = np.array([1.0, 2.0, 3.0, 4.0])
    result = fnn.cross_validate(mean, KEYS, DATA, FOLDS, by_fold={"factor": factors})
    np.testing.assert_allclose(result, [MEANS * factors[:, None]] * 2, rtol=1e-5)
    with pytest.raises(ValueError, match=r"cross_validate: factor has shape \(2,\), expected one"):
        fnn.cross_validate(mean, KEYS, DATA, FOLDS, by_fold={"factor": factors[:2]})
    with pytest.raises(ValueError, match=r"has shape \(4,\) and is in the grid too"):
        fnn.cross_validate(mean, KEYS, DATA, FOLDS, {"factor": [1.0]}, by_fold={"factor": factors})


def test_one_row_a_fold_and_folds_of_ones_own():
    def means(key, train, valid):
        return fnn.training.weighted_mean(train.data, train.weights), valid.data

    train, valid = fnn.cross_validate(means, KEYS[:1], X, fnn.k_folds(None, 23, 23))
    np.testing.assert_array_equal(valid[0, :, 0], X)
    np.testing.assert_allclose(train[0], (X.sum(0) - X) / 22, rtol=1e-5)
    forward = fnn.training.pad_folds([(np.arange(n), np.arange(n, n + 4)) for n in (5, 10, 19)])
    train, _ = fnn.cross_validate(means, KEYS[:1], X, forward)
    np.testing.assert_allclose(train[0], [X[:n].mean(0) for n in (5, 10, 19)], rtol=1e-5)


# --- weighted_mean and standardizer -------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_statistics_in_float32_at_least(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(np.random.default_rng(3).normal(1000, 5, (4096, 2)), dtype)
        y = jax.jit(lambda x: fnn.training.standardizer(x, np.arange(4096) < 4000)(x))(x)
        assert y.dtype == x.dtype
        z = np.asarray(x, float)
        expected = (z - z[:4000].mean(0)) / z[:4000].std(0)
        tolerance = {"float16": 5e-3, "bfloat16": 4e-2, "float64": 1e-12}[dtype]
        np.testing.assert_allclose(np.asarray(y, float), expected, atol=tolerance)
        assert fnn.training.weighted_mean(x).dtype == (
            "float64" if dtype == "float64" else "float32"
        )


def test_constant_features_are_shifted_only():
    x = np.tile(np.array([0.0, 0.1, 1e6], np.float32), (1000, 1))
    y, z = jax.jit(lambda x: [fnn.training.standardizer(x)(x + shift) for shift in (0.0, 1.0)])(x)
    np.testing.assert_allclose(y, 0, atol=0.1)
    np.testing.assert_allclose(z, 1, atol=0.1)


@pytest.mark.parametrize("scale", [1e20, 1e-23, 1e30, 1e-30])
def test_features_of_any_size_are_standardized(scale):
    x = (np.random.default_rng(0).normal(1, 1, (500, 2)) * [scale, 1]).astype(np.float32)
    x[7] = np.inf
    x[8] = np.nan
    counted = ~np.isin(np.arange(500), [7, 8])
    z = x.astype(float)[counted]
    y = jax.jit(lambda x: fnn.training.standardizer(x, counted)(x))(x)[counted]
    np.testing.assert_allclose(y, (z - z.mean(0)) / z.std(0), rtol=1e-4, atol=1e-5)


def test_standardized_integers_are_floating_point():
    x = np.arange(12, dtype=np.uint8).reshape(6, 2)
    y = fnn.training.standardizer(x)(x)
    np.testing.assert_allclose(y, (x - x.mean(0)) / x.std(0), rtol=1e-6)
    # Features below the smallest normal number stay finite.
    tiny = (np.random.default_rng(0).normal(size=(9, 2)) * 1e-38).astype(np.float32)
    assert np.isfinite(fnn.training.standardizer(tiny)(tiny)).all()


def test_a_standardizer_can_be_saved(tmp_path):
    x = np.random.default_rng(0).normal(3, 2, (50, 3)).astype(np.float32)
    standardize = jax.jit(fnn.training.standardizer)(x)
    np.testing.assert_allclose(standardize.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(standardize.scale, x.std(0), rtol=1e-5)
    fnn.checkpoint.save(tmp_path / "s.safetensors", {"standardize": standardize})
    empty = fnn.training.Standardizer(np.zeros(3, np.float32), np.zeros(3, np.float32))
    again = fnn.checkpoint.load(tmp_path / "s.safetensors", {"standardize": empty})[0][
        "standardize"
    ]
    np.testing.assert_array_equal(again(x), standardize(x))
    by_hand = fnn.training.Standardizer(*(np.asarray(a) for a in standardize))
    np.testing.assert_array_equal(by_hand(x), standardize(x))
    # Its gradient is finite for a constant feature too.
    grad = jax.grad(lambda x: fnn.training.standardizer(x)(x).sum())(np.ones((4, 2), np.float32))
    assert np.isfinite(grad).all()


def test_means_of_bools_of_one_row_and_of_none():
    values = jnp.array([True, False, True, True])
    assert fnn.training.weighted_mean(values, jnp.array([1, 3, 0, 0])) == 0.25
    nan = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]])
    np.testing.assert_array_equal(fnn.training.weighted_mean(nan, np.array([True, False])), [1, 2])
    assert np.isnan(fnn.training.weighted_mean(nan, np.zeros(2, bool))).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fnn.k_folds(KEY, 5, 1), "k_folds: folds is 1, expected 2 to the 5 rows"),
        (lambda: fnn.k_folds(KEY, 5, 6), "k_folds: folds is 6, expected 2 to the 5 rows"),
        (lambda: fnn.k_folds(KEY, 5, 2, labels=LABELS), r"k_folds: labels have shape \(23,\), expected \(5,\)"),
        (lambda: fnn.k_folds(KEY, 4, 3, groups=[0, 0, 1, 1]), "k_folds: 2 groups, expected at least 3, one a fold"),
        (lambda: fnn.training.pad_folds([([1], [])]), r"pad_folds: valid of fold 0 is float64\[0\], expected the numbers"),
        (lambda: fnn.training.pad_folds([(np.ones(3, bool), [0])]), r"pad_folds: train of fold 0 is bool\[3\], expected the numbers"),
        (lambda: fnn.cross_validate(run, KEYS, (X[:9], LABELS[:9]), FOLDS, RATES), "cross_validate: train has rows 0 to 22, expected 0 to 8, because the data have 9 rows"),
        (lambda: fnn.cross_validate(run, KEYS, (X, LABELS[:9]), FOLDS, RATES), "cross_validate: data have shapes"),
        (lambda: fnn.cross_validate(run, KEYS, DATA, FOLDS._replace(valid=FOLDS.train), RATES), r"cross_validate: valid has shape \(4, 18\) and its mask \(4, 6\)"),
        (lambda: fnn.cross_validate(run, KEY, DATA, FOLDS, RATES), r"cross_validate: keys have shape \(\)"),
        (lambda: fnn.cross_validate(run, KEYS, DATA, FOLDS, {"learning_rate": []}), "cross_validate: learning_rate has shape"),
        (lambda: fnn.training.weighted_mean(X, FOLDS.valid_mask[0]), r"weighted_mean: weights have shape \(6,\), but values \(23, 4\)"),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_misspelt_hyperparameter_is_a_type_error():
    with pytest.raises(TypeError, match="learning_rat"):
        fnn.cross_validate(run, KEYS, DATA, FOLDS, {"learning_rat": [0.1]})
