"""`check_layer` finds each kind of mistake, and passes a layer that has none."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.inspect import check_layer

KEPT = []


def init(key, dtype=jnp.float32):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), dtype)
    return {"gain": {"scale": jnp.ones(3, dtype)}, "w": w}


def apply(params, x):
    return params["gain"]["scale"] * jnp.tanh(x @ params["w"])


def test_a_right_layer_passes():
    assert check_layer(init, apply, (4,)) is None


def test_trees_of_outputs_and_integers_beside_the_params_pass():
    def with_integers(key):
        return init(key) | {"places": jnp.array([2, 0, 1])}

    def both(params, x):
        y = apply(params, x)[..., params["places"]]
        return {"y": y, "largest": y.argmax(-1)}

    check_layer(with_integers, both, (4,), dtypes=("float64",))


def test_a_layer_that_needs_a_batch_axis_and_gives_only_integers_passes():
    def ids(params, x):
        return jnp.argmax(x @ params["w"], -1).reshape(x.shape[0], -1)

    check_layer(init, ids, (2, 4), dtypes=("float64",))


def test_no_params_and_no_features_pass():
    check_layer(lambda key: {}, lambda params, x: jnp.tanh(x), (), dtypes=("float32",))


@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_fnns_own_dense_passes_with_its_random_init(shape):
    check_layer(lambda key, **o: fnn.dense_init(key, 4, 2, **o), fnn.dense, shape)


# --- mistakes, one a property ---------------------------------------------------------------------


@jax.custom_vjp
def half_gradient(x):
    return jnp.tanh(x)


def _bwd(x, g):
    return (0.5 * g * (1 - jnp.tanh(x) ** 2),)


half_gradient.defvjp(lambda x: (jnp.tanh(x), x), _bwd)


@jax.custom_jvp
def wrong_tangent(w):
    return w * w


wrong_tangent.defjvp(lambda at, ways: (at[0] * at[0], 2.001 * at[0] * ways[0]))


def counting():
    calls = []

    def apply_and_count(params, x):
        calls.append(1)
        return apply(params, x) + len(calls)

    return apply_and_count


def changing(params, x):
    params["seen"] = x
    return apply({name: params[name] for name in ("w", "gain")}, x)


def keeping(params, x):
    KEPT.append(x)
    return apply(params, x)


def in_python(params, x):
    return apply(params, x) if float(x.sum()) > 0 else apply(params, -x)


def by_numpy(params, x):
    return np.tanh(np.asarray(x)) @ params["w"]


def otherwise_alone(params, x):
    """Takes one row alone otherwise than in a batch."""
    return apply(params, x) * (2 if x.shape[0] == 1 else 1)


def in_float32(params, x):
    return apply(params, x).astype(jnp.float32)


def narrow_inside(params, x):
    """bfloat16 in between, whatever comes."""
    return apply(params, x.astype(jnp.bfloat16).astype(x.dtype))


def squared(params, x):
    """In float16 a sum of squares that is small in float64 overflows."""
    return jnp.sqrt(jnp.sum(jnp.square(300 * x @ params["w"]), -1))


def normed(params, x):
    y = apply(params, x)
    return (y - y.mean(0)) / (1 + y.std(0))


def not_a_number(params, x):
    return jnp.log(apply(params, x))


FINDS = {
    "forward": (lambda p, x: apply({**p, "w": wrong_tangent(p["w"])}, x), {}, r"forward derivative: along params/w, the derivative is \S+ by jax.jvp, but \S+ by finite differences"),
    "reverse": (lambda p, x: half_gradient(x @ p["w"]), {"modes": ("reverse",)}, r"reverse derivative: along params/w, the derivative is \S+ by jax.vjp, but \S+ by finite"),
    "purity": (counting(), {}, r"purity: y\[\d, \d\] is \S+ in a second call, but \S+ in the first"),
    "changes": (changing, {}, r"purity: apply changes its params: \['gain/scale', 'seen', 'w'\] after the call, \['gain/scale', 'w'\] before"),
    "keeps": (keeping, {}, "purity: apply keeps a traced value in a list"),
    "values": (in_python, {}, r"one trace: apply needs values while it is traced"),
    "numpy": (by_numpy, {}, r"one trace: apply needs values while it is traced"),
    "vmap": (otherwise_alone, {}, r"vmap over rows: y\[\d, \d\] is \S+ under jax.vmap, but \S+ in the batch"),
    "rows": (normed, {"dtypes": ("float32",)}, r"vmap over rows: y\[\d, \d\] is"),
    "dtype": (in_float32, {}, r"dtype: y is float32 for params and x in float16, expected float16"),
    "float32": (narrow_inside, {}, r"forward derivative: along x, the derivative is"),
    "float16": (squared, {}, r"float16: y\[\d\] is inf in float16, but \S+ in float64"),
    "finite": (not_a_number, {}, r"shape: y is not finite everywhere, for normal x \(5, 4\)"),
    "shape": (lambda p, x: apply(p, x).sum(0), {}, r"shape: y has shape \(3,\) for x \(5, 4\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FINDS)
def test_a_mistake_is_named(name):
    wrong, options, message = FINDS[name]
    with pytest.raises(AssertionError, match="check_layer: " + message):
        check_layer(init, wrong, (4,), **options)


def test_rows_that_see_each_other_pass_when_said():
    check_layer(init, normed, (4,), row_by_row=False, dtypes=("float32",))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda key: init(key) | {"gain": {"scale": 1.0}}, r"params: gain/scale is of type float, expected a jax.Array"),
        (lambda key: init(key) | {"key": key}, r"params: key is a random key, expected real numbers"),
        (lambda key: init(key) | {"w": jnp.ones((4, 3), jnp.complex64)}, r"params: w is complex64, expected real numbers"),
        (lambda key: init(key) | {"gain": {"scale": jnp.full(3, 1.0)}}, r"params: gain/scale is a weakly typed float32; write jnp.full\(3, 1, jnp.float32\)\. A weak type changes at the first update, and the step compiles again"),
        (lambda key, dtype=None: init(key), r"dtype: gain/scale is float32 by init\(key, dtype=float16\), expected float16"),
    ],
)  # fmt: skip
def test_a_mistake_of_init_is_named(wrong, message):
    with pytest.raises(AssertionError, match="check_layer: " + message):
        check_layer(wrong, apply, (4,))


def with_sizes(key, inside, outside):
    return fnn.dense_init(key, inside, outside)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (init(jax.random.key(0)), "init is a dict, expected a function; init takes a key alone: lambda key: my_init(key, 4, 3)"),
        (with_sizes, "init takes a key alone: lambda key: my_init(key, 4, 3), but for with_sizes(key, inside, outside) missing a required argument: 'inside'"),
    ],
)  # fmt: skip
def test_an_init_takes_a_key_alone(wrong, message):
    with pytest.raises(TypeError, match=re.escape(f"check_layer: {message}")):
        check_layer(wrong, apply, (4,))


def test_an_init_that_draws_anew_is_impure():
    rng = np.random.default_rng(0)

    def drawing(key):
        return {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}

    with pytest.raises(
        AssertionError, match=r"purity: w\[\d, \d\] of init is \S+ in a second call"
    ):
        check_layer(drawing, lambda p, x: x @ p["w"], (4,))


def test_the_values_in_the_message_are_those_of_numpy():
    """The derivative along w of the wrong rule is half of the finite difference."""
    with pytest.raises(AssertionError) as caught:
        check_layer(init, lambda p, x: half_gradient(x @ p["w"]), (4,), modes=("reverse",))
    wrong, right = map(float, re.findall(r"(-?\d[\d.e-]*) by", str(caught.value)))
    np.testing.assert_allclose(wrong, right / 2, rtol=1e-6)


def test_a_small_leaf_is_judged_by_its_own_size():
    def two(params, x):
        return 1e3 * x + wrong_tangent(params["w"])

    with pytest.raises(AssertionError, match="forward derivative: along params/w"):
        check_layer(lambda key: {"w": jnp.ones(4)}, two, (4,), dtypes=("float64",))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"modes": ("backward",)}, ValueError, "check_layer: modes has 'backward', expected 'forward' or 'reverse'"),
        ({"dtypes": "float32"}, TypeError, "check_layer: dtypes is 'float32', expected several, as"),
        ({"dtypes": ("float8_e4m3fn",)}, ValueError, "check_layer: dtypes has 'float8_e4m3fn', expected some"),
        ({"shape": 4}, TypeError, "check_layer: shape is 4, expected that of an example, as "),
        ({"shape": (4.0,)}, TypeError, "check_layer: shape is 4.0, expected a whole number"),
    ],
)  # fmt: skip
def test_mistakes_in_the_call(options, error, message):
    with pytest.raises(error, match=message):
        check_layer(**{"init": init, "apply": apply, "shape": (4,)} | options)


def test_an_error_of_the_layer_itself_is_the_users():
    with pytest.raises(ValueError, match="dense: x has 5 features"):
        check_layer(partial(fnn.dense_init, in_dim=4, out_dim=3), fnn.dense, (5,))


def test_complex_outputs_are_compared_up_to_rounding():
    def spectrum(params, x):
        return jnp.fft.rfft(3.3 * x)

    check_layer(lambda key: {}, spectrum, (7,), dtypes=("float32", "float64"))
    wrong = jax.custom_jvp(
        lambda x: jnp.fft.rfft(x) if x.dtype == "float64" else 1.01 * jnp.fft.rfft(x)
    )
    wrong.defjvp(lambda x, dx: (wrong(*x), jnp.fft.rfft(*dx)))
    with pytest.raises(AssertionError, match=r"float32: y\[\d, \d\] is"):
        check_layer(lambda key: {}, lambda p, x: wrong(x), (7,), dtypes=("float32",))


def test_a_large_output_has_differences_that_rounding_spoils():
    check_layer(init, lambda p, x: 1e6 + apply(p, x), (4,), dtypes=("float64",))
    with pytest.raises(AssertionError, match="reverse derivative"):
        check_layer(
            init, lambda p, x: 1e6 + half_gradient(x @ p["w"]), (4,), modes=("reverse",), dtypes=()
        )


def test_a_mask_in_params_stays_one_of_bools():
    def masked(params, x):
        return jnp.where(jax.lax.bitwise_and(params["mask"], x > 0), params["w"] * x, x)

    def with_mask(key):
        return {"w": jax.random.normal(key, (4,)), "mask": jnp.arange(4) > 1}

    check_layer(with_mask, lambda p, x: jax.vmap(masked, (None, 0))(p, x), (4,))
