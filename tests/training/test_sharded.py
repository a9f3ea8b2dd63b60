"""`sharded`: the numbers of one device, a part of the memory, the collectives that theory says."""

import functools
import importlib
import math
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import fnn
from fnn._base import paths
from fnn.training import sharded
from tests.nets import KEY, linear_loss_fn

WIDE = 32
# Each device's rows are about a mean of their own: its statistics are not those of the batch.
X = np.random.default_rng(0).normal(size=(75, WIDE)) + np.arange(75)[:, None] / 10
DATA = jnp.asarray(X, jnp.float32), jnp.arange(75) % 4
SIZES = {"epochs": 2, "batch_size": 30}  # 30 rows on 8 devices, and a last batch of 15
TENSOR = {"up/w": P(None, "model"), "norm/*": P("model"), "down/w": P("model", None)}
BOTH = {**TENSOR, "up/w": P("data", "model"), "**": "data"}


def mesh(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes))


def init(key=KEY):
    keys = jax.random.split(key, 3)
    norm, state = fnn.batch_norm_init(WIDE)
    up, down = (fnn.dense_init(k, WIDE, WIDE) for k in keys[:2])
    return {
        # Without a bias: before batch norm its gradient is rounding, of which Adam makes steps.
        "up": {"w": up["w"]},
        "norm": norm,
        "down": down,
        "out": fnn.dense_init(keys[2], WIDE, 4),
    }, state


def loss_fn(params, state, batch, key):
    h, state = fnn.batch_norm(params["norm"], state, fnn.dense(params["up"], batch[0]), train=True)
    h = fnn.dense(params["down"], fnn.dropout(key, fnn.relu(h), 0.2))
    return fnn.cross_entropy(fnn.dense(params["out"], fnn.relu(h)), batch[1]), state


STEP = fnn.make_train_step(loss_fn, fnn.adam(0.01), clip_norm=0.1)


def run(step):
    return jax.jit(lambda ts: fnn.fit(step, ts, DATA, KEY, **SIZES))(step.init(*init()))


on_one_device = functools.cache(lambda: run(STEP))


@pytest.mark.parametrize(
    ("rules", "axes"),
    [
        pytest.param(None, None, id="fully sharded"),
        pytest.param(BOTH, {"data": 2, "model": 4}, id="both", marks=pytest.mark.slow),
    ],
)
def test_the_numbers_are_those_of_one_device(rules, axes):
    """Batch norm, dropout, clipping, and a last batch that is not full. Rounding, 1e-3 after Adam."""
    step = sharded(STEP, rules, axes and mesh(**axes))
    (one, told), (many, found) = on_one_device(), run(step)
    assert (told["grad_norm"] > 0.1).all()  # so that clipping clips
    chex.assert_trees_all_close(found, told, rtol=1e-4, atol=1e-6)
    moved = (many.params, many.state), (one.params, one.state)
    chex.assert_trees_all_close(*moved, rtol=1e-3, atol=1e-5)
    # Every step leaves each leaf where `init` placed it: nothing is compiled or moved again.
    kept = jax.tree.map(
        lambda leaf, other: leaf.sharding == other.sharding, step.init(*init()), many
    )
    assert all(jax.tree.leaves(kept))


