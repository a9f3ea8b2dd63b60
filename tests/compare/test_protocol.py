"""Rules, plans, pieces and the protocol, on a problem that trains in a moment."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.compare import DEFAULT, RULES, Problem, compare_optimizers, replay_member
from fnn.compare import _protocol as protocol
from fnn.compare._cost import kernels_of
from fnn.compare._document import as_json, command_of, document_of, plain, read_document
from fnn.compare._plan import Settings, plan_of
from fnn.compare._problem import Parts
from fnn.compare._rules import SAME_RULE, contained, rule_of
from fnn.compare._run import at_point, evaluated, key_of, one_bit_more, scheduled
from fnn.compare._store import kept
from fnn.compare._tuning import parse_axis, point_text
from fnn.compare._twins import update_difference
from fnn.optim import Optimizer, optax_wrappers
from tests.compare.made_up import result_of
from tests.comparison_document import comparison

pytestmark = pytest.mark.usefixtures("standard_promotion")


def drawn(seed, rows):
    x = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)
    return x, (x @ np.float32([1, -2, 0.5, 0]) > 0).astype(np.int32)


def loss(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.dense(params, x), labels)


def scores(params, batch):
    x, labels = batch
    logits = fnn.dense(params, x)
    return {"accuracy": fnn.accuracy(logits, labels), "loss": fnn.cross_entropy(logits, labels)}


TINY = Problem(
    name="tiny",
    data=lambda: Parts(drawn(0, 32), drawn(1, 24), drawn(2, 40)),
    init=lambda key: fnn.dense_init(key, 4, 2),
    loss=loss,
    scores=scores,
    score="accuracy",
    better="higher",
    epochs=3,
    batch_size=10,
    rates=(0.01, 0.1),
    target=0.9,
)


def plain_sgd(learning_rate, scale=1.0):
    """p <- p - rate scale g.

    Written by the user.
    """

    def update(grads, state, params=None):
        return jax.tree.map(lambda g: -learning_rate * scale * g, grads), state

    return Optimizer(lambda params: (), update)


small = partial(compare_optimizers, problem=TINY, trial_seeds=2, seeds=3)


@pytest.fixture(scope="module")
def document():
    """A whole comparison: a rule whose twin is the same in every bit, one by rounding, one's own."""
    with jax.numpy_dtype_promotion("standard"):
        return small(["sgd", "adam", plain_sgd])


def entry(document, name):
    return next(rule for rule in document["rules"] if rule["name"] == name)


# --- the whole ----------------------------------------------------------------------------------


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
        step = fnn.make_train_step(loss, fnn.adam(rate))
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


# --- a member again -----------------------------------------------------------------------------


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


# --- the document of made-up results ------------------------------------------------------------


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


# --- pieces -------------------------------------------------------------------------------------


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

    monkeypatch.setattr(protocol, "compiled", lambda *_: protocol.Compiled(program, 0.0))
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
    monkeypatch.setattr("fnn.compare._comparison.alone", alone)
    document = small([plain_sgd], tune=["scale=0.5,2"])  # a rule of one's own, found by its module
    (rule,) = document["rules"]
    best = rule["final"]["point"]
    for name in ("plain_sgd", __name__, f"{__name__}:plain_sgd"):
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
    assert protocol.piece_size(plan, 8) % devices == 0
    assert protocol.piece_size(plan, 21, 20) == 24
    monkeypatch.setattr(protocol, "_seconds_of_a_member", lambda plan: 600.0)
    assert protocol.piece_size(plan, 21, 20) == devices  # a long run: as little as can be lost


def test_no_score_of_the_test_rows_is_kept_of_a_search(tmp_path, trained):
    small(["sgd"], out=tmp_path)
    arrays, _ = fnn.checkpoint.load(tmp_path / "pieces" / "sgd" / "search_0.safetensors")
    assert arrays.keys() == {
        "valid", "valid_loss", "skipped", "digest", "run_seconds", "compile_seconds",
    }  # fmt: skip


# --- a rule at a point --------------------------------------------------------------------------


