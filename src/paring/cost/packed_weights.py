"""Gates on the weights that a layer packs together: how many stay, given how open units and columns are.

A packed weight (`paring.analysis.wiring.Packed`) is the weight of one layer of the wiring, a part of it, or of none. For a
layer the sums over its parts add up,

    weights = Σ_parts Σ_o,j  need_o · q_j · gate_oj,        gate = 1 for parts without gates

each unit o having one row in every stretch of a part. A weight of no layer counts its parameters, and no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import torch
from torch import Tensor

from paring.analysis.wiring import Packed, Part, Wiring


def loose(wiring: Wiring) -> tuple[Packed, ...]:
    """Packed weights that no layer of the wiring computes with."""
    return tuple(one for one in wiring.packed.values() if not one.parts)


def packed_layers(given: Mapping[str, Tensor], wiring: Wiring) -> set[str]:
    """Layers with a packed weight among these."""
    return {part.layer for name in given if name in wiring.packed for part in wiring.packed[name].parts}


def packed_sum(layer: str, given: Mapping[str, Tensor], wiring: Wiring, need: Tensor, q: Tensor) -> Tensor:
    """Expected open weights of a layer, 0-dim. need (outputs,), q (inputs,): how open its units and columns are."""
    total = need.new_zeros(())
    for one, part in _parts(layer, wiring):
        rows, columns = need.repeat(part.rows // len(need)), q[part.first : part.first + one.shape[1]]
        if one.name in given:
            total = total + rows @ given[one.name].to(need)[part.start : part.start + part.rows] @ columns
        else:
            total = total + rows.sum() * columns.sum()
    return total


def packed_mask(layer: str, given: Mapping[str, Tensor], wiring: Wiring, units: int, inputs: int) -> Tensor | None:
    """Which columns each unit has an open weight for, (units, inputs) of 1.0 and 0.0; None where nothing is given."""
    if not any(one.name in given for one, _ in _parts(layer, wiring)):
        return None
    mask = torch.zeros(units, inputs)
    for one, part in _parts(layer, wiring):
        rows = given[one.name].cpu()[part.start : part.start + part.rows] > 0 if one.name in given else None
        seen = torch.ones(units, one.shape[1]) if rows is None else rows.view(-1, units, one.shape[1]).any(0).float()
        mask[:, part.first : part.first + one.shape[1]] = seen
    return mask


def loose_rows(given: Mapping[str, Tensor], wiring: Wiring, one: Tensor) -> Tensor:
    """Rows of a cost table, (7, loose weights): outputs, inputs, weights, biases, parameters, macs, adds. one (1,): its type."""
    held = loose(wiring)
    if not held:
        return one.new_zeros(7, 0)
    left = [given[x.name].to(one).sum() if x.name in given else one[0] * prod(x.shape) for x in held]
    weights, zero = torch.stack(left), one.new_zeros(len(held))
    outputs, inputs = (one.new_tensor([x.shape[dim] for x in held]) for dim in (0, 1))
    return torch.stack([outputs, inputs, weights, zero, weights, zero, zero])


def _parts(layer: str, wiring: Wiring) -> Iterator[tuple[Packed, Part]]:
    for one in wiring.packed.values():
        for part in one.parts:
            if part.layer == layer:
                yield one, part
