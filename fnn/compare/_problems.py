"""The problems that come with ``fnn compare``, by name, and the one of a user's file.

    PROBLEMS                                {name: Problem}
    problem_of("digits"), problem_of("my_problem.py") -> Problem

`_problem.py` has what a problem is, `_member.py` how it is trained.
"""

from pathlib import Path

from fnn.compare._problem import Problem, problem_from
from fnn.compare._problems_digits import AUTOENCODER, LOGISTIC, SPIRALS, digits_problem
from fnn.compare._problems_files import MNIST_CNN, SHAKESPEARE_LSTM
from fnn.compare._problems_functions import BEALE, QUADRATIC_DEEP, ROSENBROCK
from fnn.compare._words import WHO, hint

PROBLEMS = {
    problem.name: problem
    for problem in (
        digits_problem(),
        LOGISTIC,
        SPIRALS,
        QUADRATIC_DEEP,
        ROSENBROCK,
        BEALE,
        AUTOENCODER,
        MNIST_CNN,
        SHAKESPEARE_LSTM,
    )
}


def problem_of(name: str) -> Problem:
    """The problem of that name; if the name ends in .py, the problem that this file defines.

    ValueError, one sentence: there is no such name or file, the file does not import, or what it
    defines cannot be trained.
    """
    if name in PROBLEMS:
        return PROBLEMS[name]
    if name.endswith(".py"):
        return problem_from(Path(name))
    raise ValueError(
        f"{WHO}: unknown problem {name!r}, expected a Python file or one of:"
        f" {', '.join(PROBLEMS)}{hint(name, PROBLEMS)}"
    )