def test_scheduled():
    def rates(steps, **shape):
        rate = scheduled(jnp.float32(2.0), steps, **shape)
        return np.array([rate(jnp.int32(t)) for t in range(steps)])

    np.testing.assert_allclose(rates(4, warmup=0.5), [1, 2, 2, 2])
    np.testing.assert_allclose(rates(4, final=0.0), [2, 1.5, 1, 0.5])
    np.testing.assert_allclose(rates(4, final=0.5), [2, 1.75, 1.5, 1.25])
    np.testing.assert_allclose(rates(8, warmup=0.25, stable=0.5), [1, 2, 2, 2, 2, 1.5, 1, 0.5])
    np.testing.assert_allclose(rates(4, warmup=0.5, final=0.0), [1, 2, 2, 1])
    np.testing.assert_allclose(rates(3, warmup=0.0, stable=1.0, final=0.0), [2, 2, 2])


@pytest.mark.slow
def test_reserved_axes_reach_the_run():
    """Clipping at a norm that no gradient has changes nothing; the rest does."""
    axes = ["learning_rate=0.1", "clip_norm=0.01,1e9", "warmup=0,0.5", "final=0,1"]
    document = small(["sgd"], tune=axes, trial_seeds=1)
    digest = {
        tuple(trial["point"].values())[1:]: trial["digest"][0]
        for trial in document["rules"][0]["trials"]
    }
    assert len(set(digest.values())) == 8
    plain = small(["sgd"], tune=["learning_rate=0.1"], trial_seeds=1)
    assert digest[1e9, 0, 1] == plain["rules"][0]["trials"][0]["digest"][0]


@pytest.mark.slow
def test_hyperparameters_reach_the_rule():
    """momentum without momentum is sgd, bit for bit; and so is the inclusion check's idea."""
    document = small(["sgd", "momentum"], tune=["momentum.decay=0,0.9", "sgd.warmup=0,0.2"])
    sgd, momentum = document["rules"]
    at = {tuple(t["point"].values()): t["digest"] for t in momentum["trials"]}
    for trial in sgd["trials"]:
        if trial["point"]["warmup"] == 0:
            assert at[trial["point"]["learning_rate"], 0.0] == trial["digest"]
    assert [(i["rule"], i["contains"]) for i in document["inclusion"]] == [("momentum", "sgd")]


def test_schedule_free_is_evaluated_at_its_average():
    params = {"w": jnp.array([1.0, -2.0])}
    mine = fnn.optim.schedule_free_adamw(0.1)
    update, p, state = jax.jit(mine.update), params, mine.init(params)
    for _ in range(3):
        updates, state = update({"w": 2 * p["w"]}, state, p)
        p = fnn.apply_updates(p, updates)
    for make in (fnn.optim.schedule_free_adamw, optax_wrappers.schedule_free_adamw):
        step = fnn.make_train_step(lambda p, b, k: (p["w"] ** 2).sum(), make(0.1))
        ts = step.init(params)
        for _ in range(3):
            ts, _ = step(ts, jnp.zeros(1), jax.random.key(0))
        found = evaluated(ts)
        assert not np.allclose(found["w"], ts.params["w"])
        np.testing.assert_allclose(found["w"], state["x"]["w"], rtol=1e-5)


def test_one_bit_more():
    more = one_bit_more({"learning_rate": 0.1, "b1": 0.9})
    assert np.float32(more["learning_rate"]).view(np.int32) - np.float32(0.1).view(np.int32) == 1
    assert more["b1"] == 0.9


def test_fresh_seeds_take_no_part_in_the_search():
    keys = [
        tuple(jax.random.key_data(key_of(k, s)).tolist())
        for k in ("trial", "fresh")
        for s in range(50)
    ]
    assert len(set(keys)) == 100


# --- twins --------------------------------------------------------------------------------------


def apart(hand, twin, rate=0.1):
    plan = plan_of(Settings(["sgd"], TINY, epochs=10))
    return update_difference(plan, hand, twin, {"learning_rate": rate})


def adam_without_bias_correction(rate):
    def init(params):
        return jax.tree.map(jnp.zeros_like, (params, params))

    def update(grads, state, params=None):
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[0], grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, state[1], grads)
        return jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + 1e-8), m, v), (m, v)

    return Optimizer(init, update)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "by"),
    [
        (lambda rate: fnn.adamw(1.01 * rate), 0.01),
        (lambda rate: fnn.adamw(rate, b2=0.9991), 1e-4),
        (adam_without_bias_correction, 1e-1),
        (lambda rate: fnn.adam(rate), 1e-6),  # the weight decay is missing
    ],
)
def test_a_wrong_rule_is_caught(wrong, by):
    assert apart(wrong, optax_wrappers.adamw) > by > SAME_RULE


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.twin])
def test_the_same_rule_is_found_to_be_the_same(name):
    for rate in (0.001, 0.1):
        assert apart(RULES[name].make, RULES[name].twin, rate) < 0.1 * RULES[name].same_below


