"""Learned masks on weights that never move: drawn (Zhou et al. 2019) or the highest scores (Ramanujan et al. 2020).

    SupermaskGate   m ~ Bernoulli(sigma(logit)),                  dm / dsigma := 1
    PopupGate       m = 1 for the share `keep` of highest |score|, dm / d|score| := 1

Both pass the mask's gradient straight through to closed weights as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paring.core import Gate, noise_dtype
from paring.select import top

_SURE = 40.0  # a logit whose probability is one, or zero, in single precision


class SupermaskGate(Gate):
    """One probability per weight.

    Attributes:
        logit: zero at the start, so every weight is as likely in as out.

    Args:
        shape: what the gate multiplies.
        rescale: multiply the mask by (number of weights) / (number of open ones).
        lr_scale: learning rate as a multiple of the weights' (which do not move).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        rescale: bool = False,
        lr_scale: float = 1.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.lr_scale = lr_scale
        self.rescale = rescale
        self.logit = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    @property
    def shape(self) -> torch.Size:
        return self.logit.shape

    def forward(self, batch: int | None = None) -> Tensor:
        if not self.training:
            return self.value()
        p = self.prob_open()
        fine = torch.sigmoid(self.logit.detach().to(noise_dtype(p.dtype)))
        u = torch.rand(self.dense_shape, device=p.device, dtype=fine.dtype)
        mask = (self.part(u) < fine).to(p.dtype)
        return (mask + (p - p.detach())) * self._scale(mask)

    def prob_open(self) -> Tensor:
        return torch.sigmoid(self.logit)

    def value(self) -> Tensor:
        """Open where that is more likely than not."""
        mask = (self.logit.detach() > 0).to(self.logit.dtype)
        return mask * self._scale(mask)

    def _scale(self, mask: Tensor) -> Tensor | float:
        return mask.numel() / mask.detach().sum().clamp(min=1.0) if self.rescale else 1.0

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw the mask once, on the CPU so that every device gets the same; from now on each weight is in or out for sure."""
        u = torch.rand(self.dense_shape, generator=generator, dtype=torch.float64).to(self.logit.device)
        self.logit.copy_(torch.where(self.part(u) < self.prob_open(), _SURE, -_SURE))

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, rescale={self.rescale}"


class PopupGate(Gate):
    """One score per weight; the share `keep` with the highest |score| is open.

    Args:
        shape: what the gate multiplies, (outputs, inputs, ...).
        keep: share in (0, 1].
        lr_scale: learning rate as a multiple of the weights' (which do not move).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        keep: float,
        lr_scale: float = 1.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.lr_scale = lr_scale
        self.keep = keep
        dtype = dtype or torch.get_default_dtype()
        score = torch.empty(shape, device=device, dtype=noise_dtype(dtype))
        self.score = nn.Parameter(nn.init.kaiming_uniform_(score, a=math.sqrt(5)).to(dtype))

    @property
    def shape(self) -> torch.Size:
        return self.score.shape

    def forward(self, batch: int | None = None) -> Tensor:
        if not self.training:
            return self.value()
        size = self.score.abs()
        return self.value() + (size - size.detach())

    def prob_open(self) -> Tensor:
        return self.value()

    def value(self) -> Tensor:
        return self.support().to(self.score.dtype)

    def support(self) -> Tensor:
        return top(self.score.detach().abs(), max(int(self.keep > 0), round(self.keep * self.score.numel())))

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, keep={self.keep}"
