"""Who reads whom, and what is a barrier."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.analysis import CaptureError, wiring
from paring.analysis.capture import capture
from paring.analysis.interpret import interpret
from paring.analysis.wiring import describe
from tests.removal.test_compact import Block


class LeNet5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(256, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2).flatten(1)
        return self.fc2(F.dropout(F.relu(self.fc1(x)), 0.5, self.training))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_lenet(batch: int) -> None:
    net = LeNet5()
    w = wiring(net, torch.randn(batch, 1, 28, 28))
    assert [layer.name for layer in w.layers] == ["conv1", "conv2", "fc1", "fc2"]
    assert [layer.positions for layer in w.layers] == [576, 64, 1, 1]
    assert [layer.gateable for layer in w.layers] == [True, True, True, False]
    assert w.layer("fc2").reason == "network output"
    assert w.layer("conv1").sources.tolist() == [-1]
    assert torch.equal(w.layer("conv2").sources, w.layer("conv1").labels)
    assert torch.equal(w.layer("fc1").sources, w.layer("conv2").labels.repeat_interleave(16))
    assert [layer.name for layer in w.readers("conv2")] == ["fc1"]
    assert w.units == 6 + 16 + 12 + 10
    assert w.norms == ()
    with pytest.raises(KeyError, match="conv1"):
        w.layer("conv9")


def test_residual_blocks_and_norms() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Block(4, 6), nn.Flatten(), nn.Linear(144, 2))
    w = wiring(net, torch.randn(2, 3, 8, 8))
    stem, inner, outer, last = w.layers
    assert (inner.gateable, inner.norm) == (True, "1.bn1")
    assert (outer.gateable, outer.norm, outer.reason) == (False, "1.bn2", "coupled by a residual add")
    assert not stem.gateable
    assert torch.equal(stem.labels, outer.labels)
    assert torch.equal(last.sources, stem.labels.repeat_interleave(36))
    assert [n.name for n in w.norms] == ["1.bn1", "1.bn2"]
    assert w.norms[0].affine
    assert torch.equal(w.norms[0].labels, inner.labels)


def test_capture_changes_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2))
    net[1].eval()
    state, seed = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    wiring(net, torch.randn(2, 3, 8, 8, generator=torch.Generator()))
    assert torch.equal(seed, torch.get_rng_state())
    assert net.training
    assert not net[1].training
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


class Two(nn.Module):
    """a -> something of the test -> b."""

    def __init__(self, middle: object, reads: int = 6) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(reads, 3)
        self.scale = nn.Parameter(torch.ones(6))
        self.norm = nn.LayerNorm(6)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self, self.a(x), x))


@pytest.mark.parametrize(
    ("middle", "reads", "reason"),
    [
        (lambda net, h, x: h * torch.sigmoid(h), 6, ""),
        (lambda net, h, x: 2 * h.abs() + 1.0, 6, ""),
        (lambda net, h, x: F.softsign(h).to(torch.float64).float(), 6, ""),
        (lambda net, h, x: torch.cat([h, x], 1), 11, ""),
        (lambda net, h, x: torch.stack([h, h], 2).transpose(1, 2).flatten(1), 12, ""),
        (lambda net, h, x: h.flip(1).unsqueeze(1).expand(-1, 3, -1).mean(1), 6, ""),
        (lambda net, h, x: h * x[:, :1], 6, ""),
        (lambda net, h, x: net.norm(h), 6, "read by layer_norm in 'norm'"),
        (lambda net, h, x: h.softmax(-1), 6, "read by softmax in the network's own forward"),
        (lambda net, h, x: h.cumsum(1), 6, "read by cumsum in the network's own forward"),
        (lambda net, h, x: h.chunk(2, 1)[0], 3, ""),
        (lambda net, h, x: h[:, 1:], 5, ""),
        (lambda net, h, x: h - h.mean(1, keepdim=True), 6, "read by mean in the network's own forward"),
        (lambda net, h, x: h + torch.cat([x, x[:, :1]], 1), 6, "coupled by a residual add with a tensor"),
        (lambda net, h, x: h * net.scale, 6, ""),
        (lambda net, h, x: h + h.flip(1), 6, "coupled by a residual add"),
        (lambda net, h, x: h.view(-1, 2, 3).transpose(1, 2).flatten(1), 6, "spread over several dimensions"),
        (lambda net, h, x: F.linear(h, x[:, :1] * h), 2, "read by linear in the network's own forward"),
        (lambda net, h, x: h + net.a.weight.sum(), 6, "'a.weight' is also used outside"),
    ],
)
def test_what_may_stand_between_two_layers(middle: object, reads: int, reason: str) -> None:
    first = wiring(Two(middle, reads), torch.randn(2, 5)).layers[0]
    assert (first.gateable, first.reason[: len(reason)]) == (not reason, reason)


def test_labels_move_with_their_entries() -> None:
    w = wiring(Two(lambda net, h, x: torch.cat([x, h.flip(1)], 1), 11), torch.randn(2, 5))
    assert w.layer("b").sources.tolist() == [-1] * 5 + w.layer("a").labels.flip(0).tolist()


def test_shared_layers_and_ties() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.mid, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.emb.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mid(self.mid(self.emb(x))))

    w = wiring(Tied(), torch.zeros(2, 3, dtype=torch.int64))
    emb, mid, head = w.layers
    assert (emb.kind, emb.name, head.name, emb.inputs) == ("embedding", "emb", "head", 0)
    assert "tied" in emb.reason
    assert not emb.gateable
    assert not head.gateable
    assert "tied" in mid.reason  # what it reads at its first call
    assert mid.positions == 6


def test_depthwise_convolutions_tie_a_channel_to_its_producer() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 2))
    w = wiring(net, torch.randn(2, 2, 4, 4))
    assert [layer.groups for layer in w.layers] == [1, 4, 1]
    assert [layer.inputs for layer in w.layers] == [2, 4, 16]
    assert [layer.labels.tolist() for layer in w.layers[:2]] == [[0, 1, 2, 3]] * 2
    assert w.layers[0].reason == w.layers[1].reason == "coupled by a depthwise convolution"


@pytest.mark.parametrize("training", [False, True])
def test_a_symbolic_batch_gives_the_same_labels(training: bool) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    net.train(training)
    x = torch.randn(3, 1, 8, 8)
    found = capture(net, x, dynamic=True)
    assert found.program.module()(torch.randn(7, 1, 8, 8)).shape == (7, 2)
    one, other = describe(interpret(net, found, training=training)), wiring(net, x)
    assert [layer.sources.tolist() for layer in one.layers] == [layer.sources.tolist() for layer in other.layers]
    assert [layer.positions for layer in one.layers] == [layer.positions for layer in other.layers] == [36, 1]


def test_networks_that_need_the_whole_batch() -> None:
    class Fours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).view(4, -1, 5).mean(0))

    w = wiring(Fours(), torch.randn(8, 3))
    assert [layer.gateable for layer in w.layers] == [True, False]


def test_capture_errors_name_the_line() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:  # the line to blame
                return x
            return -x

    with pytest.raises(CaptureError, match="the line to blame"):
        wiring(Branch(), torch.randn(2, 3))
    with pytest.raises(CaptureError, match=r"\(2, 4\)"):
        wiring(nn.Linear(3, 3), torch.randn(2, 4))
