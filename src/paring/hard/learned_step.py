"""A quantiser whose step size is learned (LSQ, Esser et al., ICLR 2020, arXiv 1902.08153, eq. 1 to 5).

    h = s round(clip(x / s, 0, n)),       ∂h/∂x := [0 <= x / s <= n]
    ∂h/∂s := round(x / s) - x / s inside, 0 below, n above, times 1 / sqrt(n · features of an example)

Levels 0, s, ..., n s, as many as `Staircase(n)` has; s is one number per module, trained with the weights. The authors start it
from the first batch; here it starts at 1/n, where the levels are those of the staircase. Its sign does not matter.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from paring.files.rebuild import UNITS

_LEAST = 1e-8


class _Round(torch.autograd.Function):
    """The nearest whole number, with the gradient of the identity."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class LearnedStep(nn.Module):
    """n + 1 levels from 0 up, whose distance is trained. Any shape, batch first.

    Attributes:
        step: the distance, a scalar parameter.

    Args:
        steps: n, at least 1.

    Raises:
        ValueError: fewer than one step.
    """

    def __init__(self, steps: int = 3, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"LearnedStep(steps={steps!r}): a whole number, at least 1; 3 steps have 4 levels, 2 bits")
        self.steps = steps
        self.saved_as = ("learned_step", steps)
        self.step = nn.Parameter(torch.tensor(1 / steps, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        features = math.prod(x.shape[1:])
        share = 1 / math.sqrt(self.steps * max(1, features))
        size = self.step.abs().clamp(min=_LEAST)
        size = (size.detach() + share * (size - size.detach())).to(x.dtype)
        rounded: Tensor = _Round.apply((x / size).clamp(0, self.steps))  # type: ignore[no-untyped-call]
        return rounded * size

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


UNITS["learned_step"] = LearnedStep
