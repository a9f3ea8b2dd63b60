"""A stack of dense layers with an activation and dropout between them."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import relu
from jax.typing import ArrayLike, DTypeLike

from fnn._base import AnyArray, Params, as_count, check_key, fold_in
from fnn.nn._dense import affine, dense_init
from fnn.nn._dropout import dropout
from fnn.nn._initializers import Initializer, glorot_uniform


def mlp_init(
    key: Array,
    sizes: Sequence[int],
    *,
    w_init: Initializer = glorot_uniform,
    bias: bool = True,
    dtype: DTypeLike = float,
) -> Params:
    """Parameters of `mlp`, from sizes (in_dim, *hidden_dims, out_dim): {"layer_0": dense's, ...}.

    The numbers are padded with zeros, so the order of the names is the order of the layers. Layer
    i draws from fold_in(key, i), so one more layer at the end does not change the layers before.
    """
    check_key("mlp_init", key)
    if len(sizes) < 2:
        raise ValueError(f"mlp_init: sizes are {tuple(sizes)}, expected (in_dim, ..., out_dim)")
    sizes = [as_count("mlp_init", "sizes", size, least=0) for size in sizes]
    width = len(str(len(sizes) - 2))
    return {
        f"layer_{i:0{width}}": dense_init(
            jax.random.fold_in(key, i), *pair, w_init=w_init, bias=bias, dtype=dtype
        )
        for i, pair in enumerate(itertools.pairwise(sizes))
    }


def mlp(
    params: Params,
    x: AnyArray,
    *,
    activation: Callable[[Array], Array] = relu,
    key: Array | None = None,
    rate: ArrayLike = 0.0,
) -> Array:
    """[..., in_dim] -> [..., out_dim]: dense layers with `activation` and dropout between.

    The last layer is linear: the outputs are logits, or predictions. Layer i draws its dropout from
    fold_in(key, i); keys [batch] from `row_keys` draw each row with its own key.
    """
    from jax.ad_checkpoint import checkpoint_name  # `import jax` does not load it

    *hidden, last = names_of_layers("mlp", params)
    if key is not None:
        check_key("mlp", key, len(x) if jnp.ndim(x) else 0)
    for i, name in enumerate(hidden):
        with jax.named_scope(name):
            x = activation(affine(f"mlp {name}", params[name], x))
            x = checkpoint_name(x, name)  # for fnn.diagnostics.capture; adds nothing to the program
            x = dropout(None if key is None else fold_in(key, i), x, rate)
    with jax.named_scope(last):
        return affine(f"mlp {last}", params[last], x)


def names_of_layers(name: str, params: Params) -> list[str]:
    """The names in their order, in which layer_2 comes before layer_10."""
    if not isinstance(params, Mapping) or not params:
        came = "empty" if isinstance(params, Mapping) else f"of type {type(params).__name__}"
        raise TypeError(f"{name}: params is {came}, expected a dict of layers, {{'layer_0': ...}}")

    def place(name: str) -> list[str | int]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]

    return sorted(params, key=place)
