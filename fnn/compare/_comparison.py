"""A comparison from Python: `compare_optimizers`, and its files: `write_report`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fnn._base import write_whole
from fnn.compare._document import as_json, command_of, document_of
from fnn.compare._findings import findings
from fnn.compare._html import as_html
from fnn.compare._latex import as_tex
from fnn.compare._markdown import as_markdown
from fnn.compare._member import Order
from fnn.compare._pictures import as_png
from fnn.compare._plan import DEFAULT, Plan, Settings, plan_of
from fnn.compare._problem import Problem
from fnn.compare._protocol import Progress, Result, results
from fnn.compare._reading import Document
from fnn.compare._rule import Make, Rule
from fnn.compare._store import kept
from fnn.compare._tuning import How

PIECES = "pieces"  # the folder of pieces, beside comparison.json


def compare_optimizers(
    rules: Sequence[str | Make | Rule] | Mapping[str, Make] = DEFAULT,
    problem: str | Problem = "digits",
    *,
    tune: Sequence[str] = (),
    how: How | None = None,
    trials: int | None = None,
    trial_seeds: int = 3,
    seeds: int = 10,
    epochs: int | None = None,
    batch_size: int | None = None,
    order: Order = "new",
    target: float | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Document:
    """Search, choose and compare optimizers on a problem -> the document, as in comparison.json.

    - `rules`: names of `RULES`, files (``my_rule.py``), or functions
      ``(learning_rate, **hyperparameters) -> optimizer``, by fnn, by Optax or one's own; or
      {name: function}.
    - `problem`: a name of `PROBLEMS`, a file, or a `Problem`.
    - `tune`: ``["b2=0.9,0.99,0.999"]``; ``"adam.b2=0.9,0.99"`` is for that rule only. The learning
      rate is always tuned, by default over the problem's rates. Ranges, ``"b1=0.8..0.99:log1m"``,
      take Sobol points (`how`). `trials` is the number of points, the same for each rule; by
      default all points of a grid, and 16 of Sobol's.
    - Each point is run from `trial_seeds`, the chosen one from fresh `seeds`.
    - `epochs`, `batch_size` and `target` (of the score) are by default the problem's. `order` of
      the batches is "new" in each epoch, or the "same".
    - `out`: pieces are kept in ``out/pieces`` as they come; a call with the same settings goes on
      there. None: in memory.
    - ``progress(done, total, text)`` is called before and after each piece of work.

    The document is a dict that JSON can hold; "findings" are its results as sentences. Its fields
    are listed at the top of ``fnn/compare/_document.py``.
    """
    settings = Settings(
        rules, problem, tune, how, trials, trial_seeds, seeds, epochs, batch_size, order, target
    )
    plan = plan_of(settings)
    folder = None if out is None else Path(out) / PIECES
    done: list[Result] = []
    with kept(folder, plan.marks()) as store:
        for done in results(plan, store, progress or (lambda done, total, text: None)):  # noqa: B007
            pass
        store.finish()
    return documented(plan, done)


def documented(plan: Plan, done: Sequence[Result], interrupted: bool = False) -> Document:
    """The document with its findings."""
    document = document_of(plan, done, command=command_of(plan), interrupted=interrupted)
    document["findings"] = findings(document)
    return document


def write_report(
    document: Document, out: str | Path, others: Sequence[Document] = ()
) -> list[Path]:
    """Write comparison.json, .png, .md, .tex and report.html to a folder -> the files.

    `others` are comparisons of the same rules on other problems, for the performance profile.
    """
    made = [Path(out) / name for name in RENDERS]
    for path, render in zip(made, RENDERS.values(), strict=True):
        write_whole(path, render(document, others, made[0]))
    return made


# render(document, comparisons on other problems, the file that the document is in)
RENDERS: dict[str, Callable[[Document, Sequence[Document], Path], bytes]] = {
    "comparison.json": lambda document, *_: as_json(document),
    "comparison.png": lambda document, others, _: as_png(document, others),
    "comparison.md": lambda document, *_: as_markdown(document),
    "comparison.tex": lambda document, *_: as_tex(document),
    "report.html": as_html,
}
