"""Write checkpoint_v1.safetensors: a checkpoint of format version 1, which has to stay loadable.

    pip install jax==0.10.2 optax==0.2.8 safetensors==0.8.0 && python -m tests.golden.make_checkpoint

It was written once, by the fnn that brought format 1, and is never written again: a change of the
format gets a number and a file of its own. `tree` is what it holds, without a random draw in it.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnn

FILE = Path(__file__).with_name("checkpoint_v1.safetensors")
EXTRA = {"epoch": 7, "optimizer": "adamw(0.001)", "sizes": [3, 2], "best": None}


def tree():
    w = np.arange(6, dtype=np.float32).reshape(3, 2) / np.float32(7)  # XLA may round otherwise
    params = {"hidden": {"w": jnp.array(w), "b": jnp.zeros(2)}}
    opt_state = ({"count": jnp.int32(9)}, (), {"m": jnp.full((3, 2), -0.5, jnp.bfloat16)})
    return {
        "train_state": {"params": params, "opt_state": opt_state, "step": jnp.int32(9)},
        "keys": [jax.random.key(1, impl="threefry2x32"), jax.random.key(2, impl="rbg")],
        "history": np.array([[0.5, np.nan], [np.inf, -0.0]]),
        "float8": jnp.array([1, -2], jnp.float8_e4m3b11fnuz),
        "none": np.zeros((0, 3), np.uint8),
        "patience": 4,
        "best_loss": float("inf"),
        "stopped": False,
    }


if __name__ == "__main__":
    fnn.checkpoint.save(FILE, tree(), EXTRA)
