"""Write sequence.npz: PyTorch's recurrent layers and attention, values and gradients, in float64.

    pip install torch==2.13.0 numpy && python tests/golden/make_sequence.py

The gradients are those of sum(output * probe). Arrays are named case/x, case/probe, case/y,
case/x_grad, case/params/<PyTorch's name> and case/grads/<PyTorch's name>. Kept in the repository
so that the tests need no PyTorch.
"""

from pathlib import Path

import numpy as np
import torch

FILE = Path(__file__).with_name("sequence.npz")
BATCH, TIME, IN, HIDDEN = 3, 5, 4, 3
LENGTHS = [5, 2, 3]

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
arrays = {"torch_version": np.array(torch.__version__), "lengths": np.array(LENGTHS)}


def record(case, module, apply, dim):
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5)
        arrays[f"{case}/params/{name}"] = parameter.detach().numpy().copy()
    x = torch.randn(BATCH, TIME, dim, requires_grad=True)
    y = apply(x)
    probe = torch.randn(y.shape)
    (y * probe).sum().backward()
    arrays.update({f"{case}/x": x.detach().numpy(), f"{case}/x_grad": x.grad.numpy()})
    arrays.update({f"{case}/y": y.detach().numpy(), f"{case}/probe": probe.numpy()})
    for name, parameter in module.named_parameters():
        arrays[f"{case}/grads/{name}"] = parameter.grad.numpy()


def packed(module, x):
    utils = torch.nn.utils.rnn
    pack = utils.pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    return utils.pad_packed_sequence(module(pack)[0], batch_first=True)[0]


for name, layers in {"RNN": 1, "LSTM": 2, "GRU": 1}.items():
    layer = getattr(torch.nn, name)
    module = layer(IN, HIDDEN, batch_first=True)
    record(name.lower(), module, lambda x, m=module: m(x)[0], IN)
    module = layer(IN, HIDDEN, layers, bidirectional=True, batch_first=True)
    record(f"{name.lower()}_packed", module, lambda x, m=module: packed(m, x), IN)

blocked = torch.triu(torch.ones(TIME, TIME, dtype=torch.bool), diagonal=1)
padded = torch.arange(TIME)[None] >= torch.tensor(LENGTHS)[:, None]
masks = {"_causal": {"attn_mask": blocked}, "_padded": {"key_padding_mask": padded}}
for name, mask in masks.items():
    module = torch.nn.MultiheadAttention(6, 2, batch_first=True)
    record(f"attention{name}", module, lambda x, m=module, k=mask: m(x, x, x, **k)[0], 6)

module = torch.nn.MultiheadAttention(6, 3, kdim=4, vdim=4, batch_first=True)
context = torch.randn(BATCH, 7, 4)
arrays["attention_context/context"] = context.numpy()
record("attention_context", module, lambda x: module(x, context, context)[0], 6)

block = torch.nn.TransformerEncoderLayer(
    6, 2, dim_feedforward=8, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
)
record("block", block, lambda x: block(x, src_mask=blocked), 6)
np.savez_compressed(FILE, **arrays)
