"""Places: from a description to the layers of a network, their sizes by hand, and refusals that say why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from marks import BY_HAND
from paring.analysis import wiring
from paring.core import Place, gates
from paring.gates import Site, sites
from paring.gates.coupled import Mount
from paring.methods import L0
from paring.run import attach
from paring.testing import Chain, chain_batch, difference

pytestmark = BY_HAND


def conv1d() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Conv1d(4, 6, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    return net, torch.randn(5, 2, 10)


def conv3d() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.Conv3d(4, 6, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 3),
    )
    return net, torch.randn(5, 1, 4, 4, 4)


class Residual(nn.Module):
    """A stem, a nested block around which the stem's output is added, and a classifier. Input (B, 3, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 1)
        self.block = nn.Sequential()
        self.block.inner = nn.Sequential(nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.block.out = nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 2)."""
        x = self.stem(x)
        x = x + self.block.out(torch.relu(self.block.inner(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def residual() -> tuple[nn.Module, Tensor]:
    return Residual(), torch.randn(5, 3, 4, 4)


def embedding() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Embedding(9, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randint(0, 9, (5, 4))


def grouped() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    return net, torch.randn(5, 4, 2, 2)


def chain() -> tuple[nn.Module, Tensor]:
    return Chain(), chain_batch(5)[0]


STREAM = (Mount("stem", (0, 1, 2, 3, 4)), Mount("block.out", (0, 1, 2, 3, 4)))
Make = Callable[[], tuple[nn.Module, Tensor]]


def found(make: Make, *places: str | Place) -> list[Site]:
    net, x = make()
    return list(sites(net, wiring(net, x), places))


# --- the words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("units", Place("units")),
        ("units:", Place("units")),
        ("inputs:Linear", Place("inputs", "Linear")),
        ("weights:a.b|c*|!a.b.d", Place("weights", "a.b|c*|!a.b.d")),
        (Place("units", "x:y"), Place("units", "x:y")),
        ("units:x:y", Place("units", "x:y")),
    ],
)
def test_places_are_read(text: str | Place, wanted: Place) -> None:
    assert Place.parse(text) == wanted


@pytest.mark.parametrize("text", ["", "unit", "Units", ":Linear", "outputs:Linear"])
def test_unknown_kinds_are_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match="is none of units, inputs, weights, heads, blocks, stream; write for example 'units' or"
    ):
        Place.parse(text)


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("", {"a.conv", "a.fc", "b.fc"}),
        ("Linear", {"a.fc", "b.fc"}),
        ("Conv2d", {"a.conv"}),
        ("a.*", {"a.conv", "a.fc"}),
        ("*.fc", {"a.fc", "b.fc"}),
        ("?.fc", {"a.fc", "b.fc"}),
        ("b.fc", {"b.fc"}),
        ("fc", set()),
        ("Linear|a.conv", {"a.conv", "a.fc", "b.fc"}),
        ("!Linear", {"a.conv"}),
        ("!a.*", {"b.fc"}),
        ("Linear|!b.fc", {"a.fc"}),
        ("!b.fc|Linear", {"a.fc"}),
        ("!Linear|!Conv2d", set()),
        ("|Conv2d|", {"a.conv"}),
    ],
)
def test_selectors(selector: str, wanted: set[str]) -> None:
    modules = {"a.conv": nn.Conv2d(1, 1, 1), "a.fc": nn.Linear(1, 1), "b.fc": nn.Linear(1, 1)}
    place = Place("units", selector)
    assert {name for name, module in modules.items() if place.selects(name, module)} == wanted


def test_selectors_see_through_gates() -> None:
    net, x = chain()
    attach(net, L0(at="weights:Linear"), x)
    assert type(net.fc1) is not nn.Linear
    assert Place("units", "Linear").selects("fc1", net.fc1)
    assert not Place("units", "!Linear").selects("fc1", net.fc1)


# --- sites, by hand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "places", "wanted"),
    [
        (
            conv1d,
            ["units"],  # 8, then 6 positions; a norm adds its scale and shift
            [Site("0", "1", "units", (4,), 2 * 3 + 1 + 2, 8 * 6), Site("3", "3", "units", (6,), 4 * 3, 6 * 12)],
        ),
        (
            conv1d,
            ["inputs:Conv1d", "weights:Linear"],
            [
                Site("0", "0", "inputs", (2,), 4 * 3, 8 * 12),
                Site("3", "3", "inputs", (4,), 6 * 3, 6 * 18),
                Site("6", "6", "weights", (3, 36), 1, 1),
            ],
        ),
        (
            conv3d,
            ["units"],  # 64, then 8 positions
            [Site("0", "1", "units", (4,), 27 + 1 + 2, 64 * 27), Site("3", "3", "units", (6,), 32 + 1, 8 * 32)],
        ),
        (
            conv3d,
            ["inputs:3", "weights:0"],
            [Site("3", "3", "inputs", (4,), 6 * 8, 8 * 48), Site("0", "0", "weights", (4, 1, 3, 3, 3), 1, 64)],
        ),
        (
            residual,
            ["units"],  # the stream: a row of the stem (3 weights) and one of block.out (4), with biases, 16 positions
            [
                Site("stem", "stem", "units", (5,), 3 + 1 + 4 + 1, 16 * (3 + 4), STREAM, ("stem", "block.out")),
                Site("block.inner.0", "block.inner.1", "units", (4,), 5 + 2, 16 * 5),
            ],
        ),
        (
            residual,
            ["inputs:block.*"],
            [
                Site("block.inner.0", "block.inner.0", "inputs", (5,), 4, 16 * 4),
                Site("block.out", "block.out", "inputs", (4,), 5, 16 * 5),
            ],
        ),
        (residual, ["weights:head|stem"], [
            Site("stem", "stem", "weights", (5, 3, 1, 1), 1, 16),
            Site("head", "head", "weights", (2, 5), 1, 1),
        ]),
        (grouped, ["inputs:0"], [Site("0", "0", "inputs", (4,), 3, 4 * 3)]),
        (embedding, ["units:Embedding"], [Site("0", "0", "units", (5,), 9, 0)]),
    ],
)  # fmt: skip
def test_sites_by_hand(make: Make, places: list[str], wanted: list[Site]) -> None:
    assert found(make, *places) == wanted


@pytest.mark.parametrize("make", [conv1d, conv3d, residual, chain])
def test_sizes_are_what_disappears(make: Make) -> None:
    """One closed unit takes its weights, bias, scale and shift: what `finish` removes, less what reads the unit."""
    for site in (site for site in found(make, "units") if not site.mounts):
        net, x = make()
        run = attach(net, L0(at=f"units:{site.layer}"), x)
        gate = next(gate for _, _, gate in gates(net))
        gate.log_alpha.data.fill_(5.0)
        gate.log_alpha.data[1] = -5.0
        before = sum(p.numel() for p in make()[0].parameters())
        after = sum(p.numel() for p in run.finish().parameters())
        readers = run.probe.wiring.readers(site.layer)
        label = run.probe.wiring.layer(site.layer).labels[1]
        read = sum(
            int((reader.sources == label).sum()) * torch.Size(reader.weight).numel() // reader.inputs
            for reader in readers
        )
        assert before - after == site.size + read
        assert read > 0


def test_places_come_in_order_and_layers_in_order_of_execution() -> None:
    assert [s.layer for s in found(chain, "weights:fc2|conv1", "units:fc1|conv2")] == ["conv1", "fc2", "conv2", "fc1"]
    assert [s.kind for s in found(chain, "inputs:fc1", "units:fc1", "weights:fc1")] == ["inputs", "units", "weights"]


def test_several_kinds_on_one_layer_work_together() -> None:
    net, x = chain()
    attach(net, L0(at=("units:fc1", "inputs:fc1", "weights:fc1", "inputs:conv2")), x)
    shapes = {(name, kind): tuple(gate.shape) for name, kind, gate in gates(net)}
    assert shapes == {
        ("conv2", "inputs"): (6,),
        ("fc1", "units"): (10,),
        ("fc1", "inputs"): (32,),
        ("fc1", "weights"): (10, 32),
    }


# --- norms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "norm"), [(conv1d, "1"), (conv3d, "1"), (residual, "block.inner.1"), (chain, "norm1")]
)
def test_unit_gates_sit_on_the_norm_and_close_exactly(make: Make, norm: str) -> None:
    net, x = make()
    run = attach(net, L0(at="units"), x)
    modules = dict(net.named_modules())
    carried = {name: gate for name, _, gate in gates(net)}
    gate = carried[norm]
    gate.log_alpha.data[0] = -5.0
    modules[norm].bias.data.fill_(3.0)  # in front of the norm, a closed unit would come out as this shift
    modules[norm].running_mean.normal_()
    seen: list[Tensor] = []
    modules[norm].register_forward_hook(lambda _, __, out: seen.append(out))
    net.eval()(x)
    net.train()(x)
    for out in seen[:1]:
        assert bool((out[:, 0] == 0).all())
        assert bool((out[:, 1:] != 0).any())
    assert len(seen) == 2
    small = run.finish()
    assert difference(small, net, x) < 1e-5


def test_a_norm_that_is_not_the_only_reader_carries_no_gate() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            out: Tensor = self.fc(torch.cat([self.norm(y), torch.relu(y)], 1).mean((2, 3)))
            return out

    net, x = Twice(), torch.randn(5, 2, 4, 4)
    assert [site.module for site in sites(net, wiring(net, x), ["units"])] == ["conv"]
    run = attach(net, L0(at="units"), x)
    gate = next(gate for _, _, gate in gates(net))
    gate.log_alpha.data.copy_(torch.tensor([-5.0, 5.0, 5.0]))
    net.norm.bias.data.fill_(3.0)
    small = run.finish()
    assert difference(small, net, x) < 1e-5
    assert tuple(small.get_submodule("conv").weight.shape) == (2, 2, 1, 1)


# --- refusals -------------------------------------------------------------------------------------------------------


class Odd(nn.Linear):
    """A subclass that computes its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 2.0 * self.weight, self.bias)


