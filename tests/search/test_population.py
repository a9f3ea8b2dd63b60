import re
import signal
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fnn
from fnn._base import locked
from fnn.search import Population, population, read_population
from tests.nets import KEY, linear_run

KEYS = jax.random.split(KEY, 3)
RATES = [0.1, 0.2, 0.3, 0.4]
GRID = {"hidden": [(2,), (3, 3)], "rate": RATES}


def tiny(key, rate, hidden=(2,)):
    """Quick to compile; each number depends on the key, the rate and the sizes.

    No product is added to anything, which XLA may round once or twice.
    """
    x = jax.random.uniform(key, (4,))
    for size in hidden:
        x = jnp.sqrt(jnp.maximum(x, rate) * size)
    return {"loss": x.sum(), "parts": {"x": x, "size": jnp.asarray(sum(hidden), jnp.int32)}}


@pytest.fixture
def runs(monkeypatch):
    """The number of members of each piece that ran."""
    sizes, whole = [], fnn.search._sweeping._run

    def noted(todo, at, rows, width):
        sizes.append(rows.size)
        return whole(todo, at, rows, width)

    monkeypatch.setattr("fnn.search._sweeping._run", noted)
    return sizes


def quiet(run, *args, **options):
    return population(run, *args, progress=False, **options)


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [None, 1, 3])
def test_a_population_is_the_sweeps_of_its_programs_bit_for_bit(width):
    """On eight devices, with pieces that do not divide."""
    found = quiet(tiny, KEYS, GRID, width=width, piece=5)
    assert found["loss"].shape == (3, 2, 4)
    assert found["parts"]["x"].shape == (3, 2, 4, 4)
    assert found.axes == {"key": [0, 1, 2], **GRID}
    assert found.done.all()
    for at, hidden in enumerate(GRID["hidden"]):
        swept = fnn.sweep(
            lambda key, rate, hidden=hidden: tiny(key, rate, hidden),
            KEYS,
            {"rate": RATES},
            width=width,
        )
        chex.assert_trees_all_equal(jax.tree.map(lambda a, at=at: a[:, at], found.values), swept)


def test_points_of_a_population_are_those_of_its_grid():
    whole = quiet(tiny, KEYS, GRID)
    points = [whole.points[i] for i in (6, 1, 3)]
    found = quiet(tiny, KEYS, points=points)
    assert found.axes == {"key": [0, 1, 2], "point": [0, 1, 2]}
    flat = jax.tree.map(lambda a: a.reshape(3, 8, *a.shape[3:])[:, [6, 1, 3]], whole.values)
    chex.assert_trees_all_equal(found.values, flat)


def test_other_runs():
    """Keys alone, old keys, one leaf, a tuple, several numbers in a point, an option with a name."""
    alone = quiet(jax.random.uniform, KEYS)
    np.testing.assert_array_equal(alone.values, jax.vmap(jax.random.uniform)(KEYS))
    old = quiet(jax.random.uniform, jax.random.key_data(KEYS))
    np.testing.assert_array_equal(old.values, alone.values)
    pair = quiet(
        lambda key, **rates: (rates["a"], rates["b"].sum()),
        KEYS,
        points={"a": [1, 2], "b": [np.ones(2), np.zeros(2)]},
    )
    np.testing.assert_array_equal(pair[0], [[1, 2]] * 3)
    np.testing.assert_array_equal(pair[1], [[2, 0]] * 3)
    half = quiet(lambda key: jnp.bfloat16(1.5), KEYS)
    assert half.values.dtype == jnp.bfloat16


def test_one_program_for_each_structure_whatever_the_pieces():
    """Traced twice to see that it is pure, and once to compile; later once, to see that it is the same."""
    for piece in (2, 12):
        traces = []

        def counted(key, rate, hidden, traces=traces):
            traces.append(hidden)
            return rate * len(hidden)

        quiet(counted, KEYS, GRID, piece=piece)
        assert sorted(traces) == [(2,)] * 3 + [(3, 3)] * 3
        quiet(counted, KEYS, GRID | {"rate": [0.5, 0.6, 0.7, 0.8]}, piece=piece)
        assert len(traces) == 8


