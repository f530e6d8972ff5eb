"""Is every bit right? Each layer of bits beside the layers that it stands for, on the example.

The reference runs the network's own modules in float32, only its contractions exactly: whole sums in float64, and
float32(scale * size * n + bias). Every layer of bits gets the reference's own input, and all its bits (and float32
outputs) have to be equal to the reference's. What remains is reported, not judged: how many signs the float32 network
itself gets otherwise because it rounds while it sums, and how far its outputs are from the new network's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from paring.bits.contract import Window, scales
from paring.bits.edges import Code
from paring.bits.rewrite_bits import Rewritten, affine
from paring.bits.sites import Sites
from paring.bits.trace import BitsError, in_order
from paring.bits.words import packed
from paring.core import Inputs


@dataclass(frozen=True)
class Agreement:
    """What a check found.

    Attributes:
        bits: activations that are bits in the new network, all equal to the reference's.
        rounded: those of them that the float32 network gets otherwise, by rounding.
        difference: largest difference of the outputs from the float32 network's.
        largest: largest magnitude of its outputs.
    """

    bits: int
    rounded: int
    difference: float
    largest: float


def check(rewritten: Rewritten, packed_net: nn.Module, inputs: Inputs) -> Agreement:
    """Compare on `inputs`.

    Raises:
        BitsError: a layer of bits is wrong.
    """
    sites = rewritten.sites
    with torch.no_grad():
        exact, plain = _Exact(sites, sites.traced.net), _Noted(sites.traced.net)
        placed = in_order(sites.traced.net, inputs)
        exact.run(*placed)
        outputs = plain.run(*placed)
        for node, layers in rewritten.made.items():
            source = sites.sources[node]
            entry = sites.contractions[source.top] if source.fused else source.top
            code = sites.code(node)
            bits = exact.values[entry]
            if source.fused:
                bits = as_bits(bits, sites.code(entry))
            for layer in layers:
                bits = layer(bits)
            _same(node, bits, as_bits(exact.values[node], code))
        for node, contraction in rewritten.floats.items():
            base = sites.contractions[node]
            _same(node, contraction(as_bits(exact.values[base], sites.code(base))), exact.values[node])
        found = inputs.call(packed_net)
    units = list(sites.sources)
    ours, theirs = pytree.tree_leaves(found), pytree.tree_leaves(outputs)
    return Agreement(
        sum(exact.values[node].numel() for node in units),
        sum(int((exact.values[node] != plain.values[node]).sum()) for node in units),
        max((float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True) if b.numel()), default=0.0),
        max((float(b.abs().max()) for b in theirs if b.numel()), default=0.0),
    )


def as_bits(values: Tensor, code: Code) -> Tensor:
    """The slow way to bits: values (N, C) or (N, C, H, W) of a unit -> int64 (N, H, W, planes, words)."""
    levels = code.level(values if values.dim() == 4 else values[:, :, None, None]).permute(0, 2, 3, 1)
    return packed(levels[..., None, :] > torch.arange(code.planes).view(-1, 1))


def exact_sum(module: nn.Conv2d | nn.Linear, weight: Tensor, x: Tensor, code: Code) -> Tensor:
    """The output of a contraction as its layer of bits defines it, float32.

    Args:
        module: the contraction.
        weight: its weights as ±1 times a scale.
        x: values of a unit.
        code: of the unit.
    """
    whole = x.double() if code.signed else code.level(x).double()
    scale = scales(weight).view(-1, *(1 for _ in weight.shape[1:]))
    times = torch.where(scale > 0, (module.weight / torch.where(scale > 0, scale, 1.0)).round(), -1.0).double()
    factor, shift = affine(module, weight, code)
    if isinstance(module, nn.Linear):
        return (factor * F.linear(whole, times) + shift).float()
    window = Window.of(module)
    edges = (window.before[1], window.after[1], window.before[0], window.after[0])
    total = F.conv2d(F.pad(whole, edges), times, None, window.stride, 0, window.dilation, window.groups)
    return (factor.view(-1, 1, 1) * total + shift.view(-1, 1, 1)).float()


class _Noted(fx.Interpreter):
    """Runs the float32 network and keeps all values."""

    def __init__(self, net: fx.GraphModule) -> None:
        super().__init__(net, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


class _Exact(_Noted):
    """The same with exact contractions."""

    def __init__(self, sites: Sites, net: fx.GraphModule) -> None:
        super().__init__(net)
        self.sites = sites

    def run_node(self, n: fx.Node) -> Any:
        base = self.sites.contractions.get(n)
        if base is None:
            return super().run_node(n)
        module = self.sites.traced.module(n)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        x, (weight, _) = self.values[self.sites.traced.source(n)], self.sites.weight(n)
        self.values[n] = exact_sum(module, weight, x, self.sites.code(base))
        return self.values[n]


def _same(node: fx.Node, found: Tensor, expected: Tensor) -> None:
    if not torch.equal(found, expected):
        wrong = int((found != expected).sum()) if found.shape == expected.shape else "all"
        raise BitsError(
            f"{node.target}: {wrong} of {expected.numel()} numbers differ from the float32 layers that they stand for. "
            "This should not happen: please report it with the network."
        )
