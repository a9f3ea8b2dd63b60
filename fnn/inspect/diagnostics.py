"""Activations, gradients and updates of a net, layer by layer.

``jax.ad_checkpoint.checkpoint_name(x, "hidden")`` marks an activation: it gives a value a name and
adds nothing to the program. `mlp` marks its hidden layers, `attention` its weights. `capture` reads
the marks. These functions are pure and may run inside the compiled program; `observe` runs them at
every step. `overfit_one_batch` is a smoke test of a net, its loss and its optimizer.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fnn._base import AnyArray, Data, Metrics, Params, global_norm, paths, wide
from fnn.inspect._overfit import Overfit, overfit_one_batch
from fnn.training import Step, TrainState, with_update

if TYPE_CHECKING:
    from jax.extend.core import Jaxpr, JaxprEqn

__all__ = [
    "Overfit",
    "activation_stats",
    "capture",
    "gradient_norms",
    "inner_jaxprs",
    "observe",
    "overfit_one_batch",
    "update_ratios",
]

# Equations that run another program once, without a condition.
CALLS = ("jit", "pjit", "closed_call", "checkpoint", "remat", "remat2")


def activation_stats(
    x: AnyArray, *, bounds: tuple[float, float] = (-0.99, 0.99)
) -> dict[str, Array]:
    """[..., units] -> {"mean", "std", "dead", "saturated"}, scalars.

    - "mean", "std": over all elements. The variance is divided by n, not n - 1.
    - "dead": the share of units that are 0 in every row, as after a dead ReLU.
    - "saturated": the share of elements outside `bounds`. The default, |x| > 0.99, is for tanh;
      use (0.01, 0.99) for a sigmoid. For a ReLU this share means nothing.
    """
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"activation_stats: x has shape {x.shape}, expected [..., units]")
    x = wide(x)
    dead = (x == 0).all(axis=tuple(range(x.ndim - 1)))
    outside = (x < bounds[0]) | (x > bounds[1])
    shares = {"dead": _share(dead, x.dtype), "saturated": _share(outside, x.dtype)}
    return {"mean": jnp.mean(x), "std": jnp.std(x), **shares}


def capture(
    apply: Callable[..., Any], measure: Callable[[Array], Any] = activation_stats
) -> Callable[..., tuple[dict[str, Any], Any]]:
    """captured(*args) -> ({name: measure(activation)}, apply(*args)), in the order of execution.

    The activations are the values that `apply` marks. If a name is marked more than once, its
    values are numbered: "layer_0", "layer_0 (2)".

    - `apply` may contain jit, vmap, grad and ``jax.checkpoint``.
    - ValueError if a mark is inside a scan, a loop or a branch, or if `apply` marks nothing.
    - Each call traces `apply` again, so jit the returned function.
    - All arguments are trees of arrays. Bind other arguments first, with functools.partial.
    """

    def captured(*args: Any) -> tuple[dict[str, Any], Any]:
        closed, out = jax.make_jaxpr(apply, return_shape=True)(*args)
        marked: list[tuple[str, Array]] = []
        leaves = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args), marked)
        if not marked:
            raise ValueError(
                "capture: apply marks no activation; mark an activation with"
                " jax.ad_checkpoint.checkpoint_name(x, name)"
            )
        names = _numbered([name for name, _ in marked])
        stats = {name: measure(x) for name, (_, x) in zip(names, marked, strict=True)}
        return stats, jax.tree.structure(out).unflatten(leaves)

    return captured


def gradient_norms(grads: Params) -> dict[str, Array]:
    """{layer: Euclidean norm of its gradients}, scalars, in the order of ``jax.tree.leaves``.

    A layer is the path of a leaf without its last name: ``hidden`` has hidden/w and hidden/b. A
    leaf without a layer counts as a layer. Gradients vanish if the norms shrink from the last
    layer to the first, and explode if the norms grow.
    """
    return {layer: global_norm(leaves) for layer, leaves in _by_layer(grads).items()}


def update_ratios(params: Params, updates: Params) -> dict[str, Array]:
    """{layer: norm of its updates / norm of its params}; layers as in `gradient_norms`.

    Updates are new params - old params, or the updates that an optimizer returns. A ratio is 0 if
    the updates are 0, and inf if the params are all 0 and the updates are not.
    """
    ours, theirs = jax.tree.structure(params), jax.tree.structure(updates)
    if ours != theirs:
        raise ValueError(f"update_ratios: params are {ours}, but updates are {theirs}")
    steps = gradient_norms(updates)
    return {layer: _ratio(steps[layer], size) for layer, size in gradient_norms(params).items()}


def observe(step: Step, measure: Callable[[TrainState, TrainState, Data], Metrics]) -> Step:
    """The same step with measure(ts, new_ts, batch), a dict, among its metrics.

    The history of `fit` then has the measurements of every step. What the step computes and its
    policy stay the same. ValueError if a measurement has the name of one of the step's metrics.
    """

    def observed(
        ts: TrainState, batch: Data, key: Array, mask: Array | None = None
    ) -> tuple[TrainState, Metrics]:
        new, metrics = step(ts, batch, key, mask)
        measured = measure(ts, new, batch)
        twice = sorted(metrics.keys() & measured.keys())
        if twice:
            raise ValueError(
                f"observe: measure returned {twice}, names that the step's metrics have"
            )
        return new, metrics | measured

    return with_update(step, observed)


def inner_jaxprs(eqn: "JaxprEqn") -> "list[Jaxpr]":
    """The programs that an equation runs: the body of a jit, the branches of a cond, else none."""
    from jax.extend.core import ClosedJaxpr, Jaxpr

    values: list[Any] = []
    for value in eqn.params.values():
        values.extend(value if isinstance(value, (tuple, list)) else [value])
    values = [v.jaxpr if isinstance(v, ClosedJaxpr) else v for v in values]
    return [v for v in values if isinstance(v, Jaxpr)]


def _run(
    jaxpr: "Jaxpr", consts: Sequence[Any], args: Sequence[Any], marked: list[tuple[str, Array]]
) -> list[Any]:
    """The results of the program; the marked values are added to `marked`."""
    from jax.extend.core import ClosedJaxpr, Literal

    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        args = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name == "name":
            marked.append((eqn.params["name"], args[0]))
            results = args
        elif _holds_marks(eqn):
            body = eqn.params["jaxpr"]
            consts = body.consts if isinstance(body, ClosedJaxpr) else ()
            results = _run(inner_jaxprs(eqn)[0], consts, args, marked)
        else:
            results = _run_equation(eqn, args, jaxpr.debug_info)
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _run_equation(eqn: "JaxprEqn", args: list[Any], debug_info: Any) -> list[Any]:
    from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

    given = {a: x for a, x in zip(eqn.invars, args, strict=True) if not isinstance(a, Literal)}
    names = {"arg_names": ("",) * len(given), "result_paths": ("",) * len(eqn.outvars)}
    debug_info = debug_info._replace(**names)
    alone = Jaxpr((), [*given], eqn.outvars, [eqn], eqn.effects, debug_info)
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*given.values())


def _holds_marks(eqn: "JaxprEqn") -> bool:
    inside = [name for body in inner_jaxprs(eqn) for name in _marks(body)]
    if inside and eqn.primitive.name not in CALLS:
        raise ValueError(
            f"capture: {inside[0]!r} is marked inside a {eqn.primitive.name}, where it has"
            " more than one value or none; return it from there, and mark the returned value"
        )
    return bool(inside)


def _marks(jaxpr: "Jaxpr") -> Iterator[str]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name":
            yield eqn.params["name"]
        for body in inner_jaxprs(eqn):
            yield from _marks(body)


def _numbered(names: list[str]) -> list[str]:
    times = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if n == 1 else f"{name} ({n})" for name, n in zip(names, times, strict=True)]


def _by_layer(tree: Params) -> dict[str, list[Array]]:
    layers: dict[str, list[Array]] = {}
    for path, leaf in paths(tree).items():
        layers.setdefault(path.rpartition("/")[0] or path, []).append(leaf)
    return layers


def _ratio(update: Array, size: Array) -> Array:
    ratio = update.astype(size.dtype) / jnp.where(size == 0, 1, size)
    return jnp.where((size == 0) & (update > 0), jnp.inf, ratio)


def _share(which: ArrayLike, dtype: Any) -> Array:
    return jnp.mean(jnp.asarray(which, dtype))
