"""Pieces, the protocol and its document, on a problem that trains in a moment."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.compare import _pieces as pieces
from fnn.compare import _protocol as protocol
from fnn.compare import replay_member
from fnn.compare._cost import kernels_of
from fnn.compare._document import as_json, command_of, document_of, plain, read_document
from fnn.compare._plan import Settings, plan_of
from fnn.compare._rule import SAME_RULE
from fnn.compare._run import key_of
from fnn.compare._store import kept
from fnn.compare._tuning import point_text
from tests.compare.made_up import TINY, plain_sgd, result_of, small
from tests.comparison_document import comparison

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def document():
    """A whole comparison: a rule whose twin is the same in every bit, one by rounding, one's own."""
    with jax.numpy_dtype_promotion("standard"):
        return small(["sgd", "adam", plain_sgd])


def entry(document, name):
    return next(rule for rule in document["rules"] if rule["name"] == name)


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_document_has_every_number(document):
    again = json.loads(as_json(document), parse_constant=pytest.fail)
    assert again == document
    assert (document["schema"], document["version"]) == ("fnn.compare", 2)
    assert document["problem"]["rows"] == [32, 24, 40]
    assert document["problem"]["steps"] == 3 * 4
    assert document["settings"]["tune"] == ["learning_rate=0.01,0.1"]
    assert set(document["versions"]) == {"fnn", "jax", "jaxlib", "optax", "numpy", "python"}
    assert not document["interrupted"]
    assert document["findings"][0].startswith("Best on the test rows: ")
    adam = entry(document, "adam")
    assert np.shape([trial["valid"] for trial in adam["trials"]]) == (2, 2)
    assert np.shape(adam["final"]["loss_by_epoch"]) == (3, 3)
    assert np.shape(adam["final"]["valid_by_epoch"]) == (3, 3)
    assert len(adam["one_bit"]["test"]) == len(adam["final"]["test"]) == 3
    assert len(adam["expected_best"]) == 2
    assert adam["cost"]["flops"] > 0
    assert adam["cost"]["kernels"] >= 1
    assert adam["cost"]["bytes"] >= 4 * 10 * 7  # g, p, mu and nu are read, three of them written
    assert {c["b"] for c in document["comparisons"]} | {document["comparisons"][0]["a"]} == {
        "sgd", "adam", "plain_sgd",
    }  # fmt: skip


@pytest.mark.slow
def test_the_point_is_chosen_on_validation_rows_by_the_mean_of_its_seeds(document):
    for rule in document["rules"]:
        means = [np.mean(trial["valid"]) for trial in rule["trials"]]
        assert means[rule["best"]] == max(means)
        assert rule["final"]["point"] == rule["trials"][rule["best"]]["point"]


@pytest.mark.slow
def test_what_sets_twins_apart(document):
    sgd, adam, own = (entry(document, name) for name in ("sgd", "adam", "plain_sgd"))
    assert sgd["twin_final"]["apart_by"] == "nothing"
    assert sgd["twin_final"]["apart"] == 0
    assert adam["twin_final"]["apart_by"] in ("rounding", "nothing")
    assert adam["twin_final"]["update_difference"] < SAME_RULE / 1000
    assert adam["twin"] == "optax.adam"
    assert own["twin_final"] is None
    assert own["formula"].startswith("p <- p - rate scale g.")


@pytest.mark.slow
def test_rules_share_initial_weights_and_batches(document):
    """One's own SGD is SGD in every bit of every run."""
    sgd, own = entry(document, "sgd"), entry(document, "plain_sgd")
    assert [t["digest"] for t in sgd["trials"]] == [t["digest"] for t in own["trials"]]
    assert sgd["final"] == own["final"]
    assert len({d for t in sgd["trials"] for d in t["digest"]} | {*sgd["final"]["digest"]}) == 7


