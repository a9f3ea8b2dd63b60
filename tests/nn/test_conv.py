from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fnn
from fnn.nn._conv_gradient import Geometry, convolve
from tests.nn.derivatives import check_derivatives
from tests.nn.drawn import normal, params_of
from tests.nn.golden import check_golden, golden

KEY = jax.random.key(0)
LETTERS = "DHW"


# --- PyTorch's values and gradients -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "options"),
    [
        ("conv1d", fnn.conv, {"padding": "VALID"}),
        ("conv2d", fnn.conv, {}),
        ("conv2d_strided", fnn.conv, {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}),
        ("conv2d_grouped", fnn.conv, {"groups": 2, "padding": 0}),
        ("conv2d_depthwise", fnn.conv, {"groups": 3, "padding": "VALID"}),
        ("conv2d_1x1", fnn.conv, {}),
        ("conv3d", fnn.conv, {"stride": (1, 2, 1), "padding": "VALID"}),
        ("conv_transpose1d", fnn.nn.conv_transpose, {"stride": 2, "padding": "VALID"}),
        (
            "conv_transpose2d",
            fnn.nn.conv_transpose,
            {"stride": (2, 3), "padding": ((1, 0), 0), "dilation": (1, 2)},
        ),
    ],
)
def test_convolutions_are_pytorchs(name, layer, options):
    check_golden(lambda p: layer(p, p["x"], **options), golden(name), ("x", "w", "b"))


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("max_pool", partial(fnn.max_pool, size=2)),
        ("max_pool_overlapping", partial(fnn.max_pool, size=3, stride=2, padding=1)),
        ("avg_pool", partial(fnn.avg_pool, size=3, stride=2, padding=1)),
    ],
)
def test_pools_are_pytorchs_ties_and_all(name, pool):
    check_golden(lambda p: pool(p["x"]), golden(name), ("x",))


def test_convolutions_are_flaxs():
    linen = pytest.importorskip("flax.linen", reason="Flax is not installed")

    @jax.jit
    def both(params, x):
        ours, theirs = [], []
        kernels = {"kernel": params["w"], "bias": params["b"]}
        mirrored = kernels | {"kernel": params["w"][::-1, ::-1]}
        for stride, padding in ((1, "SAME"), (2, "SAME"), (2, "VALID")):
            options = {"strides": (stride, stride), "padding": padding}
            theirs.append(linen.Conv(6, (3, 3), **options).apply({"params": kernels}, x))
            ours.append(fnn.conv(params, x, stride=stride, padding=padding))
            transpose = linen.ConvTranspose(6, (3, 3), **options)
            theirs.append(transpose.apply({"params": mirrored}, x))
            ours.append(fnn.nn.conv_transpose(params, x, stride=stride, padding=padding))
        return ours, theirs

    ours, theirs = both(params_of(fnn.conv_init, 4, 6, 3), normal(2, 7, 8, 4))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-5)


# --- the gradient's own rule --------------------------------------------------------------------


