"""Random convolutional networks of mixed parts: same function in float64, a second pass finds nothing more."""

from __future__ import annotations

import copy

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from paring.removal import compact
from tests.removal.test_compact import gap

QUICK = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
ACTS = [nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.LeakyReLU, nn.Identity, lambda: nn.PReLU(init=0.2)]


class Step(nn.Module):
    """One layer with norm and activation; join: how it meets its input ("", "add", "cat", "gate")."""

    def __init__(self, layer: nn.Module, norm: nn.Module, act: nn.Module, join: str, width: int) -> None:
        super().__init__()
        self.layer, self.norm, self.act, self.join = layer, norm, act, join
        gate = nn.Sequential(nn.Linear(width, 3), nn.ReLU(), nn.Linear(3, width), nn.Sigmoid())
        self.gate = gate if join == "gate" else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layer(x))
        if self.join == "add":
            return self.act(y + x)
        y = self.act(y)
        if self.join == "cat":
            return torch.cat([F.interpolate(x, y.shape[2:]), y], 1)
        return y if self.gate is None else y * self.gate(y.mean((2, 3)))[:, :, None, None]


def draw_norm(draw: st.DrawFn, width: int) -> nn.Module:
    kind = draw(st.sampled_from(["none", "batch", "batch", "group", "instance", "slope"]))
    if kind == "group":
        return nn.GroupNorm(draw(st.sampled_from([g for g in range(1, width + 1) if width % g == 0])), width)
    kinds = {"batch": nn.BatchNorm2d, "instance": lambda w: nn.InstanceNorm2d(w, affine=True), "slope": nn.PReLU}
    return kinds[kind](width) if kind in kinds else nn.Identity()


@st.composite
def nets(draw: st.DrawFn) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(draw(st.integers(0, 1000)))
    width, size, steps = 3, 12, []
    for _ in range(draw(st.integers(2, 4))):
        kind = draw(st.sampled_from(["plain", "plain", "deep", "grouped", "turned"]))
        kernel, bias = draw(st.integers(1, 3)), draw(st.booleans())
        stride = draw(st.integers(1, 2)) if size > 6 else 1
        pad = draw(st.integers(0, kernel - 1))
        out = draw(st.integers(1, 3)) * 2
        groups = 1
        if kind == "deep":
            groups, out = width, width * draw(st.integers(1, 2))
        elif kind == "grouped" and width % 2 == 0:
            groups = 2
        if kind == "turned":
            groups = 2 if width % 2 == 0 and draw(st.booleans()) else 1
            stride = stride if size < 20 else 1
            layer: nn.Module = nn.ConvTranspose2d(width, out, kernel, stride, min(pad, kernel // 2), 0, groups, bias)
        else:
            modes = ["zeros", "zeros", "reflect", "circular"]
            layer = nn.Conv2d(width, out, kernel, stride, pad, 1, groups, bias, draw(st.sampled_from(modes)))
        joins = (
            ["", "", "cat", "gate", "add"]
            if stride == 1 and out == width and 2 * pad + 1 == kernel
            else ["", "cat", "gate"]
        )
        join = draw(st.sampled_from(joins))
        steps.append(Step(layer, draw_norm(draw, out), draw(st.sampled_from(ACTS))(), join, out))
        if draw(st.integers(0, 3)) == 0:
            steps.append(draw(st.sampled_from([nn.MaxPool2d(2, 1), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(2, 1)])))
        width = out + width if join == "cat" else out
        size = nn.Sequential(*steps).eval()(torch.zeros(1, 3, 12, 12)).shape[-1]
    net = nn.Sequential(*steps, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 2)).double().eval()
    hurt(net, draw)
    return net, torch.randn(3, 3, 12, 12).double()


def hurt(net: nn.Sequential, draw: st.DrawFn) -> None:
    """Units become live, zero, constant, balanced or unread; some norms lose channels."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, LAYERS):
                module.weight.normal_()
                turned = isinstance(module, nn.ConvTranspose2d)
                rows = module.weight.transpose(0, 1) if turned else module.weight
                for unit in range(len(rows)) if module is not net[-1] else ():
                    fate = draw(st.sampled_from(["live", "live", "zero", "constant", "balanced"]))
                    if fate == "balanced":
                        signs = torch.ones(rows[unit].numel()).double()
                        signs[1::2] = -1
                        signs[-1] = 0 if len(signs) % 2 else signs[-1]
                        rows[unit] = signs.view_as(rows[unit])
                    elif fate != "live":
                        rows[unit] = 0
                    if module.bias is not None and fate in ("zero", "balanced") and not (turned and module.groups > 1):
                        module.bias[unit] = 0
                if draw(st.integers(0, 3)) == 0:
                    (rows[:, ::2] if getattr(module, "groups", 1) == 1 else rows[: len(rows) // 2]).zero_()
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d | nn.PReLU):
                module.weight.uniform_(0.5, 2)
                if not isinstance(module, nn.PReLU):
                    module.bias.normal_()
                    module.weight[:: draw(st.integers(2, 4))] = 0
                    module.bias[::2] = 0
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)


@QUICK
@given(nets())
def test_random_nets_keep_their_function(case: tuple[nn.Sequential, Tensor]) -> None:
    net, x = case
    small, report = compact(net, x, verify=False)
    assert gap(net, small, torch.randn_like(x)) < 1e-9
    again = compact(small, x, verify=False)[1]
    if not any("the last unit of its layer" in row.kept for row in report.rows):  # one group left is no group any more
        assert [row.after for row in again.rows] == [row.after for row in report.rows]


@QUICK
@given(nets())
def test_random_nets_keep_their_function_in_train_mode(case: tuple[nn.Sequential, Tensor]) -> None:
    net, x = case
    small, _ = compact(net.train(), x, verify=False)
    assert gap(copy.deepcopy(net), copy.deepcopy(small), x) < 1e-7
    assert gap(net.eval(), small.eval(), x) < 1e-9
