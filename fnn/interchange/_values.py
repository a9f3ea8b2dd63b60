"""The values of the arrays, in and out, and the table of what does not fit."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fnn._base import Params, State, paths
from fnn.interchange._names import Bound, Kinds, Names, bind
from fnn.interchange._rules import Library

Arrays = dict[str, np.ndarray]  # {name: array}


class Difference(NamedTuple):
    """A row of the table of differences."""

    path: str
    here: str
    name: str
    expected: str
    came: str


def read(
    function: str,
    library: Library,
    source: Mapping[str, Any],
    params: Params,
    names: Names,
    state: State | None,
    kinds: Kinds,
) -> Any:
    """Params with the values of `source`, {name there: array}; (params, state) if state is given.

    ValueError with the table of all differences, if there are any.
    """
    if callable(params) and jax.tree.leaves(params) == [params]:
        said = "params is a function, expected its shapes: jax.eval_shape(init, key)"
        raise TypeError(f"{function}: {said}")
    found = {name: host(function, name, x) for name, x in source.items()}
    trees = [params] if state is None else [params, state]
    plans = bind(function, library, trees, names, kinds)
    every = [rule for plan in plans for rule in plan]
    refuse(function, [*_differences(every, found), *_left_over(every, found)])
    new = [_filled(function, tree, plan, found) for tree, plan in zip(trees, plans, strict=True)]
    return new[0] if state is None else tuple(new)


def write(
    function: str,
    library: Library,
    params: Params,
    names: Names,
    state: State | None,
    kinds: Kinds,
) -> tuple[Arrays, Arrays]:
    """{name there: array} of params, and of state. ValueError if two would have one name."""
    plans = bind(function, library, [params, () if state is None else state], names, kinds)
    of_params, of_state = (_out(function, plan) for plan in plans)
    if both := of_params.keys() & of_state.keys():
        raise ValueError(f"{function}: params and state would both have the names {sorted(both)}")
    return of_params, of_state


def _is_weight(x: Any) -> bool:
    """Whether x is an array of floating point. Counters and random keys are no weights."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def weights_in(tree: Any) -> dict[str, Any]:
    """{path: leaf} of the leaves that are arrays of floating point."""
    return {path: x for path, x in paths(tree).items() if _is_weight(x)}


def host(function: str, name: str, x: Any) -> np.ndarray:
    """The array on the host. Tensors of PyTorch are detached."""
    if isinstance(x, Tracer):
        raise TypeError(f"{function}: {name} is traced, expected values; call it outside jit")
    try:
        array = _on_host(x) if hasattr(x, "shape") else None
    except (TypeError, RuntimeError) as error:  # of a sparse, quantised or meta tensor, or a key
        came = f"{type(x).__name__} of dtype {x.dtype}"
        raise TypeError(
            f"{function}: {name} is a {came}, expected an array that NumPy takes: {error}"
        ) from None
    if array is None or array.dtype == object:
        raise TypeError(f"{function}: {name} is of type {type(x).__name__}, expected an array")
    return array


def _on_host(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        # NumPy takes no such tensors.
        narrow = str(x.dtype).startswith(("torch.bfloat16", "torch.float8"))
        x = x.float() if narrow else x
    return np.asarray(x)


def _filled(
    function: str, params: Params, plan: Sequence[Bound], found: Mapping[str, np.ndarray]
) -> Params:
    values: dict[str, Any] = {}
    for rule, ours, theirs in plan:
        arrays = rule.into(*(found[name] for name in theirs))
        for (path, leaf), array in zip(ours.items(), arrays, strict=True):
            held = cast(function, path, np.asarray(array), leaf.dtype)
            values[path] = _of_jax(held.reshape(leaf.shape))
    leaves = [values[path] for path in paths(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def cast(function: str, path: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """The array in this dtype; ValueError if more than digits would be lost."""
    with np.errstate(over="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
        held = array.astype(dtype)
    if jnp.issubdtype(array.dtype, jnp.complexfloating) and not np.iscomplexobj(held):
        kept = np.imag(array) == 0
    elif jnp.issubdtype(dtype, jnp.inexact):
        kept = np.isfinite(held) | ~np.isfinite(array)
    else:
        kept = held == array
    if not kept.all():
        came = f"{array.dtype} with the value {array[~kept][0]}"
        raise ValueError(f"{function}: {path} came as {came}, which {dtype} cannot hold")
    return held


def _of_jax(array: np.ndarray) -> Any:
    """JAX's array; NumPy's, if JAX would round it."""
    exact = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
    return jnp.asarray(array) if exact else array


def _out(function: str, plan: Sequence[Bound]) -> Arrays:
    values: Arrays = {}
    for rule, ours, theirs in plan:
        arrays = [host(function, path, leaf) for path, leaf in ours.items()]
        try:
            made = rule.out(*arrays)
        except ValueError as error:
            raise ValueError(f"{function}: {' and '.join(ours)} {error}") from None
        for name, array in zip(theirs, made, strict=True):
            if name in values:
                raise ValueError(f"{function}: two arrays would have the name {name!r}")
            values[name] = np.array(array, order="C")  # in memory of its own
    return values


# --- differences --------------------------------------------------------------------------------


def _differences(plan: Sequence[Bound], found: Mapping[str, np.ndarray]) -> Iterator[Difference]:
    for rule, ours, theirs in plan:
        here = " ".join(_shape(leaf) for leaf in ours.values())
        # Zeros without memory, because only the shapes of what comes out are needed.
        blank = [np.broadcast_to(np.float32(0), leaf.shape) for leaf in ours.values()]
        for name, expected in zip(theirs, rule.out(*blank), strict=True):
            came = _shape(found[name]) if name in found else "missing"
            if came != _shape(expected):
                came += f"; {rule.note}" if rule.note else ""
                yield Difference(" ".join(ours), here, name, _shape(expected), came)


def _left_over(plan: Sequence[Bound], found: Mapping[str, np.ndarray]) -> Iterator[Difference]:
    used = {name for rule in plan for name in rule.theirs}
    rest = {name: x for name, x in found.items() if name not in used and _is_weight(x)}
    return (Difference("", "", name, "nothing", _shape(x)) for name, x in rest.items())


def check_places(function: str, values: Arrays, model: Mapping[str, Any]) -> None:
    """ValueError with the table of differences unless the model has these names and shapes."""
    here = {name: _shape(x) for name, x in values.items()}
    there = {name: _shape(x) for name, x in model.items()}
    rows = [
        Difference("", here.get(name, "missing"), name, there.get(name, "no such array"), "")
        for name in dict.fromkeys([*there, *here])
        if here.get(name) != there.get(name)
    ]
    refuse(function, rows)


def refuse(function: str, rows: Sequence[Difference]) -> None:
    """ValueError with the table of these differences, if there are any."""
    if not rows:
        return
    table = [Difference("path here", "shape here", "name there", "expected", "came"), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(c.ljust(n) for c, n in zip(row, widths, strict=True)) for row in table)
    text = "\n  ".join(line.rstrip() for line in lines)
    raise ValueError(f"{function}: differences, {len(rows)}:\n  {text}")


def _shape(x: Any) -> str:
    return str(list(x.shape))
