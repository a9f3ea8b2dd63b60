"""Write optimizers.npz: what PyTorch's and Keras's optimizers do with given gradients, in float64.

    pip install torch==2.13.0 numpy && python tests/golden/make_optimizers.py torch
    pip install keras==3.15.1 jax==0.10.2 && python tests/golden/make_optimizers.py keras

Each command writes its own library's arrays and keeps the other's, so the two may live in two
environments. 50 steps on a vector of 12, gradients of sizes 1 to 1e-8 and, after the first step,
exact zeros (PyTorch's Adagrad divides 0 by 0 where there has been no gradient yet), the learning
rate constant (0.01) or changing (0.01 / (1 + 0.1 step)). The arrays are named
library/rule/constant and library/rule/changing, beside grads, start and the versions. Kept in the
repository so that the tests need neither library; they say which of fnn's arguments mean the same.
"""

import os
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("optimizers.npz")
STEPS, SIZE = 50, 12
RATES = {"constant": lambda step: 0.01, "changing": lambda step: 0.01 / (1 + 0.1 * step)}
RULES = {
    "torch": {
        "sgd": ("SGD", {}),
        "momentum": ("SGD", {"momentum": 0.9}),
        "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
        "dampening": ("SGD", {"momentum": 0.9, "dampening": 0.5}),
        "sgd_l2": ("SGD", {"momentum": 0.9, "weight_decay": 0.01}),
        "adagrad": ("Adagrad", {"initial_accumulator_value": 0, "eps": 1e-10}),
        "rmsprop": ("RMSprop", {"alpha": 0.99, "eps": 1e-8}),
        "rmsprop_centered": ("RMSprop", {"alpha": 0.9, "eps": 1e-8, "centered": True}),
        "rmsprop_momentum": ("RMSprop", {"alpha": 0.9, "eps": 1e-8, "momentum": 0.9}),
        "adam": ("Adam", {"betas": (0.9, 0.999), "eps": 1e-8}),
        "adam_l2": ("Adam", {"weight_decay": 0.01}),
        "amsgrad": ("Adam", {"amsgrad": True}),
        "adamw": ("AdamW", {"weight_decay": 0.01}),
        "nadam": ("NAdam", {"betas": (0.9, 0.999), "eps": 1e-8, "momentum_decay": 4e-3}),
        "adadelta": ("Adadelta", {"rho": 0.9, "eps": 1e-6}),
        "adamax": ("Adamax", {"betas": (0.9, 0.999), "eps": 1e-8}),
        "radam": ("RAdam", {"betas": (0.9, 0.999), "eps": 1e-8}),
        "rprop": ("Rprop", {"etas": (0.5, 1.2), "step_sizes": (1e-6, 50)}),
        # On a 3 x 4 matrix. The defaults: weight_decay=0.1, momentum=0.95, nesterov=True,
        # ns_coefficients=(3.4445, -4.775, 2.0315), eps=1e-7, ns_steps=5, adjust_lr_fn=None (so
        # rate * sqrt(max(1, rows / columns))). It orthogonalizes in bfloat16, whatever the dtype.
        "muon": ("Muon", {}),
    },
    "keras": {
        "sgd": ("SGD", {}),
        "momentum": ("SGD", {"momentum": 0.9}),
        "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
        "adagrad": ("Adagrad", {"initial_accumulator_value": 0.1, "epsilon": 1e-7}),
        "rmsprop": ("RMSprop", {"rho": 0.9, "epsilon": 1e-7}),
        "rmsprop_centered": ("RMSprop", {"rho": 0.9, "epsilon": 1e-7, "centered": True}),
        "rmsprop_momentum": ("RMSprop", {"rho": 0.9, "epsilon": 1e-7, "momentum": 0.9}),
        "adam": ("Adam", {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}),
        "amsgrad": ("Adam", {"epsilon": 1e-7, "amsgrad": True}),
        "adamw": ("AdamW", {"epsilon": 1e-7, "weight_decay": 0.01}),
        "nadam": ("Nadam", {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}),
        "lion": ("Lion", {"beta_1": 0.9, "beta_2": 0.99}),
        "adadelta": ("Adadelta", {"rho": 0.95, "epsilon": 1e-7}),
        "adamax": ("Adamax", {"epsilon": 1e-7}),
        "lamb": ("Lamb", {"epsilon": 1e-7}),
        # On a 3 x 4 matrix [in, out]. The defaults: momentum=0.95, nesterov=True, ns_steps=5,
        # weight_decay=0.004, rms_rate=0.2.
        "muon": ("Muon", {}),
    },
}

library = sys.argv[1] if len(sys.argv) == 2 else ""
if library == "torch":
    import torch

    version = torch.__version__
    torch.set_default_dtype(torch.float64)  # else NAdam keeps its product of mus in float32

    def follow(rule, arguments, rate, start, grads):
        p = torch.tensor(start, requires_grad=True)
        optimizer = getattr(torch.optim, rule)([p], lr=0.01, **arguments)
        for step, g in enumerate(grads):
            optimizer.param_groups[0]["lr"] = rate(step)
            p.grad = torch.tensor(g)
            optimizer.step()
            yield p.detach().numpy().copy()

elif library == "keras":
    os.environ |= {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    import keras

    version = keras.__version__
    keras.config.set_floatx("float64")

    def follow(rule, arguments, rate, start, grads):
        p = keras.Variable(start)
        optimizer = getattr(keras.optimizers, rule)(learning_rate=0.01, **arguments)
        for step, g in enumerate(grads):
            optimizer.learning_rate = rate(step)
            optimizer.apply([keras.ops.convert_to_tensor(g)], [p])
            yield np.array(p.value)
        floats = [v.dtype for v in optimizer.variables if v is not optimizer.iterations]
        assert set(floats) == {"float64"}, floats

else:
    sys.exit("usage: make_optimizers.py torch|keras")

rng = np.random.default_rng(0)
grads = rng.normal(size=(STEPS, SIZE)) * 10.0 ** rng.integers(-8, 1, (STEPS, SIZE))
grads[1:][rng.uniform(size=grads.shape)[1:] < 0.1] = 0
start = rng.normal(size=SIZE)
arrays = {"grads": grads, "start": start, f"{library}_version": np.array(version)}
for name, (rule, arguments) in RULES[library].items():
    shape = (3, 4) if name == "muon" else (SIZE,)
    for schedule, rate in RATES.items():
        points = follow(rule, arguments, rate, start.reshape(shape), grads.reshape(-1, *shape))
        path = np.array([point.reshape(SIZE) for point in points])
        assert path.shape == (STEPS, SIZE)
        assert path.dtype == np.float64
        assert np.isfinite(path).all(), name
        arrays[f"{library}/{name}/{schedule}"] = path

if FILE.exists():
    with np.load(FILE) as old:
        assert np.array_equal(old["grads"], grads)
        assert np.array_equal(old["start"], start)
        arrays = {k: old[k] for k in old if not k.startswith(library)} | arrays
np.savez_compressed(FILE, **dict(sorted(arrays.items())))
