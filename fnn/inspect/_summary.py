"""The table of a net: its parameters and, with the net's function, where they are used.

Everything is read from the traced program. Nothing is computed, and no device is used.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from fnn._base import Params, check_patterns, matching, path_matches, paths, resolve_mask
from fnn.inspect.diagnostics import inner_jaxprs

if TYPE_CHECKING:
    from jax.extend.core import Jaxpr, JaxprEqn
    from rich.table import Table

Shape = tuple[int, ...]
Origin = frozenset[int] | None  # the leaves that a value depends on; None if it depends on data too


def summary(
    params: Params | Callable[[Any], Params],
    apply: Callable[..., Any] | None = None,
    *inputs: Any,
    groups: Sequence[str] = (),
    mask: Any = None,
    frozen: Sequence[str] = (),
) -> "Table":
    """A table for ``rich.print``: path, shape, dtype, number of parameters, whether it decays.

    The first argument is params, or init(key) -> params. ``summary(init, apply, x)`` lists the
    leaves in the order in which ``apply(params, x)`` uses them, and has more columns: bytes,
    whether a leaf is trained, and the output. The output is the shape of the first value
    that depends on the leaf and on data, or "unused". The caption has FLOPs and bytes
    accessed, as XLA counts them before it optimises; the body of a loop counts once. Params and
    inputs may be ``jax.ShapeDtypeStruct``.

    - `groups`: patterns as in `by_path`; a column has the first pattern that matches the leaf.
    - `mask`: the leaves that decay, as in `adamw`; by default `decayed`.
    - `frozen`: patterns; a leaf that matches is not trained and does not decay. ValueError if a
      pattern matches no leaf.
    """
    if apply is not None and not callable(apply):
        raise TypeError(f"summary: apply is {type(apply).__name__}, expected a function")
    if callable(params):
        params = jax.eval_shape(params, jax.eval_shape(jax.random.key, 0))
    leaves = paths(params)
    outputs = {} if apply is None else first_uses(apply, params, *inputs)
    order = [*outputs, *(path for path in leaves if path not in outputs)]
    columns: dict[str, dict[str, str]] = {
        "path": {path: path for path in leaves},
        "shape": {path: str(list(leaf.shape)) for path, leaf in leaves.items()},
        "dtype": {path: str(leaf.dtype) for path, leaf in leaves.items()},
        "parameters": {path: f"{math.prod(leaf.shape):,}" for path, leaf in leaves.items()},
    }
    if apply is not None:
        columns["bytes"] = {path: f"{_bytes(leaf):,}" for path, leaf in leaves.items()}
    columns |= _treatment(params, groups, mask, frozen, trained=apply is not None or bool(frozen))
    if apply is not None:
        columns["output"] = {
            path: str(list(outputs[path])) if path in outputs else "unused" for path in leaves
        }
    return _table(columns, order, _caption(params, apply, inputs))


def first_uses(apply: Callable[..., Any], params: Params, *inputs: Any) -> dict[str, Shape]:
    """{path: shape of the first value made of that leaf and of data}, in the order of execution.

    For a bias this is the shape of x @ w + b. For a leaf that is used inside a scan it is the shape
    in one step. Leaves that `apply` does not use are left out.
    """
    names = list(paths(params))
    closed = jax.make_jaxpr(apply)(params, *inputs)
    data = len(closed.jaxpr.invars) - len(names)
    origins = [*(frozenset([i]) for i in range(len(names))), *[None] * data]
    found: dict[int, Any] = {}
    results = _follow(closed.jaxpr, origins, found)
    for origin, out in zip(results, closed.jaxpr.outvars, strict=True):
        _note(found, [origin], out)
    return {names[i]: tuple(value.aval.shape) for i, value in found.items()}


def _follow(jaxpr: "Jaxpr", origins: Sequence[Origin], found: dict[int, Any]) -> list[Origin]:
    """The origins of the results; first values that depend on leaf and data go into `found`."""
    from jax.extend.core import Literal

    known: dict[Any, Origin] = dict(zip(jaxpr.invars, origins, strict=True))

    def origin(atom: Any) -> Origin:
        return frozenset() if isinstance(atom, Literal) else known.get(atom, frozenset())

    for eqn in jaxpr.eqns:
        results = _follow_equation(eqn, [origin(atom) for atom in eqn.invars], found)
        known |= dict(zip(eqn.outvars, results, strict=True))
    return [origin(atom) for atom in jaxpr.outvars]


def _follow_equation(
    eqn: "JaxprEqn", origins: list[Origin], found: dict[int, Any]
) -> Sequence[Origin]:
    if None not in origins:
        whole = frozenset[int]().union(*(o for o in origins if o is not None))
        return [whole] * len(eqn.outvars)
    bodies = inner_jaxprs(eqn)
    sizes = len(eqn.invars), len(eqn.outvars)
    # The body of a jit, a scan or a custom derivative has the inputs and outputs of the equation.
    if len(bodies) == 1 and (len(bodies[0].invars), len(bodies[0].outvars)) == sizes:
        return _follow(bodies[0], origins, found)
    if eqn.primitive.name == "reshape" and _axes(eqn.invars[0]) < _axes(eqn.outvars[0]):
        # The product of a layer merges all axes but the last; this reshape restores them.
        same = [leaf for leaf, value in found.items() if value is eqn.invars[0]]
        found |= dict.fromkeys(same, eqn.outvars[0])
    elif eqn.outvars:
        _note(found, origins, eqn.outvars[0])
    return [None] * len(eqn.outvars)


def _note(found: dict[int, Any], origins: Sequence[Origin], value: Any) -> None:
    for origin in origins:
        for leaf in sorted(origin or ()):
            found.setdefault(leaf, value)


def _axes(atom: Any) -> int:
    return atom.aval.ndim


def _treatment(
    params: Params, groups: Sequence[str], mask: Any, frozen: Sequence[str], *, trained: bool
) -> dict[str, dict[str, str]]:
    check_patterns("summary: frozen", params, frozen)
    still = dict(zip(paths(params), jax.tree.leaves(matching(params, *frozen)), strict=True))
    decays = zip(still, jax.tree.leaves(resolve_mask(mask, params)), strict=True)
    columns = {"decays": {path: _yes(decay and not still[path]) for path, decay in decays}}
    if trained:
        columns = {"trainable": {path: _yes(not fixed) for path, fixed in still.items()}} | columns
    if groups:
        columns["group"] = {
            path: next((g for g in groups if path_matches(g, path)), "none") for path in still
        }
    return columns


def _caption(params: Params, apply: Callable[..., Any] | None, inputs: Sequence[Any]) -> str:
    leaves = jax.tree.leaves(params)
    numbers = f"{sum(math.prod(leaf.shape) for leaf in leaves):,} parameters"
    if apply is None:
        return numbers
    cost = jax.jit(apply).lower(params, *inputs).cost_analysis() or {}
    flops, moved = (
        f"{cost[name]:,.0f}" if name in cost else "unknown" for name in ("flops", "bytes accessed")
    )
    size = sum(_bytes(leaf) for leaf in leaves)
    return f"{numbers}, {size:,} bytes\n{flops} FLOPs, {moved} bytes accessed in one call"


def _table(columns: dict[str, dict[str, str]], order: Sequence[str], caption: str) -> "Table":
    from rich.table import Table

    table = Table(caption=caption, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in ("parameters", "bytes") else "left")
    for path in order:
        table.add_row(*(cells[path] for cells in columns.values()))
    return table


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _yes(whether: Any) -> str:
    return "yes" if whether else "no"
