"""A trained factor per unit, and a mask over it: what network slimming prunes where a layer has no norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paring.gates.mask_gate import MaskGate


class ScaleGate(MaskGate):
    """`mask * scale`, both of `shape`; the scale is trained and starts at one."""

    def __init__(self, shape: tuple[int, ...], *, device: torch.device | None, dtype: torch.dtype | None) -> None:
        super().__init__(shape, device=device)
        self.scale = nn.Parameter(torch.ones(shape, device=device, dtype=dtype))

    def forward(self, batch: int | None = None) -> Tensor:
        return self.scale * self.mask

    def prob_open(self) -> Tensor:
        return self.mask.to(self.scale.dtype)

    def value(self) -> Tensor:
        return self.scale * self.mask