@pytest.mark.slow
def test_a_member_is_the_program_of_the_readme(document):
    """A number of the document, again by plain calls."""
    data = TINY.data()
    rate = entry(document, "adam")["final"]["point"]["learning_rate"]

    @jax.jit
    def accuracy(key):
        init_key, fit_key = jax.random.split(key)
        step = fnn.make_train_step(TINY.loss, fnn.adam(rate))
        ts = step.init(fnn.dense_init(init_key, 4, 2))
        ts, _ = fnn.fit(step, ts, data.train, fit_key, epochs=3, batch_size=10)
        x, labels = data.test
        return (fnn.dense(ts.params, x).argmax(-1) == labels).mean()

    expected = [accuracy(key_of("fresh", seed)) for seed in range(3)]
    np.testing.assert_allclose(entry(document, "adam")["final"]["test"], expected, atol=1e-6)


def test_the_command_in_the_document_makes_the_same_plan():
    given = Settings(["adam"], tune=["b2=0.9,0.99"], order="same", epochs=2, hidden=(8,))
    plan = plan_of(given)
    words = command_of(plan).split()
    assert words[:4] == ["fnn", "compare", "--problem", "digits"]
    assert "learning_rate=0.001,0.003,0.01,0.03,0.1,0.3,1" in words
    assert words[words.index("--order") + 1] == "same"
    assert words[-2:] == ["--hidden", "8"]
    assert words[words.index("--trials") + 1] == "14"


# --- a member again -------------------------------------------------------------------------------


@pytest.mark.slow
def test_any_member_again_in_the_same_bits(monkeypatch):
    monkeypatch.setattr("fnn.compare._plan.problem_of", lambda name: TINY)
    document = small([plain_sgd], tune=["scale=0.5,2"])  # a rule of one's own, found by its module
    best = document["rules"][0]["final"]["point"]
    for point, kind, seed in (({"learning_rate": 0.1, "scale": 2}, "trial", 1), (best, "fresh", 2)):
        said = replay_member(document, "plain_sgd", point, kind, seed)
        assert said[1].startswith("The final parameters are the same, bit for bit")


def test_a_file_that_is_no_comparison(tmp_path):
    path = tmp_path / "comparison.json"
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_document(path)
    for content, sentence in (
        ("{", "is no comparison"),
        ("{}", "expected a file of fnn compare"),
        (json.dumps(comparison() | {"version": 1}), "has version 1, expected 2"),
        ('{"schema": "fnn.compare"}', "has version None, expected 2"),
        ('{"schema": "fnn.compare", "version": 2, "rules": []}', "no whole comparison: command, "),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=sentence):
            read_document(path)


# --- the document of made-up results --------------------------------------------------------------


def made(*valid):
    """The document of rules with these validation scores [trials]."""
    rules = ["sgd", "adam"][: len(valid)]
    plan = plan_of(Settings(rules, TINY, trial_seeds=1, seeds=2))
    pairs = zip(plan.rules, valid, strict=True)
    return document_of(plan, [result_of(plan, *pair) for pair in pairs], command="")


def test_a_diverged_trial_counts_as_the_worst_of_all_rules():
    """So that the curves of rules over the number of trials can be compared."""
    sgd, adam = made([0.9, np.nan], [0.5, 0.8])["rules"]
    np.testing.assert_allclose(sgd["expected_best"], [0.7, 0.9], atol=1e-6)
    np.testing.assert_allclose(adam["expected_best"], [0.65, 0.8], atol=1e-6)
    assert sgd["edges"] == ["learning_rate"]


def test_a_rule_that_always_diverges_has_no_best_and_no_edge():
    sgd, adam = made([np.nan, np.nan], [0.5, 0.8])["rules"]
    assert (sgd["expected_best"], sgd["edges"]) == ([None, None], [])
    np.testing.assert_allclose(adam["expected_best"], [0.65, 0.8], atol=1e-6)
    (sgd,) = made([np.nan, np.nan])["rules"]
    assert sgd["expected_best"] == [None, None]


# --- pieces ---------------------------------------------------------------------------------------


class StopError(Exception):
    pass


