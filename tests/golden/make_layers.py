"""Write layers.npz: what PyTorch's layers do, values and gradients, computed in float64.

    pip install torch==2.13.0 numpy && python tests/golden/make_layers.py

Each case is named name/x, name/y, name/dx, and for its parameters and running statistics name/w,
name/dw and so on, in fnn's layout: channels last, [*size, in, out]. The gradients are those of
sum(y c) with c = cos(0, 1, 2, ...) in the order of y's elements. Inputs are multiples of 1/64,
exact in float32; max pooling's are multiples of 1/2, so that there are ties. Results are rounded
to float32. Kept in the repository so that the tests need no PyTorch.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as torch_nn

rng = np.random.default_rng(0)
arrays = {"torch_version": np.array(torch.__version__)}


def draw(*shape, unit=1 / 64):
    return np.round(rng.normal(size=shape) / unit) * unit


def swap(w):
    """[*size, in, out] -> [out, in, *size], as a tensor."""
    rank = w.ndim - 2
    return w.permute(rank + 1, rank, *range(rank))


def first(x):
    return x.movedim(-1, 1)


def case(name, apply, x, **params):
    inputs = {"x": x, **params}
    tensors = {
        key: torch.tensor(value, requires_grad=value.dtype == np.float64)
        for key, value in inputs.items()
    }
    y = apply(**tensors)
    others = {}
    if isinstance(y, tuple):
        y, others = y
    c = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape)
    (y * c).sum().backward()
    arrays.update({f"{name}/{key}": value for key, value in inputs.items()})
    arrays[f"{name}/y"] = y.detach().numpy()
    arrays.update(
        {f"{name}/d{k}": t.grad.numpy() for k, t in tensors.items() if t.grad is not None}
    )
    arrays.update({f"{name}/{key}": value.numpy() for key, value in others.items()})


def conv(rank, **options):
    function = getattr(torch_nn, f"conv{rank}d")
    return lambda x, w, b: function(first(x), swap(w), b, **options).movedim(1, -1)


def conv_transpose(rank, **options):
    function = getattr(torch_nn, f"conv_transpose{rank}d")
    return lambda x, w, b: function(first(x), swap(w).transpose(0, 1), b, **options).movedim(1, -1)


case("conv1d", conv(1), draw(2, 7, 3), w=draw(3, 3, 4), b=draw(4))
case("conv2d", conv(2, padding=1), draw(2, 6, 5, 3), w=draw(3, 3, 3, 4), b=draw(4))
case(
    "conv2d_strided",
    conv(2, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    draw(2, 7, 6, 3),
    w=draw(3, 2, 3, 4),
    b=draw(4),
)
case("conv2d_grouped", conv(2, groups=2), draw(2, 5, 5, 4), w=draw(3, 3, 2, 4), b=draw(4))
case("conv2d_depthwise", conv(2, groups=3), draw(2, 5, 5, 3), w=draw(3, 3, 1, 6), b=draw(6))
case("conv2d_1x1", conv(2), draw(2, 4, 4, 3), w=draw(1, 1, 3, 4), b=draw(4))
case(
    "conv3d",
    conv(3, stride=(1, 2, 1)),
    draw(2, 4, 4, 3, 2),
    w=draw(2, 2, 3, 2, 3),
    b=draw(3),
)
case("conv_transpose1d", conv_transpose(1, stride=2), draw(2, 4, 3), w=draw(3, 3, 2), b=draw(2))
case(
    "conv_transpose2d",
    conv_transpose(2, stride=(2, 3), padding=(1, 0), dilation=(1, 2), output_padding=(1, 0)),
    draw(2, 4, 3, 3),
    w=draw(3, 3, 3, 2),
    b=draw(2),
)

case(
    "max_pool",
    lambda x: torch_nn.max_pool2d(first(x), 2).movedim(1, -1),
    draw(2, 5, 4, 3, unit=0.5),
)
case(
    "max_pool_overlapping",
    lambda x: torch_nn.max_pool2d(first(x), 3, 2, 1).movedim(1, -1),
    draw(2, 6, 5, 3, unit=0.5),
)
case(
    "avg_pool",
    lambda x: torch_nn.avg_pool2d(first(x), 3, 2, 1, count_include_pad=False).movedim(1, -1),
    draw(2, 6, 5, 3),
)


def batch_norm(train):
    def apply(x, scale, offset, mean, var):
        mean, var = mean.detach().clone(), var.detach().clone()
        y = torch_nn.batch_norm(first(x), mean, var, scale, offset, train, 0.1, 1e-5).movedim(1, -1)
        return y, {"new_mean": mean, "new_var": var}

    return apply


def norm_params(dim):
    return {"scale": draw(dim), "offset": draw(dim)}


state = {"mean": draw(3), "var": draw(3) ** 2 + 0.5}
case("batch_norm_train", batch_norm(True), 3 + draw(4, 3, 2, 3), **norm_params(3), **state)
case("batch_norm_eval", batch_norm(False), 3 + draw(4, 3, 2, 3), **norm_params(3), **state)
case(
    "layer_norm",
    lambda x, scale, offset: torch_nn.layer_norm(x, x.shape[-1:], scale, offset),
    draw(3, 2, 5),
    **norm_params(5),
)
case(
    "group_norm",
    lambda x, scale, offset: torch_nn.group_norm(first(x), 2, scale, offset).movedim(1, -1),
    draw(3, 4, 2, 6),
    **norm_params(6),
)
case(
    "rms_norm",
    lambda x, scale: torch_nn.rms_norm(x, x.shape[-1:], scale, 1e-5),
    draw(3, 2, 5),
    scale=draw(5),
)
case("embed", lambda x, w: torch_nn.embedding(x, w), rng.integers(0, 5, (3, 4)), w=draw(5, 3))

for name, array in arrays.items():
    assert array.dtype.kind != "f" or np.isfinite(array).all(), name
small = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
np.savez_compressed(Path(__file__).with_name("layers.npz"), **small)
