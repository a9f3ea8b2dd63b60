"""A whole run as one pure function: its keys, its rows, its tail, one program, and going on."""

import subprocess
import sys
import warnings
from functools import partial

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training import FirstBad, Step, TrainState
from fnn.training._loops import batches_of_run
from tests.nets import (
    KEY,
    LABELS,
    X,
    dropout_loss_fn,
    init,
    linear_dropout_loss_fn,
    linear_init,
    linear_loss_fn,
    linear_run,
    run,
)

RATE = jnp.float32(0.1)


def scaled(params, batch, key):
    return params * batch


@pytest.fixture(scope="module")
def one_run():
    return jax.jit(linear_run)


# --- keys and rows ------------------------------------------------------------------------------


def test_steps_draw_from_the_key_and_their_number():
    def spy(params, batch, key):
        jax.debug.callback(lambda bits: drawn.append(int(bits)), jax.random.bits(key))
        return params * batch

    def draws(ts, epochs):
        drawn.clear()
        fnn.fit(step, ts, jnp.ones(7), KEY, epochs=epochs, batch_size=1)
        jax.effects_barrier()
        return drawn.copy()

    drawn = []
    step = fnn.make_train_step(spy, fnn.sgd(0.1))
    ts = step.init(jnp.ones(()))
    first = draws(ts, 2)
    assert len(set(first)) == 14
    assert draws(ts._replace(step=jnp.int32(7)), 1) == first[7:]


def test_every_epoch_sees_every_row_once_in_an_order_of_its_own():
    def recording(params, state, batch, key):
        seen, count = state
        return params + 0.0 * batch, (seen.at[count].set(batch), count + 1)

    step = fnn.make_train_step(recording, fnn.sgd(0.1))
    ts = step.init(jnp.ones(()), (jnp.zeros((8, 25)), jnp.zeros((), jnp.int32)))
    ts, _ = fnn.fit(step, ts, jnp.arange(100.0), KEY, epochs=2, batch_size=25)
    epochs = np.asarray(ts.state[0]).reshape(2, 100)
    for order in epochs:
        assert sorted(order) == list(range(100))
        assert (order != np.arange(100)).any()
    assert (epochs[0] != epochs[1]).any()


def test_data_may_be_numpy():
    step = fnn.make_train_step(scaled, fnn.sgd(0.1))
    fit = partial(fnn.fit, step, step.init(jnp.ones(())), key=KEY, epochs=2, batch_size=4)
    rows = np.arange(10, dtype=np.float32)
    chex.assert_trees_all_equal(fit(data=rows), fit(data=jnp.asarray(rows)))


# --- one program --------------------------------------------------------------------------------


def test_numbers_never_recompile():
    traces = []

    @jax.jit
    def whole(key, rate, b1, b2, eps, clip_norm):
        def counted(params, batch, key):
            traces.append(1)
            return scaled(params, batch, key)

        step = fnn.make_train_step(counted, fnn.adam(rate, b1, b2, eps), clip_norm=clip_norm)
        rows = jnp.arange(1.0, 8.0)
        return fnn.fit(step, step.init(jax.random.normal(key)), rows, key, epochs=2, batch_size=4)

    results = [
        whole(jax.random.key(seed), rate, b1, b2, eps, clip)
        for seed, rate, b1, b2, eps, clip in (
            (0, 1e-3, 0.9, 0.999, 1e-8, 1.0),
            (1, 1, 0, 0.5, 1e-3, 5),
            (2, 0.1, 0.5, 0.9, 0.0, 0.1),
        )
    ]
    assert whole._cache_size() <= 2  # a Python int in place of a float is another aval
    assert len(traces) <= 2
    assert len({float(history["loss"].sum()) for _, history in results}) == 3


def test_a_run_is_as_many_dispatches_however_long():
    def operations(epochs, rows):
        step = fnn.make_train_step(dropout_loss_fn, fnn.adam(0.1))
        data = (jnp.tile(X, (rows, 1)), jnp.tile(LABELS, rows))

        def fit(ts):
            return fnn.fit(step, ts, data, KEY, epochs=epochs, batch_size=16)

        return [equation.primitive.name for equation in jax.make_jaxpr(fit)(step.init(init())).eqns]

    short = operations(1, 1)
    assert short.count("scan") == 1
    assert operations(50, 1) == operations(2, 20) == short


