"""Gates on residual streams that LayerNorms and RMSNorms read: what they multiply, what closed ones cost, and that removal cuts it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import paring as pr
from paring.analysis import wiring
from paring.core import Inputs, gates, release
from paring.cost import CostModel
from paring.gates import sites
from paring.pruning.gated import GatedCopy
from paring.pruning.search import Search
from paring.removal import compact
from tests.removal.streams import KINDS, Language, Vision, kill, made, trained

SOME = settings(
    max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)


def gap(old: Tensor, new: Tensor) -> float:
    return float(((old - new).abs().max() / old.abs().max()).detach())


@pytest.mark.parametrize("kind", KINDS)
@SOME
@given(data=st.data())
def test_closed_gates_are_what_removal_cuts(kind: str, data: st.DataObject) -> None:
    """Open ones change nothing; closed ones leave a network whose function the small one has, at the predicted cost."""
    width, seed = data.draw(st.integers(14, 17)), data.draw(st.integers(0, 99))
    torch.manual_seed(seed)
    net, x = made(kind, width, data.draw(st.sampled_from([1e-5, 0.3])))
    gated = GatedCopy.of(net, Inputs.of(x), "stream")
    assert torch.equal(gated.net(x), net(x))
    assert gated.units == width
    assert int(gated.dense.parameters) == sum(p.numel() for p in net.parameters())
    mask = torch.rand(width) > 0.4
    mask[seed % width], mask[(seed + 1) % width] = True, False
    gated.set(mask)
    bare = copy.deepcopy(gated.net)
    release(bare)
    assert type(bare) is type(net)
    assert bare.state_dict().keys() == net.state_dict().keys()
    assert gap(gated.net(x), bare(x)) < 1e-12
    small, report = compact(bare, x)
    assert gap(gated.net(x), small(x)) < 1e-11
    assert sum(p.numel() for p in small.parameters()) == int(gated.cost(mask).parameters)
    assert not report.rolled_back
    assert int(CostModel.of(small, wiring(small, x))().macs) == int(gated.cost(mask).macs)


@pytest.mark.parametrize("kind", ["plain", "layer", "vit"])
def test_closing_by_hand_is_the_same(kind: str) -> None:
    """In front of LayerNorms whose mean moves into what reads them, closed gates are zeros in all that writes."""
    torch.manual_seed(0)
    net, x = made(kind, 14, 0.1)
    gated = GatedCopy.of(net, Inputs.of(x), "stream")
    mask = torch.ones(14, dtype=torch.bool)
    mask[[2, 5, 11]] = False
    gated.set(mask)
    kill(net, torch.tensor([2, 5, 11]))
    assert gap(net(x), gated.net(x)) < 1e-12


def test_where_they_act() -> None:
    def places(kind: str) -> set[tuple[str, str]]:
        net, x = made(kind, 14, 0.1)
        (site,) = sites(net, wiring(net, x), "stream")
        return {(f"{mount.module}.{mount.leaf}" if mount.leaf else mount.module, mount.place) for mount in site.mounts}

    writers = {(f"blocks.{i}.{leaf}", "units") for i in (0, 1) for leaf in ("attention.out", "down")}
    assert places("plain untied") == writers | {("words", "units")}
    assert places("plain") == writers | {("words", "units"), ("head", "inputs")}
    assert places("layer") == writers | {("words", "units"), ("places", "units"), ("head", "inputs")}
    assert places("layer untied") == writers | {("words", "units"), ("places", "units"), ("norm", "units")}
    norms = {(name, "units") for name in ("norm", "blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1")}
    tables = {(name, "units") for name in ("words", "places", "kinds")}
    assert places("bert") == writers | tables | norms
    assert places("vit") == writers | {("patches", "units"), (".token", "weights"), (".position", "weights")}


def test_gradients_are_those_of_multipliers_by_hand() -> None:
    """Of each example by itself, or its share of what the batch has in common, as tables of positions."""
    torch.manual_seed(0)
    for kind in ("plain", "vit"):
        net, x = made(kind, 14, 0.1)
        gated = GatedCopy.of(net, Inputs.of(x), "stream")
        gated.probing(True)
        gated.net(x).square().sum().backward()
        found = gated.gates[0].take(len(x))
        assert found.shape == (2, 14)
        each, h = [], 1e-5
        for unit in range(14):
            sides = []
            for sign in (1, -1):
                mask = torch.ones(14, dtype=torch.double)
                mask[unit] += sign * h
                gated.probing(False)
                gated.gates[0].mask.copy_(mask)
                sides.append(gated.net(x).square().sum().detach())
            each.append((sides[0] - sides[1]) / (2 * h))
        assert torch.allclose(found.sum(0), torch.stack(each), rtol=1e-5, atol=1e-6)


def test_values_between_zero_and_one_fold_once_into_tied_weights() -> None:
    torch.manual_seed(0)
    net, x = made("plain", 14, 0.1)
    gated = GatedCopy.of(net, Inputs.of(x), "stream")
    gated.gates[0].mask.uniform_(0.5, 1.5)
    bare = copy.deepcopy(gated.net)
    release(bare)
    assert bare.head.weight is bare.words.weight
    assert gap(gated.net(x), bare(x)) < 1e-12


def test_networks_with_gated_parameters_are_copied_and_pickled() -> None:
    torch.manual_seed(0)
    net, x = made("vit", 14, 0.1)
    gated = GatedCopy.of(net, Inputs.of(x), "stream")
    gated.set(torch.arange(14) > 3)
    expected = gated.net(x)
    for twin in (copy.deepcopy(gated.net), pickle.loads(pickle.dumps(gated.net))):
        assert torch.equal(twin(x), expected)
        assert isinstance(twin, Vision)
        assert len({id(gate) for _, _, gate in gates(twin)}) == 1
    assert gated.net.state_dict().keys() == net.state_dict().keys()


def test_units_leave_the_stream_alone() -> None:
    net, x = made("plain", 14, 0.1)
    found = sites(net, wiring(net, x), "units")
    assert all(name.endswith(("up", "q", "k", "v", "in_proj")) for site in found for name in site.layers)
    both = sites(net, wiring(net, x), ("units", "stream"))
    assert len(both) == len(found) + 1


class Elsewhere(nn.Module):
    """A parameter that another module than its own adds to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.first, self.norm, self.last = nn.Module(), nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2)
        self.held.position = nn.Parameter(torch.zeros(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x) + self.held.position))