def autodiffs(x, w, g):
    space = LETTERS[-len(g.stride) :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    return lax.conv_general_dilated(
        x, w, g.stride, g.padding, g.x_dilation, g.dilation, numbers, feature_group_count=g.groups
    )


GEOMETRIES = {
    "1-D": ((2, 9, 3), (3, 3, 4), Geometry((2,), ((1, 0),), (2,), (1,), 1)),
    "2-D": ((2, 6, 5, 3), (3, 2, 3, 4), Geometry((2, 1), ((0, 2), (1, 1)), (1, 2), (1, 1), 1)),
    "1-D by rows": ((2, 150, 2), (3, 2, 3), Geometry((2,), ((1, 0),), (2,), (1,), 1)),
    "2-D by rows": ((2, 17, 9, 2), (3, 2, 2, 3), Geometry((2, 1), ((0, 2), (1, 1)), (1, 2), (1, 1), 1)),
    "transpose by rows": ((2, 7, 6, 2), (3, 2, 2, 3), Geometry((1, 1), ((1, 2), (0, -1)), (1, 1), (2, 3), 1)),
    "transpose": ((2, 4, 3, 3), (3, 2, 3, 4), Geometry((1, 1), ((1, 2), (0, -1)), (1, 1), (2, 3), 1)),
    "1 x 1": ((2, 4, 5, 3), (1, 1, 3, 4), Geometry((2, 1), ((0, 0), (1, 0)), (1, 1), (1, 1), 1)),
    "groups": ((2, 5, 4, 4), (3, 2, 2, 6), Geometry((1, 2), ((1, 1), (0, 1)), (1, 1), (1, 1), 2)),
    "depthwise": ((2, 5, 4, 2), (2, 2, 1, 4), Geometry((1, 1), ((-1, 1), (0, 1)), (2, 1), (1, 1), 2)),
    "3-D": ((2, 4, 3, 3, 2), (2, 2, 1, 2, 3), Geometry((1, 2, 1), ((1, 1),) * 3, (1,) * 3, (2, 1, 1), 1)),
    "large in groups": ((2, 7, 2), (33, 1, 2), Geometry((1,), ((16, 16),), (1,), (1,), 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", GEOMETRIES)
def test_derivatives_of_both_orders_and_modes_are_autodiffs(name):
    x_shape, w_shape, geometry = GEOMETRIES[name]

    def derivatives(convolve, x, w):
        def loss(x, w):
            return jnp.sin(convolve(x, w, geometry)).sum()

        def squared_gradient(x, w):
            dx, dw = jax.grad(loss, (0, 1))(x, w)
            return (dx**2).sum() + (jnp.cos(dw) * dw).sum()

        tangent = jax.jvp(lambda x, w: convolve(x, w, geometry), (x, w), (jnp.cos(x), w**2))
        first, second = (jax.grad(f, (0, 1))(x, w) for f in (loss, squared_gradient))
        return tangent, first, second

    with jax.enable_x64(True):
        x, w = (normal(*shape, dtype=float) for shape in (x_shape, w_shape))
        ours, theirs = jax.jit(lambda *a: tuple(derivatives(f, *a) for f in (convolve, autodiffs)))(
            x, w
        )
    chex.assert_trees_all_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_the_gradient_of_one_argument_is_that_of_both():
    def loss(x, w):
        return (fnn.conv({"w": w}, x) ** 2).sum()

    @jax.jit
    def gradients(x, w):
        return jax.grad(loss, (0, 1))(x, w), (jax.grad(loss, 0)(x, w), jax.grad(loss, 1)(x, w))

    both, alone = gradients(normal(2, 6, 5, 2), normal(3, 3, 2, 4))
    chex.assert_trees_all_close(alone, both, rtol=1e-6)


def test_a_sweep_of_gradients_is_the_loop():
    x, ws = normal(2, 6, 5, 2), normal(3, 3, 3, 2, 4)
    gradient = jax.jit(jax.grad(lambda w, x: (fnn.conv({"w": w}, x) ** 2).sum(), (0, 1)))
    for axes, xs in (((0, None), x), ((0, 0), jnp.stack([x, -x, 2 * x]))):
        together = jax.jit(jax.vmap(gradient, axes))(ws, xs)
        alone = [gradient(w, x if axes[1] is None else xs[i]) for i, w in enumerate(ws)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
        chex.assert_trees_all_close(together, stacked, rtol=1e-4, atol=1e-4)


def test_gradients_in_a_loop_keep_the_layout_that_is_fast_on_a_cpu():
    """A count, not a time: with axes elsewhere XLA's CPU backend is 10 to 60 times slower."""
    params = {
        "first": params_of(fnn.conv_init, 1, 4, 3),
        "second": params_of(fnn.conv_init, 4, 6, 3),
    }
    x = jnp.ones((8, 10, 10, 1))

    def loss(params):
        y = fnn.max_pool(fnn.relu(fnn.conv(params["first"], x)), 2)
        return (fnn.conv(params["second"], y, stride=2) ** 2).sum()

    def descend(params, _):
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, jax.grad(loss)(params)), None

    lowered = jax.jit(lambda p: lax.scan(descend, p, length=3)[0]).lower(params)
    program = lowered.as_text()
    # Both forward and the second's two gradients: an image has none, the first w's is by rows.
    assert program.count("stablehlo.convolution(") == 4
    assert program.count("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]") == 4
    assert "select_and_scatter" not in program
    compiled = [
        line for line in lowered.compile().as_text().splitlines() if " convolution(" in line
    ]
    assert all("dim_labels=b01f_01io->b01f" in line for line in compiled)


def test_gradients_of_a_sharded_batch_are_those_of_one_device():
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    x, params = normal(16, 6, 6, 2), params_of(fnn.conv_init, 2, 4, 3)
    gradient = jax.jit(jax.grad(lambda p, x: (fnn.conv(p, x) ** 2).sum(), (0, 1)))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    sharded = gradient(params, jax.device_put(x, rows))
    chex.assert_trees_all_close(sharded, gradient(params, x), rtol=1e-4, atol=1e-4)


# --- sizes and padding --------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, ((2, 0), 1)])
def test_conv_transpose_is_the_transpose(padding):
    strides = (1, 2, (3, 5))

    @jax.jit
    def both(w, x):
        ours, transposed = [], []
        for stride in strides:
            options = {"stride": stride, "padding": padding}
            y = fnn.nn.conv_transpose({"w": w.swapaxes(2, 3)}, x, **options)
            conv = partial(fnn.conv, {"w": w}, **options)
            ours.append(y)
            transposed += jax.linear_transpose(conv, y)(x)
        return ours, transposed

    ours, transposed = both(normal(3, 3, 2, 3), normal(2, 3, 4, 3))
    for y, expected, stride in zip(ours, transposed, strides, strict=True):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        if padding == "SAME":
            assert y.shape[1:3] == tuple(np.multiply((3, 4), stride))


def test_leading_axes_are_batches():
    params, x = params_of(fnn.conv_init, 2, 4, 3), normal(2, 3, 6, 5, 2)
    flat = x.reshape(6, 6, 5, 2)
    for layer in (partial(fnn.conv, params), partial(fnn.max_pool, size=2)):
        y, of_all, of_one = jax.jit(lambda *xs, f=layer: [f(x) for x in xs])(flat, x, flat[0])
        np.testing.assert_array_equal(of_all, y.reshape(2, 3, *y.shape[1:]))
        np.testing.assert_allclose(of_one, y[0], rtol=1e-5, atol=1e-6)


def test_a_kernel_of_a_group_has_its_own_fan_in():
    w = fnn.conv_init(KEY, 64, 256, 3, groups=4)["w"]
    assert w.shape == (3, 3, 16, 256)
    assert abs(float(w.std()) / np.sqrt(2 / (9 * 16)) - 1) < 0.02
    assert params_of(fnn.conv_init, 2, 3, (5,))["w"].shape == (5, 2, 3)


# --- pooling ------------------------------------------------------------------------------------


def test_windows_too_large_to_unroll_pool_likewise():
    x = jnp.round(2 * normal(2, 12, 2))
    window = (1, 12, 1)
    expected = lax.reduce_window(x, -np.inf, lax.max, window, window, "VALID")
    for pool in (partial(fnn.max_pool, size=(12,)), lambda x: fnn.nn.global_max_pool(x)[:, None]):
        y, vjp = jax.vjp(jax.jit(pool), x)
        np.testing.assert_array_equal(y, expected)
        first = np.asarray(x).argmax(1)
        (grads,) = vjp(jnp.ones_like(y))
        np.testing.assert_array_equal(np.asarray(grads).argmax(1), first)
        np.testing.assert_array_equal(grads.sum(1), 1)
    long = jnp.tile(x, (1, 4, 1))
    grads = jax.jit(jax.grad(lambda x: fnn.max_pool(x, (48,)).sum()))(long)
    np.testing.assert_array_equal(np.asarray(grads).argmax(1), np.asarray(long).argmax(1))


def test_second_derivatives_of_max_pool():
    with jax.enable_x64(True):
        x = normal(3, 4, 5, 2, dtype=float)
    check_derivatives(lambda x: fnn.max_pool(x, 2) ** 2, x, order=2)


def test_nan_and_infinity_in_a_window():
    x = jnp.array([[1, jnp.nan, 3, -jnp.inf, -jnp.inf, -jnp.inf]])[..., None]
    y, vjp = jax.vjp(lambda x: fnn.max_pool(x, (3,)), x)
    np.testing.assert_array_equal(y[0, :, 0], [np.nan, -np.inf])
    np.testing.assert_array_equal(vjp(jnp.ones_like(y))[0][0, :, 0], [0, 1, 0, 1, 0, 0])
    assert jnp.isnan(fnn.nn.global_max_pool(x))[0, 0]
    # Neither the padding nor a place that does not count takes the place of the first -inf.
    y, vjp = jax.vjp(lambda x: fnn.max_pool(x, (3,), padding=1), x[:, 3:])
    np.testing.assert_array_equal(vjp(jnp.ones_like(y))[0][0, :, 0], [1, 0, 0])
    mask = jnp.asarray([[False, False, False, False, True, True]])
    y, vjp = jax.vjp(lambda x: fnn.nn.global_max_pool(x, mask=mask), x)
    assert y == -np.inf
    np.testing.assert_array_equal(vjp(jnp.ones_like(y))[0][0, :, 0], [0, 0, 0, 0, 1, 0])


def test_means_of_half_precision_are_those_of_float32():
    x = jnp.full((1, 100, 100, 1), 30, jnp.float16)  # the sum is beyond float16
    assert float(fnn.nn.global_avg_pool(x)[0, 0]) == 30
    assert float(fnn.avg_pool(x, 100)[0, 0, 0, 0]) == 30
    np.testing.assert_array_equal(fnn.avg_pool(x, 3, stride=1, padding="SAME"), x)


@pytest.mark.parametrize("seen", [(5, 2), (0, 3)])
def test_a_masked_place_is_not_pooled(seen):
    x = normal(2, 2, 3, 4)
    mask = np.arange(6) < np.array(seen)[:, None]
    poisoned = jnp.where(mask.reshape(2, 2, 3, 1), x, jnp.array([jnp.nan, jnp.inf, 1e30, -1e30]))

    @jax.jit
    def pooled(x):
        def sums(x):
            ys = [f(x, mask=mask.reshape(2, 2, 3)) for f in POOLS]
            return sum(y.sum() for y in ys), ys

        return jax.grad(sums, has_aux=True)(x)

    grads, ys = pooled(poisoned)
    for row, number in enumerate(seen):
        flat = np.asarray(x[row]).reshape(6, 4)[:number]
        expected = (flat.max(0), flat.mean(0)) if number else (np.zeros(4), np.zeros(4))
        for y, by_numpy in zip(ys, expected, strict=True):
            np.testing.assert_allclose(y[row], by_numpy, rtol=1e-6)
        np.testing.assert_allclose(grads[row].sum((0, 1)), 2 if number else 0, rtol=1e-6)
    assert np.isfinite(grads).all()
    assert not np.asarray(grads).reshape(2, 6, 4)[~mask].any()


POOLS = (fnn.nn.global_max_pool, fnn.nn.global_avg_pool)


# --- initial weights of a transpose -------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 4), (6,), (2, 2)])
def test_the_outputs_of_a_transpose_have_one_variance_at_every_stride(size):
    x = normal(8, *[8] * len(size), 64)
    for stride in (1, 2, 3, 4):
        params = fnn.nn.conv_transpose_init(KEY, 64, 64, size, stride=stride)
        y = np.asarray(fnn.nn.conv_transpose(params, x, stride=stride))
        inside = y[(slice(None), *[slice(6, -6 if stride > 1 else None)] * len(size))]
        inside = inside if stride > 1 else y[(slice(None), *[slice(3, 5)] * len(size))]
        # Beyond the kernel's size the stride leaves gaps, where an output sees nothing.
        hit = inside[inside != 0]
        assert abs(hit.var() / 2 - 1) < 0.1, stride


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fnn.conv(params_of(fnn.conv_init, 3, 8, 3), jnp.zeros((4, 9, 9, 2))),
            ValueError,
            r"conv: x has 2 channels \(shape \(4, 9, 9, 2\)\), but w expects 3 \(shape \(3, 3, 3, 8\)\)",
        ),
        (
            lambda: fnn.conv(params_of(fnn.conv_init, 4, 8, 3, groups=2), jnp.zeros((4, 9, 9, 4))),
            ValueError,
            r"conv: x has 4 channels .*, but w expects 2",
        ),
        (
            lambda: fnn.conv(params_of(fnn.conv_init, 3, 8, 3), jnp.zeros((4, 3))),
            ValueError,
            r"conv: x has 2 axes \(shape \(4, 3\)\), but w of shape \(3, 3, 3, 8\) expects 2 spatial",
        ),
        (
            lambda: fnn.conv(params_of(fnn.conv_init, 3, 8, 3), jnp.zeros((4, 9, 9, 3), jnp.uint8)),
            TypeError,
            "conv: x is uint8, expected floating point; scale it first",
        ),
        (
            lambda: fnn.conv(params_of(fnn.conv_init, 3, 8, 3), jnp.zeros((4, 2, 9, 3)), padding="VALID"),
            ValueError,
            r"conv: a window of \(3, 3\) does not fit into \(2, 9\)",
        ),
        (
            lambda: fnn.conv(params_of(fnn.conv_init, 3, 8, 3), jnp.zeros((4, 9, 9, 3)), padding="same"),
            ValueError,
            "conv: padding is 'same', expected 'SAME', 'VALID', a number",
        ),
        (
            lambda: fnn.conv(params_of(fnn.conv_init, 3, 8, 3), jnp.zeros((4, 9, 9, 3)), stride=(1, 0)),
            ValueError,
            "conv: stride is 0, expected at least 1",
        ),
        (
            lambda: fnn.conv_init(KEY, 3, 8, 3, groups=2),
            ValueError,
            "conv_init: in_dim 3 and out_dim 8 do not divide into 2 groups",
        ),
        (
            lambda: fnn.max_pool(jnp.zeros((1, 3, 2), jnp.complex64), (2,)),
            TypeError,
            "max_pool: x is complex64, expected real numbers",
        ),
        (
            lambda: fnn.max_pool(jnp.zeros((3, 2)), 2),
            ValueError,
            r"max_pool: x has shape \(3, 2\), but a window of \(2, 2\) expects 2 spatial axes",
        ),
        (
            lambda: fnn.avg_pool(jnp.zeros((1, 4, 4, 2)), 2, padding=2),
            ValueError,
            r"avg_pool: padding \(\(2, 2\), \(2, 2\)\) leaves windows of \(2, 2\) without a value",
        ),
        (
            lambda: fnn.nn.global_avg_pool(jnp.zeros((4, 2))),
            ValueError,
            r"global_avg_pool: x has shape \(4, 2\), expected \[batch, \*space, channels\]",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_layer(call, error, message):
    with pytest.raises(error, match=message):
        call()
