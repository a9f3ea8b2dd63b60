"""Axes of a search: text, grids, Sobol points, edges."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import qmc

from fnn.compare._tuning import (
    RESERVED,
    Axis,
    check_names,
    check_taken,
    edge,
    parse_axis,
    point_text,
    points,
)

RATE = "learning_rate=0.001..1:log"


def axes_of(text):
    return [parse_axis(part) for part in text.split()]


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        (RATE, Axis("learning_rate", 0.001, 1.0, "log")),
        ("b2=0.9..0.9999:log1m", Axis("b2", 0.9, 0.9999, "log1m")),
        ("weight_decay=0..0.1", Axis("weight_decay", 0.0, 0.1)),
        ("bias=-1..-0.5", Axis("bias", -1.0, -0.5)),
        ("b1=0.8,0.9,0.95", Axis("b1", values=(0.8, 0.9, 0.95))),
        ("b1=0.9", Axis("b1", values=(0.9,))),
    ],
)
def test_text_reads_back(text, axis):
    assert parse_axis(text) == axis
    assert str(axis) == text


def test_other_texts_of_the_same_axis():
    assert str(parse_axis(" learning_rate=1e-3..1e0:log ")) == RATE
    assert str(parse_axis("b1=0.95,0.8")) == "b1=0.8,0.95"
    assert str(parse_axis("x=0..1:linear")) == "x=0..1"
    assert parse_axis("x=.1..1.5") == Axis("x", 0.1, 1.5)


@given(
    st.floats(1e-30, 1e30),
    st.floats(1.001, 1e6),
    st.sampled_from(["linear", "log"]),
)
def test_any_range_reads_back(low, factor, scale):
    axis = Axis("eps", low, low * factor, scale)
    assert parse_axis(str(axis)) == axis
    assert point_text({"eps": low}) == f"eps={low:g}" or float(point_text({"eps": low})[4:]) == low


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b2=0.9..0.5", "b2=0.9..0.5: the range is empty, expected low < high"),
        ("b2=0.9..0.9", "b2=0.9..0.9: the range is empty, expected low < high"),
        ("wd=0..1:log", "wd=0..1:log: starts at 0, expected > 0 on a log scale"),
        ("wd=-1..1:log", "wd=-1..1:log: starts at -1, expected > 0 on a log scale"),
        ("b2=0.9..1:log1m", "b2=0.9..1:log1m: ends at 1, expected < 1 on a log1m scale"),
        (
            "b=0.1..1:lgo",
            "unknown scale 'lgo', expected one of: linear, log, log1m; did you mean log",
        ),
        ("b=0.1..1:", "b=0.1..1:: unknown scale '', expected one of: linear, log, log1m"),
        ("b=0.1..1:LOG", "unknown scale 'LOG', expected one of: linear, log, log1m"),
        ("b=0.1..x", "b=0.1..x: 'x' is not a number"),
        ("b=0.1..", "b=0.1..: '' is not a number"),
        ("b=", "b=: '' is not a number"),
        ("b=1,", "b=1,: '' is not a number"),
        ("b=1,nan", "a value is not finite, expected numbers"),
        ("b=1..inf", "an end of the range is not finite, expected numbers"),
        ("b=1,2,1", "b=1,2,1: a value comes twice, expected different values"),
        ("b=1,2:log", "values have no scale, expected name=value,value or name=low..high:log"),
        ("b", "b: expected name=low..high, name=low..high:log or name=value,value"),
        ("=1..2", "expected name=low..high"),
        ("2b=1..2", "expected name=low..high"),
        ("warmup=0..2", "warmup=0..2: warmup is a fraction, expected within"),
        ("final=-1,0", "final is a fraction, expected within"),
        ("learning_rate=0..1", "learning_rate starts at 0, expected > 0"),
        ("clip_norm=0,1", "clip_norm starts at 0, expected > 0"),
    ],
)
def test_errors_are_one_sentence(text, message):
    with pytest.raises(ValueError) as info:  # noqa: PT011
        parse_axis(text)
    said = str(info.value)
    assert said.startswith("fnn compare: --tune ")
    assert message in said
    assert "\n" not in said


def test_no_name_twice():
    check_names(axes_of(f"{RATE} b1=0.9 b2=0..0.9"))
    with pytest.raises(ValueError, match=r"b1=0\.8: b1 is already tuned by b1=0\.9, expected each"):
        check_names(axes_of("b1=0.9 b1=0.8"))
    with pytest.raises(ValueError, match="already tuned"):
        points([Axis("b", values=(1.0,)), Axis("b", values=(2.0,))])


def test_names_that_a_rule_does_not_take():
    axes = axes_of(f"b2=0.9 {RATE} warmup=0,0.1")
    check_taken(axes, "adam", ["b1", "b2", "eps"])
    with pytest.raises(
        ValueError,
        match=r"b2=0\.9: sgd does not take b2, expected one of: learning_rate, clip_norm",
    ):
        check_taken(axes, "sgd", [])
    with pytest.raises(ValueError, match="did you mean weight_decay"):
        check_taken([Axis("weigth_decay", values=(0.1,))], "adamw", ["weight_decay", "b1"])
    assert "stable" in RESERVED


# --- grid ----------------------------------------------------------------------------------------


def test_grid_of_one_range():
    rates = [p["learning_rate"] for p in points(axes_of("learning_rate=1e-5..1e2:log"), 36)]
    np.testing.assert_allclose(rates, np.geomspace(1e-5, 1e2, 36), rtol=1e-5)
    assert rates[0] == 1e-5
    assert rates[-1] == 1e2
    assert rates == [float(f"{r:g}") for r in rates]  # what is printed is what is run
    assert [p["b"] for p in points([Axis("b", 0, 1)], 5)] == [0, 0.25, 0.5, 0.75, 1]
    assert [p["b"] for p in points([Axis("b", 0.9, 0.9999, "log1m")], 4)] == [
        0.9,
        0.99,
        0.999,
        0.9999,
    ]
    assert points([Axis("b", 0.01, 1, "log")], 1) == [{"b": 0.1}]


def test_grid_of_many_axes():
    axes = axes_of("b1=0.9,0.95 learning_rate=0.01..1:log weight_decay=0..0.1")
    got = points(axes, 18)
    expected = itertools.product((0.9, 0.95), (0.01, 0.1, 1), (0, 0.05, 0.1))
    assert [tuple(p.values()) for p in got] == list(expected)
    assert list(got[0]) == ["b1", "learning_rate", "weight_decay"]
    listed = axes_of("b1=0.9,0.95 b2=0.99")
    assert (
        points(listed) == points(listed, 2) == [{"b1": 0.9, "b2": 0.99}, {"b1": 0.95, "b2": 0.99}]
    )
    assert points([]) == points([], 1) == [{}]


@pytest.mark.parametrize(
    ("text", "trials", "expected"),
    [
        (
            "a=0..1 b=0..1",
            10,
            "trials is 10, expected 4, 9, 16, 25, ... for a grid of a=0..1 b=0..1",
        ),
        (
            "a=0..1 b=1,2,3",
            10,
            "expected a multiple of 3 for a grid of a=0..1 b=1,2,3; how='sobol'",
        ),
        ("b=1,2,3", 10, "trials is 10, expected 3 for a grid of b=1,2,3"),
        ("a=0..1 b=1,2,3", 2, "trials is 2, expected a multiple of 3"),
        ("a=0..1", None, "trials is None, expected a number of trials for the range a=0..1"),
        ("a=0..1", 0, "trials is 0, expected at least 1"),
    ],
)
def test_a_grid_has_exactly_the_trials(text, trials, expected):
    with pytest.raises(ValueError) as info:  # noqa: PT011
        points(axes_of(text), trials)
    assert expected in str(info.value)


def test_a_large_cube_is_found():
    """27 ** (1 / 3) is 3 and a bit less in floating point."""
    axes = [Axis(name, 0, 1) for name in "abc"]
    for n in (2, 3, 5, 7):
        assert len(points(axes, n**3)) == n**3


# --- Sobol ---------------------------------------------------------------------------------------


def test_sobol_is_scipys_on_each_scale():
    axes = axes_of(f"{RATE} b2=0.9..0.9999:log1m weight_decay=-1..1")
    unit = qmc.Sobol(3, seed=np.random.default_rng(7)).random_base2(4)
    expected = np.stack(
        [10 ** (3 * unit[:, 0] - 3), 1 - 10 ** (-1 - 3 * unit[:, 1]), 2 * unit[:, 2] - 1], 1
    )
    got = points(axes, 16, "sobol", seed=7)
    np.testing.assert_allclose([list(p.values()) for p in got], expected, rtol=1e-5)


def test_a_larger_search_begins_with_a_smaller_one():
    axes = axes_of(f"{RATE} b1=0,0.9")
    many = points(axes, 40, "sobol")
    assert points(axes, 11, "sobol") == many[:11]
    assert points(axes, 1, "sobol") == many[:1]
    assert len(many) == 40
    assert points(axes, 40, "sobol", seed=1) != many
    assert points(axes, 40, "sobol") == many


def test_sobol_points_are_spread_and_short():
    axes = axes_of(f"{RATE} b1=0,0.5,0.8,0.9 final=0.5 b2=0.9..0.9999:log1m")
    got = points(axes, 64, "sobol")
    decades = np.floor(np.log10([p["learning_rate"] for p in got]) + 3)
    np.testing.assert_allclose(np.bincount(decades.astype(int)), 64 / 3, atol=2)
    assert np.unique([p["b1"] for p in got], return_counts=True)[1].tolist() == [16] * 4
    assert {p["final"] for p in got} == {0.5}
    for point in got:
        assert float(f"{point['learning_rate']:g}") == point["learning_rate"]
        assert len(point_text({"b2": point["b2"]})) <= len("b2=0.999123456")
        for part in point_text(point).split():
            (value,) = parse_axis(part).values
            assert value == point[part.split("=")[0]]
        assert 0.9 <= point["b2"] <= 0.9999


def test_points_say_what_is_wrong():
    with pytest.raises(ValueError, match="how is 'random', expected 'grid' or 'sobol'"):
        points([Axis("a", 0, 1)], 3, "random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trials is None, expected a number of trials for Sobol"):
        points([Axis("a", 0, 1)], how="sobol")
    with pytest.raises(ValueError, match="axes is empty, expected at least one axis"):
        points([], 3, "sobol")


# --- edges ---------------------------------------------------------------------------------------


def test_edges_of_a_grid():
    axes = axes_of(f"{RATE} b1=0.8,0.9,0.95 eps=1 b2=0.9..0.9999:log1m")
    grid = points(axes, 3 * 36**2)
    for point in grid:
        expected = [
            name
            for name, ends in {
                "learning_rate": (0.001, 1),
                "b1": (0.8, 0.95),
                "b2": (0.9, 0.9999),
            }.items()
            if point[name] in ends
        ]
        assert edge(axes, point) == expected


def test_edges_of_sobol_points_are_five_percent_of_the_scale():
    axes = [Axis("learning_rate", 1e-5, 1, "log")]
    at = {10**-4.8: True, 10**-4.7: False, 10**-0.3: False, 10**-0.2: True}
    for rate, near in at.items():
        assert edge(axes, {"learning_rate": rate}, "sobol") == (["learning_rate"] if near else [])
    assert edge(axes, {"learning_rate": 10**-4.8}) == []
    b2 = [Axis("b2", 0.9, 0.9999, "log1m")]
    assert edge(b2, {"b2": 0.9998}, "sobol") == []
    assert edge(b2, {"b2": 0.99988}, "sobol") == ["b2"]


def test_nothing_lies_beyond_some_edges():
    axes = axes_of("weight_decay=0..0.1 warmup=0,0.1 final=0,1 stable=0.5..1 momentum=0..1")
    none = {"weight_decay": 0.0, "warmup": 0.0, "final": 1.0, "stable": 1.0, "momentum": 0.0}
    assert edge(axes, none) == []
    some = {"weight_decay": 0.1, "warmup": 0.1, "final": 0.0, "stable": 0.5, "momentum": 1.0}
    assert edge(axes, some) == ["weight_decay", "warmup", "stable", "momentum"]


def test_a_point_as_text():
    assert point_text({"learning_rate": 0.01, "b2": 0.999123456}) == (
        "learning_rate=0.01 b2=0.999123456"
    )
    assert point_text({}) == ""
    assert math.isclose(Axis("x", 1, 100, "log").at(0.5), 10)
