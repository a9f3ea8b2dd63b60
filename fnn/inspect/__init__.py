"""Looking inside a net.

- `diagnostics`: activations, gradients and updates, layer by layer, also at every step of a run.
- `check_layer`: the properties of a layer of your own, for its tests.
- `summary`: the table of a net's parameters.
- `plots`: pictures of runs and nets, by matplotlib.
"""

from fnn.inspect import diagnostics, plots
from fnn.inspect._check_layer import check_layer
from fnn.inspect._summary import summary

__all__ = ["check_layer", "diagnostics", "plots", "summary"]
