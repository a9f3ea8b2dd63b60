"""The race of the optimizers: each is written by hand, each runs at its best learning rate.

python examples/04_optimizers_race.py [--quick]      writes out/04_optimizers_race.png

A rule is a few lines, from a gradient to a step, and all rules have one interface. So the race is
fair: all rules start from the same initial weights and see the same batches in the same order, and
all choose among the same learning rates. `compare_optimizers` holds the race. Each rule's rate is
the one with the lowest loss on the validation rows. The curves are of fresh seeds, which took no
part in that choice. Speed is the number of steps until the loss is 0.1.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

import fnn
from fnn.inspect.plots import COLOURS

# %% [markdown]
# ## The rules
#
# Each takes a gradient $g_t$ and says by how much the parameters move. Five of the eleven, with
# rate $\eta$; bias corrections are left out here:
#
# | rule | step |
# |---|---|
# | sgd | $\eta \, g_t$ |
# | momentum | $\eta \, m_t$, with $m_t = \mu \, m_{t-1} + g_t$ |
# | rmsprop | $\eta \, g_t / \sqrt{v_t}$, with $v_t = \beta v_{t-1} + (1 - \beta) g_t^2$ |
# | adam | $\eta \, m_t / \sqrt{v_t}$, both averages |
# | lion | $\eta \, \mathrm{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t)$ |
#
# Rules that divide by $\sqrt{v_t}$ make steps of about $\eta$ whatever the size of the gradient.
# So their best rates are far from sgd's, and a race at one rate for all would be decided by that
# rate.

# %%
RULES = {
    "sgd": fnn.sgd,
    "momentum": fnn.momentum,
    "nesterov": fnn.nesterov,
    "adagrad": fnn.adagrad,
    "rmsprop": fnn.rmsprop,
    "adam": fnn.adam,
    "adamw": partial(fnn.adamw, weight_decay=0.01),
    "nadam": fnn.nadam,
    "lion": fnn.lion,
    "adafactor": fnn.adafactor,
    "muon": lambda rate: fnn.muon(rate, others=fnn.adam(rate)),  # matrices by Muon, biases by Adam
}
RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
LOSS = 0.1  # nats: about the loss if each right class has a probability of 90 %


# %% [markdown]
# ## The problem


# %%
def init(key):
    return fnn.mlp_init(key, (64, 32, 10), w_init=fnn.kaiming_normal)


# The digits of `fnn compare`, with a smaller net, and judged by the loss.
PROBLEM = replace(
    fnn.compare.PROBLEMS["digits"], name="race", init=init, score="loss", better="lower"
)


# %% [markdown]
# ## The result in words


# %%
def told(rule: dict[str, Any]) -> str:
    """The line of a rule: its rate, the steps to the loss, its loss and its interval."""
    final, steps = rule["final"], rule["steps_to_target"]
    there = np.median([np.inf if s is None else s for s in steps])
    reached = f"{there:.0f}" if np.isfinite(there) else "never"
    rate, mean, low, high = (
        final["point"]["learning_rate"], final["mean"], final["low"], final["high"],
    )  # fmt: skip
    return f"{rule['name']:10}{rate:10g}{reached:>14}{mean:10.3f}   {low:.3f} to {high:.3f}"


# %% [markdown]
# ## The drawing


# %%
def draw(document: dict[str, Any], file: Path) -> None:
    """The loss by epoch at the chosen rate, and the last loss by rate."""
    figure = Figure(figsize=(10.5, 4.6), layout="constrained", dpi=110)
    by_epoch, by_rate = figure.subplots(1, 2, sharey=True)
    for i, rule in enumerate(document["rules"]):
        curve = np.median(rule["final"]["valid_by_epoch"], axis=0)
        rates = [trial["point"]["learning_rate"] for trial in rule["trials"]]
        losses = [np.median(trial["valid"]) for trial in rule["trials"]]
        ls = "-" if i < 7 else "--"
        look = {"color": COLOURS[i % 7], "ls": ls, "lw": 1.7, "label": rule["name"]}
        by_epoch.plot(range(1, len(curve) + 1), curve, **look)
        by_rate.plot(rates, losses, marker="o", markersize=3, **look)
    epochs = document["settings"]["epochs"]
    by_epoch.set(xlabel="epoch", ylabel="validation loss (nats)", title="Each at its best rate")
    by_rate.set(xlabel="learning rate", xscale="log", title=f"After {epochs} epochs, by rate")
    for axes in (by_epoch, by_rate):
        axes.set(yscale="log", ylim=(0.04, 4))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*by_rate.get_legend_handles_labels(), loc="outside right center", frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


# %% [markdown]
# ## The race
#
# `compare_optimizers` tries every rate from a few seeds, chooses each rule's rate on the
# validation rows, and then runs fresh seeds. Intervals are over these seeds and the test rows.


# %%
def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Race the rules; draw the loss by epoch at the best rate, and the last loss by rate."""
    fnn.use_all_cores()
    rates = RATES[4:7] if quick else RATES
    rules = dict(list(RULES.items())[1:6:4]) if quick else RULES
    document = fnn.compare.compare_optimizers(
        rules,
        PROBLEM,
        tune=[f"learning_rate={','.join(map(str, rates))}"],
        trial_seeds=1 if quick else 3,
        seeds=2 if quick else 5,
        epochs=5 if quick else 30,
        target=LOSS,
    )
    print(f"rule       best rate  steps to {LOSS}   test loss, 95 % interval")
    for rule in document["rules"]:
        print(told(rule))
    print(*document["findings"], sep="\n")
    draw(document, out / "04_optimizers_race.png")
    print(f"drawn in {out / '04_optimizers_race.png'}")


if __name__ == "__main__":
    tyro.cli(main)
