"""NAdamW, schedule-free, AdEMAMix, cautious, Prodigy, SOAP, and Muon's dialects.

`table_of_optimizers.py` has those rules that are formulas for one array, and so every property of
`test_rules.py`. Here: what the code that each was published with computed (in float64, to the 8
digits given), the options, and what is particular to a rule.
"""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn import optim
from tests.nets import KEY, LABELS, X, linear_init, linear_loss_fn
from tests.optimizer_paths import GRADS, PARAMS, follow_each, path, runs_optax, times

pytestmark = pytest.mark.slow  # definitions that seldom change; `test_rules` has the properties

RNG = np.random.default_rng(0)
S = [0.5, -0.2, 0.1]
V = [(0.5, -0.2), (-0.2, 0.1), (0.1, 0.05)]
M = [[[0.1, 0.2], [-0.3, 0.4]], [[0.2, -0.1], [0.1, 0.3]], [[-0.1, 0.3], [0.2, 0.1]]]
P = [(0.5, 0.4), (0.4, 0.4), (0.3, 0.4)]
L2 = {"weight_decay": 0.1, "mask": True}

# {name: (optimizer, start, gradients, what the rule's own code computed)}
FIGURES = {
    "nadamw, optax": (optim.nadamw(0.1, **L2), 1.0, S, [0.84263158, 0.84004613, 0.79306494]),
    "nadamw, AlgoPerf": (
        optim.nadamw(0.1, algoperf=True, **L2), 1.0, S, [0.80000000, 0.78854395, 0.73483965]
    ),
    "nadamw, PyTorch": (
        optim.nadamw(0.1, momentum_decay=4e-3, **L2), 1.0, S, [0.88435482, 0.90848202, 0.87543100]
    ),
    "schedule-free SGD": (
        optim.schedule_free_sgd(0.1, warmup_steps=2), 1.0, S, [0.975, 0.9914, 0.988]
    ),
    "schedule-free AdamW": (
        optim.schedule_free_adamw(0.1, warmup_steps=2, **L2), 1.0, S,
        [0.945, 0.98032731, 0.96305452],
    ),
    "ademamix, optax": (optim.ademamix(0.1), 1.0, S, [0.89995000, 0.86535003, 0.82734759]),
    "ademamix, warming up": (
        optim.ademamix(0.1, b3_warmup=3, alpha_warmup=3.0), 1.0, S,
        [0.89995010, 0.86528472, 0.82714042],
    ),
    "cautious": (
        optim.cautious(fnn.adam(0.1)), (1.0, 2.0), V,
        [(0.9, 2.1), (0.9, 2.1), (0.82412165, 2.1)],
    ),
    "prodigy": (
        optim.prodigy(d0=0.01, correct=False), (1.0, 2.0), P,
        [(0.96837724, 1.96837725), (0.92638596, 1.92588137), (0.85329256, 1.85252731)],
    ),
    "prodigy, corrected": (
        optim.prodigy(d0=0.01), 1.0, [0.5, 0.4, 0.3], [0.99000001, 0.98011875, 0.97049099]
    ),
    "muon": (
        optim.muon(0.1, eps=1e-7), [[1.0, 2.0], [3.0, 4.0]], M,
        [
            [[0.92114239, 1.93123858], [3.05866522, 3.95143098]],
            [[0.81042565, 1.92335823], [3.05851438, 3.88216054]],
            [[0.87633955, 1.86505007], [2.98772980, 3.84101825]],
        ],
    ),
    "soap": (
        optim.soap(0.1, weight_decay=0.0, precondition_frequency=1), [[1.0, 2.0], [3.0, 4.0]],
        [*M, [[0.3, 0.1], [-0.2, 0.2]]],
        [
            [[1.0, 2.0], [3.0, 4.0]],
            [[0.85857872, 2.00000003], [2.99999998, 3.85857867]],
            [[0.75679559, 1.90652298], [2.97887399, 3.73645858]],
            [[0.68937371, 1.85238964], [2.96971359, 3.62607809]],
        ],
    ),
}  # fmt: skip


