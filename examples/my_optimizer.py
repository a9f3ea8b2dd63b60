"""A rule of one's own in ten lines, compared with Adam under one protocol.

python examples/my_optimizer.py [--quick]      writes out/my_optimizer/report.html and more

The same from the command line, without this program:

    fnn compare examples/my_optimizer.py:sign_momentum --rules adam

Both rules get the same learning rates and the same seeds. The best rate is chosen on the validation
rows. Ten fresh seeds are then scored on the test rows, and the intervals cover seeds and rows.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import tyro

import fnn


def sign_momentum(learning_rate, decay=0.9):
    """Sign of momentum (Bernstein et al. 2018): p <- p - rate sign(mu).

    mu <- decay mu + (1 - decay) g.
    """

    def rule(g, t, rate, mu, decay):
        mu = decay * mu + (1 - decay) * g
        return rate * jnp.sign(mu), {"mu": mu}

    return fnn.optim.lift("sign_momentum", rule, {"mu": 0.0}, learning_rate, {"decay": decay})


def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Compare the rule with Adam on the digits, and write the report."""
    fnn.use_all_cores()
    less: dict[str, Any] = {"epochs": 3, "seeds": 3, "trial_seeds": 1} if quick else {}
    rates = "0.001,0.01,0.1" if quick else "0.0001,0.0003,0.001,0.003,0.01,0.03,0.1"
    document = fnn.compare.compare_optimizers(
        [sign_momentum, "adam"],
        "digits",
        tune=[f"learning_rate={rates}"],
        out=out / "my_optimizer",
        progress=lambda done, total, text: print(f"{done:3}/{total} {text}"),
        **less,
    )
    fnn.compare.write_report(document, out / "my_optimizer")
    print(*document["findings"], sep="\n")
    print(f"report in {out / 'my_optimizer' / 'report.html'}")


if __name__ == "__main__":
    tyro.cli(main)
