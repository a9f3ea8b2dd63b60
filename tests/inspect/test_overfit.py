"""`overfit_one_batch` passes a right net and says what is wrong with a wrong one."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.inspect.diagnostics import observe, overfit_one_batch
from fnn.training import Step, step_gradient
from tests.nets import KEY, LABELS, X, linear_init, linear_loss_fn

BATCH = X[:8], LABELS[:8]


def overfit(loss_fn=linear_loss_fn, optimizer=None, params=None, batch=BATCH, wrap=None, **options):
    optimizer = fnn.adam(0.1) if optimizer is None else optimizer
    nonfinite = options.pop("nonfinite", "skip")
    step = fnn.make_train_step(loss_fn, optimizer, nonfinite=nonfinite)
    step = step if wrap is None else wrap(step)
    ts = step.init(linear_init() if params is None else params)
    return overfit_one_batch(step, ts, batch, KEY, **{"steps": 60} | options)


def test_a_right_net_learns_a_batch_by_heart():
    found = overfit(steps=200)
    assert found.fell
    assert found.hints == ()
    assert found.losses.shape == (201,)
    assert found.last <= 0.1 * found.first
    logits = np.asarray(BATCH[0], float) @ np.asarray(linear_init()["w"], float)
    rows = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    first = -rows[np.arange(8), np.asarray(BATCH[1])].mean()
    np.testing.assert_allclose(found.first, first, rtol=1e-5)


def test_the_losses_are_those_of_a_loop():
    step = fnn.make_train_step(linear_loss_fn, fnn.sgd(0.1))
    ts, losses = step.init(linear_init()), []
    found = overfit_one_batch(step, ts, BATCH, KEY, steps=3)
    one = jax.jit(step)
    for _ in range(4):
        losses.append(float(linear_loss_fn(ts.params, BATCH, KEY).mean()))
        ts, _ = one(ts, BATCH, KEY)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-6)


def unused(params, batch, key):
    return linear_loss_fn({"w": params["w"]}, batch, key)


def detached(params, batch, key):
    return linear_loss_fn(jax.tree.map(jax.lax.stop_gradient, params), batch, key)


def dead(params, batch, key):
    h = fnn.relu(fnn.dense(params, batch[0]) - 1e3)
    return jnp.square(h - 1).sum(1)


def breaking(params, batch, key):
    return linear_loss_fn(params, batch, key) + jnp.sqrt(params["b"][0] * 0)


SAYS = {
    "unused": ({"loss_fn": unused, "to": 1e-9}, r"the gradient is 0 before the first step: b; .*"),
    "detached": ({"loss_fn": detached}, r"the gradient is 0 before the first step: b, w"),
    "dead": ({"loss_fn": dead}, r"the gradient is 0 before the first step: b, w"),
    "rate of 0": ({"optimizer": fnn.sgd(0.0)}, r"did not move: b, w; frozen, or a learning rate of 0\?"),
    "frozen": ({"optimizer": fnn.by_path({"w": fnn.freeze(), "b": fnn.sgd(0.1)})}, r"did not move: w; frozen"),
    "rises": ({"optimizer": fnn.chain(fnn.sgd(0.1), fnn.optim.add_weight_decay(0.5))}, "the loss rose: is the learning rate too large"),
    "slow": ({"optimizer": fnn.sgd(0.05)}, r"the loss still falls: more steps"),
    "gradient": ({"loss_fn": breaking}, r"step 0: the gradient of b is not finite; the gradient is not finite before the first step: b"),
    "input": ({"batch": (X[:8].at[2, 1].set(jnp.nan), LABELS[:8])}, r"step 0: the input 0 is not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAYS)
def test_a_hint_names_what_is_wrong(name):
    options, message = SAYS[name]
    found = overfit(**options)
    assert not found.fell
    assert re.search(message, repr(found)), found


def test_a_wrapped_step_names_what_did_not_move():
    wrap = partial(observe, measure=lambda ts, new, batch: {"one": jnp.ones(())})
    found = overfit(unused, wrap=wrap, to=1e-9)
    assert found.hints[0].startswith("did not move: b")


def test_a_state_and_half_precision_are_trained():
    def loss_fn(params, state, batch, key):
        x, state = fnn.batch_norm(params["norm"], state, batch[0], train=True)
        return fnn.cross_entropy(fnn.dense(params["logits"], x), batch[1]), state

    norm, state = fnn.batch_norm_init(4)
    params = {"norm": norm, "logits": linear_init()}
    step = fnn.make_train_step(loss_fn, fnn.adam(0.1), compute_dtype="bfloat16")
    found = overfit_one_batch(step, step.init(params, state), BATCH, KEY, to=0.2)
    assert found.fell, found


def test_the_gradient_of_a_step_is_jaxs():
    step = fnn.make_train_step(linear_loss_fn, fnn.adam(0.1), clip_norm=1e-3, accumulate=2)
    ts = step.init(linear_init())
    found = jax.jit(partial(step_gradient, step))(ts, BATCH, KEY)
    expected = jax.grad(lambda p: linear_loss_fn(p, BATCH, KEY).mean())(ts.params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, expected)
    mask = jnp.arange(8) < 4
    found = jax.jit(partial(step_gradient, step))(ts, BATCH, KEY, mask)
    expected = jax.grad(lambda p: linear_loss_fn(p, BATCH, KEY)[:4].mean())(ts.params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "overfit_one_batch: steps is 0, expected at least 1"),
        ({"to": -1.0}, ValueError, "overfit_one_batch: to is -1.0, expected a number >= 0"),
        ({"key": 0}, TypeError, "overfit_one_batch: key is int, expected a key"),
    ],
)
def test_mistakes(options, error, message):
    step = fnn.make_train_step(linear_loss_fn, fnn.adam(0.1))
    given = {"key": KEY} | options
    with pytest.raises(error, match=message):
        overfit_one_batch(step, step.init(linear_init()), BATCH, given.pop("key"), **given)


def test_a_loss_below_0_has_to_fall_too():
    def below(params, batch, key):
        return linear_loss_fn(params, batch, key) - 100

    still = overfit(below, fnn.sgd(0.0), steps=2)
    assert not still.fell
    assert [hint[:12] for hint in still.hints] == ["did not move"]  # nor does it "still fall"
    found = overfit(below, to=0.995)
    assert found.fell == (found.last <= found.first - 0.005 * abs(found.first))
    assert found.fell
    assert not overfit(below, to=0.1).fell


def test_a_step_without_a_loss():
    step = fnn.make_train_step(linear_loss_fn, fnn.adam(0.1))

    def update(ts, batch, key, mask=None):
        return ts, {"accuracy": step(ts, batch, key)[1]["loss"]}

    own = Step(step.init, update)
    with pytest.raises(ValueError, match=r"metrics of step are \['accuracy'\], expected a loss"):
        overfit_one_batch(own, step.init(linear_init()), BATCH, KEY)
