"""Steps that are not finite: what is left of them, what is said, and that wrappers keep the policy."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.inspect import diagnostics
from tests.nets import KEY, LABELS, X, linear_init, linear_loss_fn


def scaled(params, batch, key):
    return params * batch


# --- a run with one bad row -----------------------------------------------------------------------


def test_a_bad_step_is_skipped_and_reported():
    def fit(ts, x, policy):
        step = fnn.make_train_step(linear_loss_fn, fnn.adam(0.1), nonfinite=policy)
        return fnn.fit(step, ts, (x, LABELS), KEY, epochs=2, batch_size=16)

    start = fnn.make_train_step(linear_loss_fn, fnn.adam(0.1)).init(linear_init())
    x = X.at[42, 0].set(jnp.inf)
    (ts, history), (poisoned, _) = jax.jit(
        lambda ts: [fit(ts, x, policy) for policy in ("skip", "ignore")]
    )(start)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ts))
    bad = np.asarray(history["nonfinite"]) >= 0
    assert bad.sum() == 2  # once an epoch
    assert (~np.isfinite(np.asarray(history["loss"]))).sum() == 2
    assert int(ts.step) == 14
    assert int(ts.opt_state["count"]) == 12  # the moments have not seen it
    epoch, step = np.argwhere(bad)[0]
    with pytest.raises(FloatingPointError, match=f"epoch {epoch}, step {step}: the input 0 is not"):
        fnn.check_finite(history, ts.params, (X, LABELS))
    inputs = fnn.training.names_of_bad(ts.params, (X, LABELS)).index("the input 0")
    assert (int(ts.first_bad.step), int(ts.first_bad.what)) == (step, inputs)
    assert not ts.first_bad.ends()
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(poisoned.params))


def test_a_bad_step_leaves_everything_but_the_counter():
    step = fnn.make_train_step(scaled, fnn.adam(0.1), clip_norm=1.0)
    ts = step.init(jnp.ones(3))
    after, metrics = jax.jit(step)(ts, jnp.full((4, 1), jnp.nan), KEY)
    unchanged = after._replace(step=ts.step, first_bad=ts.first_bad)
    chex.assert_trees_all_equal(unchanged, ts)
    assert int(after.step) == 1
    assert np.isnan(metrics["loss"])


@pytest.mark.parametrize("policy", ["stop", "raise"])
def test_after_a_bad_step_nothing_goes_on(policy):
    step = fnn.make_train_step(scaled, fnn.adam(0.1), nonfinite=policy)
    update, good = jax.jit(step), jnp.ones((4, 1))
    ts, _ = update(step.init(jnp.ones(3)), good, KEY)
    bad, told = update(ts, good * jnp.nan, KEY)
    after, metrics = update(bad, good, KEY)
    chex.assert_trees_all_equal(after.params, ts.params)
    chex.assert_trees_all_equal(after.opt_state, ts.opt_state)
    assert (int(after.first_bad.step), after.first_bad.what) == (1, told["nonfinite"])
    assert after.first_bad.ends()
    assert int(metrics["nonfinite"]) == -1


# --- the report -----------------------------------------------------------------------------------


def two_steps(loss, optimizer=None, batch=1.0):
    """The state after two steps on two parameters, and the report."""
    params = {"a": jnp.ones(2), "z": {"w": jnp.ones(2)}}
    step = fnn.make_train_step(loss, optimizer or fnn.sgd(0.1))
    ts, metrics = jax.lax.scan(
        lambda ts, x: step(ts, x, KEY), step.init(params), batch + jnp.zeros((2, 2))
    )
    with pytest.raises(FloatingPointError) as report:
        fnn.check_finite({"nonfinite": metrics["nonfinite"][None]}, params, {"x": 0})
    return ts, str(report.value)


def slope(p, batch, key):
    return p["a"] * batch + jnp.sqrt(p["z"]["w"] - 1)  # infinite in z/w


def linear(p, batch, key):
    return 10 * p["a"] * batch + p["z"]["w"]


BAD_UPDATE = optax.stateless(lambda g, p: {"a": g["a"], "z": {"w": g["z"]["w"] / 0}})


@pytest.mark.parametrize(
    ("how", "at", "what"),
    [
        ((slope,), 0, "the gradient of z/w"),
        ((linear, None, jnp.nan), 0, "the input x"),
        ((lambda p, b, k: p["a"] + jnp.inf,), 0, "the loss"),
        ((linear, fnn.sgd(jnp.asarray(jnp.inf))), 0, "the learning rate"),
        (
            (lambda p, b, k: 1e20 * p["z"]["w"], fnn.adam(0.1)),
            0,
            "the square of the gradient of z/w",
        ),
        # Parameters are looked at when the next step's loss or gradient is not finite.
        ((linear, fnn.sgd(3e38)), 1, "the parameter a"),
        ((linear, BAD_UPDATE), 1, "the parameter z/w"),
    ],
)
def test_the_report_names_what_was_bad_first(how, at, what):
    ts, report = two_steps(*how)
    assert report == f"epoch 0, step {at}: {what} is not finite"
    assert int(ts.first_bad.step) == at


def test_a_gradient_that_no_moment_can_hold_freezes_nothing():
    # 1e20 squared overflows: v would be inf, and the weight would never move again.
    def loss_fn(p, batch, key):
        return p * batch

    batches = jnp.array([[1e20], [1.0], [1.0]])
    for optimizer in (fnn.adam(0.1), fnn.rmsprop(0.1), fnn.adagrad(0.1)):
        step = fnn.make_train_step(loss_fn, optimizer)
        update = partial(step.update, key=KEY)
        ts, metrics = jax.lax.scan(update, step.init(jnp.ones(())), batches)
        np.testing.assert_array_equal(metrics["nonfinite"] >= 0, [True, False, False])
        assert float(ts.params) < 0.9
    # Clipped it is harmless, and plain descent keeps nothing.
    for options in ({"optimizer": fnn.adam(0.1), "clip_norm": 1.0}, {"optimizer": fnn.sgd(1e-20)}):
        step = fnn.make_train_step(loss_fn, **options)
        ts, metrics = jax.jit(step)(step.init(jnp.ones(())), batches[0], KEY)
        assert int(metrics["nonfinite"]) == -1
        assert float(ts.params) < 1


def test_the_report_names_the_member():
    params = {"a": np.ones(2), "z": {"w": np.ones(2)}}
    members = np.full((3, 2, 4, 5), -1)
    members[1, 0, 2, 3] = 1
    with pytest.raises(FloatingPointError, match=r"epoch 2, step 3, member \(1, 0\): .* z/w"):
        fnn.check_finite({"nonfinite": members}, params)
    fnn.check_finite({"nonfinite": np.full((2, 3), -1)}, params)


# --- a policy is kept, and costs nothing ----------------------------------------------------------


def test_a_policy_costs_no_copy():
    # Choosing element by element between old and new held three parameter sizes more.
    def program(policy):
        step = fnn.make_train_step(lambda p, b, k: (b @ p) ** 2, fnn.adam(0.1), nonfinite=policy)
        data = jnp.ones((20, 300))
        fit = jax.jit(lambda ts: fnn.fit(step, ts, data, KEY, epochs=1, batch_size=10))
        return fit.lower(step.init(jnp.ones((300, 300)))).compile()

    programs = [program(policy) for policy in ("skip", "ignore")]
    skip, ignore = (compiled.memory_analysis() for compiled in programs)
    assert skip.temp_size_in_bytes <= ignore.temp_size_in_bytes + 1024
    bytes_moved = [compiled.cost_analysis()["bytes accessed"] for compiled in programs]
    assert bytes_moved[0] <= 1.01 * bytes_moved[1]


ROWS = np.arange(8.0, dtype=np.float32)
SHUFFLE_KEY = jax.random.fold_in(jax.random.split(KEY)[0], 0)
ROWS[fnn.data.permutation(SHUFFLE_KEY, 8)[7]] = np.inf  # in the second of two steps
WRAPPERS = {
    "itself": lambda step: step,
    "observe": lambda step: diagnostics.observe(
        step, lambda ts, new, batch: {"moved": jnp.abs(new.params - ts.params)}
    ),
    "data_parallel": lambda step: fnn.data_parallel(step, jax.devices()[:2]),
    "a lambda": lambda step: lambda ts, batch, key, mask=None: step(ts, batch, key, mask),
    "functools.partial": partial,
    "jax.jit": jax.jit,
    "several": lambda step: jax.jit(
        fnn.data_parallel(diagnostics.observe(step, lambda *_: {"a": 0}), jax.devices()[:2])
    ),
}


def wrapped(name, policy):
    step = fnn.make_train_step(scaled, fnn.sgd(0.1), nonfinite=policy)
    return WRAPPERS[name](step), step.init(jnp.ones(()))


@pytest.fixture(scope="module")
def runs_until():
    """{(wrapper, policy): progress of `fit_until` over 3 epochs, a bad row in each}."""
    stop = fnn.EarlyStopping("grad_norm", patience=9)
    names = [(name, "stop") for name in WRAPPERS]
    names += [("itself", "raise"), ("several", "raise"), ("itself", "skip"), ("a lambda", "skip")]

    def until(name, policy):
        step, ts = wrapped(name, policy)
        return fnn.fit_until(step, ts, ROWS, KEY, stop, epochs=3, batch_size=4)[0]

    return dict(zip(names, jax.jit(lambda: [until(*each) for each in names])(), strict=True))


@pytest.mark.parametrize(
    ("wrapper", "policy"),
    [*((name, "stop") for name in WRAPPERS), ("itself", "raise"), ("several", "raise")],
)
def test_fit_until_ends_with_any_wrapper(wrapper, policy, runs_until):
    progress = runs_until[wrapper, policy]
    first = progress.last.first_bad
    assert fnn.training.POLICIES[int(first.policy)] == policy
    assert first.found()
    assert first.ends()
    assert progress.stopped
    assert int(progress.epochs) == 1
    assert np.isfinite(progress.last.params)


@pytest.mark.parametrize("wrapper", ["itself", "a lambda"])
def test_a_policy_that_does_not_end_the_run_does_not(wrapper, runs_until):
    progress = runs_until[wrapper, "skip"]
    assert progress.last.first_bad.found()
    assert not progress.stopped
    assert int(progress.epochs) == 3


# Of those that hide the step, one is enough for the host's part: the program is that of `fit_until`.
@pytest.mark.parametrize("wrapper", ["observe", "data_parallel", "a lambda", "several"])
def test_train_raises_with_wrappers(wrapper):
    step, ts = wrapped(wrapper, "raise")
    said = r"train: epoch 0, step 1: the input is not finite; fnn.replay takes that step again"
    with pytest.raises(fnn.training.NonFiniteError, match=said) as caught:
        fnn.train(step, ts, ROWS, KEY, epochs=3, batch_size=4, progress=False)
    result = caught.value.result
    assert (result.stopped, result.epochs) == ("not finite", 1)
    assert result.settings["nonfinite"] == "raise"


@pytest.mark.parametrize("wrapper", ["observe", "data_parallel"])
def test_a_wrapped_step_is_still_a_pair(wrapper):
    step, _ = wrapped(wrapper, "stop")
    assert isinstance(step, fnn.training.Step)
    assert step.policy == "stop"
    assert step.init(jnp.ones(())).first_bad.policy == fnn.training.POLICIES.index("stop")


def test_the_policy_is_the_steps_and_not_that_of_the_state():
    """A run that was saved under "skip" and goes on under "stop" stops."""
    skip, stop = (fnn.make_train_step(scaled, fnn.sgd(0.1), nonfinite=p) for p in ("skip", "stop"))
    ts, _ = jax.jit(stop)(skip.init(jnp.ones(())), jnp.array([jnp.inf, 1.0]), KEY)
    assert ts.first_bad.ends()


def test_more_numbers_than_an_int32_can_count():
    step = fnn.make_train_step(lambda p, b, k: p["w"][0, :1] * b, fnn.sgd(0.1))
    params = {"w": jax.ShapeDtypeStruct((60_000, 60_000), jnp.float32)}
    ts, key = jax.eval_shape(step.init, params), jax.random.key(0)
    assert jax.eval_shape(step, ts, jnp.ones(4), key)[0].params["w"].shape == (60_000, 60_000)
