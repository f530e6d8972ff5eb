"""Removal through depthwise, grouped and transposed convolutions, and through shuffles of channels."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from paring.files import load, save
from paring.removal import Report, compact
from tests.removal.test_compact import gap

IMAGE = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1)).double()


def chain(*parts: nn.Module) -> nn.Sequential:
    net = nn.Sequential(*parts).double()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_()
    return net.eval()


def kill(layer: nn.Module, units: list[int], bias: float | None = 0.0) -> None:
    """Units of a layer lose all weights; bias None leaves it as it is."""
    with torch.no_grad():
        turned = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
        if turned and layer.groups > 1:
            for unit in units:
                group, row = divmod(unit, layer.out_channels // layer.groups)
                layer.weight.view(layer.groups, -1, *layer.weight.shape[1:])[group, :, row] = 0
        else:
            (layer.weight.transpose(0, 1) if turned else layer.weight)[units] = 0
        if bias is not None and layer.bias is not None:
            layer.bias[units] = bias


def exact(net: nn.Module, x: Tensor) -> tuple[nn.Module, Report]:
    small, report = compact(net, x)
    assert not report.rolled_back
    for size in (x.shape[-1], x.shape[-1] + 2):
        more = torch.randn(3, *x.shape[1:-2], *[size] * min(2, x.dim() - 2)).double()
        assert gap(net, small, more) < 1e-10
    return small, report


def left(report: Report) -> list[int]:
    return [row.after for row in report.rows]


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 2)]


def test_depthwise_channels_go_with_their_producers() -> None:
    net = chain(
        nn.Conv2d(3, 8, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 5, 1),
        *head(5),
    )
    with torch.no_grad():
        net[4].weight[[0, 3]] = 0  # dead behind the depthwise convolution: 0.7 and relu(-1) = 0
        net[4].bias[[0, 3]] = torch.tensor([0.7, -1.0]).double()
        net[1].weight[5], net[1].bias[5] = 0, 0  # dead before it: comes out as the constant of the second norm
        net[1].weight[6], net[1].bias[6] = 0, 1  # a one into padding is not constant at the border
        net[6].weight[:, 7] = 0  # not read by anybody
    small, report = exact(net, IMAGE)
    assert left(report) == [4, 4, 5, 2]
    assert small[3].groups == small[3].in_channels == small[3].out_channels == 4
    assert small[3].weight.shape == (4, 1, 3, 3)
    assert (small[1].num_features, small[4].num_features, small[6].in_channels) == (4, 4, 4)


def test_a_depthwise_channel_whose_input_is_read_elsewhere_stays() -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.deep = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.out = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            return self.out(torch.cat([h, self.deep(h)], 1))

    net = Side().double()
    kill(net.deep, [0, 1])
    with torch.no_grad():
        net.out.weight[:, 1] = 0
    small, report = exact(net, IMAGE)
    assert left(report) == [3, 3, 2]  # channel 1 alone is read by nobody, neither before nor behind
    assert report.rows[1].kept == {"coupled by a depthwise convolution": 1}
    assert small.out.in_channels == 6


def test_constants_go_through_depthwise_convolutions_without_padding() -> None:
    net = chain(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 8, 3, groups=4), nn.Tanh(), nn.Conv2d(8, 3, 3), *head(3))
    kill(net[0], [1, 2], None)
    small, report = exact(net, IMAGE)
    assert left(report) == [2, 4, 3, 2]  # two channels out of every one
    assert (small[2].groups, small[2].weight.shape[0]) == (2, 4)
    assert report.rows[1].folded == 4


def test_whole_groups_of_several_channels_go() -> None:
    net = chain(
        nn.Conv2d(3, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 9, 3, groups=3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(9 * 81, 2),
    )
    kill(net[2], [0, 1, 2, 4])
    small, report = compact(net, IMAGE)
    assert gap(net, small, IMAGE) < 1e-10
    assert left(report) == [4, 6, 2]
    assert report.rows[1].kept == {"all heads or groups keep the same number": 1}
    assert (small[2].groups, small[2].in_channels, small[2].out_channels) == (2, 4, 6)
    assert compact(small, IMAGE)[1].rows[1].after == 6


def test_everything_dead_leaves_one_group() -> None:
    net = chain(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=3), nn.Conv2d(6, 2, 1))
    kill(net[2], [0, 1], None)
    small, report = exact(net, IMAGE)
    assert left(report) == [1, 1, 2]
    assert (small[1].groups, small[1].in_channels) == (1, 1)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolutions(dims: int) -> None:
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    turned = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    net = chain(plain(3, 5, 1), nn.Sigmoid(), turned(5, 6, 3, 2, 1, 1), nn.Sigmoid(), plain(6, 2, 1, bias=False))
    kill(net[0], [0, 3], None)  # constants: one stands for both, since they meet other taps at other positions
    kill(net[2], [1, 2], None)  # constants into a pointwise convolution
    x = torch.randn(2, 3, *[5] * dims).double()
    small, report = compact(net, x)
    assert gap(net, small, torch.randn(3, 3, *[4] * dims).double()) < 1e-10
    assert left(report) == [4, 4, 2]
    assert (report.rows[0].merged, report.rows[1].folded) == (1, 2)
    assert (small[2].in_channels, small[2].out_channels) == (4, 4)
    assert small[2].weight.shape[:2] == (4, 4)


def test_pointwise_transposed_convolutions_take_constants_into_the_bias() -> None:
    net = chain(nn.Conv2d(3, 5, 1), nn.Sigmoid(), nn.ConvTranspose2d(5, 6, 1, bias=False), nn.Conv2d(6, 2, 1))
    kill(net[0], [0, 3], None)
    small, report = exact(net, IMAGE)
    assert left(report) == [3, 6, 2]
    assert small[2].bias.shape == (6,)


def test_grouped_transposed_convolutions() -> None:
    net = chain(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, 2, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    kill(net[2], [2, 3], 0.5)
    small, report = exact(net, IMAGE)
    assert left(report) == [3, 2, 2]
    assert (small[2].groups, small[2].in_channels, small[2].out_channels) == (1, 3, 2)


def test_a_constant_through_average_pooling_that_counts_its_padding_is_none() -> None:
    def net(counted: bool) -> nn.Sequential:
        torch.manual_seed(0)
        return chain(
            nn.Conv2d(3, 4, 1),
            nn.Sigmoid(),
            nn.AvgPool2d(3, 1, 1, count_include_pad=counted),
            nn.Conv2d(4, 3, 3),
            *head(3),
        )

    for counted, stay in ((True, 4), (False, 2)):
        case = net(counted)
        kill(case[0], [0, 1], None)
        assert left(exact(case, IMAGE)[1])[0] == stay


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_what_is_there_keeps_constants(mode: str) -> None:
    net = chain(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 3, 3, padding=1, padding_mode=mode, groups=1), *head(3))
    kill(net[0], [0, 1], None)
    assert left(exact(net, IMAGE)[1])[0] == 2


def test_shuffled_channels_go_in_step() -> None:
    net = chain(
        nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(2, 2, 2, 2), *head(2)
    )
    kill(net[0], [0, 4, 1, 5])  # after the shuffle 0 4 1 5 | 2 6 3 7
    small, report = exact(net, IMAGE)
    assert left(report) == [4, 2, 2]
    assert small[4].in_channels == 1
    back = chain(
        nn.Conv2d(3, 4, 1), nn.PixelUnshuffle(3), nn.ReLU(), nn.Conv2d(36, 2, 3), nn.Flatten(), nn.Linear(2, 2)
    )
    kill(back[0], [2])
    small, report = compact(back, IMAGE)
    assert gap(back, small, IMAGE) < 1e-10
    assert (report.rows[0].after, small[3].in_channels) == (3, 27)


def test_halves_of_a_gated_linear_unit_go_together() -> None:
    net = chain(nn.Conv2d(3, 8, 3), nn.GLU(1), nn.Conv2d(4, 2, 3), *head(2))
    kill(net[0], [0, 1, 5, 6])  # 0: value zero; 1: both; 6: gate constant, value not
    small, report = exact(net, IMAGE)
    assert left(report) == [4, 2, 2]
    assert small[2].in_channels == 2


@pytest.mark.parametrize(
    ("mode", "how"), list(itertools.product(["nearest", "bilinear", "bicubic", "area", "nearest-exact"], [2.0, 0.5]))
)
def test_interpolation_keeps_constants(mode: str, how: float) -> None:
    net = chain(
        nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Upsample(scale_factor=how, mode=mode), nn.Conv2d(4, 2, 3), *head(2)
    )
    kill(net[0], [0, 2], None)
    assert left(exact(net, IMAGE)[1])[0] == 2


@pytest.mark.parametrize(
    "act",
    [nn.LogSigmoid, nn.Hardsigmoid, nn.Softsign, nn.Softshrink, nn.RReLU, nn.CELU, nn.SELU, nn.Mish, nn.Tanhshrink],
)
def test_activations(act: type[nn.Module]) -> None:
    net = chain(nn.Conv2d(3, 4, 1), act(), nn.Conv2d(4, 2, 3), *head(2))
    kill(net[0], [0, 2], -0.7)
    assert left(exact(net, IMAGE)[1])[0] == 2


def test_slopes_per_channel_go_with_their_channels() -> None:
    net = chain(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Conv2d(4, 2, 3), *head(2))
    kill(net[0], [1], -0.7)
    small, report = exact(net, IMAGE)
    assert left(report)[0] == 3
    assert small[1].num_parameters == len(small[1].weight) == 3


def test_random_slopes_leave_no_constants_in_train_mode() -> None:
    net = chain(nn.Conv2d(3, 4, 3), nn.RReLU(), nn.Conv2d(4, 2, 3), *head(2))
    kill(net[0], [0], -0.7)
    kill(net[0], [2], 0.7)
    assert left(compact(net.train(), IMAGE)[1])[0] == 3


def test_files_of_networks_with_groups_and_norms(tmp_path: Path) -> None:
    def make() -> nn.Sequential:
        torch.manual_seed(0)
        first = [nn.Conv2d(3, 8, 1), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.GroupNorm(4, 8)]
        turned = nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
        return chain(*first, turned, nn.InstanceNorm2d(6, affine=True), nn.Conv2d(6, 2, 1))

    net = make()
    with torch.no_grad():
        net[5].weight[:3], net[5].bias[:3] = 0, 0  # the first half of all, up to the first layer
    small, report = compact(net, IMAGE)
    assert left(report) == [4, 4, 3, 2]
    save(small, tmp_path / "net.safetensors")
    loaded = load(make, tmp_path / "net.safetensors").eval()
    assert (loaded[2].groups, loaded[3].num_groups, loaded[4].groups, loaded[5].num_features) == (4, 2, 1, 3)
    assert gap(small, loaded, IMAGE) == 0
