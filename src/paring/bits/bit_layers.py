"""Layers that read or write bits; between them go int64 tensors (N, H, W, P, words), P planes of channels in words.

`Encode` floats -> bits, `Decode` bits -> floats, `BitPool` bits -> bits, and `paring.bits.contract` for the
convolutions and linear layers. All of them run on the CPU, without gradients.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from paring.bits.backend import kernels, share
from paring.bits.edges import Code
from paring.bits.words import packed, words_for

_WORDS_PER_BIT = 8  # words compared in the time in which one float becomes a bit, or a bit a float


class Encode(nn.Module):
    """Bits of float32 activations: bit q of channel c is set where low[q, c] <= x <= high[q, c].

    Shapes: (N, C) or (N, C, H, W) -> (N, H, W, planes, ⌈C / 64⌉), with H = W = 1 for the first.

    Raises:
        TypeError: the input is not float32 on the CPU.
        ValueError: it has another number of channels or dimensions.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, x: Tensor) -> Tensor:
        planes, channels = self.low.shape
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise TypeError(f"bits are made of float32 numbers on the CPU, not {x.dtype} on {x.device}")
        if x.dim() not in (2, 4) or x.shape[1] != channels:
            raise ValueError(f"expected (N, {channels}) or (N, {channels}, H, W), not {tuple(x.shape)}")
        height, width = (x.shape[2], x.shape[3]) if x.dim() == 4 else (1, 1)
        rows, run = x.shape[0] * height * width, kernels()
        out = torch.empty(rows, planes, words_for(channels), dtype=torch.int64)
        low, high, bits = self.low.view(-1).numpy(), self.high.view(-1).numpy(), out.numpy()
        last = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
        cost = _WORDS_PER_BIT * rows * planes * channels
        if last.is_contiguous():
            flat = last.detach().reshape(-1).numpy()
            share(lambda start, stop: run.encode_last(flat, low, high, start, stop, bits), rows, cost)
        else:
            flat = x.detach().contiguous().view(-1).numpy()

            def work(start: int, stop: int) -> None:
                held, line = np.empty(64, dtype=np.int64), np.zeros(64, dtype=np.float32)
                run.encode_first(flat, height * width, low, high, start, stop, held, line, bits)

            share(work, x.shape[0] * out.shape[2], cost)
        return out.view(x.shape[0], height, width, *out.shape[1:])

    def extra_repr(self) -> str:
        return f"channels={self.low.shape[1]}, planes={self.low.shape[0]}"


class Decode(nn.Module):
    """Values of bits, float32: (N, H, W, planes, words) -> (N, C, H, W), or (N, C) if flat.

    Args:
        code: what the bits stand for.
        channels: C.
        flat: H = W = 1 are left out.
    """

    def __init__(self, code: Code, channels: int, flat: bool) -> None:
        super().__init__()
        self.code, self.channels, self.flat = code, channels, flat

    def forward(self, bits: Tensor) -> Tensor:
        checked(bits, self.code.planes, self.channels)
        images, height, width = bits.shape[:3]
        out, run, size = torch.empty(images * self.channels * height * width), kernels(), height * width
        lines, found = bits.flatten(0, 2).numpy(), out.numpy()
        values = np.array(self.code.values, dtype=np.float32)
        share(
            lambda start, stop: run.decode(lines, values, size, self.channels, start, stop, found),
            images * self.channels,
            _WORDS_PER_BIT * len(found) * self.code.planes,
        )
        return out.view(images, self.channels) if self.flat else out.view(images, self.channels, height, width)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, planes={self.code.planes}"


class BitPool(nn.Module):
    """Max pooling of bits: the union over the window, or the intersection for channels that fall later on.

    Shapes: (N, H, W, P, words) -> (N, H', W', P, words), as `nn.MaxPool2d` gives them.

    Args:
        pool: the pooling that it stands for.
        falling: (C,) bool.
        planes: P.
    """

    every: Tensor

    def __init__(self, pool: nn.MaxPool2d, falling: Tensor, planes: int) -> None:
        super().__init__()
        self.kernel, self.stride = pair(pool.kernel_size), pair(pool.stride)
        self.padding, self.dilation = pair(pool.padding), pair(pool.dilation)
        self.ceil_mode, self.channels, self.planes = pool.ceil_mode, len(falling), planes
        self.register_buffer("every", packed(falling))
        self._geometry = np.array([*self.kernel, *self.stride, *self.padding, *self.dilation])

    def forward(self, bits: Tensor) -> Tensor:
        checked(bits, self.planes, self.channels)
        sizes = [self._size(bits.shape[1 + axis], axis) for axis in (0, 1)]
        if min(sizes) < 1:
            raise ValueError(f"images of {bits.shape[1]}x{bits.shape[2]} are smaller than the windows of {self}")
        out = torch.empty(bits.shape[0], *sizes, *bits.shape[3:], dtype=torch.int64)
        run, read, every, found = kernels(), bits.numpy(), self.every.numpy(), out.numpy()
        cost = out.numel() * int(self._geometry[0] * self._geometry[1])
        share(lambda start, stop: run.pool(read, self._geometry, every, start, stop, found), len(out) * sizes[0], cost)
        return out

    def _size(self, size: int, axis: int) -> int:
        """Windows along one axis; rounded up, the last one still begins inside the image or its left padding."""
        stride, padding = self.stride[axis], self.padding[axis]
        span = size + 2 * padding - self.dilation[axis] * (self.kernel[axis] - 1) - 1
        if not self.ceil_mode:
            return span // stride + 1
        count = -(-span // stride) + 1
        return count - 1 if (count - 1) * stride >= size + padding else count

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}, padding={self.padding}"


def checked(bits: Tensor, planes: int, channels: int) -> None:
    """Raise unless these are bits of so many planes and channels, as the layer before leaves them."""
    if bits.dtype != torch.int64 or bits.dim() != 5 or not bits.is_contiguous() or bits.device.type != "cpu":
        raise TypeError(
            f"expected bits, int64 (N, H, W, planes, words) on the CPU, not {bits.dtype} {tuple(bits.shape)}"
        )
    if bits.shape[3] != planes or bits.shape[4] != words_for(channels):
        raise ValueError(f"expected bits of {planes} planes of {channels} channels, not of shape {tuple(bits.shape)}")


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """A number for both axes, or one for each."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
