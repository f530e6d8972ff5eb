"""The graph of modules with layers of bits in it (see `paring.bits.sites` for which)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from paring.bits.bit_layers import BitPool, Decode, Encode
from paring.bits.contract import BitLayer, Window, scales
from paring.bits.edges import Code, Edges, find, intervals
from paring.bits.sites import Sites, Source


@dataclass
class Rewritten:
    """The new network's parts.

    Attributes:
        sites: what became of which node.
        modules: by the names in the new graph.
        graph: the new graph.
        made: per source, the modules that stand for it: the first takes bits (or floats, an `Encode`), then pooling.
        floats: per contraction with float32 output, its layer.
    """

    sites: Sites
    modules: dict[str, nn.Module] = field(default_factory=dict)
    graph: fx.Graph = field(default_factory=fx.Graph)
    made: dict[fx.Node, list[nn.Module]] = field(default_factory=dict)
    floats: dict[fx.Node, BitLayer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._values: dict[fx.Node, fx.Node] = {}
        self._bits: dict[fx.Node, fx.Node] = {}
        needed = self._needed()
        for node in self.sites.traced.net.graph.nodes:
            if node in self.sites.inner:
                continue
            if node in self.sites.sources:
                self._bits[node] = self._source(self.sites.sources[node])
            elif self.sites.pooled(node):
                self._bits[node] = self._pool(node)
            elif node in self.sites.contractions:
                self._values[node] = self._contraction(node)
                continue
            elif node in needed:
                self._values[node] = self._copied(node)
                continue
            else:
                continue
            if node in needed:
                shape = self.sites.traced.shapes[node]
                decode = Decode(self.sites.code(node), shape[1], len(shape) == 2)
                self._values[node] = self._call(f"{self._name(node)}_values", decode, self._bits[node])

    def _needed(self) -> set[fx.Node]:
        """Nodes whose values are needed as floats."""
        needed: set[fx.Node] = set()
        for node in reversed(self.sites.traced.net.graph.nodes):
            if node in self.sites.sources:
                source = self.sites.sources[node]
                if not source.fused:
                    needed.add(source.top)
            elif node in self.sites.inner or node in self.sites.contractions or self.sites.pooled(node):
                continue
            elif node.op in ("output", "placeholder"):
                needed.update((node, *node.all_input_nodes))
            elif node in needed:
                needed.update(node.all_input_nodes)
        return needed

    def _source(self, source: Source) -> fx.Node:
        traced, sites = self.sites.traced, self.sites
        name = self._name(source.node)
        layer: nn.Module
        if source.fused:
            layer = self.contraction(source.top, self.ends(source))
            first = self._call(self._name(source.top), layer, self._bits[sites.contractions[source.top]])
        else:
            layer = Encode(*intervals(sites.chain(source)))
            first = self._call(name, layer, self._values[source.top])
        parts: list[nn.Module] = [layer]
        for number, step in enumerate(source.steps):
            pool = traced.pool(step)
            if pool is not None:
                falling = sites.chain(source, number + 1).falling()
                parts.append(BitPool(pool, falling, sites.code(source.node).planes))
                first = self._call(self._name(step), parts[-1], first)
        self.made[source.node] = parts
        return first

    def _pool(self, node: fx.Node) -> fx.Node:
        traced, sites = self.sites.traced, self.sites
        pool, base = traced.pool(node), sites.base(traced.source(node))
        assert pool is not None
        assert base is not None
        rising = torch.zeros(traced.shapes[node][1], dtype=torch.bool)
        return self._call(self._name(node), BitPool(pool, rising, sites.code(node).planes), self._bits[base])

    def _contraction(self, node: fx.Node) -> fx.Node:
        self.floats[node] = layer = self.contraction(node, None)
        return self._call(self._name(node), layer, self._bits[self.sites.contractions[node]])

    def contraction(self, node: fx.Node, ends: Edges | None) -> BitLayer:
        """The layer of bits for a convolution or linear layer."""
        module, base = self.sites.traced.module(node), self.sites.contractions[node]
        code = self.sites.code(base)
        if isinstance(module, nn.Conv2d):
            weight, extra = self.sites.weight(node)
            return BitLayer(weight, module.bias, Window.of(module), code, ends, False, extra)
        assert isinstance(module, nn.Linear)
        shape = self.sites.traced.shapes[base]
        weight = module.weight.detach().view(len(module.weight), shape[1], *(shape[2:] or (1, 1)))
        return BitLayer(weight, module.bias, Window((weight.shape[2], weight.shape[3])), code, ends, True)

    def ends(self, source: Source) -> Edges:
        """Edges over the whole numbers that the contraction at the top can sum to."""
        module = self.sites.traced.module(source.top)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        code = self.sites.code(self.sites.contractions[source.top])
        weight, extra = self.sites.weight(source.top)
        limit = weight[0].numel() * code.planes + (0 if extra is None else int(extra.abs().sum(1).max()))
        factor, shift = affine(module, weight, code)
        return find(self.sites.chain(source), lambda n: (factor * n + shift).float(), limit)

    def _copied(self, node: fx.Node) -> fx.Node:
        copy, name = self.graph.node_copy(node, lambda n: self._values[n]), str(node.target)
        if node.op == "call_module":
            module = self.sites.traced.net.get_submodule(name)
            if self.modules.get(name, module) is not module:  # called on bits as well, and those have taken the name
                copy.target = name = self._name(node)
            self.modules[name] = module
        elif node.op == "get_attr":
            self.modules[name] = _attribute(self.sites.traced.net, name)
        return copy

    def _call(self, name: str, module: nn.Module, argument: fx.Node) -> fx.Node:
        self.modules[name] = module
        return self.graph.call_module(name, (argument,))

    def _name(self, node: fx.Node) -> str:
        """Where the module was, or a name of its own where it is called more than once or is none."""
        own = node.op == "call_module"
        path = str(node.target) if own else node.name
        others = {name for name, _ in self.sites.traced.net.named_modules() if not (own and name == path)}
        name, number = path, 1
        while name in self.modules or name in others:
            name, number = f"{path}_{number}", number + 1
        return name


def affine(module: nn.Conv2d | nn.Linear, weight: Tensor, code: Code) -> tuple[Tensor, Tensor]:
    """Factor and shift (O,) float64 that turn whole sums of inputs with this code into the layer's output.

    weight: its weights as ±1 times a scale.
    """
    bias = torch.zeros(len(module.weight)) if module.bias is None else module.bias.detach()
    return scales(weight).double() * code.size, bias.double()


def _attribute(net: nn.Module, target: str) -> nn.Module:
    path, _, leaf = target.rpartition(".")
    found: nn.Module = getattr(net.get_submodule(path), leaf)
    return found
