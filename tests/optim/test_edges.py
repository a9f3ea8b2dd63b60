"""What is odd: NaN, nothing at all, other kinds of numbers, mistakes."""

import inspect
import re
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn.optim import schedules
from tests.optimizer_paths import follow_each
from tests.table_of_optimizers import OPTIMIZERS

P = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
ALL = {row.name: row.make(0.1) for row in OPTIMIZERS} | {
    "adafactor": fnn.adafactor(0.1, smallest_factored=1),
    "muon": fnn.muon(0.1, others=fnn.sgd(0.1)),
    "soap": fnn.optim.soap(0.1),
    "cautious": fnn.optim.cautious(fnn.adam(0.1)),
}
WHOLE = ("adafactor", "muon", "prodigy", "soap")  # an entry of a gradient moves other entries too

# --- NaN ----------------------------------------------------------------------------------------


def test_a_nan_gradient_shows_in_its_weight():
    # By the formulas: NaN enters a moment, and whatever is divided by its root is NaN.
    without_eps = {
        "rmsprop, eps 0": fnn.rmsprop(0.1, eps=0.0),
        "rmsprop, eps outside": fnn.rmsprop(0.1, eps_inside=False),
        "centered": fnn.rmsprop(0.1, centered=True),
        "adagrad, eps 0": fnn.adagrad(0.1, eps=0.0),
        "adam, eps 0": fnn.adam(0.1, eps=0.0),
        "amsgrad": fnn.adam(0.1, amsgrad="raw"),
        "adam, eps hat": fnn.adam(0.1, eps_hat=True),
        "nadam, eps 0": fnn.nadam(0.1, eps=0.0),
        "nadam, scheduled": fnn.nadam(0.1, momentum_decay=1.0),
    }
    one_by_one = {name: ALL[name] for name in ALL if name not in WHOLE}
    grads = jnp.ones((3, 2)).at[0, 0].set(jnp.nan)
    for name, path in follow_each(one_by_one | without_eps, jnp.ones(2), grads).items():
        assert np.isnan(path[-1, 0]), name
        assert np.isfinite(path[:, 1]).all(), name


def test_the_safe_root_and_quotient_let_nan_through():
    from fnn._base import safe_divide, safe_sqrt

    x = jnp.array([jnp.nan, -1.0, 0.0, 4.0, jnp.inf])
    np.testing.assert_array_equal(safe_sqrt(x), [np.nan, 0, 0, 2, np.inf])
    np.testing.assert_array_equal(jax.vmap(jax.grad(safe_sqrt))(x[1:4]), [0, 0, 0.25])
    np.testing.assert_array_equal(safe_divide(x[:2], jnp.array([1.0, jnp.nan])), [np.nan, np.nan])


# --- nothing, and a single number ---------------------------------------------------------------


def test_trees_of_nothing_and_of_single_numbers():
    trees = [{}, (), {"w": jnp.ones((0, 3)), "v": jnp.ones((3, 0)), "b": jnp.ones(0)}, jnp.ones(())]
    clips = [fnn.clip_by_global_norm(1.0), fnn.optim.clip_by_norm(1.0), fnn.optim.adaptive_clip()]
    around = [fnn.averaged(fnn.adam(0.1)), fnn.keep_precision(fnn.adam(0.1), "master")]
    optimizers = [*ALL.values(), *clips, *around]

    @jax.jit
    def updates(tree):
        return [o.update(tree, o.init(tree), tree)[0] for o in optimizers]

    with jax.debug_nans(True):
        for tree in trees:
            for updated in updates(tree):
                chex.assert_trees_all_equal_shapes_and_dtypes(updated, tree)
    assert fnn.params.global_norm(trees[2]) == 0


# --- numbers of every kind ----------------------------------------------------------------------