@pytest.fixture
def trained(monkeypatch):
    """The first member of each piece that was trained, by a program that only looks like one."""
    done, real = [], protocol.trained

    def program(parts, keys, points):
        noise = jax.random.key_data(keys).sum(1) % 97 / 97 + 10 * points["learning_rate"]
        each = np.asarray(noise, np.float32)
        return {
            "valid": each,
            "valid_loss": 1 - each,
            "test_rows": each[:, None] * np.ones((1, 40), np.float32),
            "test_loss": each,
            "loss_by_epoch": each[:, None],
            "valid_by_epoch": each[:, None],
            "skipped": np.zeros(len(each), np.int32),
            "params": [{"w": each}],
        }

    def counted(plan, program, members, size):
        done.append(members[0])
        return real(plan, program, members, size)

    monkeypatch.setattr(protocol, "compiled", lambda *_: pieces.Compiled(program, 0.0))
    monkeypatch.setattr(protocol, "trained", counted)
    monkeypatch.setattr(protocol, "update_program", lambda *_: ())
    monkeypatch.setattr(protocol, "cost_of", lambda *_: {"flops": np.float64(1)})
    return done


def test_which_member_is_meant(trained, monkeypatch):
    def alone(plan, make, key, point):
        given = {name: np.float32([value]) for name, value in point.items()}
        return jax.tree.map(lambda leaf: leaf[0], program(plan.parts, key[None], given))

    program = protocol.compiled().program
    monkeypatch.setattr("fnn.compare._plan.problem_of", lambda name: TINY)
    monkeypatch.setattr("fnn.compare._replay.alone", alone)
    document = small([plain_sgd], tune=["scale=0.5,2"])  # a rule of one's own, found by its module
    (rule,) = document["rules"]
    best = rule["final"]["point"]
    home = plain_sgd.__module__
    for name in ("plain_sgd", home, f"{home}:plain_sgd"):
        for point in (best, {}):  # fresh seeds are of the chosen point
            first, second = replay_member(document, name, point, "fresh", 2)
            assert first.startswith(f"plain_sgd at {point_text(best)}, seed=2: accuracy ")
            assert second.startswith("The final parameters are the same, bit for bit")
    exact = best["scale"]
    best["scale"] = rule["trials"][rule["best"]]["point"]["scale"] = exact + 1e-9
    for scale in (exact + 1e-9, exact):  # as it is, and as the tables print it
        point = best | {"scale": scale}
        assert replay_member(document, "plain_sgd", point, "fresh", 2)[0].startswith("plain_sgd at")
    rule["final"]["digest"][2] = "0" * 16
    assert "are not the same" in replay_member(document, "plain_sgd", best, "fresh", 2)[1]
    other = rule["trials"][-1 if rule["best"] == 0 else 0]["point"]
    for wrong, sentence in (
        (("adm", best, "fresh", 0), "no rule 'adm' in the comparison, expected one of: plain_sgd"),
        (("plain_sgd", best, "fresh", 3), "seed is 3, expected 0 to 2"),
        (("plain_sgd", {"learning_rate": 0.1}, "trial", 0), "fits 2 trials of plain_sgd"),
        (("plain_sgd", {"learning_rate": 9.0}, "trial", 0), "has no trial at learning_rate=9"),
        (("plain_sgd", other, "fresh", 0), "has fresh seeds at .* only"),
    ):
        with pytest.raises(ValueError, match=sentence):
            replay_member(document, *wrong)
    document["problem"]["fingerprint"] = "another"
    with pytest.raises(ValueError, match="is not the one of the comparison"):
        replay_member(document, "plain_sgd", best, "fresh", 0)


def without_clocks(document):
    for rule in document["rules"]:
        del rule["cost"]
    return document


def test_a_comparison_that_is_stopped_goes_on(tmp_path, trained):
    """Stopped before every piece in turn; each was trained once, and the result is the same."""
    rules = ["sgd", "adam"]

    def stopped_at(last):
        def tell(done, total, text):
            if done >= last:
                raise StopError

        return tell

    for last in (1, 2, 4):
        with pytest.raises(StopError):
            small(rules, out=tmp_path, progress=stopped_at(last))
    document = small(rules, out=tmp_path)
    assert len(trained) == 6  # search, fresh seeds and twin of each rule
    assert without_clocks(document) == without_clocks(small(rules))


def test_pieces_of_other_settings(tmp_path, trained):
    def stop(done, total, text):
        if done == 1:
            raise StopError

    with pytest.raises(StopError):
        small(["sgd"], out=tmp_path, progress=stop)
    with pytest.raises(ValueError, match="not finished, with epochs 3 where 2 was given; go on"):
        small(["sgd"], epochs=2, out=tmp_path)
    small(["sgd"], out=tmp_path)
    assert len(trained) == 3
    small(["sgd"], epochs=2, out=tmp_path)  # a finished comparison gives way
    assert len(trained) == 6


