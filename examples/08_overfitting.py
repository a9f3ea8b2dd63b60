"""Overfitting: learning 100 digits by heart, and the cures for it.

python examples/08_overfitting.py [--quick]      writes out/08_overfitting.png

The network has too many weights for too few rows. The training loss goes to 0, while the loss on
unseen rows falls, turns, and rises. Four cures are compared:

- penalties on the weights, L1 and L2;
- dropout;
- augmentation: images are shifted at random;
- early stopping: the parameters of the epoch with the lowest validation loss are taken.

How strong should a cure be? Each cure is tried at five strengths, and L2 with augmentation at all
25 pairs. For each cure, the strength with the lowest validation loss at any epoch is chosen; this
loss is a mean over seeds. The test rows are used once, after this choice. All cures, strengths and
seeds are one sweep.

On these 100 rows L1 and L2 keep the loss low. With dropout or augmentation, the lowest loss is
hardly lower than without a cure, and then the loss rises at least as far. L2 with augmentation has
the lowest validation loss, but after 150 epochs L2 alone has the same test loss. The test
accuracies of the cures are within 2 points, and their standard error on 360 rows is 1.5 points.
"""

from functools import partial
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import fnn
from fnn import plots
from fnn.inspect.plots import COLOURS

# %% [markdown]
# ## Cures and their strengths
#
# Every point is four numbers: L1, L2, dropout rate, pixels. They are numbers in one program, so
# all cures at all strengths are one sweep. A strength of 0 is no cure.

# %%
UNITS = ("", "", "", " px")  # units of a point: L1, L2, dropout rate, shift of the images
L1 = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
L2 = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
RATES = (0.05, 0.1, 0.2, 0.4, 0.6)
PIXELS = (0.12, 0.25, 0.5, 0.75, 1)
NONE = (0,)
CURES = {
    "no cure": (NONE, NONE, NONE, NONE),
    "L1": (L1, NONE, NONE, NONE),
    "L2": (NONE, L2, NONE, NONE),
    "dropout": (NONE, NONE, RATES, NONE),
    "augmentation": (NONE, NONE, NONE, PIXELS),
    "L2 + augmentation": (NONE, L2, NONE, PIXELS),
}
POINTS = [(cure, point) for cure, strengths in CURES.items() for point in product(*strengths)]


# %% [markdown]
# ## The loss with all cures
#
# $$\ell = -\log p_c + \lambda_1 \sum_w |w| + \lambda_2 \sum_w w^2$$
#
# The penalties count weights, not biases. The pull of L2, $2 \lambda_2 w$, is weaker for small
# weights; that of L1 has the same size for all, so it makes weights zero. Dropout sets each hidden
# unit to 0 with probability $r$ and multiplies the others by $1 / (1 - r)$, so that the mean of a
# unit's output stays. Augmentation shows each image a little shifted, by another shift in each
# step.


# %%
def loss_fn(params, batch, key, l1, l2, rate, pixels):
    x, labels = batch
    shift_key, dropout_key = fnn.split(key)
    images = fnn.augment.shift(shift_key, x.reshape(-1, 8, 8, 1), pixels)
    logits = fnn.mlp(params, images.reshape(x.shape), key=dropout_key, rate=rate)
    return fnn.cross_entropy(logits, labels) + fnn.params.elastic_net(params, l1=l1, l2=l2)


# %% [markdown]
# ## What is measured
#
# Without dropout and augmentation: these are for training.


# %%
def scores(params, rows):
    """-> (mean loss, accuracy), without dropout and augmentation."""
    x, labels = rows
    logits = fnn.mlp(params, x)
    return fnn.cross_entropy(logits, labels).mean(), fnn.accuracy(logits, labels).mean()


def validate(ts, rows):
    valid, train = rows
    return {"loss": scores(ts.params, valid)[0], "training_loss": scores(ts.params, train)[0]}


# %% [markdown]
# ## One run
#
# `fit_until` keeps the parameters of the epoch with the lowest validation loss: early stopping.
# Its patience is the whole run, so the end is seen too.


