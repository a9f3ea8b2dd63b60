import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

import fnn
from fnn.cli import main
from fnn.compare import OPTIMIZERS, PIECES, Race, Settings, Side, compare_optimizers
from fnn.comparison_plot import draw_comparison
from fnn.report import findings, mean_and_interval, on_edge, ranked, table, write_json

SMALL = Settings(("momentum", "adam"), (0.01, 0.1), seeds=2, epochs=2, hidden=(16,))


@pytest.fixture(scope="module")
def comparison():
    said = []
    with jax.numpy_dtype_promotion("standard"):
        result = compare_optimizers(SMALL, said.append)
    assert len(said) == PIECES * 2
    return result


def test_both_libraries_learn_and_agree(comparison):
    for race in comparison.races:
        for side in (race.fnn, race.optax):
            assert side.test_accuracy.shape == (2, 2)
            assert side.loss.shape == (2, 2, 2 * 17)
            assert side.test_accuracy[:, race.best].min() > 0.7
            assert side.compile_seconds > 0
        assert race.apart_by in ("nothing", "rounding")
        np.testing.assert_allclose(race.fnn.test_accuracy, race.optax.test_accuracy, atol=0.02)


def test_a_member_is_the_program_of_the_readme(comparison):
    """The number in the table, again by plain calls."""
    x, labels = fnn.datasets.digits().train
    race = comparison.races[0]
    init_key, fit_key = jax.random.split(jax.random.split(jax.random.key(0), 2)[1])
    optimizer = fnn.momentum(0.1)

    def loss_fn(params, batch, key):
        return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])

    params = fnn.mlp_init(init_key, (64, 16, 10), w_init=fnn.kaiming_normal)
    step = fnn.make_train_step(loss_fn, optimizer)
    ts, _ = fnn.fit(
        step, fnn.train_init(params, optimizer), (x, labels), fit_key, epochs=2, batch_size=64
    )
    test_x, test_labels = fnn.datasets.digits().test
    right = np.asarray(fnn.mlp(ts.params, test_x)).argmax(-1) == test_labels
    np.testing.assert_allclose(race.fnn.test_accuracy[1, 1], right.mean(), atol=1e-6)


def test_json_has_every_number(comparison, tmp_path):
    write_json(comparison, tmp_path / "c.json")
    document = json.loads((tmp_path / "c.json").read_text(), parse_constant=pytest.fail)
    assert document["settings"]["rates"] == [0.01, 0.1]
    assert set(document["versions"]) == {"fnn", "jax", "jaxlib", "optax", "numpy", "python"}
    assert document["device"]["platform"] == "cpu"
    adam = document["optimizers"]["adam"]
    assert np.shape(adam["fnn"]["test_accuracy"]) == (2, 2)
    assert np.shape(adam["optax"]["loss_by_epoch"]) == (2, 2, 2)
    assert np.shape(adam["fnn"]["loss_by_step_at_best"]) == (2, 34)
    race = comparison.races[1]
    assert adam["best_rate"] == SMALL.rates[race.best]
    np.testing.assert_allclose(adam["largest_difference"], race.difference, rtol=1e-5)


def test_picture(comparison, tmp_path):
    draw_comparison(comparison, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "c.png").stat().st_size > 20_000


def test_table_fits_80_columns(comparison):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(comparison))
    text = console.export_text()
    assert "…" not in text
    rows = [
        line.split() for line in text.splitlines() if line.strip().startswith(("momentum", "adam"))
    ]
    assert [row[0] for row in rows] == [race.name for race in ranked(comparison)]


def race(name="adam", rates=3, best=1, offset=0.0, rounding=0.0, accuracy=0.9):
    """A made-up race over four seeds, best at the given rate."""
    valid = np.full((4, rates), 0.5)
    valid[:, best] = 0.95
    test = accuracy + 0.001 * np.arange(4)[:, None] * np.ones(rates)
    zeros = np.zeros((4, rates))

    def side(shift):
        params = {"w": np.ones((4, rates, 5)) + shift}
        return Side(valid, zeros, test, np.ones((4, rates, 6)), zeros.astype(int), params, 1.0, 2.0)

    return Race(name, side(0.0), side(offset), np.full((4, rates), rounding))


