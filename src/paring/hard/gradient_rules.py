"""Gradient rules of hard-threshold units, as values: what stands for ∂loss/∂z where the true derivative is zero.

A unit h of a pre-activation z in centred coordinates, h(z) in [-1, 1] with its steps symmetric about z = 0, gets
G = ∂loss/∂h from above and hands ∂loss/∂z down. A rule says how:

    STE               G                                            Hinton 2012; Bengio et al., arXiv 1308.3432
    SaturatedSTE      G [|z| <= window]                            Hubara et al., NeurIPS 2016; window sqrt(3): "SSTEv2"
    ApproxSign        G max(0, 2 - 2|z|)                           Bi-Real Net, Liu et al., ECCV 2018, eq. 7
    ErrorDecay        G k t sech²(t z),  k = max(1/t, 1)           IR-Net, Qin et al., CVPR 2020, eq. 11 and 12

The others come from feasible target propagation (Friesen and Domingos, ICLR 2018, arXiv 1710.11573): the unit is a
perceptron with the target t = sign(-G), a loss l(z, t), and

    ∂loss/∂z := |G| ∂l/∂z(z, t)        weighted, the default
    ∂loss/∂z := ∂l/∂z(z, t) / B        not weighted, B examples in the batch: the target's sign alone

    Hinge             l = max(0, 1 - tz)
    SaturatingHinge   l = max(0, 1 - max(tz, -1))                  weighted, it is SaturatedSTE
    SoftHinge         l = tanh(-tz) + 1                            "FTP-SH"; weighted, it is G sech²(z)
    LogLoss           l = log(1 + exp(-tz))
    PerUnitLoss       any l(z, t)

t = 0 (no gradient) means that the unit is left alone on that example. All is computed in the dtype of z.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class GradientRule(ABC):
    """What a hard unit hands down instead of its gradient."""

    @abstractmethod
    def descend(self, z: Tensor, gradient: Tensor) -> Tensor:
        """∂loss/∂z.

        Args:
            z: pre-activations in centred coordinates, batch first.
            gradient: G = ∂loss/∂h, of the same shape.
        """


@dataclass(frozen=True)
class STE(GradientRule):
    """The straight-through estimator: the unit is taken for the identity."""

    def descend(self, z: Tensor, gradient: Tensor) -> Tensor:
        return gradient


@dataclass(frozen=True)
class SaturatedSTE(GradientRule):
    """The identity within a window, nothing outside of it; its edges belong to it.

    Args:
        window: half its width. 1 is what the field calls SSTE, sqrt(3) the authors' second version.

    Raises:
        ValueError: the window is not positive.
    """

    window: float = 1.0

    def __post_init__(self) -> None:
        if not self.window > 0:
            raise ValueError(f"SaturatedSTE(window={self.window}): must be positive")

    def descend(self, z: Tensor, gradient: Tensor) -> Tensor:
        return gradient * (z.abs() <= self.window)


@dataclass(frozen=True)
class ApproxSign(GradientRule):
    """The derivative of a sign that is made of two parabolas."""

    def descend(self, z: Tensor, gradient: Tensor) -> Tensor:
        return gradient * (2 - 2 * z.abs()).clamp(min=0)


@dataclass(frozen=True)
class ErrorDecay(GradientRule):
    """The derivative of k tanh(t z): nearly the identity for small t, nearly the sign for large t.

    Args:
        t: sharpness; IR-Net raises it from 0.1 to 10 while it trains.

    Raises:
        ValueError: t is not positive and finite.
    """

    t: float = 1.0

    def __post_init__(self) -> None:
        if not (self.t > 0 and math.isfinite(self.t)):
            raise ValueError(f"ErrorDecay(t={self.t}): must be a positive number")

    def descend(self, z: Tensor, gradient: Tensor) -> Tensor:
        return gradient * (max(1.0, self.t) * (1 - torch.tanh(self.t * z).square()))


@dataclass(frozen=True)
class UnitLoss(GradientRule):
    """A loss l(z, t) of each unit, its target t in {-1, 0, +1}, and the rule that follows from it.

    Args:
        weighted: by |G|; else every target counts alike, 1/B.
    """

    weighted: bool = True

    @abstractmethod
    def value(self, z: Tensor, target: Tensor) -> Tensor:
        """l(z, t), entry by entry; zero where t = 0."""

    @abstractmethod
    def derivative(self, z: Tensor, target: Tensor) -> Tensor:
        """∂l/∂z, entry by entry; zero where t = 0."""

    def weight(self, gradient: Tensor) -> Tensor | float:
        """What l is multiplied by: |G|, or 1/B."""
        return gradient.abs() if self.weighted else 1.0 / max(1, gradient.shape[0] if gradient.dim() else 1)

    def descend(self, z: Tensor, gradient: Tensor) -> Tensor:
        return self.derivative(z, targets(gradient)) * self.weight(gradient)


def targets(gradient: Tensor) -> Tensor:
    """The heuristic targets t = sign(-G) in {-1, 0, +1}, in the dtype of G."""
    return torch.sign(-gradient)


@dataclass(frozen=True)
class Hinge(UnitLoss):
    """max(0, 1 - tz), the perceptron with a margin; convex. Its slope at tz = 1 is zero."""

    def value(self, z: Tensor, target: Tensor) -> Tensor:
        return (1 - target * z).clamp(min=0) * (target != 0)

    def derivative(self, z: Tensor, target: Tensor) -> Tensor:
        return -target * (target * z < 1)


@dataclass(frozen=True)
class SaturatingHinge(UnitLoss):
    """max(0, 1 - max(tz, -1)): the hinge, flat below tz = -1. Its slope is -t on all of -1 <= tz <= 1."""

    def value(self, z: Tensor, target: Tensor) -> Tensor:
        return (1 - target * z).clamp(min=0, max=2) * (target != 0)

    def derivative(self, z: Tensor, target: Tensor) -> Tensor:
        return -target * (z.abs() <= 1)


@dataclass(frozen=True)
class SoftHinge(UnitLoss):
    """tanh(-tz) + 1: bounded and smooth, the loss of FTP-SH."""

    def value(self, z: Tensor, target: Tensor) -> Tensor:
        return (1 - torch.tanh(target * z)) * (target != 0)

    def derivative(self, z: Tensor, target: Tensor) -> Tensor:
        return -target * (1 - torch.tanh(z).square())


@dataclass(frozen=True)
class LogLoss(UnitLoss):
    """log(1 + exp(-tz)), logistic regression of each unit; convex."""

    def value(self, z: Tensor, target: Tensor) -> Tensor:
        return F.softplus(-target * z) * (target != 0)

    def derivative(self, z: Tensor, target: Tensor) -> Tensor:
        return -target * torch.sigmoid(-target * z)


def squared_hinge(z: Tensor, target: Tensor) -> Tensor:
    """max(0, 1 - tz)²."""
    return (1 - target * z).clamp(min=0).square()


@dataclass(frozen=True)
class PerUnitLoss(UnitLoss):
    """Any loss of a unit; its derivative comes from autograd.

    Args:
        loss: l(z, t) of two tensors of one shape, entry by entry, of differentiable operations. A function of a module,
            so that the rule can be pickled and compared.
    """

    loss: Callable[[Tensor, Tensor], Tensor] = squared_hinge

    def __post_init__(self) -> None:
        if not callable(self.loss) or not hasattr(self.loss, "__qualname__") or not hasattr(self.loss, "__module__"):
            raise ValueError(
                f"PerUnitLoss(loss={self.loss!r}): give a function of a module (def my_loss(z, t): ...), whose name says it in "
                "checkpoints; a partial or a callable object has none"
            )

    def __repr__(self) -> str:
        """The same in every process: checkpoints know their method by it."""
        return f"PerUnitLoss(weighted={self.weighted}, loss={self.loss.__module__}.{self.loss.__qualname__})"

    def value(self, z: Tensor, target: Tensor) -> Tensor:
        return self.loss(z, target) * (target != 0)

    def derivative(self, z: Tensor, target: Tensor) -> Tensor:
        slope: Tensor = torch.func.grad(lambda point: self.value(point, target).sum())(z)
        return slope
