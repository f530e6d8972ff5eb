"""Networks that torch.nn.utils.prune put masks on, as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import paring as pr
from paring.core.torch_masks import multiplied_in


def masked() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    for layer in (net[0], net[2]):
        prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
    prune.l1_unstructured(net[0], "bias", amount=4)
    return net


def test_the_masks_are_multiplied_into_a_copy() -> None:
    net, x = masked(), torch.randn(3, 4).double()
    plain = multiplied_in(net)
    assert {name for name, _ in plain.named_parameters()} == {
        f"{n}.{leaf}" for n in (0, 2, 4) for leaf in ("weight", "bias")
    }
    assert torch.equal(plain(x), net(x))
    assert hasattr(net[0], "weight_mask")
    net(x).sum().backward()  # the masked network trains on
    assert net[0].weight_orig.grad is not None
    assert multiplied_in(plain) is plain


def test_dead_units_go() -> None:
    net, x = masked(), torch.randn(3, 4).double()
    small, _ = pr.compact(net, x)
    assert small[0].out_features < 8
    torch.testing.assert_close(small(x), net(x), atol=1e-12, rtol=0)
    with pytest.raises(pr.CaptureError, match="computed from other tensors by a hook"):
        pr.compact(net, x, inplace=True)


def test_it_can_be_pruned_further() -> None:
    found = [(torch.randn(8, 4).double(), torch.randint(2, (8,))) for _ in range(2)]
    small, pruned = pr.prune(masked(), found, to=pr.Budget(params=0.6), epochs=1)
    assert pruned.shares["parameters"] <= 0.6
    assert not hasattr(small[0], "weight_mask")
