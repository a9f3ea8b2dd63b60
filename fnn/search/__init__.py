"""Many runs: populations of them, races, searches, ensembles, and what a network should look like.

A run is any pure function ``run(key, **hyperparameters)``, as for `fnn.sweep`.
"""

from fnn.search._points import Range, Static, sample
from fnn.search._population import BestPoint, Population

__all__ = ["BestPoint", "Population", "Range", "Static", "sample"]
