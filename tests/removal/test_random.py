"""Random networks: same function in float64, everything removable is gone, nothing else is."""

from __future__ import annotations

import copy
import itertools

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paring.removal import compact
from tests.reference.removal import survivors
from tests.removal.test_compact import gap, widths

ACTS = [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Hardswish, nn.Softplus, nn.LeakyReLU, nn.Identity]
QUICK = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def hurt(net: nn.Module, draw: st.DrawFn, last: nn.Module) -> None:
    """Make units live, zero, constant, balanced (weights sum to zero) or unread, and norms sometimes dead."""
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_()
            for unit in range(len(layer.weight)) if layer is not last else ():
                fate = draw(st.sampled_from(["live", "zero", "constant", "balanced", "live"]))
                if fate == "balanced":
                    flat = layer.weight[unit].flatten()
                    signs = torch.ones_like(flat) * (1 - 2 * (torch.arange(len(flat)) % 2))
                    if len(flat) % 2:
                        signs[-1] = 0
                    layer.weight[unit] = signs.view_as(layer.weight[unit])
                elif fate != "live":
                    layer.weight[unit] = 0
                if layer.bias is not None and fate in ("zero", "balanced"):
                    layer.bias[unit] = 0
            if draw(st.integers(0, 3)) == 0:
                layer.weight[:, ::2] = 0
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 2)
                norm.bias.normal_()
                norm.weight[::3] = 0
                norm.bias[::2] = 0


@st.composite
def mlps(draw: st.DrawFn) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(draw(st.integers(0, 1000)))
    widths = [5, *draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)), 3]
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        parts.append(nn.Linear(a, b, bias=draw(st.booleans())))
        if i < len(widths) - 2:
            if draw(st.booleans()):
                parts.append(nn.BatchNorm1d(b))
            parts.append(draw(st.sampled_from(ACTS))())
    net = nn.Sequential(*parts).double().eval()
    hurt(net, draw, parts[-1])
    return net, torch.randn(4, 5).double()


@st.composite
def convnets(draw: st.DrawFn) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(draw(st.integers(0, 1000)))
    size, channels = draw(st.sampled_from([(11, 2), (14, 1)])), 0
    x = torch.randn(2, size[1], size[0], size[0]).double()
    parts: list[nn.Module] = []
    channels = size[1]
    for _ in range(draw(st.integers(1, 3))):
        width, kernel = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        padding, stride = draw(st.integers(0, kernel - 1)), draw(st.integers(1, 2))
        parts.append(nn.Conv2d(channels, width, kernel, stride, padding, bias=draw(st.booleans())))
        if draw(st.booleans()):
            parts.append(nn.BatchNorm2d(width))
        parts.append(draw(st.sampled_from(ACTS))())
        pool = draw(st.sampled_from([None, nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1), nn.MaxPool2d(3, 2, 1)]))
        parts += [pool] if pool is not None and _fits(parts, pool, x) else []
        channels = width
        if not _fits(parts, nn.Conv2d(width, 1, 3, 2).double(), x):
            break
    if draw(st.booleans()):
        parts.append(nn.AdaptiveAvgPool2d(1))
    parts.append(nn.Flatten())
    features = nn.Sequential(*parts).double().eval()(x).shape[1]
    parts += [nn.Linear(features, 4), nn.Sigmoid(), nn.Linear(4, 2)]
    net = nn.Sequential(*parts).double().eval()
    hurt(net, draw, parts[-1])
    return net, x


def _fits(parts: list[nn.Module], extra: nn.Module, x: Tensor) -> bool:
    shape = copy.deepcopy(nn.Sequential(*parts)).double().eval()(x).shape
    return shape[-1] >= 5 or (shape[-1] >= 3 and isinstance(extra, nn.Conv2d))


@QUICK
@given(mlps())
def test_random_mlps_keep_their_function_and_nothing_else(case: tuple[nn.Sequential, Tensor]) -> None:
    net, x = case
    small, report = compact(net, x, verify=False)
    assert gap(net, small, torch.randn(16, 5).double()) < 1e-10
    assert widths(small) == survivors(net, x) == [row.after for row in report.rows]
    again, _ = compact(small, x, verify=False)
    assert widths(again) == widths(small)


@QUICK
@given(convnets())
def test_random_convnets_keep_their_function_and_nothing_else(case: tuple[nn.Sequential, Tensor]) -> None:
    net, x = case
    small, report = compact(net, x, verify=False)
    assert gap(net, small, torch.randn_like(x)) < 1e-10
    assert widths(small) == survivors(net, x) == [row.after for row in report.rows]


@QUICK
@given(mlps())
def test_mode_both_keeps_the_function_in_train_mode_too(case: tuple[nn.Sequential, Tensor]) -> None:
    net, _ = case
    x = torch.randn(8, 5).double()
    small, _ = compact(net.train(), x, verify=False)
    assert small.training
    assert gap(copy.deepcopy(net).eval(), copy.deepcopy(small).eval(), x) < 1e-9
    assert gap(net, small, x) < 1e-7  # a constant channel has no variance: rounding is divided by sqrt(eps)