def held(tree, device=None):
    """The bytes of the tree on one device."""
    device = device or jax.devices()[0]
    shards = (s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


def whole_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_a_device_holds_an_eighth():
    ts = sharded(STEP).init(*init())
    split = 2 * WIDE * WIDE  # numbers: up/w and down/w
    small = sum(leaf.size for leaf in jax.tree.leaves(ts.params)) - split
    counters = 2 * 4  # Adam's step and its last rate
    for device in jax.devices():
        assert held(ts.params, device) == 4 * (split // 8 + small)
        assert held(ts.opt_state, device) == 2 * 4 * (split // 8 + small) + counters
    assert whole_bytes(ts.params) == 4 * (split + small)


def collectives(compiled):
    """[(operation, bytes of its results)], scalars left out."""
    found = re.findall(
        r"= (\(.*?\)|\S+) (all-\w+(?:-\w+)?|reduce-scatter|collective-permute)\(",
        compiled.as_text(),
    )
    sizes = [
        (kind, sum(_bytes(*array) for array in re.findall(r"(\w+)\[([\d,]+)\]", shape)))
        for shape, kind in found
    ]
    return sorted((kind, size) for kind, size in sizes if size)


def _bytes(dtype, axes):
    return {"f32": 4, "s32": 4, "pred": 1}[dtype] * math.prod(map(int, axes.split(",")))


def compiled(step, *init, batch):
    return jax.jit(step.update).lower(step.init(*init), batch, KEY).compile()


def plain_loss_fn(params, batch, key):
    return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])


PLAIN = fnn.make_train_step(plain_loss_fn, fnn.adam(0.01), clip_norm=1.0)
NET = fnn.mlp_init(KEY, (32, 64, 64, 8))
ROWS = jnp.ones((16, 32)), jnp.zeros(16, jnp.int32)


def test_the_collectives_and_the_memory_of_each_layout():
    """Data parallel: the gradients, once. Fully sharded: each split parameter is gathered, once.

    XLA for CPUs has no reduce-scatter: it reduces whole gradients and cuts the device's part out.
    """
    gradients = whole_bytes(NET)
    program = compiled(fnn.data_parallel(PLAIN), NET, batch=ROWS)
    assert collectives(program) == [("all-reduce", gradients)]
    whole = program.memory_analysis().argument_size_in_bytes

    program = compiled(step := sharded(PLAIN), NET, batch=ROWS)
    large = sorted(leaf.nbytes for leaf in jax.tree.leaves(NET) if leaf.size >= 1024)
    found = collectives(program)
    assert [size for kind, size in found if kind == "all-gather"] == large
    assert sum(size for kind, size in found if kind == "all-reduce") == gradients
    assert {kind for kind, _ in found} == {"all-gather", "all-reduce"}
    saved = 3 * sum(large) * 7 // 8  # of parameters and two moments
    assert whole - program.memory_analysis().argument_size_in_bytes == saved
    assert whole_bytes(ts := step.init(NET)) - held(ts) == saved


def block_loss_fn(params, x, key):
    x = fnn.transformer_block(params["block"], x @ params["in"])
    return jnp.square(x).mean(-1)


@pytest.mark.slow
def test_tensor_parallel_has_two_all_reduces_of_a_block_in_each_direction():
    """Megatron's: after attention and after the MLP; backward the same before each.

    Query, key and value have a product each, so what comes back from them is reduced as three
    arrays, of which XLA makes one operation.
    """
    dim, heads, rows, time = 32, 8, 4, 16
    params = {
        "in": jnp.eye(dim),
        "block": fnn.transformer_block_init(KEY, dim, heads),
    }
    into = ("query", "key", "value", "layer_0")
    rules = {f"**/{name}/w": P(None, "model") for name in into}
    rules |= {f"**/{name}/b": P("model") for name in into}
    rules |= {"**/output/w": P("model"), "**/layer_1/w": P("model")}
    step = sharded(
        fnn.make_train_step(block_loss_fn, fnn.adam(0.01)), rules, mesh(model=8), batch=None
    )
    found = collectives(compiled(step, params, batch=jnp.ones((rows, time, dim))))
    activations = 4 * rows * time * dim
    assert found == [("all-reduce", times * activations) for times in (1, 1, 1, 3)]


OPTIMIZERS = {
    "adam": fnn.adam(0.1),
    "averaged": fnn.averaged(fnn.adam(0.1)),
    "by_path": fnn.by_path({"up/w": fnn.adam(0.1), "**": fnn.sgd(0.1)}),
    "optax": optax.chain(optax.clip(1.0), optax.adamw(0.1)),
    "accumulated": optax.MultiSteps(optax.adam(0.1), 2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_an_optimizer_keeps_is_where_its_parameter_is(name):
    params, state = init()
    step = fnn.make_train_step(loss_fn, OPTIMIZERS[name])
    ts = sharded(step, BOTH, mesh(data=2, model=4)).init(params, state)
    kept = {path: leaf for path, leaf in paths(ts.opt_state).items() if path.endswith("up/w")}
    assert kept
    assert all(leaf.sharding.spec == P("data", "model") for leaf in kept.values())
    assert ts.params["up"]["w"].sharding.spec == P("data", "model")
    assert ts.params["out"]["w"].sharding.is_fully_replicated  # too small
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(ts.state))


def test_what_has_another_shape_than_its_parameter_is_split_where_it_fits():
    params = {"w": jnp.ones((48, 56)), "v": jnp.ones((30, 2048))}
    by_name = sharded(fnn.make_train_step(linear_loss_fn, optax.flatten(optax.adam(0.1))))
    mu = by_name.init(params).opt_state[0].mu  # one vector of all, of no parameter
    assert mu.sharding.spec == P("data")
    factored = fnn.make_train_step(linear_loss_fn, fnn.adafactor(0.1, smallest_factored=16))
    ts = sharded(factored).init(params)
    specs = {path: leaf.sharding.spec for path, leaf in paths(ts.opt_state).items()}
    assert specs["v_col/v"] == P("data")  # 2,048 numbers
    assert specs["v_row/v"] == P()  # 30
    assert paths(ts.params)["v"].sharding.spec == P(None, "data")
    assert paths(ts.params)["w"].sharding.spec == P(None, "data")  # 56, the larger
    by_spec = sharded(factored, {"v": P(None, "data")}).init(params)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(by_spec.opt_state))


def test_init_under_jit_makes_what_init_places():
    step = sharded(STEP)
    made = jax.jit(lambda key: step.init(*init(key)))(KEY)
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding, made, step.init(*init()))
    assert all(jax.tree.leaves(same))


