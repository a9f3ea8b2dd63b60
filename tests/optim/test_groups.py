import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.nn.params import paths
from tests.nets import KEY, LABELS, X, loss_fn
from tests.optimizer_paths import PARAMS


def first_update(optimizer, grads, params):
    return jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(grads, params)


def test_each_group_has_its_optimizer():
    optimizer = fnn.by_path({"layer_0/*": fnn.freeze(), "**/b": fnn.sgd(0.5), "**": fnn.adam(0.1)})
    params = jax.jit(lambda: fnn.mlp_init(KEY, (4, 8, 3)))()
    params["layer_0"]["b"] = params["layer_0"]["b"].at[0].set(-0.0)
    step = fnn.make_train_step(loss_fn, optimizer)
    ts = jax.jit(step.init)(params)
    assert set(paths(ts.opt_state["**"]["mu"])) == {"layer_1/w"}  # no other leaf has moments
    assert jax.tree.leaves(ts.opt_state["layer_0/*"]) == []  # no memory

    @jax.jit
    def train(ts):
        def one(ts, _):
            ts, metrics = step(ts, (X, LABELS), KEY)
            return ts, metrics["loss"]

        return jax.lax.scan(one, ts, length=21)

    after, losses = train(ts)
    for old, new in zip(
        jax.tree.leaves(params["layer_0"]), jax.tree.leaves(after.params["layer_0"]), strict=True
    ):
        assert np.asarray(old).tobytes() == np.asarray(new).tobytes()
    assert (after.params["layer_1"]["w"] != params["layer_1"]["w"]).any()
    assert losses[-1] < losses[0]


def test_the_first_update_is_that_of_each_rule_alone():
    optimizer = fnn.by_path({"**/b": fnn.sgd(0.5), "**": fnn.adam(0.1)})
    grads = jax.tree.map(lambda p: 0.1 * p, PARAMS)
    updates = first_update(optimizer, grads, PARAMS)["layer"]
    chex.assert_trees_all_equal(updates["b"], -0.5 * grads["layer"]["b"])
    alone = first_update(fnn.adam(0.1), grads["layer"]["w"], PARAMS["layer"]["w"])
    chex.assert_trees_all_equal(updates["w"], alone)


def test_decay_in_groups_knows_the_leaves_names():
    optimizer = fnn.by_path({"**": fnn.adamw(1.0, weight_decay=0.5)})
    updates = first_update(optimizer, jax.tree.map(jnp.zeros_like, PARAMS), PARAMS)
    chex.assert_trees_all_equal(
        updates, {"layer": {"w": -0.5 * PARAMS["layer"]["w"], "b": jnp.zeros(2)}}
    )


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["layer/w"], r"by_path: no pattern of \['layer/w'\] matches parameter 'layer/b'"),
        (["**", "layer/w"], r"by_path: pattern 'layer/w' gets no parameter: earlier patterns take layer/w; put it before them$"),
        (["**/b", "**", "layer/**"], r"pattern 'layer/\*\*' gets no parameter: earlier patterns take layer/b, layer/w; put"),
        (["**/c", "**"], r"by_path: pattern '\*\*/c' matches no parameter of \['layer/b', 'layer/w'\]$"),
        (["layer", "**"], r"by_path: pattern 'layer' matches no parameter of .*; for all of a layer write 'layer/\*\*'$"),
    ],
)  # fmt: skip
def test_groups_are_complete(patterns, message):
    with pytest.raises(ValueError, match=message):
        fnn.by_path(dict.fromkeys(patterns, fnn.sgd(0.1))).init(PARAMS)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("**/b", "b", True),
        ("**/b", "a/c/b", True),
        ("**/b", "a/cb", False),
        ("*/b", "a/b", True),
        ("*/b", "a/c/b", False),
        ("a/**", "a/c/b", True),
        ("a/**", "ab/c", False),
        ("layer_*/w", "layer_12/w", True),
        ("**", "a/b", True),
        ("a.c", "abc", False),
    ],
)  # fmt: skip
def test_patterns(pattern, path, matches):
    assert fnn.params.path_matches(pattern, path) == matches


def test_masks_by_pattern():
    mask = fnn.params.matching(PARAMS, "**/w", "norm/*")
    assert mask == {"layer": {"w": True, "b": False}}
    optimizer = fnn.adamw(1.0, weight_decay=0.5, mask=lambda p: fnn.params.matching(p, "**/b"))
    updates = first_update(optimizer, jax.tree.map(jnp.zeros_like, PARAMS), PARAMS)
    chex.assert_trees_all_equal(updates["layer"]["b"], -0.5 * PARAMS["layer"]["b"])
    assert (updates["layer"]["w"] == 0).all()
