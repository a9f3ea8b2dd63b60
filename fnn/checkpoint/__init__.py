"""Checkpoints of any tree of arrays, strict and bit for bit.

- `save` and `load`: one file, written by one process with any number of devices.
- `save_last` and `load_last`: a folder with the last two files. It survives a kill and a damaged
  file. `run_lock`: one writer at a time.
- `save_sharded` and `load_sharded`: several processes, by Orbax.
- `load_leaves`: some leaves of a file. `read_header` and `describe`: what a file contains.
  These functions and `load` read safetensors files of other tools too.
- `fingerprint`: a checksum of data, to be kept in `extra`; `fingerprint_program`: of a function.

Leaves are arrays of JAX or NumPy, typed keys, and Python's bool, int (64 bits), float and complex.
`extra` is a dict that JSON can hold: settings, the epoch, the `fingerprint` of the data, a
description of the optimizer. Its tuples come back as lists, its keys as strings.
"""

from fnn.checkpoint._folder import (
    describe,
    fingerprint,
    fingerprint_program,
    load,
    load_last,
    load_leaves,
    load_sharded,
    run_lock,
    save,
    save_last,
    save_sharded,
)
from fnn.checkpoint._format import read_header

__all__ = [
    "describe",
    "fingerprint",
    "fingerprint_program",
    "load",
    "load_last",
    "load_leaves",
    "load_sharded",
    "read_header",
    "run_lock",
    "save",
    "save_last",
    "save_sharded",
]
