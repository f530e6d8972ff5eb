"""Convolutions and linear layers of ±1 weights (times a scale per output channel) on bits.

With p = Σ popcount(x xor w) over the taps of a filter, planes included, the sum n over inputs times signs is

    signs           n = V + 2 u - 2 p    V inputs are inside the image, u weights outside it are +1 (there x's bits are 0)
    staircases      n = P a - p          a weights are +1, P planes; what lies outside is 0 as it should be

and the layer's output is float32(scale * size * n + bias), computed in float64, with the size of one step. n is exact. So a layer that ends in a
hard-threshold unit compares p with whole numbers: bit = (p <= limit), one limit per channel, plane and kind of border.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paring.bits.backend import kernels, share
from paring.bits.bit_layers import checked, pair
from paring.bits.edges import Code, Edges
from paring.bits.words import ones, packed_weights, words_for


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution of bits; a linear layer has a window as large as its input.

    before: padding at the top and left. after: at the bottom and right.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Window:
        """The geometry of a convolution with zero padding."""
        kernel, dilation = pair(conv.kernel_size), pair(conv.dilation)
        before = after = (0, 0)
        if conv.padding == "same":
            total = tuple(d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
            before = (total[0] // 2, total[1] // 2)
            after = (total[0] - before[0], total[1] - before[1])
        elif not isinstance(conv.padding, str):
            before = after = pair(conv.padding)
        return cls(kernel, pair(conv.stride), before, after, dilation, conv.groups)

    def size(self, size: int, axis: int) -> int:
        """Output positions along one axis."""
        span = size + self.before[axis] + self.after[axis] - self.dilation[axis] * (self.kernel[axis] - 1) - 1
        return span // self.stride[axis] + 1

    def inside(self, size: int, axis: int) -> Tensor:
        """(positions, taps) bool: whether a tap lies inside the image."""
        start = torch.arange(self.size(size, axis))[:, None] * self.stride[axis] - self.before[axis]
        at = start + torch.arange(self.kernel[axis]) * self.dilation[axis]
        return (at >= 0) & (at < size)


@dataclass(frozen=True)
class _Tables:
    """What follows from the buffers and the size of the image, as numpy arrays. base: n + each * p."""

    words: Any
    geometry: Any
    kinds: Any
    limits: Any
    base: Any
    each: float
    factor: Any
    shift: Any
    direct: bool


class BitLayer(nn.Module):
    """A convolution or linear layer on bits, (N, H, W, P, words) -> bits of the same form, or float32.

    Args:
        weight: ±1 times a scale, (O, C / groups, kh, kw); filters may be 0.
        bias: (O,) or None.
        window: geometry.
        code: of the input.
        ends: edges of the unit that follows, over n; None gives the float32 output, (N, O, H', W').
        flat: the output is (N, O).
        extra: (O, taps) whole numbers: what n has besides at every tap inside the image (see `split`); of one group.

    Raises (in forward):
        TypeError, ValueError: the input is not made of such bits, or is smaller than the window.
    """

    words: Tensor
    extra: Tensor | None
    edges: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        window: Window,
        code: Code,
        ends: Edges | None,
        flat: bool,
        extra: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.window, self.code, self.flat = window, code, flat
        self.filters, self.channels = weight.shape[0], weight.shape[1] * window.groups
        self.levels = 0 if ends is None else len(ends.edges)
        positive = weight > 0
        if ends is None:
            self.register_buffer("scale", scales(weight))
            self.register_buffer("bias", torch.zeros(self.filters) if bias is None else bias.detach().clone())
        else:
            positive ^= ends.falling.view(-1, 1, 1, 1)
            self.register_buffer("edges", ends.edges.to(torch.int32))
        if extra is not None:
            extra = (extra if ends is None else torch.where(ends.falling[:, None], -extra, extra)).to(torch.int32)
        self.register_buffer("extra", extra)
        self.register_buffer("words", packed_weights(positive, window.groups))
        self._held: dict[tuple[int, int], tuple[list[Tensor], list[int | None], _Tables]] = {}

    def forward(self, bits: Tensor) -> Tensor:
        checked(bits, self.code.planes, self.channels)
        images, height, width, planes, across = bits.shape
        if self.flat and (height, width) != self.window.kernel:
            kernel = "x".join(map(str, self.window.kernel))
            raise ValueError(
                f"a linear layer for maps of {kernel} got maps of {height}x{width}; give images of the same size"
            )
        tables = self._tables(height, width)
        oh, ow = int(tables.geometry[9]), int(tables.geometry[10])
        groups, blocks, size, _ = self.words.shape
        rows, run = images * oh * ow, kernels()
        levels, target = self.levels, words_for(self.filters)
        if levels:
            make = torch.zeros if groups > 1 else torch.empty
            out = make(rows, levels, target, dtype=torch.int64)
        else:
            out = torch.empty(rows, self.filters)
        result = out.view(-1).numpy()
        shape = (bits.view(-1).numpy(), height, width, planes, across, tables.words, tables.geometry, tables.kinds)

        def work(start: int, stop: int, first: int, last: int) -> None:
            scratch = np.empty(0 if tables.direct else planes * run.CHUNK * size, dtype=np.int64)
            counts = np.empty(run.CHUNK * run.WORD, dtype=np.int32)
            part = (tables.direct, start, stop, first, last, scratch, counts)
            if levels:
                run.threshold(*shape, tables.limits, levels, *part, result)
            else:
                held = np.empty(run.WORD, dtype=np.float32)
                affine = (tables.base, tables.each, tables.factor, tables.shift)
                run.project(*shape, *affine, *part, held, result)

        cost = rows * groups * blocks * size * planes * run.WORD
        if groups == 1 and rows < run.CHUNK:
            share(lambda first, last: work(0, rows, first, last), blocks, cost)
        else:
            share(lambda start, stop: work(start, stop, 0, blocks), rows, cost, run.CHUNK)
        if levels:
            return out.view(images, oh, ow, levels, target)
        return out if self.flat else out.view(images, oh, ow, self.filters).permute(0, 3, 1, 2)

    def _tables(self, height: int, width: int) -> _Tables:
        """Made once per image size, and again when weights or edges were loaded."""
        buffers = [buffer for buffer in self._buffers.values() if buffer is not None]
        versions = [None if buffer.is_inference() else buffer._version for buffer in buffers]
        known = self._held.get((height, width))
        if known is None or known[1] != versions or any(a is not b for a, b in zip(known[0], buffers, strict=True)):
            known = self._held[height, width] = (buffers, versions, self._make(height, width))
        return known[2]

    def _make(self, height: int, width: int) -> _Tables:
        window = self.window
        sizes = [window.size(size, axis) for axis, size in enumerate((height, width))]
        if min(sizes) < 1:
            raise ValueError(f"images of {height}x{width} are smaller than the windows of {window}")
        words = self.words.contiguous()
        groups, blocks, _, lanes = words.shape
        taps, per = window.kernel[0] * window.kernel[1], self.channels // groups
        inside, kinds = self._kinds(height, width)
        ups = ones(words).view(groups, blocks, taps, -1, lanes).sum(3)
        if self.code.signed:
            outside = torch.einsum("kt,gbtl->kgbl", (~inside).long(), ups)
            base, each = 2 * outside + (per * inside.sum(1)).view(-1, 1, 1, 1), 2
            if self.extra is not None:
                more = torch.einsum("kt,ot->ko", inside.long(), self.extra.long())
                base = base + torch.stack([self._filled(row) for row in more]).view(base.shape)
        else:
            base, each = (self.code.planes * ups.sum(2))[None], 1
        geometry = [*window.kernel, *window.stride, *window.before, *window.dilation, per, *sizes]
        geometry += [groups, blocks, self.filters // groups]
        whole = window.kernel == (height, width) and sizes == [1, 1] and window.before == (0, 0)
        pointwise = taps == 1 and window.stride == (1, 1) and window.before == window.after == (0, 0)
        direct = groups == 1 and self.code.planes == 1 and ((whole and window.dilation == (1, 1)) or pointwise)
        return _Tables(
            words.view(-1).numpy(),
            np.array(geometry),
            kinds.int().numpy(),
            self._limits(base, each).view(-1).numpy() if self.levels else None,
            base.int().reshape(-1).numpy(),
            float(each),
            None if self.levels else self._filled(self.scale.double() * self.code.size).numpy(),
            None if self.levels else self._filled(self.bias.double()).numpy(),
            direct,
        )

    def _filled(self, values: Tensor) -> Tensor:
        """(O,) as (groups, blocks 64), filled up with 0."""
        groups, blocks, _, lanes = self.words.shape
        filled = values.new_zeros(groups, blocks * lanes)
        filled[:, : self.filters // groups] = values.view(groups, -1)
        return filled.view(-1)

    def _kinds(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """(kinds, taps) bool, which taps are inside; and the kind of every output position."""
        if not self.code.signed:
            positions = self.window.size(height, 0) * self.window.size(width, 1)
            return torch.ones(1, self.words.shape[2], dtype=torch.bool), torch.zeros(positions, dtype=torch.long)
        (rows, row), (columns, column) = (
            torch.unique(self.window.inside(size, axis), dim=0, return_inverse=True)
            for axis, size in enumerate((height, width))
        )
        inside = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)
        return inside, (row[:, None] * len(columns) + column[None, :]).reshape(-1)

    def _limits(self, base: Tensor, each: int) -> Tensor:
        """int32 (kinds, planes, groups, blocks, 64): largest count at which a bit is set, -1 for channels that are none."""
        groups, blocks, lanes = base.shape[1:]
        filters = self.filters // groups
        edges = torch.zeros(self.levels, groups, blocks * lanes, dtype=torch.long)
        edges[:, :, :filters] = self.edges.view(self.levels, groups, filters)
        room = base.view(len(base), 1, groups, blocks * lanes) - edges[None]
        limits = torch.div(room, each, rounding_mode="floor").clamp(min=-1)
        limits[..., filters:] = -1
        return limits.int().contiguous()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}}

    def extra_repr(self) -> str:
        out = f"planes={self.levels}" if self.levels else "float32"
        return f"{self.channels} -> {self.filters} ({out}), kernel={self.window.kernel}, groups={self.window.groups}"


def scales(weight: Tensor) -> Tensor:
    """(O,) the magnitude that all weights of a filter share."""
    return weight.detach().reshape(len(weight), -1).abs().amax(1)


def binary(weight: Tensor) -> bool:
    """Whether every filter is ±1 times one scale (which may be 0)."""
    flat = weight.detach().reshape(len(weight), -1)
    return bool(flat.numel()) and bool((flat.abs() == flat.abs().amax(1, keepdim=True)).all())


def split(weight: Tensor, constant: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """The weights as ±1 times a scale, and what is left of channels that never change.

    Exact removal gathers in one channel what closed units gave, so that its weights are whole multiples of the scale.

    Args:
        weight: (O, C, kh, kw).
        constant: (C,) the value, ±1, of input channels that never change, 0 for the others.

    Returns:
        Weights with the scale itself in such columns, and (O, taps) the rest in units of the scale (None: nothing); None when
        the other columns are not ±1 times a scale, or these no whole multiples.
    """
    if binary(weight):
        return weight, None
    held = constant != 0
    if not bool(held.any()) or not binary(weight[:, ~held]):
        return None
    scale = scales(weight[:, ~held]).view(-1, 1, 1, 1)
    size = torch.where(scale > 0, scale, torch.ones_like(scale))
    times = torch.where(scale > 0, (weight[:, held] / size).round(), torch.zeros_like(scale))
    if not torch.equal(times * scale, weight[:, held]):
        return None
    plain = weight.clone()
    plain[:, held] = scale.expand_as(plain[:, held])
    extra = ((times - 1) * constant[held].view(1, -1, 1, 1)).sum(1).flatten(1)
    return plain, torch.where(scale.view(-1, 1) > 0, extra, torch.zeros_like(extra)).long()
