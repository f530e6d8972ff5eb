"""What a network costs, layer by layer, given how open its gates are.

The same formula serves three purposes. Fed with *chances* it is the expected cost, which a penalty or a budget
differentiates; fed with 0/1 *support* it is the cost if training stopped now; fed with nothing it is the dense cost.

Gates are independent and sit in three places: on units, on input columns, on single weights. With
``u`` the chance of a unit gate, ``c`` of an input gate and ``w`` of a weight gate:

    open(label)  = u                      (1 for the network input; shared by layers that a residual add joins)
    column j     q_j    = c_j * open(source of j)
    read(label)  = 1 - prod over the columns that read it of (1 - c)          (1 when a non-layer reads it)
    unit o       need_o = u_o * read(label of o)
    weights      sum over o, j of  need_o * q_j * sum over the kernel of w    (o and j in the same group)
    biases       sum of need_o;    norm parameters  2 * sum of need
    macs         weights * positions                          one multiply and one add per weight and position
    adds         macs + biases * output positions             accumulation starts at zero; a bias is one more add
    flops        macs + adds                                  so 2 * macs without biases
    products     sum over cells of  open(left) * open(right) * read of both * the cell's macs

A product of two activations (queries and keys, attention weights and values) is a cell for every combination of units
that meet in it, each with the macs of one example; left and right are often one unit, coupled, and then count once.

In a grouped convolution the channels of a group, in and out, share one gate: there q_j = c_j, since need_o has it already.

``need_o`` and ``q_j`` depend on different gates, so the product of expectations is the expectation of the product. The
one exception is a layer that reads the very units it adds to (``x + layer(x)``): there the terms ``o = j`` share a gate
and their expectation is slightly low; at 0/1 openness the formula is exact again.

Counted: every tap of a convolution, padding included, as is usual. Not counted: activations, pooling, lookups of an
embedding (no arithmetic) and norms (in evaluation mode they fold into the layer before them).

This replaces the FLOP counter of Louizos, Welling and Kingma (ICLR 2018, arXiv 1712.01312), whose released code reads
(channels, height) as (height, width) and ignores that a pruned unit also shortens the layers that read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from paring.analysis.wiring import Layer, Norm, Wiring
from paring.analysis.work import Product
from paring.cost.branch_rows import beside_rows, inside_branches
from paring.cost.indices import indices
from paring.cost.packed_weights import loose, loose_rows, packed_layers, packed_sum

_FIELDS = ("outputs", "inputs", "weights", "biases", "parameters", "macs", "adds")


@dataclass(frozen=True)
class Openness:
    """Chances in [0, 1] that gates are open, by layer name; whatever is missing is fully open.

    ``units``: (outputs,), the layer's unit gates. Layers joined by a residual add share a gate: give each its chance.
    ``inputs``: (inputs,), the gates of the layer's input columns or channels. ``weights``: shaped like the weight; of those
    that a layer packs together, by the names in ``Wiring.packed``.
    ``blocks``: () or (1,), gates of residual branches, by their names; they close all that only the branch needs.
    ``permanently_closed``: ``units`` and ``inputs`` say what stays already, whether somebody reads it or not.
    """

    units: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    blocks: Mapping[str, Tensor] = field(default_factory=dict)
    settled: bool = False

    def tensors(self) -> list[Tensor]:
        """Every tensor given, in no particular order."""
        return [*self.units.values(), *self.inputs.values(), *self.weights.values(), *self.blocks.values()]


@dataclass(frozen=True)
class LayerCost:
    """One layer's (norm's, product's) cost for one example; every number is a 0-dim tensor.

    ``outputs``: units that stay. ``inputs``: open input columns, or channels of all groups. ``parameters``: weights,
    biases and, for a norm, scale and shift. ``macs``: multiplies, each with its add. ``adds``: those and bias adds.
    """

    name: str
    kind: str
    outputs: Tensor
    inputs: Tensor
    weights: Tensor
    biases: Tensor
    parameters: Tensor
    macs: Tensor
    adds: Tensor

    @property
    def flops(self) -> Tensor:
        """Multiplies plus adds."""
        return self.macs + self.adds


@dataclass(frozen=True)
class Cost:
    """The cost of a network for one example: ``table`` has one row per field of ``LayerCost``, one column per layer.

    Layers come first, in order of execution, then norms, products of activations, and packed weights that no layer of the
    wiring computes with. Totals are 0-dim tensors: float64, or, when the openness
    requires grad, differentiable and of the gates' dtype (float32 at least). ``extra`` parameters are always there.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    table: Tensor
    extra: int = 0

    def _total(self, name: str) -> Tensor:
        return self.table[_FIELDS.index(name)].sum()

    @property
    def weights(self) -> Tensor:
        """Weights of the layers, without biases, norms and extra parameters."""
        return self._total("weights")

    @property
    def biases(self) -> Tensor:
        """Biases of the layers."""
        return self._total("biases")

    @property
    def parameters(self) -> Tensor:
        """All parameters, ``extra`` included."""
        return self._total("parameters") + self.extra

    @property
    def macs(self) -> Tensor:
        """Multiply-accumulates for one example."""
        return self._total("macs")

    @property
    def adds(self) -> Tensor:
        """Adds for one example: one per multiply and one per bias and position."""
        return self._total("adds")

    @property
    def flops(self) -> Tensor:
        """Multiplies plus adds for one example."""
        return self.macs + self.adds

    @cached_property
    def rows(self) -> tuple[LayerCost, ...]:
        """Layer by layer."""
        columns = self.table.unbind(1)
        return tuple(
            LayerCost(name, kind, *column.unbind())
            for name, kind, column in zip(self.names, self.kinds, columns, strict=True)
        )

    def row(self, name: str) -> LayerCost:
        """The row called ``name``; raises ``KeyError`` naming those there are."""
        if name not in self.names:
            raise KeyError(f"no layer {name!r} in this cost; it has {', '.join(self.names)}")
        return self.rows[self.names.index(name)]


