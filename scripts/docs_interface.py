"""The site's pages of the interface: a page a wing, and where each public name stands."""

import inspect
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import fnn

API = runpy.run_path(str(Path(__file__).parent / "make_api.py"))


class Entry(NamedTuple):
    """A public name."""

    shown: str  # as a program writes it: fnn.dense
    path: str  # as it is found: fnn.nn.dense
    page: str  # api/nn.md
    own: bool  # a function or class of fnn's own, whose docstring is shown


def modules() -> Iterator[tuple[str, ModuleType, str]]:
    """(path, module, page) of each wing, and of the modules in it."""
    for wing in API["WINGS"]:
        yield from _inner(f"fnn.{wing}", getattr(fnn, wing), f"api/{wing}.md")


def _inner(path: str, module: ModuleType, page: str) -> Iterator[tuple[str, ModuleType, str]]:
    yield path, module, page
    for name in API["_names"](module):
        value = _value(module, name)
        if inspect.ismodule(value):
            yield from _inner(f"{path}.{name}", value, page)


def entries(path: str, module: ModuleType, page: str) -> list[Entry]:
    """The names of a module."""
    values = {n: _value(module, n) for n in API["_names"](module)}
    names = [n for n, v in values.items() if not (v is None or inspect.ismodule(v))]
    called = API["_called"]
    return [Entry(called(path, module, n), f"{path}.{n}", page, _own(module, n)) for n in names]


def _value(module: ModuleType, name: str) -> object:
    """The object, None where it needs a package that is not installed."""
    try:
        return getattr(module, name)
    except ImportError:
        return None


def _own(module: ModuleType, name: str) -> bool:
    value = getattr(module, name)
    ours = str(getattr(value, "__module__", "")).startswith("fnn")
    kind = inspect.isfunction(value) or inspect.isclass(value)
    return ours and kind and "<locals>" not in value.__qualname__


def pages() -> dict[str, str]:
    """{page: Markdown} of all wings."""
    found: dict[str, str] = {}
    for path, module, page in modules():
        title = API["_name"](path)
        level = "##" if page in found else "#"
        said = re.sub(r"::$", ":", inspect.getdoc(module) or "", flags=re.MULTILINE)
        head = f"{level} `{title}` {{ #{title} }}\n\n{said}\n\n"
        body = "".join(_entry(module, entry) for entry in entries(path, module, page))
        found[page] = found.get(page, "") + head + body
    return found


def _entry(module: ModuleType, entry: Entry) -> str:
    if entry.own:
        return f"::: {entry.path}\n    options:\n      heading: {entry.shown}\n\n"
    line = API["_line"](module, entry.path.rpartition(".")[2]).replace(r"\|", "|")
    return f"## {entry.shown} {{ #{entry.path} .doc-heading }}\n\n{line}\n\n"


def anchors() -> dict[str, str]:
    """{name as programs write it: page#anchor}."""
    found = {e.shown: f"{e.page}#{e.path}" for m in modules() for e in entries(*m)}
    return found | {API["_name"](p): f"{page}#{API['_name'](p)}" for p, _, page in modules()}
