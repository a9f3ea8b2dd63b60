import gc
import itertools
import os
import re
import signal
import subprocess
import sys
import weakref
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fnn
from fnn.search import Static, SuccessiveHalving, Trainable, Wilcoxon, race
from fnn.training import FirstBad
from tests.nets import KEY, LABELS, X, linear_init, linear_loss_fn

KEYS = jax.random.split(KEY, 2)
RATES = np.geomspace(1e-3, 1.5, 9).astype(np.float32)


# A noisy descent to zero, whose state has a typed key. It compiles in no time.


def init(key, rate):
    start, noise = jax.random.split(key)
    return {"w": jax.random.normal(start, (4,)), "epoch": jnp.int32(0), "noise": noise}


def update(state, key, rate):
    noise = jax.random.normal(jax.random.fold_in(state["noise"], state["epoch"]), (4,))
    w = state["w"] - rate * (2 * state["w"] + noise)
    metrics = {"loss": jnp.sum(jnp.sin(w) ** 2), "largest": {"w": jnp.abs(w).max()}}
    return state | {"w": w, "epoch": state["epoch"] + 1}, metrics


PAIR = Trainable(init, update)
PLAIN = jax.jit(init), jax.jit(update)


def w(state):
    return state["w"]


def alone(key, rate, epochs):
    """The run in a plain loop -> state, losses."""
    state, losses = PLAIN[0](key, rate), []
    for _ in range(epochs):
        state, metrics = PLAIN[1](state, key, rate)
        losses.append(float(metrics["loss"]))
    return state, losses


def raced(keys=KEYS, grid=None, **options):
    given = {"epochs": 9, "keep": w, "progress": False} | options
    return race(PAIR, keys, {"rate": RATES} if grid is None else grid, **given)


def same_runs(found, expected, epochs):
    """Of each run the history and, if it went on to the end, the last state, are the same bits."""
    for name, values in fnn.params.paths(expected["history"]).items():
        ran = np.arange(values.shape[-1]) < found["epochs"][..., None]
        actual = fnn.params.paths(found["history"])[name]
        np.testing.assert_array_equal(actual, np.where(ran, values, np.nan))
    through = found["epochs"] == epochs
    assert through.any()
    np.testing.assert_array_equal(found["last"][through], expected["last"][through])


@pytest.fixture(scope="module")
def whole():
    return raced()


@pytest.fixture
def one_device(monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)


def test_a_race_is_many_plain_loops(whole):
    """On eight devices, bit for bit: states, histories, what was kept."""
    assert whole.axes == {"key": [0, 1], "rate": list(RATES)}
    assert whole.done.all()
    assert (whole["epochs"] == 9).all()
    for i, j in itertools.product(range(2), range(9)):
        state, losses = alone(KEYS[i], RATES[j], 9)
        np.testing.assert_array_equal(whole["history"]["loss"][i, j], np.float32(losses))
        np.testing.assert_array_equal(whole["last"][i, j], state["w"])
        assert whole["loss"][i, j] == np.float32(losses[-1])
    assert whole["largest/w"].shape == whole["loss"].shape
    assert whole.best("loss").mean == whole["loss"].mean(axis=0).min()


@pytest.mark.parametrize("devices", [1, 8])
def test_pruning_changes_no_bit_of_those_that_go_on(whole, devices, request):
    if devices == 1:
        request.getfixturevalue("one_device")
    same_runs(raced(prune=SuccessiveHalving("loss")), whole, 9)


def test_halving_runs_as_many_epochs_as_theory_says():
    """27 points, a third of them after 1, 3 and 9 epochs: each of the 3 stages costs 27 or 18."""
    rates = np.geomspace(1e-3, 0.9, 27)
    found = raced(grid={"rate": rates}, epochs=27, prune=SuccessiveHalving("loss", 3), keep=None)
    counts = np.bincount(found["epochs"].ravel(), minlength=28)
    assert {int(n): int(counts[n]) for n in np.flatnonzero(counts)} == {1: 36, 3: 12, 9: 4, 27: 2}
    assert found["epochs"].sum() == len(KEYS) * (27 * 1 + 9 * 2 + 3 * 6 + 1 * 18)
    # No epoch is run that is not counted: a group that is not full costs none.
    assert np.isfinite(found["history"]["loss"]).sum() == found["epochs"].sum()
    best = found.best("loss")
    assert (found["epochs"].reshape(2, -1)[:, best.members[0]] == 27).all()
    assert np.isnan(found["loss"]).sum() == 52
    assert "last" not in found.values


