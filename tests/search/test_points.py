import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import qmc

from fnn.search import Range, Static, sample
from fnn.search._points import plan_of
from fnn.search._programs import programs_of

KEYS = jax.random.split(jax.random.key(0), 2)


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "low", "high", "spaced"),
    [
        ("linear", -2.0, 6.0, lambda x: x),
        ("log", 1e-4, 1.0, np.log),
        ("log1m", 0.9, 0.9999, lambda x: np.log(1 - x)),
    ],
)
def test_a_scale_is_spaced_evenly(scale, low, high, spaced):
    values = np.array([Range(low, high, scale).at(f) for f in np.linspace(0, 1, 9)])
    expected = np.linspace(spaced(low), spaced(high), 9)
    np.testing.assert_allclose(spaced(values), expected, rtol=1e-9)
    assert values.min() >= low
    assert values.max() <= high
    assert (np.diff(values) > 0).all()


def test_a_range_as_wide_as_floats_are():
    wide = Range(1e-300, 1e300, "log")
    np.testing.assert_allclose(wide.at(0.5), 1, rtol=1e-12)
    assert Range(-1.5e308, 1.5e308).at(0.25) == -0.75e308
    assert Range(0.0, 1.0 - 2**-53, "log1m").at(1.0) < 1


@pytest.mark.parametrize("count", [1, 8, 13])
def test_sobol_points_are_those_of_scipy(count):
    space = {"rate": Range(1e-3, 1.0, "log"), "width": [32, 64, 128], "decay": Range(0.0, 1.0)}
    points = sample(space, count, seed=7)
    drawn = qmc.Sobol(3, seed=np.random.default_rng(7)).random_base2(4)[:count]
    assert [list(p) for p in points] == [["rate", "width", "decay"]] * count
    rates = [p["rate"] for p in points]
    np.testing.assert_allclose(rates, 10.0 ** (3 * drawn[:, 0] - 3), rtol=1e-12)
    assert [p["width"] for p in points] == [[32, 64, 128][int(3 * f)] for f in drawn[:, 1]]
    np.testing.assert_allclose([p["decay"] for p in points], drawn[:, 2], rtol=1e-12)


def test_sobol_points_fill_the_space_and_random_ones_are_uniform():
    """Of 2^8 points, each of 2^8 cells has one; so has each interval of 2^-8 in each dimension."""
    space = {"a": Range(0.0, 1.0), "b": Range(0.0, 1.0)}
    drawn = np.array([[p["a"], p["b"]] for p in sample(space, 256)])
    for sizes in ((16, 16), (256, 1), (1, 256), (4, 64)):
        cells = (drawn * sizes).astype(int)
        assert len(np.unique(cells, axis=0)) == 256
    random = np.array([[p["a"], p["b"]] for p in sample(space, 256, how="random", seed=3)])
    np.testing.assert_array_equal(random, np.random.default_rng(3).random((256, 2)))


def test_the_same_seed_gives_the_same_points():
    space = {"rate": Range(0.1, 1.0)}
    for how in ("sobol", "random"):
        assert sample(space, 4, how=how) == sample(space, 4, how=how)
        assert sample(space, 4, how=how) != sample(space, 4, how=how, seed=1)