def test_vmap_of_runs_is_the_loop(one_run):
    keys, rates = jax.random.split(KEY, 3), jnp.array([0.1, 0.01, 0.001])
    together, history = jax.jit(jax.vmap(linear_run))(keys, rates)
    for i in range(3):
        alone, alone_history = one_run(keys[i], rates[i])
        member = jax.tree.map(lambda leaf, i=i: leaf[i], together.params)
        chex.assert_trees_all_close(member, alone.params, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(history["loss"][i], alone_history["loss"], rtol=1e-4)


def test_plain_loop_is_fit(one_run):
    key = jax.random.key(3)
    ts, history = one_run(key, RATE)
    shuffle_key, step_key = jax.random.split(key)
    step = fnn.make_train_step(linear_dropout_loss_fn, fnn.sgd(RATE), clip_norm=1.0)
    looped, update = step.init(linear_init(key)), jax.jit(step)
    rows = np.asarray(X), np.asarray(LABELS)
    for epoch in range(3):
        order = np.asarray(fnn.data.permutation(jax.random.fold_in(shuffle_key, epoch), 103))
        order = np.concatenate([order, order[96:], order[96:98]])  # the last batch, filled up
        for start in range(0, 103, 16):
            index = order[start : start + 16]
            mask = np.arange(start, start + 16) < 103
            looped, metrics = update(looped, (rows[0][index], rows[1][index]), step_key, mask)
            np.testing.assert_allclose(
                metrics["loss"], history["loss"][epoch, start // 16], rtol=1e-4
            )
    chex.assert_trees_all_close(looped.params, ts.params, rtol=1e-3, atol=1e-5)


# --- the tail and weights -----------------------------------------------------------------------


def test_the_tail_counts_exactly():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1003, 4)), jnp.float32)
    data = (x, x[:, :3].argmax(-1))
    # A rate of zero: the epoch's losses, weighted by their rows, are the full-batch loss.
    step = fnn.make_train_step(linear_loss_fn, fnn.sgd(0.0))

    @jax.jit
    def everything(params):
        _, history = fnn.fit(step, step.init(params), data, KEY, epochs=1, batch_size=64)
        mean = fnn.evaluate(lambda batch: linear_loss_fn(params, batch, None), data, 64)
        return linear_loss_fn(params, data, None), mean, history["loss"][0]

    full, mean, losses = map(np.asarray, everything(linear_init()))
    full = full.astype(np.float64).mean()
    np.testing.assert_allclose(mean, full, rtol=1e-6)
    rows = np.array([64] * 15 + [43])
    np.testing.assert_allclose((losses * rows).sum() / 1003, full, rtol=1e-6)


def test_tail_may_be_dropped():
    _, padded = jax.eval_shape(run, KEY)
    _, dropped = jax.eval_shape(partial(run, tail="drop"), KEY)
    assert padded["loss"].shape == (3, 7)
    assert dropped["loss"].shape == (3, 6)


def test_the_tail_may_wrap():
    step = fnn.make_train_step(scaled, fnn.sgd(1.0))
    ts, _ = fnn.fit(
        step, step.init(jnp.zeros(10)), jnp.eye(10), KEY, epochs=1, batch_size=4, tail="wrap"
    )
    seen = np.round(np.asarray(-ts.params) * 40)
    assert sorted(seen) == [1] * 8 + [2] * 2  # the first two of the epoch once more


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
def test_the_loss_of_an_epoch_is_the_mean_over_its_rows(weighted):
    """At rate 0, 65 rows at batch 64: the same in every epoch, in the log and where it is judged."""
    rows = np.random.default_rng(4).normal(size=65).astype(np.float32)
    weights = np.random.default_rng(5).integers(0, 3, 65).astype(np.float32) if weighted else None
    expected = np.average(rows.astype(float) ** 2, weights=weights)
    step = fnn.make_train_step(lambda p, x, key: (p - x) ** 2, fnn.sgd(0.0))
    options = {"epochs": 3, "batch_size": 64, "weights": weights, "stop": fnn.EarlyStopping("loss")}
    ts, logged = step.init(jnp.zeros(())), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no parameter moves
        result = fnn.train(
            step, ts, rows, KEY, log=lambda _, m: logged.append(m), progress=False, **options
        )
    np.testing.assert_allclose([m["loss"] for m in logged], [expected] * 3, rtol=1e-5)
    np.testing.assert_allclose(result.best.value, expected, rtol=1e-5)
    progress, history = jax.jit(lambda ts: fnn.fit_until(step, ts, rows, KEY, **options))(ts)
    assert progress.best.value == result.best.value
    if not weighted:  # the documented way
        epochs = np.average(history["loss"], axis=1, weights=[64, 1])
        np.testing.assert_allclose(epochs, expected, rtol=1e-5)


