"""The choice under a budget: it fits, it wastes nothing, and on small networks it is close to the best there is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import paring as pr
from evidence.benches.bench_nets import Block
from paring.core import Inputs
from paring.cost import Openness
from paring.gates.openness import replaced
from paring.pruning import Search
from paring.pruning.gated import GatedCopy
from paring.pruning.knapsack import _cheapest, _scarcity, choose
from pruning.networks import Residual, batches, mlp, seeded


@pytest.fixture(scope="module")
def residual() -> GatedCopy:
    net = seeded(Residual)
    return GatedCopy.of(net, Inputs((batches((2, 6, 6))[0][0][:2],)), "units")


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1_000),
    macs=st.one_of(st.none(), st.floats(0.2, 1.0)),
    params=st.one_of(st.none(), st.floats(0.2, 1.0)),
    block=st.sampled_from([1, 2, 4]),
    least=st.sampled_from([0.0, 0.25]),
)
def test_it_fits_and_wastes_nothing(
    residual: GatedCopy, seed: int, macs: Any, params: Any, block: int, least: float
) -> None:
    targets = {name: asked for name, asked in (("macs", macs), ("parameters", params)) if asked is not None}
    if not targets:
        return
    scores = torch.rand(residual.units, generator=torch.Generator().manual_seed(seed))
    try:
        choice = choose(residual, scores, targets, multiple_of=block, least=least)
    except ValueError:
        with pytest.raises(ValueError, match="cannot be met"):
            choose(residual, scores, targets, multiple_of=block, least=least)
        return
    assert all(choice.shares[name] <= asked for name, asked in targets.items())
    widths = [(int(part.sum()), len(part)) for part in choice.mask.split(residual.sizes)]
    for kept, size in widths:
        assert kept >= max(1, least * size)
        assert kept % block == 0 or kept == size or (size - kept) % block == 0
    if block == 1:  # nobody who is gone would still fit
        for unit in (~choice.mask).nonzero().flatten().tolist():
            wider = choice.mask.clone()
            wider[unit] = True
            shares = residual.shares(wider)
            assert any(shares[name] > asked for name, asked in targets.items())


def test_the_units_that_stay_in_a_group_are_its_best(residual: GatedCopy) -> None:
    scores = torch.rand(residual.units, generator=torch.Generator().manual_seed(3))
    choice = choose(residual, scores, {"macs": 0.5})
    for part, mask in zip(scores.split(residual.sizes), choice.mask.split(residual.sizes), strict=True):
        assert not bool((~mask).any()) or float(part[mask].min()) >= float(part[~mask].max())


def test_it_is_near_the_best_of_all_choices() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    gated = GatedCopy.of(net, Inputs((torch.randn(2, 4),)), "units")
    for seed in range(5):
        scores = torch.rand(gated.units, generator=torch.Generator().manual_seed(seed))
        choice = choose(gated, scores, {"macs": 0.5})
        best = -1.0
        orders = [part.argsort(descending=True) for part in scores.split(gated.sizes)]
        for widths in itertools.product(*(range(1, size + 1) for size in gated.sizes)):
            mask = torch.zeros(gated.units, dtype=torch.bool)
            for start, order, width in zip((0, 6), orders, widths, strict=True):
                mask[start + order[:width]] = True
            if gated.shares(mask)["macs"] <= 0.5:
                best = max(best, float(scores[mask].sum()))
        assert float(scores[choice.mask].sum()) >= 0.9 * best


def test_a_budget_out_of_reach_names_the_least(residual: GatedCopy) -> None:
    with pytest.raises(ValueError, match=r"Budget\(macs=0\.001\) cannot be met.*least is about Budget\(macs=0\.0\d+\)"):
        choose(residual, torch.ones(residual.units), {"macs": 0.001})


def test_the_cost_is_that_of_the_finished_network(residual: GatedCopy) -> None:
    net = seeded(mlp)
    found = batches((5,))
    small, pruned = pr.prune(net, found, to=pr.Budget(macs=0.5), epochs=0)
    dense, left = (pr.report(one, found[0][0][:2]).total["macs"] for one in (net, small))
    assert dense is not None
    assert left == pytest.approx(pruned.shares["macs"] * dense)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1_000))
def test_openness_is_that_of_the_gates_one_by_one(residual: GatedCopy, seed: int) -> None:
    values = torch.rand(residual.units, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    fast, slow = (
        residual.openness(values),
        replaced(Openness(), residual.wiring, residual.sites, residual.split(values)),
    )
    for one, other in zip(
        (fast.units, fast.inputs, fast.weights), (slow.units, slow.inputs, slow.weights), strict=True
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    block=st.sampled_from([1, 2, 3]),
    excess=st.floats(0.0, 6.0),
)
def test_the_cheapest_blocks_go_first(seed: int, sizes: list[int], block: int, excess: float) -> None:
    """Against a loop over all blocks."""
    generator = torch.Generator().manual_seed(seed)
    scores, saving = torch.rand(2, sum(sizes), generator=generator, dtype=torch.double)
    saving[torch.rand(sum(sizes), generator=generator) < 0.2] = 0
    mask = torch.rand(sum(sizes), generator=generator) < 0.8
    blocks = [block if size > block else 1 for size in sizes]
    parts = []
    for units, one in zip(torch.arange(sum(sizes)).split(sizes), blocks, strict=True):
        order = sorted((u for u in units.tolist() if mask[u]), key=lambda u: float(scores[u]))
        spare = len(order) - one
        while order:
            taken = len(order) % one or one
            spare -= taken
            if spare < 0:
                break
            parts.append(order[:taken])
            order = order[taken:]
    parts = [part for part in parts if float(saving[part].sum()) > 0]
    parts.sort(key=lambda part: float(scores[part].sum() / saving[part].sum()))
    gone: list[int] = []
    for part in parts:
        gone += part
        if float(saving[gone].sum()) >= excess:
            break
    found = _cheapest(scores, saving, mask, sizes, blocks, blocks, excess)
    assert sorted(found.tolist()) == sorted(gone)


def test_narrow_groups_are_spared(residual: GatedCopy) -> None:
    """Some groups are worth little: the widths that stay come closer to each other the more balance is asked for."""
    worth = torch.tensor([2.0**number for number in range(len(residual.sizes))])
    scores = worth.repeat_interleave(torch.tensor(residual.sizes))
    scores = scores * (1 + 0.01 * torch.arange(residual.units))
    spread = []
    for balance in (0.0, 2.0, 6.0):
        choice = choose(residual, scores, {"macs": 0.5}, balance=balance)
        left = torch.tensor([float(part.double().mean()) for part in choice.mask.split(residual.sizes)])
        spread.append(float(left.max() / left.min()))
        assert choice.shares["macs"] <= 0.5
    assert spread[0] >= spread[1] > spread[2], spread
    assert Search().balance_for(residual.net) == 2.0  # what the measured tables were made with
    assert Search().balance_for(Block(8, 2)) == 0.0
    assert Search(balance=0.5).balance_for(residual.net) == 0.5


def test_heads_are_balanced_among_themselves() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Block(8, 2), Block(8, 4), nn.Linear(8, 2))
    gated = GatedCopy.of(net, Inputs((torch.randn(2, 5, 8),)), "units")
    assert sorted(zip(gated.heads, gated.sizes, strict=True)) == [(False, 32), (False, 32), (True, 2), (True, 4)]
    mask = torch.ones(gated.units, dtype=torch.bool)
    for part, heads in zip(mask.split(gated.sizes), gated.heads, strict=True):
        part[len(part) // 2 :] = heads  # half of the hidden units are gone, all heads are there
    found = _scarcity(gated, mask, 2.0)
    torch.testing.assert_close(found, torch.ones(gated.units))  # nobody is narrower than others of its kind
    first = mask.split(gated.sizes)[gated.heads.index(True)]
    first[0] = False
    parts = [float(part[0]) for part in _scarcity(gated, mask, 2.0).split(gated.sizes)]
    ratio = [part for part, heads in zip(parts, gated.heads, strict=True) if heads]
    gone = len(first) / (len(first) - 1)
    assert max(ratio) / min(ratio) == pytest.approx(gone**2)
    assert [part for part, heads in zip(parts, gated.heads, strict=True) if not heads] == pytest.approx([1.0, 1.0])
