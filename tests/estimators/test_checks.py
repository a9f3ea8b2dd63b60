"""scikit-learn's own checks of estimators."""

import pytest

pytest.importorskip("sklearn")

from sklearn.utils.estimator_checks import parametrize_with_checks

from fnn.estimators import FnnClassifier, FnnRegressor

# A program compiles for every shape, and the checks have many: about a minute.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("compiled_quickly"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:SCIPY_ARRAY_API"),
]


@parametrize_with_checks([FnnClassifier(), FnnRegressor()])
def test_scikit_learns_checks(estimator, check):
    check(estimator)
