"""Index tensors for counting: a wiring, flattened over all layers, so that a count is a dozen vector operations.

Units of all layers are concatenated in one vector, input columns in another, both ended by a sentinel that is always
open. "Ragged" sums and products over these vectors run over consecutive stretches, given by their lengths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from paring.analysis.wiring import Layer, Wiring
from paring.analysis.work import Product


def indices(wiring: Wiring) -> dict[str, Tensor]:
    """The constants of ``CostModel``, with U labels, N units, M columns and S (layer, group) segments.

    ``label`` (N,), ``source`` (M,), ``norm_label``: position in 0..U of a unit's, a column's or a norm channel's label,
    U where there is none. ``writer``: units by label, ``joined`` (U,): how many, only if some label has several.
    ``reader``: columns by label, ``readers`` (U,): how many. ``always_read`` (U,), ``from_input`` (M,): masks.
    ``outside`` (M,): like ``source``, but U for columns of grouped convolutions that live and die with a unit of the
    same group, only if there are any.
    ``row_lengths``, ``col_lengths``, ``kernel``, ``col_constant`` (S,); ``groups`` (layers,), only if some has several;
    ``bias``, ``per_unit``, ``counted``, ``positions``, ``biased`` (layers,); ``affine``, ``norm_lengths`` (norms,); ``one`` (1,).
    Only if there are products of activations: ``left``, ``right`` (cells,): positions of labels like ``label``, U in
    ``right`` where both are the same; ``cells``, ``cell_macs``, ``cell_adds`` (products,).
    """
    layers = wiring.layers
    labels, sources = _cat(layer.labels for layer in layers), _cat(layer.sources for layer in layers)
    norms = _cat(norm.labels for norm in wiring.norms)
    ids = torch.cat([labels, sources, norms])
    ids = torch.unique(ids[ids >= 0])
    label, source, norm_label = (_position(part, ids) for part in (labels, sources, norms))
    own = _own(layers)
    count = len(ids)

    written = torch.bincount(label, minlength=count)
    orphans = (written == 0).nonzero().flatten()
    writer = torch.cat([torch.arange(len(label)), torch.full_like(orphans, len(label))])
    writer = writer[torch.cat([label, orphans]).argsort(stable=True)]
    outside = torch.where(own, count, source)
    readers = torch.bincount(outside[outside < count], minlength=count)
    told = wiring.fixed
    fixed = _cat(x.labels for x in layers if not x.gateable) if told is None else told.nonzero().flatten()
    always_read = readers == 0
    met = _cat(part for product in wiring.products if product.meets for part in (product.left, product.right))
    if wiring.mixed is not None:
        met = torch.cat([met, wiring.mixed.nonzero().flatten()])
    always_read[_position(torch.cat([fixed, met])[torch.isin(torch.cat([fixed, met]), ids)], ids)] = True

    out = {
        "label": label,
        "source": source,
        "norm_label": norm_label,
        "writer": writer,
        "reader": outside.argsort(stable=True)[: int(readers.sum())],
        "readers": readers,
        "always_read": always_read,
        "from_input": source == count,
        "row_lengths": _per_group(layers, [layer.outputs // layer.groups for layer in layers]),
        "col_lengths": _per_group(layers, [layer.inputs // layer.groups for layer in layers]),
        "kernel": _per_group(layers, [math.prod(layer.weight[2:]) for layer in layers]).double(),
        "col_constant": _per_group(layers, [_entries(layer) for layer in layers]).double(),
        "bias": torch.tensor([layer.bias for layer in layers], dtype=torch.float64),
        "per_unit": torch.tensor([layer.bias + layer.per_unit for layer in layers], dtype=torch.float64),
        "counted": torch.tensor([not layer.tied for layer in layers], dtype=torch.float64),
        "positions": torch.tensor([_positions(layer) for layer in layers], dtype=torch.float64),
        "biased": torch.tensor([_biased(layer) for layer in layers], dtype=torch.float64),
        "affine": torch.tensor([norm.parameters for norm in wiring.norms], dtype=torch.float64),
        "norm_lengths": torch.tensor([len(norm.labels) for norm in wiring.norms], dtype=torch.int64),
        "one": torch.ones(1, dtype=torch.float64),
    }
    if own.any():
        out["outside"] = outside
    if (written > 1).any():
        out["joined"] = written.clamp(min=1)
    if wiring.products:
        out |= _cells(wiring.products, ids)
    if any(layer.groups > 1 for layer in layers):
        out["groups"] = torch.tensor([layer.groups for layer in layers])
    return out


def _cat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.int64), *(part.cpu() for part in parts)])


def _position(values: Tensor, ids: Tensor) -> Tensor:
    """Where each value is in sorted ``ids``; their number for negative values, which have no label."""
    return torch.where(values >= 0, torch.searchsorted(ids, values), len(ids))


def _cells(products: tuple[Product, ...], ids: Tensor) -> dict[str, Tensor]:
    """What the cells of products take; units of no layer, such as whole heads of weights, count as none."""
    left, right = (_cat(parts) for parts in zip(*((p.left, p.right) for p in products), strict=True))
    left, right = (torch.where(torch.isin(part, ids), part, -1) for part in (left, right))
    return {
        "left": _position(left, ids),
        "right": _position(torch.where(left == right, -1, right), ids),
        "cells": torch.tensor([len(product.left) for product in products]),
        "cell_macs": torch.tensor([product.macs for product in products], dtype=torch.float64),
        "cell_adds": torch.tensor([product.adds for product in products], dtype=torch.float64),
    }


def _own(layers: tuple[Layer, ...]) -> Tensor:
    """Per column: does it belong to a grouped convolution and carry the id of all units of its group?"""
    parts = [torch.zeros(0, dtype=torch.bool)]
    for layer in layers:
        own = torch.zeros(layer.inputs, dtype=torch.bool)
        if layer.groups > 1:
            units, columns = layer.labels.view(layer.groups, -1), layer.sources.view(layer.groups, -1)
            own = ((columns == units[:, :1]) & (units == units[:, :1]).all(1, keepdim=True) & (columns >= 0)).flatten()
        parts.append(own.cpu())
    return torch.cat(parts)


def _per_group(layers: tuple[Layer, ...], values: list[int]) -> Tensor:
    """A layer's value once for each of its groups."""
    return torch.tensor([v for layer, v in zip(layers, values, strict=True) for _ in range(layer.groups)]).long()


def _positions(layer: Layer) -> float:
    return layer.positions * layer.multiplies


def _biased(layer: Layer) -> float:
    return layer.biased * layer.multiplies


def _entries(layer: Layer) -> int:
    """Rows of an embedding's table when the wiring does not count them as input columns."""
    return layer.weight[0] if layer.lookup and layer.inputs == 0 else 0