NUMBERS = [(row.name, argument) for row in OPTIMIZERS if row.name != "nesterov" for argument in ["learning_rate", *row.arguments]]  # fmt: skip
MORE = [
    ("adam", "eps_root"), ("nadam", "momentum_decay"), ("momentum", "dampening"), ("rmsprop", "initial_scale"),
    ("rmsprop", "momentum"), ("adafactor", "decay"), ("adafactor", "eps"), ("adafactor", "clip"), ("muon", "decay"),
    ("muon", "weight_decay"), ("muon", "eps"), ("nadamw", "momentum_decay"), ("ademamix", "b3_warmup"),
    ("ademamix", "alpha_warmup"), ("schedule_free_sgd", "r"), ("schedule_free_adamw", "weight_lr_power"),
    ("prodigy", "b3"), ("prodigy", "growth_rate"), ("soap", "b1"), ("soap", "eps"), ("soap", "shampoo_beta"),
    ("soap", "weight_decay"), ("rprop", "learning_rate"), ("rprop", "shrink"), ("rprop", "grow"),
    ("rprop", "smallest"), ("rprop", "largest"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "argument"), NUMBERS + MORE)
def test_every_number_is_checked(rule, argument):
    make = getattr(fnn.optim, rule)

    def call(value):
        return make(**({"learning_rate": 0.1} | {argument: value}))

    for value in (np.nan, np.float32("nan"), -1.0, np.float64(-1), np.int8(-1), jnp.float32(-1)):
        with pytest.raises(ValueError, match=rf"{rule}: {argument} is (nan|-1)"):
            call(value)
    with pytest.raises(TypeError, match=rf"{rule}: {argument} is '0.1', expected a number"):
        call("0.1")


def test_numbers_of_numpy_are_pythons():
    kinds = {
        "python": lambda x: x,
        "float64": np.float64,
        "integer": lambda x: np.int64(x) if x == 1 else np.float64(x),
    }
    optimizers = {
        kind: [row.make(of(1), **{k: of(v) for k, v in row.arguments.items()}) for row in OPTIMIZERS]
        for kind, of in kinds.items()
    }  # fmt: skip
    steps = jax.jit(
        lambda g: jax.tree.map(
            lambda o: o.update(g, o.init(g), g)[0],
            optimizers,
            is_leaf=lambda o: isinstance(o, fnn.Optimizer),
        )
    )(jnp.array([0.5, -2.0]))
    chex.assert_trees_all_equal(steps["float64"], steps["python"])
    chex.assert_trees_all_equal(steps["integer"], steps["python"])


def test_counts_may_be_numpys():
    fnn.adafactor(0.1, smallest_factored=np.int64(4)).init(P)
    fnn.muon(0.1, iterations=np.int32(2), others=fnn.sgd(0.1)).init(P)
    with pytest.raises(TypeError, match=r"muon: iterations is 2\.5, expected a whole number"):
        fnn.muon(0.1, iterations=2.5)
    with pytest.raises(ValueError, match="adafactor: smallest_factored is 0, expected at least 1"):
        fnn.adafactor(0.1, smallest_factored=0)
    with pytest.raises(ValueError, match="gradually_pruned: every is 0, expected at least 1"):
        fnn.pruning.gradually_pruned(fnn.sgd(0.1), lambda count: 0.5, every=0)


# --- schedules ----------------------------------------------------------------------------------


def test_a_schedule_gives_one_number():
    for optimizer in (fnn.sgd(lambda count: jnp.ones(1)), fnn.optim.prodigy(lambda count: [1.0])):
        with pytest.raises(ValueError, match=r"(sgd|prodigy): the schedule learning_rate returned shape \(1,\), expected a scalar"):  # fmt: skip
            optimizer.init(P)
    optimizer = fnn.adamw(0.1, weight_decay=lambda count: None)
    with pytest.raises(ValueError, match="adamw: the schedule weight_decay returned None"):
        optimizer.update(P, optimizer.init(P), P)


def test_lengths_of_every_kind():
    run = schedules.Run(np.int64(10), np.int32(103), jnp.int32(16))
    kinds = (np.int64(1), np.uint8(1), jnp.int32(1), 1, np.float32(0.5), jnp.float32(0.5), 0.5)
    assert [run.steps(length) for length in kinds] == [1, 1, 1, 1, 35, 35, 35]
    assert run.steps(schedules.Epochs(np.float32(0.5))) == 4  # 7 steps an epoch
    line = schedules.warmup_cosine(run, 0.1, warmup=np.int64(1))
    assert [float(line(i)) for i in (0, 1)] == [0.0, pytest.approx(0.1)]


