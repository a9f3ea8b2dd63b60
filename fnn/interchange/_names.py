"""Which rule moves which arrays: the names there of the arrays here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fnn._base import Params, path_matches
from fnn.interchange._layers import COULD_BE, Layer, layers_of
from fnn.interchange._rules import Library, Rule

Names = Mapping[str, str] | None  # {path here: name there}
Kinds = Mapping[str, str] | None  # {pattern of a path here: kind}


class Bound(NamedTuple):
    """A rule with the full names of its arrays."""

    rule: Rule
    ours: dict[str, Any]  # {path: array, or its shape}
    theirs: list[str]


def bind(
    function: str, library: Library, trees: Sequence[Params], names: Names, kinds: Kinds
) -> list[list[Bound]]:
    """The rules of each tree. ValueError for an entry of `names` or `kinds` that fits no layer."""
    names, kinds = _words(function, "names", names), _words(function, "kinds", kinds)
    layers = [layers_of(tree, kinds) for tree in trees]
    every = [layer for found in layers for layer in found]
    _check_names(function, every, names)
    _check_kinds(function, library, every, kinds)
    names = _with_blocks(library, every, names)
    return [
        [b for layer in found for b in _bind(function, library, layer, names)] for found in layers
    ]


def _words(function: str, argument: str, given: Mapping[str, str] | None) -> dict[str, str]:
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        came = type(given).__name__
        raise TypeError(f"{function}: {argument} is a {came}, expected a dict of strings")
    for item in given.items():
        if not all(isinstance(word, str) for word in item):
            raise TypeError(f"{function}: {argument} has {item}, expected strings")
    return dict(given)


def _with_blocks(
    library: Library, layers: Sequence[Layer], names: dict[str, str]
) -> dict[str, str]:
    """The names, and for what they leave out the library's names of a transformer block's parts."""
    parts: dict[str, str] = {}
    for path in (layer.path for layer in layers if layer.kind == "block"):
        start = _prefix(library, path, names)
        inside = [named for named in names if len(named) > len(path)]
        for part, name in library.block.items():
            part = joined("/", path, part)
            if not any(f"{part}/".startswith(f"{named}/") for named in inside):
                parts[part] = joined(library.separator, start, name)
    return parts | names


def _bind(
    function: str, library: Library, layer: Layer, names: Mapping[str, str]
) -> Iterator[Bound]:
    prefix = _prefix(library, layer.path, names)
    ending = "*" + library.suffix.get(layer.kind, "")
    template = prefix if "*" in prefix else joined(library.separator, prefix, ending)
    for rule in _rules(function, library, layer):
        ours = {joined("/", layer.path, leaf): layer.leaves[leaf] for leaf in rule.ours}
        yield Bound(rule, ours, [template.replace("*", n) if n else prefix for n in rule.theirs])


def _rules(function: str, library: Library, layer: Layer) -> list[Rule]:
    """The library's rules for the arrays that this layer has."""
    if layer.kind in ("array", "block"):
        return [Rule((leaf,), ("",)) for leaf in layer.leaves]
    if layer.kind == "matrix":
        raise ValueError(
            f"{function}: {joined('/', layer.path, 'w')} stands alone, so it may be a dense layer"
            " without bias, an embedding, or a parameter by itself; say which, as in"
            f" kinds={{{layer.path!r}: 'embed'}}"
        )
    rules = library.kinds.get(layer.kind, ())
    try:
        rules = rules(layer.leaves) if callable(rules) else rules
    except ValueError as error:
        raise ValueError(f"{function}: {layer.path or 'params'} {error}") from None
    known = [rule for rule in rules if set(rule.ours) <= layer.leaves.keys()]
    rest = layer.leaves.keys() - {leaf for rule in known for leaf in rule.ours}
    if rest:
        raise ValueError(
            f"{function}: {layer.path or 'params'} is of kind {layer.kind!r} and has"
            f" {sorted(rest)}, but such a layer has no arrays for this there"
        )
    return known


def _prefix(library: Library, path: str, names: Mapping[str, str]) -> str:
    """The name there of a layer: that of the longest path in `names` that leads to it, and on."""
    parts = path.split("/") if path else []
    for n in range(len(parts), -1, -1):
        if (start := "/".join(parts[:n])) in names:
            return joined(library.separator, names[start], *parts[n:])
    return joined(library.separator, *parts)


def joined(separator: str, *parts: str) -> str:
    """The parts that are not empty, joined."""
    return separator.join(filter(None, parts))


def _check_names(function: str, layers: Sequence[Layer], names: Mapping[str, str]) -> None:
    found = [layer.path for layer in layers]
    for path in names:
        if path and not any(f"{layer}/".startswith(f"{path}/") for layer in found):
            raise ValueError(f"{function}: names has {path!r}, expected paths of layers, {found}")


def _check_kinds(
    function: str, library: Library, layers: Sequence[Layer], kinds: Mapping[str, str]
) -> None:
    for pattern, kind in kinds.items():
        if kind not in library.kinds:
            known = sorted(k for group in COULD_BE.values() for k in group if k in library.kinds)
            raise ValueError(f"{function}: kinds has {kind!r}, expected one of {known}")
        paths = [layer.path for layer in layers if kind in layer.could_be]
        if not any(path_matches(pattern, path) for path in paths):
            raise ValueError(
                f"{function}: kinds has {pattern!r}, expected a pattern of a layer that could be"
                f" {kind!r}, of {paths}"
            )