def test_epochs_are_run_once_each():
    """Counted inside the program, with groups that are not full."""
    seen = []

    def counted(state, key, rate):
        jax.debug.callback(lambda rate: seen.append(float(rate)), rate)
        return update(state, key, rate)

    found = race(
        Trainable(init, counted),
        KEYS,
        {"rate": RATES},
        epochs=4,
        prune=SuccessiveHalving("loss"),
        progress=False,
    )
    jax.effects_barrier()
    assert len(seen) == found["epochs"].sum() == 2 * (9 + 3 * 2 + 1)


def test_a_group_that_is_not_full_is_on_all_devices(whole):
    groups = fnn.search._race._Groups(whole.again.args[0], width=5)
    assert sorted(groups.order) == list(range(40))
    assert (groups.order.reshape(8, 5).T.ravel() == np.arange(40)).all()


# --- early stopping, of a real net -----------------------------------------------------------------

TRAIN, VALID = (X[:80], LABELS[:80]), (X[80:], LABELS[80:])
STOP = fnn.EarlyStopping("val_loss", patience=2, min_delta=0.005)
SIZES = {"data": TRAIN, "batch_size": 32}


def validate(ts, data):
    return {"loss": linear_loss_fn(ts.params, data, None).mean()}


WATCHED = {"validate": validate, "validation": VALID}


def net_step(rate):
    return fnn.make_train_step(linear_loss_fn, fnn.sgd(rate))


def net_init(key, rate):
    return net_step(rate).init(linear_init(key))


def net_update(ts, key, rate):
    ts, history = fnn.fit(net_step(rate), ts, key=key, epochs=1, **SIZES, **WATCHED)
    return ts, jax.tree.map(jnp.mean, history)


@pytest.mark.slow
def test_a_run_that_stops_is_fit_until():
    """The same epoch, the same best parameters and the same last ones, bit for bit."""
    rates = np.float32([0.3, 3.0, 10.0, 30.0, 100.0])
    pair, options = Trainable(net_init, net_update), {"epochs": 8, "stop": STOP, "progress": False}
    found = race(pair, KEYS, {"rate": rates}, every=3, keep=lambda ts: ts.params, **options)

    @jax.jit
    def until(key, rate):
        step = net_step(rate)
        ts = step.init(linear_init(key))
        return fnn.fit_until(step, ts, key=key, stop=STOP, epochs=8, **SIZES, **WATCHED)

    stops = set()
    for i, j in itertools.product(range(2), range(5)):
        progress, history = until(KEYS[i], rates[j])
        stops.add(int(progress.epochs))
        assert found["epochs"][i, j] == progress.epochs
        assert found["best_epoch"][i, j] == progress.best.epoch
        assert found["val_loss"][i, j] == progress.best.value
        np.testing.assert_array_equal(found["history"]["val_loss"][i, j], history["val_loss"])
        for kept, state in (("last", progress.last), ("best", progress.best)):
            ours = jax.tree.map(lambda a, at=(i, j): a[at], found[kept])
            chex.assert_trees_all_equal(ours, jax.device_get(state.params))
    assert len(stops) > 2


# --- both, and rules of one's own ------------------------------------------------------------------

SMALL_STOP = fnn.EarlyStopping("loss", patience=2)


def test_stopping_and_pruning_together_change_no_bit():
    stopped = raced(stop=SMALL_STOP, every=3)
    both = raced(stop=SMALL_STOP, every=3, prune=SuccessiveHalving("loss", 2, first=2))
    assert len(set(stopped["epochs"].ravel())) > 2
    dropped = np.isnan(both["loss"]).all(axis=0)
    assert 0 < dropped.sum() < 9
    for name in ("loss", "epochs", "best_epoch", "last", "best"):
        np.testing.assert_array_equal(both[name][:, ~dropped], stopped[name][:, ~dropped])
    assert (both["epochs"] <= stopped["epochs"]).all()
    member = int(np.argmin(stopped["epochs"]))
    again, at = stopped.replay(member), np.unravel_index(member, (2, 9))
    for name in ("loss", "epochs", "best_epoch"):
        assert again[name] == stopped[name][at]
    for name in ("last", "best"):
        np.testing.assert_array_equal(again[name]["w"], stopped[name][at])


