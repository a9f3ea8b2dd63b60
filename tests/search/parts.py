"""For `test_parts.py`: processes that write parts of one population into one folder.

``python -m tests.search.parts FOLDER`` exits with 1 if a run is lost, or has other bits than in a
population that one process did. Its processes are forked from one that has imported everything and
started no backend, and share compiled programs.
"""

import os
import signal
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from fnn.search import population, read_population
from fnn.search._store import Store
from tests.training.killed import forked

MEMBERS = 32


def run(key, rate):
    return {"x": jax.random.uniform(key, (8,)) / rate}


def whole(folder=None, *, part=(0, 1), pause=0.0):
    """The population, or a part of it; one run a piece, and a pause after it is saved."""
    saved = Store.save

    def slowly(*args):
        saved(*args)
        time.sleep(pause)

    if pause:
        Store.save = slowly
    keys, rates = jax.random.split(jax.random.key(0), 4), np.linspace(0.1, 1, MEMBERS // 4)
    return population(run, keys, {"rate": rates}, folder=folder, part=part, piece=1, progress=False)


def written(folder: Path) -> list[Path]:
    return sorted(folder.glob("runs_*.safetensors"))


def wait_for(children: list[int]) -> list[int]:
    return [os.waitpid(child, 0)[1] for child in children]


def at_once(folder: Path, n: int) -> None:
    """All parts at the same time; nothing is lost."""
    children = [forked(lambda i=i: whole(folder, part=(i, n))) for i in range(n)]
    assert wait_for(children) == [0] * n
    assert len(written(folder)) == MEMBERS


def killed(folder: Path, child: int, count: int) -> None:
    """Wait for so many files, and kill the process in the middle of its work."""
    while len(written(folder)) < count:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    (status,) = wait_for([child])
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert count <= len(written(folder)) < MEMBERS


def one_part_is_killed_and_run_again_alone(folder: Path) -> None:
    wait_for([forked(lambda: whole(folder, part=(0, 2)))])
    child = forked(lambda: whole(folder, part=(1, 2), pause=600.0))  # it saves one run
    assert wait_for([forked(lambda: _is_refused(folder, part=(1, 2)))]) == [0]
    killed(folder, child, MEMBERS // 2 + 1)
    assert wait_for([forked(lambda: _lacks(folder, (1, 2)))]) == [0]
    before = {path: path.stat().st_mtime_ns for path in written(folder)}
    assert wait_for([forked(lambda: whole(folder, part=(1, 2)))]) == [0]
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was done is done


def _is_refused(folder: Path, part: tuple[int, int]) -> None:
    while len(written(folder)) < MEMBERS // 2 + 1:
        time.sleep(0.001)
    with pytest.raises(RuntimeError, match=r"part \(1, 2\) in .* is run by another process"):
        whole(folder, part=part)


def _lacks(folder: Path, part: tuple[int, int]) -> None:
    found = read_population(folder)
    assert found.unfinished == [part], found
    assert 0 < len(found.missing) < MEMBERS // 2


def a_process_is_killed_and_goes_on(folder: Path) -> None:
    killed(folder, forked(lambda: whole(folder, pause=0.01)), 5)
    killed(folder, forked(lambda: whole(folder, pause=0.01)), 20)
    assert wait_for([forked(lambda: whole(folder))]) == [0]


def compare(folders: list[Path]) -> None:
    expected = whole()
    for folder in folders:
        for found in (read_population(folder), whole(folder)):
            assert found.done.all(), (folder, found)
            chex.assert_trees_all_equal(found.values, expected.values)
        assert not list(folder.glob(".*")), "a lock or half a file is left"


def main(folder: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_num_cpu_devices", 1)
    assert wait_for([forked(whole)]) == [0]  # compiled
    at_once(folder / "four", 4)
    one_part_is_killed_and_run_again_alone(folder / "part")
    a_process_is_killed_and_goes_on(folder / "one")
    folders = [folder / name for name in ("four", "part", "one")]
    assert wait_for([forked(lambda: compare(folders))]) == [0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
