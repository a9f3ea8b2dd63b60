from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.test_conv import check_golden, golden

KEY = jax.random.key(0)
train = partial(fnn.batch_norm, train=True)


def batch(shape=(8, 3, 4), mean=0.0):
    return mean + jax.random.normal(KEY, shape)


# --- PyTorch and the formulas -------------------------------------------------------------------


def group_norm_of_params(p):
    return fnn.group_norm(p, p["x"], groups=2)


@pytest.mark.parametrize(
    ("name", "apply", "names"),
    [
        ("layer_norm", lambda p: fnn.layer_norm(p, p["x"]), ("x", "scale", "offset")),
        ("group_norm", group_norm_of_params, ("x", "scale", "offset")),
        ("rms_norm", lambda p: fnn.rms_norm({"scale": p["scale"]}, p["x"]), ("x", "scale")),
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
    _, new = apply({k: jnp.asarray(case[k]) for k in ("x", "scale", "offset")})
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


def test_group_norm_of_as_many_groups_as_channels_is_instance_norm():
    x = np.asarray(batch((3, 5, 4)), np.float64)
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    y = fnn.group_norm(fnn.group_norm_init(4), x.astype(np.float32), groups=4)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


# --- batch norm: statistics ---------------------------------------------------------------------


def test_statistics_far_from_zero_are_exact():
    x = np.asarray(batch((64, 16, 16, 2), mean=1e4))
    params, state = fnn.batch_norm_init(2)
    y, new = jax.jit(partial(train, momentum=0.0))(params, state, x)
    exact = x.astype(np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(new["mean"], mean, rtol=1.2e-7)  # one bit of float32
    np.testing.assert_allclose(new["var"], var, rtol=1e-6)
    np.testing.assert_allclose(y, (exact - mean) / np.sqrt(var + 1e-5), atol=3e-6)


def test_masked_rows_are_as_if_they_were_not_there():
    (params, state), x = fnn.batch_norm_init(4), batch(mean=3.0)
    mask = jnp.array([1, 0, 1, 1, 0, 1, 1, 0])
    rows = np.flatnonzero(mask)
    poisoned = jnp.where(mask[:, None, None] == 0, jnp.nan, x)

    def loss(params, x, mask):
        y, new = train(params, state, x, mask=mask)
        kept = y if mask is None else y[rows]
        return jnp.sin(kept).sum(), (kept, new)

    gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (_, without), (dp, dx) = gradient(params, x[rows], None)
    for given in (x, poisoned):
        (_, masked), (masked_dp, masked_dx) = gradient(params, given, mask)
        chex.assert_trees_all_close(masked, without, rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(masked_dp, dp, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(masked_dx[rows], dx, rtol=1e-4, atol=1e-5)
        assert not masked_dx[np.asarray(mask) == 0].any()


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


@pytest.mark.parametrize(
    "x", [jnp.full((1, 4), 7.0), jnp.full((6, 4), 1e4 + 0.1)], ids=["one row", "constant"]
)
def test_one_row_and_constant_features_give_the_offset(x):
    params, state = fnn.batch_norm_init(4)
    params["offset"] = jnp.arange(4.0)

    def apply(x, norm):
        return norm(x).sum()

    norms = {
        "batch": lambda x: train(params, state, x)[0],
        "layer": lambda x: fnn.layer_norm(params, x),
        "group": lambda x: fnn.group_norm(params, x, groups=2),
    }
    for name, norm in norms.items():
        np.testing.assert_allclose(
            norm(x), jnp.broadcast_to(params["offset"], x.shape), atol=1e-5, err_msg=name
        )
        assert np.isfinite(jax.grad(apply)(x, norm)).all(), name
    assert np.isfinite(jax.grad(apply)(0 * x, lambda x: fnn.rms_norm(params, x))).all()
    assert (train(params, state, x, momentum=0.0)[1]["var"] >= 0).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
def test_statistics_of_half_precision_are_kept_in_float32(dtype):
    params, state = fnn.batch_norm_init(4, dtype=dtype)
    x = (300 * batch((64, 4))).astype(dtype)  # squares beyond float16
    y, new = train(params, state, x, momentum=0.0)
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

    step = fnn.make_train_step(loss_fn, optimizer, has_state=True)
    ts = fnn.train_init(params, optimizer, state)
    ts, history = jax.jit(
        lambda ts: fnn.fit(step, ts, batch((32, 4)), KEY, epochs=3, batch_size=8)
    )(ts)
    assert history["loss"][-1, -1] < history["loss"][0, 0]
    assert abs(float(ts.state["var"].mean()) - 1) < 0.5
    decay = fnn.add_weight_decay(1.0)
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
            r"batch_norm: x has 3 features \(shape \(2, 3\)\), but the state 4",
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
            lambda: fnn.group_norm(PARAMS(4), jnp.zeros((2, 4)), groups=3),
            ValueError,
            "group_norm: groups is 3, which does not divide 4",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_layer(call, error, message):
    with pytest.raises(error, match=message):
        call()