def follow_64(optimizers, params, grads):
    """The paths in float64, as NumPy arrays."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, follow_each(optimizers, params, grads))


def test_the_first_steps_are_those_of_the_rules_own_code():
    with jax.enable_x64(True):

        @jax.jit
        def run(given):
            return {name: path(FIGURES[name][0], *p_and_g) for name, p_and_g in given.items()}

        arrays = {name: (jnp.asarray(p), jnp.asarray(g)) for name, (_, p, g, _) in FIGURES.items()}
        for name, found in run(arrays).items():
            tolerance = 2e-7 if name == "soap" else 6e-9  # the authors' eigenvectors are float32's
            np.testing.assert_allclose(found, FIGURES[name][3], atol=tolerance, err_msg=name)


# --- schedule-free ------------------------------------------------------------------------------


def test_the_evaluation_point_is_the_authors():
    """Theirs is x = (y - (1 - b1) z) / b1; the figures are of their code."""
    cases = {
        "sgd": (optim.schedule_free_sgd(0.1, warmup_steps=2), [0.975, 0.991, 0.98833333]),
        "adamw": (
            optim.schedule_free_adamw(0.1, warmup_steps=2, **L2), [0.945, 0.97946567, 0.96487799]
        ),
    }  # fmt: skip
    with jax.enable_x64(True):
        for name, (optimizer, expected) in cases.items():
            params, found = jnp.ones(()), []
            state, update = optimizer.init(params), jax.jit(optimizer.update)
            for g in S:
                updates, state = update(jnp.asarray(g), state, params)
                params = params + updates
                found.append(optim.eval_params(state, params))
                other_way = (params - 0.1 * state["z"]) / 0.9
                np.testing.assert_allclose(other_way, found[-1], rtol=1e-14)
            np.testing.assert_allclose(found, expected, atol=6e-9, err_msg=name)


@runs_optax
def test_schedule_free_is_optaxs_at_both_points():
    """Where the rate changes too; and the power of the largest rate counts."""

    def rate(step):
        return 0.01 * (1 + step.astype(float)) / (1 + 0.1 * step.astype(float) ** 2)

    options = {"weight_decay": 0.1, "mask": True, "weight_lr_power": 1.5}

    @jax.jit
    def paths():
        found = {}
        for rule in ("schedule_free_sgd", "schedule_free_adamw"):
            ours = getattr(optim, rule)(rate, **options)
            theirs = getattr(fnn.optax_wrappers, rule)(rate, **options)
            for name, optimizer, evaluate in (
                ("ours", ours, optim.eval_params),
                ("theirs", theirs, optax.contrib.schedule_free_eval_params),
            ):

                def step(carry, g, optimizer=optimizer, evaluate=evaluate):  # fmt: skip
                    params, state = carry
                    updates, state = optimizer.update(g, state, params)
                    params = optax.apply_updates(params, updates)
                    return (params, state), (params, evaluate(state, params))

                start = (PARAMS, optimizer.init(PARAMS))
                found[rule, name] = jax.lax.scan(step, start, times(1, -2, 0.5, 1, 3))[1]
        return found

    with jax.enable_x64(True):
        found = paths()
    for rule in ("schedule_free_sgd", "schedule_free_adamw"):
        chex.assert_trees_all_close(found[rule, "ours"], found[rule, "theirs"], atol=2e-6)


def test_a_constant_rate_makes_x_the_mean_of_all_z():
    grads = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)

    def x_of(optimizer):
        def step(carry, g):
            params, state = carry
            updates, state = optimizer.update(g, state, params)
            return (params + updates, state), (optim.eval_params(state, params), state["z"])

        return jax.lax.scan(step, (jnp.ones(3), optimizer.init(jnp.ones(3))), grads)[1]

    (x, z), (plain, _), (late, late_z) = jax.jit(
        lambda: [
            x_of(optim.schedule_free_sgd(0.1)),
            x_of(optim.schedule_free_sgd(0.1, 0.0)),  # y is z: Polyak's average of SGD
            x_of(optim.schedule_free_sgd(0.1, r=1.0)),
        ]
    )()
    z, weights = np.asarray(z), np.arange(1, 7)[:, None]
    np.testing.assert_allclose(x, np.cumsum(z, 0) / weights, rtol=1e-6)
    points = 1 - 0.1 * np.cumsum(np.asarray(grads), 0)
    np.testing.assert_allclose(plain, np.cumsum(points, 0) / weights, rtol=1e-6)
    z = np.asarray(late_z)
    np.testing.assert_allclose(late, np.cumsum(weights * z, 0) / np.cumsum(weights, 0), rtol=1e-6)


def test_eval_params_finds_the_rule_wherever_it_is():
    free = optim.schedule_free_adamw(0.1)
    params = {"x": jnp.ones(2, jnp.bfloat16), "z": jnp.ones(3)}  # the names that the rule has
    grads = jax.tree.map(jnp.ones_like, params)
    around = {
        "alone": free,
        "chain": fnn.chain(fnn.clip_by_global_norm(1.0), free),
        "groups": fnn.by_path({"x": free, "**": fnn.adam(0.1)}),
        "none": fnn.adam(0.1),
    }
    for name, optimizer in around.items():
        _, state = optimizer.update(grads, optimizer.init(params), params)
        for point in (optim.eval_params(state, params), jax.jit(optim.eval_params)(state, params)):
            chex.assert_trees_all_equal_shapes_and_dtypes(point, params)
            moved = [leaf for leaf in "xz" if (point[leaf] != params[leaf]).any()]
            expected = {"none": [], "groups": ["x"]}.get(name, ["x", "z"])
            assert moved == expected, name


def test_schedule_free_in_half_precision_does_not_stop():
    """512 steps of rate 1, where a sum of weights in bfloat16 stops at 256; and y too moves on."""
    optimizer = optim.schedule_free_sgd(1.0)
    g = jnp.full(1, 2.0**-11, jnp.bfloat16)  # less than the last bit of 1

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(g, state, params)
            return (fnn.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=512)
        return params, state

    params, state = run(jnp.ones(1, jnp.bfloat16))
    assert float(state["weight_sum"]) == 512
    np.testing.assert_allclose(state["z"], 0.75)
    np.testing.assert_allclose(state["x"], 1 - 513 / 2**12, rtol=1e-5)
    y = 0.1 * 0.75 + 0.9 * (1 - 513 / 2**12)
    np.testing.assert_allclose(params.astype(jnp.float32), y, atol=2**-8)


@pytest.mark.parametrize("rule", ["schedule_free_sgd", "schedule_free_adamw"])
def test_no_gradient_leaves_every_bit(rule):
    optimizer = getattr(optim, rule)(0.1, warmup_steps=3)
    params = jnp.asarray(RNG.normal(size=100), jnp.float32)
    after = jax.jit(lambda p, g: path(optimizer, p, g))(params, jnp.zeros((5, 100)))
    assert (after == params).all()


# --- Muon's dialects ----------------------------------------------------------------------------


@runs_optax
def test_optaxs_muon_is_a_dialect():
    """Wide and tall; with Optax's scale for a constant root mean square; the rest by Adam."""
    shapes = {"w": (3, 5), "t": (6, 2), "b": (4,)}
    params = {name: RNG.normal(size=shape) for name, shape in shapes.items()}
    grads = {name: RNG.normal(size=(12, *p.shape)) for name, p in params.items()}
    rms = {"scale": 0.2, "weight_decay": 0.1, "nesterov": False, "eps": 0.1}
    dialect = fnn.dialects.optax["muon"]
    adam = {"others": fnn.adam(0.1, nesterov=True)}
    ours = {
        "optax": optim.muon(0.1, **adam, **dialect),
        "rms": optim.muon(0.1, **adam, **dialect | rms),
        "jordan": optim.muon(0.1, **adam, eps=1e-7),
    }
    twin = fnn.optax_wrappers.muon
    adam = {"others": optax.nadam(0.1)}
    theirs = {
        "optax": optax.contrib.muon(0.1),
        "rms": twin(0.1, **adam, **dialect | rms),
        "jordan": twin(0.1, **adam, eps=1e-7),
    }
    found, expected = (follow_64(each, params, grads) for each in (ours, theirs))
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-9)
    apart = [abs(found["jordan"]["w"][i] - found["optax"]["w"][i]).max() for i in (0, 1)]
    assert apart[0] < 1e-6  # the first step is the same,
    assert apart[1] > 1e-3  # the second is not
    with pytest.raises(ValueError, match=r"optax_wrappers\.muon: scale is None, expected 'width'"):
        twin(0.1, scale=None)


