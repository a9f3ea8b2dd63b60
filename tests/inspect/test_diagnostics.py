import io
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from rich.console import Console

import fnn
from fnn.inspect._summary import first_uses
from fnn.inspect.diagnostics import (
    activation_stats,
    capture,
    gradient_norms,
    observe,
    update_ratios,
)
from tests.nets import train_init

KEY = jax.random.key(0)
PARAMS = fnn.mlp_init(KEY, [4, 8, 6, 3])
X = jax.random.normal(jax.random.key(1), (20, 4))
LABELS = jnp.arange(20) % 3


def itself(x):
    return x


def captured(apply, measure=itself):
    return jax.jit(capture(apply, measure))


# --- activations --------------------------------------------------------------------------------


def test_activation_stats_by_hand():
    x = jnp.array([[0.0, 1.0, 0.0, -2.0], [0.0, 0.0, 0.0, 0.995], [0.0, 0.99, 0.0, -0.99]])
    stats = jax.jit(activation_stats)(x)
    exact = np.asarray(x, np.float64)
    expected = {"mean": exact.mean(), "std": exact.std(), "dead": 2 / 4, "saturated": 3 / 12}
    chex.assert_trees_all_close(stats, expected, rtol=1e-6)
    sigmoid = partial(activation_stats, bounds=(0.01, 0.99))
    np.testing.assert_allclose(sigmoid(x)["saturated"], 11 / 12)  # 0.99 is not
    # Units are the last axis, rows all the others; one row is rows enough.
    chex.assert_trees_all_close(activation_stats(x.reshape(3, 1, 4)), expected, rtol=1e-6)
    assert activation_stats(x[1])["dead"] == 3 / 4


def test_activation_stats_of_anything():
    half = activation_stats(jnp.full((4, 2), 300, jnp.float16))
    assert {v.dtype for v in half.values()} == {jnp.dtype("float32")}
    assert (half["mean"], half["std"], half["saturated"]) == (300, 0, 1)
    with jax.enable_x64(True):
        assert activation_stats(jnp.ones((2, 2)))["dead"].dtype == jnp.float64
    bad = activation_stats(jnp.array([[jnp.nan, 0.0], [0.0, 0.0]]))
    assert np.isnan(bad["mean"])
    assert bad["dead"] == 0.5  # a unit that is NaN somewhere is not dead
    for shape in ((0, 3), ()):
        with pytest.raises(ValueError, match="activation_stats: x has shape"):
            activation_stats(jnp.ones(shape))


def test_a_tiny_net_by_hand():
    params = {
        "layer_0": {"w": jnp.array([[1.0, -1.0]]), "b": jnp.array([0.0, -1.0])},
        "layer_1": {"w": jnp.array([[2.0], [1.0]]), "b": jnp.array([0.5])},
    }
    x = jnp.array([[1.0], [3.0], [0.0]])  # hidden: [1, 0], [3, 0], [0, 0]
    stats, y = jax.jit(capture(fnn.mlp))(params, x)
    np.testing.assert_allclose(y, [[2.5], [6.5], [0.5]])
    expected = {"mean": 4 / 6, "std": np.std([1, 0, 3, 0, 0, 0]), "dead": 0.5, "saturated": 2 / 6}
    chex.assert_trees_all_close(stats, {"layer_0": expected}, rtol=1e-6)


@pytest.mark.parametrize("wrap", [itself, jax.jit, jax.checkpoint], ids=lambda f: f.__name__)
def test_capture_of_mlp_has_every_hidden_layer(wrap):
    apply = wrap(fnn.mlp)
    apply(PARAMS, X)  # a jit that has been traced before has its marks all the same
    hidden, y = captured(apply)(PARAMS, X)
    first = jax.nn.relu(fnn.dense(PARAMS["layer_0"], X))
    second = jax.nn.relu(fnn.dense(PARAMS["layer_1"], first))
    assert list(hidden) == ["layer_0", "layer_1"]
    chex.assert_trees_all_close(hidden, {"layer_0": first, "layer_1": second}, rtol=1e-5)
    chex.assert_trees_all_close(y, fnn.mlp(PARAMS, X), rtol=1e-5)


