"""What holds for the package as a whole."""

import inspect
import json
import os
import subprocess
import sys

import pytest

import fnn


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_touches_no_device():
    # A backend that cannot start: whatever asked for a device would raise.
    python("import os; os.environ['JAX_PLATFORMS'] = 'none_such'\nimport fnn, fnn.compare._cli")
    failed = "import os; os.environ['JAX_PLATFORMS'] = 'none_such'\nimport jax\njax.devices()"
    with pytest.raises(AssertionError, match="none_such"):
        python(failed)


def test_import_loads_nothing_heavy():
    code = "import jax, optax, sys; before = set(sys.modules); import fnn; print(*sorted(set(sys.modules) - before))"
    loaded = python(code).split()
    heavy = {"matplotlib", "rich", "tyro", "scipy.stats"} & set(loaded)
    assert not heavy
    others = {name.split(".")[0] for name in loaded} - {"fnn"} - set(sys.stdlib_module_names)
    assert not others


def public():
    return {name: value for name, value in vars(fnn).items() if not name.startswith("_")}


def test_everything_public_says_what_it_is():
    for name, value in public().items():
        if inspect.ismodule(value):
            assert value.__name__.split(".")[-1] == name
        assert inspect.getdoc(value), name


def test_no_function_swallows_misspelt_options():
    for name, value in public().items():
        if inspect.isfunction(value) and value.__module__.startswith("fnn"):
            kinds = {p.kind for p in inspect.signature(value).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds, name


def test_optax_twins_have_the_same_signatures():
    for name, twin in vars(fnn.optax_wrappers).items():
        own = inspect.isfunction(twin) and twin.__module__ == fnn.optax_wrappers.__name__
        if own and not name.startswith("_"):
            pair = getattr(fnn.optim, name), twin
            ours, theirs = (inspect.signature(f).parameters for f in pair)
            mine = {p.name: (p.default, p.kind) for p in ours.values()}
            # A rule by hand may have more words, for the definitions that Optax does not offer.
            assert {p.name: (p.default, p.kind) for p in theirs.values()}.items() <= mine.items()
            positional = [p.name for p in ours.values() if p.kind != inspect.Parameter.KEYWORD_ONLY]
            assert list(theirs)[: len(positional)] == positional, name


@pytest.mark.slow
def test_a_type_checker_knows_the_installed_wheel(tmp_path, request):
    root = request.config.rootpath
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    run = {"capture_output": True, "text": True, "timeout": 300, "cwd": tmp_path}
    wheel = [*pip, "wheel", *offline, "--wheel-dir", str(tmp_path), str(root)]
    subprocess.run(wheel, check=True, **run)
    site = tmp_path / "site"
    install = [*pip, "install", *offline, "--target", str(site), *map(str, tmp_path.glob("*.whl"))]
    subprocess.run(install, check=True, **run)
    assert (site / "fnn" / "py.typed").exists()
    assert (site / "fnn" / "data" / "datasets" / "digits.npz").exists()
    assert {"_page.css", "_page.html", "_page.js"} <= set(os.listdir(site / "fnn" / "compare"))
    program = tmp_path / "program.py"
    program.write_text('import fnn\n\nfnn.adam(1e-3)\nfnn.adam("fast")\n')
    config = {"extraPaths": [str(site)], "include": ["program.py"]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    said = subprocess.run(command, check=False, **run).stdout
    errors = [line for line in said.splitlines() if " error: " in line]
    assert len(errors) == 1, said
    assert "program.py:4" in errors[0]
    assert '"learning_rate"' in errors[0]