@pytest.mark.slow
def test_a_twin_that_is_another_rule_is_said_to_be():
    rule = fnn.compare.Rule("lazy", fnn.adam, twin=lambda rate: optax.adam(0.99 * rate))
    document = small([rule])
    assert document["rules"][0]["twin_final"]["apart_by"] == "rules"


# --- rules --------------------------------------------------------------------------------------

TREE = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_takes_what_it_says(name):
    """Each hyperparameter as a traced number, beside a traced rate; the twin its own."""
    rule = RULES[name]
    for make, takes in ((rule.make, rule.takes), (rule.twin_for([]), ())):
        if make is None:
            continue

        def moved(rate, hyper, make=make):
            optimizer = make(rate, **hyper)
            return optimizer.update(TREE, optimizer.init(TREE), TREE)[0]

        out = jax.eval_shape(moved, jnp.float32(0.1), dict.fromkeys(takes, jnp.float32(0.5)))
        assert jax.tree.structure(out) == jax.tree.structure(TREE)
    assert rule.formula


def test_all_rules_of_fnn_are_there():
    """Every rule of the door, by its docstring's formula and its first argument."""
    skip = {"clip_by_global_norm", "decay_weights", "lift"}
    for name in fnn.optim.__all__:
        value = getattr(fnn.optim, name)
        first = getattr(value, "__code__", None) and value.__code__.co_varnames[:1]
        if first == ("learning_rate",) and name not in skip:
            assert name in RULES
    assert set(DEFAULT) <= set(RULES)


def test_twins_of_rules_that_are_tuned_further():
    assert RULES["adam"].twin_for(["b1", "clip_norm"]) is optax_wrappers.adam
    assert RULES["adam"].twin_for(["eps_root"]) is None
    assert RULES["soap"].twin_for([]) is None


def test_what_contains_what():
    def searched(*texts):
        return [parse_axis(text) for text in texts]

    assert contained(RULES["momentum"], searched("decay=0..0.9")) == ["sgd"]
    assert contained(RULES["momentum"], searched("decay=0.5..0.9")) == []
    assert contained(RULES["momentum"], searched("learning_rate=0.1,1")) == []
    assert contained(RULES["adamw"], searched("weight_decay=0,0.1")) == ["adam"]
    around = "alpha=0,5", "weight_decay=0,0.1"  # 1e-4 lies between the values, but is none of them
    assert contained(RULES["ademamix"], searched(*around)) == ["adam"]
    around = "alpha=0,5", "weight_decay=0,0.0001,0.1"
    assert contained(RULES["ademamix"], searched(*around)) == ["adam", "adamw"]


