"""What holds for the package as a whole."""

import inspect
import json
import operator
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
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


# --- the code on the pages ----------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


def sections(page):
    """{heading: its Python code, with blank lines so that errors have the page's line numbers}."""
    found, heading, inside = {}, "", False
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines()):
        heading = line[3:] if line.startswith("## ") and not inside else heading
        code = found.setdefault(heading, [])
        if line.startswith("```"):
            inside = line == "```python"
        elif inside:
            code += [""] * (number - len(code)) + [line]
    return {heading: "\n".join(code) for heading, code in found.items() if code}


def run_page(page, code, scope):
    # As a reader runs it: JAX's defaults, in a folder of its own.
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(code, page, "exec"), scope)
    return scope


def test_the_readmes_programs_run(tmp_path, monkeypatch):
    """All of them, one after the other, word for word."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in sections("README.md").values():
        run_page("README.md", code, scope)
    assert scope["histories"]["loss"].shape[:2] == (8, 3)
    assert scope["result"].stopped == "early stopping"
    assert len(repr(scope["result"])) < 300  # not all of its arrays
    assert scope["result"].history["val_accuracy"].max() > 0.9
    assert (tmp_path / "runs" / "a.csv").exists()


def _auc(scope):
    auc = scope["result"].history["auc"]
    assert np.isnan(auc[[0, 2]]).all()
    assert (auc[[1, 3]] > 0.6).all()


def _frozen(scope):
    before, after = scope["params"]["body"], scope["ts"].params["body"]
    still = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    assert still == {"layer_0": {"b": True, "w": True}, "layer_1": {"b": False, "w": False}}


def _both_played(scope):
    ts = scope["ts"]
    assert ts.step == scope["history"]["loss"].size
    start = scope["gan_init"](scope["init_key"])
    still = jax.tree.map(lambda a, b: bool((a == b).all()), ts.params, start)
    assert not any(jax.tree.leaves(still))


def _one_slope(scope):
    np.testing.assert_allclose(scope["slope"], scope["by_rate"], rtol=1e-3)
    assert scope["by_row"].shape == scope["weights"].shape
    assert scope["by_row"].any()


def _by_tokens(scope):
    chex.assert_trees_all_close(scope["a"].params, scope["b"].params, rtol=1e-5, atol=1e-7)


def _complex(scope):
    chex.assert_trees_all_close(scope["ts"].params["c"], np.complex64(3 - 4j), atol=0.1)


def _all_rows(scope):
    assert scope["logits"].shape == (len(scope["data"].test[0]), 10)
    assert scope["extra"] == {"classes": 10}


SAID = {  # heading: a test of what its comments say
    "Run something on the host every k epochs": _auc,
    "Predict in another process": _all_rows,
    "Freeze and fine-tune": _frozen,
    "Alternate two optimizers": _both_played,
    "Differentiate through a run": _one_slope,
    "Accumulate gradients by tokens": _by_tokens,
    "Train complex parameters": _complex,
}
SLOW = {  # what they show is tested more closely elsewhere
    "Compare an optimizer or a problem of my own",
    "Log metrics beside the loss",
    "Run something on the host every k epochs",
    "Write the loop myself",
    "Ignore labels and padding",
    "Weigh rare classes",
    "Use L-BFGS or a plateau schedule",
    "Differentiate through a run",
    "Evaluate an average of the parameters",
    "Train in half precision",
}
FIRST, *HOW_TO = PAGE = sections("docs/how-to.md")


@pytest.mark.slow
@pytest.mark.parametrize(
    "heading", [pytest.param(h, marks=[pytest.mark.slow] if h in SLOW else []) for h in HOW_TO]
)
def test_the_how_to_page_runs(heading, tmp_path, monkeypatch):
    """Each section word for word, after the first lines of the page."""
    monkeypatch.chdir(tmp_path)
    assert {*SAID, *SLOW} <= {*HOW_TO}
    if "sklearn" in PAGE[heading]:
        pytest.importorskip("sklearn")
    scope = run_page("docs/how-to.md", PAGE[FIRST], {})
    scope = run_page("docs/how-to.md", PAGE[heading], scope)
    SAID.get(heading, lambda scope: None)(scope)
    losses = scope.get("history", {}).get("loss")
    assert losses is None or np.isfinite(losses).all()


@pytest.fixture
def pages():
    if not (ROOT / "docs" / "images").exists():
        pytest.skip("a source distribution has not all pages")
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "llms.txt")]
    return [*pages, *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]


def test_names_on_pages_exist(pages):
    lost = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w/.-])fnn((?:\.[A-Za-z_]\w*)+)", text):
            try:
                operator.attrgetter(name[1:])(fnn)
            except AttributeError:
                lost.append(f"{page.relative_to(ROOT)}: fnn{name}")
    assert not lost


def test_links_between_pages_lead_somewhere(pages):
    lost = []
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if "://" not in link and not (target.exists() and _has(target, anchor)):
                lost.append(f"{page.relative_to(ROOT)}: {link}")
    assert not lost


def _has(target, anchor):
    """Whether GitHub gives a heading of the page this anchor."""
    if not anchor:
        return True
    headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
    slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return anchor in slugs


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
