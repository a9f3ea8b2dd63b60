import json
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from tests.table_of_optimizers import OPTIMIZERS

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(103, 4)), jnp.float32)
LABELS = X[:, :3].argmax(-1)


def init(key=KEY, **options):
    return fnn.mlp_init(key, (4, 8, 3), **options)


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x), labels)


def dropout_loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.mlp(params, x, key=key, rate=0.5), labels)


def run(key, learning_rate=0.1, *, optimizer=fnn.adam, epochs=3, data=(X, LABELS), **options):
    """One whole run with everything switched on."""
    optimizer = optimizer(learning_rate)
    step = fnn.make_train_step(dropout_loss_fn, optimizer, clip_norm=1.0)
    ts = fnn.train_init(init(key), optimizer)
    return fnn.fit(step, ts, data, key, epochs=epochs, batch_size=16, **options)


# --- the step -----------------------------------------------------------------------------------


def test_a_step_by_hand():
    def squares(params, batch, key):
        x, y = batch
        return fnn.squared_error(fnn.dense(params, x)[:, 0], y)

    w, b = np.array([[0.5], [-1.0]]), np.array([0.25])
    x, y = RNG.normal(size=(6, 2)), RNG.normal(size=6)
    params = {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
    step = jax.jit(fnn.make_train_step(squares, fnn.sgd(0.1), clip_norm=0.5))
    batch = (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    ts, metrics = step(fnn.train_init(params, fnn.sgd(0.1)), batch, KEY)

    error = x @ w[:, 0] + b - y
    dw, db = 2 * x.T @ error / 6, 2 * error.mean()
    norm = np.sqrt((dw**2).sum() + db**2)
    assert norm > 0.5
    np.testing.assert_allclose(metrics["loss"], (error**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(ts.params["w"][:, 0], w[:, 0] - 0.1 * dw * 0.5 / norm, rtol=1e-5)
    np.testing.assert_allclose(ts.params["b"], b - 0.1 * db * 0.5 / norm, rtol=1e-5)
    assert int(ts.step) == 1
    assert int(metrics["nonfinite"]) == -1


def test_golden_step(request):
    """Adamw, clipping and dropout on the digits: the numbers of the first release."""
    path = request.path.parent / "golden" / "train_step.json"
    x, labels = fnn.datasets.digits().train
    optimizer = fnn.adamw(0.01, weight_decay=0.1)
    step = jax.jit(fnn.make_train_step(dropout_loss_fn, optimizer, clip_norm=0.5))
    ts = fnn.train_init(fnn.mlp_init(KEY, (64, 16, 10)), optimizer)
    got = []
    for i in range(3):
        ts, metrics = step(ts, (jnp.asarray(x[:32]), jnp.asarray(labels[:32])), jax.random.key(1))
        sums = {
            path: float(jnp.abs(leaf).sum()) for path, leaf in fnn.params.paths(ts.params).items()
        }
        got.append(
            {"step": i, "loss": float(metrics["loss"]), "grad_norm": float(metrics["grad_norm"])}
            | sums
        )
    advice = (
        "the golden train step has changed. If that was meant, say so in CHANGELOG.md, since every"
        f" user's results change with it, and write the new numbers:\n{json.dumps(got, indent=1)}\nto {path}"
    )
    golden = json.loads(path.read_text())
    assert [list(row) for row in golden] == [list(row) for row in got], advice
    for row, golden_row in zip(got, golden, strict=True):
        np.testing.assert_allclose(
            list(row.values()), list(golden_row.values()), rtol=1e-4, err_msg=advice
        )


@pytest.mark.parametrize(
    "make",
    [optax.adam, optax.lion, lambda r: optax.chain(optax.clip(1.0), optax.sgd(r, 0.9))],
    ids=["adam", "lion", "chain"],
)
def test_takes_any_optax_transformation(make, standard_promotion):
    _, history = jax.jit(lambda key: run(key, 0.01, optimizer=make))(KEY)
    assert history["loss"][-1].mean() < history["loss"][0].mean()


def test_ours_in_optax_style_training_is_the_same_step(standard_promotion):
    step = jax.jit(fnn.make_train_step(loss_fn, fnn.adam(0.1)))
    ts, _ = step(fnn.train_init(init(), fnn.adam(0.1)), (X, LABELS), KEY)

    @jax.jit
    def by_hand(params):
        optimizer = fnn.adam(0.1)
        grads = jax.grad(lambda p: loss_fn(p, (X, LABELS), None).mean())(params)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    chex.assert_trees_all_close(ts.params, by_hand(init()), rtol=1e-6)


def test_state_is_threaded():
    def counting(params, state, batch, key):
        return loss_fn(params, batch, key), {"seen": state["seen"] + batch[0].shape[0]}

    step = fnn.make_train_step(counting, fnn.sgd(0.1), has_state=True)
    ts = fnn.train_init(init(), fnn.sgd(0.1), {"seen": jnp.zeros((), jnp.int32)})
    ts, _ = fnn.fit(step, ts, (X, LABELS), KEY, epochs=2, batch_size=10, tail="drop")
    assert int(ts.state["seen"]) == 200
    stateless = fnn.train_init(init(), fnn.sgd(0.1))
    assert stateless.state == ()


def test_train_state_keeps_its_avals():
    for row in OPTIMIZERS:
        step = fnn.make_train_step(loss_fn, row.make(jnp.float32(0.1)), clip_norm=1.0)
        ts = fnn.train_init(init(), row.make(0.1))
        after, metrics = jax.eval_shape(step, ts, (X, LABELS), KEY)
        assert after == jax.eval_shape(lambda ts: ts, ts)
        assert all(m.shape == () and not m.weak_type for m in metrics.values())


def test_train_state_may_be_donated():
    optimizer = fnn.adam(0.1)
    ts = fnn.train_init(init(), optimizer)
    leaves = jax.tree.leaves(ts)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    step = jax.jit(fnn.make_train_step(loss_fn, optimizer), donate_argnums=0)
    ts, _ = step(ts, (X, LABELS), KEY)
    ts, _ = step(ts, (X, LABELS), KEY)
    assert leaves[0].is_deleted()


@pytest.mark.parametrize(
    "dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
def test_dtype_passes_through(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        optimizer = fnn.adam(0.01)
        step = fnn.make_train_step(dropout_loss_fn, optimizer, clip_norm=1.0)

        @jax.jit
        def whole(x):
            ts = fnn.train_init(init(dtype=dtype), optimizer)
            return fnn.fit(step, ts, (x, LABELS), KEY, epochs=3, batch_size=16)

        ts, history = whole(X.astype(dtype))
        chex.assert_type(jax.tree.leaves(ts.params), dtype)
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        chex.assert_type(
            [history["loss"], history["grad_norm"], *jax.tree.leaves(ts.opt_state["m"])], wide
        )
        assert history["loss"][-1].mean() < history["loss"][0].mean()


# --- keys ---------------------------------------------------------------------------------------


def test_steps_draw_from_the_key_and_their_number():
    drawn = []

    def spy(params, batch, key):
        jax.debug.callback(lambda bits: drawn.append(int(bits)), jax.random.bits(key))
        return loss_fn(params, batch, key)

    step = fnn.make_train_step(spy, fnn.sgd(0.1))
    ts = fnn.train_init(init(), fnn.sgd(0.1))
    fnn.fit(step, ts, (X, LABELS), KEY, epochs=2, batch_size=16)
    jax.effects_barrier()
    assert len(set(drawn)) == 14
    first = drawn.copy()
    drawn.clear()
    later = ts._replace(step=jnp.int32(7))
    fnn.fit(step, later, (X, LABELS), KEY, epochs=1, batch_size=16)
    jax.effects_barrier()
    assert drawn == first[7:]


def test_every_epoch_sees_every_row_once_in_an_order_of_its_own():
    def recording(params, state, batch, key):
        seen, count = state
        return params["w"] + 0.0 * batch, (seen.at[count].set(batch), count + 1)

    step = fnn.make_train_step(recording, fnn.sgd(0.1), has_state=True)
    state = (jnp.zeros((8, 25)), jnp.zeros((), jnp.int32))
    ts = fnn.train_init({"w": jnp.ones(25)}, fnn.sgd(0.1), state)
    ts, _ = fnn.fit(step, ts, jnp.arange(100.0), KEY, epochs=2, batch_size=25)
    epochs = np.asarray(ts.state[0]).reshape(2, 100)
    for order in epochs:
        assert sorted(order) == list(range(100))
        assert (order != np.arange(100)).any()
    assert (epochs[0] != epochs[1]).any()


# --- one program --------------------------------------------------------------------------------


def test_numbers_never_recompile():
    traces = []

    def counted(params, batch, key):
        traces.append(1)
        return dropout_loss_fn(params, batch, key)

    @jax.jit
    def whole(key, rate, b1, b2, eps, clip_norm):
        optimizer = fnn.adam(rate, b1, b2, eps)
        step = fnn.make_train_step(counted, optimizer, clip_norm=clip_norm)
        return fnn.fit(
            step, fnn.train_init(init(key), optimizer), (X, LABELS), key, epochs=2, batch_size=16
        )

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
        optimizer = fnn.adam(0.1)
        step = fnn.make_train_step(dropout_loss_fn, optimizer)
        ts = fnn.train_init(init(), optimizer)
        data = (jnp.tile(X, (rows, 1)), jnp.tile(LABELS, rows))

        def fit(ts):
            return fnn.fit(step, ts, data, KEY, epochs=epochs, batch_size=16)

        return [equation.primitive.name for equation in jax.make_jaxpr(fit)(ts).eqns]

    short = operations(1, 1)
    assert short.count("scan") == 1
    assert operations(50, 1) == operations(2, 20) == short


def test_vmap_of_runs_is_the_loop():
    keys, rates = jax.random.split(KEY, 3), jnp.array([0.1, 0.01, 0.001])
    together, history = jax.jit(jax.vmap(run))(keys, rates)
    for i in range(3):
        alone, alone_history = jax.jit(run)(keys[i], rates[i])
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], together.params),
            alone.params,
            rtol=1e-4,
            atol=1e-5,
        )
        chex.assert_trees_all_close(history["loss"][i], alone_history["loss"], rtol=1e-4)


def test_plain_loop_is_fit():
    key = jax.random.key(3)
    ts, history = jax.jit(run)(key)
    shuffle_key, step_key = jax.random.split(key)
    optimizer = fnn.adam(0.1)
    step = jax.jit(fnn.make_train_step(dropout_loss_fn, optimizer, clip_norm=1.0))
    looped = fnn.train_init(init(key), optimizer)
    for epoch in range(3):
        order = fnn.data.permutation(jax.random.fold_in(shuffle_key, epoch), 103)
        order = jnp.concatenate([order, order[96:], order[96:98]])  # the last batch, filled up
        for start in range(0, 103, 16):
            index = order[start : start + 16]
            mask = jnp.arange(start, start + 16) < 103
            looped, metrics = step(looped, (X[index], LABELS[index]), step_key, mask)
            chex.assert_trees_all_close(
                metrics["loss"], history["loss"][epoch, start // 16], rtol=1e-4
            )
    chex.assert_trees_all_close(looped.params, ts.params, rtol=1e-3, atol=1e-5)


# --- the tail -----------------------------------------------------------------------------------


def test_the_tail_counts_exactly():
    x = jnp.asarray(RNG.normal(size=(1003, 4)), jnp.float32)
    labels = x[:, :3].argmax(-1)
    params = init()
    full = loss_fn(params, (x, labels), None)
    mean = fnn.evaluate(lambda batch: loss_fn(params, batch, None), (x, labels), 64)
    np.testing.assert_allclose(mean, np.asarray(full, np.float64).mean(), rtol=1e-6)
    # A rate of zero: the epoch's losses, weighted by their rows, are the full-batch loss.
    step = fnn.make_train_step(loss_fn, fnn.sgd(0.0))
    _, history = fnn.fit(
        step, fnn.train_init(params, fnn.sgd(0.0)), (x, labels), KEY, epochs=1, batch_size=64
    )
    rows = np.array([64] * 15 + [43])
    np.testing.assert_allclose(
        (np.asarray(history["loss"][0]) * rows).sum() / 1003, np.asarray(full).mean(), rtol=1e-6
    )


def test_masked_rows_change_nothing():
    step = jax.jit(fnn.make_train_step(loss_fn, fnn.adam(0.1)))
    ts = fnn.train_init(init(), fnn.adam(0.1))
    mask = jnp.arange(16) < 10
    expected, metrics = step(ts, (X[:10], LABELS[:10]), KEY)
    x = X[:16].at[10:].set(1e6)
    padded, padded_metrics = step(ts, (x, LABELS[:16]), KEY, mask)
    chex.assert_trees_all_close((padded, padded_metrics), (expected, metrics), rtol=1e-5, atol=1e-7)
    none, none_metrics = step(ts, (X[:16], LABELS[:16]), KEY, jnp.zeros(16, bool))
    assert none_metrics["loss"] == 0
    chex.assert_trees_all_equal(none.params, ts.params)


def test_a_mask_weights():
    step = jax.jit(fnn.make_train_step(loss_fn, fnn.sgd(0.1)))
    ts = fnn.train_init(init(), fnn.sgd(0.1))
    twice = jnp.concatenate([jnp.arange(8), jnp.arange(4)])
    expected, _ = step(ts, (X[twice], LABELS[twice]), KEY)
    weighted, _ = step(ts, (X[:8], LABELS[:8]), KEY, jnp.array([2.0] * 4 + [1.0] * 4))
    chex.assert_trees_all_close(weighted.params, expected.params, rtol=1e-5)


def test_losses_of_several_axes_are_averaged():
    step = fnn.make_train_step(lambda p, x, k: p["w"] * x, fnn.sgd(0.1))
    ts = fnn.train_init({"w": jnp.ones(())}, fnn.sgd(0.1))
    x = jnp.arange(12.0).reshape(4, 3)
    assert step(ts, x, KEY)[1]["loss"] == 5.5
    assert step(ts, x, KEY, jnp.array([1, 1, 0, 0]))[1]["loss"] == 2.5


def test_tail_may_be_dropped():
    _, padded = jax.eval_shape(run, KEY)
    _, dropped = jax.eval_shape(partial(run, tail="drop"), KEY)
    assert padded["loss"].shape == (3, 7)
    assert dropped["loss"].shape == (3, 6)


def test_evaluate_metrics_of_any_shape_and_type():
    labels = jnp.arange(7) % 3

    def metrics(batch):
        return {
            "one_hot": jax.nn.one_hot(batch, 3),
            "is_0": batch == 0,
            "half": batch.astype(jnp.bfloat16),
        }

    for batch_size in (1, 3, 7, 100):
        means = jax.jit(lambda data, n=batch_size: fnn.evaluate(metrics, data, n))(labels)
        np.testing.assert_allclose(means["one_hot"], np.array([3, 2, 2]) / 7, rtol=1e-6)
        np.testing.assert_allclose(means["is_0"], 3 / 7, rtol=1e-6)
        np.testing.assert_allclose(means["half"], 6 / 7, rtol=1e-6)
        assert {m.dtype for m in means.values()} == {jnp.dtype("float32")}


# --- resume -------------------------------------------------------------------------------------

RESUME = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
import fnn
from tests.test_training import X, LABELS, dropout_loss_fn, init

load = sys.argv[1]
optimizer = fnn.adamw(0.01)
step = fnn.make_train_step(dropout_loss_fn, optimizer, clip_norm=1.0)
ts = fnn.train_init(init(), optimizer)
leaves, treedef = jax.tree.flatten(ts)
if load:
    leaves = [jnp.asarray(leaf) for leaf in np.load(load).values()]
start, data = jax.tree.unflatten(treedef, leaves), (X, LABELS)
for epochs, save in zip(map(int, sys.argv[2::2]), sys.argv[3::2]):
    fit = lambda ts: fnn.fit(step, ts, data, jax.random.key(5), epochs=epochs, batch_size=16)
    ts, history = jax.jit(fit)(start)
    np.savez(save, *jax.tree.leaves(ts))
    np.save(save + ".loss.npy", history["loss"])
"""


def test_resume_in_a_new_process_is_bit_exact(tmp_path):
    def fit(load, *epochs_and_save):
        command = [sys.executable, "-c", RESUME, load, *map(str, epochs_and_save)]
        subprocess.run(command, check=True, timeout=120)

    fit("", 20, tmp_path / "whole.npz", 7, tmp_path / "part.npz")
    fit(tmp_path / "part.npz", 13, tmp_path / "rest.npz")
    whole, rest = (list(np.load(tmp_path / name).values()) for name in ("whole.npz", "rest.npz"))
    chex.assert_trees_all_equal(whole, rest)
    losses = [np.load(tmp_path / f"{name}.npz.loss.npy") for name in ("whole", "part", "rest")]
    np.testing.assert_array_equal(losses[0], np.concatenate(losses[1:]))


# --- not finite ---------------------------------------------------------------------------------


def bad_row_run(nonfinite, key=KEY, row=42, rate=0.1):
    x = X.at[row, 0].set(jnp.inf)
    optimizer = fnn.adam(rate)
    step = fnn.make_train_step(loss_fn, optimizer, nonfinite=nonfinite)
    fit = jax.jit(partial(fnn.fit, step, epochs=2, batch_size=16))
    return fit(fnn.train_init(init(), optimizer), (x, LABELS), key)


def test_a_bad_step_is_skipped_and_reported():
    ts, history = bad_row_run("skip")
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(ts))
    bad = np.asarray(history["nonfinite"]) >= 0
    assert bad.sum() == 2  # once an epoch
    assert (~np.isfinite(np.asarray(history["loss"]))).sum() == 2
    assert int(ts.step) == 14
    assert int(ts.opt_state["count"]) == 12  # the moments have not seen it
    epoch, step = np.argwhere(bad)[0]
    with pytest.raises(FloatingPointError, match=f"epoch {epoch}, step {step}: the input 0 is not"):
        fnn.check_finite(history, ts.params, (X, LABELS))
    assert ts.first_bad.tolist() == [step, 10]
    poisoned, _ = bad_row_run("ignore")
    assert not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(poisoned))


def test_a_bad_step_leaves_everything_but_the_counter():
    step = jax.jit(fnn.make_train_step(loss_fn, fnn.adam(0.1), clip_norm=1.0))
    ts = fnn.train_init(init(), fnn.adam(0.1))
    after, metrics = step(ts, (X.at[0].set(jnp.nan), LABELS), KEY)
    unchanged = after._replace(step=ts.step, first_bad=ts.first_bad)
    chex.assert_trees_all_equal(unchanged, ts)
    assert int(after.step) == 1
    assert np.isnan(metrics["loss"])


def one_bad_step(loss, optimizer=None, batch=1.0, **options):
    """Metrics and state of one step on two parameters, and the report."""
    params = {"a": jnp.ones(2), "z": {"w": jnp.ones(2)}}
    optimizer = optimizer or fnn.sgd(0.1)
    step = fnn.make_train_step(loss, optimizer, **options)
    ts, metrics = jax.jit(step)(fnn.train_init(params, optimizer), jnp.full(2, batch), KEY)
    history = {"nonfinite": metrics["nonfinite"][None, None]}
    with pytest.raises(FloatingPointError) as report:
        fnn.check_finite(history, params, {"x": 0})
    return ts, str(report.value)


def slope(p, batch, key):
    return p["a"] * batch + jnp.sqrt(p["z"]["w"] - 1)  # infinite in z/w


def linear(p, batch, key):
    return 10 * p["a"] * batch + p["z"]["w"]


BAD_UPDATE = optax.stateless(lambda g, p: {"a": g["a"], "z": {"w": g["z"]["w"] / 0}})


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ((slope,), "the gradient of z/w"),
        ((linear, None, jnp.nan), "the input x"),
        ((lambda p, b, k: p["a"] + jnp.inf,), "the loss"),
        ((linear, fnn.sgd(jnp.asarray(jnp.inf))), "the learning rate"),
        ((linear, fnn.sgd(3e38)), "the new value of a"),
        ((linear, BAD_UPDATE), "the new value of z/w"),
    ],
)
def test_the_report_names_what_was_bad_first(how, what):
    ts, report = one_bad_step(*how)
    assert report == f"epoch 0, step 0: {what} is not finite"
    assert int(ts.first_bad[0]) == 0


def test_the_report_names_the_member():
    params = {"a": jnp.ones(2), "z": {"w": jnp.ones(2)}}
    members = jnp.full((3, 2, 4, 5), -1).at[1, 0, 2, 3].set(1)
    with pytest.raises(FloatingPointError, match=r"epoch 2, step 3, member \(1, 0\): .* z/w"):
        fnn.check_finite({"nonfinite": members}, params)
    fnn.check_finite({"nonfinite": jnp.full((2, 3), -1)}, params)


@pytest.mark.parametrize("policy", ["stop", "raise"])
def test_after_a_bad_step_nothing_goes_on(policy):
    step = fnn.make_train_step(loss_fn, fnn.adam(0.1), nonfinite=policy)
    step = jax.jit(step)
    ts, _ = step(fnn.train_init(init(), fnn.adam(0.1)), (X, LABELS), KEY)
    bad, _ = step(ts, (X * jnp.nan, LABELS), KEY)
    after, metrics = step(bad, (X, LABELS), KEY)
    chex.assert_trees_all_equal(after.params, ts.params)
    chex.assert_trees_all_equal(after.opt_state, ts.opt_state)
    assert after.first_bad.tolist() == [1, 10]
    assert int(metrics["nonfinite"]) == -1


def test_a_policy_costs_no_copy():
    # Choosing element by element between old and new held three parameter sizes more.
    def program(policy):
        optimizer = fnn.adam(0.1)
        step = fnn.make_train_step(lambda p, b, k: (b @ p) ** 2, optimizer, nonfinite=policy)
        ts = fnn.train_init(jnp.ones((300, 300)), optimizer)
        data = jnp.ones((20, 300))
        fit = jax.jit(lambda ts: fnn.fit(step, ts, data, KEY, epochs=1, batch_size=10))
        return fit.lower(ts).compile()

    programs = [program(policy) for policy in ("skip", "ignore")]
    skip, ignore = (compiled.memory_analysis() for compiled in programs)
    assert skip.temp_size_in_bytes <= ignore.temp_size_in_bytes + 1024
    bytes_moved = [compiled.cost_analysis()["bytes accessed"] for compiled in programs]
    assert bytes_moved[0] <= 1.01 * bytes_moved[1]


# --- errors -------------------------------------------------------------------------------------


def fit_with(loss=loss_fn, data=(X, LABELS), **options):
    step = fnn.make_train_step(loss, fnn.sgd(0.1))
    options = {"epochs": 1, "batch_size": 16} | options
    return fnn.fit(step, fnn.train_init(init(), fnn.sgd(0.1)), data, KEY, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit_with(batch_size=104), ValueError, "fit: batch_size 104 exceeds the 103 rows of data"),
        (lambda: fit_with(batch_size=0), ValueError, "fit: batch_size is 0, expected at least 1"),
        (lambda: fit_with(epochs=0), ValueError, "fit: epochs is 0, expected at least 1"),
        (lambda: fit_with(tail="cut"), ValueError, "fit: tail is 'cut', expected 'pad', 'drop' or 'wrap'"),
        (lambda: fit_with(weights=jnp.ones(16)), ValueError, r"fit: weights have shape \(16,\), expected \[rows\], \(103,\)"),
        (lambda: fit_with(data=(X, LABELS[:50])), ValueError, r"fit: data have shapes \[\(103, 4\), \(50,\)\], expected one shared first axis"),
        (lambda: fit_with(data=(X[:0], LABELS[:0])), ValueError, "fit: data have no rows"),
        (lambda: fit_with(data=(X, 3)), ValueError, r"fit: data have shapes \[\(103, 4\), \(\)\]"),
        (
            lambda: fit_with(lambda p, b, k: loss_fn(p, b, k).mean()),
            ValueError,
            r"make_train_step: loss_fn returned shape \(\), but 16 rows are masked; expected one loss per row, \[16, ...\], or fit\(tail='drop'\)",
        ),
        (lambda: fnn.make_train_step(loss_fn, fnn.sgd(0.1), nonfinite="warn"), ValueError, "make_train_step: nonfinite is 'warn', expected one of 'skip', 'stop', 'raise', 'ignore'"),
        (lambda: fnn.make_train_step(loss_fn, fnn.sgd(0.1), clipnorm=1.0), TypeError, "clipnorm"),
        (lambda: fnn.evaluate(lambda batch: batch.mean(), X, 16), ValueError, r"evaluate: metric_fn returned shape \(\), expected one value per row, \[16, ...\]"),
        (lambda: fnn.evaluate(lambda batch: batch, X[:0], 16), ValueError, "evaluate: data have no rows"),
        (lambda: fnn.evaluate(lambda batch: batch, X, 0), ValueError, "evaluate: batch_size is 0"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_advice_for_scalar_losses_works():
    def scalar(params, batch, key):
        return loss_fn(params, batch, key).mean()

    for options in ({"tail": "drop"}, {"batch_size": 103}):
        chex.assert_trees_all_close(fit_with(scalar, **options), fit_with(**options), rtol=1e-6)


def test_data_may_be_numpy():
    expected = fit_with()
    chex.assert_trees_all_equal(fit_with(data=(np.asarray(X), np.asarray(LABELS))), expected)
