"""What is made once for functions of the user, and forgotten when nobody else holds them.

A program of the host's loops is compiled for functions of the user, often for a lambda that is new
at each call. What is kept holds them weakly: when nobody else holds such a function, its program
and the arrays in it are freed.
"""

import inspect
import weakref
from collections.abc import Callable
from typing import Any

Kept = tuple[list[weakref.ref[Any]], Any]
_kept: dict[tuple[Any, ...], Kept] = {}


def kept_with(
    functions: tuple[Any, ...], settings: tuple[Any, ...], make: Callable[[], Any]
) -> Any:
    """``make()``, once for these functions, by identity, and these settings, which are hashable.

    It is forgotten when one of the functions is gone, so `make` must not hold them: see `weakly`.
    With a function that has no weak references nothing is kept.
    """
    owners = [owner for function in functions for owner in _owners(function)]
    key = (*map(id, owners), *settings)
    if key not in _kept:
        made, forget = make(), _kept.pop  # bound here: when Python ends, globals are gone first
        try:
            _kept[key] = [weakref.ref(o, lambda _: forget(key, None)) for o in owners], made
        except TypeError:
            return made
    return _kept[key][1]


def weakly(function: Any) -> Callable[[], Any]:
    """A reference that does not keep the function; of a method, one that does not keep its object.

    It is called to have the function again.
    """
    try:
        is_method = inspect.ismethod(function)
        return weakref.WeakMethod(function) if is_method else weakref.ref(function)
    except TypeError:  # None, or an object without weak references
        return lambda: function


def _owners(function: Any) -> tuple[Any, ...]:
    """What lives as long as the function; a method itself is made anew whenever it is asked for."""
    if function is None:
        return ()
    return (function.__self__, function.__func__) if inspect.ismethod(function) else (function,)
