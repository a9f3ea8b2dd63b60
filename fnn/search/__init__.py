"""Many runs: populations of them, races, searches, ensembles, and what a network should look like.

A run is any pure function ``run(key, **hyperparameters)``, as for `fnn.sweep`.
"""

from fnn.search import design
from fnn.search._ensemble import Ensemble, Scores, ensemble
from fnn.search._lr_find import FoundRate, lr_find
from fnn.search._nested import Nested, nested_cross_validate
from fnn.search._optuna import run_study
from fnn.search._points import Range, Static, sample
from fnn.search._population import BestPoint, Population
from fnn.search._pruning import SuccessiveHalving, Wilcoxon
from fnn.search._race import race
from fnn.search._sweeping import population, read_population
from fnn.search._trainable import Trainable

__all__ = [
    "BestPoint",
    "Ensemble",
    "FoundRate",
    "Nested",
    "Population",
    "Range",
    "Scores",
    "Static",
    "SuccessiveHalving",
    "Trainable",
    "Wilcoxon",
    "design",
    "ensemble",
    "lr_find",
    "nested_cross_validate",
    "population",
    "race",
    "read_population",
    "run_study",
    "sample",
]
