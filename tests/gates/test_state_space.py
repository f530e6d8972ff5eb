"""Selective state spaces (Mamba): one gate for each channel, in the columns of the two layers that read it."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.core import Inputs, release
from paring.pruning.gated import GatedCopy
from paring.removal import compact

WIDTH, INNER, RANK, STATE, TAPS = 6, 10, 3, 4, 3


class Mixer(nn.Module):
    """As in transformers without its kernels: weights of the convolution and of the time steps are read by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.in_proj = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 2 * INNER)
        self.conv1d = nn.Conv1d(INNER, INNER, TAPS, groups=INNER, padding=TAPS - 1)
        self.x_proj, self.dt_proj = nn.Linear(INNER, RANK + 2 * STATE, bias=False), nn.Linear(RANK, INNER)
        self.A_log, self.D = nn.Parameter(torch.rand(INNER, STATE)), nn.Parameter(torch.rand(INNER))
        self.out_proj = nn.Linear(INNER, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        steps = inputs.shape[1]
        x, z = self.in_proj(self.stem(inputs).sin()).transpose(1, 2).chunk(2, dim=1)
        kernel = self.conv1d.weight.squeeze(1).unsqueeze(1)
        x = F.silu(F.conv1d(x, kernel, self.conv1d.bias, padding=TAPS - 1, groups=x.shape[1])[..., :steps])
        dt, b, c = self.x_proj(x.transpose(1, 2)).split([RANK, STATE, STATE], dim=-1)
        dt = F.softplus(self.dt_proj.weight @ dt.transpose(1, 2) + self.dt_proj.bias[:, None])
        decay = (dt[..., None] * -self.A_log.exp()[None, :, None]).exp()
        given = dt[..., None] * b[:, None] * x[..., None]
        state, out = x.new_zeros(x.shape[0], x.shape[1], STATE), []
        for t in range(steps):
            state = decay[:, :, t] * state + given[:, :, t]
            out.append((state @ c[:, t, :, None])[..., 0])
        y = torch.stack(out, -1) + x * self.D[:, None]
        return self.out_proj((y * F.silu(z)).transpose(1, 2))


def made() -> tuple[Mixer, Tensor]:
    torch.manual_seed(0)
    return Mixer().double().eval(), torch.randn(2, 7, 5, dtype=torch.float64)


def test_channels_and_ranks_of_time_steps_are_units() -> None:
    net, x = made()
    rows = pr.groups(net, x)
    (channels,) = (row for row in rows if "dt_proj" in row.layers)
    assert channels.layers == ("in_proj", "conv1d", "dt_proj")
    assert (channels.units, channels.gates) == (INNER, ("x_proj", "out_proj"))
    assert {(row.units, row.gateable) for row in rows if row.layers == ("x_proj",)} == {(RANK, True), (STATE, False)}


def test_a_closed_channel_is_read_as_zero_and_leaves(tmp_path: Path) -> None:
    net, x = made()
    gated = GatedCopy.of(net, Inputs((x,)), "units:in_proj")
    stays = torch.arange(INNER) % 3 != 1
    gated.set(stays)
    naive = copy.deepcopy(net)
    with torch.no_grad():
        naive.x_proj.weight[:, ~stays] = 0
        naive.out_proj.weight[:, ~stays] = 0
    assert bool(((net(x) - naive(x)).abs() > 0.01).any())
    torch.testing.assert_close(gated.net(x), naive(x), rtol=0, atol=1e-12)
    closed = copy.deepcopy(gated.net)
    release(closed)
    small, report = compact(closed, x)
    torch.testing.assert_close(small(x), naive(x), rtol=0, atol=1e-12)
    assert not report.rolled_back
    left = int(stays.sum())
    shapes = {name: tuple(p.shape) for name, p in small.named_parameters()}
    assert shapes["A_log"] == (left, STATE)
    assert shapes["conv1d.weight"] == (left, 1, TAPS)
    assert shapes["dt_proj.weight"] == (left, RANK)
    assert {shapes[name] for name in ("D", "conv1d.bias", "dt_proj.bias")} == {(left,)}
    assert sum(p.numel() for p in small.parameters()) == int(gated.cost(stays).parameters)
    pr.save(small, tmp_path / "small.safetensors")
    again = pr.load(lambda: Mixer().double(), tmp_path / "small.safetensors")
    assert torch.equal(again(x), small(x))


def test_a_closed_rank_leaves_both_layers() -> None:
    net, x = made()
    with torch.no_grad():
        net.dt_proj.weight[:, 1] = 0
    small, _ = compact(net, x)
    torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-12)
    assert small.dt_proj.weight.shape == (INNER, RANK - 1)
    assert small.x_proj.weight.shape == (RANK - 1 + 2 * STATE, INNER)


def test_an_outer_product_keeps_the_fewer_units() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.few, self.many, self.out = nn.Linear(5, 3), nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            cells = self.many(x)[..., None] * self.few(x)[..., None, :]
            out: Tensor = self.out(cells.sum(-1))
            return out

    net, x = Outer().double().eval(), torch.randn(4, 5, dtype=torch.float64)
    gateable = {row.layers: row.gateable for row in pr.groups(net, x)}
    assert gateable == {("few",): False, ("many",): True, ("out",): False}
    with torch.no_grad():
        net.out.weight[:, 2:5] = 0
        net.few.weight[0] = 0
        net.few.bias[0] = 0
    small, _ = compact(net, x)
    torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-12)
    assert small.many.out_features == 5
