"""Many networks as one: the mean of their answers, and how much they disagree."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import rel_entr

from fnn._base import AnyArray, Data, Params, safe_sqrt, weighted_mean, wide
from fnn.nn import accuracy, cross_entropy, softmax
from fnn.nn.metrics import brier_score, calibration_error

Outputs = Literal["logits", "probabilities", "values"]


class Scores(NamedTuple):
    """How good probabilities are: means over rows, and the calibration error.

    `loss` is the cross entropy in nats; the others are those of fnn and `fnn.metrics`.
    """

    accuracy: Array
    loss: Array
    brier_score: Array
    calibration_error: Array


class Ensemble(NamedTuple):
    """What `ensemble` returns.

    `mean`: [batch, classes], the mean of the members' probabilities; of values, [batch, ...].
    `members`: [members, batch, ...], of each member.
    `disagreement`: [batch]; of values, [batch, ...]. It is 0 if all members say the same.
    """

    mean: Array
    members: Array
    disagreement: Array

    def scores(self, labels: AnyArray, mask: AnyArray | None = None) -> tuple[Scores, Scores]:
        """int [batch] -> (scores of the mean, scores of each member, [members]).

        The ensemble's gain in accuracy is ``mean.accuracy - members.accuracy.mean()``. Rows where
        `mask`, [batch], is 0 do not count. Only for probabilities.
        """
        each = jax.vmap(_scores, (0, None, None))(self.members, labels, mask)
        return _scores(self.mean, labels, mask), each


def ensemble(
    predict: Callable[[Params, Data], Array],
    members: Params,
    x: Data,
    *,
    outputs: Outputs = "logits",
) -> Ensemble:
    """predict(params, x) of each of the members, leaves [members, ...] -> their mean, [batch, ...].

    `members` are stacked parameters, as `sweep` returns them. `outputs` says what `predict` makes:

    - "logits": [batch, classes]. The mean is that of their softmax (Lakshminarayanan et al. 2017).
    - "probabilities": [batch, classes]. If p is that of yes, it is ``jnp.stack([1 - p, p], -1)``.
    - "values": [batch, ...], of a regression.

    The disagreement of a row tells what training did not settle, apart from what the data leave
    open. For probabilities it is the mutual information between class and member in nats:
    H(mean) - mean H(member), H the entropy, which is 0 to log(the smaller of members and classes).
    For values it is their standard deviation over the members, of n, not n - 1.

    Computed in float32 at least. If a member diverged, the mean is NaN: leave it out, as in
    ``jax.tree.map(lambda a: a[finite], members)``. Pure: jit it. Members run one after another on a
    CPU, side by side elsewhere. For rows in batches, `fnn.predict` takes a function of x that calls
    this and returns ``mean`` and ``disagreement``.
    """
    if outputs not in ("logits", "probabilities", "values"):
        raise ValueError(
            f"ensemble: outputs is {outputs!r}, expected 'logits', 'probabilities' or 'values'"
        )
    _check_members(members)
    found = lax.platform_dependent(
        members,
        x,
        cpu=lambda members, x: lax.map(lambda params: predict(params, x), members),
        default=lambda members, x: jax.vmap(predict, (0, None))(members, x),
    )
    _check_outputs(found, outputs)
    each = wide(found)
    if outputs == "values":
        mean = each.mean(0)
        return Ensemble(mean, each, safe_sqrt(((each - mean) ** 2).mean(0)))
    p = softmax(each) if outputs == "logits" else each
    mean = p.mean(0)
    # The mean of the divergences of the members from the mean is H(mean) - mean H(member).
    information = rel_entr(p, mean[None]).sum(-1).mean(0)
    return Ensemble(mean, p, jnp.maximum(information, 0))


def _check_members(members: Params) -> None:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(members)]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(
            f"ensemble: members have shapes {shapes!s:.100}, expected one first axis, [members],"
            " shared by all leaves; jax.tree.map(lambda *a: jnp.stack(a), *trees) stacks trees"
        )


def _check_outputs(found: Any, outputs: str) -> None:
    """An error unless this is what `predict` should make."""
    if not isinstance(found, Array) or not jnp.issubdtype(found.dtype, jnp.floating):
        came = f"{found.dtype}" if isinstance(found, Array) else f"a {type(found).__name__}"
        raise TypeError(f"ensemble: predict returned {came}, expected one array of floating point")
    shape, least = found.shape[1:], 1 if outputs == "values" else 2
    if len(shape) < least or (least == 2 and shape[-1] < 2):
        expected = "[batch, ...]" if outputs == "values" else "[batch, classes], 2 classes or more"
        raise ValueError(f"ensemble: predict returned shape {shape}, expected {expected}")


def _scores(p: Array, labels: AnyArray, mask: AnyArray | None) -> Scores:
    mean = partial(weighted_mean, weights=mask)
    return Scores(
        accuracy=mean(accuracy(p, labels)),
        loss=mean(cross_entropy(jnp.log(p), labels)),
        brier_score=mean(brier_score(p, labels)),
        calibration_error=calibration_error(p, labels, mask),
    )
