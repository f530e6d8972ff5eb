"""What a search for a hard-threshold network can end with: a network, a proof that there is none, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from paring.hard.feasible import CertificateError, Inseparable, Separable, problem, separate
from paring.hard.units import Sign

Patterns = NDArray[np.int8]


@dataclass(frozen=True)
class Found:
    """A network of sign units without an error.

    Args:
        layers: the units of every layer, the outputs last. Each has a margin above zero on what the layer below outputs.
        by: local search from targets, or enumeration.
        spent: linear programmes and decisions of separability until then.
    """

    layers: tuple[tuple[Separable, ...], ...]
    by: Literal["search", "enumeration"]
    spent: int

    @property
    def margin(self) -> float:
        """The least margin of all units."""
        return min(unit.margin for layer in self.layers for unit in layer)

    def patterns(self, points: ArrayLike) -> list[Patterns]:
        """What every layer outputs, (N, units) of +1 and -1 each, from the first hidden layer to the outputs."""
        x, out = np.asarray(points, dtype=np.float64), []
        for layer in self.layers:
            z = x @ np.array([unit.weight for unit in layer]).T + np.array([unit.bias for unit in layer])
            out.append(np.where(z > 0, 1, -1).astype(np.int8))
            x = out[-1].astype(np.float64)
        return out

    def check(self, points: ArrayLike, targets: ArrayLike) -> None:
        """Verify unit by unit in rational arithmetic that the network outputs the targets.

        Raises:
            CertificateError: it does not.
        """
        x, t = task(points, targets)
        below = x
        for layer, outputs in zip(self.layers, [*self.patterns(x)[:-1], t], strict=True):
            if len(layer) != outputs.shape[1]:
                raise CertificateError(f"{len(layer)} units cannot have {outputs.shape[1]} targets")
            for unit, column in zip(layer, outputs.T, strict=True):
                unit.check(below, column)
            below = outputs.astype(np.float64)

    def network(self) -> nn.Sequential:
        """Linear and Sign layers in double precision; the last layer is Linear, its signs are the outputs."""
        modules: list[nn.Module] = []
        for layer in self.layers:
            linear = nn.Linear(len(layer[0].weight), len(layer), dtype=torch.float64)
            with torch.no_grad():
                linear.weight.copy_(torch.tensor([unit.weight for unit in layer], dtype=torch.float64))
                linear.bias.copy_(torch.tensor([unit.bias for unit in layer], dtype=torch.float64))
            modules += [linear, Sign()]
        return nn.Sequential(*modules[:-1])


@dataclass(frozen=True)
class Infeasible:
    """There is no such network.

    Args:
        reason: "conflict", two equal examples (`rows`) of different targets; "inseparable", no hidden layer and targets that
            are not linearly separable (`certificate`, of the output `output`); "exhausted", all hidden patterns that the
            layers can realise were ruled out.
        networks: combinations of hidden patterns that were ruled out, up to signs and order of units.
        spent: linear programmes and decisions of separability.
    """

    reason: Literal["conflict", "inseparable", "exhausted"]
    rows: tuple[int, ...] = ()
    certificate: Inseparable | None = None
    output: int | None = None
    networks: int = 0
    spent: int = 0


@dataclass(frozen=True)
class NotFound:
    """Nothing was found, and nothing proved: the budget is spent.

    Args:
        loss: the least hinge loss of the output layer that was reached, summed over examples and outputs.
        spent: linear programmes and decisions of separability.
    """

    loss: float
    spent: int


Outcome = Found | Infeasible | NotFound


def task(points: ArrayLike, targets: ArrayLike) -> tuple[NDArray[np.float64], Patterns]:
    """Points (N, d) and targets (N, outputs) of -1, 0 and +1, checked; targets of shape (N,) are one output.

    Raises:
        ValueError: shapes that do not fit, or entries that are no numbers or no targets.
    """
    t = np.asarray(targets)
    columns = t[:, None] if t.ndim == 1 else t
    if columns.ndim != 2 or columns.shape[1] == 0:
        raise ValueError(f"targets of shape {t.shape}: must be (N,) or (N, outputs)")
    checked = [problem(points, column) for column in columns.T]
    if len(checked[0][0]) == 0:
        raise ValueError("there are no examples")
    return checked[0][0], np.stack([column for _, column in checked], axis=1)


def conflict(points: NDArray[np.float64], targets: Patterns) -> tuple[int, int] | None:
    """Two examples with equal points and contrary targets, if there are any."""
    first: dict[tuple[bytes, int, int], int] = {}
    for row, (point, label) in enumerate(zip(points + 0.0, targets, strict=True)):
        for output, value in enumerate(label.tolist()):
            if value:
                other = first.get((point.tobytes(), output, -value))
                if other is not None:
                    return other, row
                first.setdefault((point.tobytes(), output, value), row)
    return None


def units(
    points: NDArray[np.float64], hidden: Sequence[Patterns], targets: Patterns
) -> tuple[tuple[Separable, ...], ...]:
    """The units that realise these patterns one layer after another.

    Raises:
        CertificateError: some pattern is not linearly separable given the layer below.
    """
    layers, below = [], points
    for number, outputs in enumerate((*hidden, targets)):
        found = [separate(below, column) for column in outputs.T]
        layer = tuple(unit for unit in found if isinstance(unit, Separable))
        if len(layer) < len(found):
            raise CertificateError(
                f"layer {number}: {len(found) - len(layer)} of its units cannot output their targets"
            )
        layers.append(layer)
        below = outputs.astype(np.float64)
    return tuple(layers)