# %%
def run(key, strengths, *, train, valid, epochs):
    """-> ((validation, training loss) [epochs] each, (last, best) parameters): one training run.

    The best parameters are those after the epoch with the lowest validation loss.
    """
    init_key, fit_key = jax.random.split(key)
    step = fnn.make_train_step(lambda *args: loss_fn(*args, *strengths), fnn.adam(3e-3))
    params = fnn.mlp_init(init_key, (64, 128, 128, 10), w_init=fnn.kaiming_normal)
    stop = fnn.EarlyStopping(patience=epochs)  # keeps the best parameters, and runs to the end
    progress, history = fnn.fit_until(
        step, step.init(params), train, fit_key, stop,
        epochs=epochs, batch_size=20, validate=validate, validation=(valid, train),
    )  # fmt: skip
    losses = history["val_loss"], history["val_training_loss"]
    return losses, (progress.last.params, progress.best.params)


# %% [markdown]
# ## All runs as one sweep


# %%
def main(quick: bool = False, out: Path = Path("out")) -> None:
    """Train with each cure from several seeds; draw the losses side by side."""
    fnn.use_all_cores()  # each core trains its share of the runs
    epochs, seeds = (10, 1) if quick else (150, 5)
    digits = fnn.datasets.digits()
    train = fnn.data.take(digits.train, jnp.arange(100))
    keys = jax.random.split(jax.random.key(0), seeds)
    strengths = jnp.array([point for _, point in POINTS], float)
    of_run = partial(run, train=train, valid=digits.valid, epochs=epochs)
    losses, params = fnn.sweep(of_run, keys, {"strengths": strengths})
    loss, train_loss = (np.asarray(each).mean(0) for each in losses)  # [points, epochs]
    order = loss.min(1).argsort()  # points by lowest loss; of each cure the first is chosen
    chosen = np.array([next(i for i in order if POINTS[i][0] == cure) for cure in CURES])
    params = jax.tree.map(lambda leaf: leaf[:, chosen], params)
    test = jax.jit(jax.vmap(jax.vmap(partial(scores, rows=digits.test))))
    last, best = (np.asarray(test(p)) for p in params)  # [loss and accuracy, seeds, cures]

    figure, (by_epoch, by_cure) = plots.subplots(1, 2, width=5.6, height=4.4)
    print(f"{'validation loss':>58}{'test, at the end':>18}{'stopped early':>18}")
    heads = f"{'':19}{'strength':15}{'lowest':>9}{'epoch':>7}{'end':>8}"
    print(heads + f"{'loss':>8}{'accuracy':>10}" * 2)
    ticks = []
    for k, (cure, i) in enumerate(zip(CURES, chosen, strict=True)):
        pairs = zip(POINTS[i][1], UNITS, strict=True)
        strength = ", ".join(f"{s:g}{unit}" for s, unit in pairs if s)
        ticks.append(cure.replace(" + ", " +\n") + "\n" + strength)
        row = f"{loss[i].min():9.3f}{loss[i].argmin() + 1:7}{loss[i, -1]:8.3f}"
        for test_loss, accuracy in (last[:, :, k].mean(1), best[:, :, k].mean(1)):
            row += f"{test_loss:8.3f}{100 * accuracy:8.1f} %"
        print(f"{cure:19}{strength:15}{row}")
        colour = COLOURS[k - 1]
        by_epoch.plot(range(1, epochs + 1), loss[i], color=colour, label=cure)
        for x, (test_loss, _), marker in ((k - 0.15, last, "o"), (k + 0.15, best, "D")):
            look = {"color": colour, "alpha": 0.6, "markersize": 5}
            by_cure.plot([x] * seeds, test_loss[:, k], marker, **look)
    label = "no cure, training rows"
    by_epoch.plot(range(1, epochs + 1), train_loss[0], ":", color=COLOURS[-1], label=label)
    by_epoch.set(xlabel="epoch", ylabel="loss on validation rows (nats)", ylim=(0, 0.8))
    by_epoch.legend(frameon=False, fontsize=9)
    by_cure.plot([], [], "o", color="0.4", label=f"after {epochs} epochs")
    by_cure.plot([], [], "D", color="0.4", label="stopped early")
    by_cure.set_xticks(range(len(CURES)), ticks)
    by_cure.tick_params("x", labelsize=8)
    by_cure.set(ylabel="loss on test rows (nats)", xlabel=f"cure and strength, {seeds} seeds each")
    by_cure.legend(frameon=False)
    for axes in (by_epoch, by_cure):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    plots.save(figure, out / "08_overfitting.png")
    print(f"drawn in {out / '08_overfitting.png'}")


if __name__ == "__main__":
    tyro.cli(main)
