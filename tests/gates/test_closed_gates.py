"""What `groups` calls gateable, closed gates remove; and a budget is met or refused: on random networks of common pieces."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch

import paring as pr
from paring.core import Inputs, ParingWarning, release
from paring.gates import live
from paring.pruning.gated import GatedCopy
from paring.removal import compact
from paring.testing import difference
from tests.gates.pieces import random_net

_SEEDS = range(16)


@pytest.mark.parametrize("seed", _SEEDS)
def test_closed_gates_remove_exactly_what_they_close(seed: int) -> None:
    net, x = random_net(seed)
    gated = GatedCopy.of(net, Inputs.of(x), "units")
    assert sum(row.gateable for row in pr.groups(net, x)) == len(gated.sites)
    torch.manual_seed(seed)
    mask = torch.cat([torch.arange(size) == int(torch.randint(size, ())) for size in gated.sizes])
    mask |= torch.rand(gated.units) > 0.5
    gated.set(mask.double())
    bare = copy.deepcopy(gated.net)
    release(bare)
    small, report = compact(bare, x)
    assert not report.rolled_back
    assert difference(small, gated.net, x) < 1e-9
    for name, opened in live(gated.openness(mask.double()), gated.wiring).units.items():
        weight = dict(small.named_parameters())[f"{name}.weight"]
        assert len(weight) == int(opened.sum()), name
    assert sum(p.numel() for p in small.parameters()) == int(gated.cost(mask).parameters)


@pytest.mark.parametrize("seed", _SEEDS)
def test_budgets_are_met_or_refused(seed: int) -> None:
    net, x = random_net(seed)
    batches = [(x, torch.arange(4))]
    rows = list(pr.groups(net, x))
    whole = sum(p.numel() for p in net.parameters())
    unit = max((row.parameters for row in rows if row.gateable), default=0.0) / whole
    refused = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ParingWarning)  # of networks so small that one unit is a few percent
            small, pruned = pr.prune(net, batches, to=pr.Budget(params=0.5), epochs=0)
    except ValueError as error:
        refused = str(error)
    if refused:
        least = re.search(r"cannot be met: .* still takes parameters ([0-9]+(?:\.[0-9]+)?)", refused)
        assert least is not None, refused
        assert float(least[1]) > 0.5
        return
    share = sum(p.numel() for p in small.parameters()) / whole
    assert share <= 0.5 + 0.01
    assert share >= 0.5 - max(0.01, unit)
    assert pruned.shares["parameters"] == pytest.approx(share)
