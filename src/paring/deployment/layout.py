"""Where the numbers of a sparse convolution lie.

Images are laid side by side with zeros between them, so that a move by a place in the filter is one offset for all columns,
which are read where they lie. A stride s splits the images into s² of every s-th row and column, on which it is a stride
of 1. Without padding and stride images stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from torch import nn

_LANES = 8  # columns of a vector
_VECTORS = 32  # of images that are taken at once at least, as long as there are images


@dataclass(frozen=True)
class ConvWindow:
    """Two numbers each, for y and x: of a convolution along one dimension those for y say that there is none.

    Attributes:
        kernel, stride, dilation: of the convolution.
        before, after: zeros around the image.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]

    @classmethod
    def of(cls, layer: nn.Conv1d | nn.Conv2d) -> Self:
        """What a layer says."""

        def both(values: Sequence[int], missing: int) -> tuple[int, int]:
            return (missing, values[0]) if len(values) == 1 else (values[0], values[1])

        around = layer._reversed_padding_repeated_twice
        return cls(
            both(layer.kernel_size, 1),
            both(layer.stride, 1),
            both(layer.dilation, 1),
            both(around[::2][::-1], 0),
            both(around[1::2][::-1], 0),
        )

    def outputs(self, axis: int, size: int) -> int:
        """Positions of the filter along one axis.

        Raises:
            ValueError: the image is smaller than the filter.
        """
        span = size + self.before[axis] + self.after[axis] - self.dilation[axis] * (self.kernel[axis] - 1) - 1
        if span < 0:
            raise ValueError(f"an image with a side of {size} is smaller than the filter of {self}")
        return span // self.stride[axis] + 1

    def laid(self, axis: int, size: int) -> int:
        """What an image takes along one axis; without a stride, zeros behind one line are those before the next."""
        before, after, stride = self.before[axis], self.after[axis], self.stride[axis]
        if stride == 1:
            return max(size + max(before, after), self.outputs(axis, size))
        return -(-(size + before + after) // stride)

    @property
    def plain(self) -> bool:
        """Whether images can stay where they are."""
        return self.stride == (1, 1) and self.before == self.after == (0, 0)


@dataclass(frozen=True)
class Layout:
    """Of images of one size; arrays are int64.

    Attributes:
        size: height and width of the output.
        geometry: channels, height, width, padding above and to the left, strides, lines and columns of a laid image, height
            and width of the output.
        phases: (ry, rx) that filters look at.
        table: where each tap begins.
        plane: numbers of one laid channel and phase.
        room: numbers of all; 0 where images stay where they are.
        step: images that are taken at once.
        ats, puts: where the vectors of these lie, and where they go in the output of channel 0; the last one of a row may
            overlap the one before, or stick out of a row that is shorter.
        line: 0, 8, 16, ..., as many.
    """

    size: tuple[int, int]
    geometry: Any
    phases: Any
    table: Any
    plane: int
    room: int
    step: int
    ats: Any
    puts: Any
    line: Any

    @classmethod
    def of(cls, window: ConvWindow, outputs: int, images: int, channels: int, height: int, width: int) -> Self:
        """For images (images, channels, height, width)."""
        high, broad = window.outputs(0, height), window.outputs(1, width)
        size = high, broad
        if window.plain and window.kernel == (1, 1):  # one long row
            height, width, high, broad = 1, height * width, 1, high * broad
        stays = window.plain and broad >= _LANES
        lines, across = (height, width) if stays else (window.laid(0, height), window.laid(1, width))
        begins = np.append(np.arange(0, max(broad - _LANES, 0), _LANES), max(broad - _LANES, 0))
        step = max(1, min(images, -(-_VECTORS // (high * len(begins)))))
        phases, which, shifts = _phases(window, across)
        plane = height * width if stays else step * lines * across + int(shifts.max()) + 2 * _LANES
        room = 0 if stays else channels * len(phases) * plane
        between = channels * height * width if stays else lines * across
        table = (np.arange(channels)[:, None] * len(phases) + which) * plane + shifts
        ats = _grid(step, between, high, across, begins)
        puts = _grid(step, outputs * high * broad, high, broad, begins)
        geometry = (channels, height, width, *window.before, *window.stride, lines, across, high, broad)
        line = _LANES * np.arange(len(ats))
        return cls(size, np.array(geometry), phases.ravel(), table.ravel(), plane, room, step, ats, puts, line)


def _phases(window: ConvWindow, across: int) -> tuple[Any, Any, Any]:
    """The phases that are looked at, (n, 2); and of each place in the filter its phase and its offset there."""
    (ky, kx), (sy, sx), (dy, dx) = window.kernel, window.stride, window.dilation
    y, x = (grid.ravel() for grid in np.meshgrid(dy * np.arange(ky), dx * np.arange(kx), indexing="ij"))
    phases, which = np.unique(np.stack([y % sy, x % sx], 1), axis=0, return_inverse=True)
    return phases, which.reshape(-1), y // sy * across + x // sx


def _grid(images: int, image: int, rows: int, row: int, begins: Any) -> Any:
    found = image * np.arange(images)[:, None, None] + row * np.arange(rows)[:, None] + begins
    return found.reshape(-1)
