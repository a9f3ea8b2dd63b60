import json
import re

import jax
import numpy as np
import pytest
from scipy import stats

from fnn.compare import _reproduce, _reproduce_deepobs, _reproduce_wilson
from fnn.compare._reproduce import REPRODUCTIONS, Source, reproduce, source_of
from fnn.compare._reproduce_deepobs import ORDERS, RATES, RULES, Cell, cell_of, final_loss
from fnn.compare._reproduce_wilson import BATCHES, ROWS, features, one_run
from fnn.training import sweep

SGD, MOMENTUM, ADAM = RULES


def test_a_name_that_is_unknown(tmp_path):
    known = ", ".join(REPRODUCTIONS)
    said = f"fnn compare: nothing to reproduce is called 'deepobs', expected one of: {known}; did you mean deepobs-quadratic?"
    with pytest.raises(ValueError) as error:  # noqa: PT011
        reproduce("deepobs", tmp_path)
    assert str(error.value) == said
    with pytest.raises(ValueError, match=r"expected one of: [^;]*$"):
        source_of("xyzzy")


def test_what_is_written(tmp_path, monkeypatch):
    told = []

    def run(tell):
        tell("a piece")
        return "The table.\n", {"cells": [1.5, None]}, b"\x89PNG"

    monkeypatch.setitem(_reproduce.REPRODUCTIONS, "mine", Source("A paper, 2026", 1, run))
    out = tmp_path / "deep" / "out"
    found = reproduce("mine", out, told.append)
    assert told == ["a piece"]
    assert found.failed == []
    assert found.text.startswith("A paper, 2026\n\nThe table.\n")
    assert str(out / "mine.json") in found.text
    document = json.loads((out / "mine.json").read_text())
    assert (document["schema"], document["version"]) == ("fnn.reproduction", 1)
    assert document["command"] == "fnn compare --reproduce mine"
    assert document["cells"] == [1.5, None]
    assert (out / "mine.png").read_bytes() == b"\x89PNG"

    (tmp_path / "file").write_text("")
    found = reproduce("mine", tmp_path / "file", told.append)
    assert "The table." in found.text  # what was computed is not lost
    assert [
        sentence.endswith("could not be written: File exists") for sentence in found.failed
    ] == [True, True]


# --- DeepOBS ------------------------------------------------------------------------------------


def test_the_grid_of_rates_is_deepobs():
    assert len(RATES) == 36
    np.testing.assert_allclose(RATES[[0, 1, -1]], [1e-5, 10**-4.8, 100])
    for rule in RULES:
        assert np.isclose(RATES, rule.published.rate, rtol=1e-9).sum() == 1


def made_up(learning_rate, key):
    """A final loss that depends on rate and seed, and diverges above 1."""
    away = np.log10(learning_rate) + 1.4 + 1e-3  # least at 10^-1.4, the rate of Adam
    seed = np.asarray(jax.random.key_data(key), np.float64)[..., -1] / 2**32
    return np.where(learning_rate > 1, np.inf, 87 + away**2 + 0.01 * seed)


def test_the_protocol(monkeypatch):
    """36 rates with one seed, then ten others at the best and at the published rate."""
    calls = []

    def fake(run, keys, *, paired):
        calls.append((keys, paired["learning_rate"]))
        return made_up(paired["learning_rate"].astype(np.float64), keys)

    monkeypatch.setattr(_reproduce_deepobs, "sweep", fake)
    cell = cell_of("new", MOMENTUM, lambda key, learning_rate: None)
    assert {len(rates) for _, rates in calls} == {20}  # one program
    tuning = np.concatenate([rates for _, rates in calls[:2]])[:36]
    np.testing.assert_allclose(tuning, RATES, rtol=1e-6)
    seeds = [np.unique(jax.random.key_data(keys), axis=0) for keys, _ in calls]
    assert [len(found) for found in seeds] == [1, 1, 10]
    assert not (seeds[2] == seeds[0]).all(1).any()  # the search took no part in it
    assert cell.best == pytest.approx(0.039810717055)
    assert np.isnan(cell.by_rate[RATES > 1]).all()
    np.testing.assert_allclose(
        cell.at_published, made_up(np.full(10, 0.0025118864315), calls[2][0][:10])
    )
    np.testing.assert_allclose(
        cell.at_best, made_up(np.full(10, 0.039810717055), calls[2][0][10:]), rtol=1e-6
    )
    expected = stats.ttest_ind(
        list(MOMENTUM.published.losses.values()), cell.at_published, equal_var=False
    )
    assert cell.p == pytest.approx(expected.pvalue)


