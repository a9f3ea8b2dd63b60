import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn import pruning
from tests.nn.drawn import params_of
from tests.optimizer_paths import path

KEY = jax.random.key(0)
PARAMS = jax.jit(lambda: fnn.mlp_init(KEY, (8, 12, 4)))()
WEIGHTS = ("layer_0/w", "layer_1/w")  # 96 and 48
X = jax.random.normal(KEY, (32, 8))
LABELS = jnp.arange(32) % 4


def loss_fn(params, batch, key):
    return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])


def flat(tree, names=WEIGHTS):
    leaves = fnn.params.paths(tree)
    return np.concatenate([np.ravel(np.asarray(leaves[name])) for name in names])


def by_sorting(values, k):
    """Kept or not, from a stable sort."""
    kept = np.ones(len(values), bool)
    kept[np.argsort(np.abs(values), kind="stable")[:k]] = False
    return kept


# --- masks --------------------------------------------------------------------------------------


mask_of = jax.jit(pruning.magnitude_mask, static_argnames=("scope", "prunable"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.335, 0.5, 0.9, 0.99, 1.0])
def test_exactly_the_smallest(share):
    both = mask_of(PARAMS, share)
    np.testing.assert_array_equal(flat(both), by_sorting(flat(PARAMS), round(share * 144)))
    each = mask_of(PARAMS, share, scope="layer")
    for name, n in zip(WEIGHTS, (96, 48), strict=True):
        want = by_sorting(flat(PARAMS, [name]), round(share * n))
        np.testing.assert_array_equal(flat(each, [name]), want)
    for tree in (both, each):
        assert flat(tree, ("layer_0/b", "layer_1/b")).all()
        chex.assert_trees_all_equal_shapes(tree, PARAMS)
    assert float(pruning.sparsity(both)) == pytest.approx(round(share * 144) / 144)
    chex.assert_trees_all_equal(pruning.magnitude_mask(PARAMS, share), both)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(10), np.ones(10), [1, -1, 1, -1, 2, 2, 0, 0, -0.0, 3], [np.nan, np.inf, 1, -np.inf, 0, 1e-45, 1e38, 1e-30, 2, 2],
    ],
    ids=["zeros", "equal", "ties", "extreme"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_ties_go_by_index_and_nan_stays(values, dtype):
    with jax.enable_x64(dtype == "float64"):
        w = jnp.asarray(values, "float32").astype(dtype)
        masks = jax.jit(jax.vmap(lambda s: pruning.magnitude_mask({"w": w}, s)["w"]))
        for k, kept in enumerate(masks(jnp.arange(11) / 10)):
            np.testing.assert_array_equal(kept, by_sorting(np.asarray(w, float), k))


def test_double_precision_is_compared_in_full():
    with jax.enable_x64(True):
        w = 1 + jnp.array([3e-12, 1e-12, 2e-12], jnp.float64)
        kept = pruning.magnitude_mask({"w": w}, 1 / 3)["w"]
        np.testing.assert_array_equal(kept, [True, False, True])


def test_which_leaves():
    everything = mask_of(PARAMS, 0.5, prunable=True)
    assert sum(int((~leaf).sum()) for leaf in jax.tree.leaves(everything)) == 80
    assert float(pruning.sparsity(everything, prunable=True)) == pytest.approx(0.5)
    first = mask_of(PARAMS, 0.5, prunable=lambda p: fnn.params.matching(p, "layer_0/w"))
    assert (~flat(first)).sum() == (~flat(first, ["layer_0/w"])).sum() == 48
    none = mask_of({"b": jnp.ones(3)}, 0.5)
    assert none["b"].all()
    assert float(pruning.sparsity({"b": jnp.zeros(3)})) == 0
    empty = mask_of({"w": jnp.ones((0, 3))}, 0.5)
    assert empty["w"].shape == (0, 3)


def test_apply_mask_and_sparsity():
    mask = mask_of(PARAMS, 0.25)
    params = pruning.apply_mask(jax.tree.map(lambda p: p * jnp.inf, PARAMS), mask)
    assert (flat(params)[~flat(mask)] == 0).all()
    assert not (flat(params)[flat(mask)] == 0).any()
    assert float(pruning.sparsity(PARAMS)) == 0
    assert float(pruning.sparsity(pruning.apply_mask(PARAMS, mask))) == 0.25
    chex.assert_trees_all_equal(pruning.apply_mask(PARAMS, True), PARAMS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pruning.magnitude_mask(PARAMS, 1.5), "magnitude_mask: sparsity is 1.5, expected"),
        (lambda: pruning.magnitude_mask(PARAMS, 0.5, scope="all"), "magnitude_mask: scope is 'all'"),
        (lambda: pruning.cubic_sparsity(0.5, 0), "cubic_sparsity: steps is 0, expected at least 1"),
        (lambda: pruning.cubic_sparsity(-0.5, 10), "cubic_sparsity: final is -0.5"),
        (lambda: pruning.gradually_pruned(fnn.sgd(1), lambda t: t, every=0), "every is 0"),
        (lambda: pruning.pruned(fnn.sgd(1), True).update(PARAMS, {"mask": 0}), "pruned: update.*without params"),
        (lambda: pruning.prune_neurons(PARAMS), "expected either fraction or keep"),
        (lambda: pruning.prune_neurons(PARAMS, fraction=2.0), "prune_neurons: fraction is 2.0"),
        (lambda: pruning.prune_neurons(PARAMS, keep=[13]), r"keep is \[13\], expected 1 to all of .* \[12\]"),
        (lambda: pruning.prune_neurons(PARAMS, keep=np.array([13, 1])), r"keep is \[13, 1\], expected 1 to"),
        (lambda: pruning.prune_neurons(PARAMS, keep=13), r"keep is \[13\], expected 1 to"),
        (lambda: pruning.prune_neurons(PARAMS, fraction=1.0), r"keep is \[0\], expected 1 to"),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("begin", "initial"), [(0, 0.0), (7, 0.2)])
