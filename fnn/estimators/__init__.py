"""scikit-learn estimators that train with fnn.

scikit-learn is loaded when a class is first asked for, not by ``import fnn``.
"""

import typing as _typing

if _typing.TYPE_CHECKING:
    from fnn.estimators._estimators import FnnClassifier, FnnRegressor

__all__ = ["FnnClassifier", "FnnRegressor"]


def __getattr__(name: str) -> _typing.Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from fnn.estimators import _estimators
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "sklearn":
            raise
        raise ModuleNotFoundError(
            f'{name}: scikit-learn is missing: pip install "fnn[sklearn]"', name=error.name
        ) from error
    globals().update({each: getattr(_estimators, each) for each in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