@pytest.fixture
def cells():
    """Made-up cells: all as published, but momentum with a new order."""
    draw = np.random.default_rng(0)

    def cell(order, rule):
        losses = list(rule.published.losses.values())
        shift = 1.5 if (order, rule) == ("new", MOMENTUM) else 0.0
        ours = np.mean(losses) + shift + np.std(losses) * draw.normal(size=10)
        by_rate = np.where(RATES > 0.1, np.nan, 88 + np.log10(RATES / rule.published.rate) ** 2)
        return Cell(order, rule, by_rate, ours, ours - shift, 0.001 if shift else 0.5)

    return [cell(order, rule) for order in ORDERS for rule in RULES]


def test_the_table_and_its_sentences(cells):
    text = _reproduce_deepobs.as_text(cells)
    published = "Momentum 0.99, Adam, SGD"
    assert f"The lowest loss first, DeepOBS: {published}." in text
    assert (
        f"With one order for all epochs 3 of 3 cells agree. At DeepOBS's rates: {published}."
        in text
    )
    assert (
        "With a new order each epoch 2 of 3 cells agree. At DeepOBS's rates: Adam, SGD, Momentum 0.99."
        f" At our best rates: {published}." in text
    )
    assert max(len(line.rstrip()) for line in text.splitlines() if "±" in line) <= 80
    (row,) = (line for line in text.splitlines() if line.startswith("Momentum 0.99 new"))
    assert row.split()[-2] == "no"
    mean = np.mean(cells[4].at_published)
    assert f" {mean:.2f}±" in row
    assert re.search(r" \+1\.\d\d±0\.\d\d no ", row)  # ours minus published, beside "agrees"


def test_the_numbers_of_the_table(cells):
    document = json.loads(json.dumps(_reproduce_deepobs.as_numbers(cells), allow_nan=False))
    assert [cell["agrees"] for cell in document["cells"]] == [True, True, True, True, False, True]
    assert document["cells"][0]["published_by_seed"]["46"] == 87.51817
    assert document["cells"][0]["loss_by_rate"][-1] is None
    np.testing.assert_allclose(document["cells"][1]["at_published_rate"], cells[1].at_published)
    apart, (ours, theirs) = document["cells"][4]["ours_minus_published"], (
        cells[4].at_published, np.array([*MOMENTUM.published.losses.values()])
    )  # fmt: skip
    welch = [x.var(ddof=1) / len(x) for x in (ours, theirs)]
    freedom = sum(welch) ** 2 / (welch[0] ** 2 / 9 + welch[1] ** 2 / 2)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(sum(welch))
    mean = ours.mean() - theirs.mean()
    assert [*apart.values()] == pytest.approx([mean, mean - half, mean + half])
    picture = _reproduce_deepobs.as_png(cells)
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_all_cells_are_run_and_corrected_together(monkeypatch):
    made = []

    def cell(order, rule, run):
        made.append((order, rule.name))
        return Cell(order, rule, 88 + RATES, 87 + RATES[:10], 87 + RATES[:10], 0.02)

    told = []
    monkeypatch.setattr(_reproduce_deepobs, "cell_of", cell)
    _, document, _ = _reproduce_deepobs.run(told.append)
    assert len(told) == source_of("deepobs-quadratic").pieces == len(set(made)) == 6
    assert [cell["p_corrected"] for cell in document["cells"]] == pytest.approx([0.12] * 6)


