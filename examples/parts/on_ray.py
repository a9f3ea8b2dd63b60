"""The parts as tasks of Ray, one part a task, on this machine or on a cluster.

python examples/parts/on_ray.py [--folder FOLDER] [--parts 4] [--quick]        needs pip install ray

Ray starts a part again if its machine is lost. All machines must share the folder.
"""

from pathlib import Path

import ray  # pyright: ignore[reportMissingImports]
import tyro
from run import read_population, search  # run.py


def done(*settings) -> int:
    """Run a part; how many of its runs are done."""
    return int(search(*settings).done.sum())


def main(folder: Path = Path("out/parts"), parts: int = 4, quick: bool = False) -> None:
    """Run all parts, and print the best point."""
    ray.init(runtime_env={"working_dir": str(Path(__file__).parent)})
    one = ray.remote(done).options(num_cpus=1, max_retries=3)
    tasks = [one.remote(folder.absolute(), part, parts, quick) for part in range(parts)]
    print(f"runs of each part: {ray.get(tasks)}")
    print(read_population(folder).best("valid_accuracy"))


if __name__ == "__main__":
    tyro.cli(main)
