"""A run that is trained an epoch at a time, and the functions of it that `sweep` compiles.

Between two calls a run is a dict of plain arrays, which the host stacks, saves and hands out again.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fnn._base import kept_with, path_of, paths, weakly, wide_dtype
from fnn.checkpoint import fingerprint_program
from fnn.search._points import Point
from fnn.training import (
    EarlyStopping,
    FirstBad,
    Measured,
    Progress,
    progress_init,
    run_epochs,
)

Keep = Callable[[Any], Any]
TO_RUN = "epochs to run"  # as "array 0" no name of an argument, so none of a point
TAKEN = ("history", "epochs", "best_epoch", "last", "best")  # names of a population's values


class Trainable(NamedTuple):
    """A run that is trained an epoch at a time: a pair of pure functions.

    - ``init(key, **point) -> state``: any tree of arrays, such as ``step.init(params)``.
    - ``update(state, key, **point) -> (state, metrics)``: one epoch. Metrics are a dict of scalars.

    Both receive the key of the run, the same in every epoch. What differs from epoch to epoch comes
    from the state, as ``fnn.fit(..., epochs=1)`` takes it from the step counter.
    """

    init: Callable[..., Any]
    update: Callable[..., tuple[Any, Any]]


class Held(NamedTuple):
    """A state as training's loop looks at it: the whole state is what the best epoch keeps."""

    params: Any

    @property
    def state(self) -> Any:
        """Nothing beside the whole state."""
        return ()

    @property
    def first_bad(self) -> FirstBad:
        """That of a train state; any other state has no bad step."""
        found = getattr(self.params, "first_bad", None)
        none = jnp.full((), -1, jnp.int32)
        return found if isinstance(found, FirstBad) else FirstBad(none, none, none)


def begun(
    trainable: Trainable, static: Point, stop: EarlyStopping | None, key: Array, numbers: Point
) -> Progress:
    """The progress before the first epoch."""
    return _before(stop, jax.tree.map(jnp.asarray, trainable.init(key, **static, **numbers)))


def _before(stop: EarlyStopping | None, state: Any) -> Progress:
    progress = progress_init(Held(state), stop)  # pyright: ignore[reportArgumentType]
    none: Any = ()  # without a rule there is no best epoch
    return progress._replace(best=none) if stop is None else progress


def gone_on(
    trainable: Trainable,
    static: Point,
    stop: EarlyStopping | None,
    progress: Progress,
    n: Array,
    capacity: int,
    key: Array,
    numbers: Point,
) -> tuple[Progress, dict[str, Array]]:
    """The progress `n` epochs later, or where the run stopped; its metrics, each [capacity]."""

    def epoch(held: Any) -> Any:
        state, metrics = trainable.update(held.params, key, **static, **numbers)
        metrics = {path: jnp.asarray(value) for path, value in paths(metrics).items()}
        return Held(state), Measured({}, metrics, None)

    progress, _, means = run_epochs(epoch, progress, stop, n, capacity)
    return progress, means


def kept_of(keep: Keep | None, progress: Progress) -> dict[str, Any]:
    """What `keep` gives of the last state, and of the best; the whole states without `keep`."""
    states = {"last": progress.last.params}
    if progress.best:
        states["best"] = progress.best.params
    return {name: state if keep is None else keep(state) for name, state in states.items()}