def test_pieces_are_even_whole_groups_and_at_most_32_of_a_program(runs):
    def one(key, x):
        return x

    for members, width, pieces in [
        (7, None, [7]),
        (20, None, [8, 8, 4]),
        (8 * 33, None, [16] * 16 + [8]),
        (100, 2, [16] * 6 + [4]),
        (9, 100, [9]),
    ]:
        runs.clear()
        quiet(one, KEYS[:1], {"x": np.arange(members)}, width=width)
        assert runs == pieces


def test_on_an_accelerator_a_piece_is_what_fits_side_by_side(monkeypatch, runs):
    def one(key, x):
        return jnp.sort(jnp.cos(jnp.arange(65536.0) + x))[
            ::4096
        ]  # 0.26 MB, which no compiler saves

    xs = np.arange(64.0)
    alone = quiet(one, KEYS[:1], {"x": xs}).values
    for file in ("fnn.training._sweep", "fnn.search._sweeping"):
        monkeypatch.setattr(f"{file}.side_by_side", lambda device: True)
    for limit, expected in [(1e9, [64]), (1.48e6, [32, 32])]:
        runs.clear()
        for file in ("_sweep", "_programs"):
            monkeypatch.setattr(
                f"fnn.training.{file}.memory_limit", lambda devices, limit=limit: limit
            )
        found = quiet(one, KEYS[:1], {"x": xs})
        assert runs == expected
        np.testing.assert_array_equal(found.values, alone)


# --- replay ---------------------------------------------------------------------------------------


def test_replay_is_the_member_with_all_that_was_not_kept_bit_for_bit():
    """Dropout and clipping are on."""

    def run(key, learning_rate):
        ts, history = linear_run(key, learning_rate, epochs=2)
        return {"last": history["loss"][-1, -1], "params": ts.params, "history": history}

    def keep(result):
        return {"last": result["last"], "w": result["params"]["w"]}

    found = quiet(run, KEYS, {"learning_rate": [0.1, 0.5]}, keep=keep)
    assert found.values.keys() == {"last", "w"}
    for i, j in np.ndindex(3, 2):
        again = found.replay((i, j))
        chex.assert_trees_all_equal(again, jax.jit(run)(KEYS[i], jnp.float32([0.1, 0.5][j])))
        np.testing.assert_array_equal(found["last"][i, j], again["last"])
        np.testing.assert_array_equal(found["w"][i, j], again["params"]["w"])
        assert again["history"]["loss"].shape == (2, 7)
    assert len(np.unique(found["last"])) == 6


def test_replay_of_several_programs():
    found = quiet(tiny, KEYS, GRID, keep=lambda result: result["loss"])
    for place in ((2, 1, 0), (0, 0, 3)):
        again = found.replay(place)
        chex.assert_trees_all_equal(found.replay(found.number(place)), again)
        hidden, rate = GRID["hidden"][place[1]], RATES[place[2]]
        chex.assert_trees_all_equal(
            again, jax.jit(tiny, static_argnums=2)(KEYS[place[0]], rate, hidden)
        )
        np.testing.assert_array_equal(found.values[place], again["loss"])


@pytest.mark.parametrize("member", [24, -1, (0, 0), (0, 2, 0), (-1, 0, 0)])
def test_a_member_that_there_is_not(member):
    found = made_up(np.zeros((3, 2, 4)), {"a": [1, 2], "b": [1, 2, 3, 4]})
    with pytest.raises(
        IndexError, match=r"replay: member is .*, expected a number below 24, or a place on"
    ):
        found.replay(member)


# --- best, the table, the line --------------------------------------------------------------------