def test_batch_norm_sees_every_row_once():
    """65 rows at batch 64: the last batch is filled up with other rows, and spoils no variance."""
    rows = np.random.default_rng(6).normal(0, 1.65, (130, 1)).astype(np.float32)
    params, state = fnn.batch_norm_init(1)

    def loss(params, state, x, key):
        y, state = fnn.batch_norm(params, state, x, train=True)
        return y[:, 0], state

    def masked(params, state, x, key, mask=None):
        y, state = fnn.batch_norm(params, state, x, train=True, mask=mask)
        return y[:, 0], state

    @jax.jit
    def variances():
        found = {}
        for rows_, tail, loss_fn in [
            (65, "pad", loss),
            (65, "pad", masked),
            (130, "pad", loss),
            (130, "drop", loss),
        ]:
            step = fnn.make_train_step(loss_fn, fnn.sgd(0.0))
            options = {"epochs": 40, "batch_size": 64, "tail": tail}
            ts, _ = fnn.fit(step, step.init(params, state), rows[:rows_], KEY, **options)
            found[rows_, tail, loss_fn.__name__] = ts.state["var"][0]
        return found

    found = jax.device_get(variances())
    dropped = found.pop((130, "drop", "loss"))
    np.testing.assert_allclose(dropped, rows.var(), rtol=0.1)
    for name, var in found.items():
        np.testing.assert_allclose(var, rows[: name[0]].var(), rtol=0.1, err_msg=str(name))


def test_what_fills_up_is_other_rows_for_a_model_with_state_only():
    def seen(state):
        step = fnn.make_train_step(lambda p, *given: (p * given[-2], *given[:-2]), fnn.sgd(1.0))
        batches = batches_of_run(
            "fit", step.init(jnp.ones(()), state), np.arange(10), KEY, None, 4, "pad"
        )
        last = batches.cut(jnp.arange(10))[-1]
        rows, mask = batches.draw(last)
        np.testing.assert_array_equal(mask, [True, True, False, False])
        return np.asarray(rows)

    np.testing.assert_array_equal(seen(()), [8, 9, 8, 9])  # a bad row spoils no other batch
    np.testing.assert_array_equal(seen(jnp.zeros(())), [8, 9, 0, 1])


def test_weights_are_rows_repeated():
    counts = np.random.default_rng(1).integers(0, 4, size=24)
    rows = np.asarray(X)[:24], np.asarray(LABELS)[:24]
    repeated = tuple(np.repeat(a, counts, axis=0) for a in rows)
    step = fnn.make_train_step(linear_loss_fn, fnn.sgd(0.1))

    @jax.jit
    def both(ts, weights):
        ours = fnn.fit(step, ts, rows, KEY, epochs=3, batch_size=24, weights=weights)
        theirs = fnn.fit(step, ts, repeated, KEY, epochs=3, batch_size=counts.sum())
        return ours[0].params, theirs[0].params

    chex.assert_trees_all_close(
        *both(step.init(linear_init()), jnp.asarray(counts, jnp.float32)), rtol=1e-5, atol=1e-6
    )


def test_class_weights_are_balanced():
    labels = jnp.array([0, 0, 0, 2, 2, 3])
    weights = fnn.data.class_weights(labels, 5)
    np.testing.assert_allclose(weights, [2 / 3, 2 / 3, 2 / 3, 1, 1, 2], rtol=1e-6)
    assert np.isclose(weights.mean(), 1)


def test_the_advice_for_scalar_losses_works():
    def fit(loss, **options):
        step = fnn.make_train_step(loss, fnn.sgd(0.1))
        options = {"epochs": 1, "batch_size": 4} | options
        return fnn.fit(step, step.init(jnp.ones(())), jnp.arange(10.0), KEY, **options)

    def scalar(params, batch, key):
        return scaled(params, batch, key).mean()

    @jax.jit
    def both():
        options = ({"tail": "drop"}, {"batch_size": 10})
        return [[fit(loss, **given) for given in options] for loss in (scalar, scaled)]

    chex.assert_trees_all_close(*both(), rtol=1e-6)


