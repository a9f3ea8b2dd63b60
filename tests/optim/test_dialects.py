"""Each dialect against its library: Optax by running it, PyTorch and Keras by the numbers that they
computed (`golden/make_optimizers.py`), the paper by its formula in NumPy. `test_newer_rules.py` has
the code that a rule was published with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.optim.dialects import FUNCTIONS, LIBRARIES, table
from tests import table_of_optimizers as textbook
from tests.optimizer_paths import SLOWING, follow_both, follow_each, path

pytestmark = pytest.mark.slow  # definitions that seldom change, over many steps


def dialect(library, rule, rate, **changed):
    """The rule as the dialect has it, but for the arguments that the golden run changed."""
    make = getattr(fnn.optim, FUNCTIONS.get(rule, rule))
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
    "torch/adadelta": {},
    "torch/adamax": {},
    "torch/radam": {},
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
    "keras/adadelta": {},
    "keras/adamax": {},
    "keras/lamb": {},
}


def l2(rule):
    decay = fnn.optim.add_weight_decay(0.01, mask=True)
    return lambda rate: fnn.chain(decay, dialect("torch", rule, rate))


# Other arguments than the dialect's; the golden runs have the first three.
OTHERS = {
    "torch/dampening": lambda rate: dialect("torch", "momentum", rate, dampening=0.5),
    "torch/sgd_l2": l2("momentum"),
    "torch/adam_l2": l2("adam"),
    "torch/average": lambda rate: dialect("torch", "momentum", rate, dampening=0.9),
    "average": lambda rate: fnn.momentum(rate, 0.9, dampening=0.9),
    "tenth": lambda rate: fnn.momentum(lambda step: 0.1 * rate(step), 0.9),
}
# Every dialect of every library for vectors, as the golden runs have it.
MAKERS = OTHERS | {
    f"{library}/{rule}": lambda rate, of=(library, rule): dialect(
        *of, rate, **GOLDEN.get("/".join(of), {})
    )
    for library, dialects in LIBRARIES.items()
    for rule in dialects
    if rule not in ("muon", "muon_moonlight", "soap", "cautious", "rprop")
}


@pytest.fixture(scope="module")
def golden(request):
    return np.load(request.config.rootpath / "tests" / "golden" / "optimizers.npz")


def golden_paths(makers, golden, dtype):
    """{name: path at the constant and the changing rate, [2, steps, 12]}."""
    with jax.enable_x64(dtype == "float64"):
        start, grads = jnp.asarray(golden["start"], dtype), jnp.asarray(golden["grads"], dtype)
        return {name: np.asarray(p) for name, p in follow_both(makers, start, grads).items()}


@pytest.fixture(scope="module")
def paths(golden):
    return golden_paths(MAKERS, golden, "float64")


@pytest.fixture(scope="module")
def single_paths(golden):
    """In float32, of the dialects that are compared with a library."""
    compared = [*GOLDEN, *(name for name in MAKERS if name.startswith("optax/"))]
    return golden_paths({name: MAKERS[name] for name in compared}, golden, "float32")


def expected_paths(name, golden):
    return np.stack([golden[f"{name}/{rate}"] for rate in SLOWING])


@pytest.mark.parametrize("name", GOLDEN)
def test_50_steps_are_the_librarys(name, golden, paths, single_paths):
    expected = expected_paths(name, golden)
    np.testing.assert_allclose(paths[name], expected, rtol=1e-12, atol=1e-14)
    # float32 loses the rest of v - mean^2 where it is nearly nothing.
    atol = 5e-3 if "centered" in name else 2e-6
    np.testing.assert_allclose(single_paths[name], expected, rtol=2e-5, atol=atol)


@pytest.mark.parametrize("name", ["torch/dampening", "torch/sgd_l2", "torch/adam_l2"])
def test_pytorchs_other_arguments(name, golden, paths):
    np.testing.assert_allclose(paths[name], expected_paths(name, golden), rtol=1e-12, atol=1e-14)


def test_pytorchs_muon(golden):
    """Its bfloat16 iteration is off by up to 1e-3 of the formula over 50 steps."""
    start, grads = (golden[name].reshape(-1, 3, 4) for name in ("start", "grads"))
    with jax.enable_x64(True):  # its weights are [out, in]
        make = {"muon": lambda rate: dialect("torch", "muon", rate)}
        found = follow_both(make, start[0].T, grads.swapaxes(1, 2))["muon"]
    expected = expected_paths("torch/muon", golden).reshape(2, -1, 3, 4)
    np.testing.assert_allclose(found.swapaxes(2, 3), expected, atol=2e-3)
    assert abs(expected[:, -1] - start).max() > 0.05  # far more than the tolerance


def test_kerass_muon(golden):
    """Its norms are in float64, so unlike PyTorch's it is matched to the last digits."""
    start, grads = (golden[name].reshape(-1, 3, 4) for name in ("start", "grads"))
    with jax.enable_x64(True):
        make = {"muon": lambda rate: dialect("keras", "muon", rate)}
        found = follow_both(make, start[0], grads)["muon"]
    expected = expected_paths("keras/muon", golden).reshape(2, -1, 3, 4)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert abs(expected[:, -1] - start).max() > 0.05


