"""The properties that every layer of fnn has, checked for a layer of one's own."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from fnn._base import NEEDS_VALUES, Params, as_count, paths
from fnn.inspect._pairs import WORDS, Pair, compare, fail, is_floating

Init = Callable[..., Params]
Apply = Callable[[Params, Array], Any]
Mode = Literal["forward", "reverse"]

DTYPES = ("float16", "bfloat16", "float32", "float64")
ROWS = 5  # seldom another axis's length
STEP = 1e-6  # of a finite difference


def check_layer(
    init: Init,
    apply: Apply,
    shape: Sequence[int],
    *,
    key: Array | None = None,
    row_by_row: bool = True,
    modes: Sequence[Mode] = ("forward", "reverse"),
    dtypes: Sequence[DTypeLike] = DTYPES,
) -> None:
    """init(key) -> params, apply(params, x [5, *shape]) -> y -> None, or an AssertionError.

    For the tests of your own layer, or of a whole net::

        def test_my_layer():
            fnn.check_layer(lambda key: my_init(key, 4, 3), my_layer, (4,))

    `shape` is that of one example. `y` is an array or a tree of arrays with the rows first. The
    error names the property, the leaf and the two values. The properties, in this order:

    - params: a tree of arrays. Real numbers, not Python's: those would be weakly typed.
    - purity: `init` and `apply` give the same bits in a second call, change none of their arguments
      and keep no traced value.
    - one trace: `apply` is traced once, also for other values.
    - shape: `y` has a row for each row of `x`, and is finite.
    - dtype: `y` has the dtype of params and x, and about the values of float64. If `init` has an
      argument `dtype`, the params have that dtype.
    - jit, vmap over params, scan: the same values as without them.
    - vmap over rows: a row's output does not depend on the other rows.
    - derivatives: in each of `modes` and along each leaf, the central finite difference in float64,
      to a relative 1e-5. Numbers up to 0.1 are added to the params first, since zeros hide errors.

    `key`: the key of `init`, by default ``jax.random.key(0)``.
    `row_by_row`: False if rows see each other, as in batch norm's training. Bind a key or other
    arguments before: ``partial(my_layer, train=True)``.
    `modes`: ("reverse",) for a layer with ``jax.custom_vjp``, ("forward",) for one with a loop of
    unknown length.
    `dtypes`: those that the layer takes. Derivatives are checked in float64 always: a layer that
    computes in float32 there has differences that are rounding alone.
    """
    key = jax.random.key(0) if key is None else key
    if not isinstance(shape, Sequence):
        raise TypeError(f"check_layer: shape is {shape!r}, expected that of an example, as (4,)")
    shape = tuple(as_count("check_layer", "shape", n, 0) for n in shape)
    _check_options(modes, dtypes)
    params = _checked_params(init, key)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(ROWS, *shape)), jnp.result_type(float))
    _check_traces(apply, params, x)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        members = [jax.tree.map(partial(_moved, rng), params) for _ in range(2)]
        x = jnp.asarray(rng.normal(size=(ROWS, *shape)), jnp.float64)
        y = _check_purity(apply, members[0], x)
        _check_rows(x, y)
        _check_dtypes_of_init(init, key, dtypes)
        alone = _stacked([y, apply(members[1], x)])
        _compare_all(apply, members, x, alone, row_by_row, modes, dtypes)


def _check_options(modes: Sequence[str], dtypes: Sequence[DTypeLike]) -> None:
    for mode in modes:
        if mode not in ("forward", "reverse"):
            raise ValueError(f"check_layer: modes has {mode!r}, expected 'forward' or 'reverse'")
    if isinstance(dtypes, str) or not isinstance(dtypes, Sequence):
        raise TypeError(f"check_layer: dtypes is {dtypes!r}, expected several, as {DTYPES}")
    for dtype in dtypes:
        if jnp.dtype(dtype) not in map(jnp.dtype, DTYPES):
            raise ValueError(f"check_layer: dtypes has {dtype!r}, expected some of {DTYPES}")


# --- params, purity, traces -----------------------------------------------------------------------


def _check_init(init: Any) -> None:
    said = "init takes a key alone: lambda key: my_init(key, 4, 3)"
    if not callable(init):
        raise TypeError(
            f"check_layer: init is a {type(init).__name__}, expected a function; {said}"
        )
    try:
        known = inspect.signature(init)
    except ValueError:  # a function without a signature
        return
    try:
        known.bind(None)
    except TypeError as error:
        raise TypeError(f"check_layer: {said}, but for {_named(init)}{known} {error}") from None


def _named(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _with_a_dtype(leaf: Array) -> str:
    """How to make an array like this, with a dtype."""
    shape = "()" if leaf.ndim == 0 else str(leaf.shape[0] if leaf.ndim == 1 else leaf.shape)
    first = leaf.ravel()[0].item() if leaf.size else 0
    return f"jnp.full({shape}, {first:.6g}, jnp.{leaf.dtype})"


def _checked_params(init: Init, key: Array) -> Params:
    _check_init(init)
    params, again = init(key), init(key)
    for path, leaf in paths(params).items():
        if not isinstance(leaf, Array):
            came = type(leaf).__name__
            fail("params", f"{path or 'the leaf'} is of type {came}, expected a jax.Array")
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            fail("params", f"{path or 'the leaf'} is {leaf.dtype}, expected real numbers")
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            fail("params", f"{path or 'the leaf'} is a random key, expected real numbers")
        if leaf.weak_type:
            fail(
                "params",
                f"{path or 'the leaf'} is a weakly typed {leaf.dtype}; write"
                f" {_with_a_dtype(leaf)}. A weak type changes at the first update, and the step"
                " compiles again",
            )
    if jax.tree.structure(params) != jax.tree.structure(again):
        came = f"{jax.tree.structure(again)} in a second call, {jax.tree.structure(params)} in the"
        fail("purity", f"the params of init are {came} first")
    compare("purity", (again, params), of="of init ")
    return params


def _check_traces(apply: Apply, params: Params, x: Array) -> None:
    traces = []

    def counted(params: Params, x: Array) -> Any:
        traces.append(1)
        return apply(params, x)

    jitted = jax.jit(counted)
    try:
        with jax.checking_leaks():
            for factor in (1, 2):  # other values
                jitted.lower(jax.tree.map(partial(_times, factor), params), x)
    except NEEDS_VALUES as error:
        said = "apply needs values while it is traced: it may use jax.numpy, but not NumPy, if"
        raise AssertionError(f"check_layer: one trace: {said} or float()") from error
    except Exception as error:
        if "Leaked trace" not in str(error):
            raise
        said = "apply keeps a traced value in a list, an attribute or a global"
        raise AssertionError(f"check_layer: purity: {said}") from error
    if len(traces) > 1:
        fail("one trace", f"apply is traced {len(traces)} times for params of the same shapes")


def _times(factor: int, leaf: Array) -> Array:
    return leaf * jnp.asarray(factor, leaf.dtype)  # a mask stays one of bools


def _check_purity(apply: Apply, params: Params, x: Array) -> Any:
    """The output of `apply`, operation by operation."""
    given = jax.tree.map(lambda leaf: leaf, params)  # containers of its own
    y = apply(given, x)
    same = jax.tree.structure(given) == jax.tree.structure(params)
    if not same or any(map(_is_other, *map(jax.tree.leaves, (given, params)))):
        came = f"{sorted(paths(given))} after the call, {sorted(paths(params))} before"
        fail("purity", f"apply changes its params: {came}")
    compare("purity", (apply(params, x), y))
    return y


def _is_other(a: Any, b: Any) -> bool:
    return a is not b


def _check_rows(x: Array, y: Any) -> None:
    for path, leaf in paths(y).items():
        if jnp.shape(leaf)[:1] != (ROWS,):
            fail("shape", f"{path or 'y'} has shape {jnp.shape(leaf)} for x {x.shape}")
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.isfinite(leaf).all():
            fail("shape", f"{path or 'y'} is not finite everywhere, for normal x {x.shape}")


# --- dtypes --------------------------------------------------------------------------------------


def _check_dtypes_of_init(init: Init, key: Array, dtypes: Sequence[DTypeLike]) -> None:
    for dtype in dtypes if _takes_dtype(init) else ():
        own = jax.eval_shape(partial(init, dtype=dtype), key)
        _check_dtype(own, dtype, "the leaf", f"by init(key, dtype={jnp.dtype(dtype)})")


def _check_dtype(tree: Any, dtype: DTypeLike, alone: str, when: str) -> None:
    for path, leaf in paths(tree).items():
        if is_floating(leaf) and leaf.dtype != dtype:
            fail("dtype", f"{path or alone} is {leaf.dtype} {when}, expected {jnp.dtype(dtype)}")


def _takes_dtype(init: Init) -> bool:
    try:
        known = inspect.signature(init).parameters.values()
    except ValueError:  # a function without a signature
        return False
    return any(p.name == "dtype" or p.kind is p.VAR_KEYWORD for p in known)


def _cast(dtype: DTypeLike, leaf: Array) -> Array:
    return leaf.astype(dtype) if is_floating(leaf) else leaf


def _moved(rng: np.random.Generator, leaf: Array) -> Array:
    """The leaf in float64, plus numbers from 0 to 0.1: what has to be positive stays positive."""
    if not is_floating(leaf):
        return leaf
    return leaf.astype(jnp.float64) + jnp.asarray(rng.uniform(0, 0.1, leaf.shape))


# --- values, all of them by one program: compiling is what takes the time -------------------------


def _compare_all(
    apply: Apply,
    members: list[Params],
    x: Array,
    alone: Any,
    row_by_row: bool,
    modes: Sequence[Mode],
    dtypes: Sequence[DTypeLike],
) -> None:
    @jax.jit
    def pairs_of(members: list[Params], x: Array, alone: Any) -> dict[str, Pair]:
        y = jax.tree.map(lambda leaf: leaf[0], alone)
        found = _transformed(apply, members, x, alone)
        if row_by_row:
            alone_rows = jax.vmap(lambda row: apply(members[0], row[None]))(x)
            found["vmap over rows"] = jax.tree.map(lambda leaf: leaf[:, 0], alone_rows), y
        for dtype in dtypes:
            out = y
            if dtype != jnp.float64:
                out = apply(*jax.tree.map(partial(_cast, dtype), (members[0], x)))
                found[str(jnp.dtype(dtype))] = out, y
            _check_dtype(out, dtype, "y", f"for params and x in {jnp.dtype(dtype)}")
        return found | _derivatives(apply, members[0], x, modes)

    pairs = jax.device_get(pairs_of(members, x, alone))
    along = [*_floats({"params": members[0]}), "x"]
    for what in [what for what in WORDS if what in pairs]:
        compare(what, pairs[what], along=along if "derivative" in what else None)


def _transformed(apply: Apply, members: list[Params], x: Array, alone: Any) -> dict[str, Pair]:
    stacked, twice = _stacked(members), jnp.stack([x, x])
    found = {
        "jit": (apply(members[0], x), jax.tree.map(lambda leaf: leaf[0], alone)),
        "scan": (lax.scan(lambda _, at: (None, apply(*at)), None, (stacked, twice))[1], alone),
    }
    if jax.tree.leaves(stacked):
        found["vmap over params"] = jax.vmap(apply, (0, None))(stacked, x), alone
    return found


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _derivatives(apply: Apply, params: Params, x: Array, modes: Sequence[Mode]) -> dict[str, Pair]:
    """{mode: (derivatives, finite differences, their rounding)}: along each leaf a random way.

    The first two are [leaves, ...].
    """
    at, rng = [*_floats(params).values(), x], np.random.default_rng(1)

    def f(at: list[Array]) -> list[Array]:
        *floats, x = at
        return list(_floats(apply(_with_floats(params, floats), x)).values())

    def normal(leaf: Any) -> Array:
        return jnp.asarray(rng.normal(size=leaf.shape))

    ways = [jnp.zeros((len(at), *leaf.shape)).at[i].set(normal(leaf)) for i, leaf in enumerate(at)]
    probe = [normal(leaf) for leaf in jax.eval_shape(f, at)]
    if not probe:  # no output has a derivative
        return {}

    def moved(by: tuple[list[Array], Array]) -> list[Array]:
        way, step = by
        return f(jax.tree.map(lambda leaf, w: leaf + step * w, at, way))

    both = [jnp.concatenate([way, way]) for way in ways]
    ends = lax.map(moved, (both, jnp.repeat(jnp.array([STEP / 2, -STEP / 2]), len(at))))
    differences = [(y[: len(at)] - y[len(at) :]) / STEP for y in ends]
    # What the rounding of y makes of a difference: not little, if y is large and hardly changes.
    eps = 8 * jnp.finfo(jnp.float64).eps / STEP
    rounding = [eps * jnp.abs(y).max(initial=0) for y in ends]
    found: dict[str, Pair] = {}
    if "forward" in modes:
        forward = lax.map(lambda way: jax.jvp(f, (at,), (way,))[1], ways)
        found["forward derivative"] = forward, differences, rounding
    if "reverse" in modes:
        (grads,) = jax.vjp(f, at)[1](probe)
        total = sum(r * jnp.abs(p).sum() for r, p in zip(rounding, probe, strict=True))
        found["reverse derivative"] = _inner(ways, grads), _inner(differences, probe), total
    return found


def _inner(many: list[Array], one: list[Array]) -> Array:
    """[n, ...], [...] -> [n], inner products over all leaves."""
    return sum(
        (jnp.sum(a * b, axis=tuple(range(1, a.ndim))) for a, b in zip(many, one, strict=True)),
        start=jnp.zeros(len(many[0])),
    )


def _floats(tree: Any) -> dict[str, Array]:
    return {path: leaf for path, leaf in paths(tree).items() if is_floating(leaf)}


def _with_floats(tree: Any, floats: list[Array]) -> Any:
    given = iter(floats)
    return jax.tree.map(lambda leaf: next(given) if is_floating(leaf) else leaf, tree)
