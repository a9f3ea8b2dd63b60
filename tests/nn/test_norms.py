from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.nets import train_init
from tests.nn.drawn import normal
from tests.nn.golden import check_golden, golden

KEY = jax.random.key(0)
train = partial(fnn.batch_norm, train=True)


def batch(shape=(8, 3, 4), mean=0.0):
    return mean + normal(*shape)


# --- PyTorch and the formulas -------------------------------------------------------------------


def group_norm_of_params(p):
    return fnn.nn.group_norm(p, p["x"], groups=2)


@pytest.mark.parametrize(
    ("name", "apply", "names"),
    [
        ("layer_norm", lambda p: fnn.layer_norm(p, p["x"]), ("x", "scale", "offset")),
        ("group_norm", group_norm_of_params, ("x", "scale", "offset")),
        ("rms_norm", lambda p: fnn.nn.rms_norm({"scale": p["scale"]}, p["x"]), ("x", "scale")),
    ],
)
def test_norms_are_pytorchs(name, apply, names):
    check_golden(apply, golden(name), names)


@pytest.mark.parametrize("name", ["batch_norm_train", "batch_norm_eval"])
def test_batch_norm_is_pytorchs(name):
    case = golden(name)
    state = {"mean": case["mean"], "var": case["var"]}
    training = name == "batch_norm_train"

    def apply(p):
        wanted = {name: value.astype(p["x"].dtype) for name, value in state.items()}
        return fnn.batch_norm(p, wanted, p["x"], train=training)

    check_golden(lambda p: apply(p)[0], case, ("x", "scale", "offset"))
    _, new = jax.jit(apply)({k: jnp.asarray(case[k]) for k in ("x", "scale", "offset")})
    np.testing.assert_allclose(new["mean"], case["new_mean"], rtol=1e-5)
    # PyTorch divides by n - 1 in the running variance, and only there.
    n = int(np.prod(case["x"].shape[:-1]))
    moved = (new["var"] - 0.9 * state["var"]) * n / (n - 1) if training else 0.1 * state["var"]
    np.testing.assert_allclose(0.9 * state["var"] + moved, case["new_var"], rtol=1e-5)