def newton_schulz(u, eps):
    tall = u.shape[0] > u.shape[1]
    x = u / (np.linalg.norm(u) + eps)
    x = x.T if tall else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


def test_moonlights_muon_is_its_formula():
    """Small gradients, at which a sum and an average differ through eps."""
    grads = RNG.normal(size=(8, 4, 6)) * 1e-7
    p = m = np.zeros((4, 6))
    expected = []
    for g in grads:
        m = 0.95 * m + g
        p = p - 0.1 * (0.2 * 6**0.5 * newton_schulz(g + 0.95 * m, 1e-7) + 0.1 * p)
        expected.append(p)
    moonlight = fnn.dialects.authors["muon_moonlight"]
    muons = {
        "moonlight": optim.muon(0.1, **moonlight),
        "averaged": optim.muon(0.1, **moonlight | {"accumulate": False}),
        "unscaled": optim.muon(1.0, scale=None),
        "scaled": optim.muon(1.0),
    }
    found = follow_64(muons, np.zeros((4, 6)), grads)
    np.testing.assert_allclose(found["moonlight"], expected, rtol=1e-9)
    assert abs(found["averaged"] - found["moonlight"]).max() > 1e-2
    np.testing.assert_allclose(found["scaled"], 1.5**0.5 * found["unscaled"], rtol=1e-12)


