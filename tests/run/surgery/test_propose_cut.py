"""What may go while training goes on must be dead whatever the weights become."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.core import Removal
from paring.cost import measure
from paring.run.surgery.propose_cut import propose

_REMOVAL = Removal(multiple_of=1, saving=0.0, measure=False)


def _with_closed_layer(seed: int, bias: bool) -> nn.Module:
    """All weights of the first layer are closed for good; what it puts out is its biases, which train on."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8, bias=bias), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net.get_parameter("0.weight").zero_()
    pr.attach(net, pr.Masked(at="weights:0"), torch.randn(2, 6))
    return net


@pytest.mark.parametrize("seed", range(4))
def test_a_sum_of_constants_that_is_negative_now_may_become_positive(seed: int) -> None:
    assert propose(_with_closed_layer(seed, bias=True), (torch.randn(2, 6),), _REMOVAL) is None


def test_zeros_without_a_bias_are_dead_for_good() -> None:
    found = propose(_with_closed_layer(0, bias=False), (torch.randn(2, 6),), _REMOVAL)
    assert found is not None
    assert found.widths["0"] == 1


def test_what_it_saves_is_of_all_that_the_network_multiplies() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.wide, self.out = nn.Linear(6, 8, bias=False), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(self.wide(self.attention(x, x, x, need_weights=False)[0]).relu())
            return y

    net, x = Attends(), torch.randn(2, 5, 6)
    dense = measure(net, x).macs
    assert dense is not None
    with torch.no_grad():
        net.wide.weight.zero_()
    pr.attach(net, pr.Masked(at="weights:wide"), x)
    found = propose(net, (x,), _REMOVAL)
    assert found is not None
    assert found.widths == {"wide": 1}
    assert found.macs == (dense, dense - 5 * 7 * (6 + 3))  # seven units less, at five positions