def test_batch_norm_is_flaxs_running_statistics_and_all():
    linen = pytest.importorskip("flax.linen", reason="Flax is not installed")
    (params, state), x = fnn.batch_norm_init(4), batch(mean=2.0)
    norm = linen.BatchNorm(use_running_average=False, momentum=0.9)
    variables = {
        "params": {"scale": params["scale"], "bias": params["offset"]},
        "batch_stats": state,
    }
    with jax.numpy_dtype_promotion("standard"):
        expected, updated = norm.apply(variables, x, mutable=["batch_stats"])
    y, new = train(params, state, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(new, dict(updated["batch_stats"]), rtol=1e-5)


def test_instance_norm_is_its_formula_and_a_group_norm_of_single_channels():
    x = np.asarray(batch((3, 5, 2, 4), mean=1e3)).astype(np.float32)
    params = {"scale": np.float32([1, 2, 3, 4]), "offset": np.float32([0, -1, 0.5, 9])}
    wide = x.astype(np.float64)
    mean, var = wide.mean((1, 2), keepdims=True), wide.var((1, 2), keepdims=True)
    expected = (wide - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["offset"]
    params = jax.tree.map(jnp.asarray, params)
    y = jax.jit(fnn.nn.instance_norm)(params, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(y, fnn.nn.group_norm(params, x, groups=4), rtol=1e-5, atol=1e-5)


def test_instance_norm_is_flaxs():
    linen = pytest.importorskip("flax.linen", reason="Flax is not installed")
    x, params = batch((3, 5, 4)), fnn.nn.instance_norm_init(4)
    theirs = {"params": {"scale": params["scale"], "bias": params["offset"]}}
    with jax.numpy_dtype_promotion("standard"):
        expected = linen.InstanceNorm(epsilon=1e-5).apply(theirs, x)
    np.testing.assert_allclose(fnn.nn.instance_norm(params, x), expected, rtol=1e-5, atol=1e-5)


def test_instance_norm_needs_places():
    params = fnn.nn.instance_norm_init(4)
    with pytest.raises(ValueError, match=r"instance_norm: x has shape \(3, 4\), expected \[batch"):
        fnn.nn.instance_norm(params, jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="instance_norm: x has 5 features"):
        fnn.nn.instance_norm(params, jnp.ones((3, 2, 5)))
    constant = jax.jit(jax.grad(lambda x: fnn.nn.instance_norm(params, x).sum()))(
        jnp.ones((2, 3, 4))
    )
    assert jnp.isfinite(constant).all()


# --- batch norm: statistics ---------------------------------------------------------------------


# jaxlib 0.10.0 adds up in one row on a CPU: of many numbers the sum has fewer digits.
SLACK = 1 if jax.__version_info__ >= (0, 10, 2) else 200


def test_statistics_far_from_zero_are_exact():
    x = np.asarray(batch((64, 16, 16, 2), mean=1e4))
    params, state = fnn.batch_norm_init(2)
    y, new = jax.jit(partial(train, momentum=0.0))(params, state, x)
    exact = x.astype(np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(new["mean"], mean, rtol=1.2e-7)  # one bit of float32
    np.testing.assert_allclose(new["var"], var, rtol=1e-6 * SLACK)
    np.testing.assert_allclose(y, (exact - mean) / np.sqrt(var + 1e-5), atol=3e-6 * SLACK)


@pytest.mark.parametrize("outlier", [0.0, 1e4], ids=["none", "the places that are sampled"])
def test_a_small_variance_far_from_zero_is_right(outlier):
    # The estimate of the mean is of some places only; here it is wrong by 1e4, or right.
    x = 1e4 + 0.1 * np.asarray(batch((8, 64, 64, 2)))
    x.reshape(8, -1, 2)[:, :: 8 * 64 * 64 // 1024] -= outlier
    x = x.astype(np.float32)
    params, state = fnn.batch_norm_init(2)
    y, new = jax.jit(partial(train, momentum=0.0, eps=0.0))(params, state, x)
    exact = x.astype(np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(new["mean"], mean, rtol=1.2e-7 * SLACK)
    np.testing.assert_allclose(new["var"], var, rtol=(1e-5 if outlier else 1e-6) * SLACK)
    np.testing.assert_allclose(y, (exact - mean) / np.sqrt(var), rtol=1e-5, atol=3e-5 * SLACK)


@pytest.mark.parametrize("mask", [None, np.array([True, False, True, True, True])])
def test_derivatives_of_both_orders_and_modes_are_those_of_the_formula(mask):
    def formula(params, state, x):
        rows = np.ones(5, bool) if mask is None else mask
        x = jnp.where(rows[:, None, None], x, 0)
        mean, square = (jnp.mean(a[np.flatnonzero(rows)], (0, 1)) for a in (x, x * x))
        var, kept = square - mean**2, 0.9 ** (rows.sum() / 5)
        new = {"mean": mean, "var": var}
        new = jax.tree.map(lambda old, now: kept * old + (1 - kept) * now, state, new)
        y = (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["offset"]
        return y, new

    def ours(params, state, x):
        return train(params, state, x, mask=mask)

    def derivatives(apply, at, way):
        def loss(*at):
            y, new = apply(*at)
            return jnp.sin(y).sum() + (new["mean"] ** 2 * new["var"]).sum()

        def slope(*at):
            return jax.jvp(loss, at, way)[1]

        return slope(*at), jax.grad(loss, (0, 1, 2))(*at), jax.grad(slope, (0, 1, 2))(*at)

    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(batch((5, 3, 2), mean=2.0), np.float64))
        params, state = fnn.batch_norm_init(2, dtype=jnp.float64)
        at = jax.tree.map(lambda leaf: leaf + 0.3, params), state, x
        way = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size, dtype=float)).reshape(a.shape), at)
        found, expected = jax.jit(
            lambda at, way: [derivatives(f, at, way) for f in (ours, formula)]
        )(at, way)
        chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-11)


def test_the_gradient_is_two_sums_over_the_rows():
    params, state = fnn.batch_norm_init(4)

    def loss(params, x):
        return jnp.sum(jnp.sin(train(params, state, x)[0]))

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(params, batch())
    lines = traced.lower(lowering_platforms=("cuda",)).as_text().splitlines()
    over_rows = [x for x in lines if "stablehlo.reduce(" in x and ": (tensor<8x3x4xf32>" in x]
    # The estimate of the mean, both moments at once, and two sums of the gradient.
    assert len(over_rows) == 4


def test_masked_rows_are_as_if_they_were_not_there():
    (params, state), x = fnn.batch_norm_init(4), batch(mean=3.0)
    mask = jnp.array([1, 0, 1, 1, 0, 1, 1, 0])
    rows = np.flatnonzero(mask)
    poisoned = jnp.where(mask[:, None, None] == 0, jnp.nan, x)

    def loss(params, x, mask):
        y, new = train(params, state, x, mask=mask)
        kept = y if mask is None else y[rows]
        return jnp.sin(kept).sum(), (kept, new)

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (y, moved)), (dp, dx) = gradient(params, x[rows], None)
    # The new state keeps 0.9^(5 / 8) of the old one, because 5 of 8 rows count.
    part = (1 - 0.9 ** (5 / 8)) / (1 - 0.9)
    without = y, jax.tree.map(lambda old, new: old + part * (new - old), state, moved)
    for given in (x, poisoned):
        (_, masked), (masked_dp, masked_dx) = gradient(params, given, mask)
        chex.assert_trees_all_close(masked, without, rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(masked_dp, dp, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(masked_dx[rows], dx, rtol=1e-4, atol=1e-5)
        assert not masked_dx[np.asarray(mask) == 0].any()


def test_every_row_weighs_the_same_in_the_running_statistics():
    params, state = fnn.batch_norm_init(3)
    x, batch_size = np.asarray(batch((65, 3), mean=2.0), np.float64), 64
    padded = jnp.asarray(np.concatenate([x, x[: 2 * batch_size - 65]]), jnp.float32)
    mask = jnp.arange(2 * batch_size) < 65

    @jax.jit
    def epoch(state, momentum):
        for part in (slice(0, 64), slice(64, 128)):
            kept = {"momentum": momentum, "mask": mask[part]}
            state = train(params, state, padded[part], **kept)[1]
        return state

    found = epoch(state, 0.9)
    expected = np.zeros(3), np.ones(3)
    for part, kept in ((x[:64], 0.9), (x[64:], 0.9 ** (1 / 64))):
        now = part.mean(0), part.var(0)
        expected = [kept * old + (1 - kept) * new for old, new in zip(expected, now, strict=True)]
    np.testing.assert_allclose(found["mean"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found["var"], expected[1], rtol=1e-5)
    # A full mask is no mask, to the last bit, and the rate may be 0 or 1 in a sweep.
    at = {"momentum": jnp.float32(0.9)}
    full = train(params, state, padded[:64], mask=jnp.ones(64), **at)
    chex.assert_trees_all_equal(full, train(params, state, padded[:64], **at))
    ends = jax.vmap(epoch, (None, 0))(state, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(ends["mean"][0], x[64], rtol=1e-5)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[1], ends), state)


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 4), (5, 2, 1, 3, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_in_a_masked_row_reaches_anything(shape, training):
    (params, state), x = fnn.batch_norm_init(4), batch(shape)
    mask = np.array([True, False, True, True, False])
    each = mask.reshape(-1, *[1] * (len(shape) - 1))
    garbage = jnp.broadcast_to(jnp.array([jnp.nan, jnp.inf, -jnp.inf, 3e38]), shape)

    @jax.jit
    def gradient(x):
        def loss(params, x):
            y, new = fnn.batch_norm(params, state, x, train=training, mask=mask)
            return jnp.sin(jnp.where(each, y, 0)).sum(), (jnp.where(each, y, 0), new)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    found, clean = (gradient(jnp.where(each, x, other)) for other in (garbage, 0))
    chex.assert_trees_all_equal(found, clean)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("rows", [0, 3])
def test_no_row_that_counts_keeps_the_state(rows):
    params, _ = fnn.batch_norm_init(4)
    state = {"mean": jnp.arange(4.0), "var": jnp.arange(1.0, 5.0)}
    x, mask = batch((rows, 4)), jnp.zeros(rows, bool)

    def apply(x):
        y, new = train(params, state, x, mask=mask)
        return y.sum(), (y, new)

    grads, (y, new) = jax.jit(jax.grad(apply, has_aux=True))(x)
    chex.assert_trees_all_equal(new, state)
    assert np.isfinite(y).all()
    assert np.isfinite(grads).all()


def norms_of_rows(x, ones):
    return fnn.layer_norm(ones, x), fnn.nn.rms_norm(ones, x)


def test_an_overflow_is_nan_and_no_zero():
    ones = fnn.layer_norm_init(4)
    x = jnp.asarray([[1e25, 2e25, 3e25, 4e25], [1.0, 2.0, 3.0, 4.0]])
    y = train(ones, {"mean": jnp.zeros(4), "var": jnp.ones(4)}, x)[0]
    assert jnp.isnan(y).all()
    for y in jax.jit(norms_of_rows)(x, ones):
        assert (jnp.isnan(y) == jnp.asarray([[True], [False]])).all()


def test_norms_of_complex_numbers_have_the_square_of_their_size():
    x = np.asarray(normal(3, 4)) + 1j * np.asarray(normal(3, 4, seed=1), float)
    centred = x - x.mean(-1, keepdims=True)
    formulas = [y / np.sqrt((abs(y) ** 2).mean(-1, keepdims=True) + 1e-5) for y in (centred, x)]
    found = norms_of_rows(jnp.asarray(x, jnp.complex64), {"scale": jnp.ones(4)})
    chex.assert_trees_all_close(list(found), formulas, atol=1e-6)


@pytest.mark.parametrize(
    "x", [jnp.full((1, 4), 7.0), jnp.full((6, 4), 1e4 + 0.1)], ids=["one row", "constant"]
)
def test_one_row_and_constant_features_give_the_offset(x):
    params, state = fnn.batch_norm_init(4)
    params["offset"] = jnp.arange(4.0)

    norms = {
        "batch": lambda x: train(params, state, x)[0],
        "layer": lambda x: fnn.layer_norm(params, x),
        "group": lambda x: fnn.nn.group_norm(params, x, groups=2),
    }

    @jax.jit
    def values_and_grads(x):
        def of(norm):
            return norm(x), jax.grad(lambda x: norm(x).sum())(x)

        found = {name: of(norm) for name, norm in norms.items()}
        at_zero = jax.grad(lambda x: fnn.nn.rms_norm(params, x).sum())(0 * x)
        return found, train(params, state, x, momentum=0.0)[1]["var"], at_zero

    found, var, at_zero = values_and_grads(x)
    assert np.isfinite(at_zero).all()
    offset = jnp.broadcast_to(params["offset"], x.shape)
    for name, (y, grads) in found.items():
        np.testing.assert_allclose(y, offset, atol=1e-5, err_msg=name)
        assert np.isfinite(grads).all(), name
    assert (var >= 0).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
def test_statistics_of_half_precision_are_kept_in_float32(dtype):
    params, state = fnn.batch_norm_init(4, dtype=dtype)
    x = (300 * batch((64, 4))).astype(dtype)  # squares beyond float16
    y, new = jax.jit(partial(train, momentum=0.0))(params, state, x)
    chex.assert_type([*state.values(), *new.values()], jnp.float32)
    assert y.dtype == dtype
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(new["var"], exact.var(0), rtol=1e-5)
    np.testing.assert_allclose(new["mean"], exact.mean(0), rtol=1e-4)


def test_statistics_of_a_sharded_batch_are_global():
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    (params, state), x = fnn.batch_norm_init(4), batch((16, 3, 4))
    x = x + jnp.arange(16.0)[:, None, None]  # each shard has a mean of its own
    mask = jnp.arange(16) < 13

    @jax.jit
    def gradient(x, mask):
        def loss(x):
            y, new = train(params, state, x, mask=mask)
            return jnp.sin(y).sum(), (y, new)

        return jax.grad(loss, has_aux=True)(x)

    sharded = gradient(*jax.device_put((x, mask), rows))
    chex.assert_trees_all_close(sharded, gradient(x, mask), rtol=1e-5, atol=1e-5)


def test_running_statistics_go_to_the_batch_in_a_scan():
    (params, state), x = fnn.batch_norm_init(4), batch((32, 4), mean=5.0)

    def step(state, momentum):
        return train(params, state, x, momentum=momentum)[1], None

    state, _ = jax.lax.scan(step, state, jnp.full(200, 0.9))
    np.testing.assert_allclose(state["mean"], x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(state["var"], x.var(0), rtol=1e-4)
    y, same = fnn.batch_norm(params, state, x, train=False)
    np.testing.assert_allclose(y, train(params, state, x)[0], rtol=1e-3, atol=1e-3)
    chex.assert_trees_all_equal(same, state)


def test_a_step_trains_with_the_state_and_the_mask():
    params, state = fnn.batch_norm_init(4)
    optimizer = fnn.sgd(0.1)

    def loss_fn(params, state, batch, key):
        y, state = fnn.batch_norm(params, state, batch, train=True)
        return (y - 1) ** 2, state

    step = fnn.make_train_step(loss_fn, optimizer)
    ts = train_init(params, optimizer, state)
    ts, history = jax.jit(
        lambda ts: fnn.fit(step, ts, batch((32, 4)), KEY, epochs=3, batch_size=8)
    )(ts)
    assert history["loss"][-1, -1] < history["loss"][0, 0]
    assert abs(float(ts.state["var"].mean()) - 1) < 0.5
    decay = fnn.optim.add_weight_decay(1.0)
    kept, _ = decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(kept))


# --- errors -------------------------------------------------------------------------------------

PARAMS, STATE = (
    fnn.layer_norm_init,
    {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)},
)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: train(PARAMS(4), STATE, jnp.zeros((2, 3))),
            ValueError,
            r"batch_norm: x has 3 features \(shape \(2, 3\)\), but scale expects 4",
        ),
        (
            lambda: train(PARAMS(4), STATE, jnp.zeros(4)),
            ValueError,
            r"batch_norm: x has shape \(4,\), expected \[batch, ..., dim\]",
        ),
        (
            lambda: train(PARAMS(3), STATE, jnp.zeros((2, 3))),
            ValueError,
            r"batch_norm: x has 3 features \(shape \(2, 3\)\), but the state's mean has shape \(4,\)",
        ),
        (
            lambda: train(PARAMS(4), STATE, jnp.zeros((2, 4)), mask=jnp.ones((2, 4))),
            ValueError,
            r"batch_norm: mask has shape \(2, 4\), but x of shape \(2, 4\) expects \(2,\)",
        ),
        (
            lambda: fnn.batch_norm(PARAMS(4), STATE, jnp.zeros((2, 4))),
            TypeError,
            "missing 1 required keyword-only argument: 'train'",
        ),
        (
            lambda: fnn.layer_norm(PARAMS(4), jnp.zeros((2, 4), int)),
            TypeError,
            "layer_norm: x is int32, expected floating point",
        ),
        (
            lambda: train(PARAMS(4), STATE, jnp.zeros((2, 4), jnp.complex64)),
            TypeError,
            "batch_norm: x is complex64, expected real numbers",
        ),
        (
            lambda: fnn.nn.group_norm(PARAMS(4), jnp.zeros((2, 4)), groups=3),
            ValueError,
            "group_norm: groups is 3, which does not divide 4",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_layer(call, error, message):
    with pytest.raises(error, match=message):
        call()