class Layout(NamedTuple):
    """How a tree lies in plain arrays, by name. A typed key is its numbers."""

    structure: Any
    impls: tuple[str | None, ...]  # the generator of each leaf that is a typed key

    @classmethod
    def of(cls, tree: Any) -> "Layout":
        """The layout of trees like this."""
        impls: list[str | None] = []
        # Traced, because jax.random.key_impl takes arrays and tracers, but not shapes.
        jax.eval_shape(lambda leaves: impls.extend(map(_impl, leaves)), jax.tree.leaves(tree))
        return cls(jax.tree.structure(tree), tuple(impls))

    @property
    def names(self) -> list[str]:
        """The names of the arrays."""
        return [f"array {i}" for i in range(len(self.impls))]

    def arrays(self, tree: Any) -> dict[str, Array]:
        """The arrays of a tree."""
        leaves = zip(self.names, self.impls, jax.tree.leaves(tree), strict=True)
        return {
            name: jax.random.key_data(a) if impl else jnp.asarray(a) for name, impl, a in leaves
        }

    def tree(self, arrays: Mapping[str, Any]) -> Any:
        """The tree of these arrays, among others."""
        leaves = [
            jax.random.wrap_key_data(arrays[name], impl=impl) if impl else arrays[name]
            for name, impl in zip(self.names, self.impls, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)


def _impl(leaf: Any) -> str | None:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return str(jax.random.key_impl(leaf)) if is_key else None


class Functions(NamedTuple):
    """The runs of one program as functions of plain arrays, and the shapes of these."""

    start: Callable[..., Any]  # (key, **numbers) -> arrays of the progress
    rung: Callable[..., Any]  # (key, **numbers, **arrays, epochs to run) -> what follows
    kept: Callable[..., Any]  # (key, **arrays) -> arrays of what is kept
    alone: Callable[[int], Any]  # capacity -> (key, numbers, epochs) -> progress, metrics
    progress: dict[str, Any]  # shapes of the arrays of the progress
    keeps: dict[str, Any]  # shapes of the arrays of what is kept
    kept_like: Any  # a tree of shapes like what is kept
    metrics: dict[str, Any]  # the dtypes of the histories by name
    marks: dict[str, str]  # of what init, update and keep compute


def functions_of(
    trainable: Trainable,
    static: Point,
    stop: EarlyStopping | None,
    keep: Keep | None,
    every: int,
    key: Any,
    numbers: Point,
) -> Functions:
    """The functions for runs of these static values; `key` and `numbers` are shapes.

    They are the same functions at each call, so `sweep` compiles them once; and they do not hold
    those of the user, so they are freed with these. If what these close over has changed, they are
    others.
    """
    with jax.disable_jit(False):
        state, metrics, marks = _checked(trainable, static, key, numbers)
        progress = jax.eval_shape(partial(_before, stop), state)
        mark, kept = _traced("keep", partial(kept_of, keep or _nothing), progress)
    layout, keeps = Layout.of(progress), Layout.of(kept)
    types = tuple(type(value) for value in static.values())  # True, 1 and 1.0 are equal
    settings = tuple(marks.values()), tuple(static.items()), types, stop
    make = partial(_compilable, trainable, static, stop, every, layout)
    start, rung = kept_with(tuple(trainable), ("race", every, layout, *settings), make)
    make = partial(_choosing, keep or _nothing, layout, keeps)
    choose = kept_with((keep or _nothing,), ("race", layout, keeps, mark), make)

    def alone(capacity: int) -> Callable[..., Any]:
        make = partial(_alone, trainable, static, stop, capacity)
        return kept_with(tuple(trainable), ("race alone", capacity, *settings), make)

    return Functions(
        start,
        rung,
        choose,
        alone,
        jax.eval_shape(layout.arrays, progress),
        jax.eval_shape(keeps.arrays, kept),
        kept,
        metrics,
        marks | {"keep": mark},
    )


def _nothing(state: Any) -> tuple[()]:
    return ()


def _compilable(
    trainable: Trainable, static: Point, stop: EarlyStopping | None, every: int, layout: Layout
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    pair = _weak_pair(trainable)

    def start(key: Array, **numbers: Any) -> Any:
        return layout.arrays(begun(pair(), static, stop, key, numbers))

    def rung(key: Array, **given: Any) -> Any:
        progress, n = layout.tree(given), given[TO_RUN]
        numbers = {name: v for name, v in given.items() if name.isidentifier()}
        progress, means = gone_on(pair(), static, stop, progress, n, every, key, numbers)
        best = progress.best.epoch if progress.best else jnp.full((), -1, jnp.int32)
        return {
            "arrays": layout.arrays(progress),
            "epochs": progress.epochs,
            "stopped": progress.stopped,
            "best_epoch": best,
            "means": means,
        }

    return start, rung


def _choosing(keep: Keep, layout: Layout, keeps: Layout) -> Callable[..., Any]:
    keep_of = weakly(keep)

    def kept(key: Array, **given: Any) -> Any:
        return keeps.arrays(kept_of(keep_of(), layout.tree(given)))

    return kept


def _alone(
    trainable: Trainable, static: Point, stop: EarlyStopping | None, capacity: int
) -> Callable[..., Any]:
    pair = _weak_pair(trainable)

    def run(key: Array, numbers: Point, n: Array) -> Any:
        progress = begun(pair(), static, stop, key, numbers)
        return gone_on(pair(), static, stop, progress, n, capacity, key, numbers)

    return jax.jit(run)


def _weak_pair(trainable: Trainable) -> Callable[[], Trainable]:
    init, update = map(weakly, trainable)
    return lambda: Trainable(init(), update())


# --- what can be known before anything runs -------------------------------------------------------


def as_trainable(trainable: Any, keep: Any) -> Trainable:
    """The pair, of functions."""
    if not isinstance(trainable, tuple) or len(trainable) != 2:
        raise TypeError(
            f"race: trainable is {trainable!r:.60}, expected a pair of functions,"
            " Trainable(init, update)"
        )
    pair = Trainable(*trainable)
    for name, function in (*pair._asdict().items(), ("keep", keep)):
        if not callable(function) and (name, function) != ("keep", None):
            raise TypeError(f"race: {name} is a {type(function).__name__}, expected a function")
    return pair


def _checked(
    trainable: Trainable, static: Point, key: Any, numbers: Point
) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """The shapes of a state, the dtypes of the metrics, and the marks of both functions.

    An error unless `update` fits to what `init` makes.
    """
    _check_names("init", trainable.init, ("key",), static | numbers)
    _check_names("update", trainable.update, ("state", "key"), static | numbers)

    def init(key: Array, numbers: Point) -> Any:
        return jax.tree.map(jnp.asarray, trainable.init(key, **static, **numbers))

    def update(state: Any, key: Array, numbers: Point) -> Any:
        returned = trainable.update(state, key, **static, **numbers)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise TypeError(
                f"race: update returned a {type(returned).__name__}, expected (state, metrics)"
            )
        return jax.tree.map(jnp.asarray, returned)

    of_init, state = _traced("init", init, key, numbers)
    of_update, (after, metrics) = _traced("update", update, state, key, numbers)
    _check_state(state, after)
    return state, _dtypes_of(metrics), {"init": of_init, "update": of_update}


def _traced(what: str, function: Callable[..., Any], *given: Any) -> tuple[str, Any]:
    """The mark of what the function computes, and the shapes of what it returns."""
    found: list[Any] = []

    def probe(*given: Any) -> Any:
        result = function(*given)
        found.append(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), result))
        return jax.tree.leaves(result)

    try:
        return fingerprint_program(probe, *given), found[0]
    except jax.errors.UnexpectedTracerError as error:
        raise TypeError(
            f"race: {what} is not a pure function: it keeps a traced value of one call and uses it"
            " in another"
        ) from error
    except TypeError as error:  # also JAX's ConcretizationTypeError
        text = str(error)
        if text.startswith("race") or ("Tracer" not in text and "traced" not in text):
            raise
        raise TypeError(
            f"race: {what} needs the value of an argument while it is traced; a number that shapes"
            " the program, such as a size, is varied as fnn.search.Static(...)"
            f" ({text.splitlines()[0]:.200})"
        ) from error