def test_what_a_rule_sees():
    """All keys of a point fall together; who has stopped stands with the values of its best."""
    seen = []

    def rule(history):
        seen.append(history)
        going = np.ones(9, bool)
        going[len(seen)] = False
        return going

    free = raced(stop=SMALL_STOP, every=3)
    found = raced(stop=SMALL_STOP, every=3, prune=rule)
    assert [history["loss"].shape for history in seen] == [(2, 9, 3), (2, 9, 6)]
    assert np.isnan(seen[1]["loss"][:, 1]).all()
    assert list(found["epochs"][:, 1] <= 3) == [True] * 2
    # Dropped at epoch 3 and 6; those that had stopped before had as many epochs as without.
    assert (found["epochs"][:, 2] == np.minimum(free["epochs"][:, 2], 6)).all()
    done = np.argwhere(free["epochs"] <= 6)
    assert len(done)
    for i, j in done:
        if j != 1:
            assert (
                seen[1]["loss"][i, j, -1]
                == free["loss"][i, j]
                == free["history"]["loss"][i, j].min(
                    where=~np.isnan(free["history"]["loss"][i, j]), initial=np.inf
                )
            )
    assert [*seen[0]] == ["largest/w", "loss"]


def test_a_rule_that_drops_all_drops_none(whole):
    found = raced(prune=lambda history: np.zeros(9, bool))
    assert (found["epochs"] == 9).all()
    same_runs(found, whole, 9)


def test_points_that_diverge_are_the_worst():
    rates = [*RATES[:4], np.nan, np.inf, *RATES[4:7]]
    found = raced(grid={"rate": rates}, epochs=4, prune=SuccessiveHalving("loss", 9, first=2))
    assert (found["epochs"][:, 4:6] == 2).all()
    assert (found["epochs"] == 4).any()
    found = raced(grid={"rate": [np.nan] * 9}, epochs=4, prune=SuccessiveHalving("loss", 9))
    assert found["epochs"].tolist() == [[4] + [1] * 8] * 2  # one survives


class Sick(NamedTuple):
    x: Any
    first_bad: FirstBad


@pytest.mark.parametrize("stop", [None, fnn.EarlyStopping("x", patience=9)])
def test_a_policy_ends_a_run(stop):
    """A train state whose policy says "stop" is taken out, and the others go on."""
    stopping = fnn.training.POLICIES.index("stop")

    def init(key, end):
        none = jnp.full((), -1, jnp.int32)
        return Sick(jnp.float32(9), FirstBad(none, none, jnp.full((), stopping, jnp.int32)))

    def update(state, key, end):
        x = state.x - 1
        return Sick(x, state.first_bad.noted(jnp.int32(7), jnp.where(x == end, 1, -1))), {"x": x}

    found = race((init, update), KEYS, {"end": [6.0, 20.0]}, epochs=5, stop=stop, progress=False)
    assert found["epochs"].tolist() == [[3, 5]] * 2
    assert found["x"].tolist() == [[6, 4]] * 2


# --- the rules -------------------------------------------------------------------------------------


def history_of(last):
    return {"loss": np.stack([np.full_like(last, 7), last], axis=-1)}


def test_successive_halving_by_hand():
    rule, cost = SuccessiveHalving("loss", 2, first=2), np.array([[3.0, 1.0, 2.0, 4.0, 0.0]])
    assert rule(history_of(cost)).tolist() == [False, True, False, False, True]
    highest = SuccessiveHalving("loss", 2, "max", first=2)
    assert highest(history_of(cost)).tolist() == [True, False, False, True, False]
    spoilt = np.where(cost == 0, np.nan, np.where(cost == 1, -np.inf, cost))
    assert rule(history_of(spoilt)).tolist() == [True, False, True, False, False]
    assert highest(history_of(spoilt)).tolist() == [True, False, False, True, False]
    assert rule({"loss": cost[..., None]}).all()  # the first cut is after two epochs
    late = {"loss": np.repeat(cost[..., None], 9, axis=-1)}  # cuts after 2, 4 and 8 epochs
    assert rule(late).tolist() == [False, False, False, False, True]
    two = np.array([[1.0, 2.0], [2.0, 0.5]])  # the mean over the keys
    assert SuccessiveHalving("loss", 2)(history_of(two)).tolist() == [False, True]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 20])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_wilcoxon_is_scipys_test(n, mode):
    rng = np.random.default_rng(n)
    costs = rng.normal(size=(n, 12)) + np.linspace(0, 1.5, 12)
    costs[:, 3] = costs[:, 2]  # a tie in all
    costs = costs.astype(np.float32)
    going = Wilcoxon("loss", 0.1, mode)(history_of(costs if mode == "min" else -costs))
    best = costs.astype(float).mean(0).argmin()
    for j in range(12):
        difference = costs[:, j].astype(float) - costs[:, best]
        if not difference.any():
            assert going[j]
        elif n > 1:
            p = stats.wilcoxon(difference, alternative="greater", method="exact").pvalue
            assert going[j] == (p >= 0.1)
    assert going.all() == (n < 4)