def made_up(loss, axes, done=None, **more):
    points = [dict(zip(axes, at, strict=True)) for at in np.ndindex(*map(len, axes.values()))]
    points = [{n: axes[n][i] for n, i in point.items()} for point in points]
    done = np.ones(loss.shape, bool) if done is None else done
    return Population({"loss": loss, **more}, {"key": [0, 1, 2], **axes}, points, done)


def test_best_is_the_point_with_the_best_mean_and_its_interval_by_student():
    loss = np.array([[3.0, 1.0, 2.0, 5.0], [3.5, 2.5, 1.0, 5.0], [4.0, 1.5, 2.5, 5.5]], np.float32)
    found = made_up(
        loss.reshape(3, 2, 2),
        {"rule": ["sgd", "adam"], "rate": [0.1, 0.2]},
        accuracy=-loss.reshape(3, 2, 2),
    )
    best = found.best("loss")
    assert best.point == {"rule": "sgd", "rate": 0.2}
    values = loss[:, 1].astype(float)
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    np.testing.assert_allclose(
        [best.mean, best.low, best.high], [values.mean(), low, high], rtol=1e-12
    )
    np.testing.assert_array_equal(best.values, values)
    assert best.members == [1, 5, 9]
    assert found.best("accuracy").point == best.point
    assert found.best("loss", "max").point == {"rule": "adam", "rate": 0.2}
    assert np.isnan(made_up(loss[:1], {"rate": RATES}).best("loss").low)


def test_a_point_with_nan_or_a_run_that_is_missing_is_never_the_best():
    loss = np.array([[1.0, 2.0, np.inf, 0.5], [np.nan, 2.0, -np.inf, 0.5]])
    done = np.array([[True] * 4, [True, True, True, False]])
    assert made_up(loss, {"rate": RATES}, done).best("loss").point == {"rate": 0.2}
    assert made_up(loss, {"rate": RATES}, done).best("loss", "max").point == {"rate": 0.2}
    with pytest.raises(
        ValueError, match="best: loss is NaN in a run of every point, or has not run"
    ):
        made_up(loss * np.nan, {"rate": RATES}).best("loss")


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        (
            "accuracy",
            None,
            r"best: 'accuracy' is no scalar of the runs, expected one of \['loss'\]",
        ),
        ("history", None, "best: 'history' is no scalar of the runs"),
        ("loss", "least", "best: mode is 'least', expected 'min' or 'max'"),
    ],
)
def test_errors_of_best(name, mode, message):
    with pytest.raises(ValueError, match=message):
        made_up(np.zeros((3, 4)), {"rate": RATES}, history=np.zeros((3, 4, 5))).best(name, mode)


def test_a_table_of_the_runs_that_are_done():
    pytest.importorskip("pandas")
    done = np.array([[True, False, True, True]] * 3)
    loss = np.arange(12.0).reshape(3, 4)
    table = made_up(
        loss, {"rate": RATES}, done, rate=loss, half=jnp.bfloat16(loss), history=np.zeros((3, 4, 5))
    ).to_dataframe()
    assert list(table) == ["member", "key", "rate", "half", "loss", "returned/rate"]
    assert list(table["member"]) == [0, 2, 3, 4, 6, 7, 8, 10, 11]
    assert list(table["key"]) == [0] * 3 + [1] * 3 + [2] * 3
    assert list(table["rate"]) == [0.1, 0.3, 0.4] * 3
    for name in ("loss", "half", "returned/rate"):
        assert list(table[name]) == list(table["member"])


def test_a_table_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_dataframe: pandas is missing: pip install pandas"):
        made_up(np.zeros((3, 4)), {"rate": RATES}).to_dataframe()


def test_a_population_says_what_it_is_in_one_line():
    done = np.ones((3, 4), bool)
    done.ravel()[[3, 4, 5, 8]] = False
    found = made_up(np.zeros((3, 4)), {"rate": RATES}, done)
    assert found.missing == [3, 4, 5, 8]
    assert repr(found) == (
        "Population(axes: key 3, rate 4; 8 of 12 runs done; missing: members 3 to 5, 8; values: loss)"
    )


