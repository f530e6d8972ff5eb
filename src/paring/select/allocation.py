"""Allocations: how many entries each layer keeps when a network may keep so many in all.

Each is a frozen value with one method, `counts(scores, density)`: scores by layer name in, number of kept entries by
layer name out. Only `Global` looks at the scores themselves, the others at their sizes, so any allocation goes with
any score and any structure, and one method's layer-wise result can be given to another (`Given.of(masks)`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from paring.select.highest import top

Scores = Mapping[str, Tensor]
Shapes = Mapping[str, Sequence[int]]


class Allocation(ABC):
    """Shares a density among layers."""

    @abstractmethod
    def counts(self, scores: Scores, density: float, shapes: Shapes | None = None) -> dict[str, int]:
        """Entries that each layer keeps.

        Args:
            scores: one tensor per layer; higher is kept first. Names come in the order of the network.
            density: kept entries over all entries, in [0, 1].
            shapes: of the layers' weights, when the entries are pieces of them; by default those of the scores.

        Raises:
            ValueError: the density is not in [0, 1], or there are no layers.
        """


@dataclass(frozen=True)
class Global(Allocation):
    """One threshold for all layers: the highest scores of the whole network are kept (IMP, SNIP, GraSP, slimming).

    Args:
        least: entries that every layer keeps at least, so that no layer disappears (the others keep fewer then); 0 lets
            layers go empty, as the papers' code does.
    """

    least: int = 0

    def counts(self, scores: Scores, density: float, shapes: Shapes | None = None) -> dict[str, int]:
        total = _check(scores, density)
        lifted = [_lifted(score.detach().flatten().double(), self.least) for score in scores.values()]
        keep = max(round(density * total), sum(min(self.least, score.numel()) for score in scores.values()))
        kept = top(torch.cat(lifted), keep).split([score.numel() for score in scores.values()])
        found = torch.stack([mask.sum() for mask in kept]).tolist()
        return dict(zip(scores, found, strict=True))


@dataclass(frozen=True)
class Uniform(Allocation):
    """The same density in every layer (GMP, RigL's "uniform"); above zero no layer goes empty.

    Args:
        first_dense: leave the first layer dense, as RigL's uniform rows do; the others keep the asked density, so the
            whole network keeps a little more.
    """

    first_dense: bool = False

    def counts(self, scores: Scores, density: float, shapes: Shapes | None = None) -> dict[str, int]:
        _check(scores, density)
        return {
            name: score.numel() if self.first_dense and number == 0 else _share(density, score)
            for number, (name, score) in enumerate(scores.items())
        }


@dataclass(frozen=True)
class ErdosRenyi(Allocation):
    """Density of a layer proportional to (sum of its sizes) / (product of its sizes) (SET; RigL's "ERK").

    The factor is solved so that the whole network keeps what was asked; layers that would keep more than everything
    stay dense and the factor is solved again for the others (Evci et al. 2020).

    Args:
        kernel: count kernel sizes as well ("ERK"); without them only inputs and outputs count ("ER").
    """

    kernel: bool = True

    def counts(self, scores: Scores, density: float, shapes: Shapes | None = None) -> dict[str, int]:
        total = _check(scores, density)
        raw = {name: self._raw((shapes or {}).get(name, score.shape)) for name, score in scores.items()}
        dense: set[str] = set()
        while True:
            rest = density * total - sum(scores[name].numel() for name in dense)
            weight = sum(raw[name] * score.numel() for name, score in scores.items() if name not in dense)
            factor = max(0.0, rest) / weight if weight else 0.0
            over = {name for name in raw if name not in dense and raw[name] * factor >= 1.0}
            if not over:
                break
            dense.add(max(over, key=lambda name: raw[name]))
        return {
            name: score.numel() if name in dense else _share(factor * raw[name], score)
            for name, score in scores.items()
        }

    def _raw(self, shape: Sequence[int]) -> float:
        sizes = shape if self.kernel else shape[:2]
        return sum(sizes) / math.prod(sizes)


@dataclass(frozen=True)
class Given(Allocation):
    """Densities somebody else found (the layer-wise result of another method).

    On the way to them (a density above the total of the given ones) every layer's sparsity is scaled down alike; below
    that total the given densities hold.

    Args:
        densities: pairs (layer name or pattern, density in [0, 1]).
    """

    densities: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        for name, value in self.densities:
            if not 0 <= value <= 1:
                raise ValueError(f"Given: the density of {name!r} is {value}: must lie in [0, 1]")

    @classmethod
    def of(cls, masks: Mapping[str, Tensor]) -> Given:
        """The layer-wise densities of masks (or supports)."""
        return cls(tuple((name, (mask != 0).double().mean().item()) for name, mask in masks.items()))

    def counts(self, scores: Scores, density: float, shapes: Shapes | None = None) -> dict[str, int]:
        total = _check(scores, density)
        found = {name: self._of(name) for name in scores}
        final = sum(found[name] * score.numel() for name, score in scores.items()) / total
        part = 1.0 if final >= 1 else min(1.0, (1 - density) / (1 - final))
        return {name: round((1 - part * (1 - found[name])) * score.numel()) for name, score in scores.items()}

    def _of(self, name: str) -> float:
        for pattern, value in self.densities:
            if pattern == name or fnmatchcase(name, pattern):
                return value
        raise ValueError(f"Given has no density for layer {name!r}; it names {', '.join(p for p, _ in self.densities)}")


def _share(density: float, score: Tensor) -> int:
    """Entries at this density; one at least, so that rounding empties no small layer."""
    return max(1, round(density * score.numel())) if density > 0 and score.numel() else 0


def _lifted(score: Tensor, least: int) -> Tensor:
    """The scores with the `least` highest ones above all others of the network."""
    if least == 0:
        return score
    lifted = score.clone()
    lifted[top(score, least)] = float("inf")
    return lifted


def _check(scores: Scores, density: float) -> int:
    if not 0 <= density <= 1:
        raise ValueError(f"density {density}: must lie in [0, 1]")
    if not scores:
        raise ValueError("there are no layers to share a density among")
    return sum(score.numel() for score in scores.values())