def test_wilcoxon_by_counting_signs():
    """Its p is the share of the 2^n choices of signs whose sum of ranks is as large."""
    rng = np.random.default_rng(0)
    difference = rng.normal(size=6) + 0.7
    ranks = stats.rankdata(np.abs(difference))
    sums = [np.dot(signs, ranks) for signs in itertools.product([0, 1], repeat=6)]
    p = np.mean(np.array(sums) >= ranks[difference > 0].sum())
    costs = np.stack([np.zeros(6), difference], axis=1)
    assert difference.mean() > 0
    assert Wilcoxon("loss", p)(history_of(costs)).all()
    assert not Wilcoxon("loss", p + 1e-6)(history_of(costs)).all()


def test_wilcoxon_of_odd_values():
    rule = Wilcoxon("loss")
    rows = np.arange(5.0)[:, None]
    bad = np.array([[np.nan, np.inf, -np.inf, 0.0, 0.0, 1e38]]) + 0 * rows
    assert rule(history_of(bad)).tolist() == [False, False, False, True, True, False]
    assert rule(history_of(np.full((5, 3), np.nan))).all()
    assert rule(history_of(np.full((1, 1), 0.0))).all()
    huge = np.full((5, 2), 1.7e308) * [1, 0.5]
    assert rule(history_of(huge)).tolist() == [True, True]  # beyond 1e300 all are alike
    once = 0 * rows + np.array([[0.0, 0.0]])
    once[0, 1] = np.nan  # one seed alone proves nothing
    assert rule(history_of(once)).all()


def test_wilcoxon_drops_what_is_worse_for_every_seed():
    keys = jax.random.split(KEY, 5)
    grid = {"rate": [0.2, 0.21, 1e-4, 1e-3]}
    found = raced(keys, grid, prune=Wilcoxon("loss"))
    assert (found["epochs"][:, 2:] < 9).all()
    assert (found["epochs"][:, :2] == 9).any()
    same_runs(found, raced(keys, grid), 9)


# --- programs --------------------------------------------------------------------------------------


def test_no_rung_and_no_second_race_compiles():
    traces = []

    def traced(state, key, rate):
        traces.append(1)
        return update(state, key, rate)

    pair, options = Trainable(init, traced), {"prune": SuccessiveHalving("loss"), "progress": False}
    race(pair, KEYS, {"rate": RATES}, epochs=1, **options)
    first = len(traces)
    race(pair, KEYS, {"rate": RATES}, epochs=9, **options)
    assert len(traces) == first + 1  # looked at, not compiled


def test_what_a_function_closes_over_may_change():
    scale = [jnp.float32(1)]

    def scaled(state, key):
        return state, {"scale": scale[0] * state}

    pair = Trainable(lambda key: jnp.float32(1), scaled)
    assert race(pair, KEYS, epochs=2, progress=False)["scale"].tolist() == [1, 1]
    scale[0] = jnp.float32(2)
    assert race(pair, KEYS, epochs=2, progress=False)["scale"].tolist() == [2, 2]


def test_programs_are_freed_with_the_functions():
    def own(state, key, rate):
        return update(state, key, rate)

    reference = weakref.ref(own)
    found = race((init, own), KEYS, {"rate": RATES}, epochs=2, progress=False)
    assert found.replay(3)["epochs"] == 2
    del found, own
    gc.collect()
    assert reference() is None


def sized_init(key, size, rate):
    return jax.random.normal(key, (size,))


def sized_update(state, key, size, rate):
    assert isinstance(size, int)
    state = state * (1 - rate)
    return state, {"loss": jnp.sum(state**2)}


