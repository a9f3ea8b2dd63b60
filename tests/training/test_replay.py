import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.nets import KEY

ROWS = np.arange(1.0, 11.0, dtype=np.float32)
OPTIONS = {"epochs": 4, "batch_size": 4}
BAD = 7  # the step that meets it is number 1 of epoch 2, or another: the test asks the run


def poisoned(policy):
    """A step that is bad from its third epoch on, where it meets row 7."""

    def loss(params, batch, key):
        return params * batch + jnp.log(jnp.where((batch == BAD) & (params < 0.5), -1.0, 1.0))

    return fnn.make_train_step(loss, fnn.sgd(0.02), nonfinite=policy)


def test_the_bad_step_is_taken_again_and_others_are_what_they_were():
    step = poisoned("raise")
    start = step.init(jnp.ones(()))
    last, history = jax.jit(lambda ts: fnn.fit(step, ts, ROWS, KEY, **OPTIONS))(start)
    at = int(last.first_bad.step)
    assert at > 3
    for ts in (start, last):  # under "raise" nothing after the bad step has changed the last state
        with pytest.raises(FloatingPointError, match="nan"):
            fnn.replay(step, ts, ROWS, KEY, at=at, batch_size=4)
    ok, metrics = fnn.replay(step, start, ROWS, KEY, at=2, batch_size=4)
    assert int(ok.step) == 3
    np.testing.assert_allclose(metrics["loss"], history["loss"][0, 2], rtol=1e-6)
    with pytest.raises(ValueError, match="replay: ts has 3 steps behind it, expected at most 2"):
        fnn.replay(step, ok, ROWS, KEY, at=2, batch_size=4)
