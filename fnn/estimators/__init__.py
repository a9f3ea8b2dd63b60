"""scikit-learn estimators that train with fnn."""

__all__ = []