def test_a_damaged_piece_is_made_again(tmp_path, trained):
    first = small([plain_sgd], out=tmp_path)
    (piece,) = tmp_path.glob("pieces/plain_sgd/search_0.safetensors")
    piece.write_bytes(piece.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"search_0.safetensors is damaged.*; it is made again"):
        again = small([plain_sgd], out=tmp_path)
    assert len(trained) == 3
    assert without_clocks(again) == without_clocks(first)


def test_only_a_rule_that_has_changed_is_trained_again(tmp_path, trained):
    def rule(factor):
        def mine(learning_rate):
            return plain_sgd(learning_rate, factor)

        return mine

    small(["sgd", rule(1.0)], out=tmp_path)
    assert len(trained) == 5
    small(["sgd", rule(2.0), "momentum"], out=tmp_path)
    assert len(trained) == 5 + 2 + 3


def test_two_processes_do_not_share_a_folder(tmp_path):
    with kept(tmp_path, {"a": 1}), pytest.raises(ValueError, match="in use by another run"):
        kept(tmp_path, {"a": 1}).__enter__()


def test_the_size_of_a_piece(monkeypatch):
    plan = plan_of(Settings(["sgd"], TINY))
    devices = len(jax.devices())
    assert pieces.piece_size(plan, 8) % devices == 0
    assert pieces.piece_size(plan, 21, 20) == 24
    monkeypatch.setattr(pieces, "_seconds_of_a_member", lambda plan: 600.0)
    assert pieces.piece_size(plan, 21, 20) == devices  # a long run: as little as can be lost


def test_no_score_of_the_test_rows_is_kept_of_a_search(tmp_path, trained):
    small(["sgd"], out=tmp_path)
    arrays, _ = fnn.checkpoint.load(tmp_path / "pieces" / "sgd" / "search_0.safetensors")
    assert arrays.keys() == {
        "valid", "valid_loss", "skipped", "digest", "run_seconds", "compile_seconds",
    }  # fmt: skip


# --- numbers --------------------------------------------------------------------------------------


def test_plain_numbers():
    found = plain({"a": np.float32([0.1, np.nan]), "b": np.zeros((2, 0, 3)), "c": np.int64(3)})
    assert found == {"a": [0.1, None], "b": [[], []], "c": 3}
    assert plain(np.arange(12.0).reshape(2, 3, 2)) == np.arange(12.0).reshape(2, 3, 2).tolist()
    assert plain((np.inf, True, None, "text", np.array(2.5))) == [None, True, None, "text", 2.5]


def test_kernels_are_counted_in_the_programs_text():
    text = """HloModule jit_f
%inner (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %f = f32[2]{0} fusion(%p), kind=kLoop, calls=%c
}

ENTRY %main (a: f32[2], b: f32[2]) -> (f32[2], f32[2]) {
  %a = f32[2]{0} parameter(0)
  %b = f32[2]{0} parameter(1)
  %dot = f32[2]{0} dot(%a, %b), lhs_contracting_dims={}
  %call = f32[2]{0} call(%dot), to_apply=%inner
  ROOT %t = (f32[2]{0}, f32[2]{0}) tuple(%dot, %call)
}
"""
    assert kernels_of(text) == 2
    program = jax.jit(lambda x: jnp.sort(x) @ x).lower(jnp.ones(8)).compile()
    assert kernels_of(program.as_text()) >= 2


def test_bits_are_told_apart():
    first = pieces.digest_of([np.float32([0.0, 1.0])])
    assert first == hashlib.sha256(np.float32([0.0, 1.0]).tobytes()).digest()
    assert first != pieces.digest_of([np.float32([-0.0, 1.0])])


def test_threads_end_with_the_bench():
    plan = plan_of(Settings(["sgd"], TINY))
    with kept(None, {}) as store, protocol.bench(plan, store, lambda *_: None) as work:
        assert isinstance(work.pool, ThreadPoolExecutor)
    with pytest.raises(RuntimeError, match="shutdown"):
        work.submit(print)