# --- AdEMAMix and Prodigy -----------------------------------------------------------------------


def test_ademamix_warms_up_along_the_half_life():
    """Apple's formula, in NumPy, over the warm-ups and past their ends."""
    grads, b1, b3, alpha = RNG.normal(size=12), 0.9, 0.999, 2.0
    p, m1, m2, v, expected = 1.0, 0.0, 0.0, 0.0, []
    for t, g in enumerate(grads, 1):
        s = min(t / 8, 1)
        logs = np.log(b1), np.log(b3)
        b = min(np.exp(logs[0] * logs[1] / ((1 - s) * logs[1] + s * logs[0])), b3)
        m1, m2, v = b1 * m1 + (1 - b1) * g, b * m2 + (1 - b) * g, 0.999 * v + 0.001 * g * g
        v_hat = v / (1 - 0.999**t)
        mixed = m1 / (1 - b1**t) + alpha * min(t / 10, 1) * m2
        p = p - 0.1 * mixed / (np.sqrt(v_hat) + 1e-8)
        expected.append(p)
    make = {"b3": b3, "alpha": alpha, "b3_warmup": 8, "alpha_warmup": 10}

    @jax.jit
    def both(grads, traced):
        one = jnp.ones((), grads.dtype)
        return (
            path(optim.ademamix(0.1, **make), one, grads),
            path(optim.ademamix(0.1, **traced), one, grads),
        )

    for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 2e-5)):
        with jax.enable_x64(dtype == jnp.float64):
            for found in both(jnp.asarray(grads, dtype), jax.tree.map(dtype, make)):
                np.testing.assert_allclose(found, expected, rtol=rtol)


def test_derivatives_by_numbers_at_their_ends_are_finite():
    """By warm-ups of 0 steps, decays of 0, and a rate of 0 whose power is 0."""
    ends = {
        "ademamix": {"b1": 0.0, "b3_warmup": 4.0, "alpha_warmup": 4.0},
        "ademamix ": {"b3": 0.0, "b3_warmup": 4.0},
        "ademamix  ": {"b3_warmup": 0.0, "alpha_warmup": 0.0},
        "schedule_free_sgd": {"learning_rate": 0.0, "weight_lr_power": 0.0},
        "schedule_free_sgd ": {"learning_rate": 0.0, "weight_lr_power": 0.5},
        "prodigy": {"b2": 0.0},
    }

    @jax.jit
    def grads(ends):
        def moved(numbers, rule):
            rule = getattr(optim, rule.strip())(**({"learning_rate": 0.1} | numbers))
            return path(rule, jnp.ones(2), jnp.array([[0.5, 0.0], [0.1, 0.0]])).sum()

        return {name: jax.grad(moved)(numbers, name) for name, numbers in ends.items()}

    chex.assert_tree_all_finite(grads(ends))


