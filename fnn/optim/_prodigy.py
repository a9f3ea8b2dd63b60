"""Prodigy: Adam that estimates its learning rate, one number for all parameters."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from fnn._base import (
    Params,
    as_number,
    check_mask,
    check_range,
    next_count,
    paths,
    resolve_mask,
    safe_divide,
    safe_sqrt,
    wide,
)
from fnn.optim._lifting import (
    Number,
    Optimizer,
    Rate,
    bias_correction,
    check_decays,
    check_hyper,
    check_learning_rate,
    check_params,
    check_same_trees,
    number_at,
    where_trained,
)


def _moments(
    g: Array,
    p: Array,
    memory: dict[str, Array],
    d: Array,
    gain: Array,
    b1: Number,
    b2: Number,
    b3: Number,
) -> tuple[dict[str, Array], Array, Array]:
    """The new memory of an array, its part of <g, p_0 - p> and its part of norm_1(s)."""
    mu = b1 * memory["mu"] + (1 - b1) * d * g
    nu = b2 * memory["nu"] + (1 - b2) * (d * g) ** 2
    s = b3 * memory["grad_sum"] + gain * g
    new = memory | {"mu": mu, "nu": nu, "grad_sum": s}
    return new, jnp.sum(g * (memory["first"] - p)), jnp.sum(jnp.abs(s))


def _step(memory: dict[str, Array], decayed: Array, delta: Array, d: Array, eps: Number) -> Array:
    u = safe_divide(memory["mu"], safe_sqrt(memory["nu"]) + d * eps)
    return delta * (u + decayed)


def prodigy(
    learning_rate: Rate = 1.0,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: Rate = 0.0,
    *,
    mask: Any = None,
    b3: ArrayLike | None = None,
    d0: ArrayLike = 1e-6,
    d_coef: ArrayLike = 1.0,
    growth_rate: ArrayLike | None = None,
    safeguard_warmup: bool = False,
    decouple: bool = True,
    correct: bool = True,
) -> Optimizer:
    """Mishchenko & Defazio 2023: AdamW times d, an estimate of the distance to the solution.

    delta = d rate sqrt(1 - b2^t) / (1 - b1^t), without `correct` d rate.
    mu <- b1 mu + (1 - b1) d g; nu <- b2 nu + (1 - b2) (d g)^2.
    r <- b3 r + (d / d0) delta <g, p_0 - p>; s <- b3 s + (d / d0) delta g, with b3 = sqrt(b2).
    d' = max(d, d_coef r / norm_1(s)); p <- p - delta (mu / (sqrt(nu) + d' eps) + weight_decay p).

    d starts at `d0` and is one number for all parameters: the sums in r and norm_1(s) are over the
    whole tree, so groups of `by_path` each have their own. While s is 0, nothing moves.

    - `learning_rate`: leave it at 1, or give a schedule with peak 1.
    - `growth_rate`: d grows at most by this factor a step, except for its first rise from d0. The
      state then also has "max_distance", the largest estimate so far.
    - `safeguard_warmup`: d for delta in s, so that a warm-up does not count there.
    - `decouple`: without it weight_decay p is added to g, which is L2.

    This is Optax's definition. The authors' (prodigyopt) is without `correct`. In the state
    r is "numerator", s "grad_sum", p_0 "first" and d "distance"; "last_rate" is delta. Complex
    parameters are a TypeError. `mask` as in `adamw`. Memory: four arrays a parameter.
    """
    check_learning_rate("prodigy", learning_rate)
    check_decays("prodigy", b1=b1, b2=b2, b3=b3)
    check_hyper("prodigy", "eps", eps, 0)
    check_hyper("prodigy", "d_coef", d_coef, 0)
    if growth_rate is not None:
        check_hyper("prodigy", "growth_rate", growth_rate, 1)
    check_hyper("prodigy", "d0", d0)
    check_range("prodigy", "d0", d0, 0, above=True)
    if not callable(weight_decay):
        check_range("prodigy", "weight_decay", weight_decay, 0)
    check_mask(mask, "prodigy: mask")
    number = partial(as_number, dtype=float)

    def init(params: Params) -> dict[str, Any]:
        for path, leaf in paths(params).items():
            dtype = jnp.result_type(leaf)
            if not jnp.issubdtype(dtype, jnp.floating):
                raise TypeError(f"prodigy: parameter {path!r} is {dtype}, expected real floats")
        count, d = jnp.zeros((), jnp.int32), jnp.asarray(d0, float)
        zeros = [_new(jnp.zeros_like, params) for _ in range(3)]
        return {
            "count": count,
            "last_rate": d
            * jnp.asarray(number_at("prodigy", "learning_rate", learning_rate, count), float),
            **dict(zip(("mu", "nu", "grad_sum"), zeros, strict=True)),
            "first": _new(jnp.array, params),  # a copy, since params may be donated
            "numerator": jnp.zeros((), float),
            "distance": d,
        } | ({} if growth_rate is None else {"max_distance": jnp.array(d)})

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        check_params("prodigy", params)
        params = where_trained(updates, params)
        trees = {slot: state[slot] for slot in ("mu", "nu", "grad_sum", "first")}
        check_same_trees("prodigy", updates, {"params": params} | trees)
        grads, treedef = jax.tree.flatten(updates)
        ps = jax.tree.leaves(params)
        masks = jax.tree.leaves(resolve_mask(mask, params, "prodigy: mask"))
        columns = [jax.tree.leaves(tree) for tree in trees.values()]
        memories = [dict(zip(trees, arrays, strict=True)) for arrays in zip(*columns, strict=True)]

        count, d = state["count"], state["distance"]
        t = next_count(count)
        rate = number(number_at("prodigy", "learning_rate", learning_rate, count))
        decay = number(number_at("prodigy", "weight_decay", weight_decay, count))
        delta = d * rate
        if correct:
            beta1, beta2 = number(b1), number(b2)
            steps = t.astype(float)
            delta = delta * bias_correction(beta1, steps) / jnp.sqrt(bias_correction(beta2, steps))
        gain = d / number(d0)

        # The first pass, from which d is estimated: sums over all arrays.
        numerator = (
            _of(float, number(b3) if b3 is not None else _root(number(b2))) * state["numerator"]
        )
        norm = jnp.zeros((), float)
        decayed: list[Array] = []
        for i, (g, p, decays) in enumerate(zip(grads, ps, masks, strict=True)):
            of = partial(_of, memories[i]["mu"].dtype)
            g, p = of(g), of(p)
            decayed.append(of(decay) * of(decays) * p)
            memories[i], product, size = _moments(
                g if decouple else g + decayed[i],
                p,
                memories[i],
                of(d),
                of(gain * (d if safeguard_warmup else delta)),
                as_number(b1, g.dtype),
                as_number(b2, g.dtype),
                _root(as_number(b2, g.dtype)) if b3 is None else as_number(b3, g.dtype),
            )
            numerator = numerator + gain * delta * _of(float, product)
            norm = norm + _of(float, size)
        estimate = number(d_coef) * safe_divide(numerator, norm)
        new_d, largest = jnp.maximum(d, estimate), {}
        if growth_rate is not None:
            largest = {"max_distance": jnp.maximum(state["max_distance"], estimate)}
            risen = jnp.where(d == jnp.asarray(d0, float), new_d, d)
            new_d = jnp.minimum(largest["max_distance"], risen * number(growth_rate))

        delta = jnp.where(norm == 0, 0, delta)
        moves = []
        for g, memory, extra in zip(grads, memories, decayed, strict=True):
            of = partial(_of, memory["mu"].dtype)
            extra = extra if decouple else jnp.zeros_like(extra)
            step = _step(memory, extra, of(delta), of(new_d), as_number(eps, extra.dtype))
            moves.append((-step).astype(jnp.result_type(g)))
        return treedef.unflatten(moves), {
            "count": t,
            "last_rate": delta,
            **{slot: treedef.unflatten([m[slot] for m in memories]) for slot in trees},
            "numerator": numerator,
            "distance": new_d,
        } | largest

    return optax.with_extra_args_support(Optimizer(init, update))


def _root(b: Number) -> Number:
    """The square root; of a traced number with the derivative 0 at 0."""
    return b**0.5 if isinstance(b, float) else safe_sqrt(b)


def _new(make: Any, params: Params) -> Params:
    """A tree like params, in float32 at least."""

    def leaf(p: Any) -> Array:
        # As Optax's do, init takes shapes too.
        p = jnp.zeros_like(p) if isinstance(p, jax.ShapeDtypeStruct) else p
        return make(wide(p))

    return jax.tree.map(leaf, params)


def _of(dtype: Any, value: Any) -> Array:
    return jnp.asarray(value, dtype)
