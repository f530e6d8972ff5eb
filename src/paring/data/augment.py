"""Random crop and horizontal flip of a whole batch at once, on the device that the batch is on.

The augmentation of the CIFAR papers (He et al. 2015, arXiv:1512.03385, section 4.2): pad each side with `crop` zeros,
cut out a window of the old size at a random place, mirror half of the images. Zero is black for data in [0, 1] and the
mean colour for standardised data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """`Augment(crop=4, flip=True)(x)` shifts every image by up to `crop` pixels and mirrors half of them.

    crop: zeros put on each side before the crop, >= 0 and smaller than the image; 0 crops nothing.
    flip: mirror left-right with probability 1/2. `Augment()` is the identity.
    Raises ValueError for other values.
    """

    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.crop, bool) or not isinstance(self.crop, int) or self.crop < 0:
            raise ValueError(f"crop is a number of pixels >= 0, not {self.crop!r}")
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip is True or False, not {self.flip!r}")

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augmented copy of `x` (N, C, H, W): same shape, dtype and device.

        generator: source of the randomness, torch's global one by default. The numbers are drawn on the generator's own
        device, so a CPU generator gives the same augmentation wherever `x` is.
        Raises ValueError when x is not a batch of images larger than `crop`.
        """
        if not self.crop and not self.flip:
            return x
        if x.ndim != 4:
            raise ValueError(
                f"augmentation needs a batch of images (N, C, H, W), not a tensor of shape {tuple(x.shape)}"
            )
        n, channels, height, width = x.shape
        if self.crop >= min(height, width) and self.crop > 0:
            raise ValueError(f"crop={self.crop} could cut a {height}x{width} image away whole; use a smaller crop")

        def draw(high: int) -> Tensor:
            device = x.device if generator is None else generator.device
            return torch.randint(high, (n, 1), generator=generator, device=device).to(x.device)

        rows = torch.arange(height, device=x.device).expand(n, height)
        columns = torch.arange(width, device=x.device).expand(n, width)
        if self.crop:
            x = F.pad(x, [self.crop] * 4)
            rows = rows + draw(2 * self.crop + 1)
            columns = columns + draw(2 * self.crop + 1)
        if self.flip:
            columns = torch.where(draw(2) == 1, columns.flip(1), columns)
        pixels = (rows[:, :, None] * x.shape[3] + columns[:, None, :]).flatten(1)
        pixels = pixels[:, None].expand(n, channels, height * width)
        return x.flatten(2).gather(2, pixels).view(n, channels, height, width)