def subclass() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(Odd(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(5, 4)


def affineless() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    return net, torch.randn(5, 2, 2, 2)


def transposed() -> tuple[nn.Module, Tensor]:
    layers = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.ConvTranspose2d(4, 3, 1)
    return nn.Sequential(*layers), torch.randn(5, 2, 2, 2)


def layernorm() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)), torch.randn(5, 4)


def bare() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.ReLU(), nn.Flatten()), torch.randn(5, 4)


@pytest.mark.parametrize(
    ("make", "places", "why"),
    [
        (chain, ["units:fc2"], "place 'units:fc2': layer 'fc2' cannot be gated: network output"),
        (chain, ["units:conv1|fc2"], "layer 'fc2' cannot be gated: network output"),
        (
            chain,
            ["units:fc9"],
            "place 'units:fc9': this Chain has no layer 'fc9' .did you mean 'fc[12]'..; it has conv1, norm1",
        ),
        (chain, ["units:norm1"], "no place for gates at 'units:norm1' in this Chain"),
        (chain, ["units:!*"], "no place for gates at 'units:!\\*'"),
        (chain, ["units", "units"], "two places ask for a gate at 'units' of layer 'conv1'; exclude it .*'!conv1'"),
        (chain, ["inputs:Linear", "inputs:fc1"], "two places ask for a gate at 'inputs' of layer 'fc1'"),
        (residual, ["units:head|block.out*"], "layer 'head' cannot be gated: network output"),
        (residual, ["units:stem", "units:block.out"], "two places ask for a gate at 'units' of layer 'stem'"),
        (residual, ["units:stem|!block.out"], "no place for gates at 'units:stem\\|!block.out' in this Residual"),
        (embedding, ["inputs:0"], "layer '0' cannot be gated: an embedding has no input features"),
        (embedding, ["inputs:Embedding"], "0: an embedding has no input features"),
        (grouped, ["units:0"], "layer '0' cannot be gated: coupled by a grouped convolution"),
        (subclass, ["units:0"], "layer '0' cannot be gated: its weight is computed in the forward"),
        (subclass, ["weights:0"], "its weight is computed in the forward"),
        (transposed, ["units:0"], "its norm '1' has no scale and shift \\(affine=False\\) to fold a gate into"),
        (layernorm, ["units:0"], "layer '0' cannot be gated: read by layer_norm in '1'"),
        (bare, ["weights"], "no place for gates at 'weights' in this Sequential: no Linear, Conv or Embedding"),
        (chain, ["outputs"], "place 'outputs': 'outputs' is none of units, inputs, weights, heads, blocks"),
    ],
)
def test_refused_with_the_reason(make: Make, places: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        found(make, *places)


def test_what_cannot_be_gated_is_left_out_unless_named() -> None:
    assert [site.layer for site in found(subclass, "units")] == ["2"]
    assert [site.layer for site in found(subclass, "weights")] == ["2", "4"]
    assert [site.layer for site in found(affineless, "inputs")] == ["0", "4"]
