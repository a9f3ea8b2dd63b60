"""fnn's networks in scikit-learn: a pipeline, a search, a table with names, words as labels.

python examples/scikit_learn.py [--quick]      prints a table

Which digit is it, from a pandas table whose columns are named pixels and whose labels are words?
`GridSearchCV` fits a pipeline of `StandardScaler` and `FnnClassifier` for each penalty and rate on
each fold. A program is compiled for each shape of a fold, not for each fit. The best point is then
fitted with ten networks at once, whose probabilities are averaged.
"""

import importlib.util
import time
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import fnn

WORDS = np.array("zero one two three four five six seven eight nine".split(" "))  # noqa: SIM905


def tables():
    """Training and test rows: a DataFrame with named columns and a Series of words each."""
    import pandas as pd

    digits = fnn.datasets.digits()
    names = [f"pixel {row},{column}" for row in range(8) for column in range(8)]
    parts = (digits.train, digits.test)
    return [
        (pd.DataFrame(np.asarray(x), columns=names), pd.Series(WORDS[np.asarray(labels)]))
        for x, labels in parts
    ]


def main(quick: bool = False) -> None:
    """Search, fit ten networks at the best point, print the table."""
    missing = [name for name in ("sklearn", "pandas") if not importlib.util.find_spec(name)]
    if missing:
        print(f"{' and '.join(missing)} not installed: pip install 'fnn[sklearn]' pandas")
        return
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fnn.use_all_cores()
    (x, labels), (x_test, labels_test) = tables()
    epochs, rates = (5, [1e-2]) if quick else (50, [1e-3, 1e-2])
    network = fnn.estimators.FnnClassifier(
        early_stopping=True, max_iter=epochs, n_iter_no_change=epochs, random_state=0
    )
    pipeline = make_pipeline(StandardScaler().set_output(transform="pandas"), network)
    space = {"fnnclassifier__alpha": [1e-4, 1.0], "fnnclassifier__learning_rate": rates}
    start = time.perf_counter()
    search = GridSearchCV(pipeline, space, cv=3).fit(x, labels)
    fits = 3 * len(search.cv_results_["params"]) + 1
    print(f"{fits} fits of {epochs} epochs in {time.perf_counter() - start:.1f} s")
    best = search.best_estimator_
    many: Any = clone(best)
    many.set_params(fnnclassifier__n_seeds=10).fit(x, labels)

    table = Table(title="Which digit? Accuracy on unseen rows")
    for column in ("alpha", "rate", "by 3 folds", "one network", "ten networks"):
        table.add_column(column, justify="right")
    one = f"{100 * best.score(x_test, labels_test):.1f} %"
    ten = f"{100 * many.score(x_test, labels_test):.1f} %"
    for point, score in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        is_best = point == search.best_params_
        values = [f"{value:g}" for value in point.values()]
        table.add_row(*values, f"{100 * score:.1f} %", *((one, ten) if is_best else ("", "")))
    Console().print(table)
    print(
        f"columns: {', '.join(best.feature_names_in_[:3])}, ...; labels: {', '.join(best.classes_)}"
    )


if __name__ == "__main__":
    tyro.cli(main)