# --- steps of one's own ---------------------------------------------------------------------------


def own_init(params, state=()):
    none = FirstBad(*(jnp.array(n, jnp.int32) for n in (-1, -1, 0)))
    return TrainState(params, state, (), jnp.zeros((), jnp.int32), none)


def own_update(ts, batch, key, mask=None):
    """Sign descent on a quadratic, with nothing of `make_train_step`."""
    weights = jnp.ones(batch.shape) if mask is None else mask.astype(batch.dtype)
    error = ((ts.params - batch) * weights).sum() / weights.sum()
    new = ts._replace(params=ts.params - 0.1 * jnp.sign(error), step=ts.step + 1)
    return new, {"error": error}


@pytest.mark.parametrize("whole", [True, False], ids=["Step", "update alone"])
def test_a_step_of_ones_own_works_in_every_loop(whole):
    step = Step(own_init, own_update) if whole else own_update
    rows, ts = jnp.arange(10.0), own_init(jnp.zeros(()))
    expected = 0.1 * 6  # 2 epochs of 3 steps towards the mean, 4.5
    options = {"epochs": 2, "batch_size": 4}
    last, history = fnn.fit(step, ts, rows, KEY, **options)
    progress, until = fnn.fit_until(step, ts, rows, KEY, fnn.EarlyStopping("error"), **options)
    result = fnn.train(step, ts, rows, KEY, progress=False, **options)
    streamed, on_batches = fnn.train_on_batches(step, ts, [rows[:4], rows[4:8], rows[8:]] * 2, KEY)
    for state in (last, progress.last, result.last, streamed):
        assert int(state.step) == 6
        np.testing.assert_allclose(state.params, expected, rtol=1e-6)
    assert set(history) == set(until) == set(result.history) == set(on_batches) == {"error"}
    chex.assert_trees_all_equal(history, until, result.history)
    assert (result.stopped, result.nonfinite, result.settings["nonfinite"]) == (
        "epochs",
        None,
        "skip",
    )


# --- derivatives of a whole run -------------------------------------------------------------------


def test_hypergradients_in_both_modes():
    """Through rates, data, row weights and initial parameters, against central differences."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(7, 2)), rng.normal(size=7)

        def after(given):
            """The loss on other rows after two epochs of 3 steps, the last of one row."""
            step = fnn.make_train_step(
                lambda p, batch, key: (batch[0] @ p["w"] + p["b"] - batch[1]) ** 2,
                fnn.momentum(given["rate"]),
            )
            ts = step.init(given["params"])
            rows, weights = (given["x"], jnp.asarray(y)), given["weights"]
            ts, _ = fnn.fit(step, ts, rows, KEY, epochs=2, batch_size=3, weights=weights)
            return ((x[:4] @ ts.params["w"] - 1) ** 2).mean()

        given = {
            "rate": jnp.asarray(0.05),
            "x": jnp.asarray(x),
            "weights": jnp.asarray(rng.uniform(0.5, 2, 7)),
            "params": {"w": jnp.asarray(rng.normal(size=2)), "b": jnp.zeros(())},
        }
        flat, unflatten = jax.flatten_util.ravel_pytree(given)
        directions = jnp.concatenate([jnp.eye(flat.size)[-3:], rng.normal(size=(2, flat.size))])

        @jax.jit
        def everything(flat):
            f = lambda flat: after(unflatten(flat))  # noqa: E731
            forward = jax.vmap(lambda d: jax.jvp(f, (flat,), (d,))[1])(directions)
            steps = 1e-5 * jnp.concatenate([directions, -directions])
            up, down = jnp.split(jax.vmap(f)(flat + steps), 2)
            return jax.grad(f)(flat), forward, (up - down) / 2e-5

        gradient, forward, differences = everything(flat)
        np.testing.assert_allclose(directions @ gradient, forward, rtol=1e-9)
        np.testing.assert_allclose(forward, differences, rtol=1e-7, atol=1e-9)
        assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(unflatten(gradient)))


# --- going on -----------------------------------------------------------------------------------

RESUME = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from tests.training.test_loops import fit_by_adamw

leaves = {name: jnp.asarray(leaf) for name, leaf in np.load(sys.argv[1]).items() if name != "loss"}
fit_by_adamw(list(leaves.values()), 13, sys.argv[2])
"""