# --- in a folder ----------------------------------------------------------------------------------


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_population_goes_on_with_what_is_missing_and_ends_in_the_same_bits(
    tmp_path, monkeypatch, runs
):
    whole = quiet(tiny, KEYS, GRID)
    runs.clear()
    save = fnn.search._store.Store.save

    def broken(store, start, stop, leaves):
        if start == 15:
            raise OSError("no space left")
        save(store, start, stop, leaves)

    with monkeypatch.context() as patch:
        patch.setattr("fnn.search._store.Store.save", broken)
        with pytest.raises(OSError, match="no space left"):
            quiet(tiny, KEYS, GRID, folder=tmp_path, piece=3)
    assert files(tmp_path) == [
        "population.json",
        *(f"runs_{i:08}_{i + 3:08}.safetensors" for i in (0, 3, 6, 9, 12)),
    ]
    runs.clear()
    found = quiet(tiny, KEYS, GRID, folder=tmp_path, piece=4)
    assert runs == [4, 4, 1]
    assert found.done.all()
    chex.assert_trees_all_equal(found.values, whole.values)
    runs.clear()
    again = quiet(tiny, KEYS, GRID, folder=tmp_path)
    assert runs == []
    chex.assert_trees_all_equal(again.values, whole.values)
    chex.assert_trees_all_equal(again.replay(5), whole.replay(5))


def test_a_folder_is_read_without_the_run(tmp_path):
    grid = {"act": [jnp.sin, jnp.cos], "hidden": [(2,), (3, 3)], "rule": ["a", "b"], "rate": RATES}

    def run(key, rate, hidden, act, rule):
        return tiny(key, act(rate), hidden)

    found = quiet(run, KEYS, grid, folder=tmp_path)
    read = read_population(tmp_path)
    chex.assert_trees_all_equal(read.values, found.values)
    assert list(read.axes) == ["key", "act", "hidden", "rule", "rate"]
    assert read.axes["hidden"] == grid["hidden"]
    assert [name.split(".")[-1] for name in read.axes["act"]] == ["sin", "cos"]
    assert [p | {"act": 0} for p in read.points] == [p | {"act": 0} for p in found.points]
    assert read.best("loss").members == found.best("loss").members
    assert read.unfinished == []
    with pytest.raises(
        ValueError, match="replay: this population was read from files, which hold no run"
    ):
        read.replay(0)


def test_points_in_a_folder(tmp_path):
    points = [
        {"rate": 0.1, "hidden": (2,)},
        {"rate": 0.2, "hidden": (3,)},
        {"rate": 0.3, "hidden": (2,)},
    ]
    found = quiet(tiny, KEYS, points=points, folder=tmp_path, keep=lambda result: result["loss"])
    read = read_population(tmp_path)
    assert read.points == points
    np.testing.assert_array_equal(read.values, found.values)


def test_a_damaged_piece_is_said_and_made_again(tmp_path, runs):
    whole = quiet(tiny, KEYS, GRID, folder=tmp_path, piece=5)
    path = tmp_path / "runs_00000005_00000010.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="population: .*runs_00000005_00000010.* is damaged"):
        read = read_population(tmp_path)
    assert read.missing == [5, 6, 7, 8, 9] or len(read.missing) == 5
    assert np.isnan(read["loss"].ravel()[read.missing]).all()
    assert (read["parts"]["size"].ravel()[read.missing] == 0).all()
    runs.clear()
    with pytest.warns(UserWarning, match="is damaged"):
        found = quiet(tiny, KEYS, GRID, folder=tmp_path, piece=2)
    assert runs == [2, 2, 1]
    assert not path.exists()
    chex.assert_trees_all_equal(found.values, whole.values)
    chex.assert_trees_all_equal(read_population(tmp_path).values, whole.values)