def test_the_cubic_schedule_is_the_papers(begin, initial):
    t = np.arange(0, 60)
    want = 0.9 + (initial - 0.9) * (1 - (t - begin) / 30.0) ** 3
    want = np.where(t < begin, 0, np.where(t > begin + 30, 0.9, want))
    schedule = pruning.cubic_sparsity(0.9, 30, begin=begin, initial=initial)
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.arange(60)), want, atol=1e-6)


# --- training -----------------------------------------------------------------------------------


def average_of_params(decay=0.9):
    """Keeps an average of the parameters, as an inner optimizer may."""

    def update(updates, state, params=None):
        new = fnn.apply_updates(params, updates)
        return updates, jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state, new)

    return fnn.Optimizer(lambda params: params, update)


OPTIMIZERS = {
    "momentum, decay, clipping": lambda: fnn.chain(
        fnn.clip_by_global_norm(0.5),
        fnn.optim.add_weight_decay(0.01, mask=True),
        fnn.momentum(0.1, 0.9),
    ),
    "adamw and an average": lambda: fnn.chain(
        fnn.adamw(0.01, weight_decay=0.1), average_of_params()
    ),
    "groups": lambda: fnn.by_path({"layer_0/**": fnn.nesterov(0.1), "**": fnn.rmsprop(0.01)}),
    "adagrad": lambda: fnn.adagrad(0.1, initial_accumulator=0.1),
    "optax.adamw": lambda: optax.adamw(0.01, weight_decay=0.1),
}


def train(optimizer, params=PARAMS, steps=100):
    step = fnn.make_train_step(loss_fn, optimizer, clip_norm=1.0)

    def one(ts, _):
        ts, _ = step(ts, (X, LABELS), KEY)
        return ts, ts

    return jax.lax.scan(one, step.init(params), length=steps)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_zero_in_params_and_memory(name, standard_promotion):
    mask = mask_of(PARAMS, 0.75)
    ts, seen = jax.jit(lambda mask: train(pruning.pruned(OPTIMIZERS[name](), mask)))(mask)
    for leaf, kept in zip(jax.tree.leaves(seen.params), jax.tree.leaves(mask), strict=True):
        assert (np.asarray(leaf)[:, ~kept] == 0).all()
        assert (np.asarray(leaf)[-1][kept] != 0).all()
    assert float(pruning.sparsity(ts.params)) == 0.75
    assert float(loss_fn(ts.params, (X, LABELS), None).mean()) < 1.2 < np.log(4)
    masks = {path: np.asarray(kept) for path, kept in fnn.params.paths(mask).items()}
    memories = 0
    for name, leaf in fnn.params.paths(ts.opt_state["inner"]).items():
        for weight in WEIGHTS:
            if name.endswith(weight):
                memories += 1
                assert (np.asarray(leaf)[~masks[weight]] == 0).all(), name
    assert memories >= 2