def test_choices_are_all_made_and_static_ones_stay_static():
    points = sample({"size": Static(8, 16), "rule": ["adam", "sgd"]}, 16)
    assert {p["rule"] for p in points} == {"adam", "sgd"}
    plan = plan_of("population", KEYS, None, points)
    assert plan.static == {"size", "rule"}
    assert {p["size"] for p in plan.points} == {8, 16}
    assert len(programs_of("population", plan)) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Range(1.0, 1.0), "Range: 1.0 to 1.0, expected two finite numbers, the smaller first"),
        (lambda: Range(0.0, float("inf")), "Range: 0.0 to inf, expected two finite numbers"),
        (lambda: Range(0.0, 1.0, "log"), "Range: low is 0.0, expected > 0 on a log scale"),
        (lambda: Range(0.0, 1.0, "log1m"), "Range: high is 1.0, expected < 1 on a log1m scale"),
        (lambda: Range(0.0, 1.0, "ln"), "Range: scale is 'ln', expected 'linear', 'log' or 'log1m'"),
        (lambda: sample({}, 4), "sample: space is {}, expected a dict"),
        (lambda: sample([Range(0.0, 1.0)], 4), "sample: space is .*, expected a dict"),
        (lambda: sample({"a": Range(0.0, 1.0)}, 0), "sample: count is 0, expected at least 1"),
        (lambda: sample({"a": Range(0.0, 1.0)}, 4, how="halton"), "sample: how is 'halton', expected"),
        (lambda: sample({"a": 0.1}, 4), "sample: a is 0.1, expected a list of values"),
        (lambda: sample({"a": []}, 4), "sample: a has no value, expected at least one"),
    ],
)  # fmt: skip
def test_errors_of_samples(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


# --- plans and programs ---------------------------------------------------------------------------


def test_members_of_a_grid_are_numbered_key_by_key_the_last_axis_fastest():
    grid = {"hidden": [(8,), (16, 8)], "rate": np.array([0.1, 0.2, 0.3])}
    plan = plan_of("population", KEYS, grid, None)
    assert plan.shape == (2, 2, 3)
    assert plan.members == 12
    assert plan.static == {"hidden"}
    assert plan.points[4] == {"hidden": (16, 8), "rate": 0.2}
    assert plan.named_axes["key"] == [0, 1]
    first, second = programs_of("population", plan)
    assert first.static == {"hidden": (8,)}
    assert first.members == [0, 1, 2, 6, 7, 8]
    assert second.members == [3, 4, 5, 9, 10, 11]
    np.testing.assert_array_equal(first.columns["rate"], np.float32([0.1, 0.2, 0.3] * 2))
    np.testing.assert_array_equal(first.rows([1, 5])["rate"], np.float32([0.2, 0.3]))


def test_points_are_a_list_of_dicts_or_a_dict_of_lists():
    as_list = [{"rate": 0.1, "rule": "sgd"}, {"rate": 0.2, "rule": "adam"}]
    as_dict = {"rate": [0.1, 0.2], "rule": ["sgd", "adam"]}
    plans = [plan_of("population", KEYS, None, points) for points in (as_list, as_dict)]
    for plan in plans:
        assert plan.points == as_list
        assert plan.axes == {"point": [0, 1]}
        assert plan.shape == (2, 2)
    assert [p.members for p in programs_of("population", plans[0])] == [[0, 2], [1, 3]]


def test_no_grid_is_one_point():
    plan = plan_of("population", KEYS, None, None)
    assert plan.shape == (2,)
    assert plan.points == [{}]
    assert [p.members for p in programs_of("population", plan)] == [[0, 1]]


def test_true_1_and_1_0_are_three_programs():
    """Though they are equal, and have one hash."""
    plan = plan_of("population", KEYS, {"value": Static(1, True, 1.0)}, None)
    statics = [program.static["value"] for program in programs_of("population", plan)]
    assert [type(value) for value in statics] == [int, bool, float]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 0.5], np.float32([1, 0.5])),
        ([True, False], np.array([True, False])),
        ([[0.9, 0.99], [0.8, 0.999]], np.float32([[0.9, 0.99], [0.8, 0.999]])),
        (jnp.arange(3), np.arange(3, dtype=np.int32)),
        ([np.float64(0.1), jnp.float32(0.2)], np.float32([0.1, 0.2])),
    ],
)
def test_numbers_are_columns_as_jax_takes_them(values, expected):
    if isinstance(values[0], list):
        values = [np.array(value) for value in values]
    plan = plan_of("population", KEYS, {"x": values}, None)
    (program,) = programs_of("population", plan)
    column = program.columns["x"]
    np.testing.assert_array_equal(column, np.concatenate([expected, expected]))
    assert column.dtype == expected.dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {"a": [1]}, "points": [{"a": 1}]}, "population: grid and points came, expected one"),
        ({"grid": [0.1]}, "population: grid is a list, expected a dict"),
        ({"grid": {"a": 0.1}}, "population: a is 0.1, expected a list of values"),
        ({"grid": {"a": "adam"}}, "population: a is 'adam', expected a list of values"),
        ({"grid": {"a": []}}, "population: a has no value, expected at least one"),
        ({"grid": {"a": Range(0.0, 1.0)}}, r"population: a is Range\(.*a range is for fnn.search.sample"),
        ({"points": {"a": [1, 2], "b": [1]}}, r"population: points have {'a': 2, 'b': 1} values, expected as many"),
        ({"points": [{"a": 1}, {"b": 1}]}, r"population: point 1 has \['b'\], expected the names of point 0"),
        ({"points": []}, r"population: points is \[\], expected a list of dicts"),
        ({"points": {}}, "population: points is {}, expected a list of dicts"),
        ({"points": [1, 2]}, "population: point 0 is 1, expected a dict"),
        ({"points": [{"a": Range(0.0, 1.0)}]}, r"population: a is Range\(.*, expected a value; fnn.search.sample"),
        ({"grid": {"a": [0.5, Range(0.0, 1.0)]}}, r"population: a is Range\(.*, expected a value; fnn.search.sample"),
        ({"points": [{"a": Static(1, 2)}]}, r"population: a is Static\(1, 2\) at a point, expected one value"),
        ({"keys": KEYS[jnp.array([0, 1, 0])]}, "population: key 2 is the same as one before it, expected 3 different"),
        ({"keys": jax.random.key_data(KEYS)[jnp.array([1, 1])]}, "population: key 1 is the same"),
        ({"keys": KEYS[0]}, r"population: keys have shape \(\), expected \[n\]"),
        ({"keys": 3}, r"population: keys came as 3, expected \[n\]"),
    ],
)  # fmt: skip
def test_errors_of_plans(options, message):
    given = {"keys": KEYS, "grid": None, "points": None} | options
    with pytest.raises((ValueError, TypeError), match=message):
        plan_of("population", **given)


def test_traced_keys_are_refused():
    with pytest.raises(TypeError, match="population: keys are traced, expected values"):
        jax.jit(lambda keys: plan_of("population", keys, None, None).members)(KEYS)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"a": [[1, 2], [3]]}, "a has the value .*, which has no hash"),
        (
            {"a": [np.ones(2), np.ones(3)]},
            r"a has values of shapes \[\(2,\), \(3,\)\], expected one",
        ),
        ({"a": Static({})}, "a has the value {}, which has no hash"),
    ],
)
def test_errors_of_programs(grid, message):
    plan = plan_of("population", KEYS, grid, None)
    with pytest.raises((ValueError, TypeError), match=message):
        programs_of("population", plan)
