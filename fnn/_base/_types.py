"""Names of types. Those of trees say what is expected; they are not checked."""

from typing import Any

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
Params = Any  # a nested dict of arrays; the optimizers take any pytree
State = Any  # a pytree that the forward pass updates, as batch norm's running statistics
Data = Any  # a pytree of arrays that share their first axis, the rows
Metrics = dict[str, jax.Array]
