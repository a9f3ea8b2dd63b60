"""Parts of a population by processes of their own. What one process can see is in test_population."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_parts_at_once_lose_nothing_and_killed_ones_go_on_to_the_same_bits(tmp_path):
    """Two and four processes at once, a part that is killed and run again, a whole one killed twice."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.search.parts", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