def shifted(by):
    inner = jax.jit(lambda x: x + by)
    return lambda key, rate, hidden: inner(tiny(key, rate, hidden)["loss"])


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (None, {"keys": KEYS[:2]}, "3 keys where 2 were given"),
        (None, {"keys": jax.random.split(jax.random.key(1), 3)}, "as many other keys"),
        (None, {"grid": GRID | {"rate": [0.1, 0.2]}}, r"rate \[0.1, 0.2, 0.3, 0.4\] where \[0.1, 0.2\] was given"),
        (None, {"grid": {"rate": RATES, "hidden": GRID["hidden"]}}, r"the axes \['hidden', 'rate'\] where \['rate', 'hidden'\]"),
        (None, {"grid": {"hidden": [(2,), (3, 3)]}, "run": lambda key, hidden: tiny(key, 1.0, hidden)["loss"]}, r"rate \[0.1, 0.2, 0.3, 0.4\] where nothing was given"),
        (None, {"grid": None, "points": {"rate": [0.1], "hidden": [(2,)]}}, r"hidden \[\[2\], \[3, 3\]\] where \[\[2\]\] was given"),
        (shifted(np.float32([1, 2])), {}, r"a run that computes something else at {'hidden': \[2\]}"),
        (shifted(np.float32([1, 3])), {}, ""),
        (None, {"keep": lambda loss: {"sum": loss.sum()}}, r" float32\[2\] kept where sum float32\[\] is kept now"),
    ],
)  # fmt: skip
def test_another_population_in_the_folder_is_refused_with_the_difference(
    tmp_path, run, options, message
):
    given = {"run": shifted(np.float32([1, 3])), "keys": KEYS, "grid": GRID} | options
    quiet(shifted(np.float32([1, 3])), KEYS, GRID, folder=tmp_path, part=(0, 24))
    given["run"] = run or given["run"]
    if not message:  # another function that computes the same is the same
        assert quiet(folder=tmp_path, **given).done.all()
        return
    with pytest.raises(
        ValueError, match=f"population: .* has another population, with .*{message}.*; use another"
    ):
        quiet(folder=tmp_path, **given)


def test_the_same_numbers_in_another_form_are_the_same_population(tmp_path, runs):
    whole = quiet(tiny, KEYS, {"rate": RATES}, folder=tmp_path)
    runs.clear()
    for rates in (np.float32(RATES), jnp.asarray(RATES), np.array(RATES)):
        found = quiet(tiny, KEYS, {"rate": rates}, folder=tmp_path)
        np.testing.assert_array_equal(found["loss"], whole["loss"])
    assert runs == []


def test_a_piece_of_another_population_and_a_folder_of_none(tmp_path):
    quiet(tiny, KEYS, {"rate": RATES}, folder=tmp_path / "a")
    quiet(tiny, KEYS, {"rate": [1.0, 2.0, 3.0, 4.0]}, folder=tmp_path / "b")
    name = next((tmp_path / "a").glob("runs*")).name
    (tmp_path / "a" / name).replace(tmp_path / "b" / name)
    with pytest.raises(ValueError, match=r"population: .* has runs of another population"):
        read_population(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=r"read_population: .* has no population.json"):
        read_population(tmp_path)
    (tmp_path / "a" / "population.json").write_text("{")
    with pytest.raises(ValueError, match=r"read_population: .*population.json cannot be read"):
        read_population(tmp_path / "a")


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5])
def test_parts_together_are_the_population(tmp_path, runs, n):
    whole = quiet(tiny, KEYS, GRID)
    counts = []
    for i in reversed(range(n)):
        part = quiet(tiny, KEYS, GRID, folder=tmp_path, part=(i, n))
        counts.append(int(part.done.sum()))
        np.testing.assert_array_equal(part["loss"][part.done], whole["loss"][part.done])
        assert np.isnan(part["loss"][~part.done]).all()
        read = read_population(tmp_path)
        assert read.done.sum() == sum(counts)
        assert read.unfinished == [(j, n) for j in range(i)]
        assert len(read.missing) == 24 - sum(counts)
    assert sum(counts) == 24
    assert max(counts) - min(counts) <= 1
    runs.clear()
    for found in (read_population(tmp_path), quiet(tiny, KEYS, GRID, folder=tmp_path)):
        chex.assert_trees_all_equal(found.values, whole.values)
    assert runs == []


