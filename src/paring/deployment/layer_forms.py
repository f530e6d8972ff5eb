"""The forms in which a layer can run: which there are for its class, its device and its zeros."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from paring.core.answers_only import AnswersOnly
from paring.core.refusal import Refusal
from paring.deployment.sparse_layers import SparseConv, SparseLinear
from paring.deployment.torch_sparse import TorchSparseLinear, TwoFourLinear, block_of, is_two_four

FEWEST = 0.5  # share of zeros below which no form is tried
Form = Callable[[], AnswersOnly]


def zeros(layer: nn.Module) -> float:
    """Share of the weights that are zero."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return float((weight == 0).sum()) / max(1, weight.numel())


def forms(layer: nn.Module) -> dict[str, Form] | Refusal:
    """By name; or why there are none."""
    if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d):
        return Refusal("no sparse form of this class")
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    if any(getattr(layer, kind) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")):
        return Refusal("it has hooks")
    if zeros(layer) < FEWEST:
        return Refusal("few zeros")
    weight = layer.weight.detach()
    if weight.is_cuda:
        if isinstance(layer, nn.Linear) and weight.dtype in (torch.float16, torch.bfloat16) and is_two_four(weight):
            return {"2:4": partial(TwoFourLinear, layer)}
        return Refusal("on CUDA only linear layers in half precision with two zeros in every four weights")
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return Refusal(f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type}: only float32 on the CPU")
    return _linear(layer) if isinstance(layer, nn.Linear) else _convolution(layer)


def _linear(layer: nn.Linear) -> dict[str, Form]:
    found: dict[str, Form] = {"CSR (MKL)": partial(TorchSparseLinear, layer)}
    if block := block_of(layer.weight.detach()):
        found[f"blocks of {block} (MKL)"] = partial(TorchSparseLinear, layer, block)
    if _compiles():
        found["packed"] = partial(SparseLinear, layer)
    return found


def _convolution(layer: nn.Conv1d | nn.Conv2d) -> dict[str, Form] | Refusal:
    if layer.padding_mode != "zeros":
        return Refusal(f"padding by {layer.padding_mode}")
    if not _compiles():
        return Refusal("its kernel needs numba: pip install 'paring[bits]'")
    return {"packed": partial(SparseConv, layer)}


def _compiles() -> bool:
    return importlib.util.find_spec("numba") is not None