def test_what_cannot_be_gated_says_why() -> None:
    net, x = trained(Elsewhere()), torch.randn(2, 5, 3).double()
    with pytest.raises(ValueError, match=r"'held.position' is added to it, and cannot carry gates: another module"):
        sites(net, wiring(net, x), "stream")
    chain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="no residual stream that LayerNorms or RMSNorms read is selected"):
        sites(chain, wiring(chain, torch.randn(2, 3)), "stream")
    with pytest.raises(ValueError, match="L0 takes places at 'units' or"):
        pr.L0(at="stream")


@pytest.mark.parametrize("kind", ["plain", "layer", "vit"])
def test_prune(kind: str) -> None:
    """A budget that the hidden units alone cannot meet."""
    torch.manual_seed(0)
    net, _ = made(kind, 32, 1e-5)
    for parameter in net.parameters():
        parameter.data.mul_(0.1)  # a loss that has nothing to lose, or it is said that it rose
    net = net.float()
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(3, (4,))) if kind == "vit" else torch.randint(13, (4, 6))] * 2

    def loss(net: nn.Module, batch: object) -> Tensor:
        if isinstance(batch, Tensor):
            return nn.functional.cross_entropy(net(batch).flatten(0, 1), batch.flatten())
        return nn.functional.cross_entropy(net(batch[0]), batch[1])  # type: ignore[index]

    search = Search(rounds=2)
    with pytest.raises(ValueError, match="cannot"):
        pr.prune(net, batches, loss, to=pr.Budget(params=0.12), epochs=0, search=search)
    small, done = pr.prune(
        net, batches, loss, to=pr.Budget(params=0.12), epochs=1, at=("units", "stream"), search=search
    )
    assert type(small) is type(net)
    assert sum(p.numel() for p in small.parameters()) <= 0.12 * sum(p.numel() for p in net.parameters())
    assert small.head.in_features < 32
    assert not done.notes
    if isinstance(small, Language):
        assert small.head.weight is small.words.weight


def test_the_width_of_torchs_own_attention_is_said_to_stay() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    whole = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    net, words = (
        nn.Sequential(nn.Embedding(5, 8), whole, nn.LayerNorm(8), nn.Linear(8, 3)).eval(),
        torch.randint(0, 5, (2, 3)),
    )
    with pytest.raises(
        ValueError, match=r"self_attn.out_proj', which is part of an nn.MultiheadAttention, whose width stays"
    ):
        sites(net, wiring(net, Inputs.of(words)), "stream")
