"""Fuse BatchNorm into the layer in front of it, for a network that is only evaluated any more.

In eval mode BatchNorm computes y = s (x - mean) + shift with s = scale / sqrt(var + eps); behind a linear layer or a
convolution that is the same layer with rows s W and bias s (b - mean) + shift. The norm becomes an `nn.Identity`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from paring.analysis.capture import Captured, capture
from paring.analysis.interpret import Interpretation, interpret
from paring.analysis.state import NormSite, Site, module_path, ties_of
from paring.analysis.weights import known
from paring.core import Inputs, Refusal
from paring.removal.choose import offenders
from paring.removal.graph_net import GraphNet
from paring.removal.plan import ShrinkPlan, full_name, per_channel
from paring.removal.report import Fusion, Mode
from paring.removal.verify import verify

_LAYERS = ("linear", "conv", "conv_transpose")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Fused:
    """What was fused, norms that moved the outputs with what moved, and why others stay."""

    done: tuple[Fusion, ...] = ()
    rolled_back: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def fused_copy(net: nn.Module, example: Inputs, mode: Mode, check: bool) -> tuple[nn.Module, Fused]:
    """A copy of `net` with all norms fused that can be.

    check: compare outputs in eval mode, and leave norms out that move them. Raises `CaptureError`, and `ValueError` where
    fusing is no option: for mode "both", and for a `GraphNet`.
    """
    if mode == "both":
        raise ValueError(
            "fuse_norms=True is for eval mode alone: a fused norm keeps no statistics. Call net.eval() first, or give "
            "mode='eval'"
        )
    if isinstance(net, GraphNet):
        raise ValueError(
            "fuse_norms=True needs the network's own modules, but in graph form they are not called. Compact the network "
            "that this one came from, with fuse_norms=True"
        )
    captured = capture(net, example)
    found, reasons = fusions(net, captured, interpret(net, captured, training=False))

    def differs(spare: Sequence[str]) -> Refusal | None:
        chosen = [one for one in found if one.norm not in spare]
        return verify(net, ShrinkPlan((), (), {}, ()), example, make=lambda n: fuse(copy.deepcopy(n), chosen))

    rolled_back = offenders([one.norm for one in found], differs) if check and found else {}
    done = tuple(one for one in found if one.norm not in rolled_back)
    notes = tuple(f"norm '{name}' is not fused: {why}" for name, why in reasons.items())
    return fuse(copy.deepcopy(net), done), Fused(done, rolled_back, notes)


def fusions(net: nn.Module, captured: Captured, analysis: Interpretation) -> tuple[list[Fusion], dict[str, str]]:
    """The norms of a captured network that can be fused, and for all other BatchNorms why not.

    captured, analysis: `net` and its interpretation in eval mode.
    """
    fit: list[Fusion] = []
    reasons: dict[str, str] = {}
    elsewhere = _used_elsewhere(captured, analysis) | ties_of(net).keys()
    for norm in analysis.norms:
        if not isinstance(norm.module, nn.modules.batchnorm._BatchNorm):
            continue
        site = next((s for s in analysis.sites if set(s.node.users) == {norm.node}), None)
        reason = _obstacle(norm, analysis, elsewhere) or _no_layer(norm, site)
        if reason or site is None:
            reasons[norm.name] = reason
        else:
            fit.append(Fusion(site.name, norm.name))
    return fit, reasons


def _obstacle(norm: NormSite, analysis: Interpretation, elsewhere: Collection[str]) -> str:
    if type(norm.module) not in _NORMS or norm.module.running_mean is None:
        return f"{type(norm.module).__name__} without running statistics, or not a stock norm"
    if sum(other.name == norm.name for other in analysis.norms) > 1:
        return "called more than once"
    if module_path(norm.node) != norm.name or any(
        full_name(norm.name, leaf) in elsewhere for leaf in per_channel(norm.module)
    ):
        return "its parameters are used elsewhere too"
    return "it has hooks" if _hooked(norm.module) else ""


def _no_layer(norm: NormSite, site: Site | None) -> str:
    if site is None or not _plain_layer(site.module) or not torch.equal(site.units, norm.labels):
        return "not right behind a linear layer or a convolution that it alone reads"
    if site.shared or site.foreign or not site.plain:
        return f"'{site.name}' in front of it is shared"
    return f"'{site.name}' in front of it has hooks" if _hooked(site.module) else ""


def _plain_layer(module: nn.Module) -> bool:
    """Whether its very class is known, and nothing in it acts on units behind the weight and the bias."""
    kind = known(module)
    return type(module) is kind.layer and kind.operation in _LAYERS and not kind.own


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _used_elsewhere(captured: Captured, analysis: Interpretation) -> set[str]:
    """Parameters and buffers that something else than their own norm reads."""
    own = {norm.name: norm.node for norm in analysis.norms}
    names: set[str] = set()
    for node in captured.nodes:
        name = captured.tensors.get(node.name, "") if node.op == "placeholder" else ""
        if name and set(node.users) - {own.get(name.rpartition(".")[0])}:
            names.add(name)
    return names


@torch.no_grad()
def fuse(net: nn.Module, chosen: Collection[Fusion]) -> nn.Module:
    """Fuse these norms of `net`, in place, and return it. Gradients of what changes go."""
    for one in chosen:
        layer, norm = net.get_submodule(one.layer), net.get_submodule(one.norm)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        scale, shift = scale_and_shift(norm)
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, nn.Parameter)
        start = bias.double() if isinstance(bias, Tensor) else torch.zeros_like(shift)
        weight.copy_(weight.double() * known(layer).along_units(layer, "weight", scale))
        moved = (start * scale + shift).to(weight.dtype)
        layer.bias = nn.Parameter(moved.contiguous(), requires_grad=weight.requires_grad)
        weight.grad = None
        path, _, leaf = one.norm.rpartition(".")
        stand_in = nn.Identity().train(norm.training)
        net.get_submodule(path)._modules[leaf] = stand_in
    return net


def scale_and_shift(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """S and t of y = s x + t, what the norm computes in eval mode: (units,) float64 each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = torch.zeros_like(scale)
    if norm.affine:
        scale, shift = scale * norm.weight.double(), norm.bias.double()
    return scale, shift - scale * norm.running_mean.double()
