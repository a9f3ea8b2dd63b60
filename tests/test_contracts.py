"""What holds for the package as a whole."""

import inspect
import subprocess
import sys

import jax
import pytest

import fnn


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_touches_no_device():
    # A backend that cannot start: whatever asked for a device would raise.
    python("import os; os.environ['JAX_PLATFORMS'] = 'none_such'\nimport fnn, fnn.cli, fnn.compare")
    failed = "import os; os.environ['JAX_PLATFORMS'] = 'none_such'\nimport jax\njax.devices()"
    with pytest.raises(AssertionError, match="none_such"):
        python(failed)


def test_import_loads_nothing_heavy():
    code = "import jax, optax, sys; before = set(sys.modules); import fnn; print(*sorted(set(sys.modules) - before))"
    loaded = python(code).split()
    heavy = {"matplotlib", "rich", "tyro", "scipy.stats", "tqdm"} & set(loaded)
    assert not heavy
    others = {name.split(".")[0] for name in loaded} - {"fnn"} - set(sys.stdlib_module_names)
    assert not others


def public():
    return {name: value for name, value in vars(fnn).items() if not name.startswith("_")}


def test_everything_public_says_what_it_is():
    for name, value in public().items():
        if inspect.ismodule(value):
            assert value.__name__ == f"fnn.{name}"
        assert inspect.getdoc(value), name


def test_no_function_swallows_misspelt_options():
    for name, value in public().items():
        if inspect.isfunction(value) and value.__module__.startswith("fnn"):
            kinds = {p.kind for p in inspect.signature(value).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds, name


def test_optax_twins_have_the_same_signatures():
    for name, twin in vars(fnn.optax_wrappers).items():
        if inspect.isfunction(twin) and twin.__module__ == "fnn.optax_wrappers":
            ours, theirs = (inspect.signature(f).parameters for f in (getattr(fnn, name), twin))
            mine = {p.name: (p.default, p.kind) for p in ours.values()}
            # A rule by hand may have more words, for the definitions that Optax does not offer.
            assert {p.name: (p.default, p.kind) for p in theirs.values()}.items() <= mine.items()
            positional = [p.name for p in ours.values() if p.kind != inspect.Parameter.KEYWORD_ONLY]
            assert list(theirs)[: len(positional)] == positional, name


def test_the_readmes_program_runs(tmp_path, request):
    """The first Python block of the README, word for word."""
    readme = (request.config.rootpath / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(scope["ts"]))
