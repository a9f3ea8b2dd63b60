"""Each dialect against the library whose it is: Optax by running it, PyTorch and Keras by what
they computed (`golden/make_optimizers.py`), the paper by its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.dialects import FUNCTIONS, LIBRARIES, table
from tests.table_of_optimizers import adamw as numpy_adamw
from tests.test_optimizers import SLOWING, follow, follow_both, runs_optax


def dialect(library, rule, rate, **changed):
    """The rule as the dialect has it, but for the arguments that the golden run changed."""
    make = getattr(fnn, FUNCTIONS.get(rule, rule))
    return make(rate, **{**LIBRARIES[library][rule], **changed})


# What the golden runs computed, and what to change in the dialect to be that run.
GOLDEN = {
    "torch/sgd": {},
    "torch/momentum": {},
    "torch/nesterov": {},
    "torch/adagrad": {},
    "torch/rmsprop": {},
    "torch/rmsprop_centered": {"decay": 0.9},
    "torch/rmsprop_momentum": {"decay": 0.9},
    "torch/adam": {},
    "torch/amsgrad": {},
    "torch/adamw": {},
    "torch/nadam": {},
    "keras/sgd": {},
    "keras/momentum": {},
    "keras/nesterov": {},
    "keras/adagrad": {},
    "keras/rmsprop": {},
    "keras/rmsprop_centered": {},
    "keras/rmsprop_momentum": {},
    "keras/adam": {},
    "keras/amsgrad": {},
    "keras/adamw": {"weight_decay": 0.01},
    "keras/nadam": {},
    "keras/lion": {},
}


@pytest.fixture(scope="module")
def golden(request):
    return np.load(request.path.parent / "golden" / "optimizers.npz")


def golden_paths(make, golden, dtype):
    """At the constant and the changing rate, [2, steps, 12]."""
    start, grads = jnp.asarray(golden["start"], dtype), jnp.asarray(golden["grads"], dtype)
    return np.asarray(follow_both(make, start, grads))


def expected_paths(name, golden):
    return np.stack([golden[f"{name}/{rate}"] for rate in SLOWING])


@pytest.mark.parametrize("name", GOLDEN)
def test_50_steps_are_the_librarys(name, golden):
    def make(rate):
        return dialect(*name.split("/"), rate, **GOLDEN[name])

    expected = expected_paths(name, golden)
    with jax.enable_x64(True):
        paths = golden_paths(make, golden, jnp.float64)
    np.testing.assert_allclose(paths, expected, rtol=1e-12, atol=1e-14)
    # float32 loses what is left of v - mean^2 where that is nearly nothing.
    atol = 5e-3 if "centered" in name else 2e-6
    np.testing.assert_allclose(
        golden_paths(make, golden, jnp.float32), expected, rtol=2e-5, atol=atol
    )


def test_pytorchs_muon(golden):
    """Its bfloat16 iteration is off by up to 1e-3 of the formula over 50 steps."""
    start, grads = (golden[name].reshape(-1, 3, 4) for name in ("start", "grads"))
    with jax.enable_x64(True):  # its weights are [out, in]
        paths = follow_both(
            lambda rate: dialect("torch", "muon", rate), start[0].T, grads.swapaxes(1, 2)
        )
    expected = expected_paths("torch/muon", golden).reshape(2, -1, 3, 4)
    np.testing.assert_allclose(paths.swapaxes(2, 3), expected, atol=2e-3)
    assert abs(expected[:, -1] - start).max() > 0.05  # the tolerance is far under the way it went


def l2(rule):
    decay = fnn.add_weight_decay(0.01, mask=True)
    return lambda rate: fnn.chain(decay, dialect("torch", rule, rate))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("dampening", lambda rate: dialect("torch", "momentum", rate, dampening=0.5)),
        ("sgd_l2", l2("momentum")),
        ("adam_l2", l2("adam")),
    ],
)
def test_pytorchs_other_arguments(name, make, golden):
    with jax.enable_x64(True):
        paths = golden_paths(make, golden, jnp.float64)
    np.testing.assert_allclose(
        paths, expected_paths(f"torch/{name}", golden), rtol=1e-12, atol=1e-14
    )


OPTAX = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "nesterov": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "adagrad": optax.adagrad,
    "rmsprop": optax.rmsprop,
    "rmsprop_centered": lambda rate: optax.rmsprop(rate, centered=True),
    "rmsprop_momentum": lambda rate: optax.rmsprop(rate, momentum=0.9),
    "adam": optax.adam,
    "amsgrad": optax.amsgrad,
    "adamw": optax.adamw,
    "nadam": optax.nadam,
    "lion": optax.lion,
    "adafactor": optax.adafactor,
}


@runs_optax
@pytest.mark.parametrize("rule", OPTAX)
def test_50_steps_are_optaxs_with_its_own_defaults(rule, golden):
    assert set(OPTAX) == set(LIBRARIES["optax"])
    for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 2e-5)):
        with jax.enable_x64(dtype == jnp.float64):
            ours = golden_paths(lambda rate: dialect("optax", rule, rate), golden, dtype)
            theirs = golden_paths(OPTAX[rule], golden, dtype)
            atol = 5e-3 if rtol > 1e-6 and rule == "rmsprop_centered" else rtol / 10
            if rule == "adafactor":
                rtol = 2e-5  # Optax forms 1 - t^-0.8 in float32 always
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


@runs_optax
def test_adafactor_of_matrices_is_optaxs():
    rng = np.random.default_rng(0)
    params = {
        "wide": rng.normal(size=(6, 9)),
        "tall": rng.normal(size=(3, 9, 6)),
        "small": rng.normal(size=(2, 9)),
        "b": rng.normal(size=7),
    }
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=(20, *p.shape))), params)
        for options in ({}, {"scale_by_parameters": False}, {"clip": 0.1, "decay": 0.5}):
            ours = fnn.adafactor(0.1, smallest_factored=4, **options)
            theirs = fnn.optax_wrappers.adafactor(0.1, smallest_factored=4, **options)
            a, b = (follow(optimizer, params, grads) for optimizer in (ours, theirs))
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)
        state = ours.init(params)
        assert state["row"]["wide"].size + state["column"]["wide"].size == 15
        assert state["full"]["wide"].size == 0
        assert state["full"]["small"].shape == (2, 9)


# --- the papers ---------------------------------------------------------------------------------


def test_the_papers_rules_are_their_formulas(golden):
    rates = [0.01 / (1 + 0.1 * i) for i in range(50)]

    def walk(step):
        p, out = golden["start"].copy(), []
        for g, rate in zip(golden["grads"], rates, strict=True):
            p = step(p, g, rate)
            out.append(p)
        return np.array(out)

    def heavy_ball(look_ahead):
        v = np.zeros(12)

        def step(p, g, rate):
            nonlocal v
            v = 0.9 * v - rate * g
            return p + (0.9 * v - rate * g if look_ahead else v)

        return step

    def adagrad(p, g, rate):
        nonlocal s
        s = s + g * g
        return p - rate * g / (np.sqrt(s) + 1e-8)

    def hinton(p, g, rate):
        nonlocal v
        v = 0.9 * v + 0.1 * g * g
        return p - rate * g / np.sqrt(v)

    def graves():
        n = mean = u = np.zeros(12)

        def step(p, g, rate):
            nonlocal n, mean, u
            n, mean = 0.95 * n + 0.05 * g * g, 0.95 * mean + 0.05 * g
            u = 0.9 * u + rate * g / np.sqrt(n - mean**2 + 1e-4)
            return p - u

        return step

    def amsgrad():
        m = v = top = np.zeros(12)

        def step(p, g, rate):
            nonlocal m, v, top
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            top = np.maximum(top, v)
            return p - rate * m / np.sqrt(top)

        return step

    s = v = np.zeros(12)
    adam_path = numpy_adamw(1.0, 0.9, 0.999, 1e-8)
    steps = {
        "sgd": lambda p, g, rate: p - rate * g,
        "momentum": heavy_ball(False),
        "adagrad": adagrad,
        "rmsprop": hinton,
        "rmsprop_centered": graves(),
        "nesterov": heavy_ball(True),
        "adam": lambda p, g, rate: p + rate * (adam_path(p, g) - p),
        "amsgrad": amsgrad(),
    }
    assert set(steps) == set(LIBRARIES["paper"])
    with jax.enable_x64(True):
        for rule, step in steps.items():
            paths = golden_paths(
                lambda rate, r=rule: dialect("paper", r, rate), golden, jnp.float64
            )
            np.testing.assert_allclose(paths[1], walk(step), rtol=1e-9, atol=1e-12, err_msg=rule)


def test_orthogonalize_makes_singular_values_one():
    x = np.random.default_rng(0).normal(size=(30, 12))
    for scale in (1e-20, 1.0, 1e20):
        u, _, vt = np.linalg.svd(x, full_matrices=False)
        o = np.asarray(fnn.matrix_optimizers.orthogonalize(jnp.asarray(scale * x, jnp.float32)))
        values = np.linalg.svd(o, compute_uv=False)
        assert (values > 0.6).all()
        assert (values < 1.3).all()
        cosine = (o * (u @ vt)).sum() / np.linalg.norm(o) / np.sqrt(12)
        assert cosine > 0.98
    zero = fnn.matrix_optimizers.orthogonalize(jnp.zeros((3, 4)))
    assert (zero == 0).all()


VARIANTS = {
    "momentum": lambda a: fnn.momentum(a, a, dampening=a, dampen_first=False, rate_inside=True),
    "adagrad": lambda a: fnn.adagrad(a, 0.0, a * 1e-7, eps_inside=False),
    "rmsprop": lambda a: fnn.rmsprop(a, a, a * 1e-7, eps_inside=False, centered=True, momentum=a),
    "adam": lambda a: fnn.adam(a, a, a, a * 1e-7, eps_root=a * 1e-9, eps_hat=True, amsgrad="raw"),
    "amsgrad": lambda a: fnn.adam(a, a, a, 0.0, amsgrad="corrected"),
    "adam without memory": lambda a: fnn.adam(a, 0 * a, 0 * a),
    "nadam": lambda a: fnn.nadam(a, a, a, momentum_decay=a),
    "adafactor": lambda a: fnn.adafactor(a, a, smallest_factored=2),
    "muon": lambda a: fnn.muon(a, a),
    "clipped": lambda a: fnn.chain(fnn.clip_by_global_norm(a), fnn.adaptive_clip(a), fnn.sgd(a)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_derivatives_of_every_variant_are_finite(name):
    """In the gradient and all numbers together, after a zero, a constant and a mixed gradient."""

    def end(a, scale):
        optimizer = VARIANTS[name](a)
        params = jnp.ones((2, 3))
        state = optimizer.init(params)
        for g in (jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.array([[0.0, 1, -1e-4], [1, 0, 3]])):
            updates, state = optimizer.update(scale * g, state, params)
        return updates.sum()

    value, grads = jax.jit(jax.value_and_grad(end, argnums=(0, 1)))(0.5, 1.0)
    assert jnp.isfinite(jnp.array([value, *grads])).all()
    value, grads = jax.jit(jax.value_and_grad(end, argnums=(0, 1)))(0.5, 0.0)
    assert jnp.isfinite(jnp.array([value, *grads])).all()


# --- they do differ -----------------------------------------------------------------------------


def first_step(optimizer, g, steps=1):
    with jax.enable_x64(True):
        path = follow(optimizer, jnp.zeros(()), jnp.full(steps, g))
        return -float(path[-1])


def test_adagrads_first_steps_are_316_times_apart():
    optax_like, torch_like = (
        first_step(dialect(lib, "adagrad", 0.1), 1e-3) for lib in ("optax", "torch")
    )
    assert torch_like / optax_like == pytest.approx(316.2, rel=1e-3)


def test_keras_adam_is_another_at_small_gradients():
    ours, keras = (first_step(dialect(lib, "adam", 1.0), 1e-6) for lib in ("optax", "keras"))
    assert ours == pytest.approx(0.990, abs=1e-3)
    assert keras == pytest.approx(0.240, abs=1e-3)
    assert first_step(fnn.adam(1.0, eps=1e-8, eps_hat=True), 1e-6) == pytest.approx(0.760, abs=1e-3)


def test_rmsprops_first_steps():
    steps = {
        lib: first_step(dialect(lib, "rmsprop", 0.01), 1e-5) for lib in ("optax", "keras", "torch")
    }
    assert steps == pytest.approx({"optax": 1.0e-3, "keras": 3.2e-4, "torch": 9.9e-2}, rel=0.02)


def distance(a, b, golden):
    """How far apart two makers' paths get, at the constant and at the changing rate."""
    with jax.enable_x64(True):
        paths = [golden_paths(make, golden, jnp.float64) for make in (a, b)]
    return abs(paths[0] - paths[1]).max((1, 2))


