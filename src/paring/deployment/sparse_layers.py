"""Layers that skip zeros: linear layers and convolutions in float32 on the CPU, for answers only.

A convolution is a sum of shifted images: every weight that is not zero adds its input channel, moved by the weight's
place in the filter, to its output channel (`layout` has where things lie); no image is unfolded.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paring.bits.backend import share
from paring.core.answers_only import AnswersOnly
from paring.deployment.deploy_error import DeployError
from paring.deployment.layout import ConvWindow, Layout
from paring.deployment.packed_rows import PackedRows

_PER_WORD = 4  # multiplications in the time of a comparison of 64 bits, by which threads are given work


@cache
def kernels() -> Any:
    """`paring.deployment.sparse_kernels`, compiled when it is first used; needs numba."""
    from paring.deployment import sparse_kernels

    return sparse_kernels


class SparseLayer(AnswersOnly):
    """A layer with a packed weight.

    Raises (in forward):
        TypeError: the input is not float32 on the CPU.
        DeployError: it asks for a gradient.
    """

    instead = "train, save and export the network that pr.deploy was given, and deploy that again"
    error = DeployError

    def __init__(self, packed: PackedRows, groups: int = 1) -> None:
        super().__init__()
        self.packed, self.groups = packed, groups

    @property
    def weight(self) -> Tensor:
        """The dense weight, made when it is asked for."""
        return self.packed.dense(self.groups)

    @property
    def bytes(self) -> int:
        """What the layer holds."""
        return self.packed.bytes

    def numbers(self, x: Tensor) -> Any:
        """The input as a flat array, if it is one."""
        if x.dtype != torch.float32 or not x.is_cpu:
            raise TypeError(
                f"a deployed layer takes float32 on the CPU, not {x.dtype} on {x.device}: convert the input, or deploy the "
                "network where it is to run"
            )
        self.refuse_gradient(x)
        return (x.detach() if x.requires_grad else x).contiguous().numpy().ravel()

    def extra_repr(self) -> str:
        return f"{tuple(self.packed.shape)}, nonzeros={len(self.packed.values)}"


class SparseLinear(SparseLayer):
    """`nn.Linear` without its zeros: (..., inputs) -> (..., outputs)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(PackedRows.of(layer.weight, layer.bias))
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, input: Tensor) -> Tensor:
        x, run, given = input, kernels(), self.numbers(input)
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"expected inputs of shape (..., {self.in_features}), not {tuple(x.shape)}")
        packed, inputs, outputs = self.packed, self.in_features, self.out_features
        y = np.empty((*x.shape[:-1], outputs), dtype=np.float32)
        examples, out = y.size // outputs, y.ravel()

        def one(first: int, last: int) -> None:
            run.vector(given, packed.taps, packed.values, packed.starts, packed.bias, first, last, out)

        def many(first: int, last: int) -> None:
            wide = run.WIDTH * run.EXAMPLES
            table, ats = np.empty(inputs, dtype=np.int64), np.empty(run.EXAMPLES, dtype=np.int64)
            turned, held = np.empty(wide * inputs, dtype=np.float32), np.empty(wide * run.BLOCK, dtype=np.float32)
            run.matrix(
                given, examples, inputs, outputs, packed.taps, packed.values, packed.starts, packed.bias, first, last,
                table, ats, turned, held, out,
            )  # fmt: skip

        share(one if examples == 1 else many, outputs, len(packed.values) * examples // _PER_WORD)
        return torch.from_numpy(y)


class SparseConv(SparseLayer):
    """`nn.Conv1d` or `nn.Conv2d` without its zeros, any stride, padding with zeros, dilation and groups."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(PackedRows.of(layer.weight, layer.bias, layer.groups), layer.groups)
        self.dims = layer.weight.dim() - 2
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.window = ConvWindow.of(layer)
        self._layout: tuple[tuple[int, ...], Layout] | None = None

    def forward(self, input: Tensor) -> Tensor:
        x, run, given = input, kernels(), self.numbers(input)
        if x.dim() not in (self.dims + 1, self.dims + 2) or x.shape[-self.dims - 1] != self.in_channels:
            raise ValueError(
                f"expected {self.in_channels} channels before {self.dims} dimensions, not {tuple(x.shape)}"
            )
        images = len(x) if x.dim() == self.dims + 2 else 1
        lay = self.layout((images, self.in_channels, *(1, *x.shape[-self.dims :])[-2:]))
        y = np.empty((*x.shape[: -self.dims - 1], self.out_channels, *lay.size[2 - self.dims :]), dtype=np.float32)
        out, packed = y.ravel(), self.packed

        def work(begin: int, end: int, first: int, last: int) -> None:
            laid, held = np.empty(lay.room, dtype=np.float32), np.empty(8 * run.WIDTH, dtype=np.float32)
            run.convolve(
                given, begin, end, lay.step, lay.geometry, lay.phases, lay.table, lay.plane, lay.ats, lay.puts, lay.line,
                self.out_channels, packed.taps, packed.values, packed.starts, packed.bias, first, last, laid, held, out,
            )  # fmt: skip

        cost = len(packed.values) * images * lay.size[0] * lay.size[1] // _PER_WORD
        if images > lay.step:
            share(lambda begin, end: work(begin, end, 0, self.out_channels), images, cost, lay.step)
        else:
            share(lambda first, last: work(0, images, first, last), self.out_channels, cost)
        return torch.from_numpy(y)

    def layout(self, shape: tuple[int, int, int, int]) -> Layout:
        """How to lay images of this shape; kept until another one comes."""
        if self._layout is None or self._layout[0] != shape:
            self._layout = shape, Layout.of(self.window, self.out_channels, *shape)
        return self._layout[1]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.window}"
