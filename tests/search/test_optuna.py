import contextlib
import math
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.search import Range, Static, _sweeping, run_study

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)
KEYS = jax.random.split(jax.random.key(0), 3)
SPACE = {
    "x": Range(-1.0, 1.0),
    "rate": Range(1e-3, 1.0, "log"),
    "decay": Range(0.9, 0.999, "log1m"),
}


def bowl(key, x, rate, decay):
    """The closed form of the tests: a bowl, and a seed's own height."""
    noise = jax.random.uniform(key)
    return {"loss": x**2 + jnp.log10(rate) ** 2 + 100 * (1 - decay) + noise, "twice": 2 * noise}


def study_of(direction="minimize", sampler=None, **options):
    sampler = sampler or optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(direction=direction, sampler=sampler, **options)


def searched(study, run, space, *, keys=KEYS, batch=4, rounds=2, value="loss", **options):
    return run_study(
        study, run, keys, space,
        batch=batch, rounds=rounds, value=value, progress=False, **options,
    )  # fmt: skip


def square(key, x):
    return {"loss": x**2 + jax.random.uniform(key)}


@contextlib.contextmanager
def compiled():
    """The programs that are compiled meanwhile."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: events.append(event) if "backend_compile" in event else None
    )
    try:
        yield events
    finally:
        jax.monitoring.clear_event_listeners()


def test_a_trial_gets_the_mean_over_the_seeds():
    study = study_of()
    found = searched(study, bowl, SPACE)
    noise = np.array([jax.random.uniform(key) for key in KEYS], np.float64)
    assert [trial.number for trial in study.trials] == found.axes["point"] == list(range(8))
    assert found.axes["key"] == [0, 1, 2]
    for i, trial in enumerate(study.trials):
        x, rate, rest = (trial.params[name] for name in ("x", "rate", "1 - decay"))
        expected = x**2 + np.log10(rate) ** 2 + 100 * rest + noise
        np.testing.assert_allclose(trial.user_attrs["values"], expected, rtol=2e-5)
        np.testing.assert_allclose(trial.value, expected.mean(), rtol=2e-5)
        assert trial.user_attrs["point"] == pytest.approx({"x": x, "rate": rate, "decay": 1 - rest})
        np.testing.assert_array_equal(trial.user_attrs["values"], found["loss"][:, i])
    np.testing.assert_allclose(found["twice"], np.tile(2 * noise[:, None], 8), rtol=1e-6)


def test_the_study_s_best_is_the_population_s():
    for direction, mode in (("minimize", "min"), ("maximize", "max")):
        study = study_of(direction)
        found = searched(study, bowl, SPACE)
        best = found.best("loss", mode)
        assert best.mean == study.best_value
        assert best.point == study.best_trial.user_attrs["point"]
        np.testing.assert_array_equal(best.values, study.best_trial.user_attrs["values"])


def test_ranges_are_drawn_on_their_scales():
    study = study_of()
    searched(study, bowl, SPACE, batch=64, rounds=1)
    points = [trial.user_attrs["point"] for trial in study.trials]
    for name, choice in SPACE.items():
        drawn = np.array([point[name] for point in points])
        assert choice.low <= drawn.min() < drawn.max() <= choice.high
        below = (drawn < choice.at(0.5)).mean()  # half of them below the middle of the scale
        assert 0.3 < below < 0.7


def test_tpe_comes_closer_than_chance():
    space = {"x": Range(-10.0, 10.0), "kind": ["far", "near"]}

    def run(key, x, kind):
        return {"loss": (x - 3) ** 2 + (5.0 if kind == "far" else 0.0) + jax.random.uniform(key)}

    tpe = optuna.samplers.TPESampler(
        seed=0, multivariate=True, constant_liar=True, n_startup_trials=8
    )
    by_tpe = searched(study_of(sampler=tpe), run, space, batch=8, rounds=4)
    last = [by_tpe.points[i] for i in range(24, 32)]
    assert np.mean([abs(p["x"] - 3) for p in last]) < 3  # 5.45 by chance
    assert sum(p["kind"] == "near" for p in last) >= 6
    assert len({p["x"] for p in last}) == 8


def test_runs_that_diverge_are_the_worst():
    def run(key, x):
        return jnp.where(x < 0, jnp.nan, x + jax.random.uniform(key))

    for direction, worst in (("minimize", math.inf), ("maximize", -math.inf)):
        study = study_of(direction)
        found = searched(study, run, {"x": Range(-1.0, 1.0)}, batch=8, rounds=2, value="value")
        bad = [trial for trial in study.trials if trial.params["x"] < 0]
        assert 0 < len(bad) < 16
        assert {trial.value for trial in bad} == {worst}
        assert np.isnan(bad[0].user_attrs["values"]).all()
        assert math.isfinite(study.best_value)
        mode = "min" if direction == "minimize" else "max"
        assert found.best("value", mode).mean == study.best_value


def test_one_seed_that_diverges_makes_the_worst():
    def run(key, x):
        return x + jnp.where(
            jax.random.key_data(key)[1] == jax.random.key_data(KEYS[1])[1], jnp.inf, 0
        )

    study = study_of("maximize")
    searched(study, run, {"x": Range(-1.0, 1.0)}, rounds=1, value="value")
    assert {trial.value for trial in study.trials} == {-math.inf}


def test_what_shapes_the_program_is_one_program_each():
    traced = []

    def run(key, size, scale, kind):
        traced.append((size, kind))
        draws = kind(key, (size,))
        return {"loss": scale * draws.sum(), "size": jnp.int32(size)}

    space = {
        "size": Static(2, 5),
        "scale": [0, 0.5, 2],
        "kind": [jax.random.uniform, jax.random.exponential],
    }
    study = study_of()
    with compiled() as once:
        searched(study, run, space, batch=8, rounds=3)
    assert set(traced) == {(size, kind) for size in (2, 5) for kind in space["kind"]}
    with compiled() as twice:
        found = searched(study, run, space, batch=8, rounds=6)
    assert len(once) >= 4
    assert not twice
    for i, point in enumerate(found.points):
        for key in range(3):
            draws = np.asarray(point["kind"](KEYS[key], (point["size"],)), np.float64)
            expected = point["scale"] * draws.sum()
            np.testing.assert_allclose(found["loss"][key, i], expected, rtol=1e-5, atol=1e-6)
    assert {trial.params["kind"] for trial in study.trials} == {"uniform", "exponential"}
    assert {trial.params["scale"] for trial in study.trials} == {0, 0.5, 2}


def test_numbers_compile_once():
    def run(key, x, rate, decay):
        return bowl(key, x, rate, decay)

    study = study_of()
    with compiled() as first:
        searched(study, run, SPACE, rounds=1)
    with compiled() as more:
        found = searched(study, run, SPACE, rounds=2)
    assert first
    assert not more
    assert found.axes["point"] == list(range(4, 12))


@pytest.mark.parametrize(("seeds", "width"), [(1, None), (9, None), (17, 4)])
def test_groups_have_one_shape_whatever_is_proposed(seeds, width):
    def run(key, x, power):
        return {"loss": x**power + jax.random.uniform(key)}

    keys = jax.random.split(jax.random.key(1), seeds)
    space = {"x": Range(0.0, 1.0), "power": Static(1, 2)}
    study = study_of()
    counts = []
    for _ in range(6):
        before = len(study.trials)
        with compiled() as events:
            searched(study, run, space, keys=keys, batch=5, rounds=1, width=width)
        new = [trial.params["power"] for trial in study.trials[before:]]
        counts.append((new.count(1), len(events)))
    assert len({ones for ones, _ in counts}) > 2  # else the test could not fail
    seen = next(i for i, (ones, _) in enumerate(counts) if 0 < ones < 5)
    assert sum(events for _, events in counts[seen + 1 :]) == 0


def test_replay_is_the_member():
    def run(key, rate, size):
        draws = jax.random.normal(key, (size,))
        return {"loss": rate * (draws**2).mean(), "draws": draws}

    study = study_of()
    found = searched(
        study,
        run,
        {"rate": Range(0.1, 1.0), "size": Static(2, 3)},
        keep=lambda r: {"loss": r["loss"]},
    )
    assert {*found.values} == {"loss"}
    for member in (0, 5, 11, 23):
        key, point = divmod(member, 8)
        again = found.replay(member)
        assert again["loss"] == found["loss"][key, point]
        np.testing.assert_array_equal(
            again["draws"], jax.random.normal(KEYS[key], (found.points[point]["size"],))
        )


def test_a_point_that_was_enqueued_is_run():
    study = study_of()
    study.enqueue_trial({"x": 0.25, "rate": 0.1, "1 - decay": 0.05})
    found = searched(study, bowl, SPACE, batch=2, rounds=1)
    assert found.points[0] == pytest.approx({"x": 0.25, "rate": 0.1, "decay": 0.95})


def test_a_stored_study_goes_on(tmp_path):
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    space = {"x": Range(0.0, 1.0), "hidden": [(4,), (8, 4)], "rule": [fnn.sgd, fnn.adam]}

    def run(key, x, hidden, rule):
        return {"loss": x * sum(hidden) + jax.random.uniform(key)}

    for sampler in (None, optuna.samplers.TPESampler(seed=1)):
        study = study_of(storage=storage, study_name="s", load_if_exists=True, sampler=sampler)
        found = searched(study, run, space, rounds=1)
    assert found.axes["point"] == [4, 5, 6, 7]
    again = optuna.load_study(study_name="s", storage=storage)
    assert [trial.user_attrs["values"] for trial in again.trials][4:] == found["loss"].T.tolist()
    assert {trial.params["hidden"] for trial in again.trials} <= {"(4,)", "(8, 4)"}
    assert {trial.params["rule"] for trial in again.trials} <= {"sgd", "adam"}
    assert again.trials[4].user_attrs["point"]["hidden"] == again.trials[4].params["hidden"]
    storage.remove_session()
    storage.engine.dispose()  # a connection that is left open is a warning of Python 3.13


WORKER = """
import sys
import jax, optuna
from fnn.search import Range, run_study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

