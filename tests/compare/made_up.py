"""Made-up results of a plan: nothing is compiled or trained."""

import numpy as np

from fnn.compare._protocol import Result


def result_of(plan, rule, valid=None):
    """As `fnn.compare._protocol.results` gives it; `valid` are the scores [trials, seeds]."""
    rng = np.random.default_rng(plan.rules.index(rule))
    rows = len(plan.parts.test[0])

    def piece(n, scores=None):
        right = (rng.random((n, rows)) < 0.9).astype(np.float32)
        return {
            "valid": right.mean(1) if scores is None else np.ravel(scores).astype(np.float32),
            "valid_loss": rng.random(n, np.float32),
            "skipped": np.zeros(n, np.int32),
            "digest": rng.integers(256, size=(n, 32), dtype=np.uint8),
            "test_rows": right,
            "test_loss": rng.random(n, np.float32),
            "loss_by_epoch": rng.random((n, plan.epochs), np.float32),
            "valid_by_epoch": np.repeat(right.mean(1)[:, None], plan.epochs, 1),
            "run_seconds": np.ones(n),
            "compile_seconds": np.ones(n),
        }

    search, final = piece(plan.trials * plan.trial_seeds, valid), piece(plan.seeds)
    means = search["valid"].reshape(plan.trials, plan.trial_seeds).mean(1)
    best = int(np.argmax(np.nan_to_num(means, nan=-1)))
    twin = None
    if rule.twin_for([axis.name for axis in plan.axes[rule.name]]) is not None:
        twin = final | {"apart": np.full(plan.seeds, 1e-3)}
    cost = {"update_microseconds": 12.5, "bytes": 1e3, "flops": 1e3, "kernels": 3.0}
    return Result(rule, best, search, final, final, twin, 1e-15, cost)
