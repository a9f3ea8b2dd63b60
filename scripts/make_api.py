"""Write docs/api.md anew, from the first lines of the docstrings.

python scripts/make_api.py
"""

import inspect
from pathlib import Path
from types import ModuleType

import jax

import fnn

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
WINGS = (
    "nn",
    "optim",
    "data",
    "training",
    "search",
    "checkpoint",
    "inspect",
    "interchange",
    "estimators",
    "compare",
)
TABLES = {  # of each name that is neither a function nor a class nor a type
    "ACTIVATIONS": "{name: `Activation`}",
    "DEFAULT": "the names of the rules that `fnn compare` compares by default",
    "PEAKS": "{part of a device's kind: {dtype: peak FLOP/s}}",
    "POLICIES": '"skip", "stop", "raise", "ignore": the values of `nonfinite=`',
    "PROBLEMS": "{name: problem} of `fnn compare`",
    "RULES": "{name: rule} of `fnn compare`",
}
HEAD = """# The interface, name by name

Written by `python scripts/make_api.py` from the first line of each docstring, shapes first. A name
that stands flat in `fnn` is written so; the others are reached through their wing.

Hinge, log-cosh, KL divergence and cosine similarity are [Optax](https://optax.readthedocs.io)'s
losses, and Optax is a dependency. Classification losses take logits, never probabilities.
"""


def page() -> str:
    """The whole page."""
    tables = [_table(f"fnn.{name}", getattr(fnn, name)) for name in WINGS]
    return HEAD + "".join(tables)


def _table(path: str, module: ModuleType) -> str:
    everything = _names(module)
    names = [n for n in everything if not inspect.ismodule(getattr(module, n))]
    rows = [f"| `{_called(path, module, name)}` | {_line(module, name)} |" for name in names]
    parts = [f"\n## `{_name(path)}`\n\n{_first(module)}\n"]
    if rows:
        parts.append("\n| name | |\n|---|---|\n" + "\n".join(rows) + "\n")
    inner = [(n, getattr(module, n)) for n in everything]
    parts += [_table(f"{path}.{n}", value) for n, value in inner if inspect.ismodule(value)]
    return "".join(parts)


def _names(module: ModuleType) -> list[str]:
    """The names that the module declares, or else its own functions and classes."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
    return list(getattr(module, "__all__", [n for n in own if not n.startswith("_")]))


def _name(path: str) -> str:
    """`fnn.metrics` for `fnn.nn.metrics`, where the last name stands flat in fnn too."""
    last = path.rpartition(".")[2]
    return f"fnn.{last}" if last in fnn.__all__ else path


def _called(path: str, module: ModuleType, name: str) -> str:
    flat = name in fnn.__all__ and getattr(fnn, name) is getattr(module, name)
    return f"fnn.{name}" if flat else f"{_name(path)}.{name}"


def _line(module: ModuleType, name: str) -> str:
    value = getattr(module, name)
    source = getattr(value, "__module__", "")
    if source.startswith("fnn") and (
        inspect.isfunction(inspect.unwrap(value)) or inspect.isclass(value)
    ):
        return _first(value).replace("|", r"\|")
    if hasattr(jax.nn, name):
        return f"[...] -> [...]: `jax.nn.{name}`"
    if source.startswith("optax"):
        return f"`optax.{value.__name__}`"
    return TABLES.get(name, "a type")


def _first(value: object) -> str:
    """The first paragraph of the docstring, in one line."""
    first = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return first.removesuffix("::") + ":" * first.endswith("::")


if __name__ == "__main__":
    PAGE.write_text(page())
