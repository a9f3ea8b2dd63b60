import chex
import jax
import jax.numpy as jnp
import optax

import fnn
from tests.optimizer_paths import GRADS, PARAMS, runs_optax


@runs_optax
def test_keywords_reach_whoever_takes_them():
    """polyak_sgd needs the loss. No transformation of fnn needs it, and each passes it on."""
    inner = fnn.by_path({"**/b": fnn.adam(0.1), "**": optax.polyak_sgd()})
    around = [
        fnn.chain(fnn.optim.clip_by_value(9.0), fnn.clip_by_global_norm(9.0), optax.polyak_sgd()),
        fnn.chain(inner),
        fnn.keep_precision(inner, "master"),
    ]

    @jax.jit
    def updates(value):
        return [o.update(GRADS, o.init(PARAMS), PARAMS, value=value)[0] for o in around]

    for small, large in zip(updates(0.1), updates(0.2), strict=True):
        chex.assert_trees_all_close(large["layer"]["w"], 2 * small["layer"]["w"], rtol=1e-5)
    for optimizer in (
        fnn.sgd(0.1),
        fnn.adam(0.1),
        fnn.freeze(),
        fnn.muon(0.1, others=fnn.adam(0.1)),
    ):
        state = jax.eval_shape(optimizer.init, PARAMS)
        jax.eval_shape(optimizer.update, GRADS, state, PARAMS, value=jnp.float32(0.1))


def test_whole_numbers_are_added_exactly():
    """2^24 + 1 is no float32. The gradient of a whole number is float0, as JAX has it."""
    n, w = jnp.int32(2**24 + 1), jnp.float32(1.0)
    assert fnn.apply_updates({"n": n}, {"n": jnp.int32(1)})["n"] == 2**24 + 2
    params = {"n": n, "w": w}
    grads = jax.grad(lambda p: 2 * p["w"], allow_int=True)(params)
    optimizer = fnn.by_path({"n": fnn.freeze(), "w": fnn.sgd(0.25)})
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    chex.assert_trees_all_equal(fnn.apply_updates(params, updates), {"n": n, "w": w / 2})
