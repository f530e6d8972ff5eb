"""`pack_bits`: a finished network of hard-threshold units and ±1 weights as one that computes with bits.

Convolutions and linear layers whose input comes from a hard-threshold unit and whose weights are ±1 times a scale per
output channel become xor and popcount (Courbariaux et al. 2016, arXiv:1602.02830; Rastegari et al. 2016,
arXiv:1603.05279). What stands between such a layer and the next unit (BatchNorm, bias, scale, ReLU, Hardtanh) becomes
one comparison of whole numbers per channel, and max pooling a union of bits, so that nothing is multiplied between the
first and the last layer. Staircases are planes of bits, one per step. Everything else stays a torch layer, and the report
says why. Inputs and outputs are those of the network.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from paring.analysis.alone import alone
from paring.bits.backend import kernels
from paring.bits.bits_report import BitsReport, Line, purpose, size
from paring.bits.check import check
from paring.bits.contract import BitLayer
from paring.bits.rewrite_bits import Rewritten
from paring.bits.sites import Sites
from paring.bits.trace import BitsError, Traced
from paring.core import Example, Inputs, plain_net


class BitNet(nn.Module):
    """A network of bits, for answers only: on the CPU, in float32, in eval mode, without gradients.

    Attributes:
        net: the graph of torch layers and layers of bits, under the names that they had.
        report: what became of each layer.
        no_onnx: why `to_onnx` refuses it.

    Raises (in forward):
        TypeError: an input is not on the CPU, or its numbers are of another type than float32.
    """

    no_onnx = (
        "ONNX has no operator that counts bits. Export the network that pack_bits was given, which computes the same; with "
        "int8=batches its ±1 weights take a byte each and lose nothing"
    )

    def __init__(self, net: fx.GraphModule, report: BitsReport | None = None) -> None:
        super().__init__()
        self.net, self.report = net, report
        super().train(False)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        plain = not named and all(isinstance(x, Tensor) for x in inputs)
        for x in inputs if plain else pytree.tree_leaves((inputs, named)):
            if isinstance(x, Tensor) and (
                x.device.type != "cpu" or (x.is_floating_point() and x.dtype != torch.float32)
            ):
                raise TypeError(
                    f"a network of bits takes float32 on the CPU, not {x.dtype} on {x.device}: convert the input"
                )
        with torch.no_grad():
            return self.net(*inputs, **named)

    def train(self, mode: bool = True) -> BitNet:
        """Eval mode only.

        Raises:
            ValueError: train mode is asked for.
        """
        if mode:
            raise ValueError("a network of bits cannot be trained: train the network that it was made from")
        return super().train(False)


@alone()
def pack_bits(net: nn.Module, example: Example) -> BitNet:
    """A copy of `net` that computes with bits, verified on the example.

    Args:
        net: finished, in eval mode, float32 on the CPU; stays as it is.
        example: a tensor, a tuple of arguments or a mapping of keyword arguments, batch first. Image sizes may differ later where the network takes them.

    Returns:
        The network; `.report` says which layers run on bits, why the others do not, and the bytes before and after.

    Raises:
        ImportError: numba is not installed.
        BitsError: the network is in train mode, has gates, cannot be traced, or no layer of it can run on bits.
    """
    net = plain_net(net, "pack_bits", BitsError)
    kernels()
    if net.training:
        raise BitsError("the network is in train mode, and bits are for answers: call net.eval() first")
    inputs = Inputs.of(example)
    with torch.inference_mode(False):
        sites = Sites(Traced(copy.deepcopy(net), inputs))
        if not sites.contractions:
            _nothing(sites)
        rewritten = Rewritten(sites)
        packed = BitNet(fx.GraphModule(rewritten.modules, rewritten.graph, type(net).__name__))
        packed.report = BitsReport(_lines(rewritten), size(net), size(packed), check(rewritten, packed, inputs))
    return packed


def _nothing(sites: Sites) -> NoReturn:
    told = "; ".join(f"{node.target}: {reason}" for node, reason in list(sites.reasons.items())[:5])
    raise BitsError(
        f"no layer can run on bits ({told or 'there is no layer with weights'}). Put Sign or Staircase units between the "
        "layers and make the weights ±1 times a scale per output channel; see docs/how/bits.md"
    )


def _lines(rewritten: Rewritten) -> tuple[Line, ...]:
    sites, found = rewritten.sites, []
    layers: dict[fx.Node, nn.Module] = dict(rewritten.floats)
    layers |= {sites.sources[node].top: parts[0] for node, parts in rewritten.made.items() if sites.sources[node].fused}
    for node in sites.traced.net.graph.nodes:
        module, layer = sites.traced.module(node), layers.get(node)
        if module is None or not (node in layers or node in sites.reasons):
            continue
        reason = purpose(layer) if isinstance(layer, BitLayer) else sites.reasons[node]
        after = size(module if layer is None else layer)
        found.append(Line(str(node.target), type(module).__name__, layer is not None, reason, size(module), after))
    return tuple(found)


__all__ = ["BitNet", "BitsError", "BitsReport", "pack_bits"]
