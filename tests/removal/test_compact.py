"""Exact removal, case by case."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from paring.analysis.wiring import wiring
from paring.core import SelectLinear
from paring.removal import compact


def widths(net: nn.Module) -> list[int]:
    return [len(m.weight) for m in net.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]


def gap(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        y, z = a(x), b(x)
    assert y.shape == z.shape
    return float((y - z).abs().max() / y.abs().max().clamp_min(1e-2))


class Block(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


def resnet(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        Block(6, 8),
        Block(6, 8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
            nn.init.normal_(m.running_mean)
    return net


def kill(norm: nn.BatchNorm2d, units: list[int], shift: float = 0.0) -> None:
    with torch.no_grad():
        norm.weight[units] = 0
        norm.bias[units] = shift


@pytest.mark.parametrize("training", [False, True])
def test_inner_channels_of_residual_blocks_go(training: bool) -> None:
    net = resnet().train(training)
    kill(net[1].bn1, [0, 3, 5])
    kill(net[2].bn1, [1, 2], -0.5)  # relu makes it zero
    kill(net[2].bn1, [4], 0.5)  # a constant into a padded convolution stays
    small, report = compact(net, torch.randn(4, 3, 9, 9))
    rows = {row.layer: row for row in report.rows}
    assert (rows["1.conv1"].after, rows["2.conv1"].after) == (5, 6)
    assert rows["2.conv1"].kept == {"constant but not zero at the padded convolution '2.conv2'": 1}
    assert not report.rolled_back
    assert report.verified
    assert small[1].conv2.in_channels == 5
    assert small[1].bn1.num_features == 5
    x = torch.randn(3, 3, 12, 12)
    assert gap(copy.deepcopy(net), copy.deepcopy(small), x) < 1e-5


def test_units_joined_by_adds_go_only_together() -> None:
    net = resnet().eval()
    kill(net[1].bn2, [0])
    alone, _ = compact(net, torch.randn(2, 3, 9, 9))
    assert alone[0].out_channels == 6
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0] = 0, 0
    kill(net[2].bn2, [0])
    together, _ = compact(net, torch.randn(2, 3, 9, 9))
    assert [together[0].out_channels, together[1].conv2.out_channels, together[5].in_features] == [5, 5, 5]


def test_decoys_whose_weights_sum_to_zero_stay() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1, 1, -1]).expand(6, 4))
        net[0].bias.zero_()
    assert compact(net, torch.randn(2, 4))[0][0].out_features == 6


def test_a_fold_makes_a_bias_or_moves_the_running_mean() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4).double()
    plain = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5, bias=False), nn.Linear(5, 2)).double()
    normed = nn.Sequential(plain[0], plain[1], plain[2], nn.BatchNorm1d(5), plain[3]).double()
    with torch.no_grad():
        plain[0].weight[:3] = 0
    small, report = compact(plain.eval(), x)
    assert report.rows[0].folded == 3
    assert small[2].bias is not None
    assert small[2].in_features == 3
    assert gap(plain, small, x) < 1e-10
    lean, report = compact(normed.train(), x, mode="both")
    assert report.rows[0].folded == 3
    assert lean[2].bias is None
    copy_ = copy.deepcopy(normed)
    for _ in range(5):  # both go on training: outputs stay the same, the running means stay apart by the same shift
        assert torch.allclose(copy_(x), lean(x), atol=1e-10)
    assert gap(copy_.eval(), lean.eval(), torch.randn(8, 4).double()) < 1e-10


def test_a_constant_that_training_sees_differently() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sigmoid(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight[:2] = 0
    x = torch.randn(8, 4)
    assert compact(net.train(), x)[0][0].out_features == 6
    small, report = compact(net.eval(), x)
    assert small[0].out_features == 4
    assert "train mode" in report.notes[0]
    assert "train mode" in str(report)


def test_everything_dead_leaves_one_unit_per_layer() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].bias.zero_()
    small, report = compact(net, torch.randn(2, 4))
    assert widths(small) == [1, 1, 2]
    assert "the last unit of its layer" in report.rows[1].kept
    with torch.no_grad():
        net[4].weight.zero_()
    assert widths(compact(net, torch.randn(2, 4))[0]) == [1, 1, 2]


def test_names_grads_flags_and_the_original_stay() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    kill(net[1], [1, 2])
    net[0].weight.requires_grad_(False)
    net(torch.randn(2, 1, 8, 8)).sum().backward()
    state, seed = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    small, _ = compact(net, torch.randn(2, 1, 8, 8, generator=torch.Generator()))
    assert torch.equal(seed, torch.get_rng_state())
    assert net.training
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert list(small.state_dict()) == list(state)
    assert not small[0].weight.requires_grad
    assert type(small[0]) is nn.Conv2d
    assert small[1].running_var.shape == (2,)
    grad, columns = net[4].weight.grad, torch.cat([torch.arange(0, 36), torch.arange(108, 144)])
    same, _ = compact(net, torch.randn(2, 1, 8, 8), inplace=True)
    assert same is net
    assert net[0].out_channels == 2
    assert torch.equal(net[4].weight.grad, grad[:, columns])
    assert net[0].weight.grad is None


class Baked(nn.Module):
    """A size written into forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).view(-1, 4 * 36)
        return self.out(torch.relu(self.hidden(x)))


def test_what_does_not_verify_is_rolled_back_and_named() -> None:
    net = Baked().eval()
    with torch.no_grad():
        for layer in (net.conv, net.hidden):
            layer.weight[:2] = 0
            layer.bias[:2] = 0
    small, report = compact(net, torch.randn(2, 1, 8, 8), form="module")
    assert list(report.rolled_back) == ["conv"]
    assert "rolled back conv" in str(report)
    assert (small.conv.out_channels, small.hidden.out_features) == (4, 6)
    assert gap(net, small, torch.randn(3, 1, 8, 8)) < 1e-5
    assert report.rows[0].kept == {"removing it changed the outputs": 2}


def test_inputs_that_nobody_reads_are_dropped_on_request() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    with torch.no_grad():
        net[1].weight[:, ::2] = 0
        net[1].weight[0], net[1].bias[0] = 0, 0
    x = torch.randn(3, 4, 4)
    assert compact(net, x)[0][1].in_features == 16
    small, _ = compact(net, x, drop_inputs=True)
    assert isinstance(small[1], SelectLinear)
    assert small[1].weight.shape == (4, 8)
    assert gap(net, small, torch.randn(5, 4, 4)) < 1e-6
    assert [layer.inputs for layer in wiring(small, x).layers] == [8, 4]
    with torch.no_grad():
        small[1].weight[:, 0] = 0
    smaller, _ = compact(small, x, drop_inputs=True)
    assert smaller[1].reads.tolist() == [3, 5, 7, 9, 11, 13, 15]
    assert gap(small, copy.deepcopy(smaller), x) < 1e-6