def test_a_rule_of_ones_own(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text(
        "import fnn\nHELPER = 1\ndef _inner(learning_rate): ...\n"
        "def other(x): ...\ndef mine(learning_rate, decay=0.9, n: int = 5, flag=False):\n"
        "    'A formula.'\n    return fnn.momentum(learning_rate, decay)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for text in (str(path), f"{path}:mine", "mine:mine"):
        rule = rule_of(text)
        assert (rule.name, rule.takes, rule.formula) == ("mine", ("decay",), "A formula.")
        assert rule.twin is None
    assert rule_of(fnn.adam) is RULES["adam"]
    assert rule_of(plain_sgd).by == __name__
    monkeypatch.setattr(plain_sgd, "__module__", "__main__")  # of a program that is run
    assert rule_of(plain_sgd).by.endswith("tests/compare/test_protocol.py")


RULE = "def mine(learning_rate):\n    return None\n"


@pytest.mark.parametrize(
    ("source", "name", "sentence"),
    [
        (None, "", "there is no file"),
        ("x = ", "", "does not import: SyntaxError"),
        ("import nothing_at_all", "", "does not import: ModuleNotFoundError"),
        ("x = 1", "", r"does not define a rule, a function \(learning_rate"),
        (RULE + RULE.replace("mine", "two"), "", "defines several rules; choose one, as in"),
        (RULE, ":mien", "does not define 'mien'; did you mean mine?"),
        ("def f(rate): ...", ":f", "takes rate first, expected a function"),
        ("def adam(learning_rate): ...", "", "has a name that fnn's own rule has"),
    ],
)
def test_a_rule_that_cannot_be_taken(source, name, sentence, tmp_path):
    path = tmp_path / "my_rules.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(ValueError, match=sentence) as caught:
        rule_of(f"{path}{name}")
    assert "\n" not in str(caught.value)


def no_optimizer(learning_rate):
    return learning_rate


def broken(learning_rate):
    raise RuntimeError("of the user")


def leaving(learning_rate):
    raise SystemExit(0)


def needs(learning_rate, strength):
    return fnn.sgd(learning_rate)


def too_wide(learning_rate):
    return Optimizer(lambda p: (), lambda g, s, p: (jax.tree.map(lambda g: g[None], g), s))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rules": []}, "rules is empty, expected some of: sgd, momentum"),
        ({"rules": {"../adam": fnn.adam}}, "rules has the name '../adam', expected one without"),
        ({"rules": ["adm"]}, "unknown rule 'adm', .*; did you mean adam?"),
        ({"rules": ["sgd", "sgd"]}, "a rule is named twice: sgd, sgd"),
        ({"rules": [no_optimizer]}, "no_optimizer .* fails: TypeError"),
        ({"rules": [broken]}, "broken .* fails: RuntimeError: of the user"),
        ({"rules": [leaving]}, "leaving .* fails: SystemExit: 0"),
        ({"rules": [needs]}, "needs takes strength, which has no default; expected --tune"),
        ({"rules": [too_wide]}, "too_wide .* fails|too_wide .* returns updates of other shapes"),
        ({"seeds": 0}, "seeds is 0, expected at least 1"),
        ({"trial_seeds": 0}, "trial_seeds is 0, expected at least 1"),
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"batch_size": 33}, "batch_size 33 exceeds the 32 training rows"),
        ({"order": "old"}, "order is 'old', expected 'new' or 'same'"),
        ({"how": "random"}, "how is 'random', expected 'grid' or 'sobol'"),
        ({"target": "high"}, "target is 'high', expected a number"),
        ({"tune": ["b9=0.9,0.99"]}, "adam does not take b9, expected one of: learning_rate"),
        (
            {"rules": ["sgd", "adam"], "tune": ["b2=0.9,0.99"]},
            "sgd does not take b2, .*; adam.b2=... tunes it for adam only",
        ),
        ({"tune": ["adm.b1=0.9,0.99"]}, "'adm' is no rule of this comparison"),
        ({"tune": ["b1=0.9..0.5"]}, "the range is empty"),
        ({"tune": ["b1=0..0.5:log"]}, "expected > 0 on a log scale"),
        ({"tune": ["learning_rate=0.1..1"], "how": "grid"}, "expected a number of trials"),
        ({"tune": ["b1=0.9,0.8"], "trials": 5}, "trials is 5, expected 4"),
        ({"rules": ["sgd", "adam"], "tune": ["adam.b1=0.9,0.8"]}, "the same number of trials"),
        ({"hidden": (4,)}, "hidden sizes came with the problem tiny, expected digits"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_run(settings, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence) as caught:
        plan_of(Settings(**({"rules": ["adam"], "problem": TINY} | settings)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("fnn compare: ")


def test_every_rule_gets_the_same_number_of_trials():
    given = {"rules": ["sgd", "adam"], "problem": TINY}
    plan = plan_of(Settings(**given, tune=["adam.b1=0.8..0.95"]))
    assert (plan.how, plan.trials) == ("sobol", 16)
    assert [len(points) for points in plan.points.values()] == [16, 16]
    assert set(plan.points["adam"][0]) == {"learning_rate", "b1"}
    assert set(plan.points["sgd"][0]) == {"learning_rate"}
    assert plan_of(Settings(**given)).points["adam"] == [
        {"learning_rate": 0.01}, {"learning_rate": 0.1},
    ]  # fmt: skip
    assert at_point(fnn.adam, 12, {"learning_rate": 0.1, "b1": 0.8}).init(TREE)


# --- numbers ------------------------------------------------------------------------------------


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
    first = protocol.digest_of([np.float32([0.0, 1.0])])
    assert first == hashlib.sha256(np.float32([0.0, 1.0]).tobytes()).digest()
    assert first != protocol.digest_of([np.float32([-0.0, 1.0])])


def test_threads_end_with_the_bench():
    plan = plan_of(Settings(["sgd"], TINY))
    with kept(None, {}) as store, protocol.bench(plan, store, lambda *_: None) as work:
        assert isinstance(work.pool, ThreadPoolExecutor)
    with pytest.raises(RuntimeError, match="shutdown"):
        work.submit(print)