def test_what_sets_twins_apart():
    assert race().apart_by == "nothing"
    assert race(offset=5e-5).apart_by == "rounding"
    assert race(offset=0.5).apart_by == "more"
    assert race(offset=0.5, rounding=0.1).apart_by == "rounding"
    np.testing.assert_allclose(race(offset=0.25).difference, 0.25)


def test_best_rate_prefers_the_lower_loss_among_equals():
    tied = race(best=0)
    tied.fnn.valid_accuracy[:] = 0.9
    tied.fnn.valid_loss[:, 0], tied.fnn.valid_loss[:, 1] = np.nan, 3.0
    tied.fnn.valid_loss[:, 2] = 2.0
    assert tied.best == 2


def test_findings():
    settings = Settings(("sgd", "adam", "adamw"), (0.1, 0.2, 0.3), seeds=4, epochs=1)
    races = [
        race("sgd", best=2, offset=0.5, accuracy=0.8),
        race("adam"),
        race("adamw", offset=1e-6, accuracy=0.9005),
    ]
    comparison = fnn.compare.Comparison(settings, races)
    text = "\n".join(findings(comparison))
    assert "Best on the test rows: adamw at 0.2" in text
    assert "* sgd is best at 0.3, the edge of the grid" in text
    assert "sgd: the twins end further apart than rounding explains" in text
    assert "adam: the twins end in the same parameters, bit for bit" in text
    assert "adamw: the twins end apart by rounding" in text
    assert [r.name for r in ranked(comparison)] == ["adamw", "adam", "sgd"]
    assert not on_edge(comparison, races[1])


def test_interval_is_students():
    mean, half = mean_and_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert mean == 2.5
    assert half == pytest.approx(3.18245 * np.std([1, 2, 3, 4], ddof=1) / 2, rel=1e-4)
    assert np.isnan(mean_and_interval(np.array([1.0]))[1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--optimizers", "adm"], "unknown optimizer 'adm', expected some of: sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw; did you mean adam?"),
        (["--optimizers", "xyzzy"], "unknown optimizer 'xyzzy', expected some of: " + ", ".join(OPTIMIZERS)),
        (["--optimizers", "sgd", "sgd"], "an optimizer is named twice: sgd, sgd"),
        (["--optimizers"], "no optimizers to compare, expected some of: " + ", ".join(OPTIMIZERS)),
        (["--rates"], "the grid of learning rates is empty, expected at least one rate"),
        (["--rates", "-0.1"], "learning rate -0.1 is not a positive number"),
        (["--rates", "nan"], "learning rate nan is not a positive number"),
        (["--rates", "0.2", "0.1"], "learning rates [0.2, 0.1] are not in increasing order"),
        (["--epochs", "0"], "epochs is 0, expected at least 1"),
        (["--seeds", "0"], "seeds is 0, expected at least 1"),
        (["--hidden", "0"], "hidden sizes are [0], expected each at least 1"),
        (["--batch-size", "5000"], "batch size 5000 exceeds the 1077 training images"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_gets_one_sentence(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fnn", "compare", *arguments])
    monkeypatch.setattr("fnn.cli.prepare_jax", lambda devices: None)
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"fnn: {sentence}\n"


def test_the_command(tmp_path):
    arguments = "compare --optimizers sgd adam --rates 0.01 0.1 --seeds 2 --epochs 1 --hidden 8"
    command = [
        sys.executable,
        "-c",
        "from fnn.cli import main; main()",
        *arguments.split(),
        "--out",
        str(tmp_path / "deep" / "out"),
    ]
    environment = {"PATH": "", "HOME": str(tmp_path), "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Best on the test rows: adam" in done.stdout
    assert {path.name for path in (tmp_path / "deep" / "out").iterdir()} == {
        "comparison.json",
        "comparison.png",
    }
    cached = list((tmp_path / ".cache" / "fnn" / "programs").iterdir())
    assert len(cached) >= 4  # a program for each optimizer of each library
