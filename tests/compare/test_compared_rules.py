"""Rules, rules of one's own, and settings that cannot be run."""

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.compare import DEFAULT, RULES
from fnn.compare._plan import Settings, plan_of
from fnn.compare._rule import contained
from fnn.compare._rules import rule_of
from fnn.compare._run import at_point
from fnn.compare._tuning import parse_axis
from fnn.optim import Optimizer, optax_wrappers
from tests.compare.made_up import TINY, plain_sgd

pytestmark = pytest.mark.usefixtures("standard_promotion")


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
    assert rule_of(plain_sgd).by == plain_sgd.__module__
    monkeypatch.setattr(plain_sgd, "__module__", "__main__")  # of a program that is run
    assert rule_of(plain_sgd).by.endswith("tests/compare/made_up.py")


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