@pytest.mark.parametrize("length", [0, 0.04, 0.0, schedules.Epochs(0.04)])
def test_a_ramp_of_no_steps_is_at_its_end(length):
    run = schedules.Run(epochs=1, rows=10, batch_size=1)
    line = schedules.linear(run, 0.0, 1.0, length=length)
    assert [float(line(i)) for i in (0, 1, 9)] == [1, 1, 1]
    falls = schedules.warmup_cosine(run, 1.0, warmup=length)
    assert float(falls(0)) == 1
    cycle = schedules.one_cycle(run, 1.0, warmup=length)
    assert [float(cycle(i)) for i in (0, 10)] == [1, pytest.approx(4e-6)]
    assert float(schedules.steps(run, 1.0, factor=0.5, at=[length])(0)) == 0.5


def test_schedules_of_short_runs_end_where_they_say():
    for steps in (1, 2, 3):
        run = schedules.Run(1, steps, 1)
        assert float(schedules.cosine(run, 1.0, 0.25)(steps)) == 0.25
        assert float(schedules.linear(run, 1.0, 0.25)(steps)) == 0.25
        whole = schedules.one_cycle(run, 1.0, warmup=1.0)  # up over the run
        assert float(whole(0)) == pytest.approx(0.04)
        assert float(whole(steps)) == 1
        assert float(whole(steps + 1)) == pytest.approx(4e-6)


