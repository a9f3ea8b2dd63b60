"""Optimizers compared under one protocol, and the command `fnn compare`.

document = fnn.compare.compare_optimizers(["adam", my_rule], "digits", epochs=10)
print(*document["findings"], sep="\\n")
"""

from fnn.compare._comparison import compare_optimizers, write_report
from fnn.compare._document import read_document
from fnn.compare._plan import DEFAULT
from fnn.compare._problem import Problem
from fnn.compare._problems import PROBLEMS
from fnn.compare._replay import replay_member
from fnn.compare._rule import Rule
from fnn.compare._rules import RULES

__all__ = [
    "DEFAULT",
    "PROBLEMS",
    "RULES",
    "Problem",
    "Rule",
    "compare_optimizers",
    "read_document",
    "replay_member",
    "write_report",
]
