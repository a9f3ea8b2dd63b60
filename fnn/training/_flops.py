"""What a step computes, and what share of the device's peak a run reaches."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax import Array

from fnn._base import Data
from fnn.training._sharding import shares_of
from fnn.training._shares import as_on_one_device
from fnn.training._state import TrainState

if TYPE_CHECKING:
    from jax.extend.core import Jaxpr, JaxprEqn

# FLOP/s of products without sparsity, by the dtype of their factors, from the data sheets of NVIDIA
# (H100 2023, A100 2021, V100 2018, T4 2019) and the pages of Google Cloud's TPU versions. float32
# on A100 and H100 is TF32, which XLA uses there by default. The first name that is in the
# device's kind counts.
PEAKS: dict[str, dict[str, float]] = {
    "H100 PCIe": {"bfloat16": 756e12, "float16": 756e12, "float32": 378e12},
    "H100 NVL": {"bfloat16": 835e12, "float16": 835e12, "float32": 417e12},
    "H100": {"bfloat16": 989e12, "float16": 989e12, "float32": 494e12},
    "A100": {"bfloat16": 312e12, "float16": 312e12, "float32": 156e12},
    "V100-PCIE": {"float16": 112e12, "float32": 14e12},
    "V100": {"float16": 125e12, "float32": 15.7e12},
    "T4": {"float16": 65e12, "float32": 8.1e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5e": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},
    "TPU v6": {"bfloat16": 918e12},
}


class Flops(NamedTuple):
    """Floating-point operations of a run, and the share of the peak; see `flops_of_step`."""

    per_step: float
    per_second: float  # per_step times the steps, by the seconds that their chunks took
    peak: float | None  # of all devices of the run, FLOP/s; None if unknown
    utilisation: float | None  # per_second / peak


def flops_of_step(step: Any, ts: TrainState, batch: Data, key: Array) -> float:
    """The floating-point operations of the products of one step, forward and backward.

    A product of [n, k] and [k, m] counts 2 n k m; a convolution 2 for each product of its window;
    a scan counts as often as it runs. Element by element operations are not counted: this is the
    numerator of model FLOPs utilisation (Chowdhery et al. 2022, appendix B), plus what
    ``jax.checkpoint`` computes twice. XLA's own cost analysis counts the body of a loop once. A
    loop of unknown length counts once here too; of a branch the largest side. The step is traced,
    not compiled; arrays may be their shapes.
    """
    return float(sum(_products_of(step, ts, batch, key).values()))


def flops_of_run(
    step: Any, given: tuple[Any, ...], steps: int, seconds: float, peak: float | None, devices: int
) -> Flops:
    """`Flops` of so many steps; `peak` is that of one device, None to look it up."""
    products = _products_of(step, *given)
    per_step = float(sum(products.values()))
    if peak is None and products:
        dtype = max(products, key=products.__getitem__)
        peak = peak_of(jax.devices()[0].device_kind, dtype)
    whole = None if peak is None else float(peak) * devices
    speed = per_step * steps / seconds if seconds > 0 else 0.0
    return Flops(per_step, speed, whole, None if whole is None else speed / whole)


def peak_of(kind: str, dtype: str) -> float | None:
    """The FLOP/s of a device of this kind for factors of this dtype, None if unknown."""
    found = [peaks for name, peaks in PEAKS.items() if name in kind]
    return found[0].get(dtype) if found else None


def _products_of(step: Any, *given: Any) -> Counter[str]:
    """{dtype of the factors: floating-point operations of their products}."""
    with as_on_one_device(True):  # there a step by shares is a loop over shares, counted once
        counted = _count(jax.make_jaxpr(step)(*given).jaxpr)
    return Counter({dtype: (shares_of(step) or 1) * n for dtype, n in counted.items()})


def _count(jaxpr: "Jaxpr") -> Counter[str]:
    total: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        inner = [_count(body) for body in _bodies(eqn.params.values())]
        if name in ("dot_general", "conv_general_dilated"):
            total[str(_aval(eqn.invars[0]).dtype)] += _operations(eqn)
        elif name == "cond":
            total += max(inner, key=lambda counted: sum(counted.values()))
        else:
            times = eqn.params["length"] if name == "scan" else 1
            for counted in inner:
                total += Counter({dtype: times * n for dtype, n in counted.items()})
    return total


def _bodies(values: Iterable[Any]) -> "Iterator[Jaxpr]":
    """The programs among the parameters of an equation."""
    from jax.extend.core import ClosedJaxpr, Jaxpr

    for value in values:
        if isinstance(value, tuple | list):
            yield from _bodies(value)
        elif isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def _operations(eqn: "JaxprEqn") -> int:
    left, right = (_aval(atom).shape for atom in eqn.invars)
    out = math.prod(_aval(eqn.outvars[0]).shape)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * out * math.prod(left[axis] for axis in contracted)
    out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    window = math.prod(right) // right[out_axis]
    # Of an input that zeros were put into, as a strided convolution's gradient has, they are free.
    return 2 * out * window // math.prod(eqn.params["lhs_dilation"])


def _aval(atom: Any) -> jax.ShapeDtypeStruct:
    return atom.aval
