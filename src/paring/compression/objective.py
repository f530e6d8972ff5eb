"""What a compressor has to keep: a loss on data, measured over all of it, with its gradient and curvature.

Give it training or validation data. The bound that a compressor keeps is a bound on this data; the test set has no place
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paring.core.default_loss import examples, scalar


@dataclass(frozen=True)
class Objective:
    """A mean loss over batches, in eval mode.

    Args:
        loss: (network, batch) -> scalar, the mean over the examples of the batch.
        batches: what the loss takes; any objects.
        sizes: examples in each batch, as weights of the mean; by default the first size of its first tensor.
    """

    loss: Callable[[nn.Module, Any], Tensor]
    batches: Sequence[Any]
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.batches):
            raise ValueError("Objective(batches=[]): there has to be data")
        if self.sizes and (len(self.sizes) != len(self.batches) or min(self.sizes) < 1):
            raise ValueError(f"Objective: {len(self.sizes)} sizes for {len(self.batches)} batches, each at least 1")

    @classmethod
    def of(cls, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, batch: int = 1000) -> Objective:
        """The mean of `loss(outputs, y)` over examples x.

        Args:
            loss: such as `torch.nn.functional.cross_entropy`.
            x: (examples, ...).
            y: (examples, ...).
            batch: examples at a time.
        """
        pairs = list(zip(x.split(batch), y.split(batch), strict=True))
        return cls(lambda net, pair: loss(net(pair[0]), pair[1]), pairs, tuple(len(one) for one, _ in pairs))

    def __call__(self, net: nn.Module) -> float:
        """The loss of a network."""
        with torch.no_grad(), _evaluating(net):
            return sum(w * float(scalar(self.loss(net, batch))) for w, batch in self._weighted())

    def gradient(self, net: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """Gradient of the loss with respect to these parameters; zero for those it does not depend on."""
        return self._mean(net, names, lambda grad: grad)

    def curvature(self, net: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """Mean over the batches of the squared batch gradient: a cheap diagonal curvature (empirical Fisher)."""
        return self._mean(net, names, torch.square)

    def _mean(self, net: nn.Module, names: Sequence[str], of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Weighted mean over the batches of a function of the batch gradient."""
        parameters = [net.get_parameter(name) for name in names]
        total = [torch.zeros_like(p) for p in parameters]
        with torch.enable_grad(), _evaluating(net), _requiring(parameters):
            for weight, batch in self._weighted():
                grads = torch.autograd.grad(self.loss(net, batch), parameters, allow_unused=True)
                for sum_, grad in zip(total, grads, strict=True):
                    if grad is not None:
                        sum_ += weight * of(grad)
        return dict(zip(names, total, strict=True))

    def _weighted(self) -> list[tuple[float, Any]]:
        sizes = self.sizes or tuple(max(1, examples(batch)) for batch in self.batches)
        total = sum(sizes)
        return [(size / total, batch) for size, batch in zip(sizes, self.batches, strict=True)]


class _evaluating:
    """Eval mode for every module for a while."""

    def __init__(self, net: nn.Module) -> None:
        self.modes = [(module, module.training) for module in net.modules()]

    def __enter__(self) -> None:
        for module, _ in self.modes:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes:
            module.training = mode


class _requiring:
    """Gradients for frozen parameters too, for a while."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.before = [(p, p.requires_grad) for p in parameters]

    def __enter__(self) -> None:
        for parameter, _ in self.before:
            parameter.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for parameter, before in self.before:
            parameter.requires_grad_(before)
