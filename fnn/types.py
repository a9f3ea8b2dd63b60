"""Names for what is passed around; the types of trees say what to expect, not what is checked."""

from typing import Any

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
Params = Any  # a nested dict of arrays; the optimizers take any pytree
State = Any  # likewise: what a forward pass updates but the gradient does not
Data = Any  # any pytree of arrays that share their first axis, the rows
Metrics = dict[str, jax.Array]