class CostModel:
    """Counts a network's cost for any openness, without a Python loop over units.

    ``wiring`` says who reads whom. ``extra``: parameters outside the wiring, e.g. a free ``nn.Parameter``; use
    ``CostModel.of(net, wiring)`` to have them counted.
    """

    def __init__(self, wiring: Wiring, extra: int = 0) -> None:
        self.wiring = wiring
        self.extra = extra
        self._layers = {layer.name: layer for layer in wiring.layers}
        rows: list[Layer | Norm | Product] = [*wiring.layers, *wiring.norms, *wiring.products]
        packed = loose(wiring)
        self._names = (*(row.name for row in (*rows, *packed)), *wiring.beside)
        self._kinds = (*(row.kind for row in rows), *("weight" for _ in packed), *("parameter" for _ in wiring.beside))
        self._inside = inside_branches(wiring, self._names)
        self._index = indices(wiring)
        self._cache: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}

    @classmethod
    def of(cls, net: nn.Module, wiring: Wiring) -> CostModel:
        """A model whose dense total is the number of parameters in ``net``.

        Call it before gates go in, or their parameters count too. The weight of a layer that is tied to an embedding
        is counted there; other tied weights are charged to every layer that uses them, and ``extra`` is then lowered, so that
        the dense total counts them once.
        """
        model = cls(wiring)
        total = sum(p.numel() for p in net.parameters())
        return cls(wiring, extra=total - int(model().parameters))

    def __call__(self, openness: Openness | None = None, drop_inputs: bool = True) -> Cost:
        """The cost for ``openness`` (default: everything open).

        ``drop_inputs``: whether a closed column that reads the network input saves its multiplies (it does once the
        input is indexed); if not, such columns count in full.
        Raises ``ValueError`` for a name or shape that is not in the wiring.
        """
        openness = openness or Openness()
        self._check(openness)
        tensors = openness.tensors()
        device = tensors[0].device if tensors else torch.device("cpu")
        dtype = _dtype(tensors)
        at = self._at(device, dtype)
        one = at["one"]

        units = self._gather(openness.units, "outputs", one)
        columns = self._gather(openness.inputs, "inputs", one)
        opened = units[at["writer"]]
        if "joined" in at:
            opened = torch.segment_reduce(opened, "max", lengths=at["joined"], unsafe=True)
        opened = torch.cat([opened, one])
        inputs = columns[:-1] if drop_inputs else torch.where(at["from_input"], one, columns[:-1])
        q = inputs * opened[at["source"]]
        need, alive = units[:-1], opened
        if openness.inputs and not openness.settled:
            closed = (1 - columns)[at["reader"]]
            unread = torch.segment_reduce(closed, "prod", lengths=at["readers"], unsafe=True, initial=1)
            read = torch.cat([torch.where(at["always_read"], one, 1 - unread), one])
            need, alive = need * read[at["label"]], opened * read

        rows = _sums(need, at["row_lengths"])
        cols = _sums(q, at["col_lengths"]) + at["col_constant"]
        weights = rows * cols * at["kernel"]
        if "outside" in at:  # a column that its own units need is there whenever they are: count one chance, not two
            seen = inputs * opened[at["outside"]]
            weights = rows * (_sums(seen, at["col_lengths"]) + at["col_constant"]) * at["kernel"]
        if "groups" in at:
            rows, cols, weights = (_sums(part, at["groups"]) for part in (rows, cols, weights))
        if openness.weights:
            weights = self._weight_gates(openness.weights, weights, need, q)
        biases = rows * at["bias"]
        macs = weights * at["positions"]
        table = torch.stack(
            [
                rows,
                cols,
                weights,
                biases,
                weights * at["counted"] + rows * at["per_unit"],
                macs,
                macs + biases * at["biased"],
            ]
        )
        if self.wiring.norms:
            kept = _sums(alive[at["norm_label"]], at["norm_lengths"])
            zero = torch.zeros_like(kept)
            parameters = kept * at["affine"]
            table = torch.cat([table, torch.stack([kept, kept, zero, zero, parameters, zero, zero])], dim=1)
        if self.wiring.products:
            there = _sums(alive[at["left"]] * alive[at["right"]], at["cells"])
            zero = torch.zeros_like(there)
            table = torch.cat([table, torch.stack([*[zero] * 5, there * at["cell_macs"], there * at["cell_adds"]])], 1)
        if len(self._names) > table.shape[1]:
            further = [loose_rows(openness.weights, self.wiring, one), beside_rows(self.wiring, one)]
            table = torch.cat([table, *further], 1)
        for name, chance in openness.blocks.items():
            table = torch.where(self._inside[name].to(device), table * chance.to(one), table)
        return Cost(self._names, self._kinds, table, self.extra)

    def _at(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """The precomputed tensors, floats in ``dtype``, on ``device``."""
        key = (device, dtype)
        if key not in self._cache:
            self._cache[key] = {
                name: t.to(device, dtype) if t.is_floating_point() else t.to(device) for name, t in self._index.items()
            }
        return self._cache[key]

    def _gather(self, given: Mapping[str, Tensor], size: str, one: Tensor) -> Tensor:
        """One vector over all layers' units or columns, ones where nothing is given, and a last entry that is 1."""
        parts = []
        for layer in self.wiring.layers:
            chance = given.get(layer.name)
            parts.append(one.expand(getattr(layer, size)) if chance is None else chance.to(one))
        return torch.cat([*parts, one])

    def _weight_gates(self, given: Mapping[str, Tensor], weights: Tensor, need: Tensor, q: Tensor) -> Tensor:
        """``weights`` with the sums of weight-gated layers put in place."""
        needs = torch.split(need, [layer.outputs for layer in self.wiring.layers])
        opens = torch.split(q, [layer.inputs for layer in self.wiring.layers])
        sums, packed = list(weights.unbind()), packed_layers(given, self.wiring)
        for i, layer in enumerate(self.wiring.layers):
            if layer.name in packed:
                sums[i] = packed_sum(layer.name, given, self.wiring, needs[i], opens[i])
            elif layer.name in given:
                sums[i] = _bilinear(layer, given[layer.name].to(weights), needs[i], opens[i])
        return torch.stack(sums)

    def _check(self, openness: Openness) -> None:
        for name, chance in openness.blocks.items():
            if name not in self._inside or chance.numel() != 1:
                told = ", ".join(self._inside) or "none"
                raise ValueError(
                    f"openness.blocks[{name!r}] of shape {tuple(chance.shape)}: one chance for a branch, of {told}"
                )
        for place in ("units", "inputs", "weights"):
            for name, chance in getattr(openness, place).items():
                layer = self._layers.get(name)
                packed = self.wiring.packed.get(name) if place == "weights" else None
                if layer is None and packed is None:
                    known = ", ".join(self._layers) or "none"
                    raise ValueError(f"openness.{place} names {name!r}, which is no layer of the wiring ({known})")
                shape: tuple[int, ...] = packed.shape if packed is not None else ()
                if packed is None and layer is not None:
                    shape = {"units": (layer.outputs,), "inputs": (layer.inputs,), "weights": layer.weight}[place]
                if tuple(chance.shape) != tuple(shape):
                    raise ValueError(
                        f"openness.{place}[{name!r}] has shape {tuple(chance.shape)} but the layer needs"
                        f" {tuple(shape)}; give one chance per gate place, expanding shared gates"
                    )


def _dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 for reporting; the gates' dtype, float32 at least, when they require grad."""
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return torch.float64
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _sums(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums over consecutive stretches of ``values``; unlike ``index_add`` the same bits every time, on any device."""
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True, initial=0)


def _bilinear(layer: Layer, gates: Tensor, need: Tensor, q: Tensor) -> Tensor:
    """Sum over o, j of ``need_o * q_j * gates_oj`` for one layer."""
    if layer.lookup:  # the weight is (entries, units), and an entry is no column unless it is counted so
        return (q @ gates if layer.inputs else gates.sum(0)) @ need
    taps = gates.flatten(2).sum(2) if gates.dim() > 2 else gates
    if layer.groups == 1:
        return need @ (taps @ q)
    per_group = taps.view(layer.groups, -1, taps.shape[1])
    return (need.view(layer.groups, 1, -1) @ per_group @ q.view(layer.groups, -1, 1)).sum()
