"""Steps that are not finite: the policies, the first such step, and its name.

A step records the first one in the train state, with the policy that met it. So every loop, and
every wrapper around a step, keeps the policy: it travels with the data.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from fnn._base import Data, Metrics, Params, Seen, leaf_by_leaf, paths, seen, seldom

NonFinitePolicy = Literal["skip", "stop", "raise", "ignore"]
POLICIES: tuple[NonFinitePolicy, ...] = get_args(NonFinitePolicy)
NONE = -1


class FirstBad(NamedTuple):
    """The first step that was not finite, int32 each. `step` and `what` are -1 if there is none."""

    step: Array  # its number
    what: Array  # an index into `names_of_bad`
    policy: Array  # an index into `POLICIES`: the policy of the step that wrote this

    def found(self) -> Array:
        """Whether there was such a step."""
        return self.step >= 0

    def ends(self) -> Array:
        """Whether the run ends because of it: under the policies "stop" and "raise"."""
        ending = (self.policy == POLICIES.index("stop")) | (self.policy == POLICIES.index("raise"))
        return self.found() & ending

    def under(self, policy: NonFinitePolicy) -> "FirstBad":
        """The same, of a step with this policy."""
        return self._replace(policy=policy_index(policy))

    def noted(self, step: Array, bad: Array) -> "FirstBad":
        """The same, or ``(step, bad)`` if this is the first; `bad` is -1 where all is finite."""
        is_first = ~self.found() & (bad >= 0)
        return self._replace(
            step=jnp.where(is_first, step, self.step), what=jnp.where(is_first, bad, self.what)
        )


def no_bad(policy: NonFinitePolicy) -> FirstBad:
    """The value before the first step."""
    none = jnp.full((), NONE, jnp.int32)
    return FirstBad(none, jnp.array(none), policy_index(policy))


def policy_index(policy: NonFinitePolicy) -> Array:
    """The number of the policy in `POLICIES`, int32."""
    return jnp.full((), POLICIES.index(policy), jnp.int32)


def check_policy(name: str, policy: str) -> None:
    """Raise ValueError unless `policy` is one of `POLICIES`."""
    if policy not in POLICIES:
        expected = ", ".join(map(repr, POLICIES))
        raise ValueError(f"{name}: nonfinite is {policy!r}, expected one of {expected}")


def names_of_bad(params: Params, data: Data = None) -> list[str]:
    """The name of each value of the metric "nonfinite", from 0."""
    leaves = list(paths(params))
    return [
        *(f"the gradient of {leaf}" for leaf in leaves),
        "the loss",
        "the learning rate",
        *(f"the parameter {leaf}" for leaf in leaves),
        *(f"the square of the gradient of {leaf}" for leaf in leaves),
        *(f"the input {leaf}".rstrip() for leaf in paths(data)),
    ]


def look(grads: Params, params: Params) -> Seen:
    """The norm of `grads`, and on a GPU what is not finite. Leaves that they lack are frozen."""
    return seen(*_side_by_side(grads, params))


def _side_by_side(grads: Params, params: Params) -> tuple[list[Array], list[Array]]:
    moved, all_params = paths(grads), paths(params)
    grads = [moved.get(path, jnp.zeros_like(p)) for path, p in all_params.items()]
    return grads, list(all_params.values())


def which_is_bad(
    finite: Array,
    found: Seen,
    grads: Params,
    params: Params,
    batch: Data,
    loss: Array,
    rates: Metrics,
) -> Array:
    """-1 if step and rates are `finite`; else the index in `names_of_bad` of the first that is not.

    Causes come before effects: inputs, parameters, the loss, gradients, their squares, the rate.
    `found` is what `look` found in grads and params.
    """
    n = len(jax.tree.leaves(params))
    loss_code, rate_code, params_code = n, n + 1, n + 2
    squares_code, inputs_code = 2 * n + 2, 3 * n + 2

    def code(found: Seen, inputs: Any, loss: Array) -> Array:
        # With a finite norm it can only be a square. No square of a sum that overflows is larger
        # than the largest, times how many there are.
        of_square = jnp.where(found.square < n, squares_code + found.square, rate_code)
        code = jnp.where(found.is_finite, of_square, found.gradient)
        code = jnp.where(jnp.isfinite(loss), code, loss_code)
        code = jnp.where(found.parameter < n, params_code + found.parameter, code)
        for i, leaf in reversed([*enumerate(inputs)]):
            code = jnp.where(jnp.isfinite(leaf).all(), code, jnp.int32(inputs_code + i))
        return code

    def on_a_gpu(finite: Array, found: Seen, both: Any, *given: Any) -> Array:
        return jnp.where(finite, NONE, code(found, *given))

    def elsewhere(finite: Array, found: Seen, both: Any, *given: Any) -> Array:
        def now(found: Seen, both: Any, *given: Any) -> Array:
            return code(leaf_by_leaf(found, *both), *given)

        return seldom(~finite, jnp.int32(NONE), now, found, both, *given)

    for rate in rates.values():
        finite = finite & jnp.isfinite(rate).all()
    given = finite, found, _side_by_side(grads, params), jax.tree.leaves(batch), loss
    return lax.platform_dependent(*given, cuda=on_a_gpu, rocm=on_a_gpu, default=elsewhere)


def check_finite(history: Metrics, params: Params, data: Data = None) -> None:
    """Raise FloatingPointError naming the first step of `history` that was not finite.

    `history` is the one of `fit`, or of a sweep of it, [..., epochs, steps], or of
    `train_on_batches`, [steps]. Each member of a sweep is looked at. `params` and `data` give
    the leaves' names. Call it on the host, outside jit.
    """
    bad = jax.device_get(history["nonfinite"])
    found = (bad >= 0).nonzero()
    if not len(found[0]):
        return
    *member, step = (int(axis[0]) for axis in found)
    when = f"epoch {member.pop()}, step {step}" if member else f"step {step}"
    what = _name_of_bad(int(bad[tuple(axis[0] for axis in found)]), params, data)
    who = f", member {member[0] if len(member) == 1 else tuple(member)}" if member else ""
    raise FloatingPointError(f"{when}{who}: {what} is not finite")


def describe_bad(first: FirstBad, params: Params, data: Data, steps: int) -> str | None:
    """ "epoch 3, step 2: the loss is not finite", or None; `steps` are those of an epoch."""
    if not first.found():
        return None
    step, what = int(first.step), _name_of_bad(int(first.what), params, data)
    return f"epoch {step // steps}, step {step % steps}: {what} is not finite"


def _name_of_bad(code: int, params: Params, data: Data) -> str:
    names = names_of_bad(params, data)
    return names[code] if code < len(names) else "the input"
