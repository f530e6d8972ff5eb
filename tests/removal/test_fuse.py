"""BatchNorm fused into the layer in front of it: the same function in eval mode, in both forms, in files."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from paring.files import load, save
from paring.removal import GraphNet, compact
from tests.removal.test_compact import gap
from tests.removal.transformers_zoo import Attention


def lively(net: nn.Module) -> nn.Module:
    """Norms that do something, in float64 and eval mode."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean):
                if tensor is not None:
                    nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.double().eval()


LAYERS = {
    "linear": (nn.Linear(5, 6), nn.BatchNorm1d(6), (5,)),
    "conv1d": (nn.Conv1d(4, 6, 3, groups=2, bias=False), nn.BatchNorm1d(6), (4, 9)),
    "conv2d": (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, affine=False), (3, 7, 7)),
    "conv3d": (nn.Conv3d(2, 6, 2, stride=2), nn.BatchNorm3d(6), (2, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), (4, 5, 5)),
    "transposed in groups": (nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (4, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(name: str) -> None:
    layer, norm, shape = copy.deepcopy(LAYERS[name])
    net = lively(nn.Sequential(layer, norm, nn.Tanh()))
    small, report = compact(net, torch.randn(2, *shape).double(), fuse_norms=True)
    assert [(one.layer, one.norm) for one in report.fused] == [("0", "1")]
    assert "fused 1 into 0" in str(report)
    assert type(small[1]) is nn.Identity
    assert not report.rolled_back
    assert report.parameters == (sum(p.numel() for p in net.parameters()), sum(p.numel() for p in small.parameters()))
    assert gap(net, small, torch.randn(5, *shape).double()) < 1e-10
    if name == "transposed in groups":  # which torch's own function does not know
        return
    copy_ = fuse_linear_bn_weights if name == "linear" else fuse_conv_bn_weights
    given = (layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = copy_(*given) if name == "linear" else copy_(*given, transpose=name == "transposed")
    assert (small[0].weight - weight).abs().max() < 1e-10
    assert (small[0].bias - bias).abs().max() < 1e-10


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 3),
    )


def killed() -> nn.Module:
    net = lively(conv_net())
    with torch.no_grad():
        net[1].weight[:3], net[1].bias[:3] = 0, 0
        net[4].weight[2:4], net[4].bias[2:4] = 0, 0.5  # constants, which the last layer takes into its bias
    return net


@pytest.mark.parametrize("inplace", [False, True])
def test_dead_units_go_as_well(inplace: bool, tmp_path: Path) -> None:
    net, x = killed(), torch.randn(2, 1, 6, 6).double()
    kept, plain = copy.deepcopy(net), compact(copy.deepcopy(net), x)[0]
    small, report = compact(net, x, inplace=inplace, fuse_norms=True)
    assert (small is net) is inplace
    assert (small[0].out_channels, small[3].out_channels, len(report.fused)) == (5, 4, 2)
    assert gap(kept, small, torch.randn(5, 1, 6, 6).double()) < 1e-10
    saved = sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in small.parameters())
    assert saved == 2 * (5 + 4) - 5  # scale and shift of both norms; the first convolution gets a bias
    save(small, tmp_path / "small")
    assert gap(small, load(lambda: conv_net().eval(), tmp_path / "small"), x) == 0


class Mixed(nn.Module):
    """Attention with its head count in the forward behind a fusable stem; then norms that are not fusable."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(3, 16, 3, padding=1), nn.BatchNorm1d(16)
        self.attention = Attention(16, 4)
        self.first, self.second, self.twice = nn.BatchNorm1d(16), nn.Linear(16, 16), nn.BatchNorm1d(16)
        self.last = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.norm(self.stem(x)).transpose(1, 2)).mean(1)
        y = self.second(self.first(x).relu())
        return self.last(self.twice(self.twice(y)) + x)


def test_graph_form_and_norms_that_stay(tmp_path: Path) -> None:
    net, x = lively(Mixed()), torch.randn(2, 3, 6).double()
    with torch.no_grad():
        for m in (net.attention.q, net.attention.k, net.attention.v):
            m.weight[4:8], m.bias[4:8] = 0, 0
    small, report = compact(net, x, fuse_norms=True)
    assert report.form == "graph"
    assert [one.norm for one in report.fused] == ["norm"]
    assert small.attention.v.out_features == 12
    assert gap(net, small, torch.randn(5, 3, 6).double()) < 1e-10
    said = " ".join(report.notes)
    assert "norm 'first' is not fused: not right behind a linear layer" in said
    assert "norm 'twice' is not fused: called more than once" in said
    save(small, tmp_path / "small")
    assert gap(small, load(lambda: Mixed().eval(), tmp_path / "small"), x) < 1e-12
    assert isinstance(small, GraphNet)
    with pytest.raises(ValueError, match="in graph form they are not called"):
        compact(small, x, fuse_norms=True)


class Asks(nn.Module):
    """The forward looks at the norm itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.other = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu() * self.norm.num_features
        return self.other(self.b(x))


def test_what_moves_the_outputs_is_rolled_back_and_named() -> None:
    net, x = lively(Asks()), torch.randn(3, 4).double()
    small, report = compact(net, x, fuse_norms=True)
    assert list(report.rolled_back) == ["norm"]
    assert "AttributeError" in report.rolled_back["norm"]
    assert [one.norm for one in report.fused] == ["other"]
    assert gap(net, small, x) < 1e-10


def test_shared_layers_and_train_mode() -> None:
    net = lively(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    net.append(nn.Linear(4, 4))
    net[2].weight = net[0].weight
    _, report = compact(net.double(), torch.randn(2, 4).double(), fuse_norms=True)
    assert not report.fused
    assert "'0' in front of it is shared" in " ".join(report.notes)
    net.train()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="eval mode alone"):
        compact(net, torch.randn(2, 4).double(), fuse_norms=True, inplace=True)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