def test_capture_goes_through_vmap_and_is_differentiated():
    hidden, _ = captured(jax.vmap(fnn.mlp, (None, 0)))(PARAMS, X)
    chex.assert_trees_all_close(hidden, captured(fnn.mlp)(PARAMS, X)[0], rtol=1e-5)

    def captured_loss(params):
        marked, y = capture(fnn.mlp, itself)(params, X)
        return y.sum() + marked["layer_1"].mean()

    def plain_loss(params):
        first = jax.nn.relu(fnn.dense(params["layer_0"], X))
        second = jax.nn.relu(fnn.dense(params["layer_1"], first))
        return fnn.dense(params["layer_2"], second).sum() + second.mean()

    ours, plain = (jax.jit(jax.grad(f))(PARAMS) for f in (captured_loss, plain_loss))
    chex.assert_trees_all_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_marks_of_ones_own():
    def apply(params, x):
        for _ in range(3):
            x = checkpoint_name(jnp.tanh(x @ params["w"]), "again")
        return {"last": x, "first": checkpoint_name(2 * x, "double")}

    params = {"w": jnp.eye(4)}
    marked, y = captured(apply)(params, X)
    assert list(marked) == ["again", "again (2)", "again (3)", "double"]
    chex.assert_trees_all_close(marked["again (3)"], jnp.tanh(jnp.tanh(jnp.tanh(X))), rtol=1e-5)
    chex.assert_trees_all_equal(y, {"last": marked["again (3)"], "first": marked["double"]})


def test_capture_with_dropout_draws_what_apply_draws():
    def apply(params, x, key):
        return fnn.mlp(params, x, key=key, rate=0.5)

    _, y = captured(apply)(PARAMS, X, KEY)
    chex.assert_trees_all_close(y, jax.jit(apply)(PARAMS, X, KEY), rtol=1e-5)


def test_capture_says_what_it_cannot():
    def scanned(params, xs):
        return jax.lax.scan(lambda _, x: (None, fnn.mlp(params, x)), None, xs)[1]

    with pytest.raises(ValueError, match="capture: 'layer_0' is marked inside a scan"):
        capture(scanned)(PARAMS, X)
    with pytest.raises(ValueError, match="capture: apply marks no activation"):
        capture(fnn.dense)(PARAMS["layer_0"], X)
    # A scan without marks is none of its business.
    marked, y = captured(lambda x: checkpoint_name(2 * scan_sum(x), "sum"))(X)
    chex.assert_trees_all_close((marked["sum"], y), (2 * X.sum(0),) * 2, rtol=1e-5)


def scan_sum(x):
    return jax.lax.scan(lambda total, row: (total + row, None), jnp.zeros(4), x)[0]


# --- gradients and updates ----------------------------------------------------------------------


def test_gradient_norms_and_update_ratios_by_hand():
    grads = {
        "hidden": {"w": jnp.array([[3.0, 0.0]]), "b": jnp.array([4.0])},
        "body": {"out": {"w": jnp.full((2, 2), 0.5)}},
        "scale": jnp.array([-2.0]),
    }
    norms = jax.jit(gradient_norms)(grads)
    chex.assert_trees_all_close(norms, {"hidden": 5.0, "body/out": 1.0, "scale": 2.0}, rtol=1e-6)
    updates = jax.tree.map(lambda g: -0.01 * g, grads)
    ratios = jax.jit(update_ratios)(grads, updates)
    chex.assert_trees_all_close(ratios, dict.fromkeys(norms, 0.01), rtol=1e-6)


def test_norms_and_ratios_at_the_edges():
    zero, one = {"a": {"w": jnp.zeros(2)}}, {"a": {"w": jnp.ones(2)}}
    assert update_ratios(zero, one) == {"a": np.inf}
    assert update_ratios(zero, zero) == update_ratios(one, zero) == {"a": 0}
    half = {"a": {"w": jnp.full(4, 300, jnp.float16)}}
    assert gradient_norms(half) == {"a": 600}
    np.testing.assert_allclose(gradient_norms({"a": {"w": jnp.full(4, 1e20)}})["a"], 2e20)
    assert np.isnan(gradient_norms({"a": {"w": jnp.array([jnp.nan])}})["a"])
    assert gradient_norms({}) == {}
    with pytest.raises(ValueError, match="update_ratios: params are"):
        update_ratios(zero, {"b": jnp.ones(2)})


