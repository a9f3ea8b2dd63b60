"""Weights from and to other libraries, and trained functions for programs without fnn."""

__all__ = []