def prodigy_in_numpy(params, grads, *, growth=np.inf, safeguard=False, l2=0.0, d0=0.01):
    """prodigyopt 1.1.2 for a list of arrays, without bias correction."""
    first, d, d_max, r = [p.copy() for p in params], d0, d0, 0.0
    m, v, s = ([np.zeros_like(p) for p in params] for _ in range(3))
    points, b3 = [], 0.999**0.5
    for step in grads:
        r, delta = b3 * r, d
        for i, g in enumerate(step):
            g = g + l2 * params[i]
            r += d / d0 * delta * np.sum(g * (first[i] - params[i]))
            m[i] = 0.9 * m[i] + 0.1 * d * g
            v[i] = 0.999 * v[i] + 0.001 * d * d * g * g
            s[i] = b3 * s[i] + d / d0 * (d if safeguard else delta) * g
        estimate = r / sum(np.sum(abs(x)) for x in s)
        d = max(d, estimate) if d == d0 else d
        d_max = max(d_max, estimate)
        d = min(d_max, d * growth)
        params = [
            p - delta * m_ / (np.sqrt(v_) + d * 1e-8)
            for p, m_, v_ in zip(params, m, v, strict=True)
        ]
        points.append(params)
    return points


def test_prodigys_d_is_one_number_over_all_leaves():
    shapes = {"a": (3,), "b": (2, 2), "c": (), "none": (0, 2)}
    params = {k: RNG.normal(size=s) for k, s in shapes.items()}
    grads = {k: np.ones((8, *s)) + 0.1 * RNG.normal(size=(8, *s)) for k, s in shapes.items()}
    cases = {
        "plain": ({}, {}),
        "limited": ({"growth_rate": 1.05}, {"growth": 1.05}),
        "safeguard": ({"safeguard_warmup": True}, {"safeguard": True}),
        "L2": ({"weight_decay": 0.5, "decouple": False, "mask": True}, {"l2": 0.5}),
    }
    ours = {
        name: optim.prodigy(d0=0.01, correct=False, **case) for name, (case, _) in cases.items()
    }
    found = follow_64(ours, params, grads)
    listed = [[grads[k][i] for k in shapes] for i in range(8)]
    for name, (_, case) in cases.items():
        points = prodigy_in_numpy(list(params.values()), listed, **case)
        for i, leaf in enumerate(shapes):
            expected = [point[i] for point in points]
            np.testing.assert_allclose(found[name][leaf], expected, rtol=1e-12, err_msg=name)
    assert abs(found["limited"]["a"] - found["plain"]["a"]).max() > 1e-3


def test_prodigy_waits_for_a_gradient():
    """While all gradients are 0, or the rate is, d and the weights stay; Optax's become NaN."""
    optimizer = optim.prodigy(lambda count: jnp.where(count < 2, 0.0, 1.0), **L2)
    grads = jnp.array([0.0, 1.0, 1.0, 1.0])[:, None]
    after = jax.jit(lambda p, g: path(optimizer, p, g))(jnp.ones(1), grads)
    assert (after[:2] == 1).all()
    assert (after[2:] < 1).all()
    still = optim.prodigy(**L2)
    updates, state = still.update(jnp.zeros(3), still.init(jnp.ones(3)), jnp.ones(3))
    assert (updates == 0).all()
    assert float(state["distance"]) == pytest.approx(1e-6)


# --- cautious -----------------------------------------------------------------------------------