def test_rprop_is_pytorchs_and_optaxs_is_late(golden):
    """Its rate is where its steps start, so there is no schedule."""
    with jax.enable_x64(True):
        start, grads = jnp.asarray(golden["start"]), jnp.asarray(golden["grads"])
        rules = {"fnn": dialect("torch", "rprop", 0.01), "optax": optax.rprop(0.01)}
        found = follow_each(rules, start, grads)
    np.testing.assert_allclose(found["fnn"], golden["torch/rprop/constant"], 1e-12)
    for rate, first in ((100.0, -50.0), (1e-8, -1e-6)):  # PyTorch's too
        assert follow_each({"": fnn.optim.rprop(rate)}, 0.0, jnp.ones(1))[""] == pytest.approx(
            first
        )
    # If this fails, Optax has mended it, and the docstring and the twins want a word.
    np.testing.assert_array_equal(found["optax"][0], start)


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
    "nadamw": optax.nadamw,
    "lion": optax.lion,
    "adadelta": optax.adadelta,
    "adamax": optax.adamax,
    "radam": optax.radam,
    "adabelief": optax.adabelief,
    "lars": optax.lars,
    "lamb": optax.lamb,
    "adafactor": optax.adafactor,
    "ademamix": optax.contrib.ademamix,
    "prodigy": optax.contrib.prodigy,
    # Optax's own schedule_free_sgd takes no schedule.
    "schedule_free_sgd": fnn.optax_wrappers.schedule_free_sgd,
    "schedule_free_adamw": fnn.optax_wrappers.schedule_free_adamw,
}


@pytest.fixture(scope="module")
def optaxs_paths(golden):
    with jax.numpy_dtype_promotion("standard"):
        return golden_paths(OPTAX, golden, "float64")


@pytest.mark.parametrize("rule", OPTAX)
def test_50_steps_are_optaxs_with_its_own_defaults(rule, paths, single_paths, optaxs_paths):
    for ours, rtol in ((paths, 1e-12), (single_paths, 2e-5)):
        atol = 5e-3 if rtol > 1e-6 and rule == "rmsprop_centered" else rtol / 10
        if rule == "adafactor":
            rtol = 2e-5  # Optax forms 1 - t^-0.8 in float32 always
        expected = optaxs_paths[rule]
        np.testing.assert_allclose(ours[f"optax/{rule}"], expected, rtol=rtol, atol=atol)


# --- the papers ---------------------------------------------------------------------------------


def test_the_papers_rules_are_their_formulas(golden, paths):
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
    adam_path = textbook.adamw(1.0, 0.9, 0.999, 1e-8)
    adadelta_path = textbook.adadelta(1.0, 0.95, 1e-6)
    adamax_path = textbook.adamax(1.0, 0.9, 0.999, 0.0)
    steps = {
        "sgd": lambda p, g, rate: p - rate * g,
        "momentum": heavy_ball(False),
        "adagrad": adagrad,
        "rmsprop": hinton,
        "rmsprop_centered": graves(),
        "nesterov": heavy_ball(True),
        "adam": lambda p, g, rate: p + rate * (adam_path(p, g) - p),
        "amsgrad": amsgrad(),
        "adadelta": lambda p, g, rate: p + rate * (adadelta_path(p, g) - p),
        "adamax": lambda p, g, rate: p + rate * (adamax_path(p, g) - p),
    }
    assert set(steps) == set(LIBRARIES["paper"])
    for rule, step in steps.items():
        ours = paths[f"paper/{rule}"][1]
        np.testing.assert_allclose(ours, walk(step), rtol=1e-9, atol=1e-12, err_msg=rule)