def test_values_that_shape_the_program():
    grid = {"size": Static(3, 5), "rate": [0.1, 0.3, 0.5]}
    options = {"epochs": 4, "prune": SuccessiveHalving("loss", 2), "progress": False}
    found = race((sized_init, sized_update), KEYS, grid, **options)
    assert found["epochs"].shape == (2, 2, 3)
    assert sorted(found["epochs"][0].ravel().tolist()) == [1, 1, 1, 2, 2, 4]
    assert (found["epochs"][0] == found["epochs"][1]).all()
    for i, j, k in np.ndindex(2, 2, 3):
        state = sized_init(KEYS[i], (3, 5)[j], 0)
        size, rate = (3, 5)[j], np.float32(grid["rate"][k])
        plain = jax.jit(sized_update, static_argnums=2)
        for epoch in range(found["epochs"][i, j, k]):
            state, metrics = plain(state, KEYS[i], size, rate)
            assert found["history"]["loss"][i, j, k, epoch] == metrics["loss"]
    with pytest.raises(ValueError, match=r"runs of {'size': 5} keep last float32\[5\], expected"):
        race((sized_init, sized_update), KEYS, grid, **options, keep=lambda state: state)


def test_replay_is_the_member(whole):
    found = raced(prune=SuccessiveHalving("loss"))
    for member in (0, 8, 13):
        again, at = found.replay(member), np.unravel_index(member, (2, 9))
        assert again["epochs"] == found["epochs"][at]
        np.testing.assert_array_equal(
            again["history"]["loss"], whole["history"]["loss"][at][: again["epochs"]]
        )
        np.testing.assert_array_equal(again["last"]["w"], found["last"][at])
        assert again["loss"] == again["history"]["loss"][-1]


@pytest.mark.slow
def test_side_by_side_the_numbers_are_alike():
    one, three = (raced(width=width, stop=SMALL_STOP, every=3) for width in (1, 3))
    np.testing.assert_allclose(one["history"]["loss"], three["history"]["loss"], rtol=1e-4)
    np.testing.assert_array_equal(one["epochs"], three["epochs"])


def test_half_precision_and_integers():
    def update(state, key):
        return (state[0] / 2, state[1] + 1), {
            "half": state[0],
            "count": state[1],
            "odd": state[1] % 2 > 0,
        }

    pair = Trainable(lambda key: (jnp.bfloat16(1), 3), update)
    found = race(pair, KEYS[:1], epochs=3, keep=lambda state: state, progress=False)
    assert found["last"][0].dtype == jnp.bfloat16
    assert found["last"][1].tolist() == [6]
    history = {name: values.tolist() for name, values in found["history"].items()}
    assert history == {"half": [[1, 0.5, 0.25]], "count": [[3, 4, 5]], "odd": [[1, 0, 1]]}
    with jax.enable_x64(True):
        found = race((lambda key: jnp.float64(1 / 3), lambda s, key: (s, {"s": s})), KEYS, epochs=1)
        assert found["s"].tolist() == [1 / 3] * 2


# --- a folder --------------------------------------------------------------------------------------


class BrokenError(Exception):
    pass


def breaking(rule, calls):
    """The rule, which fails at the given call."""
    left = [calls]

    def broken(history):
        left[0] -= 1
        if not left[0]:
            raise BrokenError
        return rule(history)

    return broken


def dropping(history):
    """A rule of one's own: the worst point of those that are left is dropped."""
    means = history["loss"][..., -1].mean(axis=0)
    return means < np.nanmax(means)


def test_a_race_goes_on_where_it_ended(tmp_path):
    options = {"stop": SMALL_STOP, "every": 3, "prune": dropping}
    expected = raced(**options)
    for calls in (1, 2):
        with pytest.raises(BrokenError):
            raced(**options | {"prune": breaking(dropping, calls)}, folder=tmp_path)
    found = raced(**options, folder=tmp_path)
    chex.assert_trees_all_equal(found.values, expected.values)
    again = raced(**options, folder=tmp_path)  # nothing is left to do
    chex.assert_trees_all_equal(again.values, expected.values)
    newest = max(tmp_path.glob("step_*"))
    newest.write_bytes(newest.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="load_last"):
        healed = raced(**options, folder=tmp_path)
    chex.assert_trees_all_equal(healed.values, expected.values)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_race_and_nothing_is_lost(tmp_path, number, monkeypatch):
    def interrupting(history):
        os.kill(os.getpid(), number)
        return dropping(history)

    options = {"folder": tmp_path, "every": 3, "prune": dropping}
    found = raced(**options | {"prune": interrupting})
    assert (found["epochs"] == 3).all()
    assert not found.done[:, 1:].all()
    assert np.isfinite(found["last"]).all()
    monkeypatch.setattr("fnn._base._terminal._terminated", False)
    chex.assert_trees_all_equal(raced(**options).values, raced(every=3, prune=dropping).values)


