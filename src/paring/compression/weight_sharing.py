"""The state of weight sharing on a network: codebooks, and which value every weight takes.

Weights that are zero at the start can be kept at zero, so that what was pruned stays pruned; they take part in no
codebook. All weights of a group share one codebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from paring.compression import codebook
from paring.compression.codebook import Codebook
from paring.compression.tensors import weights_of

Scope = Literal["layer", "kind", "global"]


def check_scope(what: str, scope: str) -> None:
    """Refuse what is no scope.

    Raises:
        ValueError: with the scopes there are.
    """
    if scope not in get_args(Scope):
        raise ValueError(f"{what}(scope={scope!r}): one of {', '.join(get_args(Scope))}")


def groups_of(net: nn.Module, scope: Scope) -> dict[str, list[str]]:
    """Names of the weights that share a codebook.

    Args:
        net: any module.
        scope: "layer", every tensor for itself; "kind", all tensors of as many dimensions; "global", all together.
    """
    found: dict[str, list[str]] = {}
    for name, weight in weights_of(net).items():
        key = {"layer": name, "kind": f"{weight.dim()} dimensions", "global": "all"}[scope]
        found.setdefault(key, []).append(name)
    return found


@dataclass
class Sharing:
    """Codebooks of a network.

    Attributes:
        groups: names of the weights of each codebook.
        shapes: of every weight.
        kept: for every weight, which entries take part; None for all.
        books: the codebook of each group, over its entries that take part, one tensor after the other.
        indices: which value of its group each entry of a weight takes, flat, entries that take part only.
    """

    groups: dict[str, list[str]]
    shapes: dict[str, torch.Size]
    kept: dict[str, Tensor | None]
    books: dict[str, Codebook] = field(default_factory=dict)
    indices: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, net: nn.Module, scope: Scope, *, keep_zeros: bool = False) -> Sharing:
        """For the weights of a network.

        Args:
            net: any module.
            scope: see `groups_of`.
            keep_zeros: entries that are zero now stay zero.

        Raises:
            ValueError: there is no weight to share.
        """
        groups = groups_of(net, scope)
        if not groups:
            raise ValueError(
                f"this {type(net).__name__} has no weight of two or more dimensions that is not binary already"
            )
        kept: dict[str, Tensor | None] = {}
        for name, weight in weights_of(net).items():
            nonzero = weight.detach() != 0
            kept[name] = nonzero if keep_zeros and not bool(nonzero.all()) else None
        return cls(groups, {name: weight.shape for name, weight in weights_of(net).items()}, kept)

    def fit(
        self,
        targets: Mapping[str, Tensor],
        sizes: int | Mapping[str, int],
        *,
        curvature: Mapping[str, Tensor] | None = None,
        rate: float = 0.0,
        zero: bool = False,
        sweeps: int = 50,
        begin: Literal["quantiles", "linear"] = "quantiles",
    ) -> None:
        """Assign and refit towards these weights, from the present codebooks or, without any, from quantiles.

        Args:
            targets: one tensor for every weight.
            sizes: values of a codebook, or of each.
            curvature: positive, as the targets; all 1 by default.
            rate: price of a bit in units of the mean square of the group's targets (times the mean curvature).
            zero: one value is zero and stays zero.
            sweeps: at most so many.
            begin: first values of a codebook that is not there yet.
        """
        for group, names in self.groups.items():
            parts = [self.chosen(name, targets[name]) for name in names]
            flat = torch.cat(parts).double()
            if len(flat):
                h = None if curvature is None else torch.cat([self.chosen(n, curvature[n]) for n in names]).double()
                size = sizes if isinstance(sizes, int) else sizes[group]
                book = self.books.get(group)
                fresh = codebook.linear(flat, size) if begin == "linear" else codebook.start(flat, size, zero=zero)
                first = fresh if book is None else book.values
                unit = float(flat.square().mean()) * (1.0 if h is None else float(h.mean()))
                found = codebook.fit(flat, first, curvature=h, rate=rate * unit, zero=zero, sweeps=sweeps)
            else:
                found = Codebook(flat.new_zeros(1), flat.new_zeros(0, dtype=torch.int64))
            self.books[group] = found
            pieces = found.index.split([len(part) for part in parts])
            self.indices.update(zip(names, pieces, strict=True))

    def chosen(self, name: str, value: Tensor) -> Tensor:
        """The entries of a tensor that take part, flat."""
        mask = self.kept[name]
        return value.detach().flatten() if mask is None else value.detach()[mask]

    def weights(self) -> dict[str, Tensor]:
        """The shared weights by name, float64, zero where entries are kept at zero."""
        found: dict[str, Tensor] = {}
        for group, names in self.groups.items():
            values = self.books[group].values
            for name in names:
                part, mask = values[self.indices[name]], self.kept[name]
                found[name] = part.view(self.shapes[name]) if mask is None else scattered(part, mask)
        return found

    @torch.no_grad()
    def write(self, net: nn.Module, values: Mapping[str, Tensor] | None = None) -> None:
        """Give the network its shared weights.

        Args:
            net: the network.
            values: codewords by group, in place of the codebooks' own.
        """
        for group, names in self.groups.items():
            words = self.books[group].values if values is None else values[group]
            for name in names:
                weight = net.get_parameter(name)
                part, mask = words.to(weight.dtype)[self.indices[name]], self.kept[name]
                weight.copy_(part.view(weight.shape) if mask is None else scattered(part, mask))

    def halve(self) -> None:
        """Round the codewords to float16, where it holds them, so that the file's tables are half as long."""
        for group, book in self.books.items():
            narrow = book.values.half().double()
            if bool(narrow.isfinite().all()):
                self.books[group] = Codebook(narrow, book.index)

    def summed(self, group: str, gradients: Mapping[str, Tensor]) -> Tensor:
        """Gradient with respect to the codewords of a group: the sums over the weights that take each value."""
        size = len(self.books[group].values)
        parts = [
            torch.bincount(self.indices[name], self.chosen(name, gradients[name]), minlength=size)
            for name in self.groups[group]
        ]
        return torch.stack(parts).sum(0)


def scattered(part: Tensor, mask: Tensor) -> Tensor:
    """A tensor of the mask's shape with these entries where it is true, zero elsewhere."""
    return part.new_zeros(mask.shape).masked_scatter(mask, part)
