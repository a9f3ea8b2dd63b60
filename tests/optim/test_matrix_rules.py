import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.nn.params import paths
from tests.nets import KEY, LABELS, X, linear_init, linear_loss_fn
from tests.optimizer_paths import GRADS, PARAMS, follow_each, runs_optax


def test_muon_takes_matrices_and_leaves_the_rest():
    optimizer, adam = fnn.muon(0.02, others=fnn.adam(0.1)), fnn.adam(0.1)
    grads, params = GRADS["layer"], PARAMS["layer"]

    @jax.jit
    def both(grads, params):
        alone, _ = adam.update(grads["b"], adam.init(params["b"]))
        return optimizer.update(grads, optimizer.init(params), params), alone

    (updates, state), alone = both(grads, params)
    assert set(paths(state["matrices"]["mu"])) == {"w"}
    chex.assert_trees_all_equal(updates["b"], alone)
    with pytest.raises(
        ValueError, match=r"muon: parameter 'layer/b' has shape \(2,\), expected a matrix"
    ):
        fnn.muon(0.02).init(PARAMS)


@pytest.mark.parametrize(
    "optimizer",
    [
        fnn.muon(0.02, others=fnn.adamw(1e-3)),
        fnn.adafactor(0.02, smallest_factored=3),
    ],
    ids=["muon", "adafactor"],
)
def test_matrix_optimizers_train_and_keep_their_avals(optimizer):
    step = fnn.make_train_step(linear_loss_fn, optimizer)

    @jax.jit
    def run(params, zeros):
        def one(ts, _):
            after, metrics = step(ts, (X, LABELS), KEY)
            assert jax.tree.map(jax.typeof, ts) == jax.tree.map(jax.typeof, after)
            return after, metrics["loss"]

        ts = step.init(params)
        losses = jax.lax.scan(one, ts, length=35)[1]
        return losses, optimizer.update(zeros, ts.opt_state, zeros)[0]

    losses, still = run(linear_init(), jax.tree.map(jnp.zeros_like, linear_init()))
    assert losses[-1] < 0.9 * losses[0]
    assert all((u == 0).all() for u in jax.tree.leaves(still))


@runs_optax
def test_adafactor_of_matrices_is_optaxs():
    rng = np.random.default_rng(0)
    shapes = {"wide": (6, 9), "tall": (3, 9, 6), "small": (2, 9), "b": (7,)}
    cases = {
        "defaults": {},
        "changed": {"scale_by_parameters": False, "clip": 0.1, "decay": 0.5},
    }

    def all_of(adafactor):
        return {name: adafactor(0.1, smallest_factored=4, **c) for name, c in cases.items()}

    with jax.enable_x64(True):
        params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=(20, *p.shape))), params)
        ours = follow_each(all_of(fnn.adafactor), params, grads)
        theirs = follow_each(all_of(fnn.optax_wrappers.adafactor), params, grads)
        chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-7)
        state = jax.eval_shape(fnn.adafactor(0.1, smallest_factored=4).init, params)
    assert state["v_row"]["wide"].size + state["v_col"]["wide"].size == 15
    assert state["v"]["wide"].size == 0
    assert state["v"]["small"].shape == (2, 9)


def test_adafactor_after_30_million_steps_and_at_the_ends_of_its_numbers():
    """1 - (1 - 3e-8) is 0 or 6e-8 in float32; a second moment that is a mean moved no more."""
    optimizer, count = fnn.adafactor(0.1, decay=1.0), 3 * 10**7

    @jax.jit
    def second_moment(p, v):
        state = optimizer.init(p) | {"count": jnp.int32(count - 1), "v": v}
        return optimizer.update(1e4 * p, state, p)[1]["v"]

    found = second_moment(jnp.ones(2), jnp.zeros(2))
    np.testing.assert_allclose(found, 1e8 / count, rtol=1e-6)

    @jax.jit
    def derivatives(g, numbers):
        def moved(g, numbers):
            rule = fnn.adafactor(0.1, smallest_factored=2, **numbers)
            state = rule.init(jnp.ones_like(g))
            for _ in range(2):
                updates, state = rule.update(g, state, jnp.ones_like(g))
            return updates.sum()

        return jax.value_and_grad(moved, (0, 1))(g, numbers)

    for g in (jnp.zeros((2, 2)), jnp.zeros(3), jnp.array([[0.0, 0.0], [1.0, 2.0]])):
        for clip in (0.0, 1.0):
            found = derivatives(g, {"eps": 0.0, "clip": clip, "decay": 0.8})
            chex.assert_tree_all_finite(found)
            assert found[0] == 0 or (clip and g.any())


def test_orthogonalize_makes_singular_values_one():
    x = np.random.default_rng(0).normal(size=(30, 12))
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    orthogonalize = jax.jit(fnn.optim.orthogonalize)
    for scale in (1e-20, 1.0, 1e20):
        o = np.asarray(orthogonalize(jnp.asarray(scale * x, jnp.float32)))
        values = np.linalg.svd(o, compute_uv=False)
        assert (values > 0.6).all()
        assert (values < 1.3).all()
        cosine = (o * (u @ vt)).sum() / np.linalg.norm(o) / np.sqrt(12)
        assert cosine > 0.98
    assert (orthogonalize(jnp.zeros((30, 12))) == 0).all()
    wide = np.asarray(orthogonalize(jnp.asarray(x.T, jnp.float32)))
    np.testing.assert_allclose(wide.T, orthogonalize(jnp.asarray(x, jnp.float32)), atol=1e-5)
