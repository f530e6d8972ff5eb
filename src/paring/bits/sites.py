"""Which nodes of a network run on bits, and how they are grouped.

A *source* is a hard-threshold unit; max pooling, flattening and what does nothing in eval mode carry its bits on to
*contractions*, the convolutions and linear layers of ±1 weights. From each source the graph is climbed through monotone
modules and pooling; where a contraction is at the top, everything between the two becomes comparisons of its counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from paring.bits.contract import binary, split
from paring.bits.edges import Chain, Code, code_of
from paring.bits.trace import Traced


@dataclass(frozen=True)
class Source:
    """A hard-threshold unit and what lies above it.

    Attributes:
        node: the unit.
        top: where the chain begins: its output is what the first module takes.
        steps: monotone and pooling nodes from the top down, without the unit.
        fused: the top is a contraction that nobody else reads.
    """

    node: fx.Node
    top: fx.Node
    steps: tuple[fx.Node, ...]
    fused: bool


@dataclass
class Sites:
    """See the module's docstring.

    Attributes:
        sources: units that some contraction reads, or that stand below one.
        contractions: node -> the node (a source or a pooling of bits) whose bits it reads.
        inner: nodes that disappear into comparisons.
        reasons: why a layer stays as it is.
        weights: of contractions whose weights are ±1 but for channels that never change: see `split`.
    """

    traced: Traced
    sources: dict[fx.Node, Source] = field(default_factory=dict)
    contractions: dict[fx.Node, fx.Node] = field(default_factory=dict)
    inner: set[fx.Node] = field(default_factory=set)
    reasons: dict[fx.Node, str] = field(default_factory=dict)
    weights: dict[fx.Node, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nodes = list(self.traced.net.graph.nodes)
        for node in nodes:
            module = self.traced.module(node)
            if not isinstance(getattr(module, "weight", None), nn.Parameter) or self.traced.rising(node):
                continue
            base = self.base(self.traced.source(node))
            reason = self._reason(node, base)
            if reason:
                self.reasons[node] = reason
            elif base is not None:
                self.contractions[node] = base
        wanted = {self._unit(base) for base in self.contractions.values()}
        for node in nodes:
            if self.traced.unit(node) is None:
                continue
            source = self._climb(node)
            if node in wanted or source.fused:
                self.sources[node] = source
        for source in self.sources.values():
            self.inner.update(source.steps)
            if source.fused:
                self.inner.add(source.top)

    def base(self, node: fx.Node) -> fx.Node | None:
        """The source or pooling whose bits this node has; None if its values are not those of a hard-threshold unit."""
        while self.traced.idle(node) or self.traced.flattens(node):
            node = self.traced.source(node)
        if self.traced.unit(node) is not None:
            return node
        if self.traced.pool(node) is not None and self._carries(node):
            return node
        return None

    def code(self, base: fx.Node) -> Code:
        """What the bits of a source or pooling stand for."""
        unit = self.traced.unit(self._unit(base))
        code = code_of(unit) if unit is not None else None
        assert code is not None
        return code

    def pooled(self, node: fx.Node) -> bool:
        """Whether the node pools bits of one of the sources."""
        return self.traced.pool(node) is not None and self._carries(node) and self._unit(node) in self.sources

    def chain(self, source: Source, after: int = 0) -> Chain:
        """The monotone modules of a source from the step number `after` on, without pooling, and the unit."""
        shape = self.traced.shapes[source.node]
        found = [self.traced.module(node) for node in (*source.steps[after:], source.node)]
        modules = [module for module in found if module is not None and type(module) is not nn.MaxPool2d]
        return Chain(modules, shape[1], len(shape) == 2)

    def _carries(self, node: fx.Node) -> bool:
        above = self.base(self.traced.source(node))
        return above is not None and len(self.traced.shapes[above]) == 4

    def _unit(self, base: fx.Node) -> fx.Node:
        while self.traced.unit(base) is None:
            above = self.base(self.traced.source(base))
            assert above is not None
            base = above
        return base

    def _climb(self, unit: fx.Node) -> Source:
        steps: list[fx.Node] = []
        node, dims = self.traced.source(unit), len(self.traced.shapes[unit])
        while self._passes(node, dims):
            steps.insert(0, node)
            node = self.traced.source(node)
        return Source(unit, node, tuple(steps), node in self.contractions and len(node.users) == 1)

    def _passes(self, node: fx.Node, dims: int) -> bool:
        monotone = self.traced.rising(node) or self.traced.pool(node) is not None
        return monotone and len(node.users) == 1 and len(self.traced.shapes[self.traced.source(node)]) == dims

    def weight(self, node: fx.Node) -> tuple[Tensor, Tensor | None]:
        """The ±1 (times scale) weights of a contraction, and what channels that never change add (see `split`)."""
        module = self.traced.module(node)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        return self.weights.get(node, (module.weight.detach(), None))

    def _splits(self, node: fx.Node, module: nn.Conv2d | nn.Linear, base: fx.Node) -> bool:
        if not isinstance(module, nn.Conv2d) or module.groups > 1 or not self.code(base).signed:
            return False
        found = split(module.weight.detach(), self._constant(base))
        if found is not None:
            self.weights[node] = found
        return found is not None

    def _constant(self, base: fx.Node) -> Tensor:
        """(C,) the value of channels that never change, 0 elsewhere.

        What is above has no weights for them, or the chain is on one level from -1e30 to 1e30 (a norm of scale zero).
        """
        source = self._climb(self._unit(base))
        chain, module = self.chain(source), self.traced.module(source.top)
        ends = torch.full((chain.channels,), 1e30)
        levels = chain.levels(ends)
        still = levels == chain.levels(-ends)
        if isinstance(module, nn.Conv2d | nn.Linear) and len(module.weight) == chain.channels:
            zero = (module.weight.detach().flatten(1) == 0).all(1)
            bias = torch.zeros(chain.channels) if module.bias is None else module.bias.detach()
            levels, still = torch.where(zero, chain.levels(bias), levels), still | zero
        return torch.where(still, 2.0 * levels - 1, 0.0)

    def _reason(self, node: fx.Node, base: fx.Node | None) -> str:
        """Why a layer with weights cannot run on bits; empty if it can."""
        module = self.traced.module(node)
        if not (type(module) is nn.Conv2d or type(module) is nn.Linear):
            return "only Conv2d and Linear run on bits"
        if base is None:
            return "its input does not come from a hard-threshold unit"
        if module.weight.dtype != torch.float32 or module.weight.device.type != "cpu":
            return "its weights are not float32 on the CPU"
        if not binary(module.weight) and not self._splits(node, module, base):
            return "its weights are not ±1 times one scale per output channel"
        if isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros":
                return f"its padding is {module.padding_mode!r}, not zeros"
            if len(self.traced.shapes[self.traced.source(node)]) != 4:
                return "its input is not (N, C, H, W)"
        elif len(self.traced.shapes[self.traced.source(node)]) != 2:
            return "its input is not (N, C)"
        return ""