@pytest.mark.slow
def test_the_order_of_batches_decides():
    """The effect itself, at the published rate: momentum is level with the logs, or far behind."""
    keys = jax.random.split(jax.random.key(7), 4)
    rates = {"learning_rate": np.full(4, MOMENTUM.published.rate, np.float32)}
    found = {o: np.asarray(sweep(final_loss(MOMENTUM.make, o), keys, paired=rates)) for o in ORDERS}
    published = np.array(list(MOMENTUM.published.losses.values()))
    assert abs(found["same"].mean() - published.mean()) < 0.1
    assert found["new"].min() > published.max() + 0.5


# --- Wilson et al. ------------------------------------------------------------------------------


def labels(seed):
    return np.where(np.random.default_rng(seed).uniform(size=ROWS) < 0.7, 1.0, -1.0)


def test_features_are_the_papers():
    """Row i, in the paper's numbers from 1: y, 1, 1, and 1 from 4 + 5(i - 1) on, one or five."""
    y = labels(0)
    x = np.asarray(features(y.astype(np.float32)))
    assert x.shape == (ROWS, 3 + 5 * ROWS)
    for i in range(1, ROWS + 1):
        ones = [2, 3, *range(4 + 5 * (i - 1), 4 + 5 * (i - 1) + int(2 * (1 - y[i - 1])) + 1)]
        expected = np.zeros(3 + 5 * ROWS)
        expected[np.array(ones) - 1] = 1
        expected[0] = y[i - 1]
        np.testing.assert_array_equal(x[i - 1], expected)


def test_the_claims_of_the_paper_in_float64():
    for seed in range(5):
        y = labels(seed)
        x = np.asarray(features(y.astype(np.float32)), np.float64)
        sign = np.sign(x.T @ y)
        used = (x != 0).any(0)
        np.testing.assert_allclose(x @ np.where(used, sign, 0), 4 * y)  # the lemma's condition
        for new in (-1, 1):  # what the solution of least norm, and a multiple of the signs, answer
            least = np.linalg.pinv(x) @ y
            assert np.sign(least[0] * new + least[1] + least[2]) == new
            assert np.sign(sign[0] * new + sign[1] + sign[2]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_rule_does_as_is_claimed(name):
    (rule,) = (rule for rule in _reproduce_wilson.RULES if rule.name == name)
    found = jax.jit(one_run(rule, ROWS))(jax.random.key(0), rule.rate)
    found = {key: np.asarray(value)[None] for key, value in found.items()}
    assert found["share"] < 0.8
    assert _reproduce_wilson.Cell(rule, "full batch", found).as_claimed.all()
    found["loss"] = np.array([np.nan])
    assert not _reproduce_wilson.Cell(rule, "full batch", found).as_claimed.any()


def test_the_table_of_wilson(monkeypatch):
    def fake(run, keys, *, paired):
        n = len(keys)
        ones = np.ones(n, np.float32)
        return {"loss": 0 * ones, "accuracy": ones, "share": 0.7 * ones}

    told = []
    monkeypatch.setattr(_reproduce_wilson, "sweep", fake)
    text, document, picture = _reproduce_wilson.run(told.append)
    assert len(told) == source_of("wilson-overfit").pieces == len(document["cells"])
    assert "Full batch: 3 of 6 claims hold." in text
    held = [c["rule"] for c in document["cells"] if all(c["as_claimed"])]
    assert held == ["SGD", "Momentum", "Nesterov"] * len(BATCHES)
    assert json.dumps(document, allow_nan=False)
    assert picture.startswith(b"\x89PNG")


def test_momentum_is_that_of_the_logs():
    """TensorFlow's: v <- 0.99 v + g, p <- p - rate v."""
    rule = MOMENTUM.make(0.5)
    state, v = rule.init({"p": np.float32(1)}), 0.0
    for g in (1.0, -3.0):
        updates, state = rule.update({"p": np.float32(g)}, state, {"p": np.float32(1)})
        v = 0.99 * v + g
        np.testing.assert_allclose(updates["p"], -0.5 * v, rtol=1e-6)