def test_a_part_is_a_share_of_the_programs_in_order():
    found = quiet(tiny, KEYS, GRID, part=(0, 2))
    assert found.done[:, 0].all()
    assert not found.done[:, 1].any()


def test_a_reader_names_the_parts_that_are_missing(tmp_path):
    quiet(tiny, KEYS, GRID, folder=tmp_path, part=(1, 3))
    said = repr(read_population(tmp_path))
    assert "8 of 24 runs done" in said
    assert "of part (0, 3), (2, 3)" in said


def test_more_parts_than_members():
    found = [quiet(tiny, KEYS[:1], {"rate": [0.1, 0.2]}, part=(i, 3)) for i in range(3)]
    assert [int(part.done.sum()) for part in found] == [0, 1, 1]


def test_the_same_part_twice_at_once_is_refused(tmp_path, runs):
    with locked(tmp_path / ".part_0_of_2.lock", wait=False):
        with pytest.raises(
            RuntimeError,
            match=r"population: part \(0, 2\) in .* is run by another process \(process \d+",
        ):
            quiet(tiny, KEYS, GRID, folder=tmp_path, part=(0, 2))
        assert not runs
        assert quiet(tiny, KEYS, GRID, folder=tmp_path, part=(1, 2)).done.sum() == 12
    assert quiet(tiny, KEYS, GRID, folder=tmp_path, part=(0, 2)).done.sum() == 12


# --- stopping and saying --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_piece_and_what_is_done_is_returned(
    tmp_path, monkeypatch, number
):
    once = fnn.search._sweeping._run

    def with_signal(*args):
        signal.raise_signal(number)
        return once(*args)

    with monkeypatch.context() as patch:
        patch.setattr("fnn.search._sweeping._run", with_signal)
        found = quiet(tiny, KEYS, GRID, folder=tmp_path, piece=3)
    assert found.done.sum() == 3
    assert read_population(tmp_path).missing == found.missing
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


def test_lines_where_there_is_no_terminal(tmp_path, capsys, monkeypatch):
    population(tiny, KEYS, GRID, part=(0, 2), folder=tmp_path)
    assert capsys.readouterr().err.splitlines()[-1] == "run 12/12  hidden (2,)"
    monkeypatch.setattr("fnn._base._terminal.LINE_SECONDS", 0.0)
    population(tiny, KEYS, GRID, piece=6, folder=tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["run 18/24", "hidden (3, 3)"],
        ["run 24/24", "hidden (3, 3)"],
    ]
    assert re.fullmatch(r"0:00:\d\d left", lines[0].split("  ")[2])


# --- bad input ------------------------------------------------------------------------------------


def changing():
    calls = []

    def run(key):
        calls.append(1)
        return jax.random.normal(key) * len(calls)

    return run


def leaking():
    traced = []

    def run(key):
        traced.append(key)
        return jax.random.normal(traced[0])

    return run


