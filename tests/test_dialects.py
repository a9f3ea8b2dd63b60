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
from tests.test_optimizers import RATES, follow, runs_optax

every_rate = pytest.mark.parametrize("rate", RATES)


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


def golden_path(optimizer, golden, dtype):
    start, grads = jnp.asarray(golden["start"], dtype), jnp.asarray(golden["grads"], dtype)
    return np.asarray(follow(optimizer, start, grads))


@pytest.mark.parametrize("name", GOLDEN)
@every_rate
def test_50_steps_are_the_librarys(name, rate, golden):
    optimizer = dialect(*name.split("/"), RATES[rate], **GOLDEN[name])
    expected = golden[f"{name}/{rate}"]
    with jax.enable_x64(True):
        path = golden_path(optimizer, golden, jnp.float64)
    np.testing.assert_allclose(path, expected, rtol=1e-12, atol=1e-14)
    # float32 loses what is left of v - mean^2 where that is nearly nothing.
    atol = 5e-3 if "centered" in name else 2e-6
    np.testing.assert_allclose(
        golden_path(optimizer, golden, jnp.float32), expected, rtol=2e-5, atol=atol
    )


@every_rate
def test_pytorchs_muon(rate, golden):
    """Its bfloat16 iteration is off by up to 1e-3 of the formula over 50 steps."""
    start, grads = (golden[name].reshape(-1, 3, 4) for name in ("start", "grads"))
    with jax.enable_x64(True):  # its weights are [out, in]
        path = follow(dialect("torch", "muon", RATES[rate]), start[0].T, grads.swapaxes(1, 2))
    expected = golden[f"torch/muon/{rate}"].reshape(-1, 3, 4)
    np.testing.assert_allclose(path.swapaxes(1, 2), expected, atol=2e-3)
    assert abs(expected[-1] - start).max() > 0.05  # the tolerance is far under the way it went


@every_rate
def test_pytorchs_other_arguments(rate, golden):
    l2 = fnn.add_weight_decay(0.01, mask=True)
    same = {
        "dampening": dialect("torch", "momentum", RATES[rate], dampening=0.5),
        "sgd_l2": fnn.chain(l2, dialect("torch", "momentum", RATES[rate])),
        "adam_l2": fnn.chain(l2, dialect("torch", "adam", RATES[rate])),
    }
    with jax.enable_x64(True):
        for name, optimizer in same.items():
            path = golden_path(optimizer, golden, jnp.float64)
            np.testing.assert_allclose(path, golden[f"torch/{name}/{rate}"], rtol=1e-12, atol=1e-14)


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
@every_rate
def test_50_steps_are_optaxs_with_its_own_defaults(rule, rate, golden):
    assert set(OPTAX) == set(LIBRARIES["optax"])
    for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 2e-5)):
        with jax.enable_x64(dtype == jnp.float64):
            ours = golden_path(dialect("optax", rule, RATES[rate]), golden, dtype)
            theirs = golden_path(OPTAX[rule](RATES[rate]), golden, dtype)
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
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)
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

    s = np.zeros(12)
    adam_path = numpy_adamw(1.0, 0.9, 0.999, 1e-8)
    steps = {
        "sgd": lambda p, g, rate: p - rate * g,
        "momentum": heavy_ball(False),
        "nesterov": heavy_ball(True),
        "adagrad": adagrad,
        "rmsprop_centered": graves(),
        "adam": lambda p, g, rate: p + rate * (adam_path(p, g) - p),
        "amsgrad": amsgrad(),
    }
    with jax.enable_x64(True):
        for rule, step in steps.items():
            path = golden_path(dialect("paper", rule, RATES["changing"]), golden, jnp.float64)
            np.testing.assert_allclose(path, walk(step), rtol=1e-9, atol=1e-12, err_msg=rule)


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


def distance(a, b, golden, rate="changing"):
    with jax.enable_x64(True):
        paths = [golden_path(optimizer, golden, jnp.float64) for optimizer in (a, b)]
    return abs(paths[0] - paths[1]).max()


def test_a_schedule_tells_the_momentums_apart(golden):
    for rule in ("momentum", "nesterov"):
        constant, changing = (
            distance(dialect("torch", rule, rate), dialect("keras", rule, rate), golden)
            for rate in (0.01, RATES["changing"])
        )
        assert constant < 1e-14
        assert changing > 1e-3


def test_dampening_and_averages_differ_by_the_first_step(golden):
    average = fnn.momentum(0.01, 0.9, dampening=0.9)
    torch = dialect("torch", "momentum", 0.01, dampening=0.9)
    assert distance(average, torch, golden) > 1e-2
    assert distance(average, fnn.momentum(0.001, 0.9), golden) < 1e-14


def test_three_nadams(golden):
    nadams = [dialect(lib, "nadam", 0.01) for lib in ("optax", "torch", "keras")]
    for i in range(3):
        assert distance(nadams[i], nadams[i - 1], golden) > 1e-3


def test_two_amsgrads(golden):
    assert (
        distance(dialect("optax", "amsgrad", 0.01), dialect("torch", "amsgrad", 0.01), golden)
        > 1e-3
    )


# --- the page -----------------------------------------------------------------------------------


def test_the_page_is_this_table(request):
    page = (request.config.rootpath / "docs" / "dialects.md").read_text()
    assert table() in page, "write it anew: python -m fnn.dialects"


def test_every_dialect_is_tested():
    for library in ("torch", "keras"):
        tested = {name.split("/")[1] for name in GOLDEN if name.startswith(library)} | {"muon"}
        assert tested >= set(LIBRARIES[library])