RUN = schedules.Run(10, 100, 10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: schedules.Run(2.5, 10, 1).steps(), TypeError, "Run: epochs is 2.5, expected a whole number >= 1"),
        (lambda: schedules.Run(2, 0, 1).steps(), ValueError, "Run: rows is 0, expected at least 1"),
        (lambda: RUN.steps(np.int64(-1)), ValueError, "Run.steps: length is -1, expected at least 0"),
        (lambda: RUN.steps(True), TypeError, "Run.steps: length is True, expected a whole number"),
        (lambda: RUN.steps(np.float64("nan")), ValueError, "Run.steps: length nan is no fraction of the run"),
        (lambda: RUN.steps("half"), ValueError, "Run.steps: length half is no fraction of the run"),
        (lambda: RUN.steps(schedules.Epochs(np.inf)), ValueError, "Epochs: number is inf"),
        (lambda: RUN.steps(schedules.Epochs(-1)), ValueError, "Epochs: number is -1"),
        (lambda: schedules.linear(RUN, -0.1), ValueError, "linear: start is -0.1, expected a number >= 0"),
        (lambda: schedules.cosine(RUN, np.nan), ValueError, "warmup_cosine: peak is nan"),
        (lambda: schedules.one_cycle(RUN, "0.1"), TypeError, "one_cycle: peak is '0.1', expected a number"),
        (lambda: schedules.steps(RUN, 0.1, factor=-1, at=[]), ValueError, "steps: factor is -1"),
        (lambda: schedules.constant(-1), ValueError, "constant: rate is -1"),
        (lambda: schedules.trapezoid(RUN, -0.1, warmup=1, decay=1), ValueError, "trapezoid: peak is -0.1, expected a number >= 0"),
        (lambda: schedules.trapezoid(RUN, 0.1, warmup=1, decay=1, shape="cosine"), ValueError, "trapezoid: shape is 'cosine', expected 'linear' or 'sqrt'"),
        (lambda: schedules.trapezoid(RUN, 0.1, warmup=0.6, decay=0.5), ValueError, "trapezoid: warmup and decay are 60 and 50 steps, expected at most the 100 steps of the run"),
        (lambda: schedules.inverse_square_root(RUN, 0.1, warmup=0), ValueError, "inverse_square_root: timescale is None without a warm-up, expected at least 1 step"),
        (lambda: schedules.inverse_square_root(RUN, 0.1, warmup=1, timescale=0), ValueError, "inverse_square_root: timescale is 0 steps, expected at least 1 step"),
        (lambda: schedules.inverse_square_root(RUN, np.nan, warmup=1), ValueError, "inverse_square_root: peak is nan"),
        # what is no optimizer
        (lambda: fnn.chain(fnn.clip_by_global_norm(1.0), fnn.adam), TypeError, "chain: adam is a function, expected an optimizer; call it, as in adam(1e-3)"),
        (lambda: fnn.by_path({"**": fnn.freeze}), TypeError, "by_path '**': freeze is a function, expected an optimizer; call it: freeze()"),
        (lambda: fnn.chain(fnn.clip_by_global_norm), TypeError, "call it: clip_by_global_norm(max_norm)"),
        (lambda: fnn.by_path({"**": fnn.sgd}), TypeError, "by_path '**': sgd is a function, expected an optimizer; call"),
        (lambda: fnn.averaged(fnn.sgd), TypeError, "averaged: sgd is a function"),
        (lambda: fnn.keep_precision(fnn.sgd, "master"), TypeError, "keep_precision: sgd is a function"),
        (lambda: fnn.muon(0.1, others=fnn.sgd), TypeError, "muon: sgd is a function"),
        (lambda: fnn.pruning.pruned(fnn.sgd, True), TypeError, "pruned: sgd is a function"),
        (lambda: fnn.pruning.gradually_pruned(0.1, 0.5), TypeError, "gradually_pruned: float is no pair of init and update"),
        (lambda: fnn.adam(None), TypeError, "adam: learning_rate is None, expected a number or a schedule"),
        (lambda: fnn.adam(0.1, b1=None), TypeError, "adam: b1 is None, expected a number"),
        # masks
        (lambda: fnn.adamw(0.1, mask="**/w"), TypeError, "adamw: mask has '**/w', expected None, a tree of bools or a function params -> bools, such as"),
        (lambda: fnn.lion(0.1, mask={"w": "yes"}), TypeError, "lion: mask has 'yes'"),
        (lambda: fnn.optim.add_weight_decay(0.1, "**/w"), TypeError, "add_weight_decay: mask has '**/w'"),
        (lambda: update(fnn.adamw(0.1, mask=lambda p: "**/w")), TypeError, "adamw: mask has '**/w'"),
        (lambda: update(fnn.adamw(0.1, mask={"v": True})), ValueError, "adamw: mask has the structure"),
        (lambda: fnn.pruning.magnitude_mask(P, 0.5, prunable="**/w"), TypeError, "prunable has '**/w'"),
        # paths that collide
        (lambda: fnn.params.paths({"a": {"b": 1.0}, "a/b": 2.0}), ValueError, "paths: two leaves have the path 'a/b'"),
        (lambda: fnn.by_path({"**": fnn.sgd(0.1)}).init({"a": {"b": 1.0}, "a/b": 2.0}), ValueError, "paths: two leaves have the path 'a/b'"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def update(optimizer, params=P):
    return optimizer.update(params, optimizer.init(params), params)[0]


# --- what decays --------------------------------------------------------------------------------


def test_what_decays_by_default():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    keys = jax.random.split(jax.random.key(0))
    model = {"norm": eqx.nn.LayerNorm(3), "linear": eqx.nn.Linear(3, 2, key=keys[0])}
    decays = {path for path, yes in fnn.params.paths(fnn.params.decayed(model)).items() if yes}
    assert decays == {"linear/weight"}
    ones = jnp.ones
    assert (
        fnn.params.decayed([(ones((2, 3)), ones(3)), (ones((3, 1)), ones(1))])
        == [(True, False)] * 2
    )
    keras = {
        "kernel": ones((2, 3)),
        "bias": ones(3),
        "gamma": ones(3),
        "beta": ones(3),
        "t": ones(()),
    }
    assert [name for name, yes in fnn.params.decayed(keras).items() if yes] == ["kernel"]
    named = {"w": ones(3), "b": ones((2, 3)), "scale": ones((2, 3)), "offset": ones((2, 3))}
    assert [name for name, yes in fnn.params.decayed(named).items() if yes] == ["w"]
    assert fnn.params.decayed(ones(3)) is True  # as under optax.flatten
    updates = update(fnn.adamw(1.0, weight_decay=0.5), [(jnp.zeros((2, 3)), jnp.zeros(3))])
    chex.assert_tree_all_finite(updates)


def test_a_mask_may_be_an_equinox_model():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    mask = jax.tree.map(lambda p: p.ndim == 2, params)  # callable, as every model is
    zeros = jax.tree.map(jnp.zeros_like, params)
    for optimizer in (fnn.adamw(1.0, weight_decay=0.5, mask=mask), fnn.optim.add_weight_decay(0.5, mask)):  # fmt: skip
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        for decays, u, p in zip(*map(jax.tree.leaves, (mask, updates, params)), strict=True):
            np.testing.assert_allclose(abs(u), abs(0.5 * p) if decays else 0)
    other = jax.tree.map(
        lambda _: True, eqx.filter(eqx.nn.Linear(3, 2, key=jax.random.key(0)), eqx.is_array)
    )
    optimizer = fnn.adamw(0.1, mask=other)
    with pytest.raises(ValueError, match="adamw: mask has the structure"):
        optimizer.update(zeros, optimizer.init(params), params)


# --- what the state says ------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [row.name for row in OPTIMIZERS])
def test_optax_finds_one_learning_rate_and_sets_it(rule, standard_promotion):
    optimizer = optax.inject_hyperparams(getattr(fnn.optim, rule))(learning_rate=0.5)
    state = optimizer.init(P)
    assert float(optax.tree.get(state, "learning_rate")) == 0.5
    halved, _ = optimizer.update(P, optax.tree.set(state, learning_rate=0.25), P)
    whole, _ = optimizer.update(P, state, P)
    chex.assert_trees_all_close(jax.tree.map(lambda u: 2 * u, halved), whole, rtol=1e-6)
    with pytest.raises(KeyError):
        optax.tree.set(getattr(fnn.optim, rule)(0.1).init(P), learning_rate=0.5)


def test_moments_have_optaxs_names():
    names = {
        fnn.adam(0.1, amsgrad="raw"): "mu nu nu_max",
        fnn.momentum(0.1): "trace",
        fnn.lion(0.1): "mu",
        fnn.adagrad(0.1): "sum_of_squares",
        fnn.rmsprop(0.1, centered=True, momentum=0.9): "nu mu trace",
        fnn.adafactor(0.1): "v_row v_col v",
        fnn.optim.ademamix(0.1): "m1 m2 nu",
        fnn.optim.schedule_free_adamw(0.1): "x z weight_sum max_rate nu",
        fnn.optim.prodigy(): "mu nu grad_sum first numerator distance",
        fnn.optim.soap(0.1): "mu nu gram basis",
    }
    for optimizer, expected in names.items():
        state = jax.eval_shape(optimizer.init, P)
        assert set(state) == {"count", "last_rate", *expected.split()}


def test_init_takes_shapes_as_optaxs_does():
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), P)
    rules = ALL | {"scheduled": fnn.nadam(0.1, momentum_decay=1.0)}
    for name, optimizer in rules.items():
        zeros = jax.tree.map(jnp.zeros_like, P)  # of which some states have copies
        chex.assert_trees_all_equal(
            optimizer.init(shapes), optimizer.init(zeros), custom_message=name
        )


