"""Units that go or stay together, and the modules where a gate reaches everyone who reads them; by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.analysis import wiring
from paring.models import resnet20, wrn_16_4
from tests.gates.nets import DenseCat, GatedUnits, HalfTied, Inverted, PostAct, PreAct, Squeeze, batch


def found(net: nn.Module, x: Tensor | None = None) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Layers of each group that may go -> its fronts."""
    groups = wiring(net, batch(net, 2) if x is None else x).groups
    return {group.layers: group.fronts for group in groups if not group.reason}


@pytest.mark.parametrize(
    ("net", "wanted"),
    [
        (PostAct, {("stem", "b"): ("bn", "bn_b"), ("a",): ("bn_a",)}),
        (PreAct, {("stem", "b"): ("bn_a", "bn"), ("a",): ("bn_b",)}),
        (DenseCat, {("stem",): ("bn_a", "bn_b", "bn"), ("a",): ("bn_b", "bn"), ("b",): ("bn",)}),
        (Squeeze, {("stem", "a", "up"): ("bn", "bn_a"), ("down",): ("down",)}),
        (GatedUnits, {("w1", "w3"): ("w3",)}),
        (Inverted, {("stem", "project"): ("bn", "bn_p"), ("expand", "deep"): ("bn_d",)}),
        (HalfTied, {("a", "c"): ("a", "c"), ("b", "c"): ("b", "c")}),
    ],
)
def test_layers_and_fronts(net: type[nn.Module], wanted: dict[tuple[str, ...], tuple[str, ...]]) -> None:
    assert found(net()) == wanted


def test_streams_of_whole_networks() -> None:
    post = found(resnet20(), torch.randn(2, 3, 16, 16))
    assert post["conv1", "stage1.0.conv2", "stage1.1.conv2", "stage1.2.conv2"] == (
        "bn1",
        "stage1.0.bn2",
        "stage1.1.bn2",
        "stage1.2.bn2",
    )
    assert sum(len(layers) > 1 for layers in post) == 3
    pre = found(wrn_16_4(), torch.randn(2, 3, 16, 16))
    assert pre["stage2.0.conv2", "stage2.0.shortcut", "stage2.1.conv2"] == ("stage2.1.bn1", "stage3.0.bn1")
    assert pre["stage3.0.conv2", "stage3.0.shortcut", "stage3.1.conv2"] == ("stage3.1.bn1", "bn1")


class Product(nn.Module):
    """out(f(a x) * g(b x)) with f and g of the test."""

    def __init__(self, f: object, g: object) -> None:
        super().__init__()
        self.a, self.b, self.out, self.f, self.g = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 2), f, g

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.f(self.a(x)) * self.g(self.b(x)))  # type: ignore[operator,no-any-return]


def same(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("f", "g", "fronts"),
    [
        (same, torch.sigmoid, ("a",)),
        (torch.sigmoid, same, ("b",)),
        (F.silu, same, ("b",)),
        (same, F.gelu, ("a",)),
        (same, same, ("a",)),
        (torch.relu, lambda y: y + 1.0, ("a",)),
        (lambda y: 2.0 - y, torch.tanh, ("b",)),
        (torch.sigmoid, torch.sigmoid, ("a", "b")),  # neither zero survives: both are needed for a constant
        (F.softplus, lambda y: y.clamp(1.0, 2.0), ("a", "b")),
    ],
)
def test_one_factor_of_a_product_is_enough(f: object, g: object, fronts: tuple[str, ...]) -> None:
    assert found(Product(f, g), torch.randn(2, 4)) == {("a", "b"): fronts}


def test_a_factor_that_is_gated_anyway_serves_the_product() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out, self.aside = (nn.Linear(n, m) for n, m in ((4, 5), (4, 5), (5, 2), (5, 2)))

        def forward(self, x: Tensor) -> Tensor:
            a, b = F.silu(self.a(x)), self.b(x)
            return self.out(a * b) + self.aside(a)  # type: ignore[no-any-return]

    assert found(Reused(), torch.randn(2, 4)) == {("a", "b"): ("a",)}


def test_what_has_to_stay_says_why() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.norm, self.up, self.down = (
                nn.Embedding(9, 6),
                nn.LayerNorm(6),
                nn.Linear(6, 8),
                nn.Linear(8, 6),
            )
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.emb(x)
            x = x + self.down(F.gelu(self.up(self.norm(x))))
            return self.head(x)  # type: ignore[no-any-return]

    groups = {group.layers: group for group in wiring(Stream(), torch.randint(0, 9, (2, 4))).groups}
    assert "norm" in groups["emb", "down"].reason
    assert groups["emb", "down"].coupling == "coupled by a residual add"
    assert (groups["up",].reason, groups["up",].fronts) == ("", ("up",))
    assert groups["head",].reason == "network output"


def test_ids_are_those_of_the_wiring() -> None:
    w = wiring(HalfTied(), torch.randn(2, 4))
    first, second, _ = w.groups
    assert torch.equal(torch.cat([first.ids, second.ids]), w.layer("c").labels)
    assert torch.equal(first.ids, w.layer("a").labels)
    assert torch.equal(second.ids, w.layer("b").labels)
    assert w.fixed is not None
    assert not w.fixed[w.layer("c").labels].any()
    assert w.fixed[w.layer("out").labels].all()


def test_one_factor_of_a_product_that_is_summed_is_enough_and_attention_beside_it_keeps_its_heads() -> None:
    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.u, self.v = nn.Linear(16, 48), nn.Linear(16, 12), nn.Linear(16, 12)

        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            q, k, v = (part.view(b, t, 4, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1)
            return (self.u(y) * torch.sigmoid(self.v(y))).sum(-1)

    groups = wiring(Scored(), torch.randn(2, 5, 16)).groups
    assert [(group.layers, group.fronts, group.size, group.heads) for group in groups] == [
        (("qkv",), ("qkv",), 4, True),
        (("u", "v"), ("u",), 12, False),
    ]