def nadamw(m_hat):
    """m_hat(t, m, g) is what the NAdams differ in."""
    m = v = t = 0

    def step(p, g):
        nonlocal m, v, t
        t += 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        return p - 0.01 * m_hat(t, m, g) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    return step


def torchs_m_hat(t, m, g):
    mus = 0.9 * (1 - 0.5 * 0.96 ** (4e-3 * np.arange(1, t + 2)))
    return mus[-1] * m / (1 - mus.prod()) + (1 - mus[-2]) * g / (1 - mus[:-1].prod())


def test_the_authors_rules_are_their_formulas(golden, paths):
    """`test_newer_rules.py` has matrix rules and cautious, and what the authors' code computed."""
    adam = (0.9, 0.999)
    steps = {
        "authors/nadamw": nadamw(lambda t, m, g: (0.9 * m + 0.1 * g) / (1 - 0.9**t)),
        "torch/nadamw": nadamw(torchs_m_hat),
        "authors/schedule_free_sgd": textbook.schedule_free_sgd(0.01, 0.9, 0.0),
        "authors/schedule_free_adamw": textbook.schedule_free_adamw(0.01, *adam, 1e-8, 0.0),
        "authors/ademamix": textbook.ademamix(0.01, *adam, 0.9999, 2.0, 1e-8, 0.0),
        "authors/prodigy": textbook.prodigy(0.01, *adam, 1e-8, 0.0, 1e-6, correct=False),
    }
    assert steps.keys() >= {name for name in MAKERS if name.startswith("authors/")}
    for name, step in steps.items():
        p, expected = golden["start"], []
        for g in golden["grads"]:
            p = step(p, g)
            expected.append(p)
        np.testing.assert_allclose(paths[name][0], expected, rtol=1e-11, err_msg=name)


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
    "muon, Optax": lambda a: fnn.muon(a, a, correct=True, eps=a * 1e-8, scale=a),
    "ademamix, warming up": lambda a: fnn.optim.ademamix(
        a, a, a, a, b3_warmup=3 * a, alpha_warmup=a
    ),
    "schedule-free, warming up": lambda a: fnn.optim.schedule_free_adamw(a, a, warmup_steps=2, r=a),
    "adamax": lambda a: fnn.optim.adamax(a, a, a, a * 1e-7, eps_inside=False),
    "radam": lambda a: fnn.optim.radam(a, a, a + 0.3, a * 1e-7, eps_hat=True),
    "radam, rectified": lambda a: fnn.optim.radam(a, a, a + 0.49, threshold=4),
    "radam without memory": lambda a: fnn.optim.radam(a, 0 * a, 0 * a),
    "adabelief": lambda a: fnn.optim.adabelief(a, a, a),
    "adadelta": lambda a: fnn.optim.adadelta(a, a, a * 1e-7),
    "lars": lambda a: fnn.optim.lars(a, a, True, decay=a, trust=a),
    "lamb": lambda a: fnn.optim.lamb(a, a, a, a * 1e-7, a, True),
    "prodigy": lambda a: fnn.optim.prodigy(
        a, a, d0=a, growth_rate=4 * a, safeguard_warmup=True, decouple=False
    ),
    "soap": lambda a: fnn.optim.soap(a, a, a, precondition_frequency=1),
    "clipped": lambda a: fnn.chain(
        fnn.clip_by_global_norm(a), fnn.optim.adaptive_clip(a), fnn.sgd(a)
    ),
}