@pytest.mark.parametrize(("gain", "grows"), [(0.1, True), (6.0, False)])
def test_vanishing_and_exploding_gradients_are_seen(gain, grows):
    # Biases alone: their gradients are what is handed down from layer to layer.
    params = jax.tree.map(lambda p: gain * p, fnn.mlp_init(KEY, [16] * 8))
    linear = partial(fnn.mlp, activation=itself)
    x = jax.random.normal(KEY, (32, 16))
    grads = jax.jit(jax.grad(lambda p: linear(p, x).sum()))(params)
    norms = np.array([*gradient_norms({n: {"b": g["b"]} for n, g in grads.items()}).values()])
    assert ((np.diff(norms) > 0) == grows).all()


# --- nothing where nothing is asked ---------------------------------------------------------------


def tiny():
    def loss_fn(params, batch, key):
        x, labels = batch
        return fnn.cross_entropy(fnn.mlp(params, x), labels)

    optimizer = fnn.sgd(0.1)
    return fnn.make_train_step(loss_fn, optimizer), train_init(PARAMS, optimizer)


def program():
    step, ts = tiny()
    text = jax.jit(step).lower(ts, (X, LABELS), KEY).as_text()
    return re.sub(r"@(\w+?)_\d+\b", r"@\1", text)  # JAX 0.10.0 numbers its functions anew


def test_marks_are_nothing_in_the_program(monkeypatch):
    marked = program()
    named = []
    monkeypatch.setattr(
        "jax.ad_checkpoint.checkpoint_name", lambda x, name: named.append(name) or x
    )
    assert program() == marked
    assert named == ["layer_0", "layer_1"]  # so the second was traced without marks


def test_observe_is_the_step_and_its_history():
    def measure(ts, new, batch):
        moved = jax.tree.map(lambda a, b: a - b, new.params, ts.params)
        hidden, _ = capture(fnn.mlp)(ts.params, batch[0])
        return {"ratio": update_ratios(ts.params, moved), "hidden": hidden}

    step, ts = tiny()
    observed = observe(step, measure)
    fit = partial(fnn.fit, data=(X, LABELS), key=KEY, epochs=2, batch_size=20)
    batch = X, LABELS  # of all the rows, which fit takes in some order

    @jax.jit
    def run(ts):
        return fit(observed, ts), jax.lax.scan(lambda ts, _: step(ts, batch, KEY), ts, length=2)

    (seen, more), (plain, metrics) = run(ts)
    chex.assert_trees_all_close(seen, plain, rtol=1e-5, atol=1e-7)
    assert set(more) - set(metrics) == {"ratio", "hidden"}
    assert more["ratio"]["layer_2"].shape == more["hidden"]["layer_1"]["dead"].shape == (2, 1)
    expected = jax.jit(capture(fnn.mlp))(PARAMS, X)[0]
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[0, 0], more["hidden"])
    chex.assert_trees_all_close(first, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"observe: measure returned \['loss'\]"):
        jax.eval_shape(observe(step, lambda *_: {"loss": jnp.zeros(())}), ts, batch, KEY)


# --- the table of a net ---------------------------------------------------------------------------


def twelve_init(key):
    """Names without zeros before them: a tree sorts layer_10 before layer_2."""
    return {f"layer_{i}": fnn.dense_init(key, 4 + i, 5 + i) for i in range(12)}


def twelve(params, x):
    for i in range(12):
        x = jnp.tanh(fnn.dense(params[f"layer_{i}"], x))
    return x


def rows_of(table):
    columns = {column.header: list(column.cells) for column in table.columns}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize("wrap", [itself, jax.jit], ids=lambda f: f.__name__)
