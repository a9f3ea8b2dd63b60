"""Parts of a population by processes of their own. What one process can see is in test_population."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fnn.search import read_population

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_parts_at_once_lose_nothing_and_killed_ones_go_on_to_the_same_bits(tmp_path):
    """Four processes at once, a part that is killed and run again, a whole one killed twice."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.search.parts", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_shell_loop_runs_all_parts(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "examples/parts/loop.sh", "2", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "95 % interval" in done.stdout  # by the part that was done last
    assert not read_population(tmp_path).missing
