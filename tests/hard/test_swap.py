"""Activations found, named and swapped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from paring.hard import Sign
from paring.hard.swap import ACTIVATIONS, activations, functional, swap
from paring.testing import Chain, ModuleChain


def test_activations_are_found_by_type_or_by_name() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Sequential(nn.PReLU(), nn.Sigmoid()), nn.Softmax(-1))
    assert list(activations(net)) == ["1", "2.0"]
    assert list(activations(net, "2.*|3")) == ["2.0", "2.1", "3"]
    assert nn.Tanh not in ACTIVATIONS  # more often an output than an activation
    with pytest.raises(ValueError, match=r"no module is an activation such as nn\.ReLU"):
        activations(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="is an activation itself"):
        activations(nn.ReLU())
    assert list(activations(net, "2*")) == ["2"], "what lies below is swapped with it"
    with pytest.raises(ValueError, match="no module is called 'foo'"):
        activations(net, "1|foo")
    with pytest.raises(ValueError, match="'0' is a Linear with weights"):
        activations(net, "0|1")


@pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda kind: kind.__name__)
def test_calls_inside_activation_modules_are_no_calls(kind: type[nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(3, 3), kind(), nn.Linear(3, 2))
    assert functional(net, torch.randn(2, 3)) == {}
    swap(net, activations(net), lambda _: Sign())
    assert type(net[1]) is Sign
    assert functional(net, torch.randn(2, 3)) == {}


def test_calls_are_found_where_they_are() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.leaky_relu_(self.fc(x))

    assert functional(nn.Sequential(nn.ReLU(), Block()), torch.randn(2, 3)) == {"1": "leaky_relu"}
    assert functional(Chain(), torch.randn(2, 2, 8, 8)) == {"": "relu"}
    assert functional(ModuleChain(), torch.randn(2, 2, 8, 8)) == {}


def test_modes_are_kept() -> None:
    net = nn.Sequential(nn.ReLU(), nn.ReLU())
    net[1].eval()
    swap(net, activations(net), lambda _: Sign())
    assert [m.training for m in net] == [True, False]
