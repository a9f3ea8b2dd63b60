"""Optax, Flax and Equinox take these optimizers as they take Optax's, with the same path.

`test_rules.py` has the rules themselves and `optax.chain`. Here each wrapper of Optax goes around
fnn's rules and around Optax's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.optim._groups import Frozen, Still

pytestmark = pytest.mark.usefixtures("standard_promotion")  # of Optax's code

Make = Callable[..., Any]  # learning rate -> optimizer
RULES: dict[str, tuple[Make, Make]] = {
    "sgd": (fnn.sgd, optax.sgd),
    "momentum": (fnn.momentum, partial(optax.sgd, momentum=0.9)),
    "nesterov": (fnn.nesterov, partial(optax.sgd, momentum=0.9, nesterov=True)),
    "adagrad": (fnn.adagrad, optax.adagrad),
    "rmsprop": (fnn.rmsprop, optax.rmsprop),
    "adam": (fnn.adam, optax.adam),
    "adamw": (partial(fnn.adamw, mask=True), optax.adamw),
    "nadam": (fnn.nadam, optax.nadam),
    "lion": (partial(fnn.lion, mask=True), optax.lion),
}
# A wrapper sees a rule's state and what it needs: no memory, memory, memory and the parameters.
KINDS = ("sgd", "adagrad", "adamw")

STEPS = 6
PARAMS = {"w": jnp.array([[1.0, 2.0], [-3.0, 0.5]]), "b": jnp.zeros(2)}


def random_grads():
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.normal(size=(STEPS, *p.shape)), p.dtype) for k, p in PARAMS.items()}


GRADS = random_grads()


def halved(first):
    return optax.exponential_decay(first, transition_steps=1, decay_rate=0.5)


AROUND: dict[str, Callable[[Make], Any]] = {
    "partition": lambda make: optax.partition(
        {"slow": make(0.01), "fast": make(0.1)}, lambda params: {"w": "slow", "b": "fast"}
    ),
    "multi_transform": lambda make: optax.multi_transform(
        {"this": make(0.1), "Optax's": optax.sgd(0.1)}, {"w": "this", "b": "Optax's"}
    ),
    # Numbers are injected; bools, None and words are not and need no static_args. A function is
    # taken for a schedule and an int for a number, so that three arguments do need them, as in
    # Optax: a mask that is a function, smallest_factored of adafactor and iterations of muon.
    "inject_hyperparams": lambda make: optax.inject_hyperparams(make)(0.1),
    "inject a schedule": lambda make: optax.inject_hyperparams(make)(learning_rate=halved(0.1)),
    "lookahead": lambda make: optax.lookahead(make(0.1), 2, 0.5, reset_state=True),
    "schedule_free": lambda make: optax.contrib.schedule_free(make(0.1), learning_rate=0.1),
    "flatten": lambda make: optax.flatten(make(0.1)),
    "apply_every": lambda make: optax.chain(make(0.1), optax.apply_every(2)),
    "MultiSteps": lambda make: optax.MultiSteps(
        make(0.1), 2, should_skip_update_fn=optax.skip_not_finite
    ).gradient_transformation(),
    "apply_if_finite": lambda make: optax.apply_if_finite(make(0.1), 3),
    "named_chain": lambda make: optax.named_chain(
        ("clip", optax.clip_by_global_norm(1.0)), ("rule", make(halved(0.1)))
    ),
    "conditionally_transform": lambda make: optax.conditionally_transform(
        make(0.1), lambda step: step % 2 == 0
    ),
    "reduce_on_plateau": lambda make: optax.chain(
        make(0.1), optax.contrib.reduce_on_plateau(0.5, patience=1)
    ),
    "masked": lambda make: optax.masked(make(0.1), {"w": True, "b": False}),
}
STARTS = {"lookahead": optax.LookaheadParams.init_synced}
SEEN = {  # beside the parameters
    "schedule_free": optax.contrib.schedule_free_eval_params,
    "reduce_on_plateau": lambda state, params: state[-1].scale,
}
SKIPS_NAN = ("MultiSteps", "apply_if_finite")


def follow(optimizers, params, grads, see=lambda state, params: ()):
    """The paths under a tree of optimizers, and what `see` sees: leaves [STEPS, ...]."""

    def path(optimizer, params, grads):
        def step(carry, g):
            params, state = carry
            updates, state = optimizer.update(g, state, params, value=jnp.ones(()))
            params = optax.apply_updates(params, updates)
            return (params, state), (params, see(state, params))

        optimizer = optax.with_extra_args_support(optimizer)
        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]

    @jax.jit
    def paths(params, grads):
        return jax.tree.map(lambda o: path(o, params, grads), optimizers, is_leaf=is_optimizer)

    return paths(params, grads)


def is_optimizer(node):
    return isinstance(node, optax.GradientTransformation)


def assert_same_path(ours, theirs):
    # In float32, where Optax's Adam is off by up to 2e-5 of a step, and the steps are 0.1.
    chex.assert_trees_all_close(ours, theirs, rtol=2e-5, atol=3e-6)
    chex.assert_tree_all_finite(ours)
    assert all((leaf[0] != leaf[-1]).any() for leaf in jax.tree.leaves(ours))


@pytest.mark.parametrize("name", AROUND)
def test_optax_takes(name):
    # inject_hyperparams reads the signature, which every rule has its own.
    rules = RULES if name == "inject_hyperparams" else KINDS
    optimizers = [{rule: AROUND[name](RULES[rule][side]) for rule in rules} for side in (0, 1)]
    start = STARTS.get(name, lambda params: params)(PARAMS)
    grads = GRADS | {"w": GRADS["w"].at[2].set(jnp.nan)} if name in SKIPS_NAN else GRADS
    see = SEEN.get(name, lambda state, params: ())
    assert_same_path(*follow(optimizers, start, grads, see))


def test_other_numbers_can_be_scheduled():
    cases = {  # fnn's name, Optax's name, the first value
        "momentum": ("decay", "momentum", 0.9),
        "nesterov": ("decay", "momentum", 0.9),
        "adagrad": ("eps", "eps", 0.5),
        "rmsprop": ("decay", "decay", 0.9),
        "adam": ("b1", "b1", 0.9),
        "adamw": ("weight_decay", "weight_decay", 0.5),
        "nadam": ("b2", "b2", 0.9),
        "lion": ("b2", "b2", 0.9),
    }
    optimizers = {"ours": {}, "theirs": {}, "constant": {}}
    for rule, (name, optaxs_name, first) in cases.items():
        ours, theirs = map(optax.inject_hyperparams, RULES[rule])
        optimizers["ours"][rule] = ours(0.1, **{name: halved(first)})
        optimizers["theirs"][rule] = theirs(0.1, **{optaxs_name: halved(first)})
        optimizers["constant"][rule] = ours(0.1, **{name: first})
    paths = follow(optimizers, PARAMS, GRADS)
    assert_same_path(paths["ours"], paths["theirs"])
    for rule in cases:
        scheduled, constant = (paths[which][rule][0]["w"] for which in ("ours", "constant"))
        assert abs(scheduled - constant).max() > 1e-3, rule


@pytest.mark.parametrize("rule", RULES)
def test_map_params_finds_what_is_remembered(rule):
    optimizer = RULES[rule][0](0.1)
    state = optimizer.init(PARAMS)
    names = {"w": "w", "b": "b"}  # or shardings, say
    mapped = optax.tree_utils.tree_map_params(
        optimizer, lambda _, name: name, state, names, transform_non_params=lambda _: None
    )
    assert mapped == dict.fromkeys(state, names) | {"count": None, "last_rate": None}


# --- Flax and Equinox, where they are installed -------------------------------------------------

X, Y = jnp.linspace(-1, 1, 12).reshape(4, 3), jnp.linspace(0, 1, 8).reshape(4, 2)


def assert_same_training(run):
    """run(optimizer, steps) -> parameters."""
    ours, theirs = run(fnn.adam(0.1), STEPS), run(optax.adam(0.1), STEPS)
    chex.assert_trees_all_close(ours, theirs, rtol=2e-5, atol=3e-6)
    start = run(fnn.adam(0.1), 0)
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (ours, start)), strict=True))


def test_flax_train_state_takes():
    linen = pytest.importorskip("flax.linen", reason="Flax is not installed")
    train_state = pytest.importorskip("flax.training.train_state", reason="Flax is not installed")
    model = linen.Dense(2)

    @jax.jit
    def step(state):
        def loss(params):
            return jnp.square(state.apply_fn(params, X) - Y).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    params = model.init(jax.random.key(0), X)

    def run(optimizer, steps):
        state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
        for _ in range(steps):
            state = step(state)
        return state.params

    assert_same_training(run)


def nnx_training(optimizer, steps=STEPS):
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.square(model(X) - Y).mean())(model)
        optimizer.update(model, grads)

    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    for _ in range(steps):
        step(model, optimizer)
    return nnx.to_pure_dict(nnx.state(model))


def test_flax_nnx_optimizer_takes():
    assert_same_training(nnx_training)


def test_names_in_flax_nnx():
    # An array's path ends in Variable's attribute `value` at init, and no longer at update.
    grouped = nnx_training(fnn.by_path({"**/bias": fnn.freeze(), "**": fnn.sgd(0.1)}))
    assert not grouped["bias"].any()
    assert (nnx_training(fnn.muon(0.1, others=fnn.sgd(0.1)))["bias"] != 0).all()
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    assert list(fnn.params.paths(state)) == ["bias", "kernel"]
    assert jax.tree.leaves(fnn.params.decayed(state)) == [False, True]
    assert jax.tree.leaves(fnn.params.matching(state, "**/kernel")) == [False, True]


def test_equinox_takes():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")

    @eqx.filter_jit
    def step(model, state, optimizer):
        grads = eqx.filter_grad(lambda model: jnp.square(jax.vmap(model)(X) - Y).mean())(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimizer.update(grads, state, params)
        return eqx.apply_updates(model, updates), state

    first = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))  # has leaves that are functions

    def run(optimizer, steps):
        model, state = first, optimizer.init(eqx.filter(first, eqx.is_inexact_array))
        for _ in range(steps):
            model, state = step(model, state, optimizer)
        return eqx.filter(model, eqx.is_inexact_array)

    assert_same_training(run)


def test_an_equinox_model_with_its_functions_as_params():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    grads = jax.tree.map(jnp.ones_like, params)
    for optimizer in (fnn.adam(0.1), fnn.chain(fnn.adamw(0.1))):
        state = optimizer.init(params)
        filtered, _ = optimizer.update(grads, state, params)
        whole, _ = optimizer.update(grads, state, model)
        chex.assert_trees_all_equal(whole, filtered)


def specs_of(optimizer, params):
    return optax.tree_map_params(
        optimizer,
        lambda _: "parameter",
        optimizer.init(params),
        transform_non_params=lambda _: None,
    )


def test_optax_maps_over_what_belongs_to_parameters():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    state = {"trace": {"b": "parameter", "w": "parameter"}, "count": None, "last_rate": None}
    assert specs_of(fnn.momentum(0.1), params) == state
    grouped = specs_of(fnn.by_path({"b": fnn.freeze(), "**": fnn.momentum(0.1)}), params)
    assert grouped == {
        "b": Frozen({"b": Still(), "w": optax.MaskedNode()}),
        "**": state | {"trace": {"b": optax.MaskedNode(), "w": "parameter"}},
    }
    matrices = specs_of(fnn.muon(0.1, others=fnn.momentum(0.1)), params)
    assert matrices["others"]["trace"] == {"b": "parameter", "w": optax.MaskedNode()}


@pytest.mark.parametrize(
    "optimizer",
    [fnn.by_path({"b": fnn.freeze(), "**": fnn.momentum(0.1)}), fnn.muon(0.1), fnn.adamw(0.1)],
)
def test_a_mask_may_leave_nothing(optimizer):
    emptied = optax.masked(optimizer, False)
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    updates, _ = emptied.update(params, emptied.init(params), params)
    chex.assert_trees_all_equal(updates, params)  # as Optax has it: left as they came


def test_a_schedule_of_weight_decay():
    # optax.adamw takes one too.
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    schedule = optax.linear_schedule(0.5, 0.0, 2)
    ours = fnn.adamw(0.1, weight_decay=schedule, mask=True)
    steps = []
    state, update = ours.init(params), jax.jit(ours.update)
    for _ in range(3):
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        steps.append(updates["w"][0, 0])
    np.testing.assert_allclose(steps, [-0.05, -0.025, 0], rtol=1e-6)
    with pytest.raises(TypeError, match="adam: b1 is a function, expected a number; learning_rate"):
        fnn.adam(0.1, b1=schedule)


def test_the_rate_in_the_history_of_injected_hyperparameters():
    optimizer = optax.inject_hyperparams(fnn.adam)(learning_rate=0.5)
    params = {"w": jnp.ones(2)}
    step = fnn.make_train_step(lambda params, batch, key: batch * params["w"].sum(), optimizer)
    _, metrics = jax.jit(step)(step.init(params), jnp.ones(3), jax.random.key(0))
    assert metrics["learning_rate"] == 0.5


def test_injecting_what_shapes_the_program():
    params = {"w": jnp.ones((2, 2))}
    with pytest.raises(TypeError, match=r"adafactor: smallest_factored is .*static_args"):
        optax.inject_hyperparams(fnn.adafactor)(learning_rate=0.1).init(params)
    inject = optax.inject_hyperparams(fnn.adafactor, static_args="smallest_factored")
    optimizer = inject(learning_rate=0.1)
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    assert (updates["w"] < 0).all()
