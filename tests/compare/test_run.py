"""A rule at a point, and twins side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.compare import RULES
from fnn.compare._plan import Settings, plan_of
from fnn.compare._rule import SAME_RULE
from fnn.compare._run import evaluated, key_of, one_bit_more, scheduled
from fnn.compare._twins import update_difference
from fnn.optim import Optimizer, optax_wrappers
from tests.compare.made_up import TINY, small

pytestmark = pytest.mark.usefixtures("standard_promotion")


# --- a rule at a point ----------------------------------------------------------------------------


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
        ts, take = step.init(params), jax.jit(step)
        for _ in range(3):
            ts, _ = take(ts, jnp.zeros(1), jax.random.key(0))
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


# --- twins ----------------------------------------------------------------------------------------


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
