"""Scalars that travel through a run as one array come out as they went in."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fnn.training._scan import pack, scan_packed


def test_every_scalar_comes_out_bit_for_bit():
    numbers = {
        "int": [-(2**31), -1, 0, 65_535, 65_536, 2**31 - 1],
        "uint": [0, 2**16, 2**31, 2**32 - 1],
        "float": [np.nan, -0.0, np.inf, 1e-45, 3e38],
    }
    carry: Any = {
        "int": [jnp.int32(n) for n in numbers["int"]],
        "uint": [jnp.uint32(n) for n in numbers["uint"]],
        "float": [jnp.float32(x) for x in numbers["float"]],
        "others": (jnp.array(True), jnp.float16(0.5), jnp.arange(3), jax.random.key(0)),
    }

    def one(carry, index):
        return carry, {"n": carry["int"][0], "x": carry["float"][1], "tree": {"a": index}}

    packed = jax.jit(lambda carry: scan_packed(one, pack(carry), jnp.arange(2)))(carry)
    after, metrics = (each.tree() for each in packed)
    for name, dtype in (("int", np.int32), ("uint", np.uint32), ("float", np.float32)):
        came = np.array(after[name])
        assert came.dtype == dtype
        sent = np.array(carry[name])
        np.testing.assert_array_equal(came.view(np.uint32), sent.view(np.uint32))
    chex.assert_trees_all_equal(after["others"][:3], carry["others"][:3])
    assert after["others"][3] == carry["others"][3]
    np.testing.assert_array_equal(metrics["n"], [-(2**31)] * 2)
    assert np.signbit(metrics["x"]).all()
    np.testing.assert_array_equal(metrics["tree"]["a"], [0, 1])


def test_a_hundred_scalars_are_stacked():
    carry: Any = [jnp.float32(i) for i in range(100)]
    after, _ = scan_packed(lambda c, i: ([x + 1 for x in c], {}), pack(carry), jnp.arange(2))
    np.testing.assert_array_equal(after.tree(), np.arange(100) + 2)
