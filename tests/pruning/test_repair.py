"""Least squares: what stays takes over the work of what goes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.core import Inputs, release
from paring.core.default_loss import mean_loss
from paring.pruning import repair as repair_module
from paring.pruning.gated import GatedCopy
from paring.pruning.norms import renew_statistics
from paring.pruning.prune import cross_entropy
from paring.pruning.repair import Repair
from paring.pruning.search import Setting, _close
from pruning.networks import Residual, batches, mlp, seeded


def closed(gated: GatedCopy, layer: str, units: list[int]) -> torch.Tensor:
    mask, start = torch.ones(gated.units, dtype=torch.bool), 0
    for site, size in zip(gated.sites, gated.sizes, strict=True):
        if layer in site.layers:
            mask[[start + unit for unit in units]] = False
        start += size
    return mask


def test_a_unit_that_others_can_say_is_missed_by_nobody() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():  # unit 2 is twice unit 1
        net[0].weight[2] = 2 * net[0].weight[1]
        net[0].bias[2] = 2 * net[0].bias[1]
    found = [(x.double(), y) for x, y in batches((5,))]
    gated = GatedCopy.of(net, Inputs((found[0][0][:2],)), "units")
    mask = closed(gated, "0", [2])
    gated.set(mask)
    assert not torch.allclose(gated.net(found[0][0]), net(found[0][0]), atol=1e-2)
    gated.set(torch.ones_like(mask))
    assert Repair(gated, found, cross_entropy, damping=1e-12).apply(mask) == 1
    torch.testing.assert_close(gated.net(found[0][0]), net(found[0][0]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_least_squares(bias: bool) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3, bias=bias)).double()
    found = [(x.double(), y) for x, y in batches((5,), count=3, size=32)]
    gated = GatedCopy.of(net, Inputs((found[0][0][:2],)), "units")
    mask = closed(gated, "0", [1, 5])
    Repair(gated, found, cross_entropy, damping=1e-13).apply(mask)
    release(gated.net)
    x = torch.cat([x for x, _ in found])
    hidden, wanted = net[1](net[0](x)), net(x)
    kept = torch.tensor([0, 2, 3, 4, 6, 7])
    columns = hidden[:, kept]
    if bias:
        columns = torch.cat([columns, torch.ones(len(x), 1).double()], 1)
    weights = torch.linalg.lstsq(columns, wanted).solution
    torch.testing.assert_close(gated.net[2].weight[:, kept], weights[:6].T, atol=1e-6, rtol=1e-5)
    if bias:
        torch.testing.assert_close(gated.net[2].bias, weights[6], atol=1e-6, rtol=1e-5)
    assert not gated.net[2].weight[:, [1, 5]].any()


class Tagger(nn.Module):
    """Positions of sequences, one of which carries far more than the others, and a mask of padding."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(5, width), nn.Linear(width, 3)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        said: Tensor = self.out(self.wide(x).tanh() * x[..., :1].abs().clamp(min=1))
        return said * attention_mask[..., None]