def makers(rule, *libraries):
    return [lambda rate, lib=lib: dialect(lib, rule, rate) for lib in libraries]


@pytest.mark.parametrize("rule", ["momentum", "nesterov"])
def test_a_schedule_tells_the_momentums_apart(rule, golden):
    constant, changing = distance(*makers(rule, "torch", "keras"), golden)
    assert constant < 1e-14
    assert changing > 1e-3


def test_dampening_and_averages_differ_by_the_first_step(golden):
    def average(rate):
        return fnn.momentum(rate, 0.9, dampening=0.9)

    def torch(rate):
        return dialect("torch", "momentum", rate, dampening=0.9)

    assert (distance(average, torch, golden) > 5e-3).all()

    def tenth(rate):
        return fnn.momentum(lambda step: 0.1 * rate(step), 0.9)

    assert (distance(average, tenth, golden) < 1e-14).all()


def test_three_nadams_and_two_amsgrads(golden):
    optax_like, torch_like, keras_like = makers("nadam", "optax", "torch", "keras")
    assert (distance(optax_like, torch_like, golden) > 1e-3).all()
    assert (distance(torch_like, keras_like, golden) > 1e-3).all()
    assert (distance(*makers("amsgrad", "optax", "torch"), golden) > 1e-3).all()


# --- the page -----------------------------------------------------------------------------------


def test_the_page_is_this_table(request):
    page = (request.config.rootpath / "docs" / "dialects.md").read_text()
    assert table() in page, "write it anew: python scripts/make_dialects.py"


def test_every_dialect_is_tested():
    for library in ("torch", "keras"):
        tested = {name.split("/")[1] for name in GOLDEN if name.startswith(library)} | {"muon"}
        assert tested >= set(LIBRARIES[library])