def test_a_signal_within_a_rung(tmp_path, monkeypatch, one_device):
    """Some members are a rung ahead; the rule is not asked again about this rung."""
    options = {"every": 3, "prune": dropping}
    expected = raced(**options)
    groups = fnn.search._race._Groups
    trained, train = [], groups.train

    def interrupted(self, *given):
        trained.append(1)
        train(self, *given)
        if len(trained) == 5:  # groups of 8: three in the first rung
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(groups, "train", interrupted)
    partly = raced(**options, folder=tmp_path)
    assert {3, 6} <= set(partly["epochs"].ravel())
    calls = []

    def counting(history):
        calls.append(history["loss"].shape[-1])
        return dropping(history)

    found = raced(every=3, prune=counting, folder=tmp_path)
    assert calls == [6]
    chex.assert_trees_all_equal(found.values, expected.values)


@pytest.mark.parametrize(("every", "first"), [(1, 4), (3, 6), (3, 4)])
def test_epochs_may_grow(tmp_path, every, first):
    options = {"every": every, "prune": SuccessiveHalving("loss", 2, first=2), "folder": tmp_path}
    short = raced(**options, epochs=first)
    assert short["history"]["loss"].shape[-1] == first
    assert short.done.all()
    grown, direct = raced(**options), raced(**options | {"folder": None})
    chex.assert_trees_all_equal(grown.values, direct.values)
    shorter = raced(**options, epochs=first)  # what was run stays
    chex.assert_trees_all_equal(shorter.values, direct.values)


def test_another_race_in_the_folder_is_refused(tmp_path):
    options = {"prune": SuccessiveHalving("loss"), "epochs": 2, "every": 2, "stop": SMALL_STOP}
    first = raced(folder=tmp_path, **options)

    def told(message, **changes):
        with pytest.raises(ValueError, match=f"race: .* another race, with another {message}"):
            raced(**options | {"folder": tmp_path} | changes)

    told("keys", keys=jax.random.split(KEYS[1]))
    told("points", grid={"rate": RATES[::-1]})
    told(r"every \(2, now 1\)", every=1)
    told(r"stop \({'monitor': 'loss', .*now None\)", stop=None)
    told(r"prune \(SuccessiveHalving.*Wilcoxon", prune=Wilcoxon("loss"))
    told("keep", keep=lambda state: state["w"] * 2)
    told("keep", keep=None)
    told("keys; another points; another every", keys=KEYS[:1], grid={"rate": [1.0]}, every=1)

    def other(state, key, rate):
        state, metrics = update(state, key, rate)
        return state, metrics | {"loss": metrics["loss"] * 2}

    with pytest.raises(ValueError, match="another init or update: what they compute"):
        race((init, other), KEYS, {"rate": RATES}, folder=tmp_path, keep=w, **options)

    def renamed(state, key, rate):
        return update(state, key, rate)

    found = race((init, renamed), KEYS, {"rate": RATES}, folder=tmp_path, keep=w, **options)
    chex.assert_trees_all_equal(found.values, first.values)


