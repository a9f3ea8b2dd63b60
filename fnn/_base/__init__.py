"""Shared by all wings: types, dtypes and numerics, checks, keys, trees, means, the terminal."""

from fnn._base._arrays import as_array, check_fits
from fnn._base._branch import seldom
from fnn._base._checks import (
    as_count,
    check_at_least_1,
    check_floating,
    check_range,
    fits,
    number_of,
)
from fnn._base._files import check_regular, lock, locked, remove_dead, write_whole
from fnn._base._ids import as_ids
from fnn._base._kept import kept_with, weakly
from fnn._base._keys import check_key, check_keys, fold_in, is_one_key, row_keys, split
from fnn._base._means import weighted_mean, weighted_sum
from fnn._base._norm import Seen, global_norm, leaf_by_leaf, leaves_apart, seen
from fnn._base._numerics import (
    abs_square,
    as_number,
    at_least_float32,
    converted,
    next_count,
    real_dtype,
    safe_divide,
    safe_sqrt,
    scaled,
    wide,
    wide_dtype,
)
from fnn._base._terminal import Interrupts, bar, console, counter, reporter
from fnn._base._trees import (
    check_mask,
    check_patterns,
    count,
    decayed,
    matching,
    path_matches,
    path_of,
    paths,
    resolve_mask,
)
from fnn._base._types import AnyArray, Data, Metrics, Params, State

__all__ = [
    "AnyArray",
    "Data",
    "Interrupts",
    "Metrics",
    "Params",
    "Seen",
    "State",
    "abs_square",
    "as_array",
    "as_count",
    "as_ids",
    "as_number",
    "at_least_float32",
    "bar",
    "check_at_least_1",
    "check_fits",
    "check_floating",
    "check_key",
    "check_keys",
    "check_mask",
    "check_patterns",
    "check_range",
    "check_regular",
    "console",
    "converted",
    "count",
    "counter",
    "decayed",
    "fits",
    "fold_in",
    "global_norm",
    "is_one_key",
    "kept_with",
    "leaf_by_leaf",
    "leaves_apart",
    "lock",
    "locked",
    "matching",
    "next_count",
    "number_of",
    "path_matches",
    "path_of",
    "paths",
    "real_dtype",
    "remove_dead",
    "reporter",
    "resolve_mask",
    "row_keys",
    "safe_divide",
    "safe_sqrt",
    "scaled",
    "seen",
    "seldom",
    "split",
    "weakly",
    "weighted_mean",
    "weighted_sum",
    "wide",
    "wide_dtype",
    "write_whole",
]
