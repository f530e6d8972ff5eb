"""Layers of classes that derive from torch's come back from files at any width."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr


class SamePadding(nn.Conv2d):
    """A convolution that pads by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


def made() -> nn.Module:
    return nn.Sequential(
        SamePadding(3, 8, 3), nn.ReLU(), SamePadding(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 2)
    ).eval()


def test_a_convolution_that_loses_outputs_and_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = made(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for name, dead in (("0", 3), ("2", 2)):
            net.get_parameter(f"{name}.weight")[:dead], net.get_parameter(f"{name}.bias")[:dead] = 0, 0
    small, _ = pr.compact(net, x)
    assert small.get_parameter("2.weight").shape == (4, 5, 3, 3)
    pr.pack(small, tmp_path / "small.pare")
    pr.save(small, tmp_path / "small.safetensors")
    for again in (pr.unpack(made, tmp_path / "small.pare"), pr.load(made, tmp_path / "small.safetensors")):
        assert type(again.get_submodule("2")) is SamePadding
        assert again.get_submodule("2").in_channels == 5
        assert torch.equal(again(x), small(x))