def sequences(count: int, size: int = 8, length: int = 6) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(7)
    found = []
    for _ in range(count):
        x, real = torch.randn(size, length, 5).double(), torch.ones(size, length).long()
        x[:, 0] *= 1000
        real[: size // 2, length // 2 :] = 0
        found.append((x, real))
    return found


def distance_to(teacher: nn.Module) -> Any:
    """A loss: the mean distance of answers of length 1."""

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        ours, theirs = (F.normalize(one(batch[0], attention_mask=batch[1]), dim=-1) for one in (net, teacher))
        return (ours - theirs.detach()).square().mean()

    return loss


def test_along_sequences_errors_are_relative_and_padding_does_not_count() -> None:
    net, found = seeded(Tagger).double(), sequences(4)
    gated = GatedCopy.of(net, Inputs((found[0][0][:2],), {"attention_mask": found[0][1][:2]}), "units")
    Repair(gated, found, distance_to(net), damping=1e-13).apply(closed(gated, "wide", [1, 5]))
    release(gated.net)
    x = torch.cat([x[real != 0] for x, real in found])
    hidden = net.wide(x).tanh() * x[..., :1].abs().clamp(min=1)
    wanted = net.out(hidden)
    weights = []
    for one, real in found:  # 1 / |y|², a batch at a time
        y = net.out(net.wide(one).tanh() * one[..., :1].abs().clamp(min=1))[real != 0].square().sum(1)
        weights.append(1 / (y + 1e-3 * y.median()))
    root = torch.cat(weights).sqrt()[:, None].detach()
    kept = torch.tensor([0, 2, 3, 4, 6, 7])
    columns = torch.cat([hidden[:, kept], torch.ones(len(x), 1).double()], 1)
    best = torch.linalg.lstsq(columns * root, wanted * root).solution
    torch.testing.assert_close(gated.net.get_parameter("out.weight")[:, kept], best[:6].T, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gated.net.get_parameter("out.bias"), best[6], atol=1e-6, rtol=1e-5)


def test_a_position_that_carries_far_more_does_not_decide_alone() -> None:
    """Relative errors keep what all positions say; absolute ones (2-D rows, that of the layer alone) keep the first one's."""
    net, found = seeded(lambda: Tagger(32)).double(), sequences(8)
    example = Inputs((found[0][0][:2],), {"attention_mask": found[0][1][:2]})
    loss, held = distance_to(net), sequences(9)[8:]
    losses = {}
    for name in ("not at all", "relative", "absolute"):
        gated = GatedCopy.of(net, example, "units")
        mask = closed(gated, "wide", list(range(8)))
        repair = Repair(gated, found, loss)
        if name == "absolute":
            repair.moments = {"out": repair_module.Moments(torch.zeros(32, 32).double(), torch.zeros(32).double())}
            for x, real in found:
                repair.moments["out"].add((net.wide(x).tanh() * x[..., :1].abs().clamp(min=1))[real != 0].detach())
        repair.apply(mask, fit=name != "not at all")
        losses[name] = float(mean_loss(gated.net, held, loss))
    assert losses["relative"] < 0.5 * min(losses["absolute"], losses["not at all"]), losses


def test_the_way_with_the_lowest_loss_on_batches_that_were_not_fitted_is_taken() -> None:
    net, found = seeded(lambda: Tagger(32)).double(), sequences(12)
    gated = GatedCopy.of(net, Inputs((found[0][0][:2],), {"attention_mask": found[0][1][:2]}), "units")
    loss, example = distance_to(net), Inputs((found[0][0][:2], found[0][1][:2]))
    repair = Repair(gated, found[:8], loss)
    assert repair.dampings == (repair_module.DAMPING, repair_module.POSITIONS_DAMPING)
    mask, losses = closed(gated, "wide", list(range(8))), []
    for way in ({"fit": False}, *({"positions": damping} for damping in repair.dampings)):
        repair.apply(mask, **way)  # type: ignore[arg-type]
        losses.append(float(mean_loss(gated.net, found[10:], loss)))
    assert len(set(losses)) == 3
    _close(gated, repair, mask, Setting(pr.Search(), found[:8], found[10:], loss, example, example))
    assert float(mean_loss(gated.net, found[10:], loss)) == min(losses)
    _close(gated, repair, mask, Setting(pr.Search(), found[:8], found[:8], loss, example, example))
    assert float(mean_loss(gated.net, found[10:], loss)) == losses[-1], "nothing to judge on: the larger damping"
    assert Repair(gated, found[:8], loss, damping=0.5).dampings == (repair_module.POSITIONS_DAMPING,), (
        "one is asked for"
    )


@pytest.mark.parametrize(("width", "taken"), [(8, 0), (30, 5), (2_000, 14)])
def test_wide_layers_see_more_batches(width: int, taken: int) -> None:
    """36 rows a batch: 72 of two are enough for 8 columns (64 rows), not for 30 (240); at most 8 times as many batches."""
    net, found = seeded(lambda: Tagger(width)).double(), sequences(2)
    gated = GatedCopy.of(net, Inputs((found[0][0][:2],), {"attention_mask": found[0][1][:2]}), "units")
    more = iter(sequences(20))
    repair = Repair(gated, found, distance_to(net), more=more)
    assert 20 - len(list(more)) == taken
    assert repair.moments["out"].count == 36 * (2 + taken)


def test_convolutions_too_and_grouped_ones_are_left_alone() -> None:
    net = seeded(Residual).double().eval()
    found = [(x.double(), y) for x, y in batches((2, 6, 6), count=4, size=16)]
    renew_statistics(net, found, cross_entropy)
    gated = GatedCopy.of(net, Inputs((found[0][0][:2],)), "units")
    mask = closed(gated, "a", [0, 3])
    before = copy.deepcopy(gated.net.state_dict())
    assert Repair(gated, found, cross_entropy, damping=1e-12).apply(mask) == 1
    changed = {name for name, value in gated.net.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"b.weight"}
    seen = []
    net.b.register_forward_pre_hook(lambda m, args: seen.append(F.unfold(args[0], 3, padding=1)))
    with torch.no_grad():
        for x, _ in found:
            net(x)
    rows = torch.cat(seen).transpose(1, 2).reshape(-1, 54)
    kept = torch.tensor([u * 9 + k for u in (1, 2, 4, 5) for k in range(9)])
    wanted = rows @ net.b.weight.detach().flatten(1).T
    best = torch.linalg.lstsq(rows[:, kept], wanted).solution
    torch.testing.assert_close(gated.net.b.weight.flatten(1)[:, kept], best.T, atol=1e-6, rtol=1e-4)


def test_what_does_not_lower_the_loss_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = mlp().eval()
    with torch.no_grad():
        found = [(x, net(x)) for x, _ in batches((5,))]

    def distance(net: nn.Module, batch: Any) -> torch.Tensor:
        return F.mse_loss(net(batch[0]), batch[1])

    results = {}
    for name in ("repaired", "plain", "spoiled"):
        if name == "spoiled":
            monkeypatch.setattr(repair_module, "_solve", lambda module, *_: module.weight.mul_(1e3))
        how = pr.pruning.Search(repair=name != "plain")
        results[name] = pr.prune(net, found, distance, to=pr.Budget(macs=0.5), epochs=0, search=how)[0].state_dict()
    assert all(torch.equal(value, results["plain"][name]) for name, value in results["spoiled"].items())
    assert not torch.equal(results["repaired"]["4.weight"], results["plain"]["4.weight"])


def test_it_is_judged_on_batches_that_were_not_fitted() -> None:
    torch.manual_seed(0)
    net, found = mlp().eval(), batches((5,), count=6)
    looked: dict[int, list[str]] = {}

    def loss(net: nn.Module, batch: Any) -> torch.Tensor:
        number = next(n for n, (x, _) in enumerate(found) if x is batch[0])
        looked.setdefault(number, []).append("train" if torch.is_grad_enabled() else "look")
        return cross_entropy(net, batch)

    pr.prune(
        net, found, loss, to=pr.Budget(macs=0.5), epochs=0, search=pr.pruning.Search(batches=3), validate=found[:1]
    )
    assert set(looked) == {0, 1, 2, 3, 4, 5}  # three that are fitted, two that judge, one more for the moments
    assert "train" not in looked[3] + looked[4]


def test_frozen_weights_stay() -> None:
    found = batches((5,))
    torch.manual_seed(0)
    net = mlp()
    net[2].weight.requires_grad_(False)
    gated = GatedCopy.of(net, Inputs((found[0][0][:2],)), "units")
    mask = closed(gated, "0", [0])
    before = copy.deepcopy(gated.net.state_dict())
    assert Repair(gated, found, cross_entropy).apply(mask) == 0
    assert all(torch.equal(before[name], value) for name, value in gated.net.state_dict().items() if "gate" not in name)


class Encoder(nn.Module):
    """torch's own attention, which reads the weight of its last layer without calling it, and a layer called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(8, 4, 12, dropout=0.0, batch_first=True)
        self.up, self.fc = nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(input=torch.relu(self.up(self.inner(x).mean(1))))
        return out


def test_layers_that_are_not_called_stay_finite() -> None:
    torch.manual_seed(0)
    net = Encoder().eval()
    found = batches((6, 8))
    small, pruned = pr.prune(net, found, to=pr.Budget(macs=0.99), epochs=0, at="units:up")
    assert small.fc.in_features < 10
    assert "up" not in pruned.uncut
    assert "units of fc all stay: network output" in str(pruned)
    assert "fc" in pruned.uncut
    assert all(bool(value.isfinite().all()) for value in small.state_dict().values())
    assert bool(small(found[0][0]).isfinite().all())


def test_statistics_are_the_mean_over_the_batches() -> None:
    net = seeded(Residual).double().eval()
    found = [(x.double(), y) for x, y in batches((2, 6, 6))]
    renew_statistics(net, found, cross_entropy)
    outs = [net.stem(x).detach() for x, _ in found]
    torch.testing.assert_close(net.bn.running_mean, torch.stack([o.mean((0, 2, 3)) for o in outs]).mean(0))
    torch.testing.assert_close(net.bn.running_var, torch.stack([o.var((0, 2, 3)) for o in outs]).mean(0))
    assert not net.training
    assert net.bn.momentum == 0.1


class Versioned(nn.Sequential):
    """Refuses a state without its version, as some networks of torchvision do."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError("version should be 2")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_versions_of_modules_travel_with_the_state(tmp_path: Path) -> None:
    """Also when a run goes on from its folder."""
    torch.manual_seed(0)
    net = Versioned(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    first, again = (
        pr.prune(net, batches((5,)), to=pr.Budget(macs=0.5), epochs=1, folder=tmp_path / "run") for _ in range(2)
    )
    assert type(first[0]) is Versioned
    assert first[1].shares["macs"] <= 0.5
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), again[0].parameters(), strict=True))
