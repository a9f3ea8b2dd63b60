"""Who imports whom, read from the files; and that the doors show what they have, and no more."""

import ast
import graphlib
import importlib
import inspect
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import fnn

SOURCE = Path(fnn.__file__).parent
REPOSITORY = Path(__file__).parents[2]

# A wing may import these wings and itself. The package itself, "", may import every wing.
PIECES = {"_base", "data", "nn", "optim", "checkpoint"}
MAY_IMPORT = {
    "_base": set(),
    **{wing: {"_base"} for wing in PIECES - {"_base"}},
    "training": PIECES,
    "search": PIECES | {"training"},
    "inspect": PIECES | {"training"},
    "interchange": {"_base", "checkpoint"},
    "estimators": PIECES | {"training", "search"},
    "compare": PIECES | {"training", "search", "inspect"},
}
WINGS = sorted(MAY_IMPORT.keys() - {"_base"})
COMMAND = "fnn.__main__"  # calls the entry point of pyproject.toml, which is in a file of a wing


def module_of(file):
    *folders, name = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(folders if name == "__init__" else [*folders, name])


FILES = {module_of(file): file for file in SOURCE.rglob("*.py")}


def wing_of(module):
    """The wing; "" is the package itself, with its command."""
    return module.split(".")[1] if module not in ("fnn", COMMAND) else ""


def is_private(dotted):
    return any(part.startswith("_") for part in dotted.split("."))


class Import(NamedTuple):
    importer: str
    line: int
    module: str  # the file of fnn that is imported
    name: str  # what is taken from it, "" if the module itself

    def __str__(self):
        what = f"{self.name} from {self.module}" if self.name else self.module
        return f"{self.importer}, line {self.line}, imports {what}"


def imports_of(importer, file):
    """Every import of fnn in the file, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            pairs = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{importer}, line {node.lineno}: write the import from fnn. on"
            pairs = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in pairs:
            if f"{module}.{name}" in FILES:  # a module taken from its package
                module, name = f"{module}.{name}", ""
            if module.split(".")[0] == "fnn":
                yield Import(importer, node.lineno, module, name)


IMPORTS = [found for module, file in FILES.items() for found in imports_of(module, file)]
ACROSS = [i for i in IMPORTS if wing_of(i.importer) != wing_of(i.module)]


def listed(broken):
    return "\n" + "\n".join(map(str, broken))


def test_every_wing_has_its_place():
    assert {wing_of(module) for module in FILES} - {""} == MAY_IMPORT.keys()


def test_arrows_between_wings_point_down():
    up = [
        i
        for i in ACROSS
        if wing_of(i.importer) and wing_of(i.module) not in MAY_IMPORT[wing_of(i.importer)]
    ]
    assert not up, f"a wing may import {MAY_IMPORT}, but{listed(up)}"


def test_wings_meet_at_doors():
    across = [i for i in ACROSS if i.importer != COMMAND]
    past = [i for i in across if is_private(i.module.removeprefix("fnn._base"))]
    assert not past, f"import from fnn.<wing> or a module without underscore, but{listed(past)}"
    private = [i for i in ACROSS if i.name.startswith("_")]
    assert not private, f"a private name stays in its wing, but{listed(private)}"


def test_no_circle_among_files():
    graph = {module: set() for module in FILES}
    for i in IMPORTS:
        graph[i.importer].add(i.module)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("files import each other in a circle: " + " <- ".join(error.args[1]))


def test_programs_use_what_is_public():
    files = [f for folder in ("examples", "benchmarks") for f in (REPOSITORY / folder).glob("*.py")]
    found = [i for file in files for i in imports_of(f"{file.parent.name}/{file.name}", file)]
    private = [i for i in found if is_private(f"{i.module}.{i.name}")]
    assert files
    assert not private, listed(private)


def test_no_test_imports_another():
    for file in (REPOSITORY / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
                taken = [name for name in names if name.split(".")[-1].startswith("test_")]
                taken = [name for name in taken if (node.module or "").split(".")[0] == "tests"]
                assert not taken, f"{file.name} imports {taken}: shared things are in tests/nets.py"


# --- what a door shows --------------------------------------------------------------------------


def public(module):
    return {name for name in vars(module) if not name.startswith("_")}


def test_the_package_shows_what_it_declares():
    assert dir(fnn) == sorted(fnn.__all__)
    assert len(fnn.__all__) == len(set(fnn.__all__)) <= 100
    assert public(fnn) == set(fnn.__all__)


@pytest.mark.parametrize("wing", ["_base", *WINGS])
def test_a_door_is_complete(wing):
    door = importlib.import_module(f"fnn.{wing}")
    if wing == "estimators":  # its classes are made when scikit-learn is asked for
        pytest.importorskip("sklearn")
        assert all(getattr(door, name) for name in door.__all__)
    assert len(door.__all__) == len(set(door.__all__))
    assert public(door) == set(door.__all__)


@pytest.mark.parametrize("module", sorted(FILES.keys() - {"fnn"}))
def test_nothing_hides_a_module(module):
    if module.startswith("fnn.estimators._"):
        pytest.importorskip("sklearn")
    imported = importlib.import_module(module)
    parent, _, name = module.rpartition(".")
    assert inspect.ismodule(imported)
    assert getattr(sys.modules[parent], name) is imported, f"{parent} has another {name}"