# --- what does not move -------------------------------------------------------------------------


def test_moving_leaves_out_what_is_frozen():
    adam, params = fnn.adam(0.1), P | {"head": {"w": jnp.ones(2)}}
    grouped = fnn.by_path({"w": fnn.freeze(), "b": fnn.chain(fnn.freeze()), "**": adam})
    for optimizer in (
        grouped,
        fnn.chain(fnn.clip_by_global_norm(1.0), fnn.averaged(grouped)),
        optax.chain(fnn.keep_precision(grouped, "master")),
        optax.partition({"f": fnn.freeze(), "t": adam}, {"w": "f", "b": "f", "head": "t"}),
    ):
        state = jax.eval_shape(optimizer.init, params)
        moves = fnn.optim.moving(params, state)
        assert fnn.params.paths(moves).keys() == {"head/w"}
        assert fnn.params.global_norm(moves) == pytest.approx(2**0.5)
    assert fnn.optim.moving(params, adam.init(params)) is params


# --- a rule of one's own ------------------------------------------------------------------------


def test_the_example_in_lifts_docstring_is_a_rule():
    code = re.search(r"::\n\n((?: {4}.*\n|\n)+)", inspect.getdoc(fnn.optim.lift))
    scope = {"fnn": fnn, "jnp": jnp}
    exec(textwrap.dedent(code.group(1)), scope)
    updates = update(scope["optimizer"])
    chex.assert_trees_all_close(updates, jax.tree.map(lambda p: jnp.full_like(p, -1e-3), P))
    # The second gradient turns, but the average does not yet.
    grads = jax.tree.map(lambda p: jnp.stack([p - 2, (p - 2) / -2]), P)
    expected = jax.tree.map(
        lambda p: np.stack([p - 1e-3 * np.sign(p - 2), p - 2e-3 * np.sign(p - 2)]), P
    )
    found = follow_each({"ours": scope["optimizer"]}, P, grads)["ours"]
    chex.assert_trees_all_close(found, expected)
