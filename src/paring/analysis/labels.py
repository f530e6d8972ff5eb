"""Small tools on label tensors: which dimension the units lie along, and which units are tied to each other.

A label tensor has the shape of an activation; each entry holds the id of the unit it carries, -1 for none. As long as
labels vary along one dimension only, leaving out a unit leaves out whole slices of the activation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paring.analysis.repeats import once


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which labels are not all the same."""
    found = []
    labels = once(labels)
    for d in reversed(range(labels.dim())):
        first = labels.narrow(d, 0, min(1, labels.shape[d]))
        if labels.shape[d] > 1 and bool((labels != first).any()):
            found.append(d)
        else:
            labels = first  # all slices along d are the same, so one will do from here on
    return found[::-1]


def along(labels: Tensor, dim: int) -> Tensor | None:
    """The labels of the slices along `dim`, (size,); None if some slice holds several."""
    if set(varying(labels)) - {dim % labels.dim()} or labels.numel() == 0:
        return None
    for d in {*range(labels.dim())} - {dim % labels.dim()}:
        labels = labels.narrow(d, 0, 1)
    return labels.flatten().clone()


def uniform(values: Tensor, dim: int) -> Tensor:
    """Per slice along `dim` the constant that all its entries share; NaN where there is none.

    Vector and scalar code round the same function differently, so entries may be 1e-12 of it apart.
    """
    values = once(values, dim % values.dim())
    rows = values.movedim(dim, 0).reshape(values.shape[dim], -1)
    first = rows[:, 0].clone()
    here = (~first.isnan()).nonzero().flatten()
    rows = rows[here]
    apart = (rows != rows[:, :1]).any(1)
    rows, here = rows[apart], here[apart]
    apart = ~torch.isclose(rows, rows[:, :1], rtol=1e-12, atol=0.0).all(1)
    first[here[apart]] = torch.nan
    return first


def spread(vector: Tensor, shape: tuple[int, ...], dim: int) -> Tensor:
    """A tensor of the shape that holds vector[i] all over slice i along `dim`."""
    ones = [1] * len(shape)
    ones[dim] = len(vector)
    return vector.view(ones).expand(shape)


def representatives(count: int, pairs: Tensor) -> Tensor:
    """Smallest id of each id's connected component, (count,); `pairs` is (2, m): ids that belong together."""
    smallest = torch.arange(count)
    if pairs.numel() == 0:
        return smallest
    a, b = distinct_pairs(pairs)
    while True:
        low = torch.minimum(smallest[a], smallest[b])
        new = smallest.scatter_reduce(0, a, low, "amin").scatter_reduce(0, b, low, "amin")
        new = new.scatter_reduce(0, smallest, new, "amin")[smallest]
        new = new[new]
        if torch.equal(new, smallest):
            return smallest
        smallest = new


def distinct(labels: Tensor) -> Tensor:
    """The different ids in a label tensor, sorted, without -1."""
    labels = once(labels)
    found: Tensor = torch.unique(labels[labels >= 0])
    return found


def distinct_pairs(pairs: Tensor) -> Tensor:
    """The different columns of a (2, m) tensor of ids."""
    base = int(pairs.max()) + 1 if pairs.numel() else 1
    keys = distinct(pairs[0] * base + pairs[1])
    return torch.stack([keys // base, keys % base])
