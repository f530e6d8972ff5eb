"""Peak memory against sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.cost import peak_memory

BATCH = 4


def weights(net: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*net.parameters(), *net.buffers()])


@pytest.mark.parametrize(("inplace", "held"), [(False, 8 + 100 + 100), (True, 8 + 100 + 50)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_chain_holds_its_widest_pair_and_its_input(inplace: bool, held: int, dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(8, 100), nn.ReLU(inplace), nn.Linear(100, 50), nn.Flatten(), nn.Linear(50, 3)).to(
        dtype
    )
    x = torch.randn(BATCH, 8, dtype=dtype)
    assert peak_memory(net, x) - weights(net) == x.element_size() * BATCH * held


class Branching(nn.Module):
    """What is needed later stays; a view takes nothing; what is dropped is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back, self.other = nn.Linear(6, 60), nn.Linear(60, 6), nn.Linear(6, 20)
        self.register_buffer("scale", torch.ones(6))

    def forward(self, x: Tensor, *, factor: Tensor) -> Tensor:
        y = self.wide(x)  # x, y
        z = self.back(y)  # x, y, z: the peak
        del y
        y = self.other(z).view(2, -1)  # x, z, y
        return F.relu(y) * factor


def test_branches_views_and_keyword_inputs() -> None:
    net, x, factor = Branching().train(), torch.randn(BATCH, 6), torch.ones(1)
    found = peak_memory(net, {"x": x, "factor": factor})
    assert found - weights(net) == 4 * (BATCH * (6 + 60 + 6) + 1)
    assert net.training
    assert peak_memory(net, {"x": x, "factor": factor}) == found


def test_shared_weights_count_once() -> None:
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    net[1].weight = net[0].weight
    assert peak_memory(net, torch.ones(1, 5)) == 4 * (25 + 5 + 5 + 3 * 5)