KILLED = """
import os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from tests.search.test_race import dropping, raced

def killing(history):
    if history["loss"].shape[-1] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return dropping(history)

raced(prune=killing, folder=sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_race_goes_on(tmp_path):
    for epoch in ("2", "5"):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), epoch], check=False)
        assert done.returncode == -signal.SIGKILL
    found, expected = raced(prune=dropping, folder=tmp_path), raced(prune=dropping)
    chex.assert_trees_all_equal(found.values, expected.values)


def test_a_folder_is_for_one_race_at_a_time(tmp_path):
    def nested(history):
        raced(folder=tmp_path)

    with pytest.raises(RuntimeError, match=r"race: .* is in use by another run"):
        raced(folder=tmp_path, prune=nested)


# --- mistakes --------------------------------------------------------------------------------------


def stepping(change):
    def changed(state, key, rate):
        return change(*update(state, key, rate))

    return Trainable(init, changed)


HISTORY = {"loss": jnp.zeros((1, 3))}


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "trainable is <function init", {"trainable": init}),
        (TypeError, "update is a float, expected a function", {"trainable": (init, 1.0)}),
        (TypeError, "keep is a int, expected a function", {"keep": 3}),
        (TypeError, r"init takes \(key\), expected \(key, rate\): ", {"trainable": (lambda key: 0, update)}),
        (TypeError, r"init takes .*, expected \(key, rat\)", {"grid": {"rat": [1.0]}}),
        (ValueError, "every is 0", {"every": 0}),
        (ValueError, "epochs is 2, expected at least every, which is 3", {"epochs": 2, "every": 3}),
        (ValueError, "width is 0", {"width": 0}),
        (TypeError, "prune is a str, expected a rule", {"prune": "loss"}),
        (ValueError, "prune has the monitor 'los', expected one of largest/w, loss", {"prune": Wilcoxon("los")}),
        (ValueError, "stop has the monitor 'val_loss'", {"stop": fnn.EarlyStopping()}),
        (TypeError, r"race: stop is 'loss', expected fnn.EarlyStopping\(...\)", {"stop": "loss"}),
        (ValueError, r"prune returned float64\[9\], expected bool\[9\]", {"prune": lambda h: np.ones(9)}),
        (ValueError, r"prune returned bool\[2\], expected bool\[9\]", {"prune": lambda h: np.ones(2, bool)}),
        (ValueError, "key 1 is the same", {"keys": KEYS[jnp.array([0, 0])]}),
        (TypeError, "update returned a dict, expected .state, metrics.", {"trainable": stepping(lambda s, m: s)}),
        (TypeError, "returned as metrics a Array|returned as metrics a .*Tracer|as metrics a ShapeDtypeStruct", {"trainable": stepping(lambda s, m: (s, m["loss"]))}),
        (TypeError, "as metrics an empty dict", {"trainable": stepping(lambda s, m: (s, {}))}),
        (ValueError, r"metric loss is float32\[1, 3\], expected a real scalar; .*jnp.mean", {"trainable": stepping(lambda s, m: (s, HISTORY))}),
        (ValueError, "a metric is called epochs, expected another name", {"trainable": stepping(lambda s, m: (s, {"epochs": m["loss"]}))}),
        (TypeError, r"a state with float32\[4\] at epoch, expected int32\[\]", {"trainable": stepping(lambda s, m: (s | {"epoch": s["w"]}, m))}),
        (TypeError, r"a state with nothing at epoch, expected int32\[\]", {"trainable": stepping(lambda s, m: ({"w": s["w"], "noise": s["noise"]}, m))}),
        (TypeError, "update needs the value of an argument while it is traced", {"trainable": stepping(lambda s, m: (s, m) if s["epoch"] else None)}),
        (TypeError, "keep needs the value of an argument", {"keep": lambda s: float(s["epoch"])}),
    ],
)  # fmt: skip
def test_mistakes(error, message, options):
    given = {
        "trainable": PAIR,
        "keys": KEYS,
        "grid": {"rate": RATES},
        "epochs": 3,
        "progress": False,
    }
    with pytest.raises(error, match=message) as raised:
        race(**given | options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SuccessiveHalving("loss", 1), "factor is 1, expected at least 2"),
        (lambda: SuccessiveHalving("loss", first=0), "first is 0"),
        (lambda: SuccessiveHalving("loss", mode="least"), "SuccessiveHalving: mode is 'least'"),
        (lambda: Wilcoxon("loss", 0), "p is 0"),
        (lambda: Wilcoxon("loss", 1.5), "p is 1.5"),
        (lambda: Wilcoxon("loss", mode="least"), "Wilcoxon: mode is 'least'"),
    ],
)
def test_mistakes_in_rules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_progress_is_said(capsys, tmp_path):
    raced(progress=True, epochs=2, folder=tmp_path)
    said = capsys.readouterr().err
    assert re.search(r"epoch 2/2  18 of 18 runs go on", said)
    raced(progress=True, epochs=3, folder=tmp_path)
    assert "goes on from epoch 2" in capsys.readouterr().err