def test_without_the_wrapper_they_would_not():
    params = pruning.apply_mask(PARAMS, mask_of(PARAMS, 0.75))
    make = OPTIMIZERS["momentum, decay, clipping"]
    ts, _ = jax.jit(lambda params: train(make(), params, 3))(params)
    assert float(pruning.sparsity(ts.params)) < 0.1


def test_what_is_kept_trains_as_if_the_rest_were_not_there():
    """A network with neurons masked away is the small network, its norms and moments too."""
    dead = np.arange(12) % 3 == 0
    mask = jax.tree.map(lambda p: jnp.ones_like(p, bool), PARAMS)
    mask["layer_0"] = {"w": mask["layer_0"]["w"].at[:, dead].set(False), "b": ~jnp.array(dead)}
    mask["layer_1"]["w"] = mask["layer_1"]["w"].at[dead].set(False)
    small = {
        "layer_0": {"w": PARAMS["layer_0"]["w"][:, ~dead], "b": PARAMS["layer_0"]["b"][~dead]},
        "layer_1": {"w": PARAMS["layer_1"]["w"][~dead], "b": PARAMS["layer_1"]["b"]},
    }
    make = OPTIMIZERS["momentum, decay, clipping"]

    @jax.jit
    def both(mask, small):
        big, _ = train(pruning.pruned(make(), mask), pruning.apply_mask(PARAMS, mask), 20)
        return big, train(make(), small, 20)[0]

    big, alone = both(mask, small)
    chex.assert_trees_all_close(
        big.params["layer_0"]["w"][:, ~dead], alone.params["layer_0"]["w"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_gradual_pruning_is_exact_and_never_gives_back(scope):
    schedule = pruning.cubic_sparsity(0.9, 60, begin=10)

    def run(rate):
        inner = fnn.adamw(rate, weight_decay=0.1)
        return train(pruning.gradually_pruned(inner, schedule, every=10, scope=scope))[1]

    seen = jax.jit(jax.vmap(run))(jnp.array([0.01, 0.03]))
    weights = [np.asarray(fnn.params.paths(seen.params)[name]) == 0 for name in WEIGHTS]
    due = (np.arange(100) // 10) * 10
    target = np.asarray(jax.vmap(schedule)(jnp.asarray(due)))
    for member in range(2):
        counts = [w[member].sum((1, 2)) for w in weights]
        if scope == "global":
            np.testing.assert_array_equal(sum(counts), np.round(target * 144))
        else:
            for n, found in zip((96, 48), counts, strict=True):
                np.testing.assert_array_equal(found, np.round(target * n))
        for w in weights:
            assert (w[member][1:] >= w[member][:-1]).all()  # once zero, always zero
    assert not np.array_equal(weights[0][0], weights[0][1])
    assert (np.asarray(seen.params["layer_1"]["b"])[:, -1] != 0).all()
    if scope == "layer":
        alone = jax.jit(run)(jnp.float32(0.03))
        chex.assert_trees_all_close(
            alone.params, jax.tree.map(lambda p: p[1], seen.params), rtol=1e-3, atol=1e-5
        )


def test_what_is_pruned_stays_so_when_weights_or_schedule_change():
    """Live weights of exactly 0 are no reason to give back pruned ones, nor is a lower goal."""
    optimizer = pruning.gradually_pruned(
        fnn.sgd(0.0), lambda count: jnp.where(count == 0, 0.5, 0.25), every=1
    )
    params = {"w": jnp.array([4.0, 3.0, 2.0, 1.0])}
    update = jax.jit(optimizer.update)
    updates, state = update(params, optimizer.init(params), params)
    params = fnn.apply_updates(params, updates)
    np.testing.assert_array_equal(params["w"], [4, 3, 0, 0])
    params = {"w": jnp.array([0.0, 3.0, 0, 0])}
    _, state = update(params, state, params)
    np.testing.assert_array_equal(state["mask"]["w"], [True, True, False, False])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    mask = mask_of(params, 0.5)
    inner = [fnn.adam(0.01), fnn.keep_precision(fnn.adam(0.01), "master")]
    optimizers = [pruning.pruned(optimizer, mask) for optimizer in inner]

    @jax.jit
    def two_steps(params):
        return [
            path(o, params, jax.tree.map(lambda p: jnp.stack([p, p]), params)) for o in optimizers
        ]

    for seen in two_steps(params):  # a scan, so the state keeps its shapes and dtypes
        chex.assert_trees_all_equal_dtypes(seen, params)
        for i in range(2):
            assert float(pruning.sparsity(jax.tree.map(lambda p, i=i: p[i], seen))) == 0.5


def test_state_keeps_its_avals_and_the_rate_is_logged():
    schedule = pruning.cubic_sparsity(0.5, 10)
    optimizer = pruning.gradually_pruned(fnn.adam(0.1), schedule, every=2)
    step = fnn.make_train_step(loss_fn, optimizer)
    ts = step.init(PARAMS)
    after, metrics = jax.jit(step)(ts, (X, LABELS), KEY)
    assert jax.tree.map(jax.typeof, ts) == jax.tree.map(jax.typeof, after)
    assert float(metrics["learning_rate"]) == pytest.approx(0.1)


@pytest.mark.slow
def test_a_lottery_ticket():
    gradual = pruning.gradually_pruned(fnn.adam(0.01), lambda count: 0.8, every=5)
    mask = jax.jit(lambda: train(gradual, steps=20)[0].opt_state["mask"])()
    ticket = pruning.apply_mask(PARAMS, mask)
    assert float(pruning.sparsity(ticket)) == pytest.approx(0.8, abs=1 / 144)
    np.testing.assert_array_equal(flat(ticket)[flat(mask)], flat(PARAMS)[flat(mask)])
    again, _ = jax.jit(lambda ticket: train(pruning.pruned(fnn.adam(0.01), mask), ticket, 5))(
        ticket
    )
    np.testing.assert_array_equal(flat(again.params) != 0, flat(mask))


# --- neurons ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "bias"), [(fnn.relu, True), (fnn.sigmoid, False)])
def test_fewer_neurons_are_the_masked_ones(activation, bias):
    params = params_of(fnn.mlp_init, (8, 20, 30, 4), bias=bias)
    small = pruning.prune_neurons(params, keep=[11, 7])
    assert [w.shape for w in (small[f"layer_{i}"]["w"] for i in range(3))] == [
        (8, 11),
        (11, 7),
        (7, 4),
    ]
    first, second, third = (np.asarray(params[f"layer_{i}"]["w"], float) for i in range(3))
    biases = (
        [np.asarray(params[f"layer_{i}"]["b"])[None] for i in range(2)]
        if bias
        else [first[:0], second[:0]]
    )
    masked = jax.tree.map(np.array, params)
    for i, (w, b, out, k) in enumerate(
        [(first, biases[0], second, 11), (second, biases[1], third, 7)]
    ):
        score = np.linalg.norm(np.concatenate([w, b]), axis=0) * np.linalg.norm(out, axis=1)
        weak = np.argsort(score)[: len(score) - k]
        masked[f"layer_{i + 1}"]["w"][weak] = 0
    of_small, want = jax.jit(
        lambda nets: [fnn.mlp(params, X, activation=activation) for params in nets]
    )((small, masked))
    chex.assert_trees_all_close(of_small, want, rtol=1e-4, atol=1e-5)


def test_neurons_that_do_nothing_go_first():
    params = jax.tree.map(np.array, PARAMS)
    params["layer_1"]["w"][[1, 5, 9]] = 0
    params = jax.tree.map(jnp.asarray, params)
    small = pruning.prune_neurons(params, fraction=0.25)
    assert small["layer_0"]["w"].shape == (8, 9)
    of_small, whole = jax.jit(lambda nets: [fnn.mlp(net, X) for net in nets])((small, params))
    chex.assert_trees_all_close(of_small, whole, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(pruning.prune_neurons(params, fraction=0.0), params)
    one = params_of(fnn.mlp_init, (3, 2))
    chex.assert_trees_all_equal(pruning.prune_neurons(one, fraction=0.5), one)
    half = jax.tree.map(lambda p: p.astype("bfloat16"), params)
    chex.assert_type(jax.tree.leaves(pruning.prune_neurons(half, fraction=0.5)), jnp.bfloat16)
