"""Large networks are verified part by part: as strictly as with whole copies, and nothing of the user's moves."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from paring.core import Refusal
from paring.removal import compact
from paring.removal.plan import ShrinkPlan
from paring.removal.streamed import sharing, streamed
from tests.removal.transformers_zoo import GPT, ViT

verifying = importlib.import_module("paring.removal.verify")


class Tied(nn.Module):
    """An embedding that is its output layer, too, and an encoder layer of torch between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True)
        self.out = nn.Linear(16, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        out: Tensor = self.out(self.layer(self.embed(words)))
        return out


class Around(nn.Module):
    """Parameters of the whole network around a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(6))
        self.rnn, self.out = nn.LSTM(6, 8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.rnn(x * self.scale)[0])
        return out


class Reads(nn.Module):
    """Reads the weights of a layer without calling it: computed on whole copies."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.inner, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(
            nn.functional.linear(torch.relu(self.into(x)), self.inner.weight, self.inner.bias).relu()
        )
        return out


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(216, 4)
    )


Case = tuple[Callable[[], nn.Module], Callable[[], Tensor], tuple[str, ...]]
CASES: list[Case] = [
    (GPT, lambda: torch.randint(11, (2, 6)), ("blocks.0.mlp.0",)),
    (ViT, lambda: torch.randn(2, 3, 8, 8), ("blocks.0.mlp.0",)),
    (Tied, lambda: torch.randint(11, (2, 6)), ("layer.linear1",)),
    (Around, lambda: torch.randn(2, 5, 6), ()),
    (Reads, lambda: torch.randn(4, 5), ("into",)),
    (convolutions, lambda: torch.randn(2, 3, 8, 8), ("0",)),
]


def made(case: Case, constant: bool) -> tuple[nn.Module, Tensor]:
    """The network with a third of the units of some layers zero, or constant."""
    torch.manual_seed(0)
    net, x = case[0](), case[1]()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module(torch.randn(9, 8, 3, 3))
        for name in case[2]:
            weight, bias = net.get_parameter(f"{name}.weight"), net.get_parameter(f"{name}.bias")
            dead = torch.arange(0, len(weight), 3)
            weight[dead] = 0
            if not constant:
                bias[dead] = 0
    return net.eval(), x


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_the_same_small_network_as_by_whole_copies(case: Case, constant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = made(case, constant)
    before = copy.deepcopy(net.state_dict())
    whole, told = compact(net, x)
    monkeypatch.setattr(verifying, "VAST", -1)
    monkeypatch.setattr(verifying, "_copies", None if case[0] is not Reads else verifying._copies)
    small, report = compact(net, x)
    assert not report.rolled_back
    assert report.parameters == told.parameters
    assert not case[2] or report.parameters[1] < report.parameters[0]
    for name, value in small.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.dtype == before[name].dtype


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_a_network_computes_in_float64_and_is_what_it_was_afterwards(case: Case) -> None:
    net, x = made(case, True)
    wide = copy.deepcopy(net).double()
    given = x.double() if x.is_floating_point() else x
    shared = streamed(sharing(net), torch.float64)
    if case[0] is Reads:
        with pytest.raises(RuntimeError, match="dtype"):
            shared(given)
        return
    with torch.no_grad():
        out, truth = shared(given), wide(given)
    assert out.dtype == torch.float64
    assert torch.equal(out, truth)
    for (_, held), (_, own) in zip(net.named_parameters(), shared.named_parameters(), strict=True):
        assert held.dtype == own.dtype == torch.float32
        assert held.data_ptr() == own.data_ptr()


@pytest.mark.parametrize("amount", [1e-2, 1e-6])
def test_a_difference_is_found_as_by_whole_copies(amount: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that are almost zero are cut by a plan that takes them for zero: float64 shows both differences."""
    net, x = made(CASES[0], False)
    plans: list[ShrinkPlan] = []
    monkeypatch.setattr(
        importlib.import_module("paring.removal.choose"), "verify", lambda _, plan, *a, **k: plans.append(plan)
    )
    compact(net, x)
    with torch.no_grad():
        net.get_parameter("blocks.0.mlp.0.bias")[0] = amount
    assert isinstance(verifying.verify(net, plans[-1], x), Refusal)
    monkeypatch.setattr(verifying, "VAST", -1)
    assert isinstance(verifying.verify(net, plans[-1], x), Refusal)


def test_what_a_forward_does_to_its_parameters_is_lost() -> None:
    class Writes(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.weight.mul_(2)
            return super().forward(x)

    net = Writes(3, 3)
    before = net.weight.detach().clone()
    for dtype in (torch.float32, torch.float64):
        streamed(sharing(net), dtype)(torch.randn(2, 3, dtype=dtype))
        assert torch.equal(net.weight, before)