def test_derivatives_of_every_variant_are_finite():
    """In the gradient and all numbers together, after a zero, a constant and a mixed gradient."""

    mixed = jnp.array([[0.0, 1, -1e-4], [1, 0, 3]])
    gradients, params = jnp.stack([jnp.zeros((2, 3)), jnp.ones((2, 3)), mixed]), jnp.ones((2, 3))

    def ends(numbers):
        """All in one loop, each with numbers of its own."""
        optimizers = {name: make(numbers[name]["a"]) for name, make in VARIANTS.items()}

        def step(states, g):
            both = {
                name: optimizer.update(numbers[name]["scale"] * g, states[name], params)
                for name, optimizer in optimizers.items()
            }
            return {name: state for name, (_, state) in both.items()}, {
                name: updates for name, (updates, _) in both.items()
            }

        states = {name: optimizer.init(params) for name, optimizer in optimizers.items()}
        updates = jax.lax.scan(step, states, gradients)[1]
        last = {name: leaf[-1].sum() for name, leaf in updates.items()}
        return sum(last.values()), last

    derivatives = jax.jit(jax.grad(ends, has_aux=True))
    for scale in (1.0, 0.0):
        found = derivatives({name: {"a": 0.5, "scale": scale} for name in VARIANTS})
        for name, number in fnn.params.paths(found).items():
            assert np.isfinite(number), name


# --- they do differ -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first_steps():
    """{name: the first step from 0}, at the gradients that tell the definitions apart."""
    adagrads = {lib: dialect(lib, "adagrad", 0.1) for lib in ("optax", "torch")}
    adams = {lib: dialect(lib, "adam", 1.0) for lib in ("optax", "keras")}
    adams["eps_hat"] = fnn.adam(1.0, eps=1e-8, eps_hat=True)
    rmsprops = {lib: dialect(lib, "rmsprop", 0.01) for lib in ("optax", "keras", "torch")}
    groups = {"adagrad": (1e-3, adagrads), "adam": (1e-6, adams), "rmsprop": (1e-5, rmsprops)}

    @jax.jit
    def steps():
        return {
            rule: {
                name: -path(o, jnp.zeros(()), jnp.full(1, g))[-1] for name, o in optimizers.items()
            }
            for rule, (g, optimizers) in groups.items()
        }

    with jax.enable_x64(True):
        return jax.tree.map(float, steps())


def test_adagrads_first_steps_are_316_times_apart(first_steps):
    steps = first_steps["adagrad"]
    assert steps["torch"] / steps["optax"] == pytest.approx(316.2, rel=1e-3)


def test_keras_adam_is_another_at_small_gradients(first_steps):
    expected = {"optax": 0.990, "keras": 0.240, "eps_hat": 0.760}
    assert first_steps["adam"] == pytest.approx(expected, abs=1e-3)


def test_rmsprops_first_steps(first_steps):
    expected = {"optax": 1.0e-3, "keras": 3.2e-4, "torch": 9.9e-2}
    assert first_steps["rmsprop"] == pytest.approx(expected, rel=0.02)


def distance(paths, a, b):
    """How far apart two paths get, at the constant and at the changing rate."""
    return abs(paths[a] - paths[b]).max((1, 2))


@pytest.mark.parametrize("rule", ["momentum", "nesterov"])
def test_a_schedule_tells_the_momentums_apart(rule, paths):
    constant, changing = distance(paths, f"torch/{rule}", f"keras/{rule}")
    assert constant < 1e-14
    assert changing > 1e-3


def test_dampening_and_averages_differ_by_the_first_step(paths):
    assert (distance(paths, "average", "torch/average") > 5e-3).all()
    assert (distance(paths, "average", "tenth") < 1e-14).all()


def test_three_nadams_and_two_amsgrads(paths):
    assert (distance(paths, "optax/nadam", "torch/nadam") > 1e-3).all()
    assert (distance(paths, "torch/nadam", "keras/nadam") > 1e-3).all()
    assert (distance(paths, "optax/amsgrad", "torch/amsgrad") > 1e-3).all()


# --- the page -----------------------------------------------------------------------------------


def test_the_page_is_this_table(request):
    page = (request.config.rootpath / "docs" / "dialects.md").read_text()
    assert table() in page, "write it anew: python scripts/make_dialects.py"


def test_every_dialect_is_tested():
    for library in ("torch", "keras"):
        tested = {name.split("/")[1] for name in GOLDEN if name.startswith(library)}
        tested |= {"muon", "nadamw", "rprop"}  # which have tests of their own
        assert tested >= set(LIBRARIES[library])
    assert {*OPTAX, "muon"} == set(LIBRARIES["optax"])
