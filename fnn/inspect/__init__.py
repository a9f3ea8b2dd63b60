"""Looking inside a net.

- `diagnostics`: activations, gradients and updates, layer by layer, also at every step of a run.
- `summary`: the table of a net's parameters.
- `plots`: pictures of runs and nets, by matplotlib.
"""

from fnn.inspect import diagnostics, plots
from fnn.inspect._summary import summary

__all__ = ["diagnostics", "plots", "summary"]