def said_shapes(tree: Any) -> str:
    """The shapes or dtypes in a tree, as a message says them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return ", ".join(f"{path_of(keys)} {_said(leaf)}" for keys, leaf in leaves)


def _said(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else str(leaf)


def _check_names(
    what: str, function: Callable[..., Any], first: tuple[str, ...], point: Point
) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin, which does not tell
        return
    try:
        signature.bind(*first, **point)
    except TypeError as error:
        raise TypeError(
            f"race: {what} takes {signature}, expected ({', '.join([*first, *point])}): {error}"
        ) from None


def _check_state(before: Any, after: Any) -> None:
    def said(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {path_of(keys): _said(a) for keys, a in leaves}

    was, now = said(before), said(after)
    odd = [path for path in was | now if was.get(path) != now.get(path)]
    if odd:
        there, expected = (shapes.get(odd[0], "nothing") for shapes in (now, was))
        raise TypeError(
            f"race: update returned a state with {there} at {odd[0] or 'its root'}, expected"
            f" {expected}, as in the state that it was given"
        )
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise TypeError(
            f"race: update returned a state that is a {type(after).__name__} of another structure,"
            f" expected that of the {type(before).__name__} that it was given"
        )


def _dtypes_of(metrics: Any) -> dict[str, Any]:
    if not isinstance(metrics, dict) or not metrics:
        came = "an empty dict" if metrics == {} else f"a {type(metrics).__name__}"
        raise TypeError(
            f'race: update returned as metrics {came}, expected such as {{"loss": ...}}'
        )
    found = paths(metrics)
    for name, value in found.items():
        if value.shape != () or jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise ValueError(
                f"race: the metric {name} is {_said(value)}, expected a real"
                " scalar; those of one epoch of fnn.fit are jax.tree.map(jnp.mean, history)"
            )
        if name.split("/")[0] in TAKEN:
            raise ValueError(
                f"race: a metric is called {name}, expected another name than {', '.join(TAKEN)}"
            )
    return {name: wide_dtype(value) for name, value in found.items()}