def fit_by_adamw(leaves, epochs, save):
    """Go on from these leaves of a train state, from the start without; save the end."""
    step = fnn.make_train_step(linear_dropout_loss_fn, fnn.adamw(0.01), clip_norm=1.0)
    start, treedef = jax.tree.flatten(step.init(linear_init()))
    fit = jax.jit(partial(fnn.fit, step, epochs=epochs, batch_size=16))
    ts, history = fit(treedef.unflatten(leaves or start), (X, LABELS), jax.random.key(5))
    np.savez(save, *jax.tree.leaves(ts), loss=history["loss"])


@pytest.mark.slow
def test_a_run_goes_on_in_a_new_process_bit_for_bit(tmp_path):
    names = [str(tmp_path / f"{name}.npz") for name in ("whole", "part", "rest")]
    fit_by_adamw(None, 20, names[0])
    fit_by_adamw(None, 7, names[1])
    subprocess.run([sys.executable, "-c", RESUME, *names[1:]], check=True, timeout=300)
    whole, part, rest = (dict(np.load(name)) for name in names)
    losses = np.concatenate([part.pop("loss"), rest.pop("loss")])
    np.testing.assert_array_equal(whole.pop("loss"), losses)
    chex.assert_trees_all_equal(whole, rest)


def test_a_run_goes_on_bit_for_bit(one_run, tmp_path):
    """One epoch at a time, through a file; a new process and `train` are in `test_train`."""
    whole, history = one_run(KEY, RATE)
    step = fnn.make_train_step(linear_dropout_loss_fn, fnn.sgd(RATE), clip_norm=1.0)
    epoch = jax.jit(partial(fnn.fit, step, epochs=1, batch_size=16))
    ts, losses = jax.jit(lambda: step.init(linear_init(KEY)))(), []
    for i in range(3):
        ts, part = epoch(ts, (X, LABELS), KEY)
        losses.append(part["loss"][0])
        leaves, treedef = jax.tree.flatten(ts)
        np.savez(tmp_path / f"{i}.npz", *leaves)
        ts = jax.tree.unflatten(treedef, list(np.load(tmp_path / f"{i}.npz").values()))
    chex.assert_trees_all_equal(jax.device_get(whole), ts)
    np.testing.assert_array_equal(np.stack(losses), history["loss"])


# --- errors -------------------------------------------------------------------------------------


def fit_with(loss=linear_loss_fn, data=(X, LABELS), **options):
    step = fnn.make_train_step(loss, fnn.sgd(0.1))
    options = {"epochs": 1, "batch_size": 16} | options
    return fnn.fit(step, step.init(linear_init()), data, KEY, **options)


def until_with(**options):
    step = fnn.make_train_step(linear_loss_fn, fnn.sgd(0.1))
    options = {"epochs": 1, "batch_size": 16} | options
    stop, ts = fnn.EarlyStopping("loss"), step.init(linear_init())
    return fnn.fit_until(step, ts, (X, LABELS), KEY, stop, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_with(batch_size=104), "fit: batch_size 104 exceeds the 103 rows of data"),
        (lambda: fit_with(batch_size=0), "fit: batch_size is 0, expected at least 1"),
        (lambda: fit_with(epochs=0), "fit: epochs is 0, expected at least 1"),
        (lambda: fit_with(tail="cut"), "fit: tail is 'cut', expected 'pad', 'drop' or 'wrap'"),
        (lambda: fit_with(weights=jnp.ones(16)), r"fit: weights have shape \(16,\), expected \[rows\], \(103,\)"),
        (lambda: fit_with(data=(X, LABELS[:50])), r"fit: data have shapes \[\(103, 4\), \(50,\)\], expected one shared first axis"),
        (lambda: fit_with(data=(X[:0], LABELS[:0])), "fit: data have no rows"),
        (lambda: fit_with(data=(X, np.float32(3))), r"fit: data have shapes \[\(103, 4\), \(\)\]"),
        (
            lambda: fit_with(lambda p, b, k: linear_loss_fn(p, b, k).mean()),
            r"make_train_step: loss_fn returned shape \(\), but 16 rows are masked; expected one loss per row, \[16, ...\], or fit\(tail='drop'\)",
        ),
        (lambda: until_with(epochs=0), "fit_until: epochs is 0, expected at least 1"),
        (lambda: until_with(batch_size=104), "fit_until: batch_size 104 exceeds the 103 rows"),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