storage = JournalStorage(JournalFileBackend(sys.argv[1]))
study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
keys = jax.random.split(jax.random.key(0), 2)
run = lambda key, x: x**2 + jax.random.uniform(key)
found = run_study(
    study, run, keys, {"x": Range(-1.0, 1.0)}, batch=3, rounds=4, value="value", progress=False
)
print(*found.axes["point"])
"""


@pytest.mark.slow  # two processes start
def test_two_processes_share_a_study(tmp_path):
    path = str(tmp_path / "journal")
    command = [sys.executable, "-c", WORKER, path]
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    numbers = [number for worker in workers for number in worker.communicate()[0].split()]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(map(int, numbers)) == list(range(24))
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(path))
    trials = optuna.load_study(study_name="s", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 24
    noise = trials[0].value - trials[0].params["x"] ** 2
    for trial in trials:
        assert trial.value == pytest.approx(trial.params["x"] ** 2 + noise, rel=1e-5)


# --- what ends early --------------------------------------------------------------------------


def test_a_signal_ends_it_after_a_piece(monkeypatch):
    pieces, run_piece = [], _sweeping._run

    def interrupted(*args):
        pieces.append(1)
        if len(pieces) == 3:  # two pieces a round: 12 runs on 8 devices
            os.kill(os.getpid(), signal.SIGINT)
        return run_piece(*args)

    monkeypatch.setattr(_sweeping, "_run", interrupted)
    study = study_of()
    found = searched(study, square, {"x": Range(0.0, 1.0)}, rounds=5)
    assert len(pieces) == 3
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4 + ["FAIL"] * 4
    assert found.done.shape == (3, 8)
    assert found.done[:, :4].all()
    np.testing.assert_array_equal(found.done[:, 4:].sum(0), 2)  # of three seeds
    assert np.isfinite(found["loss"][found.done]).all()


def test_an_error_leaves_no_trial_running():
    study = study_of()

    def run(key, size):
        return {"loss": jax.random.normal(key, (size,))[0], "all": jnp.zeros(size)}

    with pytest.raises(ValueError, match="expected the same shapes"):
        searched(study, run, {"size": Static(1, 2, 3)}, batch=1, rounds=9)
    states = [trial.state.name for trial in study.trials]
    assert states[-1] == "FAIL"
    assert {*states[:-1]} == {"COMPLETE"}


# --- what is refused, before a point is asked for -----------------------------------------------

X = {"x": Range(0.0, 1.0)}
REFUSED = {
    "no study": (TypeError, "study is a dict, expected", {"study": {}}),
    "two directions": (ValueError, "the study has 2 directions, expected 1", {"study": None}),
    "no batch": (ValueError, "batch", {"batch": 0}),
    "no rounds": (ValueError, "rounds", {"rounds": 0}),
    "half a round": (TypeError, "rounds", {"rounds": 1.5}),
    "no width": (ValueError, "width", {"width": 0}),
    "no space": (TypeError, "space is {}", {"space": {}}),
    "a number alone": (TypeError, "x is 3, expected a list", {"space": {"x": 3}}),
    "no choice": (ValueError, "x has no value", {"space": {"x": []}}),
    "the same twice": (ValueError, "x has the values", {"space": {"x": [1, 1.0]}}),
    "no such value": (ValueError, "'los' is no scalar of the run, expected one of ['loss']", {"value": "los"}),
    "no such argument": (TypeError, "run has no argument 'y'", {"space": {"y": [1, 2]}}),
    "an argument too few": (TypeError, "run needs 'y'", {"run": lambda key, x, y: x}),
    "repeated keys": (ValueError, "key 1 is the same as one before", {"keys": KEYS[jnp.array([0, 0])]}),
    "one key": (ValueError, "keys have shape ()", {"keys": KEYS[0]}),
    "no function": (TypeError, "keep is a int", {"keep": 3}),
    "a size": (TypeError, "fnn.search.Static", {"space": {"x": [1, 2]}, "run": lambda key, x: jnp.zeros(x)[0]}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input(case):
    error, message, changed = REFUSED[case]
    study = optuna.create_study(directions=["minimize"] * (2 if case == "two directions" else 1))
    given = {"study": study, "run": square, "space": X, "keys": KEYS} | changed
    given["study"] = study if given["study"] is None else given["study"]
    with pytest.raises(error) as caught:
        searched(**given)
    assert message in str(caught.value)
    assert str(caught.value).startswith("run_study: ")
    assert not study.trials


def test_two_functions_that_read_alike():
    space = {"rule": [lambda x: x, lambda x: x**2]}
    with pytest.raises(ValueError, match=r"rule has the values .*expected different ones"):
        searched(study_of(), lambda key, rule: rule(1.0), space, value="value")


def test_without_optuna(monkeypatch):
    study = study_of()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"Optuna is missing: pip install 'fnn\[search\]'"
    ):
        searched(study, square, X)
