"""The benches' dead units are dead: whatever their producers compute, nobody feels more than a constant."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from evidence.benches.dead import KINDS, SUBJECTS, Kind, half_dead, rows, width

SMALL = [name for name in SUBJECTS if name not in ("resnet50", "vgg16")]


def _weight(net: nn.Module, name: str) -> Tensor:
    weight = net.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", SMALL)
def test_half_of_every_group_is_dead_in_all_its_writers(model: str, kind: Kind) -> None:
    net, dead = half_dead(SUBJECTS[model], kind)
    assert len(dead) == len(SUBJECTS[model].groups)
    for group, units in dead:
        assert len(units) == width(net, group) // 2
        gone = rows(units, group.block)
        for layer, norm in group.writers:
            weight = _weight(net, layer).flatten(1)
            alive = torch.ones(len(weight), dtype=torch.bool)
            alive[gone] = False
            assert not weight[gone].any()
            assert bool((weight[alive] != 0).any(1).all())
            if kind == "sign":
                assert not weight[alive].sum(1).any(), "the sum says dead, the entries say alive"
            if norm is not None:
                assert not _weight(net, norm)[gone].any()


@pytest.mark.parametrize("kind", KINDS)
def test_dead_residual_units_carry_a_constant(kind: Kind) -> None:
    net, dead = half_dead(SUBJECTS["resnet20"], kind)
    (stream,) = [units for group, units in dead if len(group.writers) > 1 and group.writers[0][0] == "conv1"]
    seen: list[Tensor] = []
    net.get_submodule("stage1").register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        net(torch.randn(4, 3, 32, 32))
    maps = seen[0][:, stream].transpose(0, 1).flatten(1)
    assert torch.equal(maps, maps[:, :1].expand_as(maps))
    assert bool(maps.any()) == (kind == "constant")
    others = torch.ones(16, dtype=torch.bool)
    others[stream] = False
    assert bool((seen[0][:, others].transpose(0, 1).flatten(1).std(1) > 0).all())


@torch.no_grad()
def test_dead_heads_add_a_constant() -> None:
    for kind in KINDS:
        net, dead = half_dead(SUBJECTS["vit"], kind)
        other = copy.deepcopy(net)
        for group, units in dead:
            for layer in group.asks:
                other_weight = other.get_submodule(layer).weight
                assert isinstance(other_weight, Tensor)
                gone = rows(units, group.block)
                other_weight[gone] = torch.randn(len(gone), other_weight.shape[1])
        x = torch.randn(2, 3, 32, 32)
        assert torch.allclose(net(x), other(x), atol=1e-6), "what a dead head attends to does not matter"
