"""Budgets in bytes: of the tensors, and at the peak of a forward pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import paring as pr
from paring.core import Inputs, release
from paring.cost import measure, peak_memory
from paring.pruning.gated import GatedCopy
from paring.pruning.space import Bytes, Memory
from pruning.networks import Residual, batches, mlp, seeded

CASES: list[Any] = [(Residual, (2, 6, 6)), (mlp, (5,))]


def masks(gated: GatedCopy) -> list[torch.Tensor]:
    found = []
    for seed in range(3):
        mask = torch.rand(gated.units, generator=torch.Generator().manual_seed(seed)) < 0.6
        for part in mask.split(gated.sizes):
            part[0] = True
        found.append(mask)
    return found


def cut(gated: GatedCopy, mask: torch.Tensor, x: torch.Tensor) -> nn.Module:
    gated.set(mask)
    net = copy.deepcopy(gated.net)
    gated.set(torch.ones_like(mask))
    release(net)
    return pr.compact(net, x[:2])[0]


@pytest.mark.parametrize(("make", "shape"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_are_those_of_the_network_that_is_cut(make: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    net, x = seeded(make).to(dtype).eval(), batches(shape)[0][0].to(dtype)
    gated = GatedCopy.of(net, Inputs((x[:2],)), "units")
    count = Bytes(gated)
    assert float(count.share(gated.model())) == 1
    for mask in masks(gated):
        assert float(count.bytes(gated.cost(mask))) == measure(cut(gated, mask, x)).bytes


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_predicted_memory_falls_with_the_widths(make: Any, shape: tuple[int, ...]) -> None:
    net, x = seeded(make).eval(), batches(shape)[0][0]
    gated = GatedCopy.of(net, Inputs((x[:2],)), "units")
    table, dense = Memory(gated, Inputs((x,))), peak_memory(net, x)
    for mask in masks(gated):
        assert float(table.share(gated.cost(mask))) == pytest.approx(
            peak_memory(cut(gated, mask, x), x) / dense, abs=0.3
        )


@pytest.mark.parametrize(("make", "shape"), CASES)
@pytest.mark.parametrize(
    ("asked", "least"), [({"bytes": 0.5}, 0.45), ({"memory": 0.7}, 0.6), ({"memory": 0.9, "macs": 0.4}, 0)]
)
def test_a_budget_is_met(make: Any, shape: tuple[int, ...], asked: dict[str, float], least: float) -> None:
    net, found = seeded(make), batches(shape)
    small, pruned = pr.prune(net, found, to=pr.Budget(**asked), epochs=0)
    x = found[0][0]
    got = {"bytes": measure(small).bytes / measure(net).bytes, "memory": peak_memory(small, x) / peak_memory(net, x)}
    for name in set(asked) & set(got):
        assert least <= got[name] <= asked[name]
        assert pruned.shares[name] == pytest.approx(got[name])
    assert not [note for note in pruned.notes if "was asked" in note]


def test_memory_that_cannot_be_had_is_said() -> None:
    wide = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 300))  # what it answers is what it holds
    found = [(x, y) for x, y in batches((5,))]
    with pytest.raises(ValueError, match=r"Budget\(memory=0.3\) cannot be met: .*least is about Budget\(memory=0.[89]"):
        pr.prune(wide, found, to=pr.Budget(memory=0.3), epochs=0)


@pytest.mark.parametrize("name", ["bytes", "memory", "latency"])
def test_gates_do_not_count_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"counts parameters and MACs.*pr.prune takes {name}="):
        pr.L0(price=pr.Budget(**{name: 0.5}))