@pytest.mark.slow
def test_train_goes_on_on_another_number_of_devices(tmp_path):
    def over(devices):
        return sharded(
            PLAIN, mesh=jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
        )

    data = jnp.tile(ROWS[0], (3, 1)) * jnp.arange(48.0)[:, None], jnp.arange(48) % 8
    options = {"batch_size": 16, "progress": False, "validation": data}
    options["validate"] = lambda ts, data: {"loss": plain_loss_fn(ts.params, data, None).mean()}

    def trained(step, epochs, **more):
        return fnn.train(step, step.init(NET), data, KEY, epochs=epochs, **options, **more)

    trained(over(8), 2, checkpoint=tmp_path)
    on = trained(over(2), 4, checkpoint=tmp_path)
    straight = trained(over(8), 4)
    assert on.epochs == 4
    assert len(on.history["val_loss"]) == 4
    chex.assert_trees_all_close(on.history, straight.history, rtol=1e-4, atol=1e-6)
    for result, devices in ((on, 2), (straight, 8)):
        for params in (result.last.params, result.best.params):
            leaf = params["layer_0"]["w"]
            assert leaf.sharding.shard_shape(leaf.shape) == (32, 64 // devices)


def test_a_wrapper_keeps_policy_and_mesh():
    step = fnn.make_train_step(linear_loss_fn, fnn.sgd(0.1), nonfinite="stop")
    watched = fnn.diagnostics.observe(sharded(step), lambda ts, batch, key: {})
    assert watched.policy == "stop"
    assert watched.mesh.size == 8


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"up/v": P("data")}, "sharded: pattern 'up/v' matches no parameter of"),
        (
            {"up/w": P("rows")},
            r"sharded: the rule of 'up/w' is P\('rows',\), expected axes of the mesh,"
            r" \('data',\)",
        ),
        ({"**": "rows"}, r"sharded: the rule of '\*\*' is 'rows', expected axes of the mesh"),
        (
            {"out/b": P("data")},
            r"sharded: out/b has shape \(4,\), and axis 0 cannot be split evenly over the 8 devices"
            " of 'data'",
        ),
        ({"out/b": P(None, "data")}, r"has more entries than out/b, of shape \(4,\), has axes"),
        ({"up/w": P("data", "data")}, "sharded: the rule of 'up/w' names a mesh axis twice"),
    ],
)
def test_rules_that_do_not_fit(rules, message):
    with pytest.raises(ValueError, match=message):
        sharded(STEP, rules).init(*init())


def test_a_mesh_a_batch_and_a_step_that_do_not_fit():
    with pytest.raises(ValueError, match=r"batch is 'data', expected axes of the mesh, \('model'"):
        sharded(STEP, {"up/w": P("model")}, mesh(model=8))
    with pytest.raises(TypeError, match=r"mesh is a list, expected a jax\.sharding\.Mesh"):
        sharded(STEP, mesh=jax.devices())
    with pytest.raises(TypeError, match="step is a function, expected a Step"):
        sharded(lambda ts, batch, key: None)
    with pytest.raises(ValueError, match="the step is split over devices already"):
        sharded(fnn.data_parallel(STEP))


def test_the_page_on_scaling_has_the_tables_of_its_benchmark():
    scaling = importlib.import_module("benchmarks.scaling")
    page = (Path(scaling.__file__).parents[1] / "docs" / "scaling.md").read_text()
    for table in (scaling.counted_table, scaling.estimated_table, scaling.hiding_table):
        assert "\n".join(table()) in page, table


def test_what_was_compiled_for_many_devices_is_what_theory_says():
    """To the byte, but for what docs/scaling.md names."""
    scaling = importlib.import_module("benchmarks.scaling")
    programs = list(scaling.programs())
    assert len(programs) == 24
    for platform, net, layout, devices, found, said in programs:
        what = platform, net, layout, devices
        # A tied embedding is used in two places: it is gathered, and its gradient reduced, for each.
        tied = 4 * 512 * 256 if net == "transformer" else 0
        spare = found.arguments - said.held
        assert spare >= 0 if platform == "tpu" else spare == 20, what  # tiles; key and counters
        gathered, scattered, reduced = np.subtract(found[1:6:2], said[:3])
        if what[:3:2] == ("tpu", "fully sharded"):
            # Gathers by reductions where parts are small, and scatters in rings of permutes.
            assert gathered <= tied, what
            assert reduced <= said.gathered + 2 * tied, what
            continue
        assert gathered in (0, tied), what
        assert scattered == gathered, what
        # A GPU reduces the loss with the gradients.
        assert reduced - tied * (gathered == 0) * (reduced >= tied) in (0, 4), what


def test_the_formula_of_a_ring():
    scaling = importlib.import_module("benchmarks.scaling")
    # Thakur et al. 2005: 2 (d - 1) steps, in each of which a device sends a d-th of the bytes.
    assert scaling.ring(800.0, 8, 10.0, 0.5) == pytest.approx(14 * (800 / 8 / 10 + 0.5))
    assert scaling.ring(800.0, 1, 10.0, 0.5) == 0
