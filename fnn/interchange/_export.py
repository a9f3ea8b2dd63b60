"""A trained function in one file, for programs that have JAX but not fnn."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax import Array
from jax import export as jax_export

from fnn._base import path_of, write_whole

PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN = (*PLATFORMS, "rocm")
LENGTH = (
    "export: fn needs the length of the batch while it is traced; write it for any length (with"
    " x.shape[0], not len(x)), or export it with fixed_batch=True"
)


def export(
    fn: Callable[[Any], Any],
    example: Any,
    path: str | Path,
    *,
    fixed_batch: bool = False,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Write fn, fn(x [batch, ...]) -> y, to a file that JAX alone loads and calls.

    ::

        apply = partial(fnn.mlp, result.best.params)
        fnn.export(apply, jax.ShapeDtypeStruct((1, 64), "float32"), "digits.jax")

    Another program, without fnn and without the code of `fn`, loads the file in three lines::

        import jax, pathlib
        predict = jax.export.deserialize(bytearray(pathlib.Path("digits.jax").read_bytes())).call
        y = predict(x)

    `fn` closes over its parameters, which are in the file. Randomness and dropout stay outside: the
    function takes no key. `example` is an array, a ``jax.ShapeDtypeStruct``, or a tree of them
    (dicts, lists, tuples). Only shapes and dtypes are read; the file takes these dtypes alone.
    `fixed_batch`: by default the first axis of each leaf is the batch, of any length from 1 on.
    True keeps the example's length, for a function that needs to know it.
    `platforms`: one file runs on all of them. The device that exports need not be one of them.

    The file is JAX's (``jax.export``): StableHLO with a version, which later versions of JAX load
    for at least six months. It has no derivatives. It is written whole or not at all. Writing and
    loading need the package flatbuffers (``pip install 'fnn[export]'``).

    For ONNX there is jax2onnx, which takes the same `fn`: ``jax2onnx.to_onnx(fn, [("B", 64)])``.
    With version 0.17.1, `mlp`, `batch_norm` and `transformer_block` gave the same outputs in ONNX
    Runtime 1.32, to 3e-6; `max_pool` gave a model that ONNX Runtime refused.
    """
    if not callable(fn):
        raise TypeError(f"export: fn is a {type(fn).__name__}, expected a function of one argument")
    _check_platforms(platforms)
    given = _specs(example, fixed_batch)
    try:
        exported = jax_export.export(jax.jit(fn), platforms=list(platforms))(given)
    except Exception as error:
        if _needs_a_length(error) and not fixed_batch:
            error.add_note(LENGTH)
        raise
    write_whole(path, _bytes_of(exported))


def _check_platforms(platforms: Sequence[str]) -> None:
    # JAX takes any word, and the file then runs nowhere.
    if isinstance(platforms, str) or not isinstance(platforms, Sequence) or not platforms:
        raise TypeError(f"export: platforms is {platforms!r}, expected several words of {KNOWN}")
    for platform in platforms:
        if platform not in KNOWN:
            raise ValueError(f"export: platforms has {platform!r}, expected words of {KNOWN}")


def _needs_a_length(error: Exception) -> bool:
    # By name: JAX has moved the first class. len(x) is a TypeError that names JAX's own type.
    unknown = type(error).__name__ == "InconclusiveDimensionOperation"
    return unknown or (isinstance(error, TypeError) and "_DimExpr" in str(error))


def _bytes_of(exported: jax_export.Exported) -> bytes:
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise ModuleNotFoundError(
            "export: flatbuffers is missing: pip install 'fnn[export]'", name="flatbuffers"
        ) from error


def _specs(example: Any, fixed_batch: bool) -> Any:
    """The example as shapes and dtypes; the first axis is a symbol that all leaves share."""
    (batch,) = jax_export.symbolic_shape("batch")

    def spec(keys: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        name = "/".join(filter(None, ["example", path_of(keys)]))
        if not isinstance(leaf, Array | np.ndarray | jax.ShapeDtypeStruct):
            came = type(leaf).__name__
            raise TypeError(f"export: {name} is of type {came}, expected an array or its shape")
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise TypeError(
                f"export: {name} has dtype {leaf.dtype}, expected numbers; a function in a file"
                " takes no random key"
            )
        shape: tuple[Any, ...] = leaf.shape
        if not fixed_batch and not shape:
            raise ValueError(
                f"export: {name} has no axis (shape ()), expected [batch, ...]; what is no batch"
                " can be bound to fn first, or exported with fixed_batch=True"
            )
        shape = shape if fixed_batch else (batch, *shape[1:])
        return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(leaf.dtype))

    return cast(Any, jax.tree_util.tree_map_with_path(spec, example))
