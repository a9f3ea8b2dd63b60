"""One run on a mesh of devices: parameters and optimizer state split by rules.

`data_parallel` keeps everything on every device. `sharded` splits the leaves themselves, in two
ways that may be combined:

- fully sharded (FSDP, ZeRO-3): a leaf is split over the devices that also split the batch, and is
  gathered for the step.
- tensor parallel: a leaf is split over devices that see the same rows, and stays split in the step.

No layer and no loss function changes. `jit` makes one program of all devices and puts the
collectives in.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn._base import (
    Data,
    Metrics,
    Params,
    State,
    check_patterns,
    leaves_apart,
    path_matches,
    paths,
)
from fnn.training._sharding import mesh_of, on_the_same
from fnn.training._shares import as_on_one_device, cycled
from fnn.training._state import TrainState
from fnn.training._step import Step

Axes = str | tuple[str, ...]  # of a mesh
Rule = PartitionSpec | Axes
Specs = dict[str, PartitionSpec]  # by path

NAME = "sharded"
FULLY: Mapping[str, Rule] = {"**": "data"}
SMALL = 1024  # numbers; a leaf of fewer costs a collective and saves 4 KB


def sharded(
    step: Step,
    rules: Mapping[str, Rule] | None = None,
    mesh: Mesh | None = None,
    *,
    batch: Axes | None = "data",
) -> Step:
    """The step with parameters and optimizer state split over the devices of `mesh` by `rules`.

    Arguments and results are those of `step`, to rounding: the mean of the losses, batch norm's
    statistics and the norm for clipping are over the whole batch and over all parameters.

    Options:
      - rules: {pattern: rule}, patterns as in `fnn.params.matching`. The first pattern that matches
        a parameter's path decides. A parameter that no pattern matches is whole on each device. A
        rule is one of two:

          - a name of a mesh axis, "data": the leaf's largest axis of those that divide evenly is
            split over it. A leaf without one, or of fewer than 1,024 numbers, stays whole.
          - a `jax.sharding.PartitionSpec`, ``P(None, "model")``: for each axis of the leaf None or
            names of mesh axes, over which it must divide evenly.

        None is ``{"**": "data"}``: everything is fully sharded.
      - mesh: a `jax.sharding.Mesh`; by default all devices on one axis, "data".
      - batch: the mesh axes over which the rows of a batch are split. None: each device sees all.

    Each leaf of the optimizer's state, such as a moment, is split as the parameter in whose place
    it is, if it has the parameter's shape. A leaf of another shape, or of no parameter, is split by
    the rules that are names, and is whole otherwise. Model state is whole.

    An axis that splits the batch holds other rows on each device, so a leaf that is split over it
    is gathered for the step, and its gradient is summed and split again: FSDP, ZeRO-3. Over other
    axes a leaf stays split in the step, and `jit` splits the products: tensor parallel. What is
    gathered is held until the step's gradient is found::

        P, mesh = jax.sharding.PartitionSpec, jax.make_mesh((2, 4), ("data", "model"))
        rules = {"**/up/w": P(None, "model"), "**/down/w": P("model", None), "**": "data"}
        step = fnn.training.sharded(step, rules, mesh)

    ``step.init`` places what it makes. Where one device cannot hold that, make it by
    ``jax.jit(lambda key: step.init(init(key)))(key)``. Checkpoints hold whole arrays and load onto
    any number of devices. Any number of rows can be split. ValueError for a pattern that matches no
    parameter, a name that is no axis of the mesh, and an axis that does not divide evenly. Sources:
    Rajbhandari et al. 2020 (ZeRO), Shoeybi et al. 2019 (Megatron-LM), Xu et al. 2021 (GSPMD).
    """
    if not isinstance(step, Step):
        raise TypeError(f"{NAME}: step is a {type(step).__name__}, expected a Step, with `init`")
    if mesh_of(step) is not None:
        raise ValueError(f"{NAME}: the step is split over devices already; give the step itself")
    mesh = _automatic(mesh)
    layout = _Layout(mesh, _checked(FULLY if rules is None else rules, mesh), _axes(batch))
    _check_names("batch", batch, layout.batch, mesh)

    def init(params: Params, state: State = ()) -> TrainState:
        return layout.placed(step.init(params, state))

    def update(
        ts: TrainState, batch: Data, key: Array, mask: Array | None = None
    ) -> tuple[TrainState, Metrics]:
        ts, batch, key, mask = on_the_same(mesh, (ts, batch, key, mask))
        ts = layout.gathered(layout.placed(ts))
        with leaves_apart(True):
            ts, metrics = step(ts, layout.rows(batch), key, layout.rows(mask))
        return layout.placed(ts), metrics

    return Sharded(init, update, step.policy, mesh, layout)


@dataclass(frozen=True)
class _Layout:
    """Where each leaf of a train state and of a batch is."""

    mesh: Mesh
    rules: Mapping[str, Rule]
    batch: tuple[str, ...]

    def placed(self, ts: TrainState) -> TrainState:
        """The train state as it is kept between steps."""
        specs = specs_of(self.mesh, self.rules, ts.params)
        return TrainState(*(self._put(part, {}) for part in ts))._replace(
            params=self._put(ts.params, specs),
            opt_state=self._put(ts.opt_state, self._following(ts, specs)),
        )

    def gathered(self, ts: TrainState) -> TrainState:
        """The train state as the step sees it: no parameter is split over the axes of the batch."""
        specs = specs_of(self.mesh, self.rules, ts.params)
        kept = {path: _without(self.batch, spec) for path, spec in specs.items()}
        return ts._replace(params=self._put(ts.params, kept))

    def rows(self, batch: Data) -> Data:
        """The batch, or a mask, with its rows split."""
        parts = math.prod(self.mesh.shape[axis] for axis in self.batch)

        spec = _short([self.batch])

        def split(leaf: Array) -> Array:
            rows = leaf.shape[0]
            missing = 0 if as_on_one_device.value else -rows % parts
            # Cut off again, as in `data_parallel`: only XLA pads, and no row of it counts.
            if not missing:
                return self._at(leaf, spec)
            return self._at(cycled(leaf, rows + missing), spec)[:rows]

        return jax.tree.map(split, batch)

    def _following(self, ts: TrainState, specs: Specs) -> Specs:
        """The specs of the optimizer's state."""
        params, found = paths(ts.params), {}
        for path, leaf in paths(ts.opt_state).items():
            owner = next((name for name in _ends(path) if name in params), None)
            if owner is not None and np.shape(params[owner]) == np.shape(leaf):
                found[path] = specs[owner]
            else:
                rule = _rule(self.rules, path if owner is None else owner)
                named = rule is not None and not isinstance(rule, PartitionSpec)
                found[path] = _spec(self.mesh, rule, path, leaf) if named else PartitionSpec()
        return found

    def _put(self, tree: Any, specs: Specs) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        names = list(paths(tree)) if specs else [""] * len(leaves)
        put = [
            self._at(leaf, specs.get(name, PartitionSpec()))
            for name, leaf in zip(names, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, put)

    def _at(self, leaf: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(self.mesh, spec)
        if isinstance(leaf, Tracer):
            return lax.with_sharding_constraint(leaf, sharding)
        return jax.device_put(leaf, sharding)


@dataclass(frozen=True, eq=False)
class Sharded(Step):
    """A step whose parameters and optimizer state are split over a mesh."""

    mesh: Mesh | None = None
    layout: _Layout | None = None


def after_steps(step: Any, ts: TrainState) -> tuple[TrainState, TrainState]:
    """-> (ts where the step keeps it, ts as the step sees it); of another step `ts` twice.

    What reads `ts` after the steps, as a validation does, then neither moves it nor splits it anew.
    """
    layout = getattr(step, "layout", None)
    if layout is None:
        return ts, ts
    ts = layout.placed(ts)
    return ts, layout.gathered(ts)


def specs_of(mesh: Mesh, rules: Mapping[str, Rule], params: Params) -> Specs:
    """{path: PartitionSpec} of the parameters; ValueError if a rule does not fit."""
    check_patterns(NAME, params, list(rules))
    return {
        path: _spec(mesh, _rule(rules, path), path, leaf) for path, leaf in paths(params).items()
    }


# --- a rule ---------------------------------------------------------------------------------------


def _rule(rules: Mapping[str, Rule], path: str) -> Rule | None:
    return next((rule for pattern, rule in rules.items() if path_matches(pattern, path)), None)


def _spec(mesh: Mesh, rule: Rule | None, path: str, leaf: Any) -> PartitionSpec:
    shape = np.shape(leaf)
    if rule is None:
        return PartitionSpec()
    if not isinstance(rule, PartitionSpec):
        return _largest(mesh, _axes(rule), shape)
    if len(rule) > len(shape):
        raise ValueError(f"{NAME}: {rule} has more entries than {path}, of shape {shape}, has axes")
    for axis, names in enumerate(rule):
        parts = math.prod(mesh.shape[name] for name in _axes(names))
        if shape[axis] % parts:
            raise ValueError(
                f"{NAME}: {path} has shape {shape}, and axis {axis} cannot be split evenly over the"
                f" {parts} devices of {names!r}"
            )
    return _short(tuple(rule))


def _largest(mesh: Mesh, names: tuple[str, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """The largest axis that divides evenly is split, the first of equal ones."""
    parts = math.prod(mesh.shape[name] for name in names)
    fits = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if math.prod(shape) < SMALL or not fits:
        return PartitionSpec()
    longest = max(fits, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, _plain(names))


def _without(taken: Sequence[str], spec: PartitionSpec) -> PartitionSpec:
    """The spec with these mesh axes left out."""
    return _short([tuple(name for name in _axes(entry) if name not in taken) for entry in spec])


def _short(entries: Sequence[Any]) -> PartitionSpec:
    """As JAX writes it in results, so that they are placed as arguments: no None at the end."""
    plain = [_axes(entry) for entry in entries]
    while plain and not plain[-1]:
        plain.pop()
    return PartitionSpec(*(_plain(names) for names in plain))


def _plain(names: tuple[str, ...]) -> Any:
    return names if len(names) > 1 else next(iter(names), None)


def _axes(entry: Axes | None) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _ends(path: str) -> Iterator[str]:
    """The path, and what is left of it without its first names, at last nothing."""
    yield path
    while path:
        path = path.partition("/")[2]
        yield path


# --- the arguments --------------------------------------------------------------------------------


def _automatic(mesh: Mesh | None) -> Mesh:
    """A mesh whose axes `jit` handles; `jax.make_mesh` makes them explicit, part of types."""
    if mesh is None:
        return Mesh(np.array(jax.devices()), ("data",))
    if not isinstance(mesh, Mesh):
        raise TypeError(f"{NAME}: mesh is a {type(mesh).__name__}, expected a jax.sharding.Mesh")
    return Mesh(mesh.devices, mesh.axis_names)


def _checked(rules: Mapping[str, Rule], mesh: Mesh) -> Mapping[str, Rule]:
    for pattern, rule in rules.items():
        entries = tuple(rule) if isinstance(rule, PartitionSpec) else (rule,)
        names = [name for entry in entries for name in _axes(entry)]
        _check_names(f"the rule of {pattern!r}", rule, names, mesh)
        if len(set(names)) < len(names):
            raise ValueError(f"{NAME}: the rule of {pattern!r} names a mesh axis twice: {rule!r}")
    return dict(rules)


def _check_names(what: str, came: Any, names: Sequence[str], mesh: Mesh) -> None:
    if not set(names) <= set(mesh.axis_names):
        raise ValueError(
            f"{NAME}: {what} is {came!r}, expected axes of the mesh, {mesh.axis_names}"
        )
