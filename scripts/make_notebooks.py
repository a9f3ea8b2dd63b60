"""The chapters as notebooks, from the files of examples/; `make notebooks` executes all.

python scripts/make_notebooks.py [--execute] [01_neuron ...]      writes out/notebooks/
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import jupytext
import nbformat
from docs_chapters import CALL, CHAPTERS, ROOT, read

FOLDER = ROOT / "out" / "notebooks"
SITE = "https://fnn-project.github.io/fnn/course"
INSTALL = """# Installs fnn where it is missing, as on Colab.
import importlib.util

if importlib.util.find_spec("fnn") is None:
    %pip install --quiet "fnn @ git+https://github.com/fnn-project/fnn"
"""
RUN = """from IPython.display import Image

main(quick=True)  # seconds; quick=False is the run of the figure in the course
Image("out/{name}.png")
"""


def text(file: Path) -> str:
    """The notebook of a chapter, not executed, as JSON."""
    return nbformat.writes(notebook(file))


def notebook(file: Path) -> nbformat.NotebookNode:
    """By jupytext, whose cells are those of the file; a cell that installs, and one that runs."""
    chapter = read(file)
    link = f"[The page of this chapter]({SITE}/{file.stem}.html)"
    about = f"# {chapter.title}\n\n{chapter.about}\n\n{link}"
    words = "\n".join(f"# {line}".rstrip() for line in about.splitlines())
    rest = file.read_text("utf-8").split('"""', 2)[2].partition(CALL)[0]
    run = "# %%\n" + RUN.format(name=file.stem)
    source = f"# %% [markdown]\n{words}\n\n# %%\n{rest.lstrip()}\n{run}"
    made = jupytext.reads(source, fmt="py:percent")
    made.cells.insert(1, nbformat.v4.new_code_cell(INSTALL.rstrip()))
    for number, cell in enumerate(made.cells):  # the same file gives the same notebook
        cell.id = f"{file.stem.replace('_', '-')}-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.metadata = nbformat.from_dict({"kernelspec": kernel})
    return made


def execute(file: Path) -> str:
    """Execute a chapter's notebook with its quick settings, in a folder of its own."""
    import nbclient

    start, folder = time.perf_counter(), FOLDER / file.stem
    folder.mkdir(parents=True, exist_ok=True)
    made = notebook(file)
    quiet = ["--IPKernelApp.log_level=40"]  # it warns of its ports, which are this machine's own
    where = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(made, timeout=600, resources=where, extra_arguments=quiet)
    client.execute()
    shown = [out for out in made.cells[-1].outputs if "image/png" in out.get("data", {})]
    if len(shown) != 1:
        raise RuntimeError(f"{file.stem}: its last cell shows {len(shown)} figures, expected one")
    nbformat.write(made, FOLDER / f"{file.stem}.ipynb")
    return f"{file.stem}: {len(made.cells)} cells, {time.perf_counter() - start:.0f} s"


def write(file: Path) -> str:
    """Write a chapter's notebook without executing it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook(file), FOLDER / f"{file.stem}.ipynb")
    return file.stem


if __name__ == "__main__":
    words = sys.argv[1:]
    work = execute if "--execute" in words else write
    chosen = [f for f in CHAPTERS if f.stem in words] or CHAPTERS
    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(work, chosen):
            print(line, flush=True)