def test_cautious_masks_and_scales_each_array():
    fixed = jnp.array([[-1.0, 2.0, -3.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
    inner = optax.stateless(lambda updates, params: fixed)
    wrapped = optim.cautious(inner)
    g = jnp.array([[1.0, -1e-30, -1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    updates, _ = wrapped.update(g, wrapped.init(g), g)
    # 2 of 8 agree, and a product of tiny numbers would underflow
    expected = jnp.zeros((2, 4)).at[0, 0].set(-4.0).at[0, 1].set(8.0)
    chex.assert_trees_all_equal(updates, expected)
    none, _ = optim.cautious(inner).update(-fixed * 0, wrapped.init(g), g)
    assert (none == 0).all()
    few = optim.cautious(inner, min_mean=0.5)
    np.testing.assert_allclose(few.update(g, few.init(g), g)[0], expected / 2)


def test_cautious_around_every_kind_of_rule():
    """The state is the rule's, keywords pass, and half precision is single's, rounded."""
    grads = {"w": jnp.array([1e-4, -1e-4, 0.0]), "b": jnp.float32(0.5)}
    for make in (fnn.sgd, fnn.adam, fnn.lion, optax.adam):
        inner, around = make(0.125), optim.cautious(make(0.125))
        chex.assert_trees_all_equal(around.init(grads), inner.init(grads))
    agreeing, _ = optim.cautious(fnn.sgd(0.125)).update(grads, fnn.sgd(0.125).init(grads), grads)
    np.testing.assert_allclose(agreeing["w"], -0.125 * 1.5 * grads["w"], rtol=1e-6)
    half = jax.tree.map(lambda g: g.astype(jnp.float16), grads)  # 1e-4 squared is 0 in float16
    around = optim.cautious(fnn.sgd(0.125))
    updates, _ = around.update(half, around.init(half), half, value=jnp.float32(1.0))
    assert updates["w"].dtype == jnp.float16
    assert (updates["w"][:2] != 0).all()
    with pytest.raises(TypeError, match="cautious: a gradient is complex64, expected real"):
        around.update(jnp.ones(2, complex), around.init(jnp.ones(2, complex)))


def test_decay_weights_after_a_rule_is_decoupled_decay():
    schedule = optax.linear_schedule(0.1, 0.01, 3)
    mask = {"layer": {"w": True, "b": False}}
    pairs = {
        "adamw": fnn.adamw(schedule, weight_decay=0.3, mask=mask),
        "chain": fnn.chain(fnn.adam(schedule), optim.decay_weights(schedule, 0.3, mask)),
        "cautious": fnn.chain(
            optim.cautious(fnn.adam(schedule)), optim.decay_weights(schedule, 0.3, mask)
        ),
    }
    found = follow_each(pairs, PARAMS, times(1, 0, 1))
    chex.assert_trees_all_close(found["chain"], found["adamw"], rtol=1e-6)
    zero, w = np.asarray(found["cautious"]["layer"]["w"][0:2])  # the second gradient is 0
    np.testing.assert_allclose(w, zero * (1 - 0.07 * 0.3), rtol=1e-6)


# --- SOAP ---------------------------------------------------------------------------------------


def soap_in_numpy(p, grads, rate, *, decay, frequency, one_sided=False, b=0.95, eps=1e-8):
    """The authors' steps for a matrix, in float64."""
    n_left, n_right = p.shape
    left, right = np.zeros((n_left, n_left)), np.zeros((n_right, n_right))
    q_left, q_right = np.eye(n_left), np.eye(n_right)
    m, v, points = np.zeros_like(p), np.zeros_like(p), []
    for k, g in enumerate(grads):
        if k:
            m, v = b * m + (1 - b) * g, b * v + (1 - b) * (q_left.T @ g @ q_right) ** 2
            factor = np.sqrt(1 - b**k) / (1 - b**k)
            u = q_left @ ((q_left.T @ m @ q_right) / (np.sqrt(v) + eps)) @ q_right.T
            p = (p - rate * factor * u) * (1 - rate * decay)
        left, right = b * left + (1 - b) * g @ g.T, b * right + (1 - b) * g.T @ g
        if k == 0:
            q_left, q_right = (np.linalg.eigh(x)[1][:, ::-1] for x in (left, right))
        elif k % frequency == 0:
            rows, columns = (
                np.argsort(-np.diag(q.T @ x @ q)) for q, x in ((q_left, left), (q_right, right))
            )
            q_left = np.linalg.qr(left @ q_left[:, rows])[0]
            q_right = np.linalg.qr(right @ q_right[:, columns])[0]
            v = v[rows] if one_sided else v[rows][:, columns]
        if one_sided:
            q_right = np.eye(n_right)
        points.append(p)
    return points


def test_soap_of_matrices_is_the_authors():
    p, grads = RNG.normal(size=(4, 4)), RNG.normal(size=(9, 4, 4))
    wide, wides = RNG.normal(size=(3, 5)), RNG.normal(size=(9, 3, 5))
    cases = {f: {"decay": 0.1, "frequency": f} for f in (1, 3, 10)}
    makes = {
        f: optim.soap(0.01, weight_decay=0.1, mask=True, precondition_frequency=f) for f in cases
    }
    found = follow_64(makes, p, grads)
    one_sided = optim.soap(0.01, weight_decay=0.0, precondition_frequency=2, max_precond_dim=4)
    found["one-sided"] = follow_64({"": one_sided}, wide, wides)[""]
    for f, case in cases.items():
        np.testing.assert_allclose(found[f], soap_in_numpy(p, grads, 0.01, **case), rtol=1e-9)
    assert abs(found[1] - found[10]).max() > 1e-3
    expected = soap_in_numpy(wide, wides, 0.01, decay=0.0, frequency=2, one_sided=True)
    np.testing.assert_allclose(found["one-sided"], expected, rtol=1e-9)


def test_soap_of_other_shapes():
    """Vectors and numbers are Adam's, one update later; a kernel of identical slices is a matrix."""
    g, p = RNG.normal(size=(6, 4)), RNG.normal(size=4)
    matrix, grads = RNG.normal(size=(3, 3)), RNG.normal(size=(6, 3, 3))
    kinds = {"b": p, "s": p[0], "w": matrix, "k": matrix[None]}
    drawn = {"b": g, "s": g[:, 0], "w": grads, "k": grads[:, None]}
    options = {"b1": 0.9, "b2": 0.9, "weight_decay": 0.0}
    soap = optim.soap(0.01, precondition_frequency=2, **options)
    found = follow_64({"": soap}, kinds, drawn)[""]
    adam = fnn.adam(0.01, 0.9, 0.9, eps_hat=True)
    later = follow_64({"": adam}, {k: kinds[k] for k in "bs"}, {k: drawn[k][1:] for k in "bs"})[""]
    for leaf in "bs":
        assert (found[leaf][0] == kinds[leaf]).all()
        np.testing.assert_allclose(found[leaf][1:], later[leaf], rtol=1e-10)
    np.testing.assert_allclose(found["k"][:, 0], found["w"], rtol=1e-8)


def test_soap_without_gradients_stays_and_divides_by_nothing():
    optimizer = optim.soap(0.1, weight_decay=0.0, eps=0.0)
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
    zeros = jax.tree.map(lambda p: jnp.zeros((4, *p.shape)), params)
    after = follow_each({"": optimizer}, params, zeros)[""]
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(after))


# --- all of them --------------------------------------------------------------------------------

MATRIX_RULES = {
    "soap": lambda rate: optim.soap(rate, precondition_frequency=2),
    "muon": lambda rate: optim.muon(
        rate, correct=True, scale=0.2, others=optim.cautious(fnn.adam(rate))
    ),
}


def test_matrix_rules_train_and_a_member_of_a_sweep_is_its_solo_run():
    """Bit for bit. `tests/training/test_sweep.py` has the rules of the table."""
    rates = jnp.array([0.003, 0.03, 0.1])

    def run(key, rate):
        results = {}
        for name, make in MATRIX_RULES.items():
            step = fnn.make_train_step(linear_loss_fn, make(rate))

            def one(ts, _, step=step):
                after, metrics = step(ts, (X, LABELS), KEY)
                assert jax.tree.map(jax.typeof, ts) == jax.tree.map(jax.typeof, after)
                return after, metrics["loss"]

            ts, loss = jax.lax.scan(one, step.init(linear_init(key)), length=15)
            results[name] = (ts.params, loss)
        return results

    together = fnn.sweep(run, KEY[None], {"rate": rates})
    alone = jax.jit(run)
    for i, rate in enumerate(rates):
        member = jax.tree.map(lambda leaf, i=i: leaf[0, i], together)
        chex.assert_trees_all_equal(member, alone(KEY, rate))
    for name, (_, loss) in together.items():
        assert (loss[0, 1:, -1] < 0.95 * loss[0, 1:, 0]).all(), name


def test_complex_parameters_are_optaxs_or_refused():
    params = {"w": jnp.array([1 + 2j, 3 - 1j])}
    grads = {"w": jnp.asarray(RNG.normal(size=(5, 2)) + 1j * RNG.normal(size=(5, 2)), complex)}
    pairs = {
        "nadamw": (optim.nadamw(0.1, mask=True), optax.nadamw(0.1)),
        "schedule_free_sgd": (
            optim.schedule_free_sgd(0.1), fnn.optax_wrappers.schedule_free_sgd(0.1)
        ),
    }  # fmt: skip
    ours = {name: pair[0] for name, pair in pairs.items()} | {"ademamix": optim.ademamix(0.1)}
    found = follow_each(ours, params, grads)
    with jax.numpy_dtype_promotion("standard"):
        adam = optax.chain(optax.contrib.scale_by_ademamix(alpha=5.0), optax.scale(-0.1))
        theirs = {"nadamw": pairs["nadamw"][1]}
        expected = follow_each(theirs, params, grads)
        # Optax's AdEMAMix squares a complex gradient; along the real axis there is no difference.
        real = jax.tree.map(lambda x: x.real.astype(complex), (params, grads))
        line = follow_each({"ours": optim.ademamix(0.1), "theirs": adam}, *real)
    chex.assert_trees_all_close(found["nadamw"], expected["nadamw"], rtol=3e-5, atol=2e-5)
    chex.assert_trees_all_close(line["ours"], line["theirs"], rtol=3e-5, atol=2e-5)
    assert jnp.isfinite(found["ademamix"]["w"]).all()
    # a linear rule is that of the two parts
    sgd = optim.schedule_free_sgd(0.1)
    parts = follow_each(
        {"": sgd}, {"w": params["w"].imag}, {"w": grads["w"].imag}
    )[""]  # fmt: skip
    chex.assert_trees_all_close(found["schedule_free_sgd"]["w"].imag, parts["w"], rtol=1e-6)
    for name, optimizer in {"prodigy": optim.prodigy(), "soap": optim.soap(0.1)}.items():
        with pytest.raises(TypeError, match=rf"{name}: .*parameter.* is complex64, expected real"):
            optimizer.init(params)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optim.nadamw(0.1, algoperf=True, momentum_decay=1.0), ValueError, "nadamw: momentum_decay was given with algoperf, expected one of the two"),
        (lambda: optim.nadam(0.1, algoperf=True, momentum_decay=1.0), ValueError, "nadam: momentum_decay was given with algoperf"),
        (lambda: optim.muon(0.1, accumulate=True, correct=True), ValueError, "muon: correct was given with accumulate, expected one of the two"),
        (lambda: optim.muon(0.1, scale="rms"), ValueError, "muon: scale is 'rms', expected 'width', a number or None"),
        (lambda: optim.muon(0.1, scale=-0.2), ValueError, "muon: scale is -0.2, expected a number >= 0"),
        (lambda: optim.schedule_free_sgd(0.1, warmup_steps=0.5), TypeError, "schedule_free_sgd: warmup_steps is 0.5, expected a whole number >= 0"),
        (lambda: optim.schedule_free_sgd(0.1, 1.0), ValueError, "schedule_free_sgd: b1 is 1.0, expected a number in [0, 1)"),
        (lambda: optim.schedule_free_adamw(None), TypeError, "schedule_free_adamw: learning_rate is None"),
        (lambda: optim.schedule_free_adamw(0.1).update(GRADS, optim.schedule_free_adamw(0.1).init(PARAMS)), ValueError, "schedule_free_adamw: update(grads, state) came without params"),
        (lambda: optim.prodigy(d0=0.0), ValueError, "prodigy: d0 is 0.0, expected a number > 0"),
        (lambda: optim.prodigy(growth_rate=0.5), ValueError, "prodigy: growth_rate is 0.5, expected a number >= 1"),
        (lambda: optim.prodigy(b1=lambda count: 0.9), TypeError, "prodigy: b1 is a function, expected a number"),
        (lambda: optim.prodigy().update(GRADS, optim.prodigy().init(PARAMS)), ValueError, "prodigy: update(grads, state) came without params"),
        (lambda: optim.prodigy().init({"n": jnp.zeros(2, int)}), TypeError, "prodigy: parameter 'n' is int32, expected real floats"),
        (lambda: optim.prodigy().update({"v": 1.0}, optim.prodigy().init({"w": 1.0}), {"v": 1.0}), ValueError, "prodigy: grads and mu differ in structure (first at 'v')"),
        (lambda: optim.soap(0.1, precondition_frequency=0), ValueError, "soap: precondition_frequency is 0, expected at least 1"),
        (lambda: optim.soap(0.1, max_precond_dim=1.5), TypeError, "soap: max_precond_dim is 1.5, expected a whole number >= 0"),
        (lambda: optim.cautious(fnn.adam), TypeError, "cautious: adam is a function, expected an optimizer; call it"),
        (lambda: optim.cautious(fnn.adam(0.1), 0.0), ValueError, "cautious: min_mean is 0.0, expected a number in (0, 1]"),
        (lambda: optim.ademamix(0.1, b3_warmup=lambda t: t), TypeError, "ademamix: b3_warmup is a function, expected a number"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
