"""Write torch_optimizers.npz: what PyTorch's optimizers do with given gradients, in float64.

    pip install torch==2.13.0 && python tests/golden/make_torch_optimizers.py

50 steps on a vector of 12, gradients of sizes 1 to 1e-8 and exact zeros, the learning rate
constant (0.01) or changing (0.01 / (1 + 0.1 step)). Kept in the repository so that the tests need
no PyTorch; `test_torch.py` says which of fnn's arguments mean the same.
"""

from pathlib import Path

import numpy as np
import torch

STEPS, SIZE = 50, 12
RULES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1, eps=0),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.999), eps=1e-8),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01),
    "sgd_with_l2": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.01),
}

rng = np.random.default_rng(0)
grads = rng.normal(size=(STEPS, SIZE)) * 10.0 ** rng.integers(-8, 1, (STEPS, SIZE))
grads[rng.uniform(size=grads.shape) < 0.1] = 0
start = rng.normal(size=SIZE)
arrays = {"grads": grads, "start": start}
for name, make in RULES.items():
    for schedule, rate in (
        ("constant", lambda s: 0.01),
        ("changing", lambda s: 0.01 / (1 + 0.1 * s)),
    ):
        p = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        optimizer = make([p])
        path = []
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = rate(step)
            p.grad = torch.tensor(grads[step])
            optimizer.step()
            path.append(p.detach().numpy().copy())
        arrays[f"{name}_{schedule}"] = np.array(path)
arrays["torch_version"] = np.array(torch.__version__)
np.savez_compressed(Path(__file__).with_name("torch_optimizers.npz"), **arrays)