def test_twelve_layers_come_in_the_order_of_execution(wrap):
    x = jax.ShapeDtypeStruct((20, 4), jnp.float32)
    rows = rows_of(fnn.summary(twelve_init, wrap(twelve), x))
    assert [row["path"] for row in rows] == [f"layer_{i}/{n}" for i in range(12) for n in "wb"]
    assert [row["output"] for row in rows[::2]] == [f"[20, {5 + i}]" for i in range(12)]
    assert [row["output"] for row in rows[1::2]] == [f"[20, {5 + i}]" for i in range(12)]


def test_summary_of_a_net():
    def init(key):
        return {
            "out": fnn.dense_init(key, 8, 3),
            "in": fnn.dense_init(key, 4, 8),
            "spare": {"w": jnp.ones(2)},
        }

    def apply(params, x):
        return fnn.dense(params["out"], jnp.tanh(fnn.dense(params["in"], x)))

    def cells(path, shape, size, n_bytes, trained, decays, group, output):
        return {"path": path, "shape": shape, "dtype": "float32", "parameters": size,
                "bytes": n_bytes, "trainable": trained, "decays": decays, "group": group,
                "output": output}  # fmt: skip

    options = {"groups": ["**/b"], "frozen": ["in/*"]}
    table = fnn.summary(init, apply, X, **options)
    assert rows_of(table) == [
        cells("in/w", "[4, 8]", "32", "128", "no", "no", "none", "[20, 8]"),
        cells("in/b", "[8]", "8", "32", "no", "no", "**/b", "[20, 8]"),
        cells("out/w", "[8, 3]", "24", "96", "yes", "yes", "none", "[20, 3]"),
        cells("out/b", "[3]", "3", "12", "yes", "no", "**/b", "[20, 3]"),
        cells("spare/w", "[2]", "2", "8", "yes", "yes", "none", "unused"),
    ]
    assert rows_of(fnn.summary(init(KEY), apply, X, **options)) == rows_of(table)
    cost = jax.jit(apply).lower(init(KEY), X).compile().cost_analysis()
    products = 2 * 20 * (4 * 8 + 8 * 3)
    assert products < cost["flops"] < 1.2 * products  # the order of magnitude is known
    caption = str(table.caption)
    assert caption.startswith("69 parameters, 276 bytes\n")
    flops = int(caption.split("\n")[1].split(" FLOPs")[0].replace(",", ""))
    np.testing.assert_allclose(flops, products, rtol=0.2)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    assert "spare/w" in console.export_text()


def test_summary_runs_nothing_and_holds_nothing():
    def init(key):
        return fnn.mlp_init(key, [2**20, 2**20, 2**20])  # 8 TiB

    rows = rows_of(fnn.summary(init, fnn.mlp, jax.ShapeDtypeStruct((2**10, 2**20), jnp.float32)))
    assert [row["bytes"] for row in rows if row["path"].endswith("w")] == [f"{2**42:,}"] * 2


def test_first_uses_looks_inside():
    def scanned(params, xs):
        def cell(h, x):
            h = jnp.tanh(x @ params["b_in"] + h @ params["a_hidden"])
            return h, h

        hs = jax.lax.scan(cell, jnp.zeros((3, 5)), xs)[1]
        normed = params["scale"] * hs
        return params["table"][jnp.argmax(normed, -1)], params["aside"] * 2

    params = {
        "b_in": jnp.ones((4, 5)), "a_hidden": jnp.ones((5, 5)), "scale": jnp.ones(5),
        "table": jnp.ones((5, 7)), "aside": jnp.ones(2), "never": jnp.ones(1),
    }  # fmt: skip
    uses = first_uses(scanned, params, jnp.ones((6, 3, 4)))
    assert list(uses.items()) == [
        ("b_in", (3, 5)),
        ("a_hidden", (3, 5)),
        ("scale", (6, 3, 5)),
        ("table", (6, 3, 7)),
        ("aside", (2,)),
    ]


def test_summary_errors():
    with pytest.raises(
        ValueError, match=r"summary: frozen: pattern 'none/[*]' matches no parameter"
    ):
        fnn.summary(PARAMS, frozen=["none/*"])
    with pytest.raises(TypeError, match="summary: apply is list, expected a function"):
        fnn.summary(PARAMS, ["layer_0/*"])