def sized(key, hidden):
    return jax.random.normal(key, (len(hidden),))


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (changing(), {}, "population: run is not a pure function: traced twice, it gave two different programs"),
        (leaking(), {}, "population: run is not a pure function: it uses a traced value of another call"),
        (3, {}, "population: run is a int, expected a function"),
        (tiny, {"keep": 3, "grid": {"rate": RATES}}, "population: keep is a int, expected a function"),
        (tiny, {}, "population: run needs 'rate', expected a value for it in the grid, the points or as its default"),
        (tiny, {"grid": {"rate": RATES, "hiden": [1]}}, r"population: run has no argument 'hiden' to vary, expected some of \['rate', 'hidden'\]"),
        (tiny, {"grid": {"rate": RATES, "key": [1]}}, "population: run has no argument 'key' to vary"),
        (lambda key, **options: 1.0, {"grid": {"key": [1]}}, "population: run has no argument 'key' to vary"),
        (lambda: 1.0, {}, r"population: run takes \[\], expected a key first"),
        (lambda *, key: 1.0, {}, r"population: run takes \['key'\], expected a key first"),
        (sized, {"grid": {"hidden": [(2,), (3, 3)]}}, r"returns  ?float32\[1\] with hidden=\(2,\) and float32\[2\] with hidden=\(3, 3\), expected the same shapes"),
        (lambda key, flag: {"a": 1.0} if flag == "x" else {"b": 1.0}, {"grid": {"flag": ["x", "y"]}}, r"returns a float32\[\] with flag='x' and b float32\[\] with flag='y'"),
        (lambda key: {"name": "adam"}, {}, "population: the run returns a str as name, expected numbers: leave it out by keep"),
        (lambda key: key, {}, "population: the run returns a array of key<fry>, expected numbers"),
        (lambda key: None, {}, "population: the run returns None, expected arrays"),
        (lambda key, size: jnp.ones(size), {"grid": {"size": [1, 2]}}, r"population: run needs the value of its key or of one of \['size'\] while it is traced; .* fnn.search.Static"),
        (lambda key, size: fnn.dense_init(key, size, 2), {"grid": {"size": [1, 2]}}, "population: run needs the value .* fnn.search.Static"),
        (tiny, {"grid": {"rate": RATES}, "part": (2, 2)}, r"population: part is \(2, 2\), expected i from 0 to 1"),
        (tiny, {"grid": {"rate": RATES}, "part": (-1, 2)}, "population: part is -1, expected at least 0"),
        (tiny, {"grid": {"rate": RATES}, "part": (0, 0)}, "population: part is 0, expected at least 1"),
        (tiny, {"grid": {"rate": RATES}, "part": 1}, r"population: part is 1, expected \(i, n\), the i-th of n shares"),
        (tiny, {"grid": {"rate": RATES}, "width": 0}, "population: width is 0, expected at least 1"),
        (tiny, {"grid": {"rate": RATES}, "piece": 0.5}, "population: piece is 0.5, expected a whole number"),
        (tiny, {"grid": {"rate": RATES}, "keys": KEYS[:0]}, r"population: keys have shape \(0,\)"),
    ],
)  # fmt: skip
def test_errors(run, options, message, runs):
    with pytest.raises((TypeError, ValueError), match=message):
        quiet(run, **({"keys": KEYS} | options))
    assert not runs


def test_a_closure_that_was_changed_between_two_calls_counts():
    """The program that was compiled for the old one is not used."""
    scale = [2.0]

    def run(key):
        return jnp.asarray(scale[0])

    assert quiet(run, KEYS).values.tolist() == [2.0] * 3
    scale[0] = 3.0
    assert quiet(run, KEYS).values.tolist() == [3.0] * 3


def test_too_little_memory_is_said_before_anything_runs(monkeypatch, runs):
    with pytest.raises(
        MemoryError,
        match=r"population: what is kept of 3 runs is 4.8e\+04 GB, but the memory is .* keep less",
    ):
        quiet(lambda key: jnp.zeros((4, 1000, 1000, 1000, 1000)), KEYS)
    assert not runs
    for file in ("_sweep", "_programs"):
        monkeypatch.setattr(f"fnn.training.{file}.memory_limit", lambda devices: 2000)
    ran = []

    def run(key):
        jax.debug.callback(lambda: ran.append(1))
        return jax.random.normal(key, (1000,)).sum()

    with pytest.raises(
        MemoryError, match=r"population: the program at width 1 needs .* GB at once, but"
    ):
        quiet(run, KEYS)
    assert not ran


def test_with_compiling_switched_off():
    with jax.disable_jit():
        found = quiet(tiny, KEYS, GRID)
    chex.assert_trees_all_close(found.values, quiet(tiny, KEYS, GRID).values, rtol=1e-5)
