"""Programs lower for every platform, without one: nothing that only a CPU has, nothing that waits."""

import functools
import importlib.util
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import fnn
from tests.nets import KEY

PLATFORMS = ("cpu", "cuda", "tpu")
X, LABELS = jnp.zeros((10, 4)), jnp.zeros(10, jnp.int32)
CPU_ONLY = re.compile(r"custom_call.*(lapack|xla_ffi|callback|xla_python)")


def loss_fn(params, batch, key):
    return fnn.cross_entropy(fnn.mlp(params, batch[0], key=key, rate=0.5), batch[1])


def trained(learning_rate, key, until=None, **options):
    step = fnn.make_train_step(loss_fn, fnn.adam(learning_rate), **options)
    ts = step.init(fnn.mlp_init(key, (4, 5, 2)))
    sizes = {"epochs": 2, "batch_size": 4}
    if until is None:
        return fnn.fit(step, ts, (X, LABELS), key, **sizes)
    return fnn.fit_until(step, ts, (X, LABELS), key, until, **sizes)


PROGRAMS = {
    "fit": (trained, 0.1, KEY),
    "fit with every option": (
        functools.partial(trained, clip_norm=1.0, accumulate=2, update_ratio=True, loss_scale=2.0),
        0.1,
        KEY,
    ),
    "fit in half precision": (functools.partial(trained, compute_dtype="bfloat16"), 0.1, KEY),
    "fit_until": (functools.partial(trained, until=fnn.EarlyStopping("loss")), 0.1, KEY),
    "many side by side": (jax.vmap(trained), jnp.full(3, 0.1), jax.random.split(KEY, 3)),
    "evaluate": (lambda x: fnn.evaluate(lambda batch: batch.sum(-1), x, 4), X),
    "augmented": (lambda x: fnn.augment.flip(KEY, x), jnp.zeros((2, 4, 4, 1))),
}


@functools.cache
def lowered(name, platform):
    program, *args = PROGRAMS[name]
    return jax.jit(program).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_lower_for_every_platform(name):
    for platform in PLATFORMS:
        text = lowered(name, platform)
        assert "f64" not in text
        assert not CPU_ONLY.search(text), CPU_ONLY.search(text)


def waits(text):
    """The branches taken by a computed value: not those that choose the platform, by a constant."""
    branches = re.findall(r'"stablehlo.(?:case|if)"\(%(\w+)\)', text)
    chosen = re.findall(r'%(\w+) = (?:stablehlo.constant|"stablehlo.case"\(%c)', text)
    return [value for value in branches if value not in chosen]


def test_a_gpus_host_waits_for_nothing():
    # A conditional on a GPU is a copy to the host, which reads it and launches what follows.
    for name in PROGRAMS:
        assert not waits(lowered(name, "cuda")), name
    assert waits(lowered("fit", "cpu"))  # there a branch saves copies


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "compiler", "package"),
    [("cuda", "jax_cuda13_plugin", "jax[cuda13]"), ("tpu", "libtpu", "jax[tpu]")],
)
def test_the_kernels_are_as_many_as_were_counted(platform, compiler, package):
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f"needs the compiler: pip install '{package}'")
    kernels = pytest.importorskip("benchmarks.kernels")
    counted = json.loads((Path(kernels.__file__).parent / "kernels.json").read_text())
    kept = counted.get(platform, {"jax": None})
    if kept.pop("jax") != jax.__version__:
        pytest.skip("counted with another version of jax")
    rows = kernels.measured(platform, kept.__contains__)
    assert {name: row._asdict() for name, row in rows.items()} == kept
